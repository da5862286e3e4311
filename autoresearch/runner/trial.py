"""One trial on this machine: train, score, guard, holdout. Each is a process with limits, and its output is logged.

The commands run in the sandbox (sandbox.py), with an environment of a few harmless variables. The folder of a trial,
.autoresearch/<tag>/trials/<name>/, holds train.log, score.log, guard.log, holdout.log and, in run/, whatever the
commands write to AUTORESEARCH_RUN_DIR (for this project's own game: the weights, figures.json, progress.json). The
commands can write only to run/, and under a referee only those three files outlive the training.

A referee is a score command that is trusted with data that the training must not see. It runs outside the sandbox and
starts together with the training. A socket connects the two (its number is in AUTORESEARCH_REFEREE of both). A line on
its standard input tells it that the training process has ended. It runs its own child processes in a sandbox with the
command prefix in AUTORESEARCH_CONFINE, which allows them to write only to $TMPDIR.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median

from autoresearch import compile_ahead, keys, preflight
from autoresearch.editable import in_folder
from autoresearch.files import remove
from autoresearch.runner import AHEAD, GUARD, HOLDOUT, PREFLIGHT, SCORE, TRAIN, Job, Measurement, Phase, sandbox
from autoresearch.runner.denied import denied
from autoresearch.runner.environment import CACHES, HARMLESS, matching, their_words
from autoresearch.runner.gpu import Taken
from autoresearch.runner.logs import last_line, last_word, read_figures, read_tail, shorten
from autoresearch.runner.machine import clear, cut_at_end
from autoresearch.runner.neighbours import Neighbours
from autoresearch.runner.process import Ended, Process, command_words, end_left_over
from autoresearch.runner.progress import longest_start, read_progress
from autoresearch.runner.usage import Usage
from autoresearch.task import Facts, Task

# The only variables of the user's environment that a trial sees: no keys, no tokens, no agent settings.
ENVIRONMENT = (
    *HARMLESS,
    *("HOME", "USER", "LOGNAME", "SHELL", "LANGUAGE", "TZ", "TMPDIR"),
    *("TORCHINDUCTOR_*", "TRITON_*", "AUTORESEARCH_*"),
)
PREFLIGHT_LIMIT = 60.0  # seconds; it takes about two
FOR_SAVING = 60.0  # most seconds from the end of the training time to the end of the process; the referee allows less
KEPT = ("model.safetensors", "figures.json", "progress.json")  # the files in run/ that outlive a training with referee
TEXT = ("docs", "*.md", "*.rst", "*.txt", "*.ipynb", "LICENSE*")  # files that a training with referee cannot read
LARGEST_FIGURES = 1 << 16  # size limit in bytes of each of KEPT but the first
MOST_MEGABYTES = 1e8  # the largest memory use that a trial can report
MOST_FIGURES = 200  # that are recorded, besides those that the task names: a program may print one for each step
LARGEST_SCORE = 1e100  # sums and squares of such scores are still finite
NEXT_SEED = 1000  # distance between the seeds of a task's `repeats`


def trial_environment(
    folder: Path, caches: Path, settings: Mapping[str, str], theirs: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of a trial's processes. settings: variables that the loop adds (profile, data, seed, device).
    theirs: variables of the user's shell, for the commands of another repository.
    """
    found = matching({**os.environ, **settings}, ENVIRONMENT)
    kept = {name: value for name, value in found.items() if not keys.NAMES.search(name)}
    if theirs is not None:
        kept.pop("VIRTUAL_ENV", None)
        # No settings of the user's and the system's, and an empty home: where they may not read them, git and npm end.
        kept |= {"HOME": str(folder / "home"), "GIT_CONFIG_NOSYSTEM": "1"}
        kept |= {"npm_config_globalconfig": os.devnull, "npm_config_update_notifier": "false"}
    common = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(folder / "run/tmp"),
        "AUTORESEARCH_RUN_DIR": str(folder / "run"),
        **{name: str(caches / name.split("_")[0].lower()) for name in CACHES},
    }
    return common | dict(theirs or {})


class Trial:
    """The processes of one job.

    stage: the worktree in which the commands run. folder: where their output goes. confine: the paths that are
    `readable` and `hidden`; None: no sandbox. changed: returns the files of the stage that are not as they should be.
    share: how many trials share the machine's memory.
    """

    def __init__(
        self,
        task: Task,
        job: Job,
        facts: Facts,
        stage: Path,
        folder: Path,
        environment: dict[str, str],
        confine: dict[str, list[str]] | None,
        changed: Callable[[], list[str]],
        tell: Callable[[Phase], None],
        share: int = 1,
    ) -> None:
        self.task, self.job, self.facts, self.stage, self.folder = task, job, facts, stage, folder
        self.inside = stage / task.folder  # where the commands run
        self.environment, self.confine, self.changed, self.tell = environment, confine, changed, tell
        self.limits = {
            PREFLIGHT: PREFLIGHT_LIMIT,
            AHEAD: longest_start(facts.time_budget or 0.0),
            TRAIN: task.time_limit + (facts.time_budget or 0.0),
            SCORE: task.score_limit,
            GUARD: task.score_limit,
            HOLDOUT: 2.5 * task.score_limit,  # which probes every row
        }
        if task.referee and facts.time_budget:
            self.start_limit = longest_start(facts.time_budget)
            self.limits[TRAIN] = min(self.limits[TRAIN], self.start_limit + facts.time_budget + FOR_SAVING)
        else:
            self.start_limit = math.inf
        self.seconds: dict[str, float] = {}
        self.printed: list[dict[str, float]] = []  # figures, by run of the command that prints the metric
        self.peak_memory = 0
        self.neighbours: Neighbours | None = None  # from the start of its clock
        self.taken: Taken | None = None  # what others took since
        self.at_home = ""  # the phase that has written to the commands' home
        self.root = folder.parents[3]  # the user's checkout
        self.caches = [Path(environment[name]) for name in CACHES]
        self.usage = Usage(task, stage, folder, self.caches, share)

    async def run(self) -> Measurement:
        """Run the phases of the job. Never raises for failures of the commands: a crash is a measurement."""
        try:
            if PREFLIGHT in self.job.phases:
                return await self._preflight()
            if AHEAD in self.job.phases:
                return await self._compile_ahead()
            if TRAIN in self.job.phases:
                return await self._train_and_score()
            return await self._check()
        finally:
            if self.neighbours:
                self.neighbours.end()
            (self.folder / "process").unlink(missing_ok=True)

    async def _preflight(self) -> Measurement:
        """Check whether the editable files can run. `reason` says why not; empty if they can, or if that is unknown."""
        for name in self.task.editable:
            command = shlex.join([sys.executable, preflight.__file__, name])
            async with self._start(PREFLIGHT, command) as process:
                ended = await self._finish(PREFLIGHT, process)
            if ended.reason == "exit code 1":
                return self._failed(PREFLIGHT, last_line(self.folder / "preflight.log") or ended.reason)
        return Measurement(seconds=dict(self.seconds))

    async def _compile_ahead(self) -> Measurement:
        """Compile what the editable files will need. If that fails, only the log says so: a trial compiles it, too."""
        self.usage.begin()
        for name in self.task.editable:
            async with self._start(AHEAD, shlex.join([sys.executable, compile_ahead.__file__, name])) as process:
                await self._finish(AHEAD, process)
        return Measurement(seconds=dict(self.seconds))

    async def _train_and_score(self) -> Measurement:
        remove(self.folder)  # what an interrupted run of it left behind
        self.usage.begin()
        if changed := self.changed():
            return self._failed(TRAIN, f"not run: {', '.join(changed)} is not as in the commit that the run began with")
        for name in self.task.hidden:
            if not any(os.path.lexists(self.stage / path) for path in in_folder([name], self.stage)):
                return self._failed(TRAIN, f"not run: `hidden` in program.md names {name}, and there is no such file")
        async with contextlib.AsyncExitStack() as processes:
            referee, joined = None, None
            if self.task.referee:
                theirs, joined = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                processes.enter_context(joined)
                with theirs:
                    referee = self._start(SCORE, self.task.score or "", on_stdin=True, channel=theirs)
                    await processes.enter_async_context(referee)
            with self._withheld() as faults:
                async with self._start(TRAIN, self.task.train, channel=joined) as training:
                    if joined:
                        joined.close()
                    ended = await self._finish(TRAIN, training)
            if faults:
                return self._failed(TRAIN, f"void: {', '.join(faults)}")
            if not self.task.score:
                ended = await self._repeat(TRAIN, ended)
            if self.task.referee:
                settle(self.folder / "run")
            if ended.suspended:
                return self._failed(TRAIN, "suspended", ended.suspended)
            if ended.reason:
                said = last_word(self.folder / "score.log") if referee else ""  # which says nothing before its time
                also = f" (the referee: {said})" if said else ""
                return self._failed(TRAIN, f"training: {self._explain(TRAIN, ended.reason)}{also}")
            if self.task.score:
                if not referee and (changed := self.changed()):  # what scores must be what was committed
                    return self._failed(TRAIN, f"void: {', '.join(changed)} changed while the trial ran")
                if referee:
                    referee.go(str(training.started + ended.seconds))  # by the clock that time.perf_counter reads
                scoring = referee or await processes.enter_async_context(self._start(SCORE, self.task.score))
                ended = await self._finish(SCORE, scoring, before=self.seconds[TRAIN] if referee else 0.0)
                ended = await self._repeat(SCORE, ended)
                if ended.suspended and (ended.reason or self._suspension_counts(SCORE)):
                    return self._failed(SCORE, "suspended", ended.suspended)
                if ended.reason:
                    return self._failed(SCORE, f"scoring: {self._explain(SCORE, ended.reason)}")
        return self._score(SCORE if self.task.score else TRAIN)

    @contextlib.contextmanager
    def _withheld(self) -> Iterator[list[str]]:
        """A context in which the task's hidden files are not in the worktree. Yields a list; afterwards it says what
        could not be put back, and which links the scoring would follow to where the training could not look: the trial
        is void. The next one fills the worktree anew.
        """
        stage, place, faults = Path(os.path.realpath(self.stage)), self.folder / "withheld", []
        moved = [path.relative_to(stage) for path in self._hidden() if path.is_relative_to(stage)]
        moved = [path for path in moved if not any(above in moved for above in path.parents)]
        known = self._links() if self.task.hidden else {}
        for path in moved:
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (stage / path).rename(place / path)
        try:
            yield faults
        finally:
            found = self._links() if self.task.hidden else {}
            for link in (link for link, target in found.items() if known.get(link) != target):
                leads = Path(os.path.realpath(link))
                inside = any(leads.is_relative_to(os.path.realpath(top)) for top in self._writable())
                if not (inside and leads.exists()) or any((stage / path).is_relative_to(leads) for path in moved):
                    faults.append(f"{os.path.basename(link)} is a link to what `train` neither wrote nor could read")
            for path in moved:
                if os.path.realpath(above := (stage / path).parent) != str(above) or not above.is_dir():
                    faults.append(f"{path.parent} changed while the trial ran")  # a link: anything could be overwritten
                    continue
                try:
                    above.chmod(above.stat().st_mode | stat.S_IRWXU)
                    remove(stage / path)
                    (place / path).rename(stage / path)
                except OSError:  # the command has made it so
                    faults.append(f"{path} changed while the trial ran")
            remove(place)

    def _links(self) -> dict[str, str]:
        """The target of each symbolic link in what the commands may write; of a folder that nobody may list, itself."""
        closed: list[OSError] = []
        walks = itertools.chain.from_iterable(os.walk(top, onerror=closed.append) for top in self._writable())
        paths = (os.path.join(folder, name) for folder, below, names in walks for name in (*below, *names))
        links = {path: os.readlink(path) for path in paths if os.path.islink(path)}
        return links | {error.filename: "" for error in closed}

    def _hidden(self) -> list[Path]:
        """The task's hidden files and folders, as they are in the worktree or, through a link, outside it."""
        return sorted({Path(os.path.realpath(self.stage / name)) for name in in_folder(self.task.hidden, self.stage)})

    async def _repeat(self, phase: str, ended: Ended) -> Ended:
        """Run the command that prints the metric again, as often as the task's `repeats` says, each time with another
        seed, until one fails or is suspended. ended: how the first run ended. Returns how the last one ended, whose log
        is kept.
        """
        log, took = self.folder / f"{phase}.log", self.seconds[phase]
        while not ended.reason:
            self.printed.append(read_figures(log))
            again = len(self.printed) < self.task.repeats and self._is_scored(self.printed[-1])
            if not again or (ended.suspended and self._suspension_counts(phase)):
                break
            self.environment["AUTORESEARCH_SEED"] = str(self.job.seed + NEXT_SEED * len(self.printed))
            async with self._start(phase, getattr(self.task, phase)) as process:
                ended = await self._finish(phase, process)
            took += self.seconds[phase]
            self.seconds[phase] = took
        return ended

    def _suspension_counts(self, phase: str) -> bool:
        """Whether a suspension affects what a phase measures. It does not affect a score that is not a time."""
        return phase == TRAIN or self.task.is_timed

    def _is_scored(self, figures: Mapping[str, float]) -> bool:
        return math.isfinite(figures.get(self.task.metric, math.nan))

    def _score(self, printed: str) -> Measurement:
        """The output of a phase as a measurement: of several runs, the median of each figure."""
        if changed := self.changed():
            return self._failed(printed, f"void: {', '.join(changed)} changed while the trial ran")
        figures = self.printed[-1]
        if self._is_scored(figures):
            figures = {name: median(run.get(name, figures[name]) for run in self.printed) for name in figures}
        score = figures.get(self.task.metric)
        if score is None:
            others = f"; it names {', '.join(list(figures)[-5:])}" if figures else ""
            return self._failed(printed, f"{printed}.log holds no line `{self.task.metric}: NUMBER`{others}")
        if not math.isfinite(score):
            return self._failed(printed, f"{self.task.metric} is {score}, not a finite number")
        if abs(score) > LARGEST_SCORE:
            return self._failed(printed, f"{self.task.metric} is {score:g}, too large to compare")
        if self.task.range and not self.task.range[0] <= score <= self.task.range[1]:
            least, largest = self.task.range
            said = f"the `range` in program.md is {least:g} to {largest:g}"
            return self._failed(printed, f"{self.task.metric} is {score:g}, which cannot be: {said}")
        megabytes = figures.get("peak_vram_mb", math.nan)
        if not 0 <= megabytes < MOST_MEGABYTES:
            megabytes = self.peak_memory / 2**20
        figures = {"peak_mb": self.peak_memory / 2**20, **figures} if "peak_mb" in self.task.also else figures
        measured = Measurement(score, "", self._recorded(figures), dict(self.seconds), megabytes / 1024)
        if not self.taken:
            return measured
        return dataclasses.replace(measured, taken=self.taken.share, taken_by=self.taken.words)

    async def _check(self) -> Measurement:
        """Run guard and holdout on what the training of this trial has saved."""
        figures = {}
        self.usage.begin()
        for phase, command in ((GUARD, self.task.guard), (HOLDOUT, self.task.holdout)):
            if not command or phase not in self.job.phases:
                continue
            if not self.task.referee and (changed := self.changed()):
                return self._failed(phase, f"void: {', '.join(changed)} changed while the trial ran")
            async with self._start(phase, command) as process:
                ended = await self._finish(phase, process)
            if ended.reason:
                return self._failed(phase, self._explain(phase, ended.reason))
            figures = self._recorded(read_figures(self.folder / f"{phase}.log"))
        if not self.task.referee:
            self.changed()  # learns from the baseline
        return Measurement(figures=figures, seconds=dict(self.seconds))

    def _make_folders(self) -> None:
        temporary = self.folder / "run/tmp"
        if temporary.is_symlink() or not temporary.is_dir():  # whatever a command has made of it
            remove(temporary)
        for path in (*self.caches, self.folder / "tmp", temporary):
            path.mkdir(parents=True, exist_ok=True)

    def _start(self, phase: str, command: str, on_stdin: bool = False, channel: socket.socket | None = None) -> Process:
        self._make_folders()
        environment = self.environment
        if phase in (SCORE, HOLDOUT) and self.task.referee:
            words = sandbox.launcher(self._rules(["$TMPDIR"], alone=True))
            environment = {
                **environment,
                "TMPDIR": str(self.folder / "tmp"),
                **{name: str(self.folder / "tmp" / name.lower()) for name in CACHES},  # no kernel that a trial left
                "AUTORESEARCH_CONFINE": json.dumps(words),
                "AUTORESEARCH_REFERENCE": str(self.folder.parent.parent / "reference"),  # of all trials of the run
            }
            rules = None
        else:
            rules = self._rules(self._writable(), linked=phase != TRAIN)
        if not self.task.referee and phase != self.at_home:  # what edited code leaves there would judge it: packages
            remove(self.folder / "home")  # no name above it is theirs to replace by a link
            (self.folder / "home").mkdir()
            self.at_home = phase
        log = self.folder / f"{phase}.log"
        words = command_words(command) if self.task.referee or phase in (PREFLIGHT, AHEAD) else their_words(command)
        process = Process(
            words, self.inside, environment, log, rules, on_stdin, channel, counted=True, yields=phase == AHEAD
        )
        try:
            with open(self.folder / "process", "a") as file:
                file.write(process.identifier + "\n")
        except OSError:
            process.abandon()
            raise
        return process

    def _rules(self, write: list[str], alone: bool = False, linked: bool = True) -> dict | None:
        """The sandbox rules of a command (sandbox.launcher). linked: it may read hidden files outside the worktree."""
        if self.confine is None:
            return None
        read = [str(self.stage), str(self.folder / "run"), preflight.__file__, compile_ahead.__file__]
        read += self.task.readable
        texts = [str(path) for name in TEXT for path in self.stage.glob(name)] if self.task.referee else []
        stage = os.path.realpath(self.stage)
        away = [] if linked else [str(path) for path in self._hidden() if not path.is_relative_to(stage)]
        hidden = [*self.confine["hidden"], *texts, *away]
        rules = {"read": [*read, *self.confine["readable"]], "write": write, "hidden": hidden}
        rules |= {"builds": not self.task.referee, "network": self.task.network}
        rules |= {"gpu": self.facts.gpu or not self.task.referee}  # the game of the CPU is not played on a GPU
        return {**rules, "strict": self.task.referee, "alone": alone, "imports": list(self.task.imports)}

    async def _finish(self, phase: str, process: Process, before: float = 0.0) -> Ended:
        """Wait for a command. before: seconds that it had been running when its phase began."""
        self.tell(Phase(phase, str(self.folder)))
        try:
            ended = await process.wait(self.limits[phase] + before, lambda: self._excess(phase, process))
            if overfull := self.usage.excess_of_disk(process):  # also by what it wrote just before its end
                ended = dataclasses.replace(ended, reason=ended.reason or overfull)
        finally:  # also of a trial that is cancelled
            cut_at_end(self.folder / f"{phase}.log")
            if self.usage.overfull and phase == TRAIN:  # at once: the loop needs room for its record
                tidy(self.folder, self.caches, keep_weights=False)
            shorten(self.folder / f"{phase}.log")
            keys.scrub_file(self.folder / f"{phase}.log")
        if phase == TRAIN:
            self.taken = self.neighbours.taken() if self.neighbours else None
        self.seconds[phase] = ended.seconds - before
        if phase == TRAIN or (phase == SCORE and not self.task.referee):
            self.peak_memory = max(self.peak_memory, ended.peak_memory)
        if phase == TRAIN and (progress := read_progress(self.folder)):
            late = max(0.0, progress.clock - (time.time() - ended.seconds))  # from its start to its clock's
            self.seconds["training"] = round(min(progress.budget, max(0.0, ended.seconds - late)), 3)
        return ended

    def _excess(self, phase: str, process: Process) -> str | None:
        """Why a command must end now: it exceeds the limit of start-up time, or uses too much. Or None."""
        running = time.monotonic() - process.started
        watched = phase == TRAIN and self.facts.most_taken is not None
        if watched and not self.neighbours and read_progress(self.folder):
            self.neighbours = Neighbours(self.environment, self.facts.gpu)
        if phase == TRAIN and running > self.start_limit and read_progress(self.folder) is None:
            limit = f"{self.start_limit:.0f} s"
            return f"ended because it drew no batch in its first {limit}, the limit for importing and compiling"
        return self.usage.excess(process)

    def _explain(self, phase: str, reason: str) -> str:
        """Why a command failed: how it ended, what its log says, and what the sandbox denied."""
        log = self.folder / f"{phase}.log"
        line = last_word(log)
        if line:  # exit code 1 says nothing that the line does not
            reason = line if reason == "exit code 1" else f"{reason}: {line}"
        words = re.findall(r"[\w.-]+", line) if phase == TRAIN and "o such file" in line else ()
        if found := [path.name for path in self._hidden() if path.name in words]:
            return f"{reason} (`hidden` in program.md keeps {found[0]} from `train`)"
        rules = None if self.task.referee else self._rules(self._writable())
        said = denied(read_tail(log, 1 << 16), rules, self.root) if rules else ""
        return f"{reason} ({said})" if said else reason

    def _writable(self) -> list[str]:
        """The paths that the commands (except a referee) may write to."""
        theirs = [] if self.task.referee else [str(self.folder / "home"), str(self.stage)]
        return [str(self.folder / "run"), *map(str, self.caches), *self.task.writable, *theirs]

    def _recorded(self, figures: dict[str, float]) -> dict[str, float]:
        """The figures that JSON can represent; of those that the task does not name the last MOST_FIGURES."""
        kept = {*list(figures)[-MOST_FIGURES:], self.task.metric, self.task.holdout_metric, *self.task.also}
        return {name: value for name, value in figures.items() if name in kept and math.isfinite(value)}

    def _failed(self, phase: str, reason: str, suspended: float = 0.0) -> Measurement:
        return Measurement(None, reason, seconds=dict(self.seconds), suspended=suspended, failed=phase)


def settle(run: Path) -> None:
    """Remove everything from a training's folder except weights and figures: plain files of known names and sizes."""
    clear(run, is_known)


def is_known(entry: os.DirEntry) -> bool:
    """Whether an entry of a run's folder is one of KEPT, and what it should be."""
    status = entry.stat(follow_symlinks=False)
    plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    size = max(status.st_size, status.st_blocks * 512)
    return plain and entry.name in KEPT and (entry.name == KEPT[0] or size <= LARGEST_FIGURES)


def tidy(folder: Path, caches: list[Path], keep_weights: bool) -> None:
    """Remove temporary files and, unless the weights are kept, everything but the figures."""

    def stays(entry: os.DirEntry) -> bool:
        return entry.is_file(follow_symlinks=False) and (keep_weights or entry.name == "figures.json")

    for path in (folder / "tmp", folder / "home", *caches):
        remove(path)
    clear(folder / "run", stays)


def end_left_overs(folder: Path) -> bool:
    """End processes of a trial that still run because the loop was killed. Returns whether there were any."""
    try:
        identifiers = re.findall(r"^\d+ \d+$", (folder / "process").read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return False
    ended = [end_left_over(identifier) for identifier in identifiers]  # a power failure may leave anything else there
    (folder / "process").unlink()  # last: if this is killed, the next start ends them
    return any(ended)
