"""What the record says of all kept changes together."""

import pytest

from autoresearch.record.findings import doubt
from autoresearch.record.ledger import Attempt


def kept(*figures: tuple[float, float]) -> list[Attempt]:
    """A baseline, of which the probes say the worst, and changes with what the probes of the holdout said of each."""
    probed = [(9.0, 0.1), *figures]
    return [
        Attempt(
            number=number, commit="c", parent="p", description="", agent="", figures=dict(zip(NAMES, said, strict=True))
        )
        for number, said in enumerate(probed, 1)
    ]


NAMES = ("holdout_gap", "holdout_error")


@pytest.mark.parametrize(
    ("figures", "doubtful"),
    [
        ([], False),
        ([(0.03, 0.01)], False),  # within four standard errors
        ([(0.05, 0.01)], True),
        ([(0.03, 0.01)] * 2, True),  # 0.06 against 0.057: none alone would tell
        ([(0.03, 0.01), (-0.03, 0.01)] * 9, False),
    ],
)
def test_what_a_leak_brings_adds_up_over_the_keeps(figures, doubtful):
    said = doubt(kept(*figures))
    assert bool(said) is doubtful
    if said:
        assert f"over {len(figures)} of them" in said


def test_keeps_that_were_never_probed_say_nothing():
    attempts = kept((0.05, 0.01))
    attempts[1].figures = {"val_bpb": 1.0}
    assert doubt(attempts) == ""
