"""Where the seconds of a run went: made-up journals, and any sequence of events."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autoresearch.record.accounting import KINDS, Account
from autoresearch.record.events import Event, from_json

NEEDED = {  # fields without which an event is none, whatever else these tests leave out
    "run": {"tag": "night", "base": "0" * 40, "task": {}},
    "game": {"facts": {}},
    "attempt": {"commit": "1" * 40, "parent": "0" * 40},
    "moved": {"commit": "1" * 40, "parent": "0" * 40, "edit": "e"},
    "crashed": {"commit": "1" * 40, "reason": "it broke"},
    "refused": {"reason": "nothing changed"},
    "waited": {"reason": "no network"},
    "rerun": {"reason": "suspended"},
    "void": {"reason": "suspended"},
    "measured": {"seed": 42, "score": 1.0},
    "in turn": {"edit": 1, "seed": 42, "score": 1.0},
    "verdict": {"status": "discard", "score": None},
    "verified": {"name": "baseline", "commit": None, "champion": "1" * 40, "seed": None, "score": None},
    "held": {"what": "keep", "verdict": {"seconds": {"train": 3}}},
    "note": {"text": "smaller"},
    "stop": {"reason": "enough"},
    "seats": {"seats": []},
}


def event(time: float, name: str, fields: dict) -> Event:
    """An event of a journal of the first form, in which `external` was called `driven` and `rerun` void."""
    found = from_json({"event": name, "time": time, "number": 1, **NEEDED.get(name, {}), **fields})
    assert found is not None
    return found


def events(*told) -> list[Event]:
    """(time, name, fields) as a journal has them."""
    return [event(time, name, fields[0] if fields else {}) for time, name, *fields in told]


def account(told: list[Event], now: float | None = None) -> dict[str, float]:
    """Seconds by kind of a journal's events. now: the present time, if a loop is at work on it."""
    counted = Account()
    for one in told:
        counted.add(one)
    return counted.total(now)


def some(**seconds) -> dict[str, float]:
    return {**dict.fromkeys(KINDS, 0.0), **seconds}


def verdict(number: int, **seconds) -> dict:
    return {"number": number, "status": "discard", "seconds": seconds}


def test_a_night_with_one_worker():
    night = events(
        (0, "run"),
        (4, "game"),
        (5, "start", {"setup": 6.0}),
        (5, "attempt", {"number": 1, "agent": "loop"}),
        (6, "trial", {"number": 1}),
        (90, "measured", {"number": 1, "seconds": {"train": 70, "training": 60, "score": 5}}),
        (180, "measured", {"number": 1, "seconds": {"train": 72, "training": 60, "score": 6}}),
        (186, "verdict", verdict(1, train=70, training=60, score=5, holdout=9, wall=180)),
        (200, "refused", {"number": 2}),
        (220, "attempt", {"number": 2, "agent": "sweep", "preflight": 3}),
        (220, "trial", {"number": 2}),
        (300, "interrupted", {"number": 2}),
        (301, "stop", {"reason": "enough"}),
    )
    assert account(night) == pytest.approx(
        some(setup=7, training=120, startup=22 + 3, scoring=20, rest=18, agent=31 + 1, interrupted=80)
    )
    assert account(night, now=9999) == account(night)  # it has ended: the present does not matter


def test_what_is_running_now_and_what_was_killed():
    night = events((0, "start", {"setup": 0}), (10, "attempt", {"number": 1}), (10, "trial", {"number": 1}))
    assert account(night, now=40) == some(agent=10, running=30)
    assert account(night) == some(agent=10)  # killed, nobody knows when
    again = night + events(
        (100, "start", {"setup": 4}),
        (100, "trial", {"number": 1}),
        (150, "verdict", verdict(1, train=40, score=10)),
        (150, "stop"),
    )
    assert account(again) == some(agent=10, stopped=86, setup=4, training=40, scoring=10)


def test_waiting_for_the_network_counts_where_a_worker_was_idle():
    night = events(
        (0, "start", {"workers": 2}),
        (0, "attempt", {"number": 1}),
        (0, "trial", {"number": 1, "worker": 1}),
        (10, "waited", {"seconds": 60, "agent": "claude-api"}),
        (30, "verdict", verdict(1, train=30)),
        (75, "attempt", {"number": 2}),
        (75, "trial", {"number": 2, "worker": 0}),
        (80, "attempt", {"number": 3}),
        (80, "trial", {"number": 3, "worker": 1}),
        (90, "rerun", {"number": 3}),
        (95, "trial", {"number": 3, "worker": 1}),
        (105, "verdict", verdict(2, train=30)),
        (125, "verdict", verdict(3, train=20, score=10)),
        (125, "stop", {"reason": "done"}),
    )
    # worker 0: agent 0-10, network 10-70, agent 70-75, trial 75-105, rest
    # worker 1: trial 0-30, network 30-70, agent 70-80, rerun, agent 90-95, trial
    assert account(night) == some(
        training=30 + 30 + 20, scoring=10, network=60 + 40, agent=10 + 5 + 10 + 5, interrupted=10, rest=20
    )
    assert sum(account(night).values()) == 2 * 125


def test_a_trial_beside_the_work_of_others_counts_apart():
    night = events(
        (0, "start"),
        (0, "trial", {"number": 1}),
        (10, "rerun", {"number": 1, "taken": 0.4}),
        (30, "trial", {"number": 1, "waited": 20}),
        (45, "measured", {"number": 1, "seconds": {"train": 10, "training": 10}}),
        (55, "in turn", {"number": 7, "edit": 0, "during": 1, "seconds": {"train": 15, "training": 15}}),
        (60, "verdict", verdict(1, train=10)),
    )
    assert account(night) == some(disturbed=10 + 20, training=10 + 15, rest=5)


def test_a_crash_that_is_repaired_and_one_that_is_not():
    def crashing(*then):
        return events((0, "start"), (0, "trial", {"number": 1}), (10, "crashed", {"number": 1}), *then)

    assert account(
        crashing((30, "attempt", {"number": 1}), (30, "trial", {"number": 1}), (70, "verdict", verdict(1, train=40)))
    ) == some(interrupted=10, agent=20, training=40)
    assert account(crashing((30, "verdict", verdict(1, train=9, training=0)))) == some(startup=9, rest=1, agent=20)


def test_between_calls_the_external_agent_is_waited_for():
    calls = events(
        (0, "start", {"external": True}),
        (0, "trial", {"number": 1}),
        (10, "verdict", verdict(1, train=10)),
        (100, "start", {"driven": True, "setup": 2}),  # as it was called in version 0.1
        (100, "trial", {"number": 2}),
        (110, "verdict", verdict(2, train=10)),
    )
    assert account(calls) == some(training=20, agent=88, setup=2)
    assert account(calls + events((200, "start", {"setup": 0})))["stopped"] == 90


def test_verify_between_sessions():
    night = events(
        (0, "start"),
        (0, "trial", {"number": 1}),
        (10, "verdict", verdict(1, train=10)),
        (10, "stop"),
        (110, "verified", {"seconds": {"wall": 60}}),
        (180, "verified", {"seconds": {"wall": 70}}),
        (180, "start"),
    )
    assert account(night) == some(training=10, verify=130, stopped=40)


def test_a_clock_that_is_set_back():
    night = events(
        (1000, "start"),
        (1000, "trial", {"number": 1}),
        (1060, "verdict", verdict(1, train=60)),
        (1065, "trial", {"number": 2}),
        (500, "verdict", verdict(2, train=60)),
        (510, "trial", {"number": 3}),
        (570, "verdict", verdict(3, train=50)),
        (570, "stop"),
    )
    assert account(night) == some(training=110, agent=15, rest=10)  # only the trial in which it was set back is lost


def test_old_journals_have_no_set_up_and_no_training_clock():
    night = events(
        (0, "run"),
        (7, "start"),
        (7, "attempt", {"number": 1, "agent": "loop"}),
        (8, "trial", {"number": 1}),
        (20, "verdict", verdict(1, train=12)),
    )
    assert account(night) == some(setup=8, training=12)


def test_a_keep_that_waits_for_a_word():
    """The trial is over when it is held; another may run before the word."""
    held = {"number": 1, "verdict": {"seconds": {"train": 10}}}
    night = events((0, "start"), (0, "attempt"), (0, "trial"), (12, "held", held))
    then = events((12, "trial", {"number": 2}), (20, "verdict", verdict(2, train=8)), (100, "note"))
    word = events((30, "verdict", verdict(1, train=10)), (31, "stop"))
    assert account(night + then + word) == some(training=18, rest=2, agent=11)


def test_the_oldest_journals_have_no_begin_of_a_trial():
    night = events(
        (0, "start"),
        (10, "attempt", {"number": 1}),
        (25, "verdict", verdict(1, train=10, score=2, wall=14)),
        (30, "stop"),
    )
    assert account(night) == some(agent=11 + 5, training=10, scoring=2, rest=2)


seats = st.fixed_dictionaries(
    {"number": st.integers(0, 3), "node": st.sampled_from(["", "a", "b"]), "kind": st.sampled_from(["", "H100"])}
)
numbers = st.floats(-10, 1e4) | st.none() | st.just(float("inf"))
anything = st.fixed_dictionaries(
    {
        "event": st.sampled_from(
            [
                "run",
                "start",
                "attempt",
                "trial",
                "measured",
                "crashed",
                "interrupted",
                "void",
                "refused",
                "waited",
                "verdict",
                "verified",
                "stop",
                "moved",
                "note",
                "held",
                "seats",
            ]
        ),
        "time": st.floats(0, 1e4),
    },
    optional={
        "number": st.integers(1, 4),
        "worker": st.integers(0, 4),
        "workers": st.integers(0, 4),
        "seats": st.lists(seats, max_size=3, unique_by=lambda seat: seat["number"]),
        "setup": numbers,
        "preflight": numbers,
        "driven": st.booleans(),
        "agent": st.sampled_from(["loop", "sweep"]),
        "seconds": numbers
        | st.dictionaries(st.sampled_from(["train", "training", "score", "holdout", "wall"]), numbers),
    },
)


@given(st.lists(anything, max_size=40), st.floats(0, 1e4) | st.none())
@example(  # rounding set the clock back
    [
        {"event": name, "time": time}
        for name, time in (
            ("run", 8268.186910136164),
            ("start", 0.0),
            ("run", 3633.3864859740443),
            ("run", 0.0),
            ("start", 4483.0),
            ("held", 1.6724573511687595),
        )
    ],
    None,
)
def test_nothing_is_negative_nothing_is_lost_and_nothing_is_counted_twice(told, now):
    counted = Account()
    for fields in told:
        counted.add(event(fields["time"], fields["event"], fields))
    total = counted.total(now)
    assert all(seconds >= -1e-6 for seconds in total.values())
    assert sum(total.values()) == pytest.approx(counted.there(now), abs=1e-3)
    assert all(0 <= use.busy <= use.there + 1e-6 for use in counted.used(now).values())


def seat(number: int, node: str) -> dict:
    return {"number": number, "node": node, "kind": "H100"}


def test_seats_that_come_and_go():
    """Fails where the time of a seat that is gone or has joined is lost, or goes to the node that took its place."""
    night = events(
        (0, "start", {"workers": 2, "setup": 0, "kind": "H100"}),
        (0, "seats", {"seats": [seat(0, "a"), seat(1, "b")]}),
        (0, "trial", {"number": 2, "worker": 0, "node": "a"}),
        (10, "trial", {"number": 3, "worker": 1, "node": "b"}),
        (30, "seats", {"seats": [seat(0, "a")]}),  # b is gone, and then its trial is said to run again
        (31, "rerun", {"number": 3}),
        (40, "verdict", verdict(2, train=40)),
        (50, "seats", {"seats": [seat(0, "a"), seat(1, "c")]}),
        (50, "trial", {"number": 3, "worker": 1, "node": "c"}),
        (90, "verdict", verdict(3, train=40)),
        (100, "stop"),
    )
    counted = Account()
    for one in night:
        counted.add(one)
    uses = {node: (use.there, use.busy, use.trials) for (_, node, _), use in counted.used().items()}
    assert uses == {"a": (100, 40, 1), "b": (31, 21, 1), "c": (50, 40, 1)}
    assert account(night) == some(training=80, interrupted=21, agent=10, rest=60 + 10)
    assert counted.there() == 100 + 31 + 50
    halfway = Account()
    for one in night[:4]:
        halfway.add(one)
    assert halfway.used(now=20)[0, "a", "H100"].share == 1 and halfway.used(now=20)[1, "b", "H100"].share == 0.5


def test_runs_in_turn_with_the_champion_are_training():
    """The first run of the edit counts once, although it is the first turn."""
    night = events(
        (0, "start"),
        (0, "trial", {"number": 2}),
        (10, "measured", {"number": 2, "seconds": {"train": 9, "score": 1}}),
        (10, "in turn", {"number": 2, "edit": 2}),
        (21, "in turn", {"number": 1, "edit": 2, "seconds": {"train": 10, "score": 1}}),
        (30, "in turn", {"number": 2, "edit": 2, "seconds": {"train": 8, "score": 1}}),
        (32, "verdict", verdict(2, train=9, score=1, wall=32)),
        (32, "stop"),
    )
    assert account(night) == some(training=27, scoring=3, rest=2)
