"""Notify: call the user's programs on events of a run, with one JSON line each. The loop does not wait for them.

`--notify COMMAND` is called on each keep, stop and fault, and when something waits for approval. The folder hooks/,
next to program.md, holds executables: `before-trial`, `after-verdict`, `on-keep`, `on-stop`. Only `before-trial` is
waited for, so that it can prepare the machine.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autoresearch import UserError, keys
from autoresearch.keys import scrubbed
from autoresearch.runner.process import command_words
from autoresearch.task import contents_hash

LIMIT = 30.0  # seconds for one call
TOLD = ("keep", "stop", "fault", "held")  # events that --notify tells
BEFORE, ENDED = "before-trial", "on-stop"
AFTER = {"verdict": "after-verdict", "keep": "on-keep"}  # hooks by event
HOOKS = (BEFORE, *AFTER.values(), ENDED)


class Listener:
    """Receives the events of a run."""

    def send(self, notice: dict) -> None:
        """Accept a notice without blocking the sender."""

    async def before_trial(self, notice: dict) -> None:
        """Awaited before an attempt runs."""

    async def close(self) -> None:
        """Wait until everything sent has been delivered."""


class Calls(Listener):
    """Calls programs in the background, one after the other, with a notice on their standard input.

    Create it inside a running event loop. say: called once for each program that fails. folder: where they run; by
    default the loop's current folder.
    """

    def __init__(self, say: Callable[[str], None], folder: Path | None = None) -> None:
        self.say, self.folder = say, folder
        self.failed: set[str] = set()
        self._waiting: asyncio.Queue[tuple[str, Sequence[str], dict]] = asyncio.Queue()
        self._calls = asyncio.create_task(self._call_each())

    def add(self, name: str, words: Sequence[str], notice: dict) -> None:
        """Call a program when its turn comes. name: for messages."""
        self._waiting.put_nowait((name, words, stamped(notice)))

    async def close(self) -> None:
        """As long as one call may take."""
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._waiting.join(), LIMIT + 1)
        finally:
            self._calls.cancel()
            await asyncio.wait({self._calls})

    async def _call_each(self) -> None:
        while True:
            await self.call(*await self._waiting.get())
            self._waiting.task_done()

    async def call(self, name: str, words: Sequence[str], notice: dict) -> None:
        """Call a program and wait for its end, at most LIMIT seconds."""
        if fault := await self._fault(words, json.dumps(scrubbed(notice), ensure_ascii=False) + "\n"):
            self.say_once(name, f"{fault}; the loop continues")

    def say_once(self, name: str, fault: str) -> None:
        if name not in self.failed:
            self.failed.add(name)
            self.say(f"{name}: {fault} (further failures are not reported)")

    async def _fault(self, words: Sequence[str], line: str) -> str | None:
        """Why a notice was not delivered, or None."""
        nowhere = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=nowhere,
                stderr=nowhere,
                env=without_keys(),
                cwd=self.folder,
                start_new_session=True,
            )
        except OSError as error:
            return f"{words[0]}: {error.strerror}"
        try:
            async with asyncio.timeout(LIMIT):
                await process.communicate(line.encode(errors="replace"))
        except TimeoutError:
            return f"`{words[0]}` did not end within {LIMIT:.0f} s"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return f"`{words[0]}` ended with exit code {process.returncode}" if process.returncode else None


class Notifier(Calls):
    """The command of --notify. Raises UserError if there is no such command."""

    def __init__(self, command: str, say: Callable[[str], None]) -> None:
        try:
            self.words = command_words(command)
        except (ValueError, IndexError):
            raise UserError(f"--notify takes a command, e.g. --notify 'sh notify.sh', not {command!r}") from None
        if not shutil.which(self.words[0]):
            raise UserError(f"--notify: there is no program {self.words[0]}")
        super().__init__(say)

    def send(self, notice: dict) -> None:
        if notice["event"] in TOLD:
            self.add("--notify", self.words, notice)


class Hooks(Calls):
    """The executables in hooks/ of the user's checkout, as they are when the loop starts.

    A hook that changes later is not called: an agent, which has the user's permissions, might have changed it.
    """

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        super().__init__(say, root)
        self.found = {name: hash_of(root / "hooks" / name) for name in hooks_of(root)}
        for path in sorted((root / "hooks").glob("*")):
            if path.name in HOOKS and path.name not in self.found:
                say(f"hooks/{path.name} is not called: it is not executable; `chmod +x hooks/{path.name}`")
            elif path.name not in HOOKS and re.fullmatch(r"(before|after|on)-[a-z-]+", path.name):
                say(f"hooks/{path.name} is not called: hooks are {', '.join(HOOKS)}")

    def send(self, notice: dict) -> None:
        name = ENDED if notice.get("ended") else AFTER.get(notice["event"], "")
        if self.ready(name):
            self.add(f"hooks/{name}", [str(self.path(name))], notice)

    async def before_trial(self, notice: dict) -> None:
        if self.ready(BEFORE):
            await self.call(f"hooks/{BEFORE}", [str(self.path(BEFORE))], stamped(notice))

    def path(self, name: str) -> Path:
        assert self.folder
        return self.folder / "hooks" / name

    def ready(self, name: str) -> bool:
        if name in self.found and hash_of(self.path(name)) != self.found[name]:
            del self.found[name]
            self.say_once(f"hooks/{name}", "it changed after the loop started; it is called again after a restart")
        return name in self.found


def hooks_of(root: Path) -> list[str]:
    """The hooks in a checkout."""
    paths = (root / "hooks" / name for name in HOOKS)
    return [path.name for path in paths if path.is_file() and os.access(path, os.X_OK)]


def hash_of(path: Path) -> str:
    """A hash of a file's contents; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return contents_hash({path.name: path.read_bytes()})
    return ""


def stamped(notice: dict) -> dict:
    return {**notice, "time": round(time.time(), 3)}


def without_keys(but: tuple[str, ...] = ()) -> dict[str, str]:
    """This process's environment without keys, recognised by name or value. but: prefixes of names that stay."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(but) or not (keys.NAMES.search(name) or keys.scrub(value) != value)
    }
