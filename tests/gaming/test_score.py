"""Every file of models/ is a model that looks ahead or learns while it is scored; every file of score/ attacks the score
alone, with the weights of an honest model. None of them gets a score.

Those of score/ are written by somebody who has read the referee. All run unconfined, so that what they leave for one
another arrives: what the sandbox keeps from them is tested elsewhere, and must not be what stops them. Line two or
three of each says with which reason it has no score, or with which of two.
"""

import json
import re
import subprocess
import sys

import games
import pytest
from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MODELS, ATTACKS = (
    {path.stem: path for path in sorted((ROOT / "tests/gaming" / kind).glob("*.py"))} for kind in ("models", "score")
)
REASONS = {
    name: re.search(r"^# crash: (.*)$", path.read_text(), re.MULTILINE)[1] for name, path in (MODELS | ATTACKS).items()
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """What games.py says of the honest model, of each other model, and of each attack with the honest one's weights."""
    folder = tmp_path_factory.mktemp("score")
    environment = games.clean_environment(AUTORESEARCH_PROFILE="test", AUTORESEARCH_CACHE=str(folder / "cache"))
    subprocess.run([sys.executable, ROOT / "prepare.py"], env=environment, check=True, capture_output=True)
    words = [sys.executable, ROOT / "tests/games.py", folder / "runs", "150", "1", ROOT / "tests/honest/plain.py"]
    words += [*MODELS.values(), "--borrow", *ATTACKS.values()]
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=850)
    assert answer.returncode == 0, answer.stderr
    assert "HELDOUT" not in answer.stdout + answer.stderr
    return {entry["name"]: entry for entry in map(json.loads, answer.stdout.splitlines())}


@pytest.mark.parametrize("name", REASONS)
def test_has_no_score(scored, name):
    assert scored[name]["score"] is None, scored[name]
    assert any(reason in scored[name]["reason"] for reason in REASONS[name].split(" | ")), scored[name]


def test_the_honest_model_has_one(scored):
    assert scored["plain"]["score"] == pytest.approx(scored["plain"]["plain"], abs=1e-4)
