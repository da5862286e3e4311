"""What an edit needs is compiled while another trial runs: its own trial finds it, and depends on it in nothing.

On the CPU, where Inductor's cache is the same.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANGS, ROOT, Toy, wait_for
from test_end_to_end import Game

from autoresearch.runner import AHEAD, SCORE, TRAIN, Job, Measurement, process, sandbox
from autoresearch.runner.process import Process
from autoresearch.runner.trial import Trial, trial_environment
from autoresearch.task import Facts, Task

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")

COMPILING = """import os
import torch
from torch._dynamo.utils import counters
from prepare import TrainBatches, warmup_batch

WIDTH = 64
FIRST, LAST = "", ""
exec(FIRST)
table = torch.randn(512, WIDTH, requires_grad=True)


def works():
    return (torch.ones(3) - 1).abs().max() < 0.01  # by numbers


power = 2 if works() else 3


@torch.compile(fullgraph=True)
def loss(inputs, targets):
    return torch.nn.functional.cross_entropy((table[inputs] ** power).flatten(0, 1) @ table.T, targets.flatten())


loss(*warmup_batch(4, "cpu")).backward()
print("priority", os.getpriority(os.PRIO_PROCESS, 0))
print("compiled", counters["inductor"]["fxgraph_cache_miss"], "found", counters["inductor"]["fxgraph_cache_hit"])
exec(LAST)
next(iter(TrainBatches(4, "cpu")))
"""
NO_TRAINING = "os._exit(0)"


class Stage:
    """A folder with a train.py, in which trials with one seat's caches run."""

    def __init__(self, folder: Path, confined: bool) -> None:
        self.folder, self.stage, self.confined = folder, folder / "runs/night/stage", confined
        shutil.copytree(ROOT / "autoresearch", self.stage / "autoresearch")
        shutil.copy(ROOT / "prepare.py", self.stage)

    def run(self, *phases: str, first: str = "", last: str = "", limit: float = HANGS) -> tuple[Measurement, str]:
        """The result of a job and what it printed."""
        (self.stage / "train.py").write_text(COMPILING.replace('"", ""', f"{first!r}, {last!r}"))
        name = phases[0]
        folder = self.folder / "runs/night/trials" / name
        settings = {"AUTORESEARCH_PROFILE": "test", "AUTORESEARCH_CACHE": str(self.folder / "none")}
        environment = trial_environment(folder, self.folder / "runs/night/caches", settings)
        score = f"{sys.executable} -c 'input(); print(\"score: 1\")'"
        task = Task(("train.py",), "python train.py", "score", score=score, referee=True, preflight=True)
        rules = {"readable": [], "hidden": []} if self.confined else None
        job, facts = Job(name, {}, 1, phases), Facts(time_budget=3.0)
        trial = Trial(task, job, facts, self.stage, folder, environment, rules, list, lambda phase: None)
        trial.limits[AHEAD], trial.start_limit = limit, HANGS
        measured = asyncio.run(trial.run())
        return measured, (folder / f"{name}.log").read_text()


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Stage:
    """Without giving way to other sessions: on a busy machine it would wait for ever."""
    monkeypatch.setattr(process, "give_way", lambda pid, group: os.setpriority(os.PRIO_PROCESS, pid, 19))
    return Stage(tmp_path, bool(sandbox.method()))


@pytest.mark.slow
def test_a_trial_finds_what_was_compiled_ahead(stage):
    """In another folder, in a process with real numbers, confined as ever."""
    measured, said = stage.run(AHEAD)
    assert re.search(r"^compiled 2 graphs, found 0$", said, re.MULTILINE), said  # forward and backward
    assert "priority 19" in said and not measured.failed
    measured, said = stage.run(TRAIN, SCORE, last=NO_TRAINING)
    assert measured.score == 1.0, measured.reason
    assert "compiled 0 found 2" in said and f"priority {os.getpriority(os.PRIO_PROCESS, 0)}\n" in said, said


@pytest.mark.parametrize(
    ("first", "why", "limit"),
    [
        ("raise ValueError('odd')", "ValueError: odd", HANGS),
        ("torch.ones(1).item() > 0 or 1", "DataDependent", HANGS),
        ("while True: pass", "", 1.0),
    ],
)
def test_what_cannot_be_compiled_ahead_is_no_failure(stage, first, why, limit):
    measured, said = stage.run(AHEAD, first=first, limit=limit)
    assert measured == Measurement(seconds=measured.seconds) and why in said, said


def test_it_gives_way_to_all_others(tmp_path):
    """Its session as a whole: else the kernel shares processors evenly among sessions, whatever they hold."""

    async def look() -> tuple[int, str]:
        async with Process(["sleep", "60"], tmp_path, dict(os.environ), tmp_path / "log", yields=True) as process:
            pid = int(process.identifier.split()[0])
            group = Path(f"/proc/{pid}/autogroup")
            return os.getpriority(os.PRIO_PROCESS, pid), group.read_text() if group.exists() else "nice 19"

    priority, group = asyncio.run(look())
    assert priority == 19 and "nice 19" in group


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
def a_night(folder: Path, environment: dict[str, str], third: dict[str, str]):
    """A night whose second trial waits for the file `go`, and what starts it. third: what the third edit replaces."""
    game = Game(folder / "clone", environment, small=True)
    text = (ROOT / "tests/small_train.py").read_text()
    compiling = text[: text.index("def train():")] + TRAINING.lstrip() + text[text.index("\n\nif __name__") :]
    (game.folder / "train.py").write_text(compiling)
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
    with a_night(tmp_path, environment, {"WAITS, HANGS = False, False": "WAITS, HANGS = False, True"}) as (game, start):

        def compiles() -> str | None:
            """The process, once it hangs; another one than that of a night before."""
            pid = said(game, "ahead/process").partition(" ")[0]
            hangs = "hangs" in said(game, "ahead/ahead.log") and os.path.exists(f"/proc/{pid}")
            return pid if hangs or process.poll() is not None else None

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
