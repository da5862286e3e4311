"""A busy machine is no bad idea: what others take of the processors is not held against an edit, nor for it.

The toy's score is the share of one processor that it got while its clock ran: all of it, or half beside a neighbour.
The test's own Python takes some of it as well; what is compared may differ by as much as `most_taken`, no more.
"""

import contextlib
import os
import subprocess
import sys

import pytest
from conftest import Toy

pytestmark = pytest.mark.alone

SOLVER = """# {edit}
import json, os, pathlib, time

BUDGET = 2.0
progress = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"], "progress.json")
progress.write_text(json.dumps({{"clock": time.time(), "budget": BUDGET}}))
began, used = time.monotonic(), time.process_time()
while time.monotonic() < began + BUDGET:
    pass
print(f"score: {{(time.process_time() - used) / BUDGET:.3f}}")
VALUE = {edit}
"""
FACTS = """print('{"most_taken": 0.15, "time_budget": 2, "noise": 0.4}')"""  # a gain above 0.2 is kept


@pytest.fixture
def busy(toy) -> Toy:
    toy.against_the_clock(FACTS, SOLVER, range(2, 9))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield toy
    os.sched_setaffinity(0, before)


@contextlib.contextmanager
def neighbour():
    """A program that takes half of that processor."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield process
        finally:
            process.kill()


def require_fair(toy: Toy) -> None:
    """No verdict took a neighbour for a bad idea, nor his absence for a good one."""
    verdicts = toy.journal("verdict")
    for verdict in verdicts[1:]:
        assert abs(verdict["score"] - verdict["standing"]) < 0.25, verdict["reason"]
    assert toy.statuses() == ["keep", *["discard"] * (len(verdicts) - 1)]


def test_a_neighbour_who_comes_and_goes_changes_no_verdict(busy):
    busy.run_agent(1)
    with neighbour():
        output = busy.run_agent(2)
        assert "other programs used" in output and "waiting until the machine is free" in output
        assert 1 <= len(busy.journal("rerun")) <= 4, "at most twice for each experiment"
        assert busy.journal("in turn"), "after that the champion runs beside the neighbour, too"
        busy.run_agent(3)
    busy.run_agent(4)
    require_fair(busy)
    notes = ["of the CPU while it trained" in verdict["reason"] for verdict in busy.journal("verdict")]
    assert all(notes[1:3])


def test_an_edit_is_not_better_because_the_neighbour_of_the_baseline_has_left(busy):
    with neighbour():
        busy.run_agent(1)
    busy.run_agent(2)
    require_fair(busy)
    assert busy.journal("in turn"), "the champion ran again for the first edit after it"


def test_what_no_run_of_its_champion_compares_with_runs_again(busy):
    with neighbour():
        busy.run_agent(1)
    with contextlib.ExitStack() as beside:
        loop = busy.start(*busy.agent, "--experiments", "2")
        lines, void = [], False
        for line in loop.stdout:
            lines.append(line)
            if "the champion again" in line and not void:
                beside.enter_context(neighbour())
            if "no run of its champion is comparable" in line:
                beside.close()
                void = True
        assert loop.wait(60) == 0, "".join(lines)
    require_fair(busy)
    [again] = [entry for entry in busy.journal("rerun") if entry["number"] == 2]
    assert "no run of its champion is comparable" in again["reason"] and again["taken"] < 0.15


def test_what_was_void_runs_again_when_the_neighbour_is_done(busy):
    busy.run_agent(1)
    with neighbour() as process:
        loop = busy.start(*busy.agent, "--experiments", "2")
        lines = []
        for line in loop.stdout:
            lines.append(line)
            if "waiting until the machine is free" in line:
                process.kill()
        assert loop.wait(60) == 0, "".join(lines)
    assert busy.journal("rerun")[-1]["taken"] > 0.15
    require_fair(busy)


def test_ctrl_c_while_it_waits_leaves_the_trial_to_be_run(busy):
    busy.run_agent(1)
    with neighbour():
        busy.run_until("waiting until the machine is free", *busy.agent, "--experiments", "2")
        assert len(busy.journal("verdict")) == 1
        assert [entry["number"] for entry in busy.journal("trial")].count(2) == 1, "it did not begin again"
    busy.run_agent(2)
    require_fair(busy)
    busy.require_whole()
