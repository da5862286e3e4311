"""What users bring along: git settings, names, odd output. None of it ends a night or lets it touch what is theirs."""

import shutil
import threading

import pytest
from conftest import Toy, git, solver, step

from autoresearch import UserError
from autoresearch.limits import Limits


def test_a_night_in_odd_surroundings(tmp_path, environment):
    toy = Toy(tmp_path / "a%20b é", environment)
    (toy.folder / ".git/info/exclude").write_bytes(b"caf\xe9\n")
    settings = {"commit.cleanup": "strip", "submodule.recurse": "true", "protocol.file.allow": "never"}
    for name, value in settings.items():
        git(toy.folder, "config", name, value)
    odd = solver(3).replace("    print(", "    print('run: 20240101_')\n    print(")
    toy.plan_steps(
        e2=[step(2, "# a heading")],
        e3=[{"files": {"solver.py": odd}, "say": "prints an identifier"}],
        e4=[{"files": {"solver.py": solver(4, "LIMIT = 1e400\n")}, "say": "without a limit " * 40}],
    )
    git_here = {"GIT_DIR": str(toy.folder / ".git"), "GIT_INDEX_FILE": str(toy.folder / ".git/index")}
    git_here["GIT_LITERAL_PATHSPECS"] = "1"
    toy.run_agent(4, PYTHONIOENCODING="latin-1", **git_here)
    assert toy.statuses() == ["keep"] * 4 and toy.rows()[1][4] == "# a heading"
    assert git(toy.folder, "rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert git(toy.folder, "status", "--porcelain") == ""
    toy.require_whole()


@pytest.mark.slow
def test_a_worktree_of_the_users_that_is_away_stays_known(toy, tmp_path):
    away = tmp_path / "disk/theirs"
    git(toy.folder, "worktree", "add", "-q", "--detach", str(away))
    (away / "solver.py").write_text(solver(99))
    git(away, "add", "solver.py")
    away.parent.rename(tmp_path / "unmounted")
    toy.plan_steps(e2=[step(2)], e3=[step(3)])
    toy.run_agent(2)
    shutil.rmtree(toy.runs / "worktree")
    toy.run_agent(3)
    toy.run("clean", "--yes")
    (tmp_path / "unmounted").rename(away.parent)
    assert git(away, "status", "--porcelain") == "M  solver.py"


@pytest.mark.slow
def test_two_runs_at_once_leave_a_whole_table(toy):
    """Each shows all of its own rows, never some of both, and both go on."""
    other = Toy.__new__(Toy)
    other.__dict__ = dict(toy.__dict__, tag="other")
    toy.plan_steps(otherwise=[step(2)], e3=[step(3)], e4=[step(4)], e5=[step(5)])
    nights = [threading.Thread(target=run.run_agent, args=(4,)) for run in (toy, other)]
    for night in nights:
        night.start()
    for night in nights:
        night.join()
    assert len(toy.rows()) == 4
    for run in (toy, other):
        run.run_agent(5)
        run.require_whole()


@pytest.mark.slow
def test_an_agent_that_removes_thousands_of_files(toy):
    folder = toy.folder / "data"
    folder.mkdir()
    for number in range(12_000):  # more than a command line holds
        (folder / f"{number:06d}-{'x' * 190}").touch()
    toy.commit()
    once = toy.folder.parent / "once"
    toy.agent[3] = f"sh -c '[ -e {once} ] || rm -r data; touch {once}; {toy.agent[3]}'"
    toy.plan_steps(otherwise=[step(2)])
    output = toy.run_agent(2)
    assert "only solver.py may change, but the edit also touches" in output and toy.statuses() == ["keep", "keep"]


@pytest.mark.parametrize("limit", [{"dollars": float("nan")}, {"hours": float("inf")}])
def test_a_limit_is_a_number(limit):
    with pytest.raises(UserError, match="takes a number, not"):
        Limits(**limit)
