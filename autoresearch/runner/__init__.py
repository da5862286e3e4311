"""Where trials run: the loop gives a Job to a Runner and gets a Measurement back.

local.py runs jobs as sandboxed processes on this machine, cluster.py on the nodes of a cluster. To add another kind,
write a class with the methods of Runner that can be created with the arguments of Local, and pass it as `make` to
Run.open (commands.night does this for the cluster). Logs and progress of its trials must appear in the run's folder,
where the views look for them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the referee imports this package for sandbox.py, and must start quickly
    from autoresearch.task import Facts

PREFLIGHT, AHEAD, TRAIN, SCORE, GUARD, HOLDOUT = "preflight", "ahead", "train", "score", "guard", "holdout"
LOG_END = 4000  # bytes at the end of a log, for agents and pages


@dataclasses.dataclass(frozen=True)
class Seat:
    """A place that runs one trial at a time: a GPU, or a share of the CPU."""

    number: int
    device: Mapping[str, str] = dataclasses.field(default_factory=dict)  # environment variables that select it
    node: str = ""  # on a cluster: the node that it is on
    kind: str = ""  # on a cluster: the kind of its device


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything needed for some phases of a trial: which phases, on which files.

    A trial's guard and holdout are a separate job under the same name, so that they find what its training saved.
    """

    name: str  # of the trial: 17, 17-again, verify/champion-1042
    files: Mapping[str, bytes]  # the editable files; all others are those of the commit that the run began with
    seed: int
    phases: tuple[str, ...] = (TRAIN, SCORE)  # or PREFLIGHT or AHEAD alone, or of GUARD and HOLDOUT
    fresh_caches: bool = False  # compile again, with separate caches
    gone: tuple[str, ...] = ()  # editable files of that commit that were deleted


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The result of a job."""

    score: float | None = None
    reason: str = ""  # why there is no score, or why a check failed, in one line; empty: no failure
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the numeric `key: value` lines it printed
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by phase; `training`: of its clock
    memory_gb: float = 0.0
    suspended: float = 0.0  # seconds for which the trial was suspended: if above 0, it does not count
    taken: float | None = None  # share of the CPU, or of the GPU, that others used meanwhile; None: not known
    taken_by: str = ""  # the same as text, if it was not other programs on the CPU
    failed: str = ""  # the phase that `reason` is about


@dataclasses.dataclass(frozen=True)
class Phase:
    """Passed to the callback of a job when one of its phases begins."""

    name: str
    folder: str  # where its log and progress are, for the views
    node: str = ""  # on a cluster: the node that it runs on


class SeatLost(Exception):
    """The seat of a running trial is gone; the text says why. The edit is not to blame, and runs again."""


class Runner(Protocol):
    seats: Sequence[Seat]  # all seats; replaced by a new list when some have come or gone

    @property
    def room(self) -> int:
        """How many more seats may join if there is work for them: prepare this many more attempts."""
        ...

    def want(self, trials: int, busy: Sequence[Seat]) -> None:
        """Called again and again with the number of trials that could run at once, and the seats that are busy. 0: no
        more trials will begin, and idle seats may be given back."""
        ...

    async def run(self, job: Job, seat: Seat, tell: Callable[[Phase], None]) -> Measurement:
        """Run a job. If cancelled, end all its processes. Raises UserError for errors that only a person can fix,
        OSError if a full disk kept it from running, and SeatLost if the seat is gone. Never raises for failures of the
        job's commands."""
        ...

    async def quiet(self, seat: Seat, most: float, limit: float) -> bool:
        """Wait until other programs use at most the share `most` of a seat's machine, but at most `limit` seconds.
        Returns whether they do."""
        ...

    def tidy(self, name: str, keep_weights: bool) -> None:
        """Remove the files of a trial except its logs and figures and, with keep_weights, its weights."""
        ...

    def log(self, name: str, limit: int = LOG_END, phases: Sequence[str] = (TRAIN, SCORE)) -> str:
        """The end of the output of a trial's commands: at most `limit` bytes of each phase."""
        ...

    def log_path(self, name: str) -> Path:
        """Where a person finds the log of a trial's training."""
        ...

    async def open(self, show: "Callable[[Facts], None]", require: "Callable[[Facts], None]") -> "Facts":
        """Set up the game where trials run, and return its facts. show: called with the facts before the slow steps.
        require: raises UserError if the facts are not those of the run. Raises UserError."""
        ...
