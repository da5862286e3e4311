"""Verify: what a run may claim. Its codes run again with fresh seeds, in turn, and the gain gets an interval.

The loop chose its champion because it scored well, so the score that made it champion flatters it. Fresh
scores do not. Leaving out one kept change after the other says which of them carry the gain.
"""

import dataclasses
import time
from collections.abc import Sequence

from autoresearch import count
from autoresearch.judge import RULES, judge, mean, noise_scale, standard_error
from autoresearch.lab import Lab
from autoresearch.ledger import Attempt, Ledger, one_line
from autoresearch.repo import short
from autoresearch.trial import holdout_score

FRESH = 1000  # the seeds of `verify` are the run's seed plus this, and on
CONFIDENCE = 0.95
BASELINE, CHAMPION, PRUNED = "baseline", "champion", "pruned"


@dataclasses.dataclass(frozen=True)
class Code:
    """A commit that is run again, and what it is called in the record."""

    name: str  # baseline, champion, without N, pruned
    commit: str


def without(number: int) -> str:
    """The name of the champion without the change of one experiment."""
    return f"without {number}"


def plan(codes: Sequence[Code], seed: int, runs: int) -> list[tuple[Code, int]]:
    """What to run, with which seed: all codes in turn, so that a machine that changes its speed changes it for all."""
    return [(code, seed + FRESH + number) for number in range(runs) for code in codes]


def is_done(ledger: Ledger, code: Code, seed: int) -> bool:
    """Whether this code has its score of that seed, run in turn with the present champion. What failed is run once more."""
    return any(
        event["commit"] == code.commit
        and event["champion"] == ledger.champion.commit
        and event["seed"] == seed
        and event["score"] is not None
        for event in ledger.verified
    )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A gain, positive when better, with its 95% confidence interval."""

    gain: float
    error: float  # standard error
    low: float
    high: float
    runs: tuple[int, int]  # of the one and the other

    def __str__(self) -> str:
        return f"{signed(self.gain)} ({signed(self.low)} to {signed(self.high)})"


def signed(value: float) -> str:
    """A gain with its sign; nothing is `+0.000000`."""
    return f"{round(value, 6) + 0.0:+.6f}"


def estimate(
    before: Sequence[float], after: Sequence[float], groups: Sequence[Sequence[float]], lower_is_better: bool
) -> Estimate | None:
    """The gain of `after` over `before`: difference of means, and Student's interval with the variance of all groups pooled.

    groups: scores of each code, these two included. None where there is nothing to go by: one of them has no
    score, or no code has two.
    """
    from scipy import stats  # a second that most commands need not wait

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
    worth: Estimate | None  # None where that could not be measured
    says: str  # in a few words
    dead: bool = False  # the judge, given these runs, would not have kept it


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
    events = [event for event in ledger.verified if event["champion"] == champion]
    if not events:
        return None
    pruned = next((event["commit"] for event in reversed(events) if event["name"] == PRUNED), None)
    events = [event for event in events if event["name"] != PRUNED or event["commit"] == pruned]
    latest = {(event["name"], event["seed"]): event for event in events}  # what failed may have run again
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
        noise = noise_scale(
            [fresh for code, fresh in scores.items() if code != PRUNED]
        )  # what goes must not depend on what went
        verdict = judge(scores[CHAMPION], scores[name], noise, attempt.lines or 0, rule, lower_is_better)
        dead = verdict.status == "discard"
        return Part(
            attempt,
            worth,
            "carries" if worth.low > 0 else "no gain shown, can go" if dead else "not shown either way",
            dead,
        )

    return Findings(
        gain=compare(BASELINE, CHAMPION),
        holdout=compare(BASELINE, CHAMPION, holdouts),
        parts=[part(attempt) for attempt in ledger.kept[1:] if without(attempt.number) in {*scores, *reasons}],
        pruned=compare(CHAMPION, PRUNED),
        pruned_commit=pruned,
        scores=scores,
        holdouts=holdouts,
        failed=[
            f"{name} has no score" + (f" in {failures[name]} of its runs" if failures[name] else "") + f": {reason}"
            for name, reason in reasons.items()
        ],
    )


class Verification:
    """Runs codes of a run again, and records each as it ends."""

    def __init__(self, lab: Lab, runs: int) -> None:
        self.lab, self.runs = lab, runs

    def __call__(self, ablate: bool, prune: bool) -> bool:
        """Baseline and champion, what is left without each kept change, and without all that can go. False when the user stopped it."""
        kept = self.lab.ledger.kept
        codes = [
            Code(BASELINE, kept[0].commit),
            Code(CHAMPION, kept[-1].commit),
            *(self.ablations() if ablate or prune else ()),
        ]
        finished = self.run_again(codes)
        if finished and prune and (dead := [part.attempt for part in self.findings().parts if part.dead]):
            return self.prune(dead)
        return finished

    def findings(self) -> Findings | None:
        return findings(self.lab.ledger, self.lab.task.lower_is_better, self.lab.task.line_price)

    def ablations(self) -> list[Code]:
        """The champion without each kept change, where it can be left out. Where not, the record says so."""
        lab = self.lab
        champion, codes = lab.ledger.champion, []
        kept = lab.ledger.kept[1:]
        for attempt in kept if len(kept) > 1 else ():  # of a single one the baseline is what is left
            name = without(attempt.number)
            commit, stuck = lab.repo.without(
                champion.commit,
                [attempt.commit],
                f"Without experiment {attempt.number}: {one_line(attempt.description)}",
            )
            reason = (
                "later keeps build on its lines" if stuck else "" if commit else "nothing of it is left in the champion"
            )
            if reason and not any(
                event["name"] == name and event["champion"] == champion.commit for event in lab.ledger.verified
            ):
                lab.ledger.append(
                    "verified",
                    name=name,
                    commit=None,
                    champion=champion.commit,
                    seed=None,
                    score=None,
                    holdout=None,
                    reason=reason,
                    seconds={},
                )
            if not reason:
                lab.repo.remember(f"without-{attempt.number}", commit)
                codes.append(Code(name, commit))
        return codes

    def prune(self, dead: list[Attempt]) -> bool:
        """A branch with the champion without what does not carry, once that has run. False when the user stopped it."""
        lab = self.lab
        commit, stuck = lab.repo.without(
            lab.ledger.champion.commit,
            [attempt.commit for attempt in reversed(dead)],
            "Without experiments " + ", ".join(str(attempt.number) for attempt in dead),
        )
        for attempt in dead:
            if attempt.commit in stuck:
                lab.console.line(f"experiment {attempt.number} stays: what is left of the others builds on its lines")
        if commit is None:
            return True
        lab.repo.remember("pruned", commit)
        if not self.run_again([Code(PRUNED, commit)]):
            return False
        branch = f"{lab.repo.branch}-pruned"
        lab.repo.name_branch(
            branch, commit, [event["commit"] for event in lab.ledger.verified if event["name"] == PRUNED]
        )
        lab.console.line(f"branch {branch}: {short(commit)}, {count(len(dead) - len(stuck), 'experiment')} left out")
        return True

    def run_again(self, codes: list[Code]) -> bool:
        """Run codes with fresh seeds, those that were not yet. False when the user stopped it."""
        lab = self.lab
        champion = lab.ledger.champion
        missing = [
            (code, seed) for code, seed in plan(codes, lab.seed, self.runs) if not is_done(lab.ledger, code, seed)
        ]
        typical = champion.seconds.get("wall", lab.time_budget)
        for number, (code, seed) in enumerate(missing, 1):
            if lab.stop.level:
                return False
            lab.require_own_code()
            lab.repo.stage().set(lab.base, code.commit, lab.task.editable)
            folder = lab.folder / "verify" / f"{code.name.replace(' ', '-')}-{seed}"
            view = lab.console.verifying(
                f"{code.name}, seed {seed}",
                number,
                len(missing),
                typical * (len(missing) - number + 1),
                folder,
                lab.time_budget,
            )
            trial, began = lab.trial(folder, view, seed=seed), time.monotonic()
            outcome = trial.run()
            objection, figures = trial.holdout() if outcome.score is not None else (None, {})
            trial.tidy(keep_weights=False)
            view.close()
            if outcome.suspended:
                lab.console.line(f"  it stood still for {outcome.suspended:.0f} s: it runs again", "yellow")
                return self.run_again(codes)
            if lab.stop.now():
                return False
            if outcome.score is None or objection:
                lab.require_space()
            typical = time.monotonic() - began
            lab.ledger.append(
                "verified",
                name=code.name,
                commit=code.commit,
                champion=champion.commit,
                seed=seed,
                score=None if objection else outcome.score,
                holdout=None if objection else holdout_score(figures, lab.task),
                reason=objection or outcome.reason,
                seconds={**trial.seconds, "wall": round(typical, 3)},
            )
            lab.console.line(
                f"  {outcome.score:.6f}"
                if not objection and outcome.score is not None
                else f"  no score: {objection or outcome.reason}"
            )
        return True


def lines_of(found: Findings | None) -> list[tuple[str, str]]:
    """What was found, as (line, colour)."""
    if found is None or found.gain is None:
        return [
            ("not enough scores yet to say anything", "yellow"),
            *((f"  {line}", "yellow") for line in (found.failed if found else ())),
        ]
    shown = "" if found.gain.low > 0 else ": no gain shown" if found.gain.high > 0 else ": the champion is worse"
    lines = [
        (
            "gain of the champion over the baseline, {1} fresh runs against {0}, with its 95% interval:".format(
                *found.gain.runs
            ),
            "",
        ),
        (f"  val      {found.gain}{shown}", "yellow" if shown else "green"),
    ]
    if found.holdout:
        lines.append((f"  holdout  {found.holdout}", ""))
    for part in found.parts:
        worth = f"{part.worth}: " if part.worth else ""
        lines.append(
            (
                f"  without experiment {part.attempt.number}: the champion loses {worth}{part.says} ({one_line(part.attempt.description, 60)})",
                "",
            )
        )
    if found.pruned:
        worse = found.pruned.high < 0
        lines.append(
            (
                f"  pruned   {found.pruned} over the champion"
                + (": what can go one by one cannot go together" if worse else ""),
                "yellow" if worse else "",
            )
        )
    return lines + [(f"  {line}", "yellow") for line in found.failed]
