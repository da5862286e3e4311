"""The rule: keep or discard, by the scores alone. Pure functions on numbers; `Experiments.decide` applies them.

A score is one draw: the same code, trained again, scores a little differently. So an edit has to beat the champion by
more than half a standard error of the difference, and by a price for the lines that it adds. An edit that removes code
may be kept at an equal score. bench/keep_rule.py simulates many nights with this code, and with rules that were not
chosen.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from autoresearch import UserError
from autoresearch.text import count, digits

LARGE, OUTLIER = math.log(4), 4.0  # for `is_far_outside`: three quarters of the way to the best
CLEAR = 4.0  # a gain of so many standard errors is kept without taking turns
TURNS, TURN_MARGIN = 3, 2.0  # number of turns, and standard errors that the gain in them must exceed
# If the metric is a time: most turns; standard errors needed before the last turn, and after it; and those below which
# an edit is given up after one, two, three and more turns (a single turn says little).
MOST_TURNS, SURE, ENOUGH, HOPELESS = 10, 3.7, 3.0, (-0.7, 0.0, 0.5, 0.8)
STALE = 10  # verdicts after which a champion with noisy scores is measured again
ODD, SPREADS = 0.15, 4.0  # for `odd_ones`: deviation from the median, as a share of it and in standard deviations
NEARLY_NOTHING = 1e-12  # a time or a speed that is less counts as this
NORMAL = 1.4826  # standard deviation of a normal distribution, in median absolute deviations
PRIOR_RUNS = 3  # weight of the prior about the noise, in runs


@dataclasses.dataclass(frozen=True)
class KeepRule:
    """How much better an edit has to be."""

    margin: float = 0.5  # a gain must exceed so many standard errors of the difference
    line_price: float = 0.0  # gain that each added line of code must bring
    slack: float = 0.5  # an edit that removes code may be so many noises worse than the best so far; 0: not at all


RULES = {"margin": KeepRule(), "strict": KeepRule(margin=0.0, slack=0.0)}


def rule_of(name: str, line_price: float = 0.0) -> KeepRule:
    """The rule that --keep-rule names. Raises UserError."""
    if name not in RULES:
        raise UserError(f"--keep-rule takes {' or '.join(RULES)}, not {name!r}")
    return RULES[name] if name == "strict" else dataclasses.replace(RULES[name], line_price=line_price)


@dataclasses.dataclass(frozen=True)
class Verdict:
    status: str  # keep, discard or crash
    reason: str  # for people and agents to read, with the numbers


def noise_scale(groups: Sequence[Sequence[float]], prior: float | None = None) -> float:
    """The standard deviation of scores of identical code.

    groups: the scores of each code that ran more than once. prior: the usual standard deviation, if known; it counts
    like PRIOR_RUNS runs beyond the first. Without groups or prior the result is 0.
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
    """The standard error of the difference between the mean scores of an edit and its champion."""
    return noise * math.sqrt(1 / len(scores) + 1 / len(champion))


def could_be_noise(gain: float, noise: float, scores: Sequence[float], champion: Sequence[float]) -> bool:
    """Whether a gain is so small that edit and champion must take turns before it is kept.

    Simulated with 60 edits that change nothing and 20 that gain 15% (bench/in_turn.py): see bench/RESULTS.md.
    """
    return 0 < gain < CLEAR * standard_error(noise, scores, champion)


def gains_of(theirs: Sequence[float], scores: Sequence[float], lower_is_better: bool = True) -> list[float]:
    """How much faster an edit is than its champion in each turn: the logarithm of the ratio.

    A machine's speed drifts far more from one hour to the next than from one run to the next, so only runs next to each
    other are compared.
    """
    sign = 1 if lower_is_better else -1
    pairs = zip(theirs, scores, strict=True)
    return [sign * math.log(max(their, NEARLY_NOTHING) / max(own, NEARLY_NOTHING)) for their, own in pairs]


def noise_of_turns(baseline: Sequence[float], turns: Sequence[Sequence[float]]) -> float:
    """The standard deviation of the gain in one turn between runs of the same code.

    baseline: its scores, in order. turns: the gains per turn of each edit that took turns.
    """
    squares = [gain**2 for gain in gains_of(baseline[:-1], baseline[1:])]
    degrees = len(squares)
    for gains in turns:
        squares += [(gain - mean(gains)) ** 2 for gain in gains]
        degrees += len(gains) - 1
    return math.sqrt(math.fsum(squares) / degrees) if degrees else 0.0


def judge_turns(gains: Sequence[float], noise: float) -> Verdict | None:
    """Keep or discard an edit by its gains in turn with its champion; None: another turn is needed.

    noise: of the gain in one turn. Simulated and compared with other rules in bench/in_turn.py.
    """
    gain, error = mean(gains), noise / math.sqrt(len(gains))
    asked = ENOUGH if len(gains) == MOST_TURNS else SURE
    side = "better" if gain > 0 else "worse"
    said = f"in {count(len(gains), 'turn')} with its champion it was {abs(gain):.2%} {side} (± {error:.2%})"
    if len(gains) > 1 and gain > asked * error:
        return Verdict("keep", said)
    if gain <= HOPELESS[min(len(gains), len(HOPELESS)) - 1] * error or len(gains) == MOST_TURNS:
        return Verdict("discard", said + (f"; more than {asked * error:.2%} was required" if gain > 0 else ""))
    return None


def is_far_outside(step: float, steps: Sequence[float]) -> bool:
    """Whether a step of `step_of` looks like a bug or a cheat: it is LARGE, and OUTLIER times the largest before."""
    return step >= LARGE and step > OUTLIER * max(steps, default=0.0)


def step_of(
    standing: float, score: float, lower_is_better: bool = True, bounds: Sequence[float] | None = None
) -> float:
    """How far a score moved from the champion's towards the best possible one: the logarithm of the ratio of what is
    left to gain before and after. Infinite if nothing is left.

    bounds: the smallest and largest possible score. Without them the best is 0 if lower is better; if higher is better
    there is no best score, and the ratio is that of the scores. If scores are not above 0, their size is the scale.
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
    """Indices of outliers: devices on which identical code took another number of seconds, or made another number of
    steps, than on the rest.

    An outlier is further from the median than the share ODD of it, and than SPREADS standard deviations (estimated from
    the median absolute deviation, which outliers hardly change). Of two devices neither is an outlier.
    """
    logs = [math.log(max(pace, NEARLY_NOTHING)) for pace in paces]
    middle = statistics.median(logs)
    spread = statistics.median(abs(value - middle) for value in logs) * NORMAL
    return [place for place, value in enumerate(logs) if abs(value - middle) > max(ODD, SPREADS * spread)]


def margin(rule: KeepRule, noise: float, scores: Sequence[float], champion: Sequence[float]) -> float:
    """The gain that must be exceeded because of noise."""
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
    """Compare the finite scores of an edit with the champion's. If there is no champion, the edit becomes it.

    noise: standard deviation of one score. lines: lines of code that the edit adds, net. best: the best mean score of
    any champion so far; the slack is measured against it, so that it cannot be used twice.
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
        required = f"; more than {digits(max(by_noise, price))} was required" if max(by_noise, price) else ""
        return Verdict("keep", better + required)
    lost = sign * score - min(sign * standing, sign * (standing if best is None else best))
    if lines < 0 and rule.slack and lost <= rule.slack * noise:
        return Verdict(
            "keep",
            f"{digits(score)} is as good as the champion's {digits(standing)}, with {count(-lines, 'line')} removed",
        )
    if gain > 0:
        why = (
            f"{digits(price)} required for {count(lines, 'added line')}"
            if price > by_noise
            else f"noise margin of {digits(by_noise)}"
        )
        return Verdict("discard", f"gain {digits(gain)} is not above the {why}")
    if gain == 0:
        return Verdict("discard", f"{digits(score)} equals the champion's")
    return Verdict("discard", f"{digits(score)} is {digits(-gain)} worse than the champion's {digits(standing)}")
