"""What was tried, as briefs tell it. Each attempt is taken in once, so that a brief costs what it shows and no more,
however long the run is.
"""

import bisect
import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from statistics import median

from autoresearch.constants import literal
from autoresearch.markdown import fence, first, last, size
from autoresearch.record.ledger import ABANDONED, Attempt, is_a_miss
from autoresearch.text import count, one_line, signed

NEAR_MISSES = 5
VALUES = 8  # of a constant, the newest, that are shown
NEWEST = 8  # attempts that are told in full before older ones are told in short
RESTATES = re.compile("than the champion's|equals the champion's|is not above the")  # a reason that says no more


@dataclasses.dataclass
class Category:
    """What came of a kind of change."""

    tried: int = 0
    kept: int = 0
    best: float | None = None  # change of the metric


class Tried:
    """The attempts of a run, as far as they have a verdict. Only a person takes one back, and no loop runs then."""

    def __init__(self, lower_is_better: bool, attempts: Iterable[Attempt] = ()) -> None:
        self.sign = 1 if lower_is_better else -1
        self.attempts: list[Attempt] = []  # in the order of their verdicts
        self.kept: list[str] = []  # in a line each
        self._lines: list[tuple[str, str]] = []  # of each attempt, in short and in full
        self._by_commit: dict[str, Attempt] = {}
        self._missed: list[tuple[float, int, Attempt]] = []  # the nearest misses, the nearest first
        self._categories: dict[str, Category] = {}
        self._predicted: list[float] = []  # changes of the metric, by size; and what was measured of these
        self._measured: list[float] = []
        self._gains = 0  # of these
        self._constants: dict[str, collections.deque[tuple[Attempt, list]]] = {}  # by name, what was tried by itself
        for attempt in attempts:
            self.add(attempt)

    def add(self, attempt: Attempt) -> None:
        """Take in an attempt that has just got its verdict."""
        self.attempts.append(attempt)
        self._by_commit[attempt.commit] = attempt
        self._lines.append((in_short(attempt), in_full(attempt, self._by_commit.get(attempt.parent))))
        change = change_of(attempt)
        if attempt.status == "keep" and not attempt.is_baseline:
            self.kept.append(with_its_change(attempt))
        if is_a_miss(attempt) and change is not None:
            bisect.insort(self._missed, (self.sign * change, -attempt.number, attempt))
            del self._missed[NEAR_MISSES:]
        if not attempt.is_baseline:
            category = self._categories.setdefault(attempt.category or "(none)", Category())
            category.tried += 1
            category.kept += attempt.status == "keep"
            if change is not None and (category.best is None or self.sign * (change - category.best) < 0):
                category.best = change
        if attempt.predicted and change is not None:
            bisect.insort(self._predicted, attempt.predicted)
            bisect.insort(self._measured, change)
            self._gains += self.sign * change < 0
        never_ran = attempt.was_outrun or attempt.reason in ABANDONED or attempt.reason.startswith("rejected")
        if len(attempt.constants or {}) == 1 and (change is not None or not never_ran):
            ((name, values),) = (attempt.constants or {}).items()
            self._constants.setdefault(name, collections.deque(maxlen=VALUES)).append((attempt, values))

    @property
    def near_misses(self) -> list[Attempt]:
        """The discarded attempts that came closest to their champions, the closest first."""
        return [attempt for _, _, attempt in self._missed]

    def categories(self, space: int) -> str:
        """How often each kind of change was tried and kept, and its best change of the metric; empty without any."""
        lines = [
            f"{name}: {one.tried} tried, {one.kept} kept"
            + (f", best change {signed(one.best)}" if one.best is not None else "")
            for name, one in sorted(self._categories.items(), key=lambda item: -item[1].tried)
        ]
        return fence(first(lines, space)) if lines else ""

    def calibration(self) -> list[str]:
        """How good the predictions were."""
        if not self._predicted:
            return []
        predicted, measured = median(self._predicted), median(self._measured)
        said = f"Of {count(len(self._predicted), 'edit')} with a prediction {self._gains} gained at all. The median "
        return [f"{said}prediction was {signed(predicted)}, the median of what was measured {signed(measured)}."]

    def constants(self, texts: Mapping[str, str], space: int) -> str:
        """By constant, what each value did that was tried by itself, the newest last; empty without any.

        texts: of the constants as they are, by name.
        """

        def did(name: str, attempt: Attempt, values: list) -> str:
            old, new = (literal(value, texts.get(name.split(" ")[-1], "")) for value in values)
            moved, kept = change_of(attempt), " kept" if attempt.status == "keep" else ""
            return f"#{attempt.number} {old} -> {new} " + ("crash" if moved is None else signed(moved) + kept)

        told = (f"{name}: {', '.join(did(name, *one) for one in tried)}" for name, tried in self._constants.items())
        lines = last(told, space)
        return fence(lines) if lines else ""

    def history(self, space: int) -> str:
        """All attempts in at most `space` bytes: the newest in full, older ones in short, the oldest left out."""
        told, left = [], space
        for lines in reversed(self._lines):  # more than these do not fit, even in short
            told.append(lines)
            left -= size(lines[0])
            if left < 0:
                break
        short, full = [line for line, _ in reversed(told)], []
        shortened, total = len(short), sum(map(size, short))
        for line, whole in told:
            more = size(whole) - size(line)
            if total + more > space and len(full) >= NEWEST:
                break
            full.insert(0, whole)
            shortened, total = shortened - 1, total + more
        dropped = 0
        for spared in (NEWEST, 0):  # so many stay in full; if even these are too much, none
            while total > space and len(full) > spared:
                total += size(short[shortened]) - size(full.pop(0))
                shortened += 1
            while total > space - 100 and dropped < shortened:
                total -= size(short[dropped])
                dropped += 1
        lines = [*short[dropped:shortened], *full]
        if dropped or len(short) < len(self.attempts):
            oldest = self.attempts[dropped - 1 - len(short)].number
            lines.insert(0, f"(experiments 1 to {oldest} are counted in the table of categories)")
        return fence("\n".join(lines), space + 1000)


def in_short(attempt: Attempt) -> str:
    return f"{attempt.number}. {attempt.status}{changed(attempt)}: {one_line(headline(attempt), 90)}"


def in_full(attempt: Attempt, base: Attempt | None) -> str:
    """base: what it was built on."""
    said = f"{attempt.status}{changed(attempt)}{pace(attempt, base) if base else ''}"
    lines = [f"{attempt.number}. {said}: {headline(attempt)}"]
    if attempt.hypothesis:
        lines.append(f"hypothesis: {attempt.hypothesis}")
    if attempt.reason and not RESTATES.search(attempt.reason):
        lines.append(f"verdict: {one_line(attempt.reason)}")
    return "\n   ".join(lines)


def with_its_change(attempt: Attempt) -> str:
    return f"{attempt.number}. {signed(change_of(attempt) or 0)} {headline(attempt)}"


def change_of(attempt: Attempt) -> float | None:
    """The change of the metric, relative to the champion of the time; None where it is not known."""
    return None if attempt.score is None or attempt.standing is None else attempt.score - attempt.standing


def changed(attempt: Attempt) -> str:
    """`, predicted -0.002000, measured +0.010000`, as far as they are known."""
    changes = {"predicted": attempt.predicted, "measured": change_of(attempt)}
    return "".join(f", {name} {signed(change)}" for name, change in changes.items() if change is not None)


def pace(attempt: Attempt, base: Attempt) -> str:
    """`, 12% fewer steps`: how many it made in the same time, against what it was built on."""
    before, after = (one.figures.get("num_steps") for one in (base, attempt))
    if attempt.is_screened or not before or not after or abs(more := after / before - 1) < 0.02:
        return ""
    return f", {abs(more):.0%} {'more' if more > 0 else 'fewer'} steps"


def headline(attempt: Attempt) -> str:
    return (f"[{attempt.category}] " if attempt.category else "") + one_line(attempt.description)
