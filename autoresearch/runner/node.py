"""What runs on a node of a cluster: an actor, and a process with the runner of one machine and one seat.

Ray starts the `Actor`, which only forwards messages. The trials belong to a separate process, `main` below. It ends its
trials when its standard input is closed, so whenever the actor, the node's Ray or the loop is gone, for whatever
reason. If it is killed itself, the keeper (keeper/) of each command ends the command.

Nothing here imports Ray. A message is a pickled tuple, preceded by its length.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import importlib.metadata
import math
import os
import pickle
import platform
import re
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any

from autoresearch.files import LARGEST, open_plain, remove
from autoresearch.task import Facts, Task

FOLDER = "AUTORESEARCH_CLUSTER"  # environment variable of a node: where its seats' folders are
LOG_SENT = 1 << 20  # bytes of the end of a log that come home when a job is over
LOG_SHOWN = 1 << 16  # and while it goes on
LOOK = 0.25  # seconds between two looks at what a running trial says
NEWS = 2.0  # seconds after which its progress is told
GONE = "the process that runs the trials has ended"
HEAD = struct.Struct(">Q")
HERE = Path(__file__).resolve().parents[2]  # the folder from which this code is imported
SAID = ("progress.json", "figures.json")  # what a trial says of itself in run/


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What has to be the same on all nodes of a run. Empty: not there, or not known."""

    code: str  # hash of the loop's own code
    python: str
    torch: str
    driver: str  # of the GPU
    processor: str
    sandbox: str  # what confines trials


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What a seat is told at its start. The repository comes separately, as git bundles.

    run: names the run, and its folder on the node. settings: environment variables of the game. device: those that
    choose the seat's own. share: seats of this node. place: which of them it is. cores: processors that it has. links:
    real paths of what `link` names, by path in the repository. modules: commits of submodules, by their paths.
    """

    run: str
    tag: str
    base: str  # the commit that the run began with
    task: Task
    settings: Mapping[str, str]
    device: Mapping[str, str]
    confined: bool
    share: int = 1
    place: int = 0
    cores: int = 0
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)
    modules: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class News:
    """What a running job has to say. files: by their paths in the trial's folder."""

    phase: str
    files: Mapping[str, bytes]
    over: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job or a call ended. fault: why this seat cannot be used, in one line; then there is no result."""

    result: Any = None
    fault: str = ""
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def fingerprint() -> Fingerprint:
    """This machine's."""
    from autoresearch.run import code_hash
    from autoresearch.runner import sandbox

    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = ""
    driver = first(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", Path("/proc/driver/nvidia/version"))
    processor = first(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo")) or platform.machine()
    return Fingerprint(code_hash(), platform.python_version(), torch, driver, processor, sandbox.method())


def first(pattern: str, path: Path) -> str:
    try:
        found = re.search(pattern, path.read_text())
    except OSError:
        return ""
    return found[1].strip() if found else ""


@dataclasses.dataclass(frozen=True)
class Fault:
    """The result of a call that failed in an unexpected way."""

    text: str


# ----------------------------------------------------------------------------------------------
# The actor


class Actor:
    """The actor of a seat: starts the process that has the trials, and passes calls on to it."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._answers: dict[int, asyncio.Future] = {}
        self._number = 0

    async def call(self, name: str, *arguments: Any) -> Any:
        """What a method of Node returns. Raises RuntimeError when the process is gone."""
        if self._process is None:
            await self._start()
        assert self._process and self._process.stdin
        if self._reading.done():
            raise RuntimeError(GONE)
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        said = pickle.dumps((self._number, name, arguments))
        with contextlib.suppress(ConnectionError):  # `_read` says that it is gone
            self._process.stdin.write(HEAD.pack(len(said)) + said)
            await self._process.stdin.drain()
        return await answer

    async def _start(self) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONBREAKPOINT"))}
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); from autoresearch.runner.node import main; main()"
        words = [sys.executable, "-c", code]
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *words, stdin=pipe, stdout=pipe, env=own, start_new_session=True
        )
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process and self._process.stdout
        async for number, answer in messages(self._process.stdout):
            if not (waiting := self._answers.pop(number, None)):
                continue
            if isinstance(answer, Fault):
                waiting.set_exception(RuntimeError(answer.text))
            else:
                waiting.set_result(answer)
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(RuntimeError(GONE))


async def messages(source: asyncio.StreamReader) -> AsyncIterator[tuple]:
    """Until the other side is gone."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            (length,) = HEAD.unpack(await source.readexactly(HEAD.size))
            yield pickle.loads(await source.readexactly(length))


# ----------------------------------------------------------------------------------------------
# The process


class Node:
    """One seat: the runner of this machine, in a clone of the repository that is its own. Jobs are numbered, since
    Ray may deliver a question about a job before the job itself.
    """

    def __init__(self) -> None:
        self.number = 0  # of the running job, or the last one
        self.ended: float = 0  # this job and earlier ones are not wanted any more
        self.described: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.job: asyncio.Task | None = None
        self.folder: Path | None = None  # of the trial that runs
        self.phase = ""

    async def fingerprint(self) -> Fingerprint:
        return fingerprint()

    async def open(self, assignment: Assignment, bundles: Mapping[str, bytes]) -> Outcome:
        """Set the game up; its facts. See Runner.open."""
        from autoresearch import UserError

        try:
            return Outcome(await self._open(assignment, bundles))
        except Exception as error:
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            outcome = Outcome(fault=said)
            if not self.described.done():
                self.described.set_result(outcome)
            return outcome

    async def _open(self, assignment: Assignment, bundles: Mapping[str, bytes]) -> Facts:
        import autoresearch.runner.local as local
        from autoresearch.record.runs import RUNS
        from autoresearch.repo import Repository, RunRepo
        from autoresearch.runner import Seat
        from autoresearch.runner.sent import clone, find_links

        if assignment.cores and len(have := sorted(os.sched_getaffinity(0))) >= assignment.share * assignment.cores:
            first = assignment.place * assignment.cores  # so that seats of a node do not disturb one another
            os.sched_setaffinity(0, have[first : first + assignment.cores])
        top = Path(os.environ.get(FOLDER) or Path.home() / ".cache/autoresearch/cluster")
        self._lock, seat = await free_folder(top / assignment.run)
        root = clone(seat, bundles[""], assignment.base)
        for path, commit in assignment.modules.items():
            clone(seat, bundles[path], commit, path)
        find_links(root, assignment.links)
        folder = root / RUNS / assignment.tag
        folder.mkdir(parents=True, exist_ok=True)
        repository = Repository(root)
        self.local = local.Local(
            assignment.task, RunRepo(repository, assignment.tag, folder), assignment.base, folder,
            [Seat(0, assignment.device)], dict(assignment.settings), assignment.confined, sys.stderr,
        )  # fmt: skip
        self.local.share = assignment.share

        def show(facts: Facts) -> None:
            if not self.described.done():
                self.described.set_result(Outcome(facts))

        with open(top / "prepare.lock", "w") as lock:  # data are prepared once a node
            await hold(lock)
            return await self.local.open(show, lambda facts: None)

    async def describe(self) -> Outcome:
        """The facts of the game, before anything takes long."""
        return await asyncio.shield(self.described)

    async def run(self, job: Any, number: int) -> Outcome:
        """A job's measurement, with its logs."""
        if number <= self.ended:
            return Outcome(fault="it was ended")
        self.number, self.folder, self.phase, self._told = number, self.local.folder_of(job.name), "", {}

        def tell(phase: Any) -> None:
            self.phase = phase.name

        self.job = asyncio.create_task(self.local.run(job, self.local.seats[0], tell))
        try:
            measured = await self.job
        except asyncio.CancelledError:
            return Outcome(fault="it was ended")
        except Exception as error:  # a full disk, no program of that name: of this node, not of the edit
            return Outcome(fault=f"{type(error).__name__}: {error}")
        return Outcome(measured, files=self._files(LOG_SENT))

    async def news(self, number: int) -> News:
        """The progress of a job, as soon as there is something new."""
        until, before = time.monotonic() + NEWS, (self.number, self.phase)
        while (self.number, self.phase) == before and (self.number < number or self.has_job(number)):
            if time.monotonic() > until:
                break
            await asyncio.sleep(LOOK)
        if self.number != number:
            return News("", {}, over=self.number > number)
        files = self._files(LOG_SHOWN)
        new = {name: content for name, content in files.items() if self._told.get(name) != content}
        self._told = files
        return News(self.phase, new, not self.has_job(number))

    def has_job(self, number: int) -> bool:
        """Whether a job runs."""
        return self.number == number and self.job is not None and not self.job.done()

    def _files(self, limit: int) -> dict[str, bytes]:
        """What people and agents may want to read of a trial: the ends of its logs, and what it says of itself."""
        assert self.folder
        found = {}
        for path in sorted(self.folder.glob("*.log")):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
                found[path.name] = file.read(limit)
        for name in SAID:
            with contextlib.suppress(OSError), open_plain(self.folder / "run" / name) as file:
                found[f"run/{name}"] = file.read(LARGEST)
        return found

    async def quiet(self, most: float, limit: float) -> bool:
        """See Runner.quiet."""
        return await self.local.quiet(self.local.seats[0], most, limit)

    async def end(self, number: float = math.inf) -> None:
        """End a job, whole; by default whatever runs."""
        self.ended = max(self.ended, number)
        if self.job and self.number <= number and not self.job.done():
            self.job.cancel()
            await asyncio.wait({self.job})

    async def tidy(self, name: str, keep_weights: bool) -> dict[str, bytes]:
        """Remove what a trial left but for what is to be kept, which is sent: files by their names in run/."""
        self.local.tidy(name, keep_weights)
        folder, kept = self.local.folder_of(name), {}
        if keep_weights:
            for path in folder.glob("run/*"):
                if path.is_file() and not path.is_symlink():
                    kept[path.name] = path.read_bytes()
        return kept

    async def forget(self, name: str) -> None:
        """Remove everything of a trial: the files to keep are on the loop's machine."""
        remove(self.local.folder_of(name))


async def free_folder(run: Path) -> tuple[IO, Path]:
    """(The lock that holds it, the first folder of a run on this machine that no other process has.)"""
    for number in range(1024):
        folder = run / f"seat-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115  held until this process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock, folder
        except BlockingIOError:
            lock.close()
    raise OSError(f"no free folder in {run}")


async def hold(lock: IO) -> None:
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(LOOK)


async def serve(output: IO[bytes]) -> None:
    """Answer calls until standard input ends."""
    node, running = Node(), set()
    reader = asyncio.StreamReader(limit=1 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)

    async def answer(number: int, name: str, arguments: tuple) -> None:
        try:
            result = await getattr(node, name)(*arguments)
        except Exception as error:  # else the caller would wait for ever
            result = Fault(f"{type(error).__name__}: {error}")
        said = pickle.dumps((number, result))
        output.write(HEAD.pack(len(said)) + said)
        output.flush()

    async for call in messages(reader):
        task = asyncio.create_task(answer(*call))
        running.add(task)
        task.add_done_callback(running.discard)
    await node.end()
    for task in running:
        task.cancel()


def main() -> None:
    from autoresearch import suspension

    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed here is no message
    with asyncio.Runner(loop_factory=suspension.event_loop) as runner:
        runner.run(serve(output))
