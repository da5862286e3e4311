"""What an edit needs is compiled while another trial runs: its own trial finds it, and depends on it in nothing.

On the CPU, where Inductor's cache is the same.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANGS, ROOT, Toy, wait_for
from test_end_to_end import Game

from autoresearch.runner import AHEAD, Job, Measurement, process, sandbox
from autoresearch.runner.process import Process
from autoresearch.runner.trial import Trial, trial_environment
from autoresearch.task import Facts, Task

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")

FAILING = """import torch
from prepare import TrainBatches, warmup_batch

{first}
table = torch.randn(512, 64, requires_grad=True)
inputs, targets = warmup_batch(4, "cpu")
torch.nn.functional.cross_entropy(table[inputs].flatten(0, 1) @ table.T, targets.flatten()).backward()
next(iter(TrainBatches(4, "cpu")))
"""


class Stage:
    """A folder with a train.py, in which it is compiled ahead."""

    def __init__(self, folder: Path, confined: bool) -> None:
        self.folder, self.stage, self.confined = folder, folder / "runs/night/stage", confined
        shutil.copytree(ROOT / "autoresearch", self.stage / "autoresearch")
        shutil.copy(ROOT / "prepare.py", self.stage)

    def compile(self, first: str, limit: float) -> tuple[Measurement, str]:
        """The result and what it printed, for a train.py that does this first."""
        (self.stage / "train.py").write_text(FAILING.format(first=first))
        folder = self.folder / "runs/night/trials/ahead"
        settings = {"AUTORESEARCH_PROFILE": "test", "AUTORESEARCH_CACHE": str(self.folder / "none")}
        environment = trial_environment(folder, self.folder / "runs/night/caches", settings)
        task = Task(("train.py",), "python train.py", "score", score="true", referee=True, preflight=True)
        rules = {"readable": [], "hidden": []} if self.confined else None
        job, facts = Job("ahead", {}, 1, (AHEAD,)), Facts(time_budget=3.0)
        trial = Trial(task, job, facts, self.stage, folder, environment, rules, list, lambda phase: None)
        trial.limits[AHEAD] = limit
        return asyncio.run(trial.run()), (folder / "ahead.log").read_text()


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Stage:
    """Without giving way to other sessions: on a busy machine it would wait for ever."""
    monkeypatch.setattr(process, "give_way", lambda pid, group: os.setpriority(os.PRIO_PROCESS, pid, 19))
    return Stage(tmp_path, bool(sandbox.method()))


@pytest.mark.parametrize(
    ("first", "why", "limit"),
    [
        ("raise ValueError('odd')", "ValueError: odd", HANGS),
        ("torch.ones(1).item() > 0 or 1", "DataDependent", HANGS),
        ("while True: pass", "", 1.0),
    ],
)
def test_what_cannot_be_compiled_ahead_is_no_failure(stage, first, why, limit):
    measured, said = stage.compile(first, limit)
    assert measured == Measurement(seconds=measured.seconds) and why in said, said


@pytest.mark.parametrize("yields", [True, False])
def test_it_alone_gives_way_to_all_others(tmp_path, yields):
    """Its session as a whole: else the kernel shares processors evenly among sessions, whatever they hold."""

    async def look() -> tuple[int, str]:
        async with Process(["sleep", "60"], tmp_path, dict(os.environ), tmp_path / "log", yields=yields) as process:
            pid = int(process.identifier.split()[0])
            group = Path(f"/proc/{pid}/autogroup")
            return os.getpriority(os.PRIO_PROCESS, pid), group.read_text() if group.exists() else ""

    priority, group = asyncio.run(look())
    assert priority == (19 if yields else os.getpriority(os.PRIO_PROCESS, 0))
    assert not group or group.endswith(f" nice {19 if yields else 0}\n")


# In place of the training of small_train.py: compile, wait for a sign if asked to, then train.
TRAINING = """
WAITS, HANGS = False, False


@torch.compile(fullgraph=True)
def compiled_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / WIDTH


def train():
    import os, pathlib, time
    from torch._dynamo.utils import counters
    torch.manual_seed(SEED)
    model = build_model()
    inputs, targets = warmup_batch(ROWS, "cpu")
    while HANGS and type(inputs) is not torch.Tensor:  # it is compiled ahead
        print("hangs", flush=True)
        time.sleep(60)
    compiled_loss(model(inputs), targets).backward()
    model.zero_grad()
    print("compiled", counters["inductor"]["fxgraph_cache_miss"], "found", counters["inductor"]["fxgraph_cache_hit"])
    while WAITS and not pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"], "go").exists():
        time.sleep(0.05)
    batches = TrainBatches(ROWS, "cpu")
    steps = train_on(model, batches, build_optimizer(model))
    finish(model, batches, num_steps=steps)
"""
AGENT = """import pathlib, re, sys
number = re.match(r"# Experiment (\\d+)", sys.stdin.read()).group(1)
file, edits = pathlib.Path("train.py"), EDITS
for before, after in edits[number].items():
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
print("an edit")
"""
SECOND = {"WAITS, HANGS = False": "WAITS, HANGS = True", "3e-3)": "3e-9)"}  # it is not kept


@contextlib.contextmanager
def a_night(folder: Path, environment: dict[str, str], third: dict[str, str], training: str = TRAINING):
    """A night whose second trial waits for the file `go`, and what starts it. third: what the third edit replaces."""
    game = Game(folder / "clone", environment, small=True)
    text = (ROOT / "tests/small_train.py").read_text()
    training = text[: text.index("def train():")] + training.lstrip() + text[text.index("\n\nif __name__") :]
    (game.folder / "train.py").write_text(training)
    game.commit()
    (folder / "agent.py").write_text(AGENT.replace("EDITS", repr({"2": SECOND, "3": third})))
    words = "--agent command --experiments 3 --baseline-runs 1 --repairs 0 --proposers 1 --lookahead 1 --compile-ahead"
    command = [*words.split(), "--agent-command", f"{sys.executable} {folder / 'agent.py'}"]
    started = []

    def start() -> subprocess.Popen:
        started.append(Toy.start(game, *command, loop=Path(__file__).with_name("ahead_loop.py")))
        return started[-1]

    try:
        yield game, start
    finally:
        for process in started:
            process.kill()
            process.wait()


def scored(game: Game) -> int:
    return len(game.statuses()) - game.statuses().count("crash")


def said(game: Game, log: str) -> str:
    path = game.runs / "trials" / log
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_the_next_edit_is_compiled_while_a_trial_runs(tmp_path, environment):
    narrower = {"WIDTH, HEADS, BLOCKS, ROWS = 64": "WIDTH, HEADS, BLOCKS, ROWS = 32"}
    with a_night(tmp_path, environment, narrower) as (game, start):
        process = start()
        wait_for(lambda: "graphs, found" in said(game, "ahead/ahead.log") or process.poll() is not None)
        (game.runs / "trials/2/run/go").touch()
        output, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 0 and scored(game) == 3, output
    assert "compiled 2 found 0" in said(game, "1/train.log") and "compiled 0 found 2" in said(game, "2/train.log")
    assert "compiled 2 graphs, found 0" in said(game, "ahead/ahead.log")
    assert "compiled 0 found 2" in said(game, "3/train.log"), said(game, "3/train.log")
    assert not (game.runs / "trials/ahead/run/tmp").exists()
    game.require_whole()


@pytest.mark.slow
def test_compiling_ahead_ends_with_the_night_and_when_the_trial_begins(tmp_path, environment):
    hangs = {"WAITS, HANGS = False, False": "WAITS, HANGS = False, True"}
    uncompiled = TRAINING.replace("@torch.compile(fullgraph=True)\n", "")  # which is not what this is about
    with a_night(tmp_path, environment, hangs, uncompiled) as (game, start):

        def compiles() -> str | None:
            """The process, once it hangs; another one than that of a night before."""
            pid = said(game, "ahead/process").partition(" ")[0]
            at_work = "hangs" in said(game, "ahead/ahead.log") and os.path.exists(f"/proc/{pid}")
            return pid if at_work or process.poll() is not None else None

        process = start()
        pid = wait_for(compiles)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=HANGS)
        assert process.returncode == 130 and scored(game) == 1 and not os.path.exists(f"/proc/{pid}"), output
        process = start()
        pid = wait_for(compiles)
        (game.runs / "trials/2/run/go").touch()
        output, _ = process.communicate(timeout=HANGS)
        assert process.returncode == 0 and scored(game) == 3 and not os.path.exists(f"/proc/{pid}"), output
    game.require_whole()
