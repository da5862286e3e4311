"""The progress of a training, as it reports it in progress.json in its run folder.

A trial could write anything there, so only numbers are read from it.
"""

import dataclasses
import math
from pathlib import Path

from autoresearch.files import read_json


def longest_start(budget: float) -> float:
    """Seconds that a training under a referee has for importing, building and compiling, before its clock starts."""
    return max(120.0, budget)


@dataclasses.dataclass
class Progress:
    """All times in seconds."""

    clock: float  # when its clock started, since 1970
    budget: float  # of training
    loss: float | None = None
    step: int | None = None


def number_in(found: dict, name: str) -> float | None:
    """A finite number of a reasonable size, or None."""
    value = found.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return value if number and math.isfinite(value) else None


def read_progress(folder: Path) -> Progress | None:
    """The progress that a training reports; None before its clock starts, or if the report is impossible."""
    found = read_json(folder / "run/progress.json")
    clock, budget, loss, step = (number_in(found, name) for name in ("clock", "budget", "loss", "step"))
    if clock is None or budget is None or budget <= 0:
        return None
    return Progress(clock, budget, loss, None if step is None else int(step))
