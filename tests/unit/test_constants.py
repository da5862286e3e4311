"""What an edit changed of the constants, and what of a file counts on this machine."""

from types import SimpleNamespace

import pytest
from conftest import ROOT

from autoresearch.constants import as_it_counts, change, read_code
from autoresearch.propose import Proposer
from autoresearch.task import OWN_GAME, Facts

SOURCE = b"""GPU = False
# Hyperparameters
RATE = 0.04 if GPU else 0.02  # a rate
WIDTH = 192
FLAG = True
# End of hyperparameters
def f(x):
    if GPU:
        return x * RATE
    return x + WIDTH
"""


def edited(old: bytes, new: bytes, source: bytes = SOURCE) -> dict[str, bytes]:
    assert old in source
    return {"train.py": source.replace(old, new, 1)}


@pytest.mark.parametrize(
    ("old", "new", "expected", "alone"),
    [
        (b"else 0.02", b"else 0.03", {"RATE": (0.02, 0.03)}, True),
        (b"else 0.02  # a rate", b"else 0.03", {"RATE": (0.02, 0.03)}, True),  # comments do not count
        (b"0.04", b"0.05", {}, False),  # of a GPU, which is not here: another file, but no constant of this one
        (b"FLAG = True", b"FLAG = 1", {"FLAG": (True, 1)}, True),
        (b"WIDTH = 192\nFLAG = True", b"WIDTH = 256\nFLAG = False", {"WIDTH": (192, 256), "FLAG": (True, False)}, True),
        (b"x + WIDTH", b"x - WIDTH", {}, False),
        (b"WIDTH = 192", b"WIDTH = 256\nDEPTH = 3", {"WIDTH": (192, 256)}, False),
        (b"WIDTH = 192\n", b"", {}, False),
        (b"def f(x):", b"def f(x:", {}, False),  # no Python
        (b"WIDTH", b"WIDTH", {}, False),
    ],
)
def test_what_an_edit_changed(old, new, expected, alone):
    before, after = read_code({"train.py": SOURCE}, gpu=False), read_code(edited(old, new), gpu=False)
    made = change(before, after)
    assert (made.constants, made.alone) == (expected, alone)


def test_of_several_files_and_languages():
    before = {"a.py": b"SIZE = 1\n", "b.c": b"#define SIZE 2\n#define BLOCK 64\n"}
    after = {"a.py": b"SIZE = 1\n", "b.c": b"#define SIZE 2\n#define BLOCK 128\n"}
    made = change(read_code(before, gpu=True), read_code(after, gpu=True))
    assert made.constants == {"BLOCK": (64, 128)} and made.alone


@pytest.mark.parametrize(
    ("old", "new", "on_gpu", "on_cpu"),
    [
        (b"0.04", b"0.05", True, False),
        (b"else 0.02", b"else 0.03", False, True),
        (b"x * RATE", b"x / RATE", True, False),
        (b"x + WIDTH", b"x - WIDTH", True, True),
        (b"# a rate", b"# the rate", False, False),
    ],
)
def test_what_counts_on_a_machine(old, new, on_gpu, on_cpu):
    for gpu, counts in ((True, on_gpu), (False, on_cpu)):
        same = as_it_counts({"train.py": SOURCE}, gpu) == as_it_counts(edited(old, new), gpu)
        assert same != counts


@pytest.mark.parametrize(
    ("old", "new", "profile", "refused"),
    [
        (b"0.04", b"0.05", "cpu", "only what counts with a GPU (`a if GPU else b`), and this run has none"),
        (b"0.04", b"0.05", "gpu", None),
        (b"else 0.02", b"else 0.03", "gpu", "only what counts without a GPU (`a if GPU else b`), and this run has one"),
        (b"0.04", b"0.05", "test", None),  # which plays on either
    ],
)
def test_an_edit_of_what_does_not_count_is_refused(old, new, profile, refused):
    run = SimpleNamespace(task=OWN_GAME, ledger=SimpleNamespace(finished=[]), repo=None, console=None, root=ROOT)
    run = SimpleNamespace(**vars(run), facts=Facts(profile=profile), program=ROOT / "program.md")
    proposer = Proposer(run, pages=None, agents=[])
    said = proposer.refusal_of_constants({"train.py": SOURCE}, edited(old, new))
    assert said == (refused and f"the edit changes {refused}")
