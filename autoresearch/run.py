"""An open run: its folder, record and repository, held by this process alone, and the runner that its trials go to.

The loop and `verify` both work on one. All that a run knows is in its journal, so it can be killed at any moment.
"""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import importlib.util
import inspect
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

import git

from autoresearch import UserError, disk_is_full, inbox
from autoresearch.constants import with_change
from autoresearch.editable import among, in_folder, is_glob, may_edit
from autoresearch.gate import in_words
from autoresearch.limits import StopRequest
from autoresearch.program import program_of, read_agenda, read_task
from autoresearch.record import events
from autoresearch.record.journal import Lock
from autoresearch.record.ledger import ABANDONED, Attempt, Ledger
from autoresearch.record.results import Results
from autoresearch.record.runs import RUNS, choose_tag, make_folder, root_of
from autoresearch.repo import RunRepo, open_repository
from autoresearch.runner import Job, Runner, Seat
from autoresearch.runner.local import Local, choose_confinement, seats_of
from autoresearch.task import Facts, Task, code_lines, contents_hash, edit_hash
from autoresearch.text import count, short, to_type
from autoresearch.views.console import Console

LOOK = 0.3  # seconds between two looks into the inbox
ENOUGH_ROOM = 1 << 16  # bytes free on a disk that was full, before the loop goes on
Result = TypeVar("Result")


class Run:
    """One run. root: the user's checkout. folder: of the run's record. program: the program.md that it follows."""

    runner: Runner

    def __init__(
        self,
        root: Path,
        folder: Path,
        program: Path,
        task: Task,
        ledger: Ledger,
        repo: RunRepo,
        confined: bool,
        console: Console,
        stop: StopRequest,
    ) -> None:
        self.root, self.folder, self.program, self.task = root, folder, program, task
        self.ledger, self.repo = ledger, repo
        self.confined, self.console, self.stop = confined, console, stop
        self.seed = ledger.seed
        self.gpus: str | None = None
        self.kind = ""  # of the devices of a cluster that decide what is kept
        self.tiers: tuple[str, ...] = ()  # of --tiers: the kind that screens edits, and that one
        self.prices: dict[str, float] = {}  # of --seat-price: dollars an hour, by kind
        self._noted: Sequence[Seat] = []  # the seats that the record has
        self.waits_for_room = False  # and the user has been told
        self.code = code_hash()
        self.results = Results(root / "results.tsv", ledger)

    @property
    def facts(self) -> Facts:
        return self.ledger.facts or Facts()

    @functools.cached_property
    def originals(self) -> dict[str, bytes]:
        """The editable files as the human wrote them."""
        return self.files(self.ledger.base)

    # -- opening

    def begin(self, keep_edit: bool = False) -> None:
        """Record a new run, or check that an old one can go on, and put branch and worktree in order.

        keep_edit: leave what stands in the worktree. Raises UserError.
        """
        ledger, repo = self.ledger, self.repo
        asked = json.loads(json.dumps(dataclasses.asdict(self.task)))
        tip, left = repo.branch_tip(), []
        if ledger.run and not ledger.measured and (ledger.run.task, ledger.base) != (asked, repo.head()):
            left = [ledger.base]
            self.begin_anew(asked)
        if ledger.run is None:
            if tip is not None:
                raise UserError(
                    f"the branch {repo.branch} exists and was not made by this loop; choose another with --tag NEW, "
                    f"or remove it: `git branch -D {repo.branch}`"
                )
            self.require_files()
            ledger.append(events.Run(tag=repo.tag, base=repo.head(), task=asked))
        elif ledger.run.task != {name: asked[name] for name in ledger.run.task if name in asked}:
            raise UserError(
                f"the task in program.md is not the one that run {repo.tag} began with (a run of another version of "
                "autoresearch may have had another scorer); put it back, or start another run with --tag NEW"
            )
        champion = ledger.champion_commit
        before = [attempt.commit for attempt in ledger.kept][-2:-1] or [ledger.base, *left]
        before += [attempt.commit for attempt in ledger.dropped]
        if tip not in (None, champion, *before):
            raise UserError(
                f"the branch {repo.branch} stands at {short(tip or '')}, not where the loop left it "
                f"({short(champion)}). "
                f"To keep that work, name it: `git branch mine {short(tip or '')}`; then put the branch back: "
                f"`git branch -f {repo.branch} {short(champion)}`"
            )
        last = ledger.finished[-1] if ledger.finished else None
        discarded = last and last is not ledger.champion
        if keep_edit and discarded and (repo.worktree / ".git").exists() and self.edit() == last.edit:
            keep_edit = False  # it was killed between its verdict and the reset
        repo.stand_at(champion, keep_edit)
        for attempt in ledger.pending:
            repo.remember(attempt.number, attempt.commit)
        if not keep_edit and (fault := self.task.fault(repo.worktree, self.originals)):
            raise UserError(
                f"{fault}, in the commit that the run starts from ({short(champion)}). Correct it, commit, and start "
                "again"
            )

    def begin_anew(self, task: dict) -> None:
        """Give a run in which nothing was measured the present program.md and commit: what was corrected goes on."""
        self.require_files()
        for attempt in self.ledger.pending:
            self.ledger.append(events.Verdict(number=attempt.number, status="crash", score=None, reason=ABANDONED[0]))
        self.ledger.append(events.Run(tag=self.repo.tag, base=self.repo.head(), task=task))

    def require_files(self) -> None:
        """UserError where the task names files that a new run would not find."""
        if fault := self.task.absent(self.repo.committed(self.repo.head()), self.repo.new(), self.root):
            raise UserError(fault)

    def choose_seats(self, gpus: str | None = None, workers: int | None = None) -> list[Seat]:
        """Where trials run: one at a time on each GPU, or so many at a time. Default: as the run was started last.

        Raises UserError for what would not compare with the run's scores.
        """
        started = self.ledger.started
        if started.kind and self.ledger.finished:
            raise UserError(
                f"run {self.repo.tag} trains on {started.kind} of a cluster, and its scores do not compare with this "
                "machine's; continue it with --cluster auto, which the loop and `verify` take (`start` and `try` run "
                "on this machine only), or start another with --tag NEW"
            )
        if gpus is None and workers is None:
            gpus = started.gpus
        elif gpus is None and started.gpus:
            raise UserError(
                f"run {self.repo.tag} trains on GPUs {started.gpus}; continue it with --gpus, or start another with "
                "--tag NEW"
            )
        self.gpus = gpus
        if gpus is not None:
            seats = seats_of(gpus, 1)
            if workers not in (None, len(seats)):
                raise UserError(f"--gpus {gpus} runs {count(len(seats), 'trial')} at a time; leave --workers out")
            return seats
        workers = workers or started.workers
        if self.ledger.finished and workers != started.workers:
            raise UserError(
                f"run {self.repo.tag} has {count(started.workers, 'worker')}; another number of them trains at another "
                f"speed, and the scores would not compare. Continue with --workers {started.workers}, or start another "
                "run with --tag NEW"
            )
        return seats_of(None, workers)

    def choose_kinds(self, tiers: tuple[str, ...]) -> tuple[str, ...]:
        """The kinds of devices of a run on a cluster: those asked for, else those that it has trained on so far; of a
        new one none. Raises UserError.
        """
        started, screening = self.ledger.started, self.ledger.screening
        if self.ledger.finished and not started.kind:
            raise UserError(
                f"run {self.repo.tag} trains on this machine, and its scores do not compare with those of a cluster; "
                "continue it without --cluster, or start another with --tag NEW"
            )
        before = (*filter(None, [screening]), started.kind) if started.kind else ()
        if tiers and self.ledger.measured and tiers != before:
            began = f"with --tiers {','.join(before)}" if screening else f"without --tiers, on {started.kind}"
            raise UserError(
                f"run {self.repo.tag} began {began}: what it has measured would not compare. Type the same again, or "
                "start another run with --tag NEW"
            )
        return tiers or before

    def screens(self, seat: Seat) -> bool:
        """Whether a seat is of the first kind of --tiers."""
        return seat.kind in self.tiers[:1]

    async def open(
        self,
        seats: list[Seat],
        settings: dict[str, str],
        seed: int,
        show: Callable[[Facts], None],
        make: Callable[..., Runner] = Local,
    ) -> None:
        """Set the game up and make sure that it is the one that the run began with.

        settings: environment variables of the game. show: called with its facts before anything takes long. make: the
        runner, of what Local takes. Raises UserError, and limits.Stopped when the user asks to stop.
        """
        self.seed = seed
        settings = {**settings, "AUTORESEARCH_SEED": str(seed)}
        hidden = [self.root / RUNS, Path(self.repo.repository.common_dir)]
        output = self.console.output
        base = self.ledger.base
        self.runner = make(self.task, self.repo, base, self.folder, seats, settings, self.confined, output, hidden)
        facts = await self.stop.unless_asked(self.runner.open(show, self.require_same_game))
        if self.ledger.facts is None:
            self.ledger.append(events.Game(facts=dataclasses.asdict(facts)))

    def require_same_game(self, facts: Facts) -> None:
        """A run's scores compare only on one profile, data set, seed and kind of device. Raises UserError."""
        if (game := self.ledger.facts) is None:
            return
        for name in ("profile", "data", "seed", "device", "time_budget", "game"):
            recorded, now = getattr(game, name), getattr(facts, name)
            if recorded != now and not (name == "game" and now is None):  # the data may not be there yet
                raise UserError(
                    f"run {self.repo.tag} has {name} {recorded}, but now it would be {now}; results of two games are "
                    "never mixed. Use the run's own settings, or start another with --tag NEW"
                )

    def recorded_settings(self) -> dict[str, str]:
        """The settings that the run was begun with, for `open`."""
        recorded = {"AUTORESEARCH_PROFILE": self.facts.profile, "AUTORESEARCH_DATA": self.facts.data}
        return {name: value for name, value in recorded.items() if value}

    def note_start(self, keep_rule: str, external: bool = False) -> None:
        setup, workers = round(time.monotonic() - self.console.began, 3), len(self.runner.seats)
        agenda = read_agenda(self.program)
        self.ledger.append(
            events.Start(
                code=self.code, keep_rule=keep_rule, agenda=agenda, setup=setup, external=external, workers=workers,
                gpus=self.gpus, kind=self.kind,
            )
        )  # fmt: skip
        self.results.rebuild()
        if not self.take_in() and self.ledger.paused:
            self.console.line(f"paused, as before: {to_type('resume')} --tag {self.repo.tag} goes on", "yellow")

    async def take_seats(self) -> Sequence[Seat]:
        """The seats that there are now; into the record, where they are a cluster's and others than before."""
        seats = self.runner.seats
        if self.kind and seats is not self._noted:
            said = [
                {"number": seat.number, "node": seat.node, "kind": seat.kind}
                | ({"price": self.prices[seat.kind]} if seat.kind in self.prices else {})
                for seat in seats
            ]
            await self.record(events.Seats(seats=said))
            self._noted = seats
        return seats

    # -- what people say meanwhile

    def take_in(self) -> bool:
        """Take in what people have told the run, and say so. Whether there was something."""
        for message in (taken := inbox.take_in(self.folder, self.ledger)):
            match message:
                case events.Note():
                    self.console.line(f"a note for the agent: {message.text}")
                case events.Pause():
                    self.console.line(f"paused: {to_type('resume')} --tag {self.repo.tag} goes on", "yellow")
                case events.Resume():
                    self.console.line("the pause is over")
                case events.Approved():
                    self.console.line(f"experiment {message.number}: approved", "green")
                case events.Rejected():
                    self.console.line(f"experiment {message.number}: rejected: {message.reason}", "yellow")
        return bool(taken)

    async def told(self, seats: Sequence[Seat]) -> None:
        """Wait until people have told the run something, or its seats are not these any more."""
        while not await self.with_room(self.take_in) and self.runner.seats is seats:  # noqa: ASYNC110  it is a file
            await asyncio.sleep(LOOK)

    def hold(self, held: events.Held) -> None:
        """Something waits for a person's word from here on."""
        self.ledger.append(held)
        number, command = held.number, to_type()
        self.console.line(f"{in_words(held)}: {command} approve {number}, or reject {number} -m why", "yellow")
        self.console.tell("held", number=number, what=held.what)

    # -- git

    def advance(self) -> None:
        """The branch to the champion. An agent may be at work in the worktree."""
        self.repo.stand_at(self.ledger.champion_commit, keep_edit=True)

    def reset(self, place: int = 0) -> None:
        """The branch to the champion, and the worktree of the proposal at a place."""
        self.advance()
        self.repo.agents_worktree(place).reset(self.ledger.champion_commit)

    def files(self, commit: str) -> dict[str, bytes]:
        """The editable files as they are in a commit."""
        globs = any(map(is_glob, self.task.editable))
        names = among(self.task.editable, self.repo.committed(commit) if globs else ())
        return {name: self.repo.read(commit, name) for name in names}

    def context(self) -> dict[str, bytes]:
        """What else agents are shown, as the human committed it."""
        shown = self.task.context
        if not shown:
            return {}
        folders = tuple(f"{name.rstrip('/')}/" for name in shown)
        names = [
            name
            for name in sorted(self.repo.committed(self.ledger.base))
            if may_edit(shown, name) or name.startswith(folders)
        ]
        return {name: self.repo.read(self.ledger.base, name) for name in names}

    def job(self, commit: str, name: str, seed: int, fresh_caches: bool = False) -> Job:
        """Train and score the code of a commit."""
        files = self.files(commit)
        gone = tuple(original for original in self.originals if original not in files)
        return Job(name, files, seed, fresh_caches=fresh_caches, gone=gone)

    def edit(self, folder: Path | None = None) -> str:
        """Names what the worktree's editable files do, apart from comments and layout. folder: another worktree."""
        return edit_of(self.task, folder or self.repo.worktree)

    def lines(self, commit: str) -> int:
        """Lines of code that the editable files have in a commit."""
        return code_lines(self.files(commit))

    def diff(self, attempt: Attempt) -> str:
        return self.repo.diff(attempt.parent, attempt.commit, self.task.editable)

    def on_champion(self, attempt: Attempt) -> str | None:
        """An attempt's edit as a commit on top of the champion; None if it cannot be applied there, or not whole.

        What git cannot apply may be constants beside others that were changed: these are set by their names.
        """
        champion = self.ledger.champion_commit
        commit = self.repo.move(attempt.commit, champion)
        if not commit and attempt.constants:
            files = with_change(self.files(champion), attempt.constants, self.facts.gpu)
            commit = self.repo.put(files, champion, attempt.commit) if files else None
        return None if commit and self.task.fault(self.repo.scratch, self.originals) else commit

    def move(self, attempt: Attempt) -> bool:
        """Put an attempt that has not run onto the present champion. False if its edit cannot be applied there."""
        champion, commit = self.ledger.champion_commit, self.on_champion(attempt)
        if commit is None:
            return False
        edit = self.edit(self.repo.scratch)
        self.repo.remember(f"{attempt.number}-on-{short(attempt.parent)}", attempt.commit)
        was, number = attempt.commit, attempt.number
        self.ledger.append(events.Moved(number=number, commit=commit, parent=champion, edit=edit, was=was))
        self.repo.remember(number, commit)
        return True

    # -- the disk, and what is trusted

    async def with_room(self, step: Callable[[], Result | Awaitable[Result]]) -> Result:
        """Do a step. When the disk is full, or no process can be started, wait until that is over and do it again.

        Raises OSError when asked to stop.
        """
        wait = 0.0
        while True:
            try:
                done = step()
                result = await done if inspect.isawaitable(done) else done
                self.waits_for_room = self.waits_for_room and not wait
                return cast(Result, result)
            except (OSError, git.GitCommandError) as error:
                task = asyncio.current_task()
                full = "the disk is full" if disk_is_full(error) else ""
                full = "no more processes can be started" if isinstance(error, BlockingIOError) else full
                if not full or (task and task.cancelling()):
                    raise
                if not self.waits_for_room:
                    self.waits_for_room = True
                    self.console.line(
                        f"{full}: waiting until there is room. Nothing is lost; Ctrl-C ends the loop", "yellow"
                    )
                    self.console.tell("fault", reason=full)
                wait = min(2 * wait, 60.0) or 1.0  # a quota may be full where the disk is not
                until = asyncio.get_running_loop().time() + wait
                while asyncio.get_running_loop().time() < until or not self.has_room():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.stop.reaches(1), 0.2)
                        raise

    async def record(self, event: events.Event) -> None:
        """Write an event; on a full disk, as soon as there is room."""
        await self.with_room(lambda: self.ledger.append(event))

    def has_room(self) -> bool:
        return shutil.disk_usage(self.folder).free >= ENOUGH_ROOM

    def require_room(self) -> None:
        """OSError on a full disk: a failure there says nothing about the edit, so it has no verdict and runs again."""
        if not self.has_room():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def require_own_code(self) -> None:
        """What decides must be what was started: an agent, which has the user's rights, might have changed it."""
        if code_hash() != self.code:
            raise UserError(
                "the loop's own code changed while it ran (loop.py or autoresearch/). Nothing is lost: see what "
                "changed with `git diff`, and run the same command again to go on with what is there now"
            )


def edit_of(task: Task, folder: Path) -> str:
    """Names what the editable files in a worktree do, apart from comments and layout."""
    paths = {name: folder / name for name in in_folder(task.editable, folder)}
    return edit_hash({name: path.read_bytes() if path.is_file() else b"" for name, path in paths.items()})


def code_hash() -> str:
    """Names the contents of loop.py and autoresearch/, in which the installed command has loop.py."""
    here = Path(__file__).resolve().parent.parent
    paths = (*here.glob("loop.py"), *here.glob("autoresearch/**/*.py"))
    return contents_hash({str(path.relative_to(here)): path.read_bytes() for path in paths})


# ----------------------------------------------------------------------------------------------
# Opening one


def ignore(repository: git.Repo, name: str) -> None:
    """Let git overlook a file at the top of the user's checkout, without a change to any file of the repository."""
    if not repository.ignored(name):
        path = Path(repository.common_dir, "info/exclude")
        path.parent.mkdir(exist_ok=True)
        with open(path, "ab+") as file:
            file.seek(0)
            text = file.read()
            file.write(b"\n" * (text[-1:] not in (b"", b"\n")) + f"/{name}\n".encode())


@contextlib.contextmanager
def open_run(tag: str | None, sandbox_mode: str, console: Console, stop: StopRequest) -> Iterator[Run]:
    """The run of a tag, old or new, locked against other loops. Raises UserError."""
    root = root_of(Path.cwd())
    repository, runs = open_repository(root), root / RUNS
    program = program_of(root, Path.cwd())
    task = read_task(program, root)
    if task.referee and importlib.util.find_spec("torch") is None:
        raise UserError(f"the game of {root} needs torch, which is not here; in that folder, type: uv run loop.py")
    tag = choose_tag(runs, tag)
    folder = runs / tag
    confined = choose_confinement(sandbox_mode)
    lock = Lock(folder, tag)
    try:
        make_folder(runs)
        ignore(repository, "results.tsv")
        run = Run(
            root, folder, program, task, Ledger(folder), RunRepo(repository, tag, folder), confined, console, stop
        )
        run.results.require_ours(runs)
        yield run
    finally:
        lock.release()
