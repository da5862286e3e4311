"""A run with --tiers, as the record tells it: each kind of device is compared with its own scores alone."""

import dataclasses

import pytest

from autoresearch.record import events, results
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.task import OWN_GAME
from autoresearch.views.verdicts import Record

RUN = {"seed": 42, "kind": "A100"}


class Night:
    """A made-up journal, on A100 first and on H100 last. val_bpb: lower is better."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.ledger = Ledger(folder)
        self.ledger.append(events.Run(tag="night", base="1" * 40, task=vars(OWN_GAME)))
        self.ledger.append(events.Start(kind="H100"))

    def attempt(self, number: int, parent: int) -> Attempt:
        self.ledger.append(events.Attempt(number=number, commit=str(number) * 40, parent=str(parent) * 40))
        return self.ledger.attempts[-1]

    def screened(self, number: int, *scores: float, during: int = 0) -> None:
        for score in scores:
            self.ledger.append(events.Screened(number=number, score=score, during=during, **RUN))

    def decided(self, number: int, *scores: float) -> None:
        self.ledger.append(events.Promoted(number=number, reason="it looked good"))
        for score in scores:
            self.ledger.append(events.Measured(number=number, seed=42, score=score))

    def verdict(self, number: int, status: str) -> None:
        attempt = self.ledger.attempts[number - 1]
        score, standing = (
            scores and scores[0] for scores in (self.ledger.latest(attempt), self.ledger.standing(attempt))
        )
        self.ledger.append(events.Verdict(number=number, status=status, score=score, standing=standing or None))


@pytest.fixture
def night(tmp_path) -> Night:
    """With a baseline of two runs on each kind, far apart, and noisier on the first."""
    night = Night(tmp_path)
    night.attempt(1, 1)
    night.screened(1, 1.5, 1.7)
    night.decided(1, 1.0, 1.02)
    night.verdict(1, "keep")
    return night


def test_a_score_meets_those_of_its_own_kind_alone(night):
    """Fails where a screening is compared with scores of the last kind, or with its noise; or the other way round."""
    ledger = night.ledger
    assert ledger.noise(screened=True) == pytest.approx(0.2 / 2**0.5) and ledger.noise() == pytest.approx(0.02 / 2**0.5)
    edit = night.attempt(2, 1)
    night.screened(2, 1.4)
    assert (ledger.standing(edit), ledger.latest(edit)) == ([1.5, 1.7], [1.4])
    night.screened(1, 1.6, during=2)  # the champion once more
    assert ledger.standing(edit) == [1.5, 1.7, 1.6]
    night.decided(2, 0.9)
    assert (ledger.standing(edit), ledger.latest(edit)) == ([1.0, 1.02], [0.9])
    night.verdict(2, "keep")
    assert ledger.scores(ledger.champion) == [0.9] and ledger.runs_of(ledger.champion, screened=True) == [(None, 1.4)]
    assert ledger.steps(True, None) == pytest.approx([0.1054], abs=1e-4)


def test_an_edit_that_loses_the_screening_has_a_gain_and_no_score(night):
    """Fails where a row of results.tsv, or a curve, mixes the scores of two kinds."""
    night.attempt(2, 1)
    night.screened(2, 1.9)
    night.verdict(2, "discard")
    row = Record(night.ledger).tried[0]
    assert row.score is None and row.gain == pytest.approx(-0.4)
    *_, last = results.whole(night.ledger).splitlines()
    assert last.split("\t")[1:4] == ["nan", "0.0", "discard"]


def test_what_is_known_of_a_screening_after_a_kill(night):
    """Fails where one that is done is forgotten, or one that does not count, or was of other code, is not."""
    ledger = night.ledger
    night.attempt(2, 1)
    night.screened(2, 1.4)
    again = Ledger(night.folder)
    assert again.attempts[1].is_screened and again.screening == "A100" and again.measured
    ledger.append(events.Trial(number=2))
    assert ledger.attempts[1].screened == [(None, 1.4)]
    ledger.append(events.Rerun(number=2, reason="it was suspended"))
    assert not ledger.attempts[1].screened
    night.screened(2, 1.4)
    night.decided(2)
    ledger.append(events.Rerun(number=2, reason="its seat was lost"))
    assert ledger.attempts[1].promoted and ledger.attempts[1].screened
    ledger.append(events.Moved(number=2, commit="3" * 40, parent="2" * 40, edit="e"))
    assert not ledger.attempts[1].promoted and not ledger.attempts[1].screened


def test_a_run_without_tiers_knows_nothing_of_them():
    written = dataclasses.asdict(events.Measured(number=1, seed=42, score=1.0)).keys()
    assert written == {"time", "number", "seed", "score", "seconds", "taken", "taken_by"}
