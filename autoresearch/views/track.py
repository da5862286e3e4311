"""Track: send a run's record to an experiment tracker: Trackio, Weights & Biases or MLflow.

`loop.py track NAME` sends the experiments that the tracker lacks; while a loop is running it continues, and ends with
the loop. `--track NAME` starts it as a separate process next to the loop, so that a tracker that fails, hangs or is
slow delays nothing. tracked.json in the run's folder notes what was sent, so nothing is sent twice.

A step is an experiment, in the order of the verdicts. Where a tracker keeps its data, and whether it needs an account,
depends on its own environment variables (WANDB_MODE=offline, MLFLOW_TRACKING_URI, TRACKIO_DIR).
"""

import asyncio
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import git

from autoresearch import UserError, keys
from autoresearch.files import read_json, write_whole
from autoresearch.record.journal import holder
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.repo import RunRepo
from autoresearch.runner.logs import read_tail
from autoresearch.task import contents_hash
from autoresearch.text import clean, one_line, to_type
from autoresearch.views.digest import digest
from autoresearch.views.notify import Listener, without_keys
from autoresearch.views.report import fenced
from autoresearch.views.state import look
from autoresearch.views.verdicts import Record

POLL = 1.0  # seconds between two looks at the record
LAST = 60.0  # seconds that a tracker has when the loop has ended
LOG = "track.log"  # what a tracker printed
LONGEST = 6000  # characters of a value in MLflow
# Environment variables of trackers, and of the stores that they write to: these keys they get.
OWN = ("TRACKIO_", "HF_", "WANDB_", "MLFLOW_", "DATABRICKS_", "AWS_", "AZURE_", "GOOGLE_")


@dataclasses.dataclass
class Experiment:
    """One attempt that has its verdict."""

    step: int
    number: int
    metrics: dict[str, float]
    texts: dict[str, str]  # status, category, description, ...
    diff: str

    @property
    def page(self) -> str:
        """In Markdown."""
        rows = [f"- {name}: {one_line(text)}" for name, text in self.texts.items() if text]
        return "\n".join([f"# Experiment {self.number}", "", *rows, "", fenced(self.diff) if self.diff else ""])


@dataclasses.dataclass
class Tracked:
    """What a tracker is told of a run when it begins."""

    project: str  # name of the repository's folder
    name: str
    id: str  # names this run and no other
    config: dict[str, Any]
    sent: list[Experiment]  # those that it has already


class Tracker(Protocol):
    """A tracker with the run open, new or continued."""

    def __init__(self, run: Tracked) -> None: ...

    def log(self, experiment: Experiment) -> None: ...

    def finish(self, digest: str) -> None: ...


# ----------------------------------------------------------------------------------------------
# The trackers


class Trackio:
    def __init__(self, run: Tracked) -> None:
        self.trackio = module("trackio")
        name = f"{run.name}-{run.id[:6]}"  # it tells runs apart by their names alone
        alone = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}  # trials have the machine
        self.trackio.init(project=run.project, name=name, config=run.config, resume="allow", **alone)
        self.step = len(run.sent)

    def log(self, experiment: Experiment) -> None:
        page = self.trackio.Markdown(experiment.page)
        self.trackio.log({**experiment.metrics, **experiment.texts, "page": page}, step=experiment.step)
        self.step = experiment.step

    def finish(self, digest: str) -> None:
        self.trackio.log({"digest": self.trackio.Markdown(listed(digest))}, step=self.step)
        self.trackio.finish()


class Wandb:
    def __init__(self, run: Tracked) -> None:
        self.wandb, self.rows = module("wandb"), list(run.sent)
        settings = self.wandb.Settings(console="off", save_code=False, disable_git=True)
        self.run = self.wandb.init(
            project=run.project, id=run.id, name=run.name, config=run.config, resume="allow", settings=settings
        )

    def log(self, experiment: Experiment) -> None:
        self.rows.append(experiment)
        more = {"experiments": self.table()} if experiment.texts["status"] == "keep" else {}  # each one is a file
        self.run.log({**experiment.metrics, **more}, step=experiment.step)

    def finish(self, digest: str) -> None:
        self.run.log({"experiments": self.table()}, step=len(self.rows))
        self.run.summary["digest"] = digest
        self.run.finish()

    def table(self) -> Any:
        columns = ["number", *self.rows[0].texts, "score", "diff"] if self.rows else []
        rows = [[row.number, *row.texts.values(), row.metrics.get("score"), row.diff] for row in self.rows]
        return self.wandb.Table(columns=columns, data=rows)


class Mlflow:
    """The run has the curves; each experiment is a run below it, with what was said of it and its diff."""

    def __init__(self, run: Tracked) -> None:
        mlflow, self.entities = module("mlflow"), module("mlflow.entities")
        self.client = client = mlflow.MlflowClient()
        self.experiment = mlflow.set_experiment(run.project).experiment_id
        named = client.search_runs([self.experiment], f"tags.`autoresearch.id` = '{run.id}'", max_results=1)
        if named:
            self.id = named[0].info.run_id
            client.update_run(self.id, "RUNNING")
            return
        self.id = client.create_run(self.experiment, run_name=run.name, tags={"autoresearch.id": run.id}).info.run_id
        client.log_batch(self.id, params=self.params(run.config))

    def log(self, experiment: Experiment) -> None:
        name = one_line(f"{experiment.number}: {experiment.texts['description']}", 80)
        below = self.client.create_run(self.experiment, run_name=name, tags={"mlflow.parentRunId": self.id}).info.run_id
        now = int(1000 * time.time())
        for run, step, params in ((below, 0, self.params(experiment.texts)), (self.id, experiment.step, [])):
            values = [self.entities.Metric(name, value, now, step) for name, value in experiment.metrics.items()]
            self.client.log_batch(run, values, params)
        self.client.log_text(below, experiment.page, "page.md")
        self.client.set_terminated(below)

    def params(self, values: dict[str, Any]) -> list:
        return [self.entities.Param(name, str(value)[:LONGEST]) for name, value in values.items()]

    def finish(self, digest: str) -> None:
        self.client.log_text(self.id, listed(digest), "digest.md")
        self.client.set_terminated(self.id)


TRACKERS: dict[str, type[Tracker]] = {"trackio": Trackio, "wandb": Wandb, "mlflow": Mlflow}


def module(name: str) -> Any:
    """Loaded only where it is asked for: none of them is installed by default."""
    return importlib.import_module(name)


def listed(digest: str) -> str:
    return "\n".join(f"- {line}" for line in digest.splitlines())


# ----------------------------------------------------------------------------------------------
# Sending a run


def require_tracker(name: str | None) -> str:
    """The name of a tracker. Raises UserError if it is unknown or not installed."""
    if name not in TRACKERS:
        raise UserError(f"trackers are {', '.join(TRACKERS)}, not {name!r}")
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"{name} is not installed: `uv run --extra {name} loop.py ...` installs it, or for the command "
            f"autoresearch `uv tool install --with {name} PATH_OR_URL`"
        )
    return name


def track(name: str, ledger: Ledger, repo: RunRepo) -> int:
    """Send what the tracker lacks, until no loop works on the run. Returns how many experiments it then has."""
    folder = ledger.path.parent
    os.chdir(folder.parent)  # what a tracker writes beside it does not lie in the user's checkout
    noted = Noted(folder / "tracked.json", name)
    tracker = TRACKERS[name](tracked(ledger, repo, noted.sent))
    while True:
        ended = holder(folder) is None  # asked before the last look, so that nothing is missed
        ledger.catch_up()
        for experiment in experiments(ledger, repo, noted.sent):
            tracker.log(experiment)
            noted.note(experiment.step)
        if ended:
            tracker.finish(keys.scrub("\n".join(digest(look(ledger)))))
            return noted.sent
        time.sleep(POLL)


class Noted:
    """How many experiments a tracker has been sent, in tracked.json."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.all = read_json(path)
        self.sent: int = self.all.get(name, 0)

    def note(self, sent: int) -> None:
        self.sent = self.all[self.name] = sent
        write_whole(self.path, json.dumps(self.all))


def tracked(ledger: Ledger, repo: RunRepo, sent: int) -> Tracked:
    run, task, facts = ledger.run, ledger.task, ledger.facts
    assert run and task
    config = {
        "tag": run.tag,
        "base": run.base,
        "metric": task.metric,
        "direction": task.direction,
        "editable": ", ".join(task.editable),
        "train": task.train,
        "score": task.score,
        "keep_rule": ledger.started.keep_rule,
        "workers": ledger.started.workers,
        "seed": ledger.seed,
        "agenda": clean(ledger.started.agenda),
    }
    if facts:
        config |= {name: getattr(facts, name) for name in ("profile", "data", "device", "time_budget", "game")}
        config |= facts.machine
    known = {name: value for name, value in config.items() if value not in (None, "")}
    name = contents_hash({run.tag: f"{run.time} {run.base}".encode()})
    return Tracked(repo.root.name, run.tag, name, known, list(experiments(ledger, repo, 0))[:sent])


def experiments(ledger: Ledger, repo: RunRepo, after: int) -> Iterator[Experiment]:
    """The attempts that have a verdict, in that order, without the first `after`."""
    record = Record(ledger)
    best: float | None = None
    for step, attempt in enumerate(list(ledger.finished), 1):
        best = attempt.score if attempt.status == "keep" else best
        if step > after:
            yield experiment_of(attempt, step, best, record, repo)


def experiment_of(attempt: Attempt, step: int, best: float | None, record: Record, repo: RunRepo) -> Experiment:
    row, metric = record.row(attempt), record.task.metric
    numbers = {
        "score": row.score,
        f"best {metric}": best,
        "gain": row.gain,
        "predicted": row.predicted,
        "holdout": row.holdout,
        "memory_gb": attempt.memory_gb or None,
        "seconds": row.seconds,
        "lines": row.lines,
        "tokens": row.tokens,
        "dollars": row.dollars,
        "kept": int(row.status == "keep"),
        **{f"figures/{plain(name)}": value for name, value in (attempt.figures or {}).items()},
    }
    texts = {
        "status": row.status,
        "category": row.category,
        "description": row.description,
        "reason": row.reason,
        "hypothesis": one_line(attempt.hypothesis),
        "agent": row.agent,
        "commit": row.commit,
    }
    diff = ""
    if not attempt.is_baseline:
        with contextlib.suppress(git.GitError):
            diff = repo.diff(attempt.parent, attempt.commit, record.task.editable)
    finite = {k: float(v) for k, v in numbers.items() if isinstance(v, int | float) and math.isfinite(v)}
    return Experiment(step, attempt.number, finite, {k: keys.scrub(v) for k, v in texts.items()}, clean(diff))


def plain(name: str) -> str:
    """The name of a figure, as every tracker takes it."""
    return re.sub(r"[^\w. -]", "_", name)


# ----------------------------------------------------------------------------------------------
# Beside a loop


class Tracking(Listener):
    """`loop.py track NAME` in a process of its own, from the first trial to the end of the loop.

    say: called once if it fails. runs: the folder of all runs. Raises UserError if there is no such tracker.
    """

    def __init__(self, name: str, runs: Path, say: Callable[[str], None]) -> None:
        require_tracker(name)
        self.name, self.runs, self.say = name, runs, say
        self.process: asyncio.subprocess.Process | None = None
        self.ended: asyncio.Task | None = None

    async def before_trial(self, notice: dict) -> None:
        if not self.ended:  # nothing is awaited in between: several trials may begin at once
            self.ended = asyncio.create_task(self.send_run(notice["run"]))

    async def send_run(self, run: str) -> None:
        """Start the process, and wait for its end."""
        words = [sys.executable, os.path.abspath(sys.argv[0]), "track", self.name, "--tag", run]
        log = self.runs / run / LOG
        try:
            with open(log, "wb") as output:
                self.process = await asyncio.create_subprocess_exec(
                    *words,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=without_keys(but=OWN),
                    cwd=self.runs.parent,
                    start_new_session=True,
                )
        except OSError as error:
            return self.fault(error.strerror or "")
        if await self.process.wait():
            last = read_tail(log, 500).strip().rpartition("\n")[2]
            self.fault(one_line(last.removeprefix("error: ")))

    def fault(self, reason: str) -> None:
        again = f"`{to_type(f'track {self.name}')}` sends the rest"
        self.say(f"--track {self.name}: {reason}; the loop continues, and further failures are not reported. {again}")

    async def close(self) -> None:
        """Let it send the rest, at most LAST seconds."""
        if not self.ended:
            return
        try:
            async with asyncio.timeout(LAST):
                await asyncio.shield(self.ended)
        except TimeoutError:
            self.ended.cancel()
            self.fault(f"it did not end within {LAST:.0f} s")
        finally:
            if self.process and self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                await self.process.wait()
