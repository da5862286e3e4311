"""One command, run whole: its own session, its output in a file, a time limit, and no survivors."""

import dataclasses
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from autoresearch import UserError

GRACE_SECONDS = 5.0                 # between SIGTERM and SIGKILL


def command_words(command: str) -> list[str]:
    """A command split as a shell splits it; `python` means this interpreter."""
    words = shlex.split(command)
    return [sys.executable, *words[1:]] if words[0] in ("python", "python3") else words


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended."""

    exit_code: int | None           # negative for a signal; None where it was ended from here
    reason: str                     # in words; empty for exit code 0
    seconds: float
    peak_memory: int                # bytes, the largest resident size of the process or a child of it


class Process:
    """A command in a session of its own, so that Ctrl-C at the terminal does not reach it.

    log: file that takes standard output and error. on_stdin: keep a pipe to its standard input.
    """

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str], log: Path,
                 on_stdin: bool = False) -> None:
        self.started = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as output:
            try:
                self._process = subprocess.Popen(
                    words, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                    stdin=subprocess.PIPE if on_stdin else subprocess.DEVNULL,
                )
            except (FileNotFoundError, PermissionError) as error:
                raise UserError(f"cannot start `{shlex.join(words)}`: {error.strerror}; mend the command in program.md") from None
        self.identifier = identify(self._process.pid)

    def go(self) -> None:
        """Send a line to a process that waits for it on its standard input."""
        try:
            self._process.stdin.write(b"go\n")
            self._process.stdin.close()
        except BrokenPipeError:
            pass                    # it ended already: `wait` says how

    def wait(self, limit: float, stopped: Callable[[], bool] = lambda: False,
             tick: Callable[[], None] = lambda: None) -> Ended:
        """Wait until it ends by itself, `limit` seconds after its start, or `stopped()`. Leaves no survivors."""
        handle = os.pidfd_open(self._process.pid)
        try:
            poller = select.poll()
            poller.register(handle, select.POLLIN)
            while not poller.poll(100):
                tick()
                if stopped():
                    return self.end("stopped")
                if time.monotonic() - self.started > limit:
                    return self.end(f"ended after its time limit of {limit:.0f} s")
        except BaseException:
            self.end("not watched any more")
            raise
        finally:
            os.close(handle)
        return self._reap()

    def end(self, reason: str) -> Ended:
        """SIGTERM to the whole session, SIGKILL when it does not listen."""
        signal_group(self._process.pid, signal.SIGTERM)
        handle = os.pidfd_open(self._process.pid)
        select.select([handle], [], [], GRACE_SECONDS)
        os.close(handle)
        signal_group(self._process.pid, signal.SIGKILL)
        return dataclasses.replace(self._reap(), exit_code=None, reason=reason)

    def _reap(self) -> Ended:
        signal_group(self._process.pid, signal.SIGKILL)     # children that outlived it
        _, status, usage = os.wait4(self._process.pid, 0)
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.stdin:
            self._process.stdin.close()
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
        else:
            reason = f"exit code {code}" if code else ""
        return Ended(code, reason, time.monotonic() - self.started, usage.ru_maxrss * 1024)


def signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


def identify(pid: int) -> str:
    """`pid start-time`: names a process for good, since a pid alone is used again."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return f"{pid} {stat.read().rpartition(')')[2].split()[19]}"
    except OSError:
        return f"{pid} gone"


def end_left_over(identifier: str) -> bool:
    """End the session of a process that a loop which was killed has left behind. True if there was one."""
    pid = int(identifier.split()[0])
    if identify(pid) != identifier:
        return False
    signal_group(pid, signal.SIGKILL)
    return True
