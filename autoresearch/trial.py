"""One experiment: train, score, guard. Each is a process with a time limit; what they print is kept.

The commands run confined (sandbox.py), with an environment of a few harmless variables. The folder of
a trial, .autoresearch/<tag>/trials/<number>/, holds train.log, score.log, guard.log
and whatever the commands write to AUTORESEARCH_RUN_DIR (for this project's own game: the weights,
figures.json, progress.json).
"""

import dataclasses
import fnmatch
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from autoresearch import sandbox
from autoresearch.process import Process, command_words, end_left_over
from autoresearch.task import Task

# What a trial sees of the user's environment. Nothing else: no keys, no tokens, no agent settings.
ENVIRONMENT = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "VIRTUAL_ENV",
    "LD_LIBRARY_PATH", "CUDA_*", "NVIDIA_*", "PYTORCH_*", "TORCH_*", "OMP_*", "MKL_*", "OPENBLAS_*", "CC", "CXX",
    "AUTORESEARCH_*",
)
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")      # compiled kernels, private to one run
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
LOG_TAIL = 1 << 20                  # bytes at the end of a log in which a metric is looked for


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial came to. score is None when it crashed; `reason` then says why, in one line."""

    score: float | None
    reason: str
    memory_gb: float
    figures: dict[str, float]       # the numeric `key: value` lines of the command that prints the metric
    seconds: dict[str, float]       # wall clock of train, score, guard
    stopped: bool = False           # ended from outside: no verdict


class TrialStopped(Exception):
    """The user ended the trial before its verdict."""


def trial_environment(folder: Path, caches: Path, seed: int, extra: dict[str, str]) -> dict[str, str]:
    """The environment of a trial's processes. `extra` holds the loop's own settings (profile, data, cache)."""
    kept = {
        name: value
        for name, value in {**os.environ, **extra}.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in ENVIRONMENT) and not SECRET.search(name)
    }
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    kept["PYTHONUNBUFFERED"] = "1"
    kept["PYTHONDONTWRITEBYTECODE"] = "1"
    kept["TMPDIR"] = str(folder / "tmp")
    kept["AUTORESEARCH_RUN_DIR"] = str(folder)
    kept["AUTORESEARCH_SEED"] = str(seed)
    for name in CACHES:
        kept[name] = str(caches / name.split("_")[0].lower())
    return kept


class Trial:
    """Runs one attempt of a task.

    worktree: where the commands run. folder: where their output goes. confine: what `readable` of the
    game's facts says, for each command, or None to run them unconfined. time_budget: seconds of
    training that the task allows itself; its time limit comes on top. stopped: asked ten times a
    second whether to end now. show: called with the name of each phase, and on every tick with None.
    """

    def __init__(self, task: Task, worktree: Path, folder: Path, environment: dict[str, str],
                 confine: dict[str, list[str]] | None = None, time_budget: float = 0.0,
                 stopped: Callable[[], bool] = lambda: False, show: Callable[[str | None], None] = lambda phase: None) -> None:
        self.task, self.worktree, self.folder, self.environment = task, worktree, folder, environment
        self.limits = {"train": task.time_limit + time_budget, "score": task.score_limit, "guard": task.score_limit}
        self.confine, self.stopped, self.show = confine, stopped, show
        self.seconds: dict[str, float] = {}
        self.peak_memory = 0

    def run(self) -> Outcome:
        """Train and score. Never raises for what the commands do; a crash is an outcome."""
        shutil.rmtree(self.folder, ignore_errors=True)      # what an interrupted run of it left behind
        for path in (self.folder, *(self.environment[name] for name in ("TMPDIR", *CACHES))):
            Path(path).mkdir(parents=True, exist_ok=True)
        scorer = None
        try:
            if self.task.score and self.task.score_waits:
                scorer = self._start("score", self.task.score, on_stdin=True)
            reason = self._finish("train", self._start("train", self.task.train))
            if reason:
                return self._outcome(None, "training: " + self._explain("train", reason))
            printed = "train"
            if self.task.score:
                if scorer:
                    scorer.go()
                running, scorer = scorer or self._start("score", self.task.score), None
                reason = self._finish("score", running, extra=self.seconds["train"] if self.task.score_waits else 0.0)
                if reason:
                    return self._outcome(None, "scoring: " + self._explain("score", reason))
                printed = "score"
            figures = read_figures(self.folder / f"{printed}.log")
            score = figures.get(self.task.metric)
            if score is None:
                return self._outcome(None, f"{printed}.log holds no line `{self.task.metric}: NUMBER`")
            if not math.isfinite(score):
                return self._outcome(None, f"{self.task.metric} is {score}, not a finite number")
            return self._outcome(score, "", figures)
        except TrialStopped:
            return dataclasses.replace(self._outcome(None, "stopped by the user"), stopped=True)
        finally:
            if scorer:
                scorer.end("not needed")
            (self.folder / "process").unlink(missing_ok=True)

    def guard(self) -> str | None:
        """Run the guard command. Why the edit must not be kept, or None."""
        if not self.task.guard:
            return None
        try:
            reason = self._finish("guard", self._start("guard", self.task.guard))
        except TrialStopped:
            return "stopped by the user"
        return reason and "the guard failed: " + self._explain("guard", reason)

    def _start(self, phase: str, command: str, on_stdin: bool = False) -> Process:
        words = command_words(command)
        if self.confine is not None:
            read = [str(self.worktree), *self.task.readable, *self.confine.get(phase, [])]
            write = [str(self.folder), *(self.environment[name] for name in CACHES), *self.task.writable]
            words = sandbox.confined(words, read, write)
        process = Process(words, self.worktree, self.environment, self.folder / f"{phase}.log", on_stdin)
        with open(self.folder / "process", "a") as file:
            file.write(process.identifier + "\n")
        return process

    def _finish(self, phase: str, process: Process, extra: float = 0.0) -> str:
        self.show(phase)
        ended = process.wait(self.limits[phase] + extra, self.stopped, lambda: self.show(None))
        self.seconds[phase] = ended.seconds - extra
        if phase == "train":
            self.peak_memory = ended.peak_memory
        if ended.exit_code is None and self.stopped():
            raise TrialStopped
        return ended.reason

    def _explain(self, phase: str, reason: str) -> str:
        line = last_word(self.folder / f"{phase}.log")
        return f"{reason}: {line}" if line else reason

    def _outcome(self, score: float | None, reason: str, figures: dict[str, float] | None = None) -> Outcome:
        figures = figures or {}
        megabytes = figures.get("peak_vram_mb", self.peak_memory / 2**20)
        return Outcome(score, reason, 0.0 if score is None else megabytes / 1024, figures, dict(self.seconds))


def end_left_overs(folder: Path) -> bool:
    """End what a trial's commands left running when the loop was killed. True if there was something."""
    try:
        identifiers = (folder / "process").read_text().split("\n")
    except OSError:
        return False
    (folder / "process").unlink()
    return any([end_left_over(identifier) for identifier in identifiers if identifier])


def read_tail(path: Path, size: int = LOG_TAIL) -> str:
    """The end of a log as text; what is not UTF-8 is replaced."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def read_figures(path: Path) -> dict[str, float]:
    """The numeric `key: value` lines of a log; of equal keys the last counts."""
    figures = {}
    for key, text in re.findall(r"^([A-Za-z_][\w.-]*):[ \t]+(\S+)[ \t]*$", read_tail(path), re.MULTILINE):
        try:
            figures[key] = float(text)
        except ValueError:
            pass
    return figures


def last_line(path: Path) -> str:
    """The last line of a log that says something, cut to 200 characters."""
    return cut(next((line for line in reversed(read_tail(path, 1 << 14).splitlines()) if line.strip()), ""))


def last_word(path: Path) -> str:
    """What a failed command died of: the exception that ends its last traceback, else its last line."""
    _, found, trace = read_tail(path, 1 << 16).rpartition("Traceback (most recent call last):\n")
    ending = next((line for line in trace.splitlines() if line[:1].strip()), "") if found else ""
    return cut(ending) or last_line(path)


def cut(line: str) -> str:
    return "".join(c for c in line.strip() if c.isprintable())[:200]
