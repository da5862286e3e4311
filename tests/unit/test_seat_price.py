"""What the seats of a cluster cost, and the budget that counts it."""

import time

import pytest

from autoresearch import UserError
from autoresearch.limits import Limits
from autoresearch.record import events
from autoresearch.record.ledger import Ledger
from autoresearch.runner.places import Place, prices_of, require_known
from autoresearch.task import OWN_GAME
from autoresearch.views import report
from autoresearch.views.now import Now
from autoresearch.views.panel import lines_of
from autoresearch.views.state import state_of
from autoresearch.views.verdicts import Record

HOUR = 3600.0


def test_prices_are_given_one_by_one_or_with_commas():
    assert prices_of(["H100=2.5,A100=1", "CPU, 8 cores=0.25"]) == {"H100": 2.5, "A100": 1.0, "CPU, 8 cores": 0.25}
    for said in ("H100", "H100=", "=2", "H100=two", "H100=-1", "H100=inf", "H100=nan"):
        with pytest.raises(UserError, match="takes the kind of a seat and dollars an hour"):
            prices_of([said])
    require_known(["H100"], [Place("a", "host", "H100", 0, 1, 0)])
    with pytest.raises(UserError, match="no seat of that kind: it has 1 seat of H100"):
        require_known(["H10"], [Place("a", "host", "H100", 0, 1, 0)])


@pytest.fixture
def night(tmp_path) -> Ledger:
    """Two seats at $3 an hour for two hours, of which one was gone after the first, and one without a price."""
    ledger, now = Ledger(tmp_path), time.time()

    def seats(*numbers: int) -> events.Seats:
        priced = [{"number": number, "node": f"n{number}", "kind": "H100", "price": 3.0} for number in numbers]
        return events.Seats(time=now - HOUR * numbers[-1], seats=[*priced, {"number": 9, "node": "n9", "kind": "A100"}])

    for event in (
        events.Run(time=now - 2 * HOUR, tag="night", base="0" * 40, task=vars(OWN_GAME)),
        events.Start(time=now - 2 * HOUR, workers=3, setup=0.0, kind="H100", process="5 5"),
        seats(1, 2),
        seats(1),
    ):
        ledger._apply(event)
    ledger.spent_by["sweep"] = spent = ledger.spent
    spent.add(10, 0.5)
    return ledger


def test_a_seat_costs_what_it_was_there_for(night):
    account = night.account
    assert account.dollars(time.time()) == pytest.approx(6 + 3, abs=0.01) and account.dollars_an_hour == 3
    account.add(events.Stop(time=account.last_time, reason="enough"))
    assert account.dollars(time.time() + HOUR) == pytest.approx(6, abs=0.01) and account.dollars_an_hour == 0


def test_the_budget_counts_seats(night):
    """Fails where a night goes on, or a trial begins, when the seats have cost what they may."""
    limits = Limits(dollars=10.0)
    assert limits.reached(night) is None and limits.dollars_left(night) == pytest.approx(0.5, abs=0.01)
    assert limits.seconds_left(night) == pytest.approx(600, abs=5)
    assert "$9.50 of $10" in limits.warnings(night)[0]
    assert "$9.50 of $9.4 are used up" in (Limits(dollars=9.4).reached(night, spending=False) or "")
    assert Limits(dollars=9.4).seconds_left(night) == 0
    night.account.add(events.Stop(time=night.account.last_time, reason="enough"))
    assert limits.seconds_left(night) is None  # nothing is there that costs
    assert Limits(dollars=6.4).reached(night, spending=False) is None  # so a trial costs nothing more


def test_the_views_say_what_seats_cost(night):
    state = state_of(Record(night), Now("5 5", time.time() - 3 * HOUR, {"max-cost": 10.0}), 5, time.time())
    assert "  cost      10 tokens and $0.50; seats $9.00; $0.50 left" in lines_of(state)
    assert state.as_json()["seat_dollars"] == pytest.approx(9, abs=0.01)
    assert state.limits["max-cost"].used == pytest.approx(9.5, abs=0.01)
    told = "\n".join(report.cost(state))
    assert "| dollars, seats | 9.00 |" in told and "| H100 | 2 | 2 | 3.00 h | 0% | 0 | 9.00 |" in told
