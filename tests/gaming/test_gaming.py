"""Every file of tests/gaming tries to get a better number than it has earned, in a real night, and fails.

A comment in each file says how: refused (by the preflight, before a trial), crash (with the reason that the loop
gives, or one of two), or no effect (it is scored as the honest file below it would be, and not as it wished). What the
sandbox denies before the training begins is tried in one trial, one after the other.
"""

import functools
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

import games
from conftest import ROOT, Toy, git

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TRICKS = sorted(path for path in (ROOT / "tests/gaming").glob("*.py") if not path.stem.startswith("test_"))
EXPECTED = {
    path.stem: re.search(r"^# (refused|crash|no effect): (.*)$", path.read_text(), re.MULTILINE).groups()
    for path in TRICKS
}
DENIED = [
    path
    for path in TRICKS
    if EXPECTED[path.stem] == ("crash", "PermissionError")
    and "def build_optimizer" in path.read_text()
    and "class Model" not in path.read_text()
]
DEAR_FIRST = sorted(TRICKS, key=lambda path: EXPECTED[path.stem][0] == "refused")
TOO_BUSY = "void: the training process went on for"
HONEST = 2.5  # bits a byte that small_train.py reaches even on a slow machine
HALF = {path.stem: number % 2 for number, path in enumerate(DEAR_FIRST)}  # two nights, side by side
HALF |= {path.stem: 0 for path in DENIED}

TASK = """---
task:
  editable: [train.py]
  train: python train.py
  metric: val_bpb
  score: python -m autoresearch.referee score --wait --train train.py
  referee: true
  holdout: python -m autoresearch.referee score --split holdout --probe-all --train train.py
  setup: python prepare.py
  describe: python -m autoresearch.referee describe
  preflight: true
  time_limit: 60
  memory_limit: 2
  disk_limit: 0.5
---
"""
# Proposes one trick after the other; one that is refused is not repaired, the next one takes its number.
CHEAT = """import pathlib, sys
folder = pathlib.Path(sys.argv[1])
left = sorted(folder.glob("*.py"))
if not left:
    sys.exit("no tricks left")
pathlib.Path("train.py").write_text(left[0].read_text())
print(left[0].stem.partition("-")[2])
left[0].unlink()
"""


ATTEMPTS = """
def build_optimizer(model):
    for name, attempt in ({names}):
        try:
            attempt(model)
        except PermissionError as error:
            print("denied:", name, flush=True)
            denied = error
    raise denied
"""


def together(paths: list[Path]) -> str:
    """A train.py that makes all these attempts, whichever succeed, and prints the names of those that are denied."""
    attempts = [
        f"def {path.stem}(model):\n{textwrap.indent(games.changes(path), '    ')}\n    build_optimizer(model)\n"
        for path in paths
    ]
    names = " ".join(f"('{path.stem}', {path.stem})," for path in paths)
    return games.composed("\n".join([*attempts, ATTEMPTS.format(names=names)]))


@pytest.fixture(scope="session")
def nights(tmp_path_factory):
    """By half: (the outcome of each of its tricks by name, the run)."""
    return functools.cache(
        lambda half: play(tmp_path_factory.mktemp("gaming"), [path for path in TRICKS if HALF[path.stem] == half])
    )


def play(folder: Path, all_tricks: list[Path]) -> tuple[dict, Toy]:
    """A run of the real game whose agent knows these tricks."""
    home = folder / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\n\tname = Ada\n\temail = ada@example.org\n")
    toy = Toy(
        folder / "repository",
        games.clean_environment(
            HOME=str(home),
            AUTORESEARCH_PROFILE="test",
            ANTHROPIC_API_KEY="sk-secret",
            AUTORESEARCH_CACHE=str(folder / "cache"),
        ),
    )
    toy.write("program.md", TASK)
    toy.write("train.py", (ROOT / "tests/small_train.py").read_text())
    toy.write("prepare.py", (ROOT / "prepare.py").read_text())
    shutil.copytree(ROOT / "autoresearch", toy.folder / "autoresearch", ignore=shutil.ignore_patterns("__pycache__"))
    toy.commit()
    tricks = folder / "tricks"
    tricks.mkdir()
    (folder / "cheat.py").write_text(CHEAT)
    denied = [path for path in all_tricks if path in DENIED]
    if denied:
        all_tricks = [path for path in all_tricks if path not in denied]
        (tricks / "000-denied.py").write_text(together(denied))
    mild = [path for path in all_tricks if EXPECTED[path.stem][0] != "refused"]
    for path in all_tricks:  # those that are refused stand between the others: after the last one nothing is proposed
        position = mild.index(path) if path in mild else 5 * all_tricks.index(path) % (len(mild) - 1)
        (tricks / f"{position:03d}-{path.stem}.py").write_text(games.compose(path))
    night = ["--agent", "command", "--agent-command", f"{sys.executable} {folder / 'cheat.py'} {tricks}"]
    night += ["--sandbox", "require", "--lookahead", "0", "--baseline-runs", "1", "--repairs", "0", "--experiments"]
    for baselines in (1, 2, 3):  # one that ends late on a busy machine is void
        output, _ = toy.start(*night, str(baselines)).communicate(timeout=600)
        if toy.statuses()[-1] == "keep":
            break
        assert TOO_BUSY in output, output
    toy.run(*night, str(baselines + bool(denied) + len(mild)), seconds=1400)
    outcomes = {entry["description"]: ("refused", entry) for entry in toy.journal("refused")}
    names = {entry["number"]: entry["description"] for entry in toy.journal("attempt")}
    outcomes |= {names[entry["number"]]: (entry["status"], entry) for entry in toy.journal("verdict")}
    if denied:
        status, entry = outcomes["denied"]
        said = (toy.runs / f"trials/{entry['number']}/train.log").read_text().splitlines()
        outcomes |= {path.stem: (status if f"denied: {path.stem}" in said else "not denied", entry) for path in denied}
    return outcomes, toy


@pytest.mark.parametrize(("half", "trick"), [(half, trick) for trick, half in HALF.items()])
def test_is_caught(nights, half, trick):
    outcomes, toy = nights(half)
    kind, reason = EXPECTED[trick]
    status, entry = outcomes[trick]
    if status == "crash" and TOO_BUSY in entry["reason"] and TOO_BUSY not in reason:
        pytest.skip(
            f"nothing was gained, nor seen: on this busy machine a training of 3 s ended late: {entry['reason']}"
        )
    if kind == "no effect":  # on a busy machine a trial of 3 s makes fewer steps, so it may well be worse
        honest = min(outcomes["baseline"][1]["score"], HONEST)
        assert status in ("keep", "discard") and entry["score"] > honest - 0.3, entry["reason"]
    else:
        assert status == kind and any(words in entry["reason"] for words in reason.split(" | ")), entry["reason"]


@pytest.mark.parametrize("half", [0, 1])
def test_nothing_was_left_behind(nights, half):
    outcomes, toy = nights(half)
    assert "sk-secret" not in "".join(path.read_text(errors="replace") for path in toy.runs.rglob("*.log"))
    assert git(toy.folder, "status", "--porcelain") == ""
    assert json.dumps(outcomes["baseline"][1]["holdout"]) != "null"
    toy.require_whole()


@pytest.mark.parametrize("half", [HALF["leaves_files"]])
def test_only_weights_and_figures_were_left_behind(nights, half):
    outcomes, toy = nights(half)
    left = {path.name for path in (toy.runs / f"trials/{outcomes['leaves_files'][1]['number']}/run").iterdir()}
    assert left <= {"model.safetensors", "figures.json", "progress.json"}, left


@pytest.mark.parametrize("half", [HALF["outlives_its_trial"]])
def test_no_process_was_left_behind(nights, half):
    outcomes, toy = nights(half)
    log = (toy.runs / f"trials/{outcomes['outlives_its_trial'][1]['number']}/train.log").read_text()
    assert not Path(f"/proc/{re.search('left behind: ([0-9]+)', log).group(1)}").exists()
