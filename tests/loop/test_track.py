"""Trackers: what they are sent of a run, and a loop that none of them holds up.

Most tests have a module `wandb` of their own; the one marked `clients` sends to the real packages, which it installs.
"""

import asyncio
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, solver, step
from test_loop import alive
from test_verify import write_night

from autoresearch import UserError
from autoresearch.views import track
from autoresearch.views.track import Tracking, require_tracker

PACKAGES = {
    "trackio": ["trackio==0.43.0"],
    "wandb": ["wandb==0.31.0"],
    "mlflow": ["mlflow-skinny==3.17.2", "sqlalchemy>=2.0", "alembic>=1.16"],
}
STAND_IN = """import json, os

def tell(**said):
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps({**said, "key": os.environ.get("WANDB_API_KEY"), "other": os.environ.get("MY_TOKEN")}))
        file.write("\\n")

class Run:
    summary = {}
    def log(self, values, step=None):
        tell(step=step, values=values)
    def finish(self):
        tell(digest=self.summary["digest"])

def Settings(**settings):
    return settings

def Table(columns, data):
    return [dict(zip(columns, row)) for row in data]

def init(**said):
    tell(init=said)
    return Run()
"""


@pytest.fixture
def stand_in(tmp_path) -> dict[str, str]:
    """The environment of a loop whose `wandb` writes down what it is told."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/wandb.py").write_text(STAND_IN)
    keys = {"WANDB_API_KEY": "0123456789abcdef", "MY_TOKEN": "0123456789abcdef"}
    return {"PYTHONPATH": str(tmp_path / "modules"), "TOLD": str(tmp_path / "told"), **keys}


@pytest.mark.slow
def test_a_night_is_sent_once_whatever_came_between(toy, stand_in, tmp_path):
    toy.plan_steps(e2=[step(2)], e3=[step(1.5)])
    toy.run_agent(2, "--track", "wandb", **stand_in)
    toy.run_agent(3)  # not tracked
    assert toy.run("track", "wandb", **stand_in).endswith("wandb has 3 experiments of run night\n")
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert {(one["key"], one["other"]) for one in told[:-4]} == {("0123456789abcdef", None)}  # beside the loop
    begun = [one["init"] for one in told if "init" in one]
    assert len(begun) == 2 and begun[0]["id"] == begun[1]["id"] and begun[0]["name"] == "night"
    assert begun[0]["config"]["metric"] == "score" and "Raise the number." in begun[0]["config"]["agenda"]
    steps = [(one["step"], one["values"]) for one in told if "score" in one.get("values", {})]
    assert [(step, values["score"], values["best score"]) for step, values in steps] == [
        (1, 1, 1),
        (2, 2, 2),
        (3, 1.5, 2),
    ]
    table = [one["values"]["experiments"] for one in told if "values" in one and "experiments" in one["values"]][-1]
    assert [row["status"] for row in table] == ["keep", "keep", "discard"] and "+VALUE = 2" in table[1]["diff"]
    assert [row["description"] for row in table] == ["baseline", "set it to 2", "set it to 1.5"]
    assert told[-1]["digest"] == toy.run("digest").rstrip("\n")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import time\ntime.sleep(600)", "it did not end within 0 s; the loop continues"),
        ("raise SystemExit('log in first\\nerror: nobody is signed in')", "nobody is signed in; the loop continues"),
    ],
)
def test_a_tracker_that_hangs_or_fails_is_said_once_and_holds_nobody_up(tmp_path, monkeypatch, program, reason):
    async def night() -> None:
        tracking = Tracking("wandb", tmp_path, said.append)
        for _ in range(2):
            await tracking.before_trial({"run": "night"})  # returns at once
        if "sleep" not in program:
            await tracking.ended
        await tracking.close()
        assert tracking.process and not alive(tracking.process.pid)

    said: list[str] = []
    (tmp_path / "night").mkdir()
    (tmp_path / "loop.py").write_text(program)
    (tmp_path / "wandb.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "loop.py")])
    monkeypatch.setattr(track, "LAST", 0.5)
    asyncio.run(night())
    assert len(said) == 1 and said[0].startswith(f"--track wandb: {reason}")


def test_one_process_sends_a_run_whose_trials_begin_at_the_same_time(tmp_path, monkeypatch):
    """As where a run on two GPUs is continued. Two processes would send everything twice."""

    async def night() -> None:
        tracking = Tracking("wandb", tmp_path, said.append)
        await asyncio.gather(*(tracking.before_trial({"run": "night"}) for _ in range(2)))
        await tracking.ended
        await tracking.close()

    said: list[str] = []
    (tmp_path / "night").mkdir()
    (tmp_path / "loop.py").write_text(f"open({str(tmp_path / 'begun')!r}, 'a').write('once ')")
    (tmp_path / "wandb.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "loop.py")])
    asyncio.run(night())
    assert (tmp_path / "begun").read_text() == "once " and not said


def test_trackers_that_there_are_not(monkeypatch, refused, toy):
    assert "trackers are trackio, wandb, mlflow, not 'nothing'" in refused("--track", "nothing")
    monkeypatch.setitem(track.TRACKERS, "no_such_module", track.Trackio)
    with pytest.raises(UserError, match="no_such_module is not installed: `uv run --extra no_such_module"):
        require_tracker("no_such_module")


# -- the real ones


@pytest.fixture(scope="session")
def packages() -> Path:
    """A folder with the real packages, installed once, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "autoresearch-test-clients/trackers"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp, wanted = folder / "installed", " ".join(itertools.chain(*PACKAGES.values()))
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(folder / "site", ignore_errors=True)
            install = ["uv", "pip", "install", "--python", sys.executable, "--target", folder / "site"]
            subprocess.run([*install, *wanted.split()], check=True)
            stamp.write_text(wanted)
    return folder / "site"


READ = {
    "trackio": """
from trackio.sqlite_storage import SQLiteStorage
[name] = SQLiteStorage.get_runs("repository")
rows = SQLiteStorage.get_logs("repository", name)
config = SQLiteStorage.get_run_config("repository", name)
print(json.dumps([name[:5], config["metric"], [row["score"] for row in rows if "score" in row]]))
""",
    "wandb": """
[path] = Path(".autoresearch/wandb").glob("offline-run-*/run-*.wandb")
assert b"night" in path.read_bytes() and b"Raise the number." in path.read_bytes()
table = json.loads(max(path.parent.glob("files/media/table/*.json"), key=lambda path: path.stat().st_size).read_text())
scores = [dict(zip(table["columns"], row))["score"] for row in table["data"]]
print(json.dumps(["night", "score", [score for score in scores if score is not None]]))
""",
    "mlflow": """
from mlflow import MlflowClient
client = MlflowClient("sqlite:///.autoresearch/mlflow.db")
experiment = client.get_experiment_by_name("repository").experiment_id
runs = client.search_runs([experiment])
[run] = [run for run in runs if "autoresearch.id" in run.data.tags]
below = sorted((int(run.data.tags["mlflow.runName"].split(":")[0]), run.data.params["status"]) for r in runs
               for run in [r] if "mlflow.parentRunId" in run.data.tags)
assert below == [(1, "keep"), (2, "keep"), (3, "crash"), (4, "discard")], below
scores = [point.value for point in client.get_metric_history(run.info.run_id, "score")]
print(json.dumps([run.info.run_name, run.data.params["metric"], scores]))
""",
}


@pytest.mark.clients
@pytest.mark.parametrize("name", PACKAGES)
def test_the_real_trackers_in_their_local_modes(toy, packages, tmp_path, name):
    loop = tmp_path / "with_packages.py"  # behind what is installed
    loop.write_text(
        f"import runpy, sys\nsys.path[:0] = [{str(ROOT)!r}]\nsys.path.append({str(packages)!r})\n"
        f"runpy.run_path({str(ROOT / 'loop.py')!r}, run_name='__main__')\n"
    )
    edits = [(solver(2), "set it to 2", 2.0), ("raise SystemExit(1)", "exit code 1", None), (solver(0), "zero", 0.0)]
    write_night(toy, [1.0], edits)
    local = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    for _ in range(2):  # the second time there is nothing left to send
        assert f"{name} has 4 experiments of run night" in toy.run("track", name, loop=loop, **local)
        if name == "wandb":
            local["WANDB_DIR"] = str(tmp_path)
    code = f"import json, sys\nfrom pathlib import Path\nsys.path.append({str(packages)!r})\n{READ[name]}"
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, cwd=toy.folder, env={**toy.environment, **local}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == ["night", "score", [1, 2, 0]]
