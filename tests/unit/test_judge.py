"""The judge: what must be true of it whatever the numbers are, and what it says."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as some

from autoresearch.judge import (
    ENOUGH,
    MOST_TURNS,
    RULES,
    KeepRule,
    gains_of,
    is_far_outside,
    judge,
    judge_turns,
    mean,
    noise_of_turns,
    noise_scale,
    odd_ones,
    standard_error,
    step_of,
)

SCORE = some.floats(-10, 10, allow_nan=False)
SCORES = some.lists(SCORE, min_size=1, max_size=4)
NOISE = some.floats(0, 1)
LINES = some.integers(-50, 50)
RULE = some.builds(
    KeepRule, margin=some.floats(0, 3), line_price=some.floats(0, 0.1), slack=some.sampled_from([0.0, 0.5, 1.0])
)


def kept(*arguments, **more) -> bool:
    return judge(*arguments, **more).status == "keep"


@given(SCORES, SCORES, NOISE, LINES, RULE, some.booleans(), some.floats(0, 5))
def test_a_better_score_is_never_judged_worse(scores, champion, noise, lines, rule, lower, by):
    better = [score - by if lower else score + by for score in scores]
    if kept(scores, champion, noise, lines, rule, lower):
        assert kept(better, champion, noise, lines, rule, lower)


@given(SCORES, SCORES, NOISE, LINES, RULE, some.booleans(), SCORE)
def test_a_worse_mean_is_never_kept(scores, champion, noise, lines, rule, lower, best):
    """But for an edit that removes code: within the slack below the best mean that there was."""
    sign = 1 if lower else -1
    if kept(scores, champion, noise, lines, rule, lower, best) and sign * mean(scores) >= sign * mean(champion):
        assert lines < 0 and rule.slack
        assert sign * mean(scores) - min(sign * mean(champion), sign * best) <= rule.slack * noise


@given(SCORES, SCORES, NOISE, some.integers(1, 50), RULE)
def test_added_lines_are_paid_for(scores, champion, noise, lines, rule):
    if kept(scores, champion, noise, lines, rule):
        assert mean(champion) - mean(scores) > rule.line_price * lines
        assert mean(champion) - mean(scores) > rule.margin * standard_error(noise, scores, champion)


@given(SCORES, SCORES, NOISE, LINES, RULE)
def test_fewer_lines_are_never_judged_worse(scores, champion, noise, lines, rule):
    if kept(scores, champion, noise, lines, rule):
        assert kept(scores, champion, noise, lines - 1, rule)


@given(SCORES, SCORES, NOISE, LINES, RULE, some.randoms())
def test_the_order_of_replicates_is_irrelevant(scores, champion, noise, lines, rule, random):
    shuffled, standing = random.sample(scores, len(scores)), random.sample(champion, len(champion))
    assert judge(scores, champion, noise, lines, rule) == judge(shuffled, standing, noise, lines, rule)
    assert noise_scale([scores, champion], 0.1) == noise_scale([standing, shuffled], 0.1)


@given(SCORES, SCORES, NOISE, LINES, RULE)
def test_higher_is_better_is_the_mirror_image(scores, champion, noise, lines, rule):
    mirrored = [-score for score in scores], [-score for score in champion]
    assert kept(scores, champion, noise, lines, rule) == kept(*mirrored, noise, lines, rule, lower_is_better=False)


@given(SCORES, SCORES, NOISE, LINES)
def test_strict_keeps_every_gain_and_nothing_else(scores, champion, noise, lines):
    assert kept(scores, champion, noise, lines, RULES["strict"]) == (mean(scores) < mean(champion))


@given(SCORES, NOISE, LINES)
def test_without_a_champion_it_becomes_the_champion(scores, noise, lines):
    assert kept(scores, [], noise, lines)


@given(some.lists(some.lists(SCORE, max_size=5), max_size=5), some.floats(0.001, 1), some.floats(0.01, 100))
def test_the_noise_is_in_the_unit_of_the_score(groups, prior, factor):
    scaled = noise_scale([[factor * score for score in scores] for scores in groups], factor * prior)
    assert scaled == pytest.approx(factor * noise_scale(groups, prior), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("paces", "odd"),
    [
        ([10.0, 10.1, 15.0], [2]),
        ([1500, 1000, 1510, 1490], [1]),
        ([10.0, 10.1, 9.9, 10.0, 15.0, 15.1, 10.0], [4, 5]),  # several do not hide one another
        ([10.0, 11.0, 10.1], []),  # what is this little off can be noise
        ([10.0, 13.0, 17.0, 22.0], []),  # all differ: that is how it is there
        ([10.0, 20.0], []),  # nobody can say which
        ([10.0], []),
    ],
)
def test_devices_that_are_not_like_the_rest(paces, odd):
    assert odd_ones(paces) == odd and odd_ones([0.01 * pace for pace in paces]) == odd


def test_the_noise_of_replicates():
    assert noise_scale([]) == noise_scale([[1.0]]) == noise_scale([[1.0, 1.0], [2.0]]) == 0.0
    assert noise_scale([[1.0], [2.0]], prior=0.5) == pytest.approx(0.5)  # single runs say nothing
    assert noise_scale([[1.0, 1.2]]) == pytest.approx(0.02**0.5)
    assert noise_scale([[1.0, 1.2], [5.0, 5.2, 5.4]]) == pytest.approx(
        (0.1 / 3) ** 0.5
    )  # pooled: three degrees of freedom
    assert noise_scale([[1.0, 1.2]] * 1000, prior=1.0) == pytest.approx(
        0.1414, abs=0.02
    )  # what is measured outweighs the prior


@pytest.mark.parametrize(
    ("scores", "lines", "status", "reason"),
    [
        ([0.9960], 0, "keep", "0.996000 is 0.004000 better than the champion's 1; more than 0.000700 was required"),
        ([0.9995], 0, "discard", "gain 0.000500 is not above the noise margin of 0.000700"),
        (
            [0.9995, 0.9992],
            0,
            "keep",
            "0.999350 is 0.000650 better than the champion's 1; more than 0.000606 was required",
        ),
        ([0.9990], 30, "discard", "gain 0.001000 is not above the 0.001500 required for 30 added lines"),
        ([0.9980], 30, "keep", "0.998000 is 0.002000 better than the champion's 1; more than 0.001500 was required"),
        ([0.9990], 1, "keep", "0.999000 is 0.001000 better than the champion's 1; more than 0.000700 was required"),
        ([1.0003], -1, "keep", "1.000300 is as good as the champion's 1, with 1 line removed"),
        ([1.0008], -9, "discard", "1.000800 is 0.000800 worse than the champion's 1"),
        ([1.0000], 0, "discard", "1 equals the champion's"),
    ],
)
def test_what_it_says(scores, lines, status, reason):
    rule = dataclasses.replace(RULES["margin"], line_price=0.001 / 20)
    verdict = judge(scores, [1.0], noise=0.00099, lines=lines, rule=rule)
    assert verdict.status == status and verdict.reason == reason


def test_removals_do_not_go_downhill_step_by_step():
    """Each is measured against the best there was, so that the slack is not spent again and again."""
    best = standing = 1.0
    for _ in range(20):
        score = standing + 0.0004
        if kept([score], [standing], 0.001, -1, best=best):
            standing = score
    assert standing == 1.0004


TIME = some.floats(0.01, 100)
TIMES = some.lists(some.tuples(TIME, TIME), min_size=1, max_size=MOST_TURNS)


@given(TIMES, NOISE, some.booleans(), some.floats(0.1, 10))
def test_turns_are_judged_by_their_ratios_alone(pairs, noise, lower, factor):
    """A machine that is slower by some factor changes nothing, in one turn or in all; speeds are times upside down."""
    theirs, own = zip(*pairs, strict=True)
    gains = gains_of(theirs, own, lower)
    slower = gains_of([factor * theirs[0], *theirs[1:]], [factor * own[0], *own[1:]], lower)
    assert slower == pytest.approx(gains, abs=1e-9)
    assert gains_of([1 / time for time in theirs], [1 / time for time in own], not lower) == pytest.approx(
        gains, abs=1e-9
    )


@given(some.lists(some.floats(-1, 1), min_size=1, max_size=MOST_TURNS), some.floats(0.001, 1))
def test_turns_end_and_a_slower_edit_is_never_kept(gains, noise):
    verdict = judge_turns(gains, noise)
    assert verdict or len(gains) < MOST_TURNS
    if verdict and verdict.status == "keep":
        assert len(gains) > 1 and mean(gains) > ENOUGH * noise / len(gains) ** 0.5
    if mean(gains) <= (0 if len(gains) > 1 else -noise):  # one turn says little
        assert verdict and verdict.status == "discard"


def test_scores_that_diverge_have_a_noise():
    assert noise_scale([[1e200, -1e200], [1.0, 1.1]]) > 1e199


def test_the_noise_of_turns_knows_no_drift():
    """It comes from neighbours in time: a baseline that drifts by a half has the noise of its steps."""
    drifting = [1.0 * 1.1**step for step in range(6)]
    assert noise_of_turns(drifting, []) == pytest.approx(0.0953, abs=1e-4)
    assert noise_of_turns([], [[0.3, 0.3], [0.1, 0.1, 0.1]]) < 1e-9 and noise_of_turns([], []) == 0
    assert noise_of_turns([1.0, 1.0], [[0.1, -0.1]]) == pytest.approx(0.1)
    assert gains_of([0.0], [1e-20]) == [0.0]


# What happened in real repositories: (champion, score, lower is better, range, steps of earlier keeps), and whether
# such a gain is held back.
STEPS = [
    ("a program of 50 bytes", 277_392, 50, True, None, [(395_016, 309_936)], True),
    ("a perfect accuracy", 0.99054, 1.0, False, (0, 1), [(0.768, 0.864), (0.864, 0.9755)], True),
    ("a corpus in the program", 2.9, 16_044, False, None, [(1.5, 1.95)], True),
    ("an honest model, first keep", 0.9655, 0.9855, False, (0, 1), [], False),
    ("an honest compressor", 1.95, 2.89, False, None, [(1.9, 1.95)], False),
    ("a loop that is five times as fast, first keep", 1.0, 0.2, True, None, [], True),
    ("the same after one of its kind", 1.0, 0.2, True, None, [(3.0, 1.0)], False),
    ("a score below nothing", 0.5, -1.0, True, None, [(0.6, 0.5)], True),
    ("scores without a natural end", -5.0, -6.0, True, None, [], False),
    ("from nothing", 0.0, 5.0, False, None, [], False),
]


@pytest.mark.parametrize(("champion", "score", "lower", "bounds", "kept", "held"), [row[1:] for row in STEPS])
def test_what_is_too_good_to_be_true(champion, score, lower, bounds, kept, held):
    steps = [step_of(*pair, lower, bounds) for pair in kept]
    assert is_far_outside(step_of(champion, score, lower, bounds), steps) == held
