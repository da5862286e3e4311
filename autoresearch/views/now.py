"""now.json: what a loop does at this moment. Its console writes the file; any process may read it.

It is in the run's folder, .autoresearch/<tag>/, and written whenever something begins or ends.
"""

import contextlib
import dataclasses
import json
from pathlib import Path

from autoresearch.files import read_json, write_whole
from autoresearch.runner.identity import identify

LARGEST = 1 << 22  # bytes of the file: a trial takes about 300


@dataclasses.dataclass
class Running:
    """A trial that runs. Times are seconds since 1970."""

    number: int
    worker: int
    label: str  # what it is, in words
    began: float
    phase: str = ""
    since: float = 0.0  # when the phase began
    folder: str = ""  # where its logs and its progress are
    node: str = ""  # of a cluster, where it runs

    @property
    def log(self) -> Path:
        return Path(self.folder) / f"{self.phase}.log"


@dataclasses.dataclass
class Thinking:
    """An agent that works on a proposal."""

    number: int
    agent: str
    since: float


@dataclasses.dataclass
class Now:
    """What a loop does at this moment."""

    process: str  # process id and start time, which name it for good
    since: float  # when it was called
    limits: dict[str, float]  # by option, without dashes: experiments, hours, max-cost, max-tokens
    trials: list[Running] = dataclasses.field(default_factory=list)
    thinking: list[Thinking] = dataclasses.field(default_factory=list)  # proposals that are worked on
    stopping: bool = False  # it was asked to stop
    external: bool = False  # an external agent called it: it ends with its verdict

    def write(self, folder: Path) -> None:
        """Into now.json, whole or not at all. A full disk is no reason to stop: the present is not the record."""
        with contextlib.suppress(OSError):
            write_whole(folder / "now.json", json.dumps(dataclasses.asdict(self)), lasting=False)


def read_now(folder: Path, pid: int) -> Now | None:
    """What the loop of a process does; None where it has not said, or another loop has."""
    found = read_json(folder / "now.json", LARGEST)
    try:
        now = Now(
            process=found["process"],
            since=found["since"],
            limits=found["limits"],
            trials=[Running(**trial) for trial in found["trials"]],
            thinking=[Thinking(**one) for one in found["thinking"]],
            stopping=found["stopping"],
            external=found.get("external", False),
        )
    except (TypeError, KeyError):
        return None
    inside = all(Path(trial.folder).is_relative_to(folder) and ".." not in trial.folder for trial in now.trials)
    return now if inside and now.process == identify(pid) else None
