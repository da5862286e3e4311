"""Which runs compare: those of which other programs took about as much. Lower is better here."""

import pytest

from autoresearch.judge import noise_scale
from autoresearch.record.conditions import by_conditions, comparable, if_comparable

QUIET, BUSY = (0.0, 1.00), (0.33, 1.10)


@pytest.mark.parametrize(
    ("runs", "taken", "most", "expected"),
    [
        ([QUIET, BUSY], 0.03, 0.05, [1.00]),
        ([QUIET, BUSY], 0.30, 0.05, [1.10]),
        ([QUIET, (0.04, 1.01), BUSY], 0.02, 0.05, [1.00, 1.01]),
        ([QUIET, BUSY], 0.20, 0.05, [1.00]),  # nothing alike: the champion had more of the machine, so this is strict
        ([BUSY, (0.20, 1.05)], 0.0, 0.05, [1.05]),  # it had less in each: the best of them
        ([QUIET, BUSY], None, 0.05, [1.00]),  # nobody knows: as if it had been left alone
        ([(None, 1.02), BUSY], 0.0, 0.05, [1.10]),
        ([(None, 1.02), (None, 1.03)], 0.5, 0.05, [1.02, 1.03]),
        ([QUIET, BUSY], 0.2, None, [1.00, 1.10]),  # a game in which it does not matter
        ([], 0.2, 0.05, []),
    ],
)
def test_what_a_run_is_compared_with(runs, taken, most, expected):
    assert comparable(runs, taken, most, lower_is_better=True) == expected


def test_an_earlier_champion_without_a_comparable_run_says_nothing():
    assert if_comparable([QUIET, BUSY], 0.2, 0.05) == []
    assert if_comparable([QUIET, BUSY], 0.31, 0.05) == [1.10]
    assert if_comparable([(None, 1.0)], 0.31, 0.05) == [1.0]


def test_what_a_neighbour_does_to_a_score_is_no_noise():
    runs = [QUIET, (0.01, 1.002), BUSY, (0.34, 1.102), (0.6, 1.3)]
    assert by_conditions(runs, 0.05) == [[1.00, 1.002], [1.10, 1.102], [1.3]]
    assert noise_scale(by_conditions(runs, 0.05)) < 0.002 < 0.1 < noise_scale(by_conditions(runs, None))
    assert by_conditions([], 0.05) == []
