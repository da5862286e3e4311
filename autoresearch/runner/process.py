"""One command with all its processes: in its own session, with its output in a file and a time limit, and no survivors.

    async with Process(words, folder, environment, log) as process:
        ended = await process.wait(limit)

The process is started without an await, and from then on the block owns it: leaving the block, in whatever way, ends it
and everything that it started. The command runs as a child of a keeper (keeper/), which also ends processes that have
left the session, and ends everything if this program is killed.
"""

import asyncio
import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from autoresearch import UserError, suspension
from autoresearch.runner import keeper, sandbox
from autoresearch.runner.identity import identify
from autoresearch.runner.machine import MemoryGroup, memory_of, tasks_of, unlinked_by

GRACE_SECONDS = 6.0  # between SIGTERM and SIGKILL; the keeper's own grace time is shorter
WATCH_SECONDS = 0.5  # between two checks of what a command uses
SUSPENDED = 5.0  # a longer gap between two checks, without this program being busy, means a suspension
OUTPUT_LIMIT = 8 << 20  # bytes of cleaned output that are kept
LONGEST_LINE = 4 << 20  # bytes that are cleaned as one


def ask(
    words: Sequence[str],
    limit: float,
    rules: dict | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    errors: bool = True,
) -> tuple[int, str]:
    """Run a short command, blocking. Returns (exit code, output). Leaves no survivors, even when killed.

    rules: as for Process. errors: include its standard error. Raises TimeoutError after `limit` seconds. Exit code 127
    means that there is no such program.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*sandbox.launcher(rules), *words],
            cwd=folder,
            env={**(os.environ if environment is None else environment), keeper.PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output if errors else subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # its keeper ends all that it started
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            raise TimeoutError(f"no answer within {limit:g} s") from None
        finally:
            signal_group(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def give_way(pid: int, group: MemoryGroup | None) -> None:
    """Give a process the lowest priority: in its session, and its session (or control group) among others."""
    os.setpriority(os.PRIO_PROCESS, pid, 19)
    with contextlib.suppress(OSError):  # a kernel without this
        Path(f"/proc/{pid}/autogroup").write_text("19")
    if group and (idle := group.folder / "cpu.idle").exists():
        with contextlib.suppress(OSError):
            idle.write_text("1")


def command_words(command: str) -> list[str]:
    """A command split as a shell splits it; `python` means this interpreter."""
    words = shlex.split(command)
    return [sys.executable, *words[1:]] if words[0] in ("python", "python3") else words


def require_program(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Raises UserError if there is no such program to start in a folder."""
    if not (shutil.which(words[0], path=environment.get("PATH")) or (folder / words[0]).is_file()):
        raise UserError(
            f"cannot start `{shlex.join(words)}`: there is no program {words[0]}; correct the command in program.md"
        )


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended."""

    exit_code: int | None  # negative for a signal; None if the loop ended it
    reason: str  # as text; empty for exit code 0
    seconds: float
    peak_memory: int  # bytes, the largest resident size of the process or a child of it
    suspended: float = 0.0  # seconds for which it or the machine was suspended, as far as noticed


class Process:
    """A command in its own session, so that Ctrl-C at the terminal does not reach it. See the module docstring.

    log: file for standard output and error; with `clean`, each line goes through it, and at most OUTPUT_LIMIT bytes are
    kept. rules: of the sandbox (sandbox.launcher); None: no sandbox. on_stdin: keep a pipe to its standard input.
    channel: a socket that it inherits; its number is in AUTORESEARCH_REFEREE. counted: let the kernel count its memory,
    if possible. yields: to all others that want the processor.

    Raises UserError if there is no such program.
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
        counted: bool = False,
        yields: bool = False,
    ) -> None:
        self.started = time.monotonic()
        require_program(words, folder, environment)
        environment = {**environment, keeper.PARENT: str(os.getpid())}
        handles = []
        if channel:
            handles = [channel.fileno()]
            environment["AUTORESEARCH_REFEREE"] = str(handles[0])
        self._group = MemoryGroup.make() if counted else None
        if self._group:
            environment[keeper.GROUP] = str(self._group.folder)
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
        if yields:  # before the keeper starts anything; the sandbox would not let the command do so
            give_way(self._process.pid, self._group)
        self._ended: Ended | None = None
        self._exit = Exit(self._process.pid)
        copying = copy_lines(self._process.stdout, log, clean) if clean and self._process.stdout else None
        self._copying = asyncio.create_task(copying) if copying else None
        self.identifier = identify(self._process.pid)

    async def __aenter__(self) -> "Process":
        return self

    async def __aexit__(self, *exception) -> None:
        try:
            if self._ended is None:
                await self.end("not needed any more")
        finally:
            if self._copying:
                self._copying.cancel()

    def go(self, said: str) -> None:
        """Send a line to a process that is waiting for it on its standard input."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has already ended: `wait` will say how
            self._process.stdin.write(f"{said}\n".encode())
            self._process.stdin.close()

    async def wait(self, limit: float, excess: Callable[[], str | None] = lambda: None) -> Ended:
        """Wait until the command ends; end it `limit` seconds after its start, or when `excess()` returns a reason.

        Leaves no survivors. `excess` is called twice a second. Time while the machine was suspended does not count
        towards the limit; time for which the command stopped itself does.
        """
        suspended, looked, busy = 0.0, suspension.now(), suspension.busy()
        while True:
            left = self.started + limit - time.monotonic()
            exited = await self._exit.within(min(WATCH_SECONDS, max(0.0, left)))
            gap, worked = suspension.now() - looked, suspension.busy() - busy
            if gap - worked > SUSPENDED:
                suspended += gap
            looked, busy = looked + gap, busy + worked
            if exited:
                ended = await self._reap()
            elif reason := excess():
                ended = await self.end(reason)
            elif time.monotonic() - self.started > limit:
                ended = await self.end(f"ended after its time limit of {limit:.0f} s")
            else:
                continue
            return dataclasses.replace(ended, suspended=suspended)

    def memory(self) -> float:
        """Bytes of host memory that the command and all its descendants use."""
        if self._group:
            with contextlib.suppress(OSError):
                return self._group.used()
        return memory_of(process.pid for process in family(self._process.pid))

    def tasks(self) -> int:
        """The number of processes and threads of the command and its descendants."""
        if self._group and (count := self._group.tasks()) is not None:
            return count
        return tasks_of(process.pid for process in family(self._process.pid))

    def unlinked(self) -> int:
        """Bytes on the disk in deleted files that the command or a descendant still holds open; 0 when ended."""
        return 0 if self._ended else unlinked_by(process.pid for process in family(self._process.pid))

    async def end(self, reason: str) -> Ended:
        """Send SIGTERM to the whole session, and SIGKILL after GRACE_SECONDS. `reason` is put into the result."""
        try:
            signal_group(self._process.pid, signal.SIGTERM)
            await self._exit.within(GRACE_SECONDS)
        finally:  # if this is cancelled, kill at once
            self._collect()
        return dataclasses.replace(await self._reap(), exit_code=None, reason=reason)

    async def _reap(self) -> Ended:
        ended = self._collect()
        if self._copying:
            await asyncio.wait({self._copying}, timeout=GRACE_SECONDS)  # what left the session may hold the pipe
            if not self._copying.cancel():
                self._copying.exception()  # of a full disk: the log is cut there
        return ended

    def abandon(self) -> None:
        """Kill the process at once, before an `async with` block owns it."""
        self._collect()
        if self._copying:
            self._copying.cancel()

    def _collect(self) -> Ended:
        """Kill what is left, including processes outside the session, and collect the exit status."""
        if self._ended:
            return self._ended
        running = [] if self._exit.seen() else family(self._process.pid)
        for process in reversed(running):  # the keeper last: the others are its children
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        signal_group(self._process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._exit.close()
        if self._group:
            self._group.remove()
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        reason = f"killed by {signal_name(-code)}" if code < 0 else f"exit code {code}" if code else ""
        self._ended = Ended(code, reason, time.monotonic() - self.started, usage.ru_maxrss * 1024)
        return self._ended


class Exit:
    """Makes the end of a process awaitable."""

    def __init__(self, pid: int) -> None:
        self._handle = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._seen = self._loop.create_future()
        self._loop.add_reader(self._handle, self._see)

    def _see(self) -> None:
        self._loop.remove_reader(self._handle)
        if not self._seen.done():
            self._seen.set_result(None)

    async def within(self, seconds: float) -> bool:
        """Wait at most so many seconds. Returns whether the process has ended."""
        await asyncio.wait({self._seen}, timeout=seconds)
        return self.seen()

    def seen(self) -> bool:
        """Whether its end has been seen."""
        return self._seen.done()

    def close(self) -> None:
        self._loop.remove_reader(self._handle)
        os.close(self._handle)


async def copy_lines(source: IO[bytes], log: Path, clean: Callable[[str], str]) -> None:
    """Copy lines to a log, each cleaned before it reaches the disk. Beyond OUTPUT_LIMIT they are read and dropped."""
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), source)
    left, line = OUTPUT_LIMIT, b""
    with open(log, "wb") as file, contextlib.closing(pipe):
        while True:
            part = await reader.read(1 << 16)
            *whole, line = (line + part).split(b"\n")
            pieces = [raw + b"\n" for raw in whole]
            if not part or len(line) > LONGEST_LINE:
                pieces, line = [*pieces, line], b""
            for raw in pieces:
                text = clean(raw.decode("utf-8", "replace")).encode()[: max(0, left)]
                file.write(text)
                left -= len(text)
            file.flush()
            if not part:
                return


def signal_name(number: int) -> str:
    """`SIGKILL`; realtime signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants; empty if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end_left_over(identifier: str) -> bool:
    """End the session of a process left behind by a killed loop. Returns whether there was one.

    Blocks until it has ended, up to GRACE_SECONDS: called before anything else runs.
    """
    pid = int(identifier.split()[0])
    if identify(pid) != identifier:
        return False
    signal_group(pid, signal.SIGTERM)
    with contextlib.suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
        psutil.Process(pid).wait(GRACE_SECONDS)
    signal_group(pid, signal.SIGKILL)
    return True
