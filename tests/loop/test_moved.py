"""A repository that was moved, or copied with its runs, goes on where it is; nothing of it reaches the old place."""

import copy
import shutil

from conftest import Toy, git, solver, step


def at(toy: Toy, folder) -> Toy:
    there = copy.copy(toy)
    there.folder = folder
    return there


def test_a_copy_goes_on_by_itself_and_so_does_the_original(toy):
    toy.plan_steps(e2=[step(2)], e3=[step(3)], e4=[step(4)])
    toy.run_agent(2)
    theirs = at(toy, toy.folder.with_name("copy"))
    shutil.copytree(toy.folder, theirs.folder, symlinks=True)
    theirs.run_agent(4)
    assert theirs.statuses() == ["keep"] * 4
    theirs.require_whole()
    toy.require_whole()  # its worktree still holds its own champion
    toy.run_agent(3)
    assert toy.statuses() == ["keep"] * 3
    toy.require_whole()
    theirs.require_whole()
    assert str(toy.folder) + "/" not in git(
        theirs.folder, "-C", str(theirs.runs / "worktree"), "rev-parse", "--git-dir"
    )


def test_an_edit_that_waited_in_a_moved_repository_is_still_there(toy):
    toy.run("start", "--baseline-runs", "1")
    worktree = toy.runs / "worktree"
    (worktree / "solver.py").write_text(solver(7))
    there = at(toy, toy.folder.with_name("elsewhere"))
    toy.folder.rename(there.folder)
    there.run("try", "-m", "seven")
    assert there.rows()[1][1:] == ["7.000000", there.rows()[1][2], "keep", "seven"]
    there.require_whole()
