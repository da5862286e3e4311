"""The look at an edit before it costs a trial: what is refused, in which words, and what is not."""

import ast
import base64
import json
import random
import subprocess
import sys

import pytest
from conftest import ROOT

from autoresearch import UserError, preflight
from autoresearch.program import read_task

BUILD = "def build_model():\n    return None\n"


def violation(source: str, trusted: str | None = None) -> str | None:
    return preflight.violation(ast.parse(source + "\n" + BUILD), ast.parse(trusted) if trusted else None)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os", "`import os` is out of bounds; train.py may import"),
        ("import torch, subprocess", "`import subprocess`"),
        ("from torch.utils.cpp_extension import load_inline", "`import torch.utils.cpp_extension`"),
        ("from torch import os", "`torch.os`"),
        ("import torch\ntorch.os.listdir()", "line 2: `torch.os`"),
        ("import torch\ntorch.load('x')", "`torch.load`"),
        ("import numpy as np\nnp.load('x')", "`np.load`"),
        ("import numpy as np\nnp.memmap('x')", "`np.memmap`"),
        ("import torch\ngetattr(torch, 'sys')", "`sys`"),
        ("import torch\ngetattr(torch, 'so'[::-1])", "`getattr` on what is imported"),
        ("open('x')", "`open` is out of bounds"),
        ("exec('1')", "`exec`"),
        ("__import__('os')", "`__import__`"),
        ("print.__self__", "`__self__`"),
        ("import prepare", "names are imported from prepare"),
        ("from prepare import *", "`*` is not for train.py"),
        ("from prepare import open_rows", "`open_rows` is not for train.py"),
        ("from prepare import TrainBatches\nTrainBatches.elapsed = 0", "`TrainBatches.elapsed` is written to"),
        (
            "import torch\ntorch.nn.functional.cross_entropy = print",
            "`torch.nn.functional.cross_entropy` is written to",
        ),
        ("import torch.nn.functional as F\ndel F.gelu", "`F.gelu` is written to"),
        ("import torch\nsetattr(torch, 'x', 1)", "`setattr` on what is imported"),
        ("def f(batches):\n    batches._start = None", "line 2: `batches._start` belongs to the clock"),
        ("import torch\ntorch.manual_seed(137)", "`manual_seed` takes prepare's SEED"),
        ("import torch\ntorch.Generator().manual_seed(1)", "`manual_seed` takes"),
        ("import numpy as np\nfrom prepare import SEED\nnp.random.default_rng(SEED + 1)", "`default_rng` takes"),
        ("import random\nrandom.seed()", "`seed` takes"),
    ],
)
def test_source_that_is_refused(source, reason):
    assert reason in (violation(source) or "nothing")


@pytest.mark.parametrize(
    "source",
    [
        "import math, functools, torch.nn as nn\nfrom torch.nn.attention.flex_attention import flex_attention",
        "import torch\nfrom prepare import SEED\ntorch.manual_seed(SEED)\ntorch.Generator().manual_seed(SEED)",
        "import torch\ntorch.backends.cuda.matmul.allow_tf32 = True\ntorch._dynamo.config.cache_size_limit = 64",
        "import torch\nf = torch.compile(torch.nn.Linear(1, 1))\ngetattr(torch, 'relu')\nx = {}\nx['os'] = 1",
        "class A:\n    def __init__(self):\n        self._start = 1\n        setattr(self, 'a', 2)",
        "import torch._inductor.config as config\nfrom torch._dynamo import config as other\n"
        "config.max_autotune = other.verbose = True",
        "class A:\n    def forward(self, input):\n        vars = input\n        return vars\n"
        "    def __getattr__(self, name):\n        return super().__getattr__(name)",
        (ROOT / "train.py").read_text(),
        (ROOT / "tests/small_train.py").read_text(),
    ],
)
def test_source_that_is_allowed(source):
    assert violation(source) is None


PROSE = "The state of the Union is such that we may look upon it with a measure of satisfaction. "
PACKED = base64.b85encode(random.Random(1).randbytes(3000)).decode()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (f"ROWS = {PROSE * 50!r}", "line 1: a literal of 4.3 KB; 4 KB are allowed (`size` in the front matter"),
        (f"def f():\n    {PROSE * 50!r}", "line 2: a literal of 4.3 KB"),
        ("ROWS = [" + "7, " * 5000 + "]", "a literal of 9.8 KB"),
        ("ROWS = {" + ", ".join(f"{n}: ({n}, -{n})" for n in range(900)) + "}", "KB; 4 KB are allowed"),
        ("ROWS = (" + " + ".join([repr(PROSE)] * 60) + ")", "a literal of 5.2 KB"),
        ("\n".join(f"ROWS{n} = {PROSE * 40!r}" for n in range(12)), "literals of 41.3 KB together; 8 KB are allowed"),
        ("\n".join(f"print({PROSE * 40!r})" for n in range(12)), "KB together; 8 KB are allowed"),
        (f"ROWS = {PACKED[:600]!r}", "looks like packed data"),
        (f"ROWS = {PACKED[:600].encode()!r}", "looks like packed data"),
        (f"ROWS = {' '.join(PACKED[n : n + 20] for n in range(0, 600, 20))!r}", "looks like packed data"),
        (f"ROWS = {random.Random(1).randbytes(400)!r}", "looks like packed data"),
        (f"ROWS = {[random.Random(n).randbytes(40).hex() for n in range(30)]!r}", "characters of text without spaces"),
        (f"ROWS = {int.from_bytes(random.Random(1).randbytes(400))}", "looks like packed data"),
    ],
)
def test_data_that_an_edit_brings_along(source, reason):
    assert reason in (violation(source) or "nothing")
    assert violation(source, trusted=source + "\n" + BUILD) is None


def test_literals_that_are_no_data():
    sizes = ", ".join(str(n) for n in range(500))
    assert violation(f'"""{PROSE * 20}"""\nSIZES = [{sizes}]\nRATE = 3e-4\nNAMES = [\'wte\', \'lm_head\'] * 3') is None
    tree = ast.parse(f"ROWS = {PROSE * 50!r}\n{BUILD}")
    assert preflight.violation(tree, largest_literal=8) is None


@pytest.mark.timeout(60)
def test_a_file_that_is_long_to_read():
    """Reading takes a time in proportion to the file, also where expressions are deep: the loop waits for it."""
    deep = "def build_model(): pass\ndef never(x): return x" + ("+(" + "1," * 50 + ")") * 400
    assert preflight.violation(ast.parse(deep), largest_literal=64) is None
    long = f"{BUILD}\ndef never(x): return x" + ".value" * 2000
    assert "nested more than 1000 deep" in (violation(long) or "")


@pytest.mark.parametrize("form", ["dict({name}=0)", "# {name}", "def f{name}(): pass"])
def test_data_in_names_and_comments(tmp_path, form):
    """It is no literal, but no code either."""
    random_names = (f"n{random.Random(number).randbytes(20).hex()}" for number in range(4000))
    task = read_task(tmp_path / "program.md")
    (tmp_path / "train.py").write_text("\n".join([BUILD, *(form.format(name=name) for name in random_names)]))
    fault = task.fault(tmp_path, {"train.py": BUILD.encode()}) or ""
    assert "compressed it is" in fault and "8 KB are allowed: data is no part of an edit" in fault


def test_the_size_of_a_file(tmp_path):
    task = read_task(tmp_path / "program.md")
    (tmp_path / "train.py").write_text(BUILD + "#" * (300 << 10))
    fault = task.fault(tmp_path, {"train.py": b""})
    assert fault.startswith("train.py has 300 KB; 256 KB are allowed: data is no part of an edit (`size` in the front")
    assert task.fault(tmp_path, {"train.py": b"#" * (400 << 10)}) is None  # the human's own is as long
    (tmp_path / "program.md").write_text("---\nsize: {file: 512}\n---\n")
    assert read_task(tmp_path / "program.md").fault(tmp_path, {"train.py": b""}) is None
    for wrong in ("7", "{file: 0}", "{files: 7}", "{literal: much}"):
        (tmp_path / "program.md").write_text(f"---\nsize: {wrong}\n---\n")
        with pytest.raises(UserError, match="`size` in"):
            read_task(tmp_path / "program.md")


def test_the_contract():
    for source in ("x = 1", "def build_model(size):\n    pass", "class build_model:\n    pass"):
        assert "must define build_model()" in preflight.violation(ast.parse(source))
    assert preflight.violation(ast.parse("def build_model(size=1):\n    pass")) is None


def test_what_the_human_wrote_is_no_objection():
    own = "import einops\nimport torch\ntorch.manual_seed(7)"
    assert violation(own, trusted=own) is None
    assert "`import wandb`" in violation(own + "\nimport wandb", trusted=own)


MODEL = """import torch
from prepare import VOCAB_SIZE
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(VOCAB_SIZE, 8)
        self.head = torch.nn.Linear(8, VOCAB_SIZE)
    def forward(self, idx):
        return self.head(self.table(idx))
def build_model():
    return Model()
"""


REHEARSALS = [
    (*case, False)
    for case in (
        ("", "", None),
        ("Linear(8", "Linear(9", "train.py line 9: RuntimeError:"),
        ("self.head(self.table(idx))", "self.head(self.table(idx))[..., :100]", "must give logits"),
        ("self.head(self.table(idx))", "(self.head(self.table(idx)) > 0)", "torch.bool"),
        ("return Model()", "return 7", "build_model() must return a torch.nn.Module, not int"),
        ("import torch\n", "import torch\nx = 1 / 0\n", "train.py line 2: ZeroDivisionError: division by zero"),
        (
            "import torch\n",
            "import torch\nraise SystemExit('no')\n",
            "train.py ends by itself when it is imported or built: no",
        ),
    )
] + [
    ("", "", None, True),
    ("Linear(8", "Linear(9", "train.py line 9: RuntimeError:", True),
    (
        "self.table(idx)",
        "self.table(idx) * (2 if self.head.weight.sum().item() > 0 else 1)",
        None,
        True,
    ),  # what they cannot tell
    ("import torch\n", "import torch\nraise RuntimeError('CUDA error: out of memory')\n", None, True),  # a trial has it
    ("import torch\n", "import torch\nraise RuntimeError('out of memory')\n", "RuntimeError: out of memory", False),
]
# Rehearses each train.py in a process of its own; torch is imported once, before they are forked.
PROGRAM = """import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from autoresearch import UserError, preflight
from autoresearch.program import read_task
for folder, fake in json.loads(sys.argv[2]):
    if not os.fork():
        print(json.dumps(preflight.rehearse(Path(folder, "train.py"), fake=fake)), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
def test_the_rehearsal(tmp_path):
    cases = []
    for number, (old, new, _, fake) in enumerate(REHEARSALS):
        cases.append((str(tmp_path / str(number)), fake))
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "train.py").write_text(MODEL.replace(old, new) if old else MODEL)
    words = [sys.executable, "-c", PROGRAM, str(ROOT), json.dumps(cases)]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    found = [json.loads(line) for line in answer.stdout.splitlines()]
    assert len(found) == len(REHEARSALS), answer.stderr
    for (old, new, reason, fake), said in zip(REHEARSALS, found, strict=True):
        assert said is None if reason is None else reason in said, (old, new, fake, said)
