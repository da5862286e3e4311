"""The past of a run, as people see it: a row for each attempt, and what follows from the verdicts so far."""

import collections
import dataclasses
import functools
import itertools
import math
import statistics

from autoresearch.record.findings import Findings, doubt, findings
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.task import Facts
from autoresearch.text import one_line

STATUSES = ("keep", "discard", "crash")
CURVE = 60  # points of the curve
LAST = 10  # verdicts that are shown
TYPICAL = 9  # trials from which the time of the next one is estimated


@dataclasses.dataclass
class Row:
    """One attempt, as tables show it. What is not known is None."""

    number: int
    status: str  # keep, discard, crash; waiting: it has no verdict yet
    score: float | None  # on the kind of device that decides
    gain: float | None  # over the champion of its time, as the judge saw it: positive is better. None for the baseline
    error: float  # standard error of that gain, from the noise known at its verdict; 0 where none was known
    seconds: float | None
    description: str
    reason: str
    agent: str
    category: str
    commit: str
    time: float  # when it was committed
    lines: int | None  # of code that it adds, net
    tokens: int | None
    dollars: float | None
    holdout: float | None
    repairs: int
    predicted: float | None
    node: str = ""  # of a cluster, where it ran last


class Record:
    """What follows from the verdicts so far, computed when it is first asked for, once."""

    def __init__(self, ledger: Ledger) -> None:
        assert ledger.run is not None and ledger.task is not None
        self.ledger, self.run, self.task, self.size = ledger, ledger.run, ledger.task, ledger.size
        self.facts = ledger.facts or Facts()
        self.sign = 1 if self.task.lower_is_better else -1

    def latest(self) -> "Record":
        """This one, or a new one when the journal has grown."""
        return self if self.size == self.ledger.size else Record(self.ledger)

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Verdicts by status, the baseline's included."""
        found = collections.Counter(attempt.status for attempt in self.ledger.finished)
        return {status: found[status] for status in STATUSES}

    @functools.cached_property
    def tried(self) -> list[Row]:
        """What has a verdict and came after the baseline, in the order of the verdicts."""
        return [self.row(attempt) for attempt in self.ledger.tried]

    @functools.cached_property
    def kept(self) -> list[Row]:
        """The baseline, and what was kept after it."""
        return [self.row(attempt) for attempt in self.ledger.kept]

    @functools.cached_property
    def tried_counts(self) -> dict[str, int]:
        """Verdicts by status, of what came after the baseline."""
        found = collections.Counter(attempt.status for attempt in self.ledger.tried)
        return {status: found[status] for status in STATUSES}

    @functools.cached_property
    def keep_rate(self) -> float | None:
        """The share of the changes that were kept."""
        tried = sum(self.tried_counts.values())
        return self.tried_counts["keep"] / tried if tried else None

    @functools.cached_property
    def gain(self) -> float | None:
        """Of the champion over the baseline: positive is better. In the run itself, so it flatters."""
        kept = self.ledger.kept
        if not kept or kept[0].score is None or kept[-1].score is None:
            return None
        return self.sign * (kept[0].score - kept[-1].score)

    @functools.cached_property
    def curve(self) -> list[float]:
        """The best score so far, at most CURVE points, the last one the champion's."""
        curve: list[float] = []
        best = None
        for attempt in self.ledger.finished:
            best = attempt.score if attempt.status == "keep" else best
            curve += [] if best is None else [best]
        step = max(1.0, len(curve) / CURVE)
        return [curve[min(len(curve) - 1, math.ceil((i + 1) * step) - 1)] for i in range(min(len(curve), CURVE))]

    @functools.cached_property
    def champions(self) -> list[tuple[int, float]]:
        """(Experiment, score) of each champion, in the order in which they were kept, for a curve over the experiments.

        Trials beside one another do not end in the order of their numbers. A champion that followed one with a higher
        number begins there.
        """
        kept = [(attempt.number, attempt.score) for attempt in self.ledger.kept if attempt.score is not None]
        begun = itertools.accumulate((number for number, _ in kept), max)
        return [(number, score) for number, (_, score) in zip(begun, kept, strict=True)]

    @functools.cached_property
    def last(self) -> list[Row]:
        """The last verdicts, the newest first."""
        return [self.row(attempt) for attempt in self.ledger.finished[: -LAST - 1 : -1]]

    @functools.cached_property
    def typical(self) -> tuple[float | None, float]:
        """(Seconds of a trial; None where that is not known; seconds of it after its training.)"""
        newest = self.ledger.finished[-3 * TYPICAL :]
        known = [a.seconds for a in newest if a.score is not None and (a.seconds or {}).get("wall")][-TYPICAL:]
        if not known:
            return None, 0.0
        after = (max(0.0, seconds["wall"] - seconds.get("train", 0.0)) for seconds in known)
        return statistics.median(seconds["wall"] for seconds in known), statistics.median(after)

    @functools.cached_property
    def seconds(self) -> float:
        """Seconds of all trials that have a verdict."""
        finished = self.ledger.finished
        return sum((attempt.seconds or {}).get("wall", 0.0) + attempt.screening_seconds for attempt in finished)

    @functools.cached_property
    def noise(self) -> float:
        """The standard deviation of scores of identical code, as far as this run knows it; 0 if it does not."""
        return self.ledger.noise()

    @functools.cached_property
    def findings(self) -> Findings | None:
        """What `verify` found; None where it has not run."""
        return findings(self.ledger, self.task.lower_is_better, self.task.line_price)

    @functools.cached_property
    def doubt(self) -> str:
        """Why the kept changes are not to be believed, taken together; empty where nothing speaks against them."""
        return doubt(self.ledger.kept)

    @functools.cached_property
    def _kept_by_commit(self) -> dict[str, Attempt]:
        return {attempt.commit: attempt for attempt in self.ledger.kept}

    def row(self, attempt: Attempt) -> Row:
        gain, error = None, 0.0
        base = None if attempt.is_baseline else self._kept_by_commit.get(attempt.parent)
        standing = base.score if attempt.standing is None and base else attempt.standing
        if not attempt.is_baseline and attempt.score is not None and standing is not None:
            gain = self.sign * (standing - attempt.score)
            _, in_turn = self.ledger.turns(attempt.number)
            runs = max(1, len(in_turn or attempt.own)), max(1, attempt.standing_runs)
            error = (attempt.noise or 0.0) * math.sqrt(1 / runs[0] + 1 / runs[1])
        return Row(
            number=attempt.number,
            status=attempt.status or "waiting",
            score=None if attempt.is_screened else attempt.score,
            gain=gain,
            error=error,
            seconds=(attempt.seconds or {}).get("wall"),
            description=one_line(attempt.description),
            reason=one_line(attempt.reason or ""),
            agent=attempt.agent,
            category=attempt.category,
            commit=attempt.commit,
            time=attempt.time,
            lines=attempt.lines,
            tokens=attempt.tokens,
            dollars=attempt.dollars,
            holdout=attempt.holdout,
            repairs=attempt.repairs,
            predicted=attempt.predicted,
            node=attempt.node,
        )
