"""The runner of this machine: one trial at a time on each GPU, or a given number at a time on the CPU."""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from autoresearch import UserError, cuda
from autoresearch.record.runs import RUNS
from autoresearch.repo import RunRepo
from autoresearch.runner import AHEAD, LOG_END, PREFLIGHT, SCORE, TRAIN, Job, Measurement, Phase, Seat, sandbox
from autoresearch.runner.checkout import Checkout
from autoresearch.runner.environment import commands_environment, their_words, toolchains
from autoresearch.runner.gpu import Watch, memory_held
from autoresearch.runner.logs import ends_of
from autoresearch.runner.neighbours import quiet
from autoresearch.runner.process import GRACE_SECONDS, ask, command_words, require_program
from autoresearch.runner.stage import Stage
from autoresearch.runner.trial import Trial, end_left_overs, tidy, trial_environment
from autoresearch.task import Facts, Task

DRIVER_LIMIT = 60.0  # seconds in which NVIDIA's driver has to answer


class Local:
    """Runs the jobs of one run as processes on this machine, each in the worktree of its seat.

    base: the commit whose files trials run with. folder: of the run. settings: environment variables of the game.
    confined: whether trials run in the sandbox. output: where the set-up prints.
    """

    def __init__(
        self,
        task: Task,
        repo: RunRepo,
        base: str,
        folder: Path,
        seats: Sequence[Seat],
        settings: dict[str, str],
        confined: bool,
        output: IO[str],
    ) -> None:
        self.task, self.repo, self.base, self.folder, self.seats = task, repo, base, folder, seats
        self.settings, self.confined, self.output = settings, confined, output
        self.facts, self.share = Facts(), len(seats)  # share: number of trials that share the machine's memory
        self._stages: dict[str, Stage] = {}  # by name
        self._checkouts: dict[str, Checkout] = {}
        self._overfull: dict[str, Path] = {}  # by name of a trial that filled the disk: its caches
        for trial in (*folder.glob("trials/*"), *folder.glob("verify/*")):
            end_left_overs(trial)

    room = 0  # no seats join this machine

    def want(self, trials: int, busy: Sequence[Seat]) -> None:
        pass

    async def open(self, show: Callable[[Facts], None], require: Callable[[Facts], None]) -> Facts:
        """See Runner. Also raises UserError for GPUs of different kinds."""
        stage = self._stage(self.seats[0])
        fresh = isinstance(stage, Checkout) and stage.prepare(self.base, self.task.setup or "")
        if not isinstance(stage, Checkout):
            stage.set(self.base, {})
        environment = {**os.environ, **self.settings, **self.seats[0].device, **(self._theirs(stage) or {})}
        inside = stage.folder / self.task.folder
        facts = await describe(self.task, inside, environment)
        require(facts)
        show(facts)
        if isinstance(stage, Checkout):
            await self._set_up_all(fresh)
        else:
            await set_up(self.task, inside, environment, self.output)
        self.facts = await describe(self.task, inside, environment)
        require(self.facts)
        for seat in self.seats[1:]:
            if seat.device == self.seats[0].device:
                continue
            other = (await describe(self.task, inside, {**environment, **seat.device})).device
            if other != self.facts.device:
                raise UserError(
                    f"GPU {seat.device.get('CUDA_VISIBLE_DEVICES')} is a {other}, the first one a {self.facts.device}: "
                    "scores are only comparable between GPUs of the same kind. Name GPUs of one kind with --gpus, and "
                    "use the others in another run (--tag NEW)"
                )
        return self.facts

    async def _set_up_all(self, fresh: bool) -> None:
        """Run another repository's set-up in the worktree of each seat, unless it has run there; its files stay.

        fresh: whether the first worktree still needs it.
        """
        for seat in self.seats:
            stage = self._stage(seat)
            assert isinstance(stage, Checkout)
            if not (fresh if seat is self.seats[0] else stage.prepare(self.base, self.task.setup or "")):
                continue
            environment, inside = {**os.environ, **self.settings, **seat.device}, stage.folder / self.task.folder
            await make_virtual_environment(self.task, inside, {**environment, **(self._theirs(stage) or {})})
            await set_up(self.task, inside, {**environment, **(self._theirs(stage) or {})}, self.output)
            stage.seal()

    def _theirs(self, stage: Stage | Checkout) -> dict[str, str] | None:
        """The variables of the user's shell that the commands see; None for this project's own game."""
        if self.task.referee:
            return None
        return commands_environment(self.task, os.environ, self._places(stage))

    def _places(self, stage: Stage | Checkout) -> list[Path]:
        """Folders that may hold another repository's own programs, nearest first."""
        tops = stage.folder, self.repo.root
        return list(dict.fromkeys(place for top in tops for place in (top / self.task.folder, top)))

    async def run(self, job: Job, seat: Seat, tell: Callable[[Phase], None] = lambda phase: None) -> Measurement:
        if AHEAD in job.phases:  # while a trial has the seat's own
            stage = self._worktree("stage-ahead")
        elif PREFLIGHT in job.phases:  # the same; the seat has the number of the proposal's worktree
            stage = self._worktree(name_of("stage-preflight", seat))
        else:
            stage = self._stage(seat)
        if {TRAIN, PREFLIGHT, AHEAD} & {*job.phases}:
            stage.set(self.base, job.files, job.gone)
        folder = self.folder_of(job.name)
        settings = {**self.settings, **seat.device, "AUTORESEARCH_SEED": str(job.seed)}
        if self.facts.profile:  # a trial must not detect it: in the sandbox it may not see the GPU
            settings["AUTORESEARCH_PROFILE"] = self.facts.profile
        if self.facts.gpu and "CUDA_VISIBLE_DEVICES" not in seat.device:  # of several the one that was described
            settings["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        elif self.task.referee and not self.facts.gpu:  # the game of the CPU, which a GPU would play too well
            settings["CUDA_VISIBLE_DEVICES"] = ""
        cpu_game = self.task.referee and not self.facts.gpu
        own_caches = job.fresh_caches or self.task.hidden or cpu_game  # nothing to pass on, or nothing that may be
        caches = folder / "caches" if own_caches else self.folder / name_of("caches", seat)
        trial = Trial(
            self.task,
            job,
            self.facts,
            stage.folder,
            folder,
            trial_environment(folder, caches, settings, self._theirs(stage)),
            self._confinement(stage),
            functools.partial(stage.changed, ignored=self.task.referee),
            tell,
            share=self.share,
        )
        measured = await trial.run()
        if trial.usage.overfull and AHEAD not in job.phases:  # a trial is using them
            self._overfull[job.name] = caches
            if isinstance(stage, Checkout):
                stage.reset()
        if measured.failed and self.facts.gpu:
            environment = {**os.environ, **settings}
            if self.task.referee:
                await asyncio.to_thread(require_gpu, environment)
            if held := await asyncio.to_thread(memory_held, measured.reason, environment):
                return dataclasses.replace(measured, taken=held.share, taken_by=held.words)
        return measured

    async def quiet(self, seat: Seat, most: float, limit: float) -> bool:
        """See Runner. All seats are on this machine."""
        if not self.facts.gpu:
            return await quiet(most, limit)
        watch = Watch({**os.environ, **seat.device})
        try:
            return await quiet(most, limit, lambda: watch.is_free(most))
        finally:
            watch.end()

    def tidy(self, name: str, keep_weights: bool) -> None:
        folder = self.folder_of(name)
        caches = self._overfull.pop(name, None)
        tidy(folder, [folder / "caches", *([caches] if caches else [])], keep_weights)

    def log(self, name: str, limit: int = LOG_END, phases: Sequence[str] = (TRAIN, SCORE)) -> str:
        return ends_of(self.folder_of(name), limit, phases)

    def program_of(self, command: str) -> str:
        """The path of the program that a command starts."""
        path = (self._theirs(self._stage(self.seats[0])) or trial_environment(self.folder, self.folder, {}))["PATH"]
        words = re.findall(r"[^\s;&|()]+", command)
        word = next(itertools.dropwhile(lambda word: word == "env" or "=" in word, words), command)
        return shutil.which(word, path=path) or word

    def log_path(self, name: str) -> Path:
        return self.folder_of(name) / "train.log"

    def folder_of(self, name: str) -> Path:
        """Where the logs and figures of a trial are."""
        return self.folder / (name if "/" in name else f"trials/{name}")

    def _worktree(self, name: str) -> Stage:
        return self._stages.setdefault(name, Stage(self.repo, name))

    def _stage(self, seat: Seat) -> Stage | Checkout:
        """The worktree of a seat."""
        name = name_of("stage", seat)
        if self.task.referee:
            return self._worktree(name)
        return self._checkouts.setdefault(name, Checkout(self.repo, name, self.task.link))

    @property
    def _above(self) -> list[str]:
        """Committed files at the top of the user's checkout. The worktree lies below it, and tools that search parent
        folders for settings (cargo, pytest) fail if they find files there that they may not read."""
        names = (name for name in self.repo.committed(self.base) if "/" not in name and not self.task.hides(name))
        files = (self.repo.root / name for name in sorted(names))
        return [str(path) for path in files if path.is_file() and not path.is_symlink()]

    def _confinement(self, stage: Stage | Checkout) -> dict[str, list[str]] | None:
        """The paths that trials may read, and those hidden from them: as the game says, copies of these, the record."""
        if not self.confined:
            return None
        root = self.repo.root
        game = [Path(path) for path in self.facts.hidden]
        inside = [path.relative_to(root) for path in game if path.is_relative_to(root)]
        stages = [stage.folder, *(self._stage(seat).folder for seat in self.seats)]
        copies = [folder / path for folder in (*stages, self.repo.worktree) for path in inside if path.parts]
        hidden = [*game, *copies, root / RUNS, Path(self.repo.repository.common_dir)]
        readable = list(self.facts.readable)
        if isinstance(stage, Checkout):
            environment = self._theirs(stage) or {}
            readable += [str(stage.git_folder), *(os.path.realpath(root / link) for link in stage.links)]
            readable += self._above
            if self.task.hidden:
                hidden.append(stage.git_folder / "objects")
            readable += toolchains(self.task, {**os.environ, **environment}, self._places(stage))
        return {"readable": readable, "hidden": [str(path) for path in hidden]}


def require_gpu(environment: dict[str, str]) -> None:
    """After a trial that failed. Raises UserError where it is the GPU that has: it is gone, its driver was replaced."""
    try:
        words = [sys.executable, "-m", "autoresearch.machine_facts", "driver"]
        _, said = ask(words, DRIVER_LIMIT, folder=Path(__file__).parents[2], environment=environment)
        why = json.loads(said.strip().splitlines()[-1])["why"].removesuffix(f", {cuda.INSTEAD}")
    except TimeoutError:
        why = f"NVIDIA's driver gives no answer within {DRIVER_LIMIT:.0f} s"
    except (ValueError, IndexError, KeyError, TypeError):  # the question itself failed
        return
    if why:
        raise UserError(
            f"a trial failed, and its edit is not to blame: {why}. Nothing is lost: when that is put right, the same "
            "command runs the experiment again"
        )


def name_of(folder: str, seat: Seat) -> str:
    return f"{folder}-{seat.number}" if seat.number else folder


def seats_of(gpus: str | None, workers: int) -> list[Seat]:
    """A seat for each GPU (nvidia-smi numbers, with commas), else `workers` seats on the CPU. Raises UserError."""
    if gpus is None:
        one = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // workers))}
        share = {} if workers == 1 or "OMP_NUM_THREADS" in os.environ else one
        return [Seat(number, share) for number in range(workers)]
    names = [name.strip() for name in gpus.split(",")]
    if not all(re.fullmatch(r"\d+|(GPU|MIG)-[0-9A-Fa-f-]+", name) for name in names) or len(set(names)) < len(names):
        raise UserError(f"--gpus takes nvidia-smi numbers, such as 0 or 0,1,2, not {gpus!r}")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given and (others := [name for name in names if name not in given.split(",")]):
        raise UserError(
            f"--gpus {gpus}: CUDA_VISIBLE_DEVICES allows this process only {given}, not {', '.join(others)}; "
            f"type `--gpus {given}`"
        )
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return [Seat(number, {"CUDA_VISIBLE_DEVICES": name, **order}) for number, name in enumerate(names)]


FENCED = "AUTORESEARCH_FENCED"  # environment variable: the caller may not switch the sandbox off


def choose_confinement(mode: str, root: Path) -> bool:
    """Whether trials run confined, for --sandbox auto, require or off. root: of the repository. Raises UserError."""
    if mode not in ("auto", "require", "off"):
        raise UserError(f"--sandbox takes auto, require or off, not {mode!r}")
    if mode == "off" and os.environ.get(FENCED):
        raise UserError(
            f"{FENCED} is set, as .claude/settings.json does for agents that may run this without asking. Only a "
            "person can switch the sandbox off then, in their own shell"
        )
    if mode == "require" and not sandbox.method():
        raise UserError(
            "--sandbox require: this kernel has no Landlock (it needs Linux 5.19 or later, and can be disabled) and no "
            "working bubblewrap was found, so trials cannot be confined. Install bubblewrap, or use --sandbox off if "
            "you trust the agent's code"
        )
    confined = mode != "off" and sandbox.method() != ""
    if confined and root.is_relative_to("/dev/shm"):
        raise UserError(
            f"{root} lies in /dev/shm, and a trial in the sandbox has one of its own in its place: move the repository "
            "to a disk, or use --sandbox off if you trust the agent's code"
        )
    return confined


def sandbox_in_words(confined: bool) -> str:
    if confined:
        return f"{sandbox.method()}: trials see no home folder, keys or network; write only to their folder"
    return "NONE: the agent's code runs with your permissions (see --sandbox)"


# ----------------------------------------------------------------------------------------------
# The game


async def describe(task: Task, folder: Path, environment: dict[str, str]) -> Facts:
    """The facts of the game, as the task's `describe` command states them. Raises UserError."""
    if not task.describe:
        return Facts()
    code, said, errors = await watched(words_of(task, task.describe), folder, environment, subprocess.PIPE)
    last = (errors.decode(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1]
    if code == 2 and last.startswith("error: "):  # an error that a person can fix
        raise UserError(last.removeprefix("error: "))
    try:
        if code:
            raise ValueError(last)
        return Facts.of(json.loads(said))
    except ValueError as error:
        raise UserError(f"`{task.describe}` did not describe the game: {error}") from None


async def set_up(task: Task, folder: Path, environment: dict[str, str], output: IO[str]) -> None:
    """Run the task's set-up, with its output shown. This project's own set-up prepares the data if missing."""
    if not task.setup:
        return
    code, *_ = await watched(words_of(task, task.setup), folder, environment, output)
    if code:
        raise UserError(
            f"the set-up `{task.setup}` failed with exit code {code}; its output above says why. "
            "Nothing is lost: fix that and run the same command again"
        )


def words_of(task: Task, command: str) -> list[str]:
    return command_words(command) if task.referee else their_words(command)


async def make_virtual_environment(task: Task, folder: Path, environment: dict[str, str]) -> None:
    """If the set-up installs packages, give the worktree its own virtual environment, so that the user's is not
    changed. The user's packages can still be imported."""
    if not re.search(r"\b(pip3?|uv pip) install\b", task.setup or "") or (folder / ".venv").exists():
        return
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    _, theirs, _ = await watched(["python", "-c", where], folder, environment, subprocess.PIPE)
    await watched(["python", "-m", "venv", ".venv"], folder, environment, subprocess.DEVNULL)
    for packages in folder.glob(".venv/lib/python*/site-packages"):
        (packages / "theirs.pth").write_bytes(theirs)


async def watched(
    words: list[str], folder: Path, environment: dict[str, str], output: IO[str] | int
) -> tuple[int, bytes, bytes]:
    """(Exit code, output, errors) of a trusted command. Without a pipe the user sees the output, and both are empty.
    If cancelled, the command is ended.
    """
    require_program(words, folder, environment)
    errors = output if output == subprocess.PIPE else None
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env=environment, stdout=output, stderr=errors, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, errors = await process.communicate()
        return process.returncode or 0, said or b"", errors or b""
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)  # so that it can tell the user how to continue
            await asyncio.wait({asyncio.ensure_future(process.wait())}, timeout=GRACE_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
