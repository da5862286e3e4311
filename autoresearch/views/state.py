"""Status: what can be known of a run at this moment, by the loop that works on it and by everybody else.

The past is in the journal. The present is in .autoresearch/<tag>/now.json, which the loop's console writes whenever a phase begins, and in
progress.json of the running trial. The first is ours and the second is not: a trial could write anything there, so only numbers are taken from it.
Whether a loop is at work is asked of its lock.
"""

import dataclasses
import fcntl
import json
import math
import os
import statistics
import time
from pathlib import Path

from autoresearch.ledger import Attempt, Ledger, one_line
from autoresearch.process import identify
from autoresearch.task import task_of

LARGEST = 1 << 16  # bytes of a file that are read
CURVE = 60  # points of the curve
LAST = 10  # verdicts that are told
TYPICAL = 9  # trials from which the time of the next one is guessed


# ----------------------------------------------------------------------------------------------
# The present


@dataclasses.dataclass
class Progress:
    """How far a training is, by its own word."""

    clock: float  # when its clock started, seconds since 1970
    budget: float  # seconds of training
    loss: float | None = None
    step: int | None = None


@dataclasses.dataclass
class Running:
    """A trial at work."""

    number: int
    worker: int
    label: str  # what it is, in words
    folder: str
    began: float  # seconds since 1970, as all that follow
    phase: str = "train"
    since: float = 0.0  # when the phase began
    progress: Progress | None = None


@dataclasses.dataclass
class Thinking:
    """An agent at work."""

    number: int
    agent: str
    since: float


@dataclasses.dataclass
class Now:
    """What a loop does at this moment."""

    process: str  # process id and start time, which name it for good
    since: float  # when it was called
    limits: dict[str, float]  # by option, without dashes: experiments, hours, max-cost, max-tokens
    trials: list[Running] = dataclasses.field(default_factory=list)
    thinking: Thinking | None = None
    stopping: bool = False  # it was asked to stop

    def write(self, folder: Path) -> None:
        """Into now.json, whole or not at all. A disk that is full is no reason to stop: the present is not the record."""
        part = folder / ".now.json.part"
        entry = dataclasses.asdict(self)
        for trial in entry["trials"]:
            del trial["progress"]
        try:
            part.write_text(json.dumps(entry))
            part.replace(folder / "now.json")
        except OSError:
            pass


def read_json(path: Path) -> dict:
    """A small JSON object in a file that others can write: no links, no pipes, no end of it. Empty where it is none."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            found = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def number_in(found: dict, name: str) -> float | None:
    """A finite number of a reasonable size, or None."""
    value = found.get(name)
    return (
        value
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)
        else None
    )


def read_progress(folder: Path) -> Progress | None:
    """What the training of a trial says of itself; None before its clock starts, or where it says nothing that could be true."""
    found = read_json(folder / "run/progress.json")
    clock, budget, loss, step = (number_in(found, name) for name in ("clock", "budget", "loss", "step"))
    if clock is None or budget is None or budget <= 0:
        return None
    return Progress(clock, budget, loss, None if step is None else int(step))


def read_now(folder: Path, pid: int) -> Now | None:
    """What the loop of a process does; None where it has not said, or another one has."""
    found = read_json(folder / "now.json")
    try:
        now = Now(
            **{
                **found,
                "trials": [Running(**trial) for trial in found["trials"]],
                "thinking": found["thinking"] and Thinking(**found["thinking"]),
            }
        )
    except (TypeError, KeyError):
        return None
    if now.process != identify(pid) or not all(
        Path(trial.folder).is_relative_to(folder) and ".." not in trial.folder for trial in now.trials
    ):
        return None
    for trial in now.trials:
        if trial.phase == "train":
            trial.progress = read_progress(Path(trial.folder))
    return now


def holder(folder: Path) -> int | None:
    """The process that holds a run's lock; 0 where that is not known, None where there is none."""
    try:
        with open(folder / "lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdecimal() else 0
    except FileNotFoundError:
        return None


# ----------------------------------------------------------------------------------------------
# The past


@dataclasses.dataclass
class Past:
    """What follows from the verdicts. Counted again when there is a new one, and not at every look."""

    counts: dict[str, int]
    tried: int
    baseline: float | None
    champion: Attempt | None
    gain: float | None  # of the champion over the baseline: positive is better
    curve: list[float]  # best score so far, at most CURVE points, the last one the champion's
    last: list[Attempt]  # the newest first
    typical: float | None  # seconds of a trial
    after: float  # seconds of it after its training


def past_of(ledger: Ledger) -> Past:
    sign = 1 if task_of(ledger.run["task"]).lower_is_better else -1
    finished = ledger.finished
    counts = {status: sum(attempt.status == status for attempt in finished) for status in ("keep", "discard", "crash")}
    kept = [attempt for attempt in finished if attempt.status == "keep"]
    curve, best = [], None
    for attempt in finished:
        if attempt.status == "keep":
            best = attempt.score
        if best is not None:
            curve.append(best)
    step = max(1.0, len(curve) / CURVE)
    points = [curve[min(len(curve) - 1, math.ceil((i + 1) * step) - 1)] for i in range(min(len(curve), CURVE))]
    known = [
        attempt.seconds
        for attempt in finished[-3 * TYPICAL :]
        if attempt.score is not None and (attempt.seconds or {}).get("wall")
    ][-TYPICAL:]
    return Past(
        counts,
        len(finished) - finished.index(kept[0]) - 1 if kept else 0,
        kept[0].score if kept else None,
        kept[-1] if kept else None,
        sign * (kept[0].score - kept[-1].score) if kept else None,
        points,
        finished[: -LAST - 1 : -1],
        statistics.median(seconds["wall"] for seconds in known) if known else None,
        statistics.median(max(0.0, seconds["wall"] - seconds.get("train", 0.0)) for seconds in known) if known else 0.0,
    )


# ----------------------------------------------------------------------------------------------
# Both


@dataclasses.dataclass
class State:
    """A run at one moment. `loop.py status --json` prints this. Times are seconds since 1970; what is not known is null.

    tag, time, running (a loop is at work), process (its id), stopping (it was asked to stop), since (when it was called), reason (why the last one ended)
    device, profile, data, metric, direction (`minimize` or `maximize`)
    baseline (its score), champion (number, commit, score, description), gain (of the champion over the baseline, positive is better)
    experiments, keep, discard, crash (their number, the baseline included), keep_rate (of what came after it), per_hour (experiments while a loop ran)
    curve (best score so far, oldest first, at most 60 points), last (ten verdicts, newest first: number, status, score, seconds, description, reason)
    trials (running: number, worker, label, phase, since, began, log, done and budget in seconds of the training clock, loss, step, left in seconds)
    thinking (number, agent, since), waiting (agent, until: it cannot be reached)
    proposals, tokens, dollars, unknown_tokens, unknown_dollars (proposals of which nobody knows)
    limits (by option: used, allowed), finish (when the first of them will be reached, if all goes on as it did)
    workers, seconds (by kind, see accounting.py: worker-seconds of the whole run), wall (seconds by the clock while a loop ran)
    """

    tag: str
    time: float
    running: bool
    process: int | None
    stopping: bool
    since: float | None
    reason: str
    device: str | None
    profile: str | None
    data: str | None
    metric: str
    direction: str
    baseline: float | None
    champion: dict | None
    gain: float | None
    experiments: int
    keep: int
    discard: int
    crash: int
    keep_rate: float | None
    per_hour: float | None
    curve: list[float]
    last: list[dict]
    trials: list[dict]
    thinking: dict | None
    waiting: dict | None
    proposals: int
    tokens: int
    dollars: float
    unknown_tokens: int
    unknown_dollars: int
    limits: dict[str, dict]
    finish: float | None
    workers: int
    seconds: dict[str, float]
    wall: float


def state_of(ledger: Ledger, now: Now | None, process: int | None, at: float, past: Past | None = None) -> State:
    """The state of a run. process: which holds its lock. at: the present time."""
    past = past or past_of(ledger)
    game, task, account, spent, champion = (
        ledger.game or {},
        task_of(ledger.run["task"]),
        ledger.account,
        ledger.spent,
        past.champion,
    )
    running = process is not None
    at_work = running and not (
        now and account.last_start < now.since
    )  # else it prepares, or verifies: an open session is an older one's
    present = at if at_work else None
    wall = account.wall(present)
    experiments = sum(past.counts.values())
    since = None if not running else now.since if now else at - account.session(at)
    used = {
        "experiments": experiments,
        "hours": (at - since) / 3600 if since else 0.0,
        "max-cost": spent.dollars,
        "max-tokens": spent.tokens,
    }
    limits = {
        name: {"used": used[name], "allowed": allowed}
        for name, allowed in (now.limits if now else {}).items()
        if name in used
    }
    away = running and not (now and now.thinking) and account.waits_until > at
    reason = account.stopped_because
    if not running and not reason and ledger.attempts:
        reason = (
            "its agent drives: no trial is running"
            if account.driven
            else "it ended without a word: killed, or the machine went down"
        )
    return State(
        tag=ledger.run["tag"],
        time=at,
        running=running,
        process=process or None,
        stopping=bool(now and now.stopping),
        since=since,
        reason="" if running else reason,
        device=game.get("device"),
        profile=game.get("profile"),
        data=game.get("data"),
        metric=task.metric,
        direction=task.direction,
        baseline=past.baseline,
        gain=past.gain,
        curve=past.curve,
        champion=champion
        and {
            "number": champion.number,
            "commit": champion.commit,
            "score": champion.score,
            "description": champion.description,
        },
        experiments=experiments,
        **past.counts,
        keep_rate=(past.counts["keep"] - 1) / past.tried if past.tried else None,
        per_hour=3600 * experiments / wall if wall > 0 and experiments else None,
        last=[
            {
                "number": attempt.number,
                "status": attempt.status,
                "score": attempt.score,
                "seconds": (attempt.seconds or {}).get("wall"),
                "description": one_line(attempt.description),
                "reason": one_line(attempt.reason or ""),
            }
            for attempt in past.last
        ],
        trials=[trial_of(trial, past, at) for trial in (now.trials if now else [])],
        thinking=now and now.thinking and dataclasses.asdict(now.thinking),
        waiting={"agent": account.waits_for, "until": account.waits_until} if away else None,
        **dataclasses.asdict(spent),
        limits=limits,
        finish=finish_of(limits, at, wall) if running else None,
        workers=account.workers,
        seconds={kind: round(seconds, 3) for kind, seconds in account.total(present).items()},
        wall=round(wall, 3),
    )


def trial_of(trial: Running, past: Past, at: float) -> dict:
    """A running trial, as State tells it."""
    progress = trial.progress if trial.phase == "train" else None
    done = left = None
    if progress:
        done = min(progress.budget, max(0.0, at - max(progress.clock, trial.since)))
        left = progress.budget - done + past.after
    elif past.typical:
        left = max(0.0, past.typical - (at - trial.began))
    return {
        "number": trial.number,
        "worker": trial.worker,
        "label": trial.label,
        "phase": trial.phase,
        "since": trial.since,
        "began": trial.began,
        "log": str(Path(trial.folder) / f"{trial.phase}.log"),
        "done": done,
        "budget": progress and progress.budget,
        "loss": progress and progress.loss,
        "step": progress and progress.step,
        "left": left,
    }


def finish_of(limits: dict[str, dict], at: float, wall: float) -> float | None:
    """When the first limit will be reached: hours pass by the clock, all else as fast as in the run so far."""
    ends = []
    for name, limit in limits.items():
        missing = max(0.0, limit["allowed"] - limit["used"])
        if name == "hours":
            ends.append(at + 3600 * missing)
        elif limit["used"] and wall > 0:
            ends.append(at + missing * wall / limit["used"])
    return min(ends, default=None)


def look(ledger: Ledger) -> State:
    """The state of a run that another process may be working on."""
    folder = ledger.path.parent
    process = holder(folder)
    now = read_now(folder, process) if process else None
    return state_of(ledger, now, process, time.time())
