"""What people tell a run from another process: notes, a pause."""

import json
import signal

import pytest
from calls import fake_claude, prints
from conftest import solver, step, wait_for
from test_clients import sets
from test_loop import WAITING

from autoresearch.inbox import take_in
from autoresearch.record.ledger import Ledger


@pytest.mark.slow
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
    assert "paused: nothing new starts until" in toy.run("status")
    state = json.loads(toy.run("status", "--json"))
    assert state["paused"] and state["running"] and state["notes"] == ["try smaller batches"]
    process.send_signal(signal.SIGINT)
    assert "a note for the agent: try smaller batches" in process.communicate(timeout=60)[0] and not process.returncode
    assert len(toy.journal("attempt")) == 2 and "is paused by its owner" in refused("try", "-m", "x")
    process = toy.start(*night)
    assert any("still paused" in line for line in process.stdout)
    toy.run("resume")
    assert "resumed" in process.communicate(timeout=60)[0]
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


def test_a_note_in_whatever_locale_the_loop_runs(toy):
    """Who leaves it may have another."""
    toy.plan_steps(e2=[step(5)])
    toy.run_agent(1)
    box = toy.runs / "inbox"
    box.mkdir()
    (box / "1-1.json").write_text(json.dumps({"event": "note", "text": "größer"}, ensure_ascii=False), "utf-8")
    toy.run_agent(2, LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert [note["text"] for note in toy.journal("note")] == ["größer"]
    assert "größer" in (toy.runs / "proposals/2/brief.md").read_text()


# -- what waits for a word


@pytest.mark.slow
def test_edits_wait_and_the_agent_is_told_why_not(toy, refused):
    toy.plan_steps(e2=[step(2)], e3=[step(3)], e4=[step(4)])
    night = [*toy.agent, "--baseline-runs", "1", "--experiments"]
    process = toy.start(*night, "3", "--approve", "edits")
    wait_for(lambda: len(toy.journal("held")) == 2)  # and others go on being proposed
    assert len(toy.journal("trial")) == 1 and "does not wait for your approval" in refused("approve", "7")
    assert "experiment 2: its edit waits for your approval before it is tried" in toy.run("status")
    assert "needs a reason" in refused("reject", "2")
    toy.run("reject", "2", "-m", "two is too few")
    toy.run("approve", "3")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "approve   waits for your approval: edits" in output
    assert sorted(toy.statuses()) == ["crash", "keep", "keep"] and len(toy.journal("trial")) == 2
    toy.run(*night, "4")
    assert "rejected before its trial: two is too few" in (toy.runs / "proposals/4/brief.md").read_text()
    toy.require_results()


@pytest.mark.slow
def test_keeps_wait_while_others_run(toy):
    """Through a restart; what was kept meanwhile, and a no."""
    toy.plan_steps(e2=[step(2)], e3=[step(-3)], e4=[step(4)])
    night = [*toy.agent, "--baseline-runs", "1", "--approve", "keeps", "--experiments"]
    process = toy.start(*night, "3")
    wait_for(lambda: len(toy.journal("verdict")) == 2)
    assert toy.journal("held")[0]["number"] == 2 and toy.journal("verdict")[1]["number"] == 3
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert "is approved; to continue: " in toy.run("approve", "2")
    process = toy.start(*night, "4")
    wait_for(lambda: len(toy.journal("held")) == 2)
    toy.run("reject", "4", "-m", "not that")
    assert process.communicate(timeout=60)[0] and process.returncode == 0
    assert toy.statuses() == ["keep", "discard", "keep", "discard"] and len(toy.journal("trial")) == 4
    assert toy.journal("verdict")[3]["reason"].startswith("rejected: not that (4 is 2 better")
    assert toy.tip() == toy.journal("attempt")[1]["commit"]
    toy.require_results()


@pytest.mark.slow
def test_cost_waits(toy, tmp_path):
    answer = prints("up", total_cost_usd=0.2, modelUsage={"a": {"inputTokens": 100}})
    more = {"PATH": fake_claude(tmp_path / "bin"), "ANTHROPIC_API_KEY": "x", "FAKE_DOES": sets("n") + answer}
    arguments = ["--agent", "claude-code", "--baseline-runs", "1", "--lookahead", "0", "--approve", "cost:0.3"]
    process = toy.start(*arguments, **more)
    for number, (command, verdicts) in {4: (["approve", "4"], 3), 6: (["reject", "6", "-m", "enough"], 5)}.items():
        wait_for(lambda number=number: any(held["number"] == number for held in toy.journal("held")))
        wait_for(lambda verdicts=verdicts: len(toy.journal("verdict")) == verdicts)  # what was paid for runs
        toy.run(*command)
    output, _ = process.communicate(timeout=60)
    assert "stopped: more cost was rejected: enough" in output and toy.statuses() == ["keep"] * 5
    toy.require_whole()


@pytest.mark.parametrize("words", ["all", "cost", "cost:x", "cost:0", "edits,cost:-1"])
def test_what_cannot_wait(toy, refused, words):
    assert "--approve takes edits, keeps, cost:5" in refused("--approve", words)
