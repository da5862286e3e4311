"""What people tell a run from another process: notes, a pause."""

import json
import signal

from conftest import solver, step, wait_for
from test_loop import WAITING

from autoresearch.inbox import take_in
from autoresearch.record.ledger import Ledger


def test_notes_and_a_pause_while_the_loop_runs(toy, refused):
    """A pause lets the running trial end, and holds after a restart. The next brief has the note."""
    toy.plan_steps(
        e2=[{"files": {"solver.py": solver(2, before=WAITING)}, "say": "wait"}], otherwise=[step(3), step(4)]
    )
    night = [*toy.agent, "--experiments", "3", "--baseline-runs", "1"]
    process = toy.start(*night)
    wait_for((toy.runs / "trials/2/run/started").exists)
    toy.run("note", "try smaller  batches")
    toy.run("pause")
    wait_for(lambda: toy.journal("pause"))
    (toy.runs / "trials/2/run/release").touch()
    wait_for(lambda: len(toy.journal("verdict")) == 2)
    assert "paused: nothing new begins until" in toy.run("status")
    state = json.loads(toy.run("status", "--json"))
    assert state["paused"] and state["running"] and state["notes"] == ["try smaller batches"]
    process.send_signal(signal.SIGINT)
    assert "a note for the agent: try smaller batches" in process.communicate(timeout=60)[0] and not process.returncode
    assert len(toy.journal("attempt")) == 2 and "is paused by the people who run it" in refused("try", "-m", "x")
    process = toy.start(*night)
    assert any("paused, as before" in line for line in process.stdout)
    toy.run("resume")
    assert "the pause is over" in process.communicate(timeout=60)[0]
    assert toy.statuses() == ["keep"] * 3
    assert "try smaller batches (before experiment 3)" in (toy.runs / "proposals/3/brief.md").read_text()
    toy.require_whole()

    toy.run("note", "and fewer layers")  # while nobody is at work
    assert [note["text"] for note in toy.journal("note")] == ["try smaller batches", "and fewer layers"]
    box, ledger = toy.runs / "inbox", Ledger(toy.runs)
    (box / "1-1.json").write_text(json.dumps({"event": "verdict", "number": 1, "status": "keep", "score": 9}))
    (box / "1-2.json").write_text("{")
    again = toy.journal("note")[0]
    (box / f"{again['message']}.json").write_text(json.dumps(again))  # killed after it was recorded
    assert take_in(toy.runs, ledger) == [] and not list(box.glob("*.json")) and len(ledger.notes) == 2


def test_an_agenda_edited_in_the_night_counts_from_the_next_proposal(toy):
    toy.plan_steps(e2=[{"files": {"solver.py": solver(2, before=WAITING)}, "say": "wait"}], otherwise=[step(3)])
    process = toy.start(*toy.agent, "--experiments", "3", "--baseline-runs", "1")
    wait_for((toy.runs / "trials/2/run/started").exists)
    toy.write("program.md", (toy.folder / "program.md").read_text() + "Prefer odd numbers.\n")
    (toy.runs / "trials/2/run/release").touch()
    process.communicate(timeout=60)
    briefs = [(toy.runs / f"proposals/{number}/brief.md").read_text() for number in (2, 3)]
    assert ["Prefer odd numbers." in brief for brief in briefs] == [False, True]
