"""Notify: hand one JSON line about each keep, stop and fault to a command of the user's, without ever waiting for it."""

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from autoresearch import UserError, keys
from autoresearch.ledger import scrubbed
from autoresearch.process import command_words

LIMIT = 30.0  # seconds for one call


class Notifier:
    """Calls a command in the background, once a notice, one after the other, with the notice on its standard input. say: told once when it fails."""

    def __init__(self, command: str, say: Callable[[str], None]) -> None:
        try:
            self.words = command_words(command)
        except (ValueError, IndexError):
            raise UserError(f"--notify takes a command, e.g. --notify 'sh notify.sh', not {command!r}") from None
        if not shutil.which(self.words[0]):
            raise UserError(f"--notify: there is no program {self.words[0]}")
        self.say: Callable[[str], None] | None = say
        self._notices: queue.Queue = queue.Queue()
        threading.Thread(target=self._work, daemon=True, name="notify").start()

    def send(self, notice: dict) -> None:
        self._notices.put({**notice, "time": round(time.time(), 3)})

    def close(self) -> None:
        """Let what was sent arrive, as long as one call may take."""
        done = threading.Event()
        self._notices.put(done)
        done.wait(LIMIT + 1)

    def _work(self) -> None:
        while True:
            notice = self._notices.get()
            if isinstance(notice, threading.Event):
                notice.set()
            elif (fault := self._call(json.dumps(scrubbed(notice), ensure_ascii=False) + "\n")) and self.say:
                say, self.say = self.say, None
                say(f"--notify: {fault}; the loop goes on, and this is not said again")

    def _call(self, line: str) -> str | None:
        """Why a notice did not arrive, or None."""
        try:
            process = subprocess.Popen(
                self.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=without_keys(),
                start_new_session=True,
            )
        except OSError as error:
            return f"{self.words[0]}: {error.strerror}"
        try:
            process.communicate(line.encode(errors="replace"), timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"`{self.words[0]}` did not end within {LIMIT:.0f} s"
        return f"`{self.words[0]}` ended with exit code {process.returncode}" if process.returncode else None


def without_keys() -> dict[str, str]:
    """This process's environment without what is a key by its name or its looks."""
    return {
        name: value for name, value in os.environ.items() if not keys.NAMES.search(name) and keys.scrub(value) == value
    }
