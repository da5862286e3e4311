"""One command, run whole: its own session, its output in a file, a time limit, and no survivors.

The command runs below the keeper of sandbox.py, which also ends what has left the session.
"""

import dataclasses
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from autoresearch import UserError, sandbox

GRACE_SECONDS = 6.0  # between SIGTERM and SIGKILL; the keeper's own are less
WATCH_SECONDS = 0.5  # between two looks at what a command uses
SUSPENDED = 5.0  # seconds between two looks, of a tenth of a second: this machine or program stood still
OUTPUT_LIMIT = 8 << 20  # bytes of cleaned output that are kept
LONGEST_LINE = 4 << 20  # bytes that are cleaned as one


def command_words(command: str) -> list[str]:
    """A command split as a shell splits it; `python` means this interpreter."""
    words = shlex.split(command)
    return [sys.executable, *words[1:]] if words[0] in ("python", "python3") else words


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended."""

    exit_code: int | None  # negative for a signal; None where it was ended from here
    reason: str  # in words; empty for exit code 0
    seconds: float
    peak_memory: int  # bytes, the largest resident size of the process or a child of it
    suspended: float = 0.0  # seconds for which it, this program or the machine stood still, as far as was seen


class Process:
    """A command in a session of its own, so that Ctrl-C at the terminal does not reach it.

    log: file that takes standard output and error; with `clean` each line as clean(line) gives it, OUTPUT_LIMIT bytes at most. rules: what it is confined to (sandbox.launcher), None
    for nothing. on_stdin: keep a pipe to its standard input. channel: a socket that it gets as well; its
    number is in AUTORESEARCH_REFEREE.
    """

    def __init__(
        self,
        words: list[str],
        folder: Path,
        environment: dict[str, str],
        log: Path,
        rules: dict | None = None,
        on_stdin: bool = False,
        channel: socket.socket | None = None,
        clean: Callable[[str], str] | None = None,
    ) -> None:
        self.started = time.monotonic()
        if not (shutil.which(words[0], path=environment.get("PATH")) or (folder / words[0]).is_file()):
            raise UserError(
                f"cannot start `{shlex.join(words)}`: there is no program {words[0]}; mend the command in program.md"
            )
        handles = []
        if channel:
            handles = [channel.fileno()]
            environment = {**environment, "AUTORESEARCH_REFEREE": str(handles[0])}
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [*sandbox.launcher(rules), *words],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE if clean else output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.PIPE if on_stdin else subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=handles,
            )
        self._copying = clean and threading.Thread(
            target=copy_lines, args=(self._process.stdout, log, clean), daemon=True
        )
        if self._copying:
            self._copying.start()
        self.identifier = identify(self._process.pid)

    def go(self) -> None:
        """Send a line to a process that waits for it on its standard input."""
        try:
            self._process.stdin.write(b"go\n")
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it ended already: `wait` says how

    def wait(
        self,
        limit: float,
        stopped: Callable[[], bool] = lambda: False,
        tick: Callable[[], None] = lambda: None,
        excess: Callable[[], str | None] = lambda: None,
    ) -> Ended:
        """Wait until it ends by itself, `limit` seconds after its start, `stopped()`, or `excess()` names a reason.

        Leaves no survivors.
        """
        handle = os.pidfd_open(self._process.pid)
        watched = time.monotonic()
        suspended, looked = 0.0, time.clock_gettime(time.CLOCK_BOOTTIME)  # which goes on while the machine sleeps
        try:
            poller = select.poll()
            poller.register(handle, select.POLLIN)
            while True:
                ended = poller.poll(100)
                before, looked = looked, time.clock_gettime(time.CLOCK_BOOTTIME)
                if looked - before > SUSPENDED:
                    suspended += looked - before
                if ended:
                    break
                tick()
                if stopped():
                    return self.end("stopped")
                if time.monotonic() - watched > WATCH_SECONDS:
                    if reason := excess():
                        return dataclasses.replace(self.end(reason), suspended=suspended)
                    if any(is_stopped(pid) for pid in family(self._process.pid)):
                        suspended += time.monotonic() - watched
                    watched = time.monotonic()
                if time.monotonic() - self.started > limit + suspended:
                    return dataclasses.replace(
                        self.end(f"ended after its time limit of {limit:.0f} s"), suspended=suspended
                    )
        except BaseException:
            self.end("not watched any more")
            raise
        finally:
            os.close(handle)
        return dataclasses.replace(self._reap(), suspended=suspended)

    def memory(self) -> int:
        """Bytes of host memory that the command and all that it started hold for themselves."""
        return sum(own_memory(pid) for pid in family(self._process.pid))

    def end(self, reason: str) -> Ended:
        """SIGTERM to the whole session, SIGKILL when it does not listen."""
        end_session(self._process.pid)
        return dataclasses.replace(self._reap(), exit_code=None, reason=reason)

    def _reap(self) -> Ended:
        signal_group(self._process.pid, signal.SIGKILL)  # children that outlived it
        _, status, usage = os.wait4(self._process.pid, 0)
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.stdin:
            self._process.stdin.close()
        if self._copying:
            self._copying.join(GRACE_SECONDS)  # what has left the session may still hold the pipe
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
        else:
            reason = f"exit code {code}" if code else ""
        return Ended(code, reason, time.monotonic() - self.started, usage.ru_maxrss * 1024)


def copy_lines(source: BinaryIO, log: Path, clean: Callable[[str], str]) -> None:
    """Copy lines to a log, each cleaned before it is on the disk. What is too much is read and dropped."""
    left = OUTPUT_LIMIT
    with source, open(log, "wb") as file:
        while line := source.readline(LONGEST_LINE):
            text = clean(line.decode("utf-8", "replace")).encode()
            if left > 0:
                file.write(text[:left])
                file.flush()
                left -= len(text)


def signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


def end_session(pid: int) -> None:
    """End a keeper, and with it its command: politely, then not."""
    signal_group(pid, signal.SIGTERM)
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([handle], [], [], GRACE_SECONDS)
    os.close(handle)
    signal_group(pid, signal.SIGKILL)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                parents.setdefault(int(stat.read().rpartition(")")[2].split()[1]), []).append(int(name))
        except OSError:
            pass  # it has ended
    found = [pid]
    for member in found:
        found += parents.get(member, [])
    return found


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped a process, as SIGSTOP does."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def own_memory(pid: int) -> int:
    """Resident bytes of a process that are not files'."""
    try:
        with open(f"/proc/{pid}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        return sum(int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem")) * 1024
    except (OSError, ValueError):
        return 0


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
    end_session(pid)
    return True
