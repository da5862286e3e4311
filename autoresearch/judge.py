"""The decision: keep or discard. Pure functions on numbers; nothing is read or written here.

A score is one draw: the same code, trained again, scores a little differently. So an edit has to be better than the
champion by more than half of what noise alone does to such a difference, and by a price for the code that
it adds; an edit that takes code away may be kept at an equal score. bench/keep_rule.py plays many nights with this
very code, and with the rules that were not chosen.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from autoresearch import UserError
from autoresearch.text import count, digits

LARGE, OUTLIER = math.log(4), 4.0  # of `is_far_outside`: three quarters of the way to the best
CLEAR = 4.0  # standard errors of a gain that needs no runs in turn
TURNS, TURN_MARGIN = 3, 2.0  # runs of each, and standard errors that the gain in them must exceed
# Of times: most runs of each; standard errors that are enough before the last one, and after it; and those below which
# an edit is given up after one, two, three and more turns: one says little against it.
MOST_TURNS, SURE, ENOUGH, HOPELESS = 10, 3.7, 3.0, (-0.7, 0.0, 0.5, 0.8)
STALE = 10  # verdicts after which a champion whose scores are noisy is measured again
ODD, SPREADS = 0.15, 4.0  # of `odd_ones`: by how much of the middle one, and how many times what is usual
NEARLY_NOTHING = 1e-12  # a time or a speed that is less counts as this
NORMAL = 1.4826  # standard deviations of a normal distribution in its median distance from the median
PRIOR_RUNS = 3  # what a prior about the noise is worth, in runs


@dataclasses.dataclass(frozen=True)
class KeepRule:
    """How much better is better."""

    margin: float = 0.5  # standard errors of the difference that a gain must exceed
    line_price: float = 0.0  # gain that each added line of code owes
    slack: float = 0.5  # noise by which an edit that removes code may be worse than the best so far; 0: not at all


RULES = {"margin": KeepRule(), "strict": KeepRule(margin=0.0, slack=0.0)}


def rule_of(name: str, line_price: float = 0.0) -> KeepRule:
    """The rule that --keep-rule names. Raises UserError."""
    if name not in RULES:
        raise UserError(f"--keep-rule takes {' or '.join(RULES)}, not {name!r}")
    return RULES[name] if name == "strict" else dataclasses.replace(RULES[name], line_price=line_price)


@dataclasses.dataclass(frozen=True)
class Verdict:
    status: str  # keep, discard or crash
    reason: str  # in words and numbers


def noise_scale(groups: Sequence[Sequence[float]], prior: float | None = None) -> float:
    """The standard deviation of scores of identical code.

    groups: the scores of each code that ran more than once (others say nothing). prior: what it usually is,
    where that is known; it counts like PRIOR_RUNS runs beyond the first. Without either it is 0.
    """
    deviations, degrees = [], 0
    for scores in groups:
        center = mean(scores) if scores else 0.0
        deviations += [score - center for score in scores]
        degrees += max(0, len(scores) - 1)
    if prior is not None:
        deviations.append(math.sqrt(PRIOR_RUNS) * prior)
        degrees += PRIOR_RUNS
    return math.hypot(*deviations) / math.sqrt(degrees) if degrees else 0.0


def mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)


def standard_error(noise: float, scores: Sequence[float], champion: Sequence[float]) -> float:
    """What noise does to the difference between the means of two codes."""
    return noise * math.sqrt(1 / len(scores) + 1 / len(champion))


def could_be_noise(gain: float, noise: float, scores: Sequence[float], champion: Sequence[float]) -> bool:
    """Whether a gain is so small that champion and edit run in turn before it is kept, where scores are noisy.

    Simulated, with 60 edits that change nothing and 20 that gain 15% (bench/in_turn.py): see bench/RESULTS.md.
    """
    return 0 < gain < CLEAR * standard_error(noise, scores, champion)


def gains_of(theirs: Sequence[float], scores: Sequence[float], lower_is_better: bool = True) -> list[float]:
    """By what share an edit is faster than its champion, turn by turn (the logarithm of the ratio).

    A machine's speed drifts by far more from one hour to the next than from one run to the next: what is compared is
    only what ran together.
    """
    sign = 1 if lower_is_better else -1
    pairs = zip(theirs, scores, strict=True)
    return [sign * math.log(max(their, NEARLY_NOTHING) / max(own, NEARLY_NOTHING)) for their, own in pairs]


def noise_of_turns(baseline: Sequence[float], turns: Sequence[Sequence[float]]) -> float:
    """The standard deviation of the gain in one turn, of code that has none.

    baseline: its scores, one after the other. turns: the gains of each edit that ran in turn.
    """
    squares = [gain**2 for gain in gains_of(baseline[:-1], baseline[1:])]
    degrees = len(squares)
    for gains in turns:
        squares += [(gain - mean(gains)) ** 2 for gain in gains]
        degrees += len(gains) - 1
    return math.sqrt(math.fsum(squares) / degrees) if degrees else 0.0


def judge_turns(gains: Sequence[float], noise: float) -> Verdict | None:
    """Keep or discard an edit by its gains in turn with its champion; None: another turn is needed.

    noise: of one of them. Simulated, beside other rules: bench/in_turn.py.
    """
    gain, error = mean(gains), noise / math.sqrt(len(gains))
    asked = ENOUGH if len(gains) == MOST_TURNS else SURE
    side = "better" if gain > 0 else "worse"
    said = f"in {count(len(gains), 'turn')} with its champion it was {abs(gain):.2%} {side}, give or take {error:.2%}"
    if len(gains) > 1 and gain > asked * error:
        return Verdict("keep", said)
    if gain <= HOPELESS[min(len(gains), len(HOPELESS)) - 1] * error or len(gains) == MOST_TURNS:
        return Verdict("discard", said + (f"; {asked * error:.2%} were owed" if gain > 0 else ""))
    return None


def is_far_outside(step: float, steps: Sequence[float]) -> bool:
    """Whether a step of `step_of` looks like a fault or a fake: it is LARGE, and OUTLIER times the largest before."""
    return step >= LARGE and step > OUTLIER * max(steps, default=0.0)


def step_of(
    standing: float, score: float, lower_is_better: bool = True, bounds: Sequence[float] | None = None
) -> float:
    """How far a score is from the champion's, towards the best that there can be: the logarithm of the ratio of what is
    left before and after. Infinite where nothing is left.

    bounds: the least and the largest score. Without them the best is 0 for what is to become lower; for what is to
    become higher there is none, and the ratio is that of the scores. Where scores are not above 0 their size is the
    scale.
    """
    if bounds is not None:
        before, after = (abs(bounds[0 if lower_is_better else 1] - value) for value in (standing, score))
    elif standing <= 0:
        return math.log1p(abs(score - standing) / abs(standing)) if standing else 0.0
    else:
        before, after = (standing, score) if lower_is_better else (score, standing)
    if before <= 0:
        return 0.0
    return math.log(before / after) if after > 0 else math.inf


def odd_ones(paces: Sequence[float]) -> list[int]:
    """Places of those whose pace is another than that of the rest: seconds that identical code took, or steps that it
    made, on devices that should be alike.

    Further from the median than ODD of it, and than SPREADS times the standard deviation, as the median distance tells
    it, which a few odd ones do not change. Of two nobody can say which is odd.
    """
    logs = [math.log(max(pace, NEARLY_NOTHING)) for pace in paces]
    middle = statistics.median(logs)
    spread = statistics.median(abs(value - middle) for value in logs) * NORMAL
    return [place for place, value in enumerate(logs) if abs(value - middle) > max(ODD, SPREADS * spread)]


def margin(rule: KeepRule, noise: float, scores: Sequence[float], champion: Sequence[float]) -> float:
    """What a gain must exceed because of noise."""
    return rule.margin * standard_error(noise, scores, champion)


def judge(
    scores: Sequence[float],
    champion: Sequence[float],
    noise: float = 0.0,
    lines: int = 0,
    rule: KeepRule = RULES["margin"],
    lower_is_better: bool = True,
    best: float | None = None,
) -> Verdict:
    """Compare the finite scores of an edit with the champion's; without a champion it becomes the champion.

    noise: standard deviation of one score. lines: lines of code that the edit adds, net. best: the best mean of
    any champion so far, against which the slack is measured, so that it is not spent twice.
    """
    score = mean(scores)
    if not champion:
        return Verdict(
            "keep", f"baseline {digits(score)}" + (f", the mean of {len(scores)} runs" if len(scores) > 1 else "")
        )
    sign = 1 if lower_is_better else -1
    standing = mean(champion)
    gain = sign * (standing - score)
    by_noise = margin(rule, noise, scores, champion)
    price = rule.line_price * max(0, lines)
    better = f"{digits(score)} is {digits(gain)} better than the champion's {digits(standing)}"
    if gain > max(0.0, by_noise, price):
        owed = f"; {digits(max(by_noise, price))} were owed" if max(by_noise, price) else ""
        return Verdict("keep", better + owed)
    lost = sign * score - min(sign * standing, sign * (standing if best is None else best))
    if lines < 0 and rule.slack and lost <= rule.slack * noise:
        return Verdict(
            "keep",
            f"{digits(score)} is as good as the champion's {digits(standing)}, with {count(-lines, 'line')} less",
        )
    if gain > 0:
        why = (
            f"{digits(price)} that {count(lines, 'line')} more owe"
            if price > by_noise
            else f"{digits(by_noise)} that noise alone may bring"
        )
        return Verdict("discard", f"gain {digits(gain)} is not above the {why}")
    if gain == 0:
        return Verdict("discard", f"{digits(score)} equals the champion's")
    return Verdict("discard", f"{digits(score)} is {digits(-gain)} worse than the champion's {digits(standing)}")
