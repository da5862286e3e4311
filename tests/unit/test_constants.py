"""What an edit changed of the constants, and what of a file counts on this machine."""

from types import SimpleNamespace

import pytest
from conftest import ROOT

from autoresearch.constants import as_it_counts, change, read_code
from autoresearch.refusal import Refusals
from autoresearch.task import OWN_GAME, Facts

SOURCE = b"""import torch
GPU = torch.cuda.is_available() and True
# Hyperparameters
RATE = 0.04 if GPU else 0.02  # a rate
WIDTH = 192
FLAG = True
TWICE = 1
TWICE = 2
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
    ("old", "new", "expected"),
    [
        (b"else 0.02", b"else 0.03", {"RATE": (0.02, 0.03)}),
        (b"else 0.02  # a rate", b"else 0.03", {"RATE": (0.02, 0.03)}),  # comments do not count
        (b"0.04", b"0.05", None),  # of a GPU, which is not here: no constant of this machine
        (b"FLAG = True", b"FLAG = 1", {"FLAG": (True, 1)}),
        (b"WIDTH = 192\nFLAG = True", b"WIDTH = 256\nFLAG = False", {"WIDTH": (192, 256), "FLAG": (True, False)}),
        (b"TWICE = 2", b"TWICE = 3", None),  # which of them counts is not for us to say
        (b"x + WIDTH", b"x - WIDTH", None),
        (b"WIDTH = 192", b"WIDTH = 256\nDEPTH = 3", None),
        (b"WIDTH = 192\n", b"", None),
        (b"WIDTH = 192\n", b"BREADTH = 192\n", None),
        (b"WIDTH = 192", b"WIDTH = " + b"9" * 100 + b"**63", None),  # too long to be written down
        (b"def f(x):", b"def f(x:", None),  # no Python
        (b"WIDTH", b"WIDTH", {}),
    ],
)
def test_what_an_edit_changed(old, new, expected):
    before, after = read_code({"train.py": SOURCE}, gpu=False), read_code(edited(old, new), gpu=False)
    assert change(before, after) == expected


def test_of_several_files_and_languages():
    before = {"a.py": b"SIZE = 1\n", "b.c": b"#define SIZE 2\n#define BLOCK 64\n"}
    after = {"a.py": b"SIZE = 1\n", "b.c": b"#define SIZE 3\n#define BLOCK 128\n"}
    made = change(read_code(before, gpu=True), read_code(after, gpu=True))
    assert made == {"b.c SIZE": (2, 3), "b.c BLOCK": (64, 128)}


def test_a_file_with_a_byte_order_mark():
    """Python's columns are off by its three bytes there; what is found must be what is written."""
    assert read_code({"a.py": b"\xef\xbb\xbfSIZE = 12\n"}, gpu=False).constants in ({}, {"SIZE": 12})


@pytest.mark.parametrize(
    ("old", "new", "on_gpu", "on_cpu"),
    [
        (b"0.04", b"0.05", True, False),
        (b"else 0.02", b"else 0.03", False, True),
        (b"x * RATE", b"x / RATE", True, False),
        (b"x + WIDTH", b"x - WIDTH", True, True),
        (b"# a rate", b"# the rate", False, False),
        (b"def f(x):", b"if GPU:\n    print(1)\ndef f(x):", True, False),
        (b"and True", b"and False", True, True),
    ],
)
def test_what_counts_on_a_machine(old, new, on_gpu, on_cpu):
    for gpu, counts in ((True, on_gpu), (False, on_cpu)):
        same = as_it_counts({"train.py": SOURCE}, gpu) == as_it_counts(edited(old, new), gpu)
        assert same != counts


@pytest.mark.parametrize("other", [b"GPU = False", b"GPU = torch.cuda.is_available()\nGPU = True"])
def test_where_gpu_means_something_else(other):
    source = edited(b"GPU = torch.cuda.is_available() and True", other)["train.py"]
    for gpu in (True, False):
        assert as_it_counts({"train.py": source}, gpu) != as_it_counts(edited(b"0.04", b"0.05", source), gpu)


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
    run = SimpleNamespace(
        task=OWN_GAME, ledger=SimpleNamespace(finished=[], noise=lambda: 0.0), repo=None, console=None, root=ROOT
    )
    run = SimpleNamespace(**vars(run), facts=Facts(profile=profile), program=ROOT / "program.md")
    said = Refusals(run, drafts=None).of_constants({"train.py": SOURCE}, edited(old, new), None)
    assert said == (refused and f"the edit changes {refused}")
