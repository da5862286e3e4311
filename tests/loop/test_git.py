"""Repositories and settings of git that are not the usual ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Toy, git, solver, step
from git import GitCommandError

from autoresearch import UserError, disk_is_full
from autoresearch.repo import Repository, RunRepo, open_repository
from autoresearch.runner.sent import bundle_of


def test_without_git(toy, tmp_path):
    answer = subprocess.run(
        [sys.executable, ROOT / "loop.py"],
        cwd=toy.folder,
        env={**toy.environment, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2 and answer.stderr.startswith("error: git is not installed: `apt install git`")


@pytest.mark.parametrize(("attributes", "text"), [("", "evil = 1\0"), ("solver.py -diff\n", "evil = 1")])
def test_no_edit_hides_what_it_changes(toy, attributes, text):
    """git shows no difference of files that it takes for binary: a person who reads a keep would see nothing."""
    toy.write(".gitattributes", attributes)
    toy.commit()
    repo = RunRepo(open_repository(toy.folder), "night", toy.runs)
    before = repo.head()
    toy.write("solver.py", text)
    toy.commit()
    assert "+evil = 1" in repo.diff(before, repo.head(), ("solver.py",))


@pytest.mark.parametrize("made", ["sha1", "sha256"])
def test_hashes_of_either_kind(toy, made):
    """git makes repositories with SHA-256 where it is told to, and later by itself: then each has to have its own."""
    subprocess.run(["rm", "-rf", toy.folder / ".git"], check=True)
    git(toy.folder, "init", "-q", f"--object-format={made}")
    toy.commit()
    toy.plan_steps(e2=[step(5)], e3=[step(4)])
    toy.run_agent(3, GIT_DEFAULT_HASH="sha256")
    assert toy.statuses() == ["keep", "keep", "discard"] and len(toy.tip()) == {"sha1": 40, "sha256": 64}[made]
    toy.require_whole()


def test_a_partial_clone_fetches_what_it_lacks(toy, environment, tmp_path):
    """Files outside of a sparse checkout are not there, and a trial has the whole commit."""
    (toy.folder / "other").mkdir()
    toy.write("other/text", "left out")
    toy.commit()
    git(toy.folder, "config", "uploadpack.allowFilter", "true")
    (tmp_path / "partial").mkdir()
    clone = Toy(tmp_path / "partial/repository", environment)
    subprocess.run(["rm", "-rf", clone.folder], check=True)
    git(tmp_path, "clone", "-q", "--filter=blob:none", "--sparse", f"file://{toy.folder}", str(clone.folder))
    assert not (clone.folder / "other").exists()
    git(clone.folder, "remote", "set-url", "origin", "file:///nowhere")
    said = clone.run("--agent", "sweep", "--experiments", "1", "--baseline-runs", "1", expect=2)
    assert "this is a partial clone" in said and "git fetch --refetch --no-filter" in said and "cmdline" not in said
    git(clone.folder, "remote", "set-url", "origin", f"file://{toy.folder}")
    clone.run("--agent", "sweep", "--experiments", "1", "--baseline-runs", "1")
    assert (clone.runs / "stage/other/text").read_text() == "left out"


@pytest.mark.parametrize("index", ["--no-sparse-index", "--sparse-index"])
def test_a_sparse_checkout_without_the_editable_file(toy, index):
    """Agents and trials have the whole commit. The user's checkout stays sparse."""
    for name in ("kept", "source"):
        (toy.folder / name).mkdir()
    (toy.folder / "kept/text").touch()
    (toy.folder / "solver.py").rename(toy.folder / "source/solver.py")
    program = (toy.folder / "program.md").read_text().replace("  guard: python check.py\n", "")
    toy.write("program.md", program.replace("solver.py", "source/solver.py"))
    toy.commit()
    git(toy.folder, "sparse-checkout", "set", index, "kept")
    toy.plan_steps(e2=[{"files": {"source/solver.py": solver(2)}, "say": "two"}])
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "keep"] and not (toy.folder / "source").exists()
    assert git(toy.folder, "status", "--porcelain") == ""
    toy.require_whole()


def test_a_shallow_clone_runs_here_and_not_on_a_cluster(toy, environment, tmp_path):
    toy.write("more", "")
    toy.commit()
    (tmp_path / "shallow").mkdir()
    clone = Toy(tmp_path / "shallow/repository", environment)
    subprocess.run(["rm", "-rf", clone.folder], check=True)
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{toy.folder}", str(clone.folder))
    clone.plan_steps(e2=[step(5)])
    clone.run_agent(2)
    assert clone.statuses() == ["keep", "keep"]
    repo = RunRepo(Repository(clone.folder), "night", clone.runs)
    with pytest.raises(UserError, match="git fetch --unshallow"):
        bundle_of(clone.folder, repo.head())


def test_a_commit_is_on_the_disk_before_the_journal_names_it(toy, tmp_path, monkeypatch):
    """git says how often it asked the disk for that."""
    repo = RunRepo(open_repository(toy.folder), "night", toy.runs)
    worktree = repo.agents_worktree(0)
    worktree.reset(repo.head())
    (worktree.folder / "solver.py").write_text("VALUE = 2\n")
    monkeypatch.setenv("GIT_TRACE2_EVENT", str(tmp_path / "trace"))
    worktree.commit(("solver.py",), "set it to 2")
    said = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    flushes = [int(one["value"]) for one in said if one.get("key") == "fsync/hardware-flush"]
    assert sum(flushes) >= 3  # the file, the tree and the commit


def test_git_does_not_run_in_the_user_s_checkout_when_a_worktree_is_gone(toy, monkeypatch):
    """There it would switch and clean what is the user's. It says why it failed, and not first its settings."""
    repo = RunRepo(open_repository(toy.folder), "night", toy.runs)
    repo.agents_worktree(0).reset(repo.head())
    tree = Repository(repo.worktree)
    subprocess.run(["rm", "-rf", repo.worktree], check=True)
    toy.write("solver.py", solver(8))
    monkeypatch.chdir(toy.folder)
    with pytest.raises(GitCommandError, match=r"(?s)cmdline: git checkout.*cannot change to"):
        tree.git.checkout("--quiet", "--detach", "--force", repo.head())
    assert (
        git(toy.folder, "branch", "--show-current") == "main" and "VALUE = 8" in (toy.folder / "solver.py").read_text()
    )


@pytest.mark.parametrize("how", ["link", "file"])
def test_an_agent_that_points_its_worktree_at_the_user_s_checkout(toy, how):
    """It is told that it may not, and nothing happens to what is the user's."""
    ways = {"link": "os.symlink('../../../.git', '.git')", "file": "open('.git', 'w').write('gitdir: ../../../.git')"}
    once = toy.folder.parent / "once"
    agent = toy.folder.parent / "agent.py"
    first = f"if not os.path.exists({str(once)!r}):\n    open({str(once)!r}, 'w')\n"
    breaks = f"{first}    os.unlink('.git')\n    {ways[how]}\n"
    agent.write_text(agent.read_text().replace("print(step", f"{breaks}print(step"))
    toy.plan_steps(e2=[step(5), step(5)])
    toy.write("solver.py", solver(77))
    output = toy.run_agent(2)
    assert "/.git is not the one that the loop made" in output and toy.statuses() == ["keep", "keep"]
    assert git(toy.folder, "branch", "--show-current") == "main" and "77" in (toy.folder / "solver.py").read_text()
    assert git(toy.folder, "status", "--porcelain") == "M solver.py"


def test_names_of_any_bytes(toy):
    """Those that a glob names and that are no text are not edited, and in nobody's way. Messages are UTF-8 anyway."""
    git(toy.folder, "config", "i18n.commitEncoding", "latin-1")
    toy.write("program.md", (toy.folder / "program.md").read_text().replace("[solver.py]", "['*.py']"))
    for name in (b"\xfcber.py", "größer → kleiner.py".encode(), b"two\nlines.py"):
        Path(os.fsdecode(os.path.join(os.fsencode(toy.folder), name))).write_text("SIZE = 8\n")
    toy.commit()
    toy.plan_steps(e2=[step(5, "größer")], e3=[{"files": {"größer → kleiner.py": "SIZE = 9\n"}, "say": "nine"}])
    toy.run_agent(3)
    assert toy.statuses() == ["keep", "keep", "discard"]
    commit = git(toy.folder, "cat-file", "commit", toy.tip())
    assert "\ngrößer" in commit and "\nencoding" not in commit
    assert "## The champion's größer → kleiner.py" in (toy.runs / "proposals/3/brief.md").read_text()
    toy.require_whole()


def test_a_worktree_with_folders_that_nobody_may_write_is_reset(toy):
    """As Go's cache of modules has them, wherever an agent may have put it."""
    code = (
        "from pathlib import Path; from autoresearch.repo import RunRepo, open_repository\n"
        f"repo = RunRepo(open_repository(Path({str(toy.folder)!r})), 'night', Path({str(toy.runs)!r}))\n"
        "worktree = repo.agents_worktree(0)\nworktree.reset(repo.head())\n"
        "below = worktree.folder / 'cache/module'\nbelow.mkdir(parents=True)\n(below / 'file').touch()\n"
        "below.chmod(0o555)\nbelow.parent.chmod(0o555)\nworktree.reset(repo.head())\n"
        "print(sorted(path.name for path in worktree.folder.iterdir()))"
    )
    without = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]
    words = [*(without if os.geteuid() == 0 else []), sys.executable, "-c", code]
    answer = subprocess.run(words, cwd=ROOT, env=toy.environment, capture_output=True, text=True)
    assert answer.stdout == "['.git', '.gitignore', 'check.py', 'program.md', 'solver.py']\n", answer.stderr


@pytest.mark.parametrize("said", ["No space left on device", "Disk quota exceeded"])
def test_a_full_disk_as_git_says_it(said):
    assert disk_is_full(GitCommandError(["git", "commit"], 128, f"error: unable to write file: {said}"))
