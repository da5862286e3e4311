"""The agent that models what each constant does: the same record gives the same edit, and what is known is used."""

import dataclasses

import pytest
from calls import BASELINE, Call

from autoresearch.agents import NothingLeft
from autoresearch.agents.optimize import Optimize, distance, losses_of, places_of
from autoresearch.brief import Brief
from autoresearch.record.events import Refused
from autoresearch.record.ledger import Attempt
from autoresearch.task import edit_hash

SOURCE = "RATE = 0.02\nWIDTH = 128\nSHARE = 0.95\nFLAG = True\nNAME = 'SSL'\n"


@pytest.fixture
def call(tmp_path, monkeypatch) -> Call:
    call = Call(tmp_path, monkeypatch)
    call.original = SOURCE.encode()
    return call


def proposal(call: Call, number: int, seed: int = 1, **more):
    """What it proposes for an experiment, and the file after it."""
    (call.folder / "solver.py").write_bytes(call.original)
    agent, told = Optimize(seed), call.brief

    def numbered(**fields) -> Brief:
        return dataclasses.replace(told(**fields), number=number)

    call.brief = numbered
    try:
        return call.propose(agent, **more), call.text()
    finally:
        call.brief = told


def tried(number: int, score: float | None, constants: dict | None, **more) -> Attempt:
    usual = {"status": "discard" if score is not None else "crash", "standing": 1.0}
    return Attempt(
        number, f"{number:040}", BASELINE.commit, "x", "a", f"e{number}", score=score, constants=constants,
        **{**usual, **more},
    )  # fmt: skip


def test_the_same_record_is_the_same_proposal(call):
    history = [BASELINE, tried(2, 0.9, {"RATE": [0.02, 0.04]}), tried(3, None, {"WIDTH": [128, 256]})]
    first, again = (proposal(call, 4, attempts=history) for _ in range(2))
    assert first == again and first[1] != SOURCE
    said, text = first
    assert said.description == said.description.strip() and 1 <= len(said.category.split()) <= 3
    assert said.predicted is not None and said.tokens == 0
    others = {proposal(call, number, seed, attempts=history)[1] for number, seed in ((5, 1), (6, 1), (4, 2), (4, 3))}
    assert len(others | {text}) > 2


def test_a_model_beside_it_is_told_what_it_knows(call):
    """Higher is better here: RATE gained when it was doubled, WIDTH lost."""
    history = [BASELINE, tried(2, 1.4, {"RATE": [0.02, 0.04]}), tried(3, 0.6, {"WIDTH": [128, 256]})]
    told = call.brief(attempts=history, noise=0.05)
    told = dataclasses.replace(told, sources={"solver.py": SOURCE}, number=4)
    state = Optimize(1).state(told)
    assert state == Optimize(1).state(told) and state.count("±") == 3 + 2
    _, candidates, _, known, _ = state.split("```")
    assert len(candidates.strip().split("\n")) == 3
    rate, width = known.strip().split("\n")
    assert rate.startswith("RATE: 0.02 -> 0.04: +0.3")
    assert width.startswith("WIDTH: 128 -> 64: +0.2")
    assert state in dataclasses.replace(told, optimizer=state).text()
    assert Optimize(1).state(dataclasses.replace(told, sources={"solver.py": "pass"})) == ""


def test_what_helped_is_done_again_and_what_harmed_is_not(call):
    """Higher is better here. Each constant was moved both ways; nothing of it was kept."""
    history, noise = [BASELINE], 0.01
    for number in range(2, 10):
        up = number % 2 == 0
        history.append(tried(number, 1.1 if up else 0.9, {"RATE": [0.02, 0.03 if up else 0.01]}))
        history.append(tried(number + 20, 0.8, {"WIDTH": [128, 256 if up else 64]}))
    edits = [proposal(call, number, attempts=history, noise=noise)[0] for number in range(30, 50)]
    rates = [edit.description for edit in edits if "RATE: 0.02 -> " in edit.description]
    assert len(rates) >= 18
    assert all(float(words.partition("RATE: 0.02 -> ")[2].split(",")[0]) > 0.02 for words in rates)
    assert sum("WIDTH" in edit.description for edit in edits) <= 2
    assert all(edit.predicted > 0 for edit in edits)


def test_sizes_are_varied_before_rates(call):
    """A whole number decides what is computed, and how many steps a fixed time has: it may change more."""
    call.original = b"A = 0.1\nB = 0.2\nC = 0.3\nBATCH = 64\nD = 0.4\nON = True\nE = 0.5\n"
    edits = [proposal(call, number, noise=0.01)[0].description for number in range(2, 22)]
    assert sum("BATCH" in edit for edit in edits) >= 15


def test_nothing_is_tried_twice(call):
    call.original = b"VALUE = 1\n"
    said, text = proposal(call, 2)
    assert (said.description, text) == ("VALUE: 1 -> 2", "VALUE = 2\n")  # the one step that there is
    same = tried(2, 0.5, {"VALUE": [1, 2]})
    same.edit = edit_hash({"solver.py": text.encode()})
    for more in (
        {"attempts": [BASELINE, same]},
        {"in_flight": [same]},
        {"refused": [Refused(number=2, reason="no", description=said.description)]},
    ):
        with pytest.raises(NothingLeft, match="every step from here has been tried"):
            proposal(call, 3, **more)
    call.original = b"NAME = 'SSL'\nTWICE = 1\nTWICE = 2\n"
    with pytest.raises(NothingLeft, match="no constant to vary"):
        proposal(call, 2)


def test_where_the_constants_of_an_attempt_stand():
    """In relation to the baseline's, along its parents; an edit of code that was kept is a place of its own."""
    kept = tried(2, 1.2, {"RATE": [0.02, 0.04], "SHARE": [0.95, 0.9]}, status="keep")
    code = dataclasses.replace(tried(3, 1.3, None, status="keep"), parent=kept.commit)
    last = dataclasses.replace(tried(4, 1.1, {"RATE": [0.04, 0.01], "NAME": ["SSL", "SL"]}), parent=code.commit)
    lost = tried(5, 0.5, None)  # an edit of code that was not kept says nothing of constants
    places = places_of([BASELINE, kept, code, last, lost])
    assert places[kept.commit] == pytest.approx({"RATE": 1.0, "SHARE": 1.0})
    assert places[code.commit] == pytest.approx({"RATE": 1.0, "SHARE": 1.0, "code 3": 1.0})
    assert places[last.commit] == pytest.approx({"RATE": -1.0, "SHARE": 1.0, "code 3": 1.0})
    assert lost.commit not in places


def test_what_the_machine_did_to_edit_and_champion_is_not_the_edits_effect():
    """A gain of 0.02 beside a neighbour, from a champion that scored worse there, too. Higher is better."""
    gain = tried(2, 0.90, {"RATE": [0.02, 0.04]}, standing=0.88, status="keep")
    on_top = dataclasses.replace(tried(3, 1.10, {"WIDTH": [128, 256]}, standing=1.05), parent=gain.commit)
    losses = losses_of([BASELINE, gain, tried(4, None, None), on_top], -1)
    assert losses[gain.commit] == pytest.approx(losses[BASELINE.commit] - 0.02)
    assert losses[on_top.commit] == pytest.approx(losses[BASELINE.commit] - 0.07) and len(losses) == 3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (1, 2, 1.0),
        (0.02, 0.01, -1.0),
        (0.9, 0.95, -1.0),
        (0.9, 1.8, 1.0),
        (-2, -4, 1.0),
        (0, 3, 1.0),
        (3, 0, -1.0),
        (True, False, -1.0),
        (5, 5, 0.0),
    ],
)
def test_distance(old, new, expected):
    assert distance(float(old), float(new)) == pytest.approx(expected)


@pytest.mark.slow
def test_a_run_that_is_taken_up_again_goes_on_as_it_would_have(toy):
    lines = "".join(f"C{i} = {i + 1}.5\n" for i in range(4))
    toy.write("solver.py", f"{lines}print('score:', 10 - abs(C0 - 3) - abs(C3 - 9))\n")
    toy.write("check.py", "pass\n")
    toy.commit()
    toy.run("--agent", "optimize", "--experiments", "9", "--baseline-runs", "1", "--tag", "whole")
    whole = toy.rows()
    for number in ("4", "9"):
        output = toy.run("--agent", "optimize", "--experiments", number, "--baseline-runs", "1", "--tag", "parts")
    rows = [[(score, status, edit) for _, score, _, status, edit in rows] for rows in (toy.rows(), whole)]
    assert rows[0] == rows[1] and len(whole) == 9
    assert "keep" in {row[3] for row in whole[1:]}
    assert "optimize (no model: learns the effect of each constant from all attempts)" in output
