"""An open run: its folder, journal and repository, locked by this process, and the runner that runs its trials.

The loop and `verify` both work on one. Everything about a run is in its journal, so it can be killed at any moment.
"""

import asyncio
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import git

from autoresearch import UserError, inbox
from autoresearch.constants import with_change
from autoresearch.disk import Disk
from autoresearch.editable import among, in_folder, is_glob, may_edit
from autoresearch.gate import describe_held
from autoresearch.limits import StopRequest
from autoresearch.program import program_of, read_agenda, read_task
from autoresearch.record import events
from autoresearch.record.journal import Lock
from autoresearch.record.ledger import ABANDONED, Attempt, Ledger
from autoresearch.record.results import Results
from autoresearch.record.runs import RUNS, choose_tag, make_folder, root_of
from autoresearch.repo import RunRepo, open_repository
from autoresearch.runner import Job, Runner, Seat
from autoresearch.runner.identity import identify
from autoresearch.runner.local import Local, choose_confinement, seats_of
from autoresearch.task import Facts, Task, code_lines, contents_hash, edit_hash
from autoresearch.text import count, short, to_type
from autoresearch.views.console import Console

LOOK = 0.3  # seconds between two looks into the inbox


class Run:
    """One run. root: the user's checkout. folder: where the run's record is. program: the program.md it follows."""

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
        self.disk = Disk(folder, console, stop)
        self.seed = ledger.seed
        self.gpus: str | None = None
        self.kind = ""  # on a cluster, the kind of device whose scores decide what is kept
        self.tiers: tuple[str, ...] = ()  # of --tiers: the kind that screens edits, and the kind that decides
        self.prices: dict[str, float] = {}  # of --seat-price: dollars per hour, by kind
        self.taken_back: Attempt | None = None  # whose edit was in the worktree when the run was opened
        self._noted: Sequence[Seat] = []  # the seats as last recorded in the journal
        self._unmoved = ""  # why the branch could not be moved, as the user was told; empty if it could
        self.code = code_hash()
        self.results = Results(root / "results.tsv", ledger)
        self.files = functools.lru_cache(maxsize=8)(self._files)  # of the commits asked for most recently

    @property
    def facts(self) -> Facts:
        return self.ledger.facts or Facts()

    @functools.cached_property
    def originals(self) -> dict[str, bytes]:
        """The editable files as the human wrote them."""
        return self.files(self.ledger.base)

    # -- opening

    def begin(self, keep_edit: bool = False) -> None:
        """Record a new run, or check that an old one can continue, and put branch and worktree in order.

        keep_edit: keep the edit in the worktree. Raises UserError.
        """
        ledger, repo = self.ledger, self.repo
        repo.remove_old_locks()
        asked = json.loads(json.dumps(dataclasses.asdict(self.task)))  # as the journal has it
        tip = repo.branch_tip()
        old_base = ledger.base if ledger.run else ""
        if ledger.run and not ledger.measured and (ledger.run.task, ledger.base) != (asked, repo.head()):
            self.begin_anew(asked)
        if ledger.run is None:
            if tip is not None:
                raise UserError(
                    f"the branch {repo.branch} exists but was not made by this loop; choose another tag with --tag "
                    f"NEW, or remove the branch: `git branch -D {repo.branch}`"
                )
            if repo.has_branch("autoresearch"):
                raise UserError(
                    f"there is a branch autoresearch, beside which git cannot have {repo.branch}; rename it: "
                    "`git branch -m autoresearch NEW`"
                )
            self.require_files()
            ledger.append(events.Run(tag=repo.tag, base=repo.head(), task=asked))
        elif ledger.run.task != {name: asked[name] for name in ledger.run.task if name in asked}:
            raise UserError(
                f"the task in program.md is not the one that run {repo.tag} began with (or the run is from another "
                "version of autoresearch, with another scorer); restore it, or start another run with --tag NEW"
            )
        champion = ledger.champion_commit
        self.require_tip(tip, old_base)
        self.taken_back = self.left_over() if keep_edit else None
        keep_edit = keep_edit and self.taken_back is None
        repo.move_branch(champion)
        repo.restore_worktree(champion, keep_edit)
        for attempt in ledger.pending:
            repo.remember(attempt.number, attempt.commit)
        if not keep_edit and (fault := self.task.fault(repo.worktree, self.originals)):
            raise UserError(
                f"{fault}, in the commit that the run starts from ({short(champion)}). Fix it, commit, and start again"
            )

    def require_tip(self, tip: str | None, old_base: str) -> None:
        """Raises UserError unless the branch is where the loop left it. A kill, or a person who had it checked out, may
        have kept it from its last moves.

        tip: its commit; None if there is no branch. old_base: the base before the run was begun anew.
        """
        champion = self.ledger.champion_commit
        commits = (attempt.commit for attempt in (*self.ledger.kept, *self.ledger.dropped))
        if tip in (None, champion, self.ledger.base, old_base, *commits):
            return
        branch, tip = self.repo.branch, short(tip or "")
        raise UserError(
            f"the branch {branch} is at {tip}, not where the loop left it ({short(champion)}). To keep that work, give "
            f"it a branch: `git branch mine {tip}`; then move the branch back: `git branch -f {branch} "
            f"{short(champion)}`"
        )

    def left_over(self) -> Attempt | None:
        """The last attempt, if it was not kept and its edit is in the worktree: the loop was killed between verdict and
        reset, or an external agent has made the same edit again."""
        last = self.ledger.finished[-1] if self.ledger.finished else None
        if last is None or last is self.ledger.champion or not (self.repo.worktree / ".git").exists():
            return None
        return last if self.edit() == last.edit else None

    def begin_anew(self, task: dict) -> None:
        """Restart a run that has no score yet with the current program.md and commit, after the user fixed them."""
        self.require_files()
        for attempt in self.ledger.pending:
            self.ledger.append(events.Verdict(number=attempt.number, status="crash", score=None, reason=ABANDONED[0]))
        self.ledger.append(events.Run(tag=self.repo.tag, base=self.repo.head(), task=task))

    def require_files(self) -> None:
        """Raises UserError if the task names files that a new run would not find."""
        if fault := self.task.absent(self.repo.committed(self.repo.head()), self.repo.new(), self.root):
            raise UserError(fault)

    def choose_seats(self, gpus: str | None = None, workers: int | None = None) -> list[Seat]:
        """The seats of a run on this machine: one per GPU, or `workers`. Default: as when the run was last started.

        Raises UserError if the scores would not be comparable with the run's.
        """
        started = self.ledger.started
        if started.kind and self.ledger.finished:
            raise UserError(
                f"run {self.repo.tag} trains on {started.kind} of a cluster, so its scores are not comparable with "
                "this machine's; continue it with --cluster auto, as the loop and `verify` can (`start` and `try` run "
                "only on this machine), or start another with --tag NEW"
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
                raise UserError(f"--gpus {gpus} runs {count(len(seats), 'trial')} at a time; omit --workers")
            return seats
        workers = workers or started.workers
        if self.ledger.finished and workers != started.workers:
            raise UserError(
                f"run {self.repo.tag} has {count(started.workers, 'worker')}; with another number, trials run at "
                f"another speed, and scores would not be comparable. Continue with --workers {started.workers}, or "
                "start another run with --tag NEW"
            )
        return seats_of(None, workers)

    def choose_kinds(self, tiers: tuple[str, ...]) -> tuple[str, ...]:
        """The kinds of devices of a run on a cluster: those asked for, else those used so far; none for a new run.
        Raises UserError.
        """
        started, screening = self.ledger.started, self.ledger.screening
        if self.ledger.finished and not started.kind:
            raise UserError(
                f"run {self.repo.tag} trains on this machine, so its scores are not comparable with a cluster's; "
                "continue it without --cluster, or start another with --tag NEW"
            )
        before = (*filter(None, [screening]), started.kind) if started.kind else ()
        if tiers and self.ledger.measured and tiers != before:
            began = f"with --tiers {','.join(before)}" if screening else f"without --tiers, on {started.kind}"
            raise UserError(
                f"run {self.repo.tag} began {began}, and its scores would not be comparable. Use the same option "
                "again, or start another run with --tag NEW"
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
        """Create the runner, set up the game, and check that it is the one that the run began with.

        settings: environment variables of the game. show: called with its facts before the slow steps. make: creates
        the runner, with the arguments of Local. Raises UserError, and Stopped when the user asks to stop.
        """
        self.seed = seed
        settings = {**settings, "AUTORESEARCH_SEED": str(seed)}
        output, base = self.console.output, self.ledger.base
        self.runner = make(self.task, self.repo, base, self.folder, seats, settings, self.confined, output)
        facts = await self.stop.unless_asked(self.runner.open(show, self.require_same_game))
        if self.ledger.facts is None:
            self.ledger.append(events.Game(facts=dataclasses.asdict(facts)))

    def require_same_game(self, facts: Facts) -> None:
        """Scores are comparable only for one profile, data set, seed and kind of device. Raises UserError."""
        if self.ledger.facts and (unlike := self.ledger.facts.unlike(facts)):
            name, recorded, now = unlike
            raise UserError(
                f"run {self.repo.tag} has {name} {recorded}, but now it would be {now}; results of two games are "
                "never mixed. Use the run's settings, or start another run with --tag NEW"
            )

    def recorded_settings(self) -> dict[str, str]:
        """The settings that the run began with, for `open`."""
        recorded = {"AUTORESEARCH_PROFILE": self.facts.profile, "AUTORESEARCH_DATA": self.facts.data}
        return {name: value for name, value in recorded.items() if value}

    def note_start(self, keep_rule: str, external: bool = False) -> None:
        setup, workers = round(time.monotonic() - self.console.began, 3), len(self.runner.seats)
        agenda = read_agenda(self.program)
        self.ledger.append(
            events.Start(
                code=self.code, keep_rule=keep_rule, agenda=agenda, setup=setup, external=external, workers=workers,
                gpus=self.gpus, kind=self.kind, process=identify(os.getpid()),
            )
        )  # fmt: skip
        self.results.rebuild()
        if not self.take_in() and self.ledger.paused:
            self.console.line(f"still paused; to resume: {to_type('resume')} --tag {self.repo.tag}", "yellow")

    async def take_seats(self) -> Sequence[Seat]:
        """The seats at this moment. Those of a cluster are recorded in the journal whenever they change."""
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

    async def record(self, event: events.Event) -> None:
        """Write an event to the journal; if the disk is full, as soon as there is room."""
        await self.disk.with_room(lambda: self.ledger.append(event))

    # -- messages from people

    def take_in(self) -> bool:
        """Write new messages from people to the journal and show them. Returns whether there were any."""
        for message in (taken := inbox.take_in(self.folder, self.ledger)):
            match message:
                case events.Note():
                    self.console.line(f"a note for the agent: {message.text}")
                case events.Pause():
                    self.console.line(f"paused; to resume: {to_type('resume')} --tag {self.repo.tag}", "yellow")
                case events.Resume():
                    self.console.line("resumed")
                case events.Approved():
                    self.console.line(f"experiment {message.number}: approved", "green")
                case events.Rejected():
                    self.console.line(f"experiment {message.number}: rejected: {message.reason}", "yellow")
        return bool(taken)

    async def told(self, seats: Sequence[Seat]) -> None:
        """Wait until a message from a person arrives, or the runner's seats have changed."""
        while not await self.disk.with_room(self.take_in) and self.runner.seats is seats:  # noqa: ASYNC110  a file
            await asyncio.sleep(LOOK)

    def hold(self, held: events.Held) -> None:
        """Record that something waits for approval from now on, and tell the user."""
        self.ledger.append(held)
        number, command = held.number, to_type()
        self.console.line(f'{describe_held(held)}: {command} approve {number}, or reject {number} -m "why"', "yellow")
        self.console.tell("held", number=number, what=held.what)

    # -- git

    def advance(self) -> None:
        """Move the branch to the champion. The worktree stays: an agent may be at work in it.

        If a person has the branch checked out, say so: it moves with a later verdict.
        """
        champion = self.ledger.champion_commit
        try:
            self.repo.move_branch(champion)
            self._unmoved = ""
        except UserError as error:
            if str(error) != self._unmoved:
                self._unmoved = str(error)
                self.console.line(f"the run continues, but {error}", "yellow")
        self.repo.restore_worktree(champion, keep_edit=True)

    def reset(self, place: int = 0) -> None:
        """Move the branch to the champion, and reset the worktree of the proposal at a place."""
        self.advance()
        self.repo.agents_worktree(place).reset(self.ledger.champion_commit)

    def _files(self, commit: str) -> dict[str, bytes]:
        """The contents of the editable files in a commit."""
        globs = any(map(is_glob, self.task.editable))
        names = among(self.task.editable, self.repo.committed(commit) if globs else ())
        return self.repo.read(commit, names)

    def context(self) -> dict[str, bytes]:
        """The other files that agents are shown, as the human committed them."""
        shown = self.task.context
        if not shown:
            return {}
        folders = tuple(f"{name.rstrip('/')}/" for name in shown)
        names = [
            name
            for name in sorted(self.repo.committed(self.ledger.base))
            if may_edit(shown, name) or name.startswith(folders)
        ]
        return self.repo.read(self.ledger.base, names)

    def job(self, commit: str, name: str, seed: int, fresh_caches: bool = False) -> Job:
        """A job that trains and scores the code of a commit."""
        files = self.files(commit)
        gone = tuple(original for original in self.originals if original not in files)
        return Job(name, files, seed, fresh_caches=fresh_caches, gone=gone)

    def edit(self, folder: Path | None = None) -> str:
        """A hash of what the worktree's editable files do, without comments and layout. folder: another worktree."""
        return edit_of(self.task, folder or self.repo.worktree)

    def lines(self, commit: str) -> int:
        """The number of lines of code in a commit's editable files."""
        return code_lines(self.files(commit))

    def diff(self, attempt: Attempt) -> str:
        return self.repo.diff(attempt.parent, attempt.commit, self.task.editable)

    def on_champion(self, attempt: Attempt) -> str | None:
        """An attempt's edit as a commit on top of the champion; None if it cannot be applied completely.

        Where git fails because neighbouring constants have changed, the edit's constants are set by name.
        """
        champion = self.ledger.champion_commit
        commit = self.repo.move(attempt.commit, champion)
        if not commit and attempt.constants:
            files = with_change(self.files(champion), attempt.constants, self.facts.gpu)
            commit = self.repo.put(files, champion, attempt.commit) if files else None
        return None if commit and self.task.fault(self.repo.scratch, self.originals) else commit

    def move(self, attempt: Attempt) -> bool:
        """Rebase an attempt that has not run onto the current champion. False if its edit cannot be applied there."""
        champion, commit = self.ledger.champion_commit, self.on_champion(attempt)
        if commit is None:
            return False
        edit = self.edit(self.repo.scratch)
        self.repo.remember(f"{attempt.number}-on-{short(attempt.parent)}", attempt.commit)
        was, number = attempt.commit, attempt.number
        self.ledger.append(events.Moved(number=number, commit=commit, parent=champion, edit=edit, was=was))
        self.repo.remember(number, commit)
        return True

    # -- trusted code

    def require_own_code(self) -> None:
        """Check that the loop's code has not changed since it started: an agent has the user's permissions."""
        if code_hash() != self.code:
            raise UserError(
                "the loop's own code changed while it ran (loop.py or autoresearch/). Nothing is lost: unless you "
                "updated it, look at the changes with `git diff`; then run the same command again to continue with it"
            )


def edit_of(task: Task, folder: Path) -> str:
    """A hash of what the editable files in a worktree do, without comments and layout."""
    return edit_hash(sources(task, folder))


def sources(task: Task, folder: Path) -> dict[str, bytes]:
    """The editable files in a worktree; empty where one is gone."""
    paths = {name: folder / name for name in in_folder(task.editable, folder)}
    return {name: path.read_bytes() if path.is_file() else b"" for name, path in paths.items()}


def code_hash() -> str:
    """A hash of loop.py and autoresearch/. (In an installed package loop.py lies inside autoresearch/.)"""
    here = Path(__file__).resolve().parent.parent
    paths = (*here.glob("loop.py"), *here.glob("autoresearch/**/*.py"))
    return contents_hash({str(path.relative_to(here)): path.read_bytes() for path in paths})


# ----------------------------------------------------------------------------------------------
# Opening a run


def ignore(repository: git.Repo, name: str) -> None:
    """Make git ignore a file at the top of the user's checkout, through .git/info/exclude."""
    if not repository.ignored(name):
        path = Path(repository.common_dir, "info/exclude")
        path.parent.mkdir(exist_ok=True)
        with open(path, "ab+") as file:
            file.seek(0)
            text = file.read()
            line = f"/{name}\n".encode()
            file.write(line if text[-1:] in (b"", b"\n") else b"\n" + line)


@contextlib.contextmanager
def open_run(tag: str | None, sandbox_mode: str, console: Console, stop: StopRequest) -> Iterator[Run]:
    """The run of a tag, old or new, locked against other loops. Raises UserError."""
    root = root_of(Path.cwd())
    repository, runs = open_repository(root), root / RUNS
    program = program_of(root, Path.cwd())
    task = read_task(program, root)
    if task.referee and importlib.util.find_spec("torch") is None:
        raise UserError(f"the game of {root} needs torch, which is not installed; in that folder, type: uv run loop.py")
    tag = choose_tag(runs, tag)
    folder = runs / tag
    confined = choose_confinement(sandbox_mode, root)
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
