"""Verify: what a run may claim. Its codes run again with fresh seeds, in turn, and the gain gets an interval.

The loop chose its champion because it scored well, so the score that made it champion flatters it. Fresh
scores do not. Leaving out one kept change after the other says which of them carry the gain.
"""

import dataclasses
from collections.abc import Sequence

from autoresearch.judge import RULES, judge, mean, noise_scale, standard_error
from autoresearch.ledger import Attempt, Ledger

FRESH = 1000                        # the seeds of `verify` are the run's seed plus this, and on
CONFIDENCE = 0.95
BASELINE, CHAMPION, PRUNED = "baseline", "champion", "pruned"


@dataclasses.dataclass(frozen=True)
class Code:
    """A commit that is run again, and what it is called in the record."""

    name: str                       # baseline, champion, without N, pruned
    commit: str


def without(number: int) -> str:
    """The name of the champion without the change of one experiment."""
    return f"without {number}"


def plan(codes: Sequence[Code], seed: int, runs: int) -> list[tuple[Code, int]]:
    """What to run, with which seed: all codes in turn, so that a machine that changes its speed changes it for all."""
    return [(code, seed + FRESH + number) for number in range(runs) for code in codes]


def is_done(ledger: Ledger, code: Code, seed: int) -> bool:
    """Whether this code has its score of that seed, run in turn with the present champion. What failed is run once more."""
    return any(event["commit"] == code.commit and event["champion"] == ledger.champion.commit and event["seed"] == seed
               and event["score"] is not None for event in ledger.verified)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A gain, positive when better, with its 95% confidence interval."""

    gain: float
    error: float                    # standard error
    low: float
    high: float
    runs: tuple[int, int]           # of the one and the other

    def __str__(self) -> str:
        return f"{signed(self.gain)} ({signed(self.low)} to {signed(self.high)})"


def signed(value: float) -> str:
    """A gain with its sign; nothing is `+0.000000`."""
    return f"{round(value, 6) + 0.0:+.6f}"


def estimate(before: Sequence[float], after: Sequence[float], groups: Sequence[Sequence[float]], lower_is_better: bool) -> Estimate | None:
    """The gain of `after` over `before`: difference of means, and Student's interval with the variance of all groups pooled.

    groups: scores of each code, these two included. None where there is nothing to go by: one of them has no
    score, or no code has two.
    """
    from scipy import stats         # a second that most commands need not wait

    degrees = sum(max(0, len(group) - 1) for group in groups)
    if not before or not after or not degrees:
        return None
    gain = (mean(before) - mean(after)) * (1 if lower_is_better else -1)
    error = standard_error(noise_scale(groups), before, after)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    return Estimate(gain, error, gain - reach, gain + reach, (len(before), len(after)))


@dataclasses.dataclass(frozen=True)
class Part:
    """What one kept change is worth: what is lost when it alone is left out of the champion."""

    attempt: Attempt
    worth: Estimate | None          # None where that could not be measured
    says: str                       # in a few words
    dead: bool = False              # the judge, given these runs, would not have kept it


@dataclasses.dataclass(frozen=True)
class Findings:
    """What `verify` found about the present champion."""

    gain: Estimate | None           # over the baseline; None where there are too few scores
    holdout: Estimate | None        # the same, on rows that no decision read
    parts: list[Part]               # in order; empty without --ablate
    pruned: Estimate | None         # gain of the pruned branch over the champion: about 0 when nothing was lost
    pruned_commit: str | None
    scores: dict[str, list[float]]  # fresh scores by name
    holdouts: dict[str, list[float]]
    failed: list[str]               # codes that have no score with some seed, and why


def findings(ledger: Ledger, lower_is_better: bool, line_price: float) -> Findings | None:
    """What the record says of the present champion; None if `verify` has run nothing of it."""
    champion = ledger.champion and ledger.champion.commit
    events = [event for event in ledger.verified if event["champion"] == champion]
    if not events:
        return None
    pruned = next((event["commit"] for event in reversed(events) if event["name"] == PRUNED), None)
    events = [event for event in events if event["name"] != PRUNED or event["commit"] == pruned]
    latest = {(event["name"], event["seed"]): event for event in events}        # what failed may have run again
    scores, holdouts, reasons, failures = {}, {}, {}, {}
    for (name, seed), event in latest.items():
        for values, key in ((scores, "score"), (holdouts, "holdout")):
            if event[key] is not None:
                values.setdefault(name, []).append(event[key])
        if event["score"] is None:
            reasons[name] = event["reason"]
            failures[name] = failures.get(name, 0) + (seed is not None)

    def compare(before: str, after: str, values: dict[str, list[float]] = scores) -> Estimate | None:
        return estimate(values.get(before, []), values.get(after, []), list(values.values()), lower_is_better)

    def part(attempt: Attempt) -> Part:
        name = without(attempt.number)
        if (worth := compare(name, CHAMPION)) is None:
            return Part(attempt, None, f"not measured: {reasons.get(name, 'too few runs')}")
        rule = dataclasses.replace(RULES["margin"], line_price=line_price)
        noise = noise_scale([fresh for code, fresh in scores.items() if code != PRUNED])       # what goes must not depend on what went
        verdict = judge(scores[CHAMPION], scores[name], noise, attempt.lines or 0, rule, lower_is_better)
        dead = verdict.status == "discard"
        return Part(attempt, worth, "carries" if worth.low > 0 else "no gain shown, can go" if dead else "not shown either way", dead)

    return Findings(
        gain=compare(BASELINE, CHAMPION), holdout=compare(BASELINE, CHAMPION, holdouts),
        parts=[part(attempt) for attempt in ledger.kept[1:] if without(attempt.number) in {*scores, *reasons}],
        pruned=compare(CHAMPION, PRUNED), pruned_commit=pruned, scores=scores, holdouts=holdouts,
        failed=[f"{name} has no score" + (f" in {failures[name]} of its runs" if failures[name] else "") + f": {reason}" for name, reason in reasons.items()],
    )
