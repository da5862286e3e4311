"""Notify: hand one JSON line about each keep, stop and fault to a command of the user's, and never wait for it."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable

from autoresearch import UserError, keys
from autoresearch.keys import scrubbed
from autoresearch.runner.process import command_words

LIMIT = 30.0  # seconds for one call


class Notifier:
    """Calls a command, once a notice, one after the other, with the notice on its standard input.

    Made inside a running event loop. say: told once when the command fails. Raises UserError where there is no such
    command.
    """

    def __init__(self, command: str, say: Callable[[str], None]) -> None:
        try:
            self.words = command_words(command)
        except (ValueError, IndexError):
            raise UserError(f"--notify takes a command, e.g. --notify 'sh notify.sh', not {command!r}") from None
        if not shutil.which(self.words[0]):
            raise UserError(f"--notify: there is no program {self.words[0]}")
        self.say: Callable[[str], None] | None = say
        self._notices: asyncio.Queue[dict] = asyncio.Queue()
        self._calls = asyncio.create_task(self._call_each())

    def send(self, notice: dict) -> None:
        self._notices.put_nowait({**notice, "time": round(time.time(), 3)})

    async def close(self) -> None:
        """Let what was sent arrive, as long as one call may take."""
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._notices.join(), LIMIT + 1)
        finally:
            self._calls.cancel()
            await asyncio.wait({self._calls})

    async def _call_each(self) -> None:
        while True:
            notice = await self._notices.get()
            fault = await self._call(json.dumps(scrubbed(notice), ensure_ascii=False) + "\n")
            if fault and self.say:
                say, self.say = self.say, None
                say(f"--notify: {fault}; the loop goes on, and this is not said again")
            self._notices.task_done()

    async def _call(self, line: str) -> str | None:
        """Why a notice did not arrive, or None."""
        nowhere = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *self.words,
                stdin=asyncio.subprocess.PIPE,
                stdout=nowhere,
                stderr=nowhere,
                env=without_keys(),
                start_new_session=True,
            )
        except OSError as error:
            return f"{self.words[0]}: {error.strerror}"
        try:
            async with asyncio.timeout(LIMIT):
                await process.communicate(line.encode(errors="replace"))
        except TimeoutError:
            return f"`{self.words[0]}` did not end within {LIMIT:.0f} s"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return f"`{self.words[0]}` ended with exit code {process.returncode}" if process.returncode else None


def without_keys() -> dict[str, str]:
    """This process's environment without what is a key by its name or its looks."""
    return {
        name: value for name, value in os.environ.items() if not keys.NAMES.search(name) and keys.scrub(value) == value
    }
