"""One experiment: train, score, guard, holdout. Each is a process with limits; what they print is kept.

The commands run confined (sandbox.py), with an environment of a few harmless variables. The folder of
a trial, .autoresearch/<tag>/trials/<number>/, holds train.log, score.log, guard.log, holdout.log, and in
run/ whatever the commands write to AUTORESEARCH_RUN_DIR (for this project's own game: the weights,
figures.json, progress.json). Only run/ is theirs.

A referee is a score command that is trusted with what the training must not see: it is not confined,
starts beside the training, is joined to it by a socket (its number is in AUTORESEARCH_REFEREE of both), hears on
its standard input that the training process has ended, and confines what it starts itself with the words in
AUTORESEARCH_CONFINE, which allow to write to $TMPDIR alone.
"""

import dataclasses
import fnmatch
import json
import math
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from autoresearch import keys, preflight, sandbox
from autoresearch.process import Process, command_words, end_left_over
from autoresearch.status import read_progress
from autoresearch.task import Task

# What a trial sees of the user's environment. Nothing else: no keys, no tokens, no agent settings.
ENVIRONMENT = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "CUDA_*",
    "NVIDIA_*",
    "PYTORCH_*",
    "TORCH_*",
    "OMP_*",
    "MKL_*",
    "OPENBLAS_*",
    "CC",
    "CXX",
    "AUTORESEARCH_*",
)
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")  # compiled kernels, private to one run
REHEARSAL_LIMIT = 60.0  # seconds; it takes about two
NEARLY_NOTHING = 256 << 20  # bytes of memory, or of the disk: a trial ends before the machine suffers
CONTAINER_LIMITS = (  # of control groups, version 2 and 1
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ""),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
LOG_KEPT = 8 << 20  # bytes of a log that are kept, of its beginning and of its end
LOG_TAIL = 1 << 20  # bytes at the end of a log in which a metric is looked for


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial came to. score is None when it crashed; `reason` then says why, in one line."""

    score: float | None
    reason: str
    memory_gb: float
    figures: dict[str, float]  # the numeric `key: value` lines of the command that prints the metric
    seconds: dict[str, float]  # wall clock of train, score, guard, holdout
    stopped: bool = False  # ended from outside: no verdict
    suspended: float = 0.0  # seconds for which the training stood still: it counts for nothing


class TrialStopped(Exception):
    """The user ended the trial before its verdict."""


class TrialSuspended(Exception):
    """The training stood still for some seconds while its clock went on, or would have."""


def trial_environment(folder: Path, caches: Path, seed: int, extra: dict[str, str]) -> dict[str, str]:
    """The environment of a trial's processes. `extra` holds the loop's own settings (profile, data, cache)."""
    kept = {
        name: value
        for name, value in {**os.environ, **extra}.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in ENVIRONMENT) and not keys.NAMES.search(name)
    }
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    kept["PYTHONUNBUFFERED"] = "1"
    kept["PYTHONDONTWRITEBYTECODE"] = "1"
    kept["TMPDIR"] = str(folder / "run/tmp")
    kept["AUTORESEARCH_RUN_DIR"] = str(folder / "run")
    kept["AUTORESEARCH_SEED"] = str(seed)
    for name in CACHES:
        kept[name] = str(caches / name.split("_")[0].lower())
    return kept


class Trial:
    """Runs one attempt of a task.

    stage: where the commands run. folder: where their output goes. confine: `readable` and `hidden`
    paths of the game, or None to run the commands unconfined. time_budget: seconds of training that
    the task allows itself; its time limit comes on top. changed: which files of the stage are not as they
    should be. stopped: asked ten times a second whether to end now. show: called with the name of each
    phase, and on every tick with None. share: how many trials share the machine's memory.
    """

    def __init__(
        self,
        task: Task,
        stage: Path,
        folder: Path,
        environment: dict[str, str],
        confine: dict[str, list[str]] | None = None,
        time_budget: float = 0.0,
        changed: Callable[[], list[str]] = list,
        stopped: Callable[[], bool] = lambda: False,
        show: Callable[[str | None], None] = lambda phase: None,
        share: int = 1,
    ) -> None:
        self.task, self.stage, self.folder, self.environment = task, stage, folder, environment
        self.limits = {
            "preflight": REHEARSAL_LIMIT,
            "score": task.score_limit,
            "guard": task.score_limit,
            "holdout": 2.5 * task.score_limit,
        }  # which probes every row
        self.limits["train"] = task.time_limit + time_budget
        self.confine, self.changed, self.stopped, self.show = confine, changed, stopped, show
        self.seconds: dict[str, float] = {}
        self.peak_memory = 0
        self.overfull = False
        self.memory_free = free_memory()
        self.memory_limit = task.memory_limit * 2**30 if task.memory_limit else 0.9 * self.memory_free / share
        self.outputs = [folder, *(Path(environment[name]) for name in CACHES)]
        self.disk_free, self.disk_used = shutil.disk_usage(folder.anchor).free, 0

    def run(self) -> Outcome:
        """Train and score. Never raises for what the commands do; a crash is an outcome."""
        shutil.rmtree(self.folder, ignore_errors=True)  # what an interrupted run of it left behind
        self._make_folders()
        self.disk_used = disk_usage(self.outputs)
        self.disk_free = shutil.disk_usage(self.folder).free
        referee, joined = None, None
        try:
            if changed := self.changed():
                return self._outcome(
                    None, f"not run: {', '.join(changed)} is not as in the commit that the run began with"
                )
            if self.task.referee:
                theirs, joined = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    referee = self._start("score", self.task.score, on_stdin=True, channel=theirs)
            training = self._start("train", self.task.train, channel=joined)
            if joined:
                joined.close()
            reason = self._finish("train", training)
            if reason:
                said = referee and last_word(self.folder / "score.log")  # which says nothing before its time
                return self._outcome(
                    None, "training: " + self._explain("train", reason) + (f" (the referee: {said})" if said else "")
                )
            printed = "train"
            if self.task.score:
                if referee:
                    referee.go()
                running, referee = referee or self._start("score", self.task.score), None
                reason = self._finish("score", running, extra=self.seconds["train"] if self.task.referee else 0.0)
                if reason:
                    return self._outcome(None, "scoring: " + self._explain("score", reason))
                printed = "score"
            if changed := self.changed():
                return self._outcome(None, f"void: {', '.join(changed)} changed while the trial ran")
            figures = read_figures(self.folder / f"{printed}.log")
            score = figures.get(self.task.metric)
            if score is None:
                return self._outcome(None, f"{printed}.log holds no line `{self.task.metric}: NUMBER`")
            if not math.isfinite(score):
                return self._outcome(None, f"{self.task.metric} is {score}, not a finite number")
            return self._outcome(score, "", figures)
        except TrialStopped:
            return dataclasses.replace(self._outcome(None, "stopped by the user"), stopped=True)
        except TrialSuspended as suspended:
            return dataclasses.replace(self._outcome(None, "suspended"), suspended=suspended.args[0])
        finally:
            if referee:
                referee.end("not needed")
            (self.folder / "process").unlink(missing_ok=True)

    def rehearse(self) -> str | None:
        """Run the preflight on the editable files. Why a trial would be wasted, or None: also when it could not tell."""
        self._make_folders()
        for name in self.task.editable:
            try:
                reason = self._finish(
                    "preflight", self._start("preflight", shlex.join([sys.executable, preflight.__file__, name]))
                )
            except TrialStopped:
                return "stopped by the user"
            if reason == "exit code 1":
                return last_line(self.folder / "preflight.log") or reason
        return None

    def guard(self) -> str | None:
        """Run the guard command. Why the edit must not be kept, or None."""
        reason = self._condition("guard", self.task.guard)
        return reason and f"the guard failed: {reason}"

    def holdout(self) -> tuple[str | None, dict[str, float]]:
        """Run the holdout command. (Why the score cannot stand, or None; what it measured.)"""
        reason = self._condition("holdout", self.task.holdout)
        return reason, read_figures(self.folder / "holdout.log")

    def tidy(self, keep_weights: bool) -> None:
        """Remove what takes space and can be made again: temporary files, and of a trial that was not kept all but its figures."""
        for path in (self.folder / "tmp", *(self.outputs[1:] if self.overfull else ())):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / "run").iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif not keep_weights and path.name != "figures.json":
                path.unlink()

    def _make_folders(self) -> None:
        for path in (*self.outputs, self.folder / "tmp", self.folder / "run/tmp"):
            path.mkdir(parents=True, exist_ok=True)

    def _condition(self, phase: str, command: str | None) -> str | None:
        if not command:
            return None
        try:
            reason = self._finish(phase, self._start(phase, command))
        except TrialStopped:
            return "stopped by the user"
        return reason and self._explain(phase, reason)

    def _start(self, phase: str, command: str, on_stdin: bool = False, channel: socket.socket | None = None) -> Process:
        environment, rules, write = self.environment, None, []
        if phase in ("score", "holdout") and self.task.referee:
            environment = {
                **environment,
                "TMPDIR": str(self.folder / "tmp"),
                "AUTORESEARCH_CONFINE": json.dumps(sandbox.launcher(self._rules(["$TMPDIR"]))),
            }
        else:
            write = [str(self.folder / "run"), *(environment[name] for name in CACHES), *self.task.writable]
            rules = self._rules(write)
        process = Process(
            command_words(command), self.stage, environment, self.folder / f"{phase}.log", rules, on_stdin, channel
        )
        with open(self.folder / "process", "a") as file:
            file.write(process.identifier + "\n")
        return process

    def _rules(self, write: list[str]) -> dict[str, list[str]] | None:
        if self.confine is None:
            return None
        read = [
            str(self.stage),
            str(self.folder / "run"),
            preflight.__file__,
            *self.task.readable,
            *self.confine.get("readable", []),
        ]
        return {"read": read, "write": write, "hidden": self.confine.get("hidden", [])}

    def _finish(self, phase: str, process: Process, extra: float = 0.0) -> str:
        self.show(phase)
        ended = process.wait(
            self.limits[phase] + extra, self.stopped, lambda: self.show(None), lambda: self._excess(process)
        )
        self.seconds[phase] = ended.seconds - extra
        shorten(self.folder / f"{phase}.log")
        keys.scrub_file(self.folder / f"{phase}.log")
        if phase == "train":
            self.peak_memory = ended.peak_memory
            if progress := read_progress(self.folder):
                began = time.time() - ended.seconds
                self.seconds["training"] = round(
                    min(progress.budget, max(0.0, ended.seconds - max(0.0, progress.clock - began))), 3
                )
        if ended.exit_code is None and self.stopped():
            raise TrialStopped
        if ended.suspended and (phase == "train" or (phase == "score" and ended.reason)):
            raise TrialSuspended(ended.suspended)
        return ended.reason

    def _excess(self, process: Process) -> str | None:
        """Why a command must end now: it uses more of the machine than it may."""
        memory = process.memory()
        if memory > self.memory_limit:
            return f"ended because it held {memory / 2**30:.1f} GiB of host memory; {self.memory_limit / 2**30:.1f} are allowed"
        if free_memory() < NEARLY_NOTHING <= self.memory_free:
            return "ended because the machine had next to no memory left"
        free = shutil.disk_usage(self.folder).free
        if free < NEARLY_NOTHING <= self.disk_free:
            self.overfull = True
            return "ended because the disk was nearly full"
        limit = self.task.disk_limit * 2**30
        if self.disk_free - free > limit:  # cheap to ask; then exactly
            used = disk_usage(self.outputs) - self.disk_used
            if used > limit:
                self.overfull = True
                return f"ended because it had written {used / 2**30:.1f} GiB; {self.task.disk_limit:g} are allowed"
        return None

    def _explain(self, phase: str, reason: str) -> str:
        line = last_word(self.folder / f"{phase}.log")
        if line and reason == "exit code 1":  # which says nothing that the line does not
            return line
        return f"{reason}: {line}" if line else reason

    def _outcome(self, score: float | None, reason: str, figures: dict[str, float] | None = None) -> Outcome:
        figures = figures or {}
        megabytes = figures.get("peak_vram_mb", math.nan)
        if not math.isfinite(megabytes):
            megabytes = self.peak_memory / 2**20
        return Outcome(score, reason, 0.0 if score is None else megabytes / 1024, figures, dict(self.seconds))


def shorten(log: Path) -> None:
    """Leave the middle out of a log that is longer than anybody reads."""
    size = log.stat().st_size
    if size > 2 * LOG_KEPT:
        with open(log, "r+b") as file:
            file.seek(size - LOG_KEPT)
            end = file.read()
            file.seek(LOG_KEPT)
            file.write(b"\n[%d bytes are left out here]\n" % (size - 2 * LOG_KEPT) + end)
            file.truncate()


def end_left_overs(folder: Path) -> bool:
    """End what a trial's commands left running when the loop was killed. True if there was something."""
    try:
        identifiers = (folder / "process").read_text().split("\n")
    except OSError:
        return False
    (folder / "process").unlink()
    return any([end_left_over(identifier) for identifier in identifiers if identifier])


def free_memory() -> int:
    """Bytes of host memory that can be had: the machine's, and the container's where that is less."""
    with open("/proc/meminfo") as lines:
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for folder, limit_file, used_file, prefix in CONTAINER_LIMITS:
        try:
            limit, used = (int((folder / name).read_text()) for name in (limit_file, used_file))
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(
                int(counts[prefix + name]) for name in ("inactive_file", "active_file")
            )  # given up when needed
            free = min(free, limit - used + cached)
        except (OSError, ValueError, KeyError):
            pass  # no limit, or not of this kind
    return free


def disk_usage(folders: list[Path]) -> int:
    """Bytes on the disk below the folders."""
    total = 0
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(parent, name)).st_blocks * 512
                except OSError:
                    pass  # removed meanwhile
    return total


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


def finite(figures: dict[str, float]) -> dict[str, float]:
    """Without what JSON cannot hold."""
    return {name: value for name, value in figures.items() if abs(value) < float("inf")}


def holdout_score(figures: dict[str, float], task: Task) -> float | None:
    """The score that the holdout command printed."""
    return finite(figures).get(f"holdout_{task.metric.removeprefix('val_')}")


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
