"""SIGKILL at every step of a night, and the same command again: nothing is lost, nothing is recorded twice."""

import itertools
import signal

import pytest
from conftest import ROOT, Toy, git, step
from kill_loop import STEPS
from test_night import constants, edit, two  # noqa: F401

pytestmark = pytest.mark.slow
NAMES = list(STEPS)
FIRST, AHEAD = NAMES.index("the worktree is reset"), NAMES.index("an edit is moved")
GROUPS = 4  # nights that share the steps of an experiment


def killed(toy: Toy, name: str, number: int, *arguments: str) -> None:
    """A start that is killed at a step of experiment `number`."""
    process = toy.start(name, str(number), *words(toy, *arguments), loop=ROOT / "tests/loop/kill_loop.py")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, f"it never came to {name!r}:\n{output}"


def words(toy: Toy, *arguments: str) -> list[str]:
    agent = [] if "--agent" in arguments else toy.agent
    return [*agent, "--baseline-runs", "1", "--repairs", "0", "--sandbox", "off", *arguments]


def killed_and_continued(toy: Toy, name: str, number: int, *arguments: str) -> None:
    killed(toy, name, number, *arguments)
    toy.run(*words(toy, *arguments))


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
    assert len(toy.rows()) == len(verdicts)
    toy.require_results()


def test_killed_at_its_beginning_and_its_end(toy):
    """One run: each start is killed at the next step of it, until nothing is left to be killed at."""
    toy.plan_steps(e2=[step(2)])
    for name in NAMES[:FIRST]:
        killed(toy, name, 1, "--experiments", "2")
    toy.run(*words(toy, "--experiments", "2"))
    assert [float(row[1]) for row in toy.rows()] == [1, 2]
    require_nothing_lost_or_twice(toy)
    toy.require_whole()


@pytest.mark.parametrize("group", range(GROUPS))
def test_killed_in_each_experiment(toy, group):
    """Each start is killed in the next experiment, at another step; then two more come, the first of them worse."""
    steps = NAMES[FIRST:AHEAD][group::GROUPS]
    last = len(steps) + 1
    toy.plan_steps(
        **{f"e{last + 1}": [step(0.5)]},
        **{f"e{number}": [step(number)] for number in range(2, last + 3) if number != last + 1},
    )
    count = ("--experiments", str(last + 2))
    for number, name in enumerate(steps, 2):
        killed(toy, name, number, *count)
    toy.run(*words(toy, *count))
    assert [float(row[1]) for row in toy.rows()] == [*range(1, last + 1), 0.5, last + 2]
    assert toy.statuses() == [*["keep"] * last, "discard", "keep"]
    require_nothing_lost_or_twice(toy)
    toy.require_whole()


@pytest.mark.parametrize("name", NAMES[AHEAD:-1])
def test_killed_with_a_proposal_ahead(two, name):  # noqa: F811
    two.plan_steps(e2=[edit(two, 2, 1, '"number": 3, "commit"')], e3=[edit(two, 1, 2)], e4=[edit(two, 0, 0)])
    killed_and_continued(two, name, 3, "--experiments", "4", "--lookahead", "1")
    assert two.statuses()[:3] == ["keep"] * 3 and constants(two, two.tip()) == ["2", "2"]
    require_nothing_lost_or_twice(two)


@pytest.mark.parametrize("name", ["a trial has to run again", "half a move is recorded", "the move is recorded"])
def test_killed_with_two_workers(two, name):  # noqa: F811
    two.plan_steps(
        e2=[edit(two, 2, 1, '"number": 3, "worker"')],
        e3=[edit(two, 1, 3, '"number": 2, "status": "keep"', between=True)],
    )
    killed_and_continued(two, name, 3, "--experiments", "3", "--workers", "2")
    assert two.statuses() == ["keep"] * 3 and constants(two, two.tip()) == ["2", "3"]
    require_nothing_lost_or_twice(two)


def test_an_optimizer_that_is_killed_proposes_what_it_would_have(toy):
    """It has no state of its own: what it proposes follows from the record."""
    lines = "".join(f"C{i} = {i + 1}.5\n" for i in range(4))
    toy.write("solver.py", f"{lines}print('score:', 10 - abs(C0 - 3) - abs(C3 - 9))\n")
    toy.write("check.py", "pass\n")
    toy.commit()
    nine = ["--agent", "optimize", "--experiments", "9"]
    toy.run(*words(toy, *nine), "--tag", "whole")
    whole = [(score, status, description) for _, score, _, status, description in toy.rows()]
    steps = ("the edit is committed", 3), ("the attempt is recorded", 5), ("the verdict is recorded", 7)
    for name, number in steps:
        killed(toy, name, number, *nine)
    toy.run(*words(toy, *nine))
    assert [(row[1], *row[3:]) for row in toy.rows()] == whole and len(whole) == 9
