"""Every file of this folder attacks the score alone: a model is trained once, honestly, and scored by each of them.

They are written by somebody who has read the referee. Here they run unconfined, so that what they leave for one another
arrives: what the sandbox keeps from them is tested elsewhere, and must not be what stops them. Line two or three of
each says with which reason it has no score, or with which of two.
"""

import json
import re
import subprocess
import sys

import games
import pytest
from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ATTACKS = {
    path.stem: re.search(r"^# crash: (.*)$", path.read_text(), re.MULTILINE)[1]
    for path in sorted((ROOT / "tests/gaming/score").glob("*.py"))
    if not path.stem.startswith("test_")
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """What games.py says of the honest model and of each attack with its weights."""
    folder = tmp_path_factory.mktemp("score")
    environment = games.clean_environment(AUTORESEARCH_PROFILE="test", AUTORESEARCH_CACHE=str(folder / "cache"))
    subprocess.run([sys.executable, ROOT / "prepare.py"], env=environment, check=True, capture_output=True)
    honest, *files = (
        str(ROOT / f"tests/{name}.py") for name in ("honest/plain", *(f"gaming/score/{n}" for n in ATTACKS))
    )
    words = [sys.executable, ROOT / "tests/games.py", folder / "runs", "60", "1", honest, *files, "--once"]
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)
    assert answer.returncode == 0, answer.stderr
    assert "HELDOUT" not in answer.stdout + answer.stderr
    return {entry["name"]: entry for entry in map(json.loads, answer.stdout.splitlines())}


@pytest.mark.parametrize("name", ATTACKS)
def test_has_no_score(scored, name):
    assert scored[name]["score"] is None, scored[name]
    assert any(reason in scored[name]["reason"] for reason in ATTACKS[name].split(" | ")), scored[name]


def test_the_honest_model_has_one(scored):
    assert scored["plain"]["score"] == pytest.approx(scored["plain"]["plain"], abs=1e-4)
