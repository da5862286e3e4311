"""Every file of tests/honest is an honest architecture or optimizer: nothing refuses it, and its score is right."""

import json
import os
import subprocess
import sys

import pytest

import games
from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
VARIANTS = sorted(path.stem for path in (ROOT / "tests/honest").glob("*.py") if not path.stem.startswith("test_"))
VARIANTS.sort(key="plain".__ne__)  # it is the baseline of the others


@pytest.fixture(scope="session")
def scored(tmp_path_factory):
    """What games.py says of each variant, trained for forty steps."""
    folder = tmp_path_factory.mktemp("honest")
    environment = games.clean_environment(AUTORESEARCH_PROFILE="test", AUTORESEARCH_CACHE=str(folder / "cache"))
    subprocess.run([sys.executable, ROOT / "prepare.py"], env=environment, check=True, capture_output=True)
    files = [str(ROOT / f"tests/honest/{name}.py") for name in VARIANTS]
    answer = subprocess.run(
        [sys.executable, ROOT / "tests/games.py", folder / "runs", "40", "1", *files, "--rehearse"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert answer.returncode == 0, answer.stderr
    return {entry["name"]: entry for entry in map(json.loads, answer.stdout.splitlines())}


@pytest.mark.parametrize("name", VARIANTS)
def test_passes_with_the_score_of_a_plain_evaluation(scored, name):
    entry = scored[name]
    assert entry["preflight"] is None
    rounded = name == "fp8_activations"  # by what else is in the batch, and the plain evaluation has other batches
    assert entry["score"] == pytest.approx(entry["plain"], abs=1e-3 if rounded else 1e-4), entry
    assert entry["score"] < 4.15  # uniform guessing is 4.2 bits a byte: it has learned


def test_they_are_many():
    assert len(VARIANTS) >= 22 and os.path.isfile(ROOT / "tests/honest/plain.py")
