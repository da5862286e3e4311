"""Findings: what the runs of `verify` say about a run's gain. Pure functions; nothing runs here.

The loop chose its champion because it scored well, so the score that made it champion is too good on average. Fresh
scores are not. Leaving out each kept change in turn shows which of them the gain depends on.
"""

import dataclasses
import math
from collections.abc import Sequence

from autoresearch.judge import RULES, judge, mean, noise_scale, standard_error
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.text import signed

CONFIDENCE = 0.95
STANDARD_ERRORS = 4.0  # by which the probes of all keeps together may say that the scores are too good
BASELINE, CHAMPION, PRUNED = "baseline", "champion", "pruned"  # names of codes in the record


def without(number: int) -> str:
    """The name of the champion without the change of one experiment."""
    return f"without {number}"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A gain, positive when better, with its 95% confidence interval."""

    gain: float
    error: float  # standard error
    low: float
    high: float
    runs: tuple[int, int]  # of the one and the other

    @property
    def claim(self) -> str:
        """What it shows, if it is the champion's gain over the baseline."""
        return "a gain" if self.low > 0 else "no gain shown" if self.high > 0 else "the champion is worse"

    def __str__(self) -> str:
        return f"{signed(self.gain)} ({signed(self.low)} to {signed(self.high)})"


@dataclasses.dataclass(frozen=True)
class Part:
    """What one kept change is worth: what is lost when it alone is left out of the champion."""

    attempt: Attempt
    worth: Estimate | None  # None where that could not be measured
    says: str  # in a few words
    removable: bool = False  # the judge, given these runs, would not have kept it


@dataclasses.dataclass(frozen=True)
class Findings:
    """What `verify` found about the present champion."""

    gain: Estimate | None  # over the baseline; None where there are too few scores
    holdout: Estimate | None  # the same, on rows that no decision read
    parts: list[Part]  # in order; empty without --ablate
    pruned: Estimate | None  # gain of the pruned branch over the champion: about 0 when nothing was lost
    pruned_commit: str | None
    scores: dict[str, list[float]]  # fresh scores by name
    holdouts: dict[str, list[float]]
    failed: list[str]  # codes that have no score with some seed, and why


def findings(ledger: Ledger, lower_is_better: bool, line_price: float) -> Findings | None:
    """What the record says of the present champion; None if `verify` has run nothing of it."""
    champion = ledger.champion and ledger.champion.commit
    events = [event for event in ledger.verified if event.champion == champion]
    if not events:
        return None
    pruned = next((event.commit for event in reversed(events) if event.code == PRUNED), None)
    events = [event for event in events if event.code != PRUNED or event.commit == pruned]
    latest = {(event.code, event.seed): event for event in events}  # what failed may have run again
    scores: dict[str, list[float]] = {}
    holdouts: dict[str, list[float]] = {}
    reasons: dict[str, str] = {}
    failures: dict[str, int] = {}
    for (code, seed), event in latest.items():
        for values, value in ((scores, event.score), (holdouts, event.holdout)):
            if value is not None:
                values.setdefault(code, []).append(value)
        if event.score is None:
            reasons[code] = event.reason
            failures[code] = failures.get(code, 0) + (seed is not None)

    def compare(before: str, after: str, values: dict[str, list[float]] = scores) -> Estimate | None:
        return estimate(values.get(before, []), values.get(after, []), list(values.values()), lower_is_better)

    def part(attempt: Attempt) -> Part:
        name = without(attempt.number)
        if (worth := compare(name, CHAMPION)) is None:
            return Part(attempt, None, f"not measured: {reasons.get(name, 'too few runs')}")
        rule = dataclasses.replace(RULES["margin"], line_price=line_price)
        # Without the pruned code: what can be removed must not depend on what was removed.
        noise = noise_scale([fresh for code, fresh in scores.items() if code != PRUNED])
        verdict = judge(scores[CHAMPION], scores[name], noise, attempt.lines or 0, rule, lower_is_better)
        removable = verdict.status == "discard"
        says = "carries" if worth.low > 0 else "no gain shown, can go" if removable else "not shown either way"
        return Part(attempt, worth, says, removable)

    return Findings(
        gain=compare(BASELINE, CHAMPION),
        holdout=compare(BASELINE, CHAMPION, holdouts),
        parts=[part(attempt) for attempt in ledger.kept[1:] if without(attempt.number) in {*scores, *reasons}],
        pruned=compare(CHAMPION, PRUNED),
        pruned_commit=pruned,
        scores=scores,
        holdouts=holdouts,
        failed=[
            f"{code} has no score" + (f" in {failures[code]} of its runs" if failures[code] else "") + f": {reason}"
            for code, reason in reasons.items()
        ],
    )


def doubt(kept: Sequence[Attempt]) -> str:
    """What the probes of the holdout say of all kept changes together (docs/trust.md), where they disagree with the
    scores by more than chance explains; else empty.

    kept: the baseline first. Each keep was probed by itself, so each was within what one scoring allows; what a leak
    brings adds up over the keeps faster than chance.
    """
    probed = [
        attempt.figures for attempt in kept[1:] if {"holdout_gap", "holdout_error"} <= (attempt.figures or {}).keys()
    ]
    gap = sum(figures["holdout_gap"] for figures in probed)
    chance = STANDARD_ERRORS * sum(figures["holdout_error"] ** 2 for figures in probed) ** 0.5
    if gap <= chance:
        return ""
    return (
        f"the scores of the kept changes are too good, taken together: {gap:.4f} bits a byte over {len(probed)} of "
        f"them do not hold on tokens that no model process had seen; chance explains {chance:.4f}. Read their diffs"
    )


def estimate(
    before: Sequence[float], after: Sequence[float], groups: Sequence[Sequence[float]], lower_is_better: bool
) -> Estimate | None:
    """The gain of `after` over `before`: difference of means, Student's interval, variance of all groups pooled.

    groups: scores of each code, these two included. None where that cannot be said: one of them has no score, or no
    code has two.
    """
    degrees = sum(max(0, len(group) - 1) for group in groups)
    if not before or not after or not degrees:
        return None
    gain = (mean(before) - mean(after)) * (1 if lower_is_better else -1)
    error = standard_error(noise_scale(groups), before, after)
    reach = student_reach(CONFIDENCE, degrees) * error
    return Estimate(gain, error, gain - reach, gain + reach, (len(before), len(after)))


def student_reach(confidence: float, degrees: int) -> float:
    """How many standard errors a symmetric interval of Student's distribution reaches to either side.

    degrees: of freedom. By bisection on the finite sums for the probability of |t| (Abramowitz and Stegun, Handbook of
    Mathematical Functions, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2  # whose tangent is t / sqrt(degrees)
        term = math.cos(angle) if degrees % 2 else 1.0
        terms = [term] if degrees > 1 else []
        for power in range(2 + degrees % 2, degrees - 1, 2):
            term *= math.cos(angle) ** 2 * (power - 1) / power
            terms.append(term)
        inside = math.sin(angle) * math.fsum(terms)
        if degrees % 2:
            inside = 2 / math.pi * (angle + inside)
        low, high = (angle, high) if inside < confidence else (low, angle)
    return math.sqrt(degrees) * math.tan(low)
