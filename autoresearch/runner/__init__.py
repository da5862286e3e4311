"""Where trials run: the loop hands a job to a runner and gets a measurement. How and where is the runner's business.

local.py runs jobs as confined processes on this machine, cluster.py on the nodes of a cluster. Another runner is one
more class with these methods, made where Run.open makes it; logs and progress of its trials have to appear in the run's
folder, where the views look for them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the referee imports this package for sandbox.py, and must start quickly
    from autoresearch.task import Facts

PREFLIGHT, TRAIN, SCORE, GUARD, HOLDOUT = "preflight", "train", "score", "guard", "holdout"
LOG_END = 4000  # bytes at the end of a log, for agents and pages


@dataclasses.dataclass(frozen=True)
class Seat:
    """A place where one trial at a time can run."""

    number: int
    device: Mapping[str, str] = dataclasses.field(default_factory=dict)  # environment variables that choose it
    node: str = ""  # of a cluster, where it is
    kind: str = ""  # of a cluster, its device


@dataclasses.dataclass(frozen=True)
class Job:
    """All that one piece of a trial needs: the commands of these phases, on these files.

    A trial's guard and holdout are a job of their own, under the trial's name: they find what its training saved.
    """

    name: str  # of the trial: 17, 17-again, verify/champion-1042
    files: Mapping[str, bytes]  # the editable files; all others are those of the commit that the run began with
    seed: int
    phases: tuple[str, ...] = (TRAIN, SCORE)  # or PREFLIGHT alone, or of GUARD and HOLDOUT
    fresh_caches: bool = False  # compile anew, in caches of its own
    gone: tuple[str, ...] = ()  # editable files of that commit that are not there


@dataclasses.dataclass(frozen=True)
class Measurement:
    """All that came of a job."""

    score: float | None = None
    reason: str = ""  # why there is no score, or why a check failed, in one line; empty: all went well
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the numeric `key: value` lines it printed
    seconds: Mapping[str, float] = dataclasses.field(
        default_factory=dict
    )  # wall clock by phase; `training` of the clock
    memory_gb: float = 0.0
    suspended: float = 0.0  # seconds for which it was suspended: then what was measured does not count
    taken: float | None = None  # share of the processors that others took while it trained; None: not known
    failed: str = ""  # the phase that `reason` is about


@dataclasses.dataclass(frozen=True)
class Phase:
    """Handed to the callback of a job when one of its phases begins."""

    name: str
    folder: str  # where its log and progress are, for those who watch
    node: str = ""  # of a cluster, where it runs


class SeatLost(Exception):
    """The place where a trial ran is gone. It says nothing about the edit, which runs again. The text says why."""


class Runner(Protocol):
    seats: Sequence[Seat]  # what can run at once; another list when some have come or gone

    @property
    def room(self) -> int:
        """Seats that may come beside these, if there is work for them: so many attempts more are worth having ready."""
        ...

    def want(self, trials: int, busy: Sequence[Seat]) -> None:
        """Told again and again how many trials could run at once, and on which seats some do. 0: no more will begin,
        and seats that are not busy may go."""
        ...

    async def run(self, job: Job, seat: Seat, tell: Callable[[Phase], None]) -> Measurement:
        """Run a job; cancelling it ends it, whole. Raises UserError for what only a person can put right, OSError where
        a full disk kept it from running, and SeatLost where the seat is gone. Never raises for what the job's commands
        do."""
        ...

    async def quiet(self, seat: Seat, most: float, limit: float) -> bool:
        """Wait until others use at most this share of a seat's machine, `limit` seconds at most. Whether they do."""
        ...

    def tidy(self, name: str, keep_weights: bool) -> None:
        """Remove what a trial left and nobody needs: all but its logs and figures, and the weights of what is kept."""
        ...

    def log(self, name: str, limit: int = LOG_END, phases: Sequence[str] = (TRAIN, SCORE)) -> str:
        """The end of what a trial's commands printed: at most `limit` bytes of each phase."""
        ...

    def log_path(self, name: str) -> Path:
        """Where a person finds the log of a trial's training."""
        ...

    async def open(self, show: "Callable[[Facts], None]", require: "Callable[[Facts], None]") -> "Facts":
        """Set the game up where trials run. show: told the facts before anything takes long. require: raises UserError
        for facts that are not those of the run. Raises UserError."""
        ...
