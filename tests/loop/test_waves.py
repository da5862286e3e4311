"""Several proposals at once: each in a worktree of its own, told of the others, and none like another. Real nights."""

import json
import re
import signal
import sys

import pytest
from conftest import ROOT, Toy, git
from test_kill import require_nothing_lost_or_twice, words
from test_night import constants, edit, two  # noqa: F401

# An agent that comes back when as many of its kind are at work as the first argument says, or have been. What it makes
# is like nothing else, and worse than the champion.
MEETS = """import os, pathlib, re, sys, time
brief, here = sys.stdin.read(), pathlib.Path(sys.argv[2])
number = int(re.match(r"# Experiment (\\d+)", brief)[1])
(here / str(os.getpid())).touch()
deadline = time.monotonic() + 60
while len(list(here.iterdir())) < int(sys.argv[1]) and time.monotonic() < deadline:
    time.sleep(0.02)
text = open("solver.py").read()
open("solver.py", "w").write(re.sub("VALUE = .*", f"VALUE = -{os.getpid()}", text))
print(f"description: {number} in {os.path.basename(os.getcwd())}\\ncategory: data structures")
"""


def meets(toy: Toy, agents: int) -> list[str]:
    """The words of an agent that meets others of its kind."""
    program, here = toy.folder.parent / "meets.py", toy.folder.parent / "here"
    program.write_text(MEETS)
    here.mkdir()
    usual = ["--baseline-runs", "1", "--repairs", "0", "--sandbox", "off"]
    return ["--agent", "command", "--agent-command", f"{sys.executable} {program} {agents} {here}", *usual]


def numbers(toy: Toy, event: str) -> list[int]:
    return [entry["number"] for entry in toy.journal(event)]


def test_as_many_proposals_at_once_as_seats_are_idle(toy):
    """Fails where one is asked for at a time (then each waits for a minute), where two share a worktree, where one more
    is made than --experiments allows, or where numbers have gaps."""
    toy.run(*meets(toy, 3), "--workers", "3", "--experiments", "4", "--lookahead", "0")
    assert numbers(toy, "attempt") == [1, 2, 3, 4] and sorted(numbers(toy, "verdict")) == [1, 2, 3, 4]
    made = [entry["description"].split(" in ") for entry in toy.journal("attempt")[1:]]
    assert sorted(where for _, where in made) == ["worktree", "worktree-1", "worktree-2"]
    assert sorted(value for value, _ in made) == ["2", "3", "4"] and not toy.journal("refused")
    toy.require_whole(in_order=False)
    require_nothing_lost_or_twice(toy)


def test_each_is_told_of_the_others_and_asked_to_begin_elsewhere(toy):
    toy.run(*meets(toy, 3), "--workers", "3", "--experiments", "4", "--lookahead", "0")
    briefs = [(toy.runs / f"proposals/{number}/brief.md").read_text() for number in (2, 3, 4)]
    asked = [re.search(r"so begin with ([\w ]+);", brief)[1] for brief in briefs]
    assert len(set(asked)) == 3 and all("## In flight, without a verdict yet" in brief for brief in briefs)
    assert f"2. in the making: asked to begin with {asked[0]}\n3. in the making: asked to" in briefs[2]


def test_with_one_seat_one_is_made_at_a_time(toy):
    """Or with --proposers 1: the second agent would wait for the first for a minute, and be told of it."""
    toy.run(*meets(toy, 1), "--workers", "2", "--proposers", "1", "--experiments", "4")
    assert sorted(path.name for path in toy.runs.glob("worktree*")) == ["worktree"]
    toy.run(*meets_again(toy), "--tag", "one-seat", "--experiments", "4", "--lookahead", "2")
    assert sorted(path.name for path in (toy.folder / ".autoresearch/one-seat").glob("worktree*")) == ["worktree"]


def meets_again(toy: Toy) -> list[str]:
    program, here = toy.folder.parent / "meets.py", toy.folder.parent / "here"
    usual = ["--baseline-runs", "1", "--repairs", "0", "--sandbox", "off"]
    return ["--agent", "command", "--agent-command", f"{sys.executable} {program} 1 {here}", *usual]


KNOBS = "".join(f"KNOB_{letter} = {value}\n" for letter, value in zip("ABCDEFGHIJ", range(20, 120, 10), strict=True))
WAITS = """{knobs}
if __name__ == '__main__':
    import pathlib, time
    journal = pathlib.Path({journal!r})
    while 1 < journal.read_text().count('"event": "trial"') < {trials}:
        time.sleep(0.02)
    print('score:', {score})
"""


@pytest.mark.parametrize("agent", ["sweep", "optimize"])
def test_eight_idle_seats_get_eight_different_proposals(toy, agent):
    """Trials end when eight run. Fails where proposals repeat one another, and so are refused or leave a seat idle."""
    journal = str(toy.runs / "journal.jsonl")
    toy.write("solver.py", WAITS.format(knobs=KNOBS, journal=journal, trials=9, score="KNOB_A"))
    toy.write("check.py", "")
    toy.commit()
    usual = ["--baseline-runs", "1", "--repairs", "0", "--sandbox", "off"]
    toy.run("--agent", agent, *usual, "--workers", "8", "--experiments", "9")
    edits = [entry["edit"] for entry in toy.journal("attempt")[1:]]
    assert len(set(edits)) == len(edits) == 8 and not toy.journal("refused")
    order = [entry["event"] for entry in toy.journal() if entry["event"] in ("trial", "verdict")]
    assert order[2:10] == ["trial"] * 8, "they did not all run at once"
    assert sorted(numbers(toy, "verdict")) == list(range(1, 10))


def test_of_two_winners_of_one_wave_both_gains_end_up_on_the_branch(two):  # noqa: F811
    """The second one is moved onto the first, and that combination is what is tested and kept."""
    two.plan_steps(
        e2=[edit(two, 3, 1, '"number": 3, "worker"')],
        e3=[edit(two, 1, 4, '"number": 2, "worker"', '"number": 2, "status": "keep"', between=True)],
    )
    two.run(*words(two, "--experiments", "3", "--workers", "2"))
    assert two.statuses() == ["keep"] * 3 and constants(two, two.tip()) == ["3", "4"]
    assert [float(row[1]) for row in two.rows()] == [2.0, 4.0, 7.0]
    parents = {entry["number"]: entry["parent"] for entry in two.journal("attempt")}
    assert parents[2] == parents[3], "they were not of one wave"
    require_nothing_lost_or_twice(two)


@pytest.mark.parametrize(("second", "tip"), [((1, 4), ["3", "4"]), ((2, 4), ["2", "4"])])
def test_winners_that_change_neighbouring_constants_are_combined(toy, second, tip):
    """git cannot merge changes of lines that touch. Where the second changes the first one's constant, too, there is
    nothing to combine: it goes back to its agent, who makes the same again on the new champion."""
    journal = str(toy.runs / "journal.jsonl")

    def both(a: int, b: int) -> dict:
        knobs = f"KNOB_A = {a}\nKNOB_B = {b}"
        text = WAITS.format(knobs=knobs, journal=journal, trials=3, score="KNOB_A + KNOB_B")
        return {"files": {"solver.py": text}, "say": f"{a} and {b}"}

    toy.write("solver.py", both(1, 1)["files"]["solver.py"])
    toy.write("check.py", "")
    toy.commit()
    toy.plan_steps(e2=[both(3, 1)], e3=[both(*second)])
    toy.run(*words(toy, "--experiments", "3", "--workers", "2"))
    source = git(toy.folder, "show", f"{toy.tip()}:solver.py")
    assert re.findall(r"^KNOB_. = (\d+)", source, re.MULTILINE) == tip
    assert bool(toy.journal("moved")) == (tip == ["3", "4"])
    require_nothing_lost_or_twice(toy)


IN_THE_MAKING = (
    "the agent has edited",
    "the edit is looked at",
    "the edit is committed",
    "half an attempt is recorded",
    "the attempt is recorded",
    "the attempt has its reference",
)


@pytest.mark.slow
def test_killed_with_several_in_the_making(toy):
    """Each start is killed while three agents are at work or have just been, at another step of the first or the second
    that is committed. Fails where a number is given twice or left out, or an attempt has no reference or two verdicts.
    """
    night = [*meets(toy, 3), "--workers", "3", "--lookahead", "0", "--experiments", "14"]
    for place, name in enumerate(IN_THE_MAKING):
        journal = toy.runs / "journal.jsonl"
        recorded = journal.read_text().count('"event": "attempt"') if place else 1
        recorded -= IN_THE_MAKING[place - 1].startswith("half")
        process = toy.start(name, str(recorded + 1 + place % 2), *night, loop=ROOT / "tests/loop/kill_loop.py")
        output, _ = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, f"it never came to {name!r}:\n{output}"
    toy.run(*night)
    assert numbers(toy, "attempt") == list(range(1, 15)) and not toy.journal("refused")
    require_nothing_lost_or_twice(toy)
    toy.require_whole(in_order=False)


def test_agents_that_cannot_be_reached_are_called_again_one_at_a_time(toy):
    """Three proposals meet the same outage: one wait, then one call, and when that is answered all go on."""
    program, calls = toy.folder.parent / "away.py", toy.folder.parent / "calls"
    calls.mkdir()
    program.write_text(
        MEETS.replace(
            "text = open", f"calls = pathlib.Path({str(calls)!r})\n(calls / str(time.monotonic_ns())).touch()\n"
            "if len(list(calls.iterdir())) <= 3:\n    print('503 overloaded')\n    sys.exit(1)\ntext = open",
        )
    )  # fmt: skip
    here = toy.folder.parent / "here"
    here.mkdir()
    agent = f"{sys.executable} {program} 3 {here}"
    usual = ["--baseline-runs", "1", "--repairs", "0", "--sandbox", "off", "--workers", "3", "--lookahead", "0"]
    toy.run("--agent", "command", "--agent-command", agent, *usual, "--experiments", "4")
    refused, waited = toy.journal("refused"), toy.journal("waited")
    assert len(refused) == 3 and len(waited) == 1, json.dumps([refused, waited])
    assert sorted(numbers(toy, "verdict")) == [1, 2, 3, 4]
    assert not git(toy.folder, "status", "--porcelain")
