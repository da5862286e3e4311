"""A run that this process alone holds: its folder, record and repository, the game it plays, and trials set up in it.

The loop and `verify` both work here.
"""

import contextlib
import dataclasses
import datetime
import errno
import functools
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from autoresearch import UserError, count, keys, sandbox
from autoresearch.console import Console
from autoresearch.ledger import Attempt, Ledger, Lock, Results
from autoresearch.limits import StopRequest
from autoresearch.process import command_words
from autoresearch.repo import RunRepo, repository_of, root_of, short
from autoresearch.task import Task, code_lines, contents_hash, edit_hash, read_task
from autoresearch.trial import Trial, end_left_overs, read_tail, trial_environment

RUNS = ".autoresearch"  # folder of all runs, in the user's checkout
LOG_TAIL = 2000  # bytes of each log of a trial that an agent is shown
LEFT = "its trial was interrupted, and its driver went on with another edit"  # a verdict's reason
FACTS = {
    "machine": dict,
    "noise": float | int,
    "implausible_gain": float | int,
    "time_budget": float | int,
    "seed": int,
    "readable": list,
    "hidden": list,
}


class Lab:
    """One run. Everything that it knows is in the journal, so it can be killed at any moment.

    house: held by the one thread that does anything but wait, at first the one that made this.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        task: Task,
        ledger: Ledger,
        repo: RunRepo,
        confined: bool,
        console: Console,
        stop: StopRequest,
    ) -> None:
        self.root, self.folder, self.task, self.ledger, self.repo = root, folder, task, ledger, repo
        self.confined, self.console, self.stop = confined, console, stop
        self.settings: dict[str, str] = {}
        self.gpus: str | None = None
        self.house = threading.Lock()
        self.house.acquire()
        self.devices: list[dict[str, str]] = [{}]  # environment variables of each worker, which say what it trains on
        self.seed = ledger.seed
        self.code = code_hash()
        self.results = Results(root / "results.tsv", ledger)

    @property
    def base(self) -> str:
        """The commit that the run began with."""
        return self.ledger.run["base"]

    @functools.cached_property
    def originals(self) -> dict[str, bytes]:
        """The editable files as the human wrote them."""
        return {name: self.repo.read(self.base, name) for name in self.task.editable}

    @contextlib.contextmanager
    def unlocked(self) -> Iterator[None]:
        """For whoever holds the house: inside, others may do what they have to."""
        self.house.release()
        try:
            yield
        finally:
            self.house.acquire()

    # -- opening the run

    def begin(self, keep_edit: bool = False) -> None:
        """Record a new run, or check that an old one can go on, and put branch and worktree in order.

        keep_edit: leave what stands in the worktree.
        """
        ledger, repo = self.ledger, self.repo
        asked = json.loads(json.dumps(dataclasses.asdict(self.task)))
        tip = repo.branch_tip()
        if ledger.run is None:
            if tip is not None:
                raise UserError(
                    f"the branch {repo.branch} exists and was not made by this loop; choose another with --tag NEW, "
                    f"or remove it: `git branch -D {repo.branch}`"
                )
            ledger.append("run", tag=repo.tag, base=repo.head(), task=asked)
        elif ledger.run["task"] != {name: asked[name] for name in ledger.run["task"] if name in asked}:
            raise UserError(
                f"the task in program.md is not the one that run {repo.tag} began with; put it back, or start "
                "another run with --tag NEW"
            )
        champion = self.standing_commit
        before = [attempt.commit for attempt in ledger.kept][-2:-1] or [self.base]
        if tip not in (None, champion, *before):
            raise UserError(
                f"the branch {repo.branch} stands at {short(tip)}, not where the loop left it ({short(champion)}). "
                f"To keep that work, name it: `git branch mine {short(tip)}`; then put the branch back: "
                f"`git branch -f {repo.branch} {short(champion)}`"
            )
        for leftover in (self.folder / "trials").glob("*"):
            end_left_overs(leftover)
        last = ledger.finished[-1] if ledger.finished else None
        if (
            keep_edit
            and last
            and last is not ledger.champion
            and (repo.worktree / ".git").exists()
            and self.edit() == last.edit
        ):
            keep_edit = False  # killed between its verdict and the reset
        repo.settle(champion, keep_edit)
        for attempt in ledger.pending:
            repo.remember(attempt.number, attempt.commit)
        if not keep_edit and (fault := self.task.fault(repo.worktree, self.originals)):
            raise UserError(
                f"{fault}, in the commit that the run starts from ({short(champion)}). Mend it, commit, and start "
                "again" + (" with --tag NEW" if ledger.attempts else "")
            )

    def use(self, gpus: str | None = None, workers: int | None = None) -> None:
        """Say what trials run on: one at a time on each GPU, or so many at a time. Default: as the run was started last."""
        if gpus is None and workers is None:
            gpus = self.ledger.gpus
        elif gpus is None and self.ledger.gpus:
            raise UserError(
                f"run {self.repo.tag} trains on GPUs {self.ledger.gpus}; continue it with --gpus, or start another with --tag NEW"
            )
        if gpus is not None:
            names = [name.strip() for name in gpus.split(",")]
            if not all(re.fullmatch(r"\d+|(GPU|MIG)-[0-9A-Fa-f-]+", name) for name in names) or len(set(names)) < len(
                names
            ):
                raise UserError(f"--gpus takes numbers as nvidia-smi shows them, such as 0 or 0,1,2, not {gpus!r}")
            if workers not in (None, len(names)):
                raise UserError(f"--gpus {gpus} runs {count(len(names), 'trial')} at a time; leave --workers out")
            self.gpus, self.devices = (
                gpus,
                [{"CUDA_VISIBLE_DEVICES": name, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} for name in names],
            )
            return
        workers = workers or self.ledger.workers
        if self.ledger.finished and workers != self.ledger.workers:
            raise UserError(
                f"run {self.repo.tag} has {count(self.ledger.workers, 'worker')}; another number of them trains at another speed, and the "
                f"scores would not compare. Continue with --workers {self.ledger.workers}, or start another run with --tag NEW"
            )
        share = (
            {}
            if workers == 1 or "OMP_NUM_THREADS" in os.environ
            else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
        )
        self.devices = [share] * workers

    def prepare(self, settings: dict[str, str], seed: int, show: Callable[[dict], None]) -> None:
        """Set the game up, in the user's sight, and make sure that it is the one that the run began with.

        settings: environment variables of the game. show: called with its facts before anything takes long.
        """
        self.seed, self.settings = seed, {**settings, "AUTORESEARCH_SEED": str(seed)}
        environment = {**os.environ, **self.settings, **self.devices[0]}
        stage = self.repo.stage()
        stage.set(self.base, self.base, self.task.editable)
        facts = describe(self.task, stage.folder, environment)
        require_same_game(
            self.ledger, {**facts, "game": (self.ledger.game or {}).get("game")}, self.repo.tag
        )  # the data may not be there yet
        show(facts)
        set_up(self.task, stage.folder, environment, self.console.output)
        facts = describe(self.task, stage.folder, environment)
        require_same_game(self.ledger, facts, self.repo.tag)
        for device in self.devices[1:] if self.gpus else ():
            other = describe(self.task, stage.folder, {**environment, **device}).get("device")
            if other != facts.get("device"):
                raise UserError(
                    f"GPU {device['CUDA_VISIBLE_DEVICES']} is a {other}, the first one a {facts.get('device')}: scores compare only "
                    "between GPUs of one kind. Give --gpus those of one kind, and the others a run of their own (--tag NEW)"
                )
        if self.ledger.game is None:
            self.ledger.append("game", facts=facts)

    def recorded_settings(self) -> dict[str, str]:
        """The settings that the run was begun with, for `prepare`."""
        game = self.ledger.game or {}
        return {f"AUTORESEARCH_{name.upper()}": game[name] for name in ("profile", "data") if game.get(name)}

    # -- git

    @property
    def standing_commit(self) -> str:
        """The champion's commit; before there is one, that which the run began with."""
        champion = self.ledger.champion
        return champion.commit if champion else self.base

    def advance(self) -> None:
        """The branch to the champion. An agent may be at work in the worktree."""
        self.repo.settle(self.standing_commit, keep_edit=True)

    def settle(self) -> None:
        """Branch and worktree to the champion."""
        self.repo.settle(self.standing_commit)

    def edit(self, folder: Path | None = None) -> str:
        """Names what the worktree's editable files do, apart from comments and layout. folder: another worktree."""
        paths = {name: (folder or self.repo.worktree) / name for name in self.task.editable}
        return edit_hash({name: path.read_bytes() if path.is_file() else b"" for name, path in paths.items()})

    def move(self, attempt: Attempt) -> tuple[str, str] | None:
        """(An attempt's edit as a commit on top of the champion, its hash); None if it does not go there, or not whole."""
        moved = self.repo.move(attempt.commit, self.standing_commit)
        if moved is None or self.task.fault(self.repo.scratch, self.originals):
            return None
        return moved, self.edit(self.repo.scratch)

    def lines(self, commit: str) -> int:
        """Lines of code that the editable files have in a commit."""
        return code_lines({name: self.repo.read(commit, name) for name in self.task.editable})

    # -- trials

    def trial(
        self,
        folder: Path,
        view: Callable = lambda phase: None,
        seed: int | None = None,
        caches: Path | None = None,
        worker: int = 0,
        where: Path | None = None,
    ) -> Trial:
        """A trial of the task on a worker's stage, ready to run. where: another worktree."""
        stage, settings = self.repo.stage(worker), {**self.settings, **self.devices[worker]}
        environment = trial_environment(
            folder,
            caches or self.folder / (f"caches-{worker}" if worker else "caches"),
            self.seed if seed is None else seed,
            settings,
        )
        changed = functools.partial(stage.changed, ignored=self.task.referee)
        return Trial(
            self.task,
            where or stage.folder,
            folder,
            environment,
            self.confinement(),
            self.time_budget,
            changed,
            self.stop.now,
            view,
            share=len(self.devices),
        )

    def confinement(self) -> dict[str, list[str]] | None:
        """What the game says of files that trials need, or must not see; copies of those in the stage, and all runs, included."""
        if not self.confined:
            return None
        hidden = [Path(path) for path in self.ledger.game.get("hidden", [])]
        inside = [path.relative_to(self.root) for path in hidden if path.is_relative_to(self.root)]
        stages = [self.repo.stage(worker).folder for worker in range(len(self.devices))]
        copies = [folder / path for folder in (*stages, self.repo.worktree) for path in inside if path.parts]
        records = [self.root / RUNS, Path(self.repo.repository.common_dir)]
        return {
            "readable": self.ledger.game.get("readable", []),
            "hidden": [str(path) for path in (*hidden, *copies, *records)],
        }

    @property
    def time_budget(self) -> float:
        return float(self.ledger.game.get("time_budget") or 0.0)

    def require_own_code(self) -> None:
        """What decides must be what was started: an agent, which has the user's rights, might have changed it."""
        if code_hash() != self.code:
            raise UserError(
                "the loop's own code changed while it ran (loop.py or autoresearch/). Nothing is lost: see what changed "
                "with `git diff`, and run the same command again to go on with what is there now"
            )

    def require_space(self) -> None:
        """A failure on a full disk says nothing about the edit: no verdict, the attempt runs again."""
        if shutil.disk_usage(self.folder).free < 1 << 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def trial_folder(self, attempt: Attempt) -> Path:
        return self.folder / "trials" / str(attempt.number)

    def log_tail(self, attempt: Attempt) -> str:
        """What a trial's commands printed last."""
        logs = [self.trial_folder(attempt) / f"{phase}.log" for phase in ("train", "score")]
        return keys.scrub("\n".join(read_tail(log, LOG_TAIL) for log in logs if log.exists()))


def code_hash() -> str:
    """Names the contents of loop.py and autoresearch/."""
    here = Path(__file__).resolve().parent.parent
    return contents_hash(
        {
            str(path.relative_to(here)): path.read_bytes()
            for path in (here / "loop.py", *here.glob("autoresearch/**/*.py"))
        }
    )


# ----------------------------------------------------------------------------------------------
# Opening


@contextlib.contextmanager
def open_lab(tag: str | None, sandbox_mode: str, console: Console, stop: StopRequest) -> Iterator[Lab]:
    """The run of a tag, old or new, locked against other loops."""
    repository = repository_of(Path.cwd(), RUNS)
    root = root_of(repository)
    runs = root / RUNS
    task = read_task(root / "program.md")
    tag = choose_tag(runs, tag)
    folder = runs / tag
    confined = choose_confinement(sandbox_mode)
    lock = Lock(folder, tag)
    try:
        (runs / ".gitignore").write_text("*\n")
        ledger = Ledger(folder)
        lab = Lab(root, folder, task, ledger, RunRepo(repository, tag, folder), confined, console, stop)
        lab.results.require_ours(runs)
        yield lab
    finally:
        lock.release()


def recorded_run(root: Path, tag: str | None, advice: str = "") -> tuple[str, Ledger]:
    """(The tag, the record) of a run that there is. advice: what to do where there is none."""
    runs = root / RUNS
    tag = choose_tag(runs, tag)
    ledger = Ledger(runs / tag, repair=False)  # a loop may be writing it
    if ledger.run is None:
        raise UserError(
            f"there is no run {tag} here; runs are: {', '.join(sorted(path.parent.name for path in runs.glob('*/journal.jsonl'))) or 'none'}"
            + (f"; {advice}" if advice else "")
        )
    return tag, ledger


def choose_tag(runs: Path, tag: str | None) -> str:
    """The tag asked for; else that of the run that was active last; else today's date."""
    if tag is None:
        journals = sorted(runs.glob("*/journal.jsonl"), key=lambda path: path.stat().st_mtime)
        tag = journals[-1].parent.name if journals else datetime.date.today().isoformat()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*([.][A-Za-z0-9_-]+)*", tag):
        raise UserError(
            f"{tag!r} cannot be a tag: use letters, digits, '-', '_' and '.', e.g. --tag {datetime.date.today()}"
        )
    return tag


def describe(task: Task, worktree: Path, environment: dict[str, str]) -> dict:
    """The facts of the game as the task itself states them."""
    if not task.describe:
        return {}
    answer = subprocess.run(command_words(task.describe), cwd=worktree, env=environment, stdout=subprocess.PIPE)
    try:
        facts = json.loads(answer.stdout)
    except ValueError:
        facts = None
    if (
        answer.returncode
        or not isinstance(facts, dict)
        or not all(isinstance(facts.get(name), kind | None) for name, kind in FACTS.items())
    ):
        raise UserError(f"`{task.describe}` did not say what the run would use (exit code {answer.returncode})")
    return facts


def set_up(task: Task, worktree: Path, environment: dict[str, str], output: TextIO) -> None:
    """Run the task's set-up in the user's sight: this project's own prepares the data if they are missing."""
    if task.setup and (
        code := subprocess.run(command_words(task.setup), cwd=worktree, env=environment, stdout=output).returncode
    ):
        raise UserError(
            f"the set-up `{task.setup}` failed with exit code {code}; what it says above tells why. "
            "Nothing is lost: run the same command again when it is mended"
        )


def require_same_game(ledger: Ledger, facts: dict, tag: str) -> None:
    """A run's scores compare only on one profile, one data set, one seed and one kind of device."""
    if ledger.game is None:
        return
    for name in ("profile", "data", "seed", "device", "time_budget", "game"):
        if ledger.game.get(name) != facts.get(name):
            raise UserError(
                f"run {tag} has {name} {ledger.game.get(name)}, but now it would be {facts.get(name)}; results of "
                f"two games are never mixed. Use the run's own settings, or start another with --tag NEW"
            )


def choose_confinement(mode: str) -> bool:
    """Whether trials run confined."""
    if mode not in ("auto", "require", "off"):
        raise UserError(f"--sandbox takes auto, require or off, not {mode!r}")
    if mode == "require" and not sandbox.method():
        raise UserError(
            "--sandbox require: this kernel has no Landlock (Linux 5.19 or later, not switched off) and there is no bubblewrap "
            "that works, so trials cannot be confined. Install bubblewrap, or --sandbox off if you trust the agent's code"
        )
    return mode != "off" and sandbox.method() != ""


def sandbox_says(confined: bool) -> str:
    if confined:
        return f"{sandbox.method()}: trials read no home and no keys, write to their own folder, no network"
    return "NONE: the agent's code runs with your rights (see --sandbox)"
