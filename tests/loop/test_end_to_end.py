"""The real game from nothing: clone, data, baseline, edits, scores. The `test` profile makes it seconds."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, Toy, git, wait_for


class Game(Toy):
    """A clone of this repository as it stands in the working tree, and the loop run in it.

    small: with a train.py that starts quickly.
    """

    def __init__(self, folder, environment, small: bool = False) -> None:
        self.folder, self.tag = folder, "night"
        self.environment = {**environment, "AUTORESEARCH_PROFILE": "test"}
        git(ROOT, "clone", "-q", str(ROOT), str(folder))
        for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
        if small:
            (folder / "train.py").write_bytes((ROOT / "tests/small_train.py").read_bytes())
        if git(folder, "status", "--porcelain"):
            self.commit()

    def start(self, *arguments, **more):
        return super().start(*arguments, loop=self.folder / "loop.py", **more)


@pytest.fixture
def game(tmp_path, environment) -> Game:
    return Game(tmp_path / "clone", environment)


@pytest.mark.alone
def test_a_night_from_an_empty_cache(game):
    """With the default agent. (The nights of gaming/test_gaming.py begin so with an agent of their own.)"""
    output = game.run("--experiments", "2")
    assert "not prepared yet; this is done first" in output and "ready: profile test, data sotu" in output
    assert game.statuses()[0] == "keep" and len(game.rows()) == 2
    for entry in game.journal("verdict"):
        assert 1.0 < entry["score"] < 4.0 and 0.2 < entry["memory_gb"] < 4.0
        assert 3.0 <= entry["figures"]["training_seconds"] < 4.5
        assert (entry["holdout"] is not None) == (entry["status"] == "keep")
    best = min(float(row[1]) for row in game.rows() if row[3] == "keep")
    tip = next(row for row in game.rows() if row[3] == "keep" and float(row[1]) == best)
    assert game.tip().startswith(tip[0])
    base = game.journal("run")[0]["base"]
    assert git(game.folder, "diff", "--name-only", base, "refs/autoresearch/night/2") == "train.py"
    assert git(game.folder, "status", "--porcelain") == ""
    game.require_whole()

    other = game.run("--experiments", "4", "--seed", "7", expect=2)  # the seed is part of the game
    assert "run night has seed 42, but now it would be 7" in other
    cpu = game.run("--experiments", "4", "--profile", "cpu", expect=2)
    assert "run night has profile test, but now it would be cpu" in cpu and "ready: profile cpu" not in cpu
    assert len(game.rows()) == 2


@pytest.mark.slow
def test_a_training_that_is_stopped_leaves_no_process(game):
    process = game.start("--experiments", "2")
    try:
        wait_for(lambda: (game.runs / "trials/1/run/progress.json").exists())
        pids = [line.split()[0] for line in (game.runs / "trials/1/process").read_text().splitlines()]
        assert len(pids) == 2  # the training, and the scorer that waits beside it
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert [entry["number"] for entry in game.journal("interrupted")] == [1]
    game.require_whole()


@pytest.mark.slow
def test_train_py_by_hand(game):
    """Prepare in the clone; then train and score with the two files alone, in a folder of their own."""
    alone = game.folder.parent / "alone"
    alone.mkdir()
    for name in ("prepare.py", "train.py"):
        text = (ROOT / name).read_text()
        (alone / name).write_text(text.replace('"test", 3.0,', '"test", 12.0,'))  # a busy machine makes a step in it

    def run(script: str, folder, expect: int = 0) -> subprocess.CompletedProcess:
        answer = subprocess.run(
            [sys.executable, script], cwd=folder, env=game.environment, capture_output=True, text=True
        )
        assert answer.returncode == expect, answer.stderr
        return answer

    assert "preparing it needs the whole repository" in run("prepare.py", alone, expect=2).stderr
    run("prepare.py", game.folder)
    assert "ready: profile test, data sotu" in run("prepare.py", alone).stdout
    answer = run("train.py", alone)
    figures = dict(line.split(":") for line in answer.stdout.partition("---\n")[2].splitlines())
    assert 1.0 < float(figures["val_bpb"]) < 4.2  # uniform guessing is 4.2 bits a byte
    assert int(figures["num_steps"]) > 0


def test_the_readmes_files_are_all_there():
    for name in (
        "pyproject.toml",
        "prepare.py",
        "train.py",
        "program.md",
        "loop.py",
        "analysis.ipynb",
        "README.md",
        "LICENSE",
    ):
        assert (ROOT / name).is_file(), name
    tracked = git(ROOT, "ls-files").splitlines()
    assert "results.tsv" not in tracked and "uv.lock" not in tracked
