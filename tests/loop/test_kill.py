"""SIGKILL at every step of a night, and the same command again: nothing is lost, nothing is recorded twice."""

import itertools
import signal

import pytest
from conftest import ROOT, Toy, git, step
from kill_loop import STEPS
from test_night import constants, edit, two  # noqa: F401

pytestmark = pytest.mark.slow
NAMES = list(STEPS)
AHEAD = NAMES.index("an edit is moved")


def killed_and_continued(toy: Toy, name: str, *arguments: str) -> None:
    words = [*toy.agent, "--baseline-runs", "1", "--repairs", "0", "--sandbox", "off", *arguments]
    process = toy.start(name, *words, loop=ROOT / "tests/loop/kill_loop.py")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"it was never there:\n{output}"
    toy.run(*words)


def require_nothing_lost_or_twice(toy: Toy) -> None:
    verdicts = [entry["number"] for entry in toy.journal("verdict")]
    assert sorted(verdicts) == list(range(1, len(verdicts) + 1)), "an experiment has no verdict, or two"
    commits = {entry["number"]: entry["commit"] for entry in toy.journal() if entry["event"] in ("attempt", "moved")}
    for number, commit in commits.items():
        assert git(toy.folder, "rev-parse", f"refs/autoresearch/night/{number}") == commit
    kept = [commits[entry["number"]] for entry in toy.journal("verdict") if entry["status"] == "keep"]
    assert toy.tip() == kept[-1] == git(toy.runs / "worktree", "rev-parse", "HEAD")
    for before, after in itertools.pairwise(kept):
        assert git(toy.folder, "rev-parse", f"{after}^") == before
    text = (toy.folder / "results.tsv").read_text()
    assert len(toy.rows()) == len(verdicts)
    toy.run("results")
    assert (toy.folder / "results.tsv").read_text() == text


@pytest.mark.parametrize("name", NAMES[:AHEAD])
def test_killed(toy, name):
    toy.plan_steps(e2=[step(2)], e3=[step(3)], e4=[step(0.5)], e5=[step(5)])
    killed_and_continued(toy, name, "--experiments", "5")
    assert toy.statuses() == ["keep", "keep", "keep", "discard", "keep"]
    assert [float(row[1]) for row in toy.rows()] == [1, 2, 3, 0.5, 5]
    require_nothing_lost_or_twice(toy)
    if name != "the edit is committed":  # of which the journal never heard: it is proposed again
        toy.require_whole()


@pytest.mark.parametrize("name", NAMES[AHEAD:-1])
def test_killed_with_a_proposal_ahead(two, name):  # noqa: F811
    two.plan_steps(e2=[edit(two, 2, 1, '"number": 3, "commit"')], e3=[edit(two, 1, 2)], e4=[edit(two, 0, 0)])
    killed_and_continued(two, name, "--experiments", "4", "--lookahead", "1")
    assert two.statuses()[:3] == ["keep"] * 3 and constants(two, two.tip()) == ["2", "2"]
    require_nothing_lost_or_twice(two)


@pytest.mark.parametrize("name", ["a trial has to run again", "half a move is recorded", "the move is recorded"])
def test_killed_with_two_workers(two, name):  # noqa: F811
    two.plan_steps(
        e2=[edit(two, 2, 1, '"number": 3, "worker"')],
        e3=[edit(two, 1, 3, '"number": 2, "status": "keep"', between=True)],
    )
    killed_and_continued(two, name, "--experiments", "3", "--workers", "2")
    assert two.statuses() == ["keep"] * 3 and constants(two, two.tip()) == ["2", "3"]
    require_nothing_lost_or_twice(two)


def test_killed_again_and_again(toy):
    """Each start is killed at the next step, until nothing is left to be killed at."""
    toy.plan_steps(e2=[step(2)], e3=[step(3)], e4=[step(0.5)], e5=[step(5)])
    words = [*toy.agent, "--baseline-runs", "1", "--repairs", "0", "--sandbox", "off", "--experiments", "5"]
    for name in (
        "the run is recorded",
        "the stage is set",
        "the trial is over",
        "the score is recorded",
        "the branch is moved",
        "the agent has edited",
        "the edit is committed",
        "half a row is written",
        "the end is recorded",
    ):
        toy.start(name, *words, loop=ROOT / "tests/loop/kill_loop.py").communicate(timeout=60)
    toy.run(*words)
    assert [float(row[1]) for row in toy.rows()] == [1, 2, 3, 0.5, 5]
    require_nothing_lost_or_twice(toy)
