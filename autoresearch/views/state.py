"""State: everything known about a run at one moment. Console, `status`, watch and report are all drawn from it.

The past follows from the journal. The present is in .autoresearch/<tag>/now.json, which the loop's console writes
whenever something begins or ends, and in the progress.json of running trials. The lock tells whether a loop is running.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import statistics
import time
from pathlib import Path

from autoresearch.files import read_json, write_whole
from autoresearch.gate import describe_held
from autoresearch.record.accounting import Use
from autoresearch.record.findings import Findings, doubt, findings
from autoresearch.record.journal import holder
from autoresearch.record.ledger import Attempt, Ledger, Spent
from autoresearch.runner import GUARD, HOLDOUT, SCORE, TRAIN
from autoresearch.runner.identity import identify
from autoresearch.runner.progress import read_progress
from autoresearch.task import Facts
from autoresearch.text import one_line

STATUSES = ("keep", "discard", "crash")
PHASES = {TRAIN: "starting up", SCORE: "scoring", GUARD: "running the guard", HOLDOUT: "scoring the holdout"}
CURVE = 60  # points of the curve
LAST = 10  # verdicts that are shown
NOTES = 3  # of people that are
TYPICAL = 9  # trials from which the time of the next one is estimated


# ----------------------------------------------------------------------------------------------
# The present, from now.json


@dataclasses.dataclass
class Running:
    """A trial that runs. Times are seconds since 1970."""

    number: int
    worker: int
    label: str  # what it is, in words
    began: float
    phase: str = ""
    since: float = 0.0  # when the phase began
    folder: str = ""  # where its logs and its progress are
    node: str = ""  # of a cluster, where it runs

    @property
    def log(self) -> Path:
        return Path(self.folder) / f"{self.phase}.log"


@dataclasses.dataclass
class Thinking:
    """An agent that works on a proposal."""

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
    thinking: list[Thinking] = dataclasses.field(default_factory=list)  # proposals that are worked on
    stopping: bool = False  # it was asked to stop
    external: bool = False  # an external agent called it: it ends with its verdict

    def write(self, folder: Path) -> None:
        """Into now.json, whole or not at all. A full disk is no reason to stop: the present is not the record."""
        with contextlib.suppress(OSError):
            write_whole(folder / "now.json", json.dumps(dataclasses.asdict(self)), lasting=False)


def read_now(folder: Path, pid: int) -> Now | None:
    """What the loop of a process does; None where it has not said, or another loop has."""
    found = read_json(folder / "now.json")
    try:
        trials = [Running(**trial) for trial in found["trials"]]
        thinking = [Thinking(**one) for one in found["thinking"]]
        said = found["process"], found["since"], found["limits"], trials, thinking, found["stopping"]
        now = Now(*said, external=found.get("external", False))
    except (TypeError, KeyError):
        return None
    inside = all(Path(trial.folder).is_relative_to(folder) and ".." not in trial.folder for trial in now.trials)
    return now if inside and now.process == identify(pid) else None


# ----------------------------------------------------------------------------------------------
# The past, from the journal


@dataclasses.dataclass
class Row:
    """One attempt, as tables show it. What is not known is None."""

    number: int
    status: str  # keep, discard, crash; waiting: it has no verdict yet
    score: float | None  # on the kind of device that decides
    gain: float | None  # over the champion of its time, as the judge saw it: positive is better. None for the baseline
    error: float  # standard error of that gain, from the noise known at its verdict; 0 where none was known
    seconds: float | None
    description: str
    reason: str
    agent: str
    category: str
    commit: str
    time: float  # when it was committed
    lines: int | None  # of code that it adds, net
    tokens: int | None
    dollars: float | None
    holdout: float | None
    repairs: int
    predicted: float | None
    node: str = ""  # of a cluster, where it ran last


class Record:
    """What follows from the verdicts so far, computed when it is first asked for, once."""

    def __init__(self, ledger: Ledger) -> None:
        assert ledger.run is not None and ledger.task is not None
        self.ledger, self.run, self.task, self.size = ledger, ledger.run, ledger.task, ledger.size
        self.facts = ledger.facts or Facts()
        self.sign = 1 if self.task.lower_is_better else -1

    def latest(self) -> "Record":
        """This one, or a new one when the journal has grown."""
        return self if self.size == self.ledger.size else Record(self.ledger)

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Verdicts by status, the baseline's included."""
        found = collections.Counter(attempt.status for attempt in self.ledger.finished)
        return {status: found[status] for status in STATUSES}

    @functools.cached_property
    def tried(self) -> list[Row]:
        """What has a verdict and came after the baseline, in the order of the verdicts."""
        return [self.row(attempt) for attempt in self.ledger.tried]

    @functools.cached_property
    def kept(self) -> list[Row]:
        """The baseline, and what was kept after it."""
        return [self.row(attempt) for attempt in self.ledger.kept]

    @functools.cached_property
    def tried_counts(self) -> dict[str, int]:
        """Verdicts by status, of what came after the baseline."""
        found = collections.Counter(attempt.status for attempt in self.ledger.tried)
        return {status: found[status] for status in STATUSES}

    @functools.cached_property
    def keep_rate(self) -> float | None:
        """The share of the changes that were kept."""
        tried = sum(self.tried_counts.values())
        return self.tried_counts["keep"] / tried if tried else None

    @functools.cached_property
    def gain(self) -> float | None:
        """Of the champion over the baseline: positive is better. In the run itself, so it flatters."""
        kept = self.ledger.kept
        if not kept or kept[0].score is None or kept[-1].score is None:
            return None
        return self.sign * (kept[0].score - kept[-1].score)

    @functools.cached_property
    def curve(self) -> list[float]:
        """The best score so far, at most CURVE points, the last one the champion's."""
        curve: list[float] = []
        best = None
        for attempt in self.ledger.finished:
            best = attempt.score if attempt.status == "keep" else best
            curve += [] if best is None else [best]
        step = max(1.0, len(curve) / CURVE)
        return [curve[min(len(curve) - 1, math.ceil((i + 1) * step) - 1)] for i in range(min(len(curve), CURVE))]

    @functools.cached_property
    def last(self) -> list[Row]:
        """The last verdicts, the newest first."""
        return [self.row(attempt) for attempt in self.ledger.finished[: -LAST - 1 : -1]]

    @functools.cached_property
    def typical(self) -> tuple[float | None, float]:
        """(Seconds of a trial; None where that is not known; seconds of it after its training.)"""
        newest = self.ledger.finished[-3 * TYPICAL :]
        known = [a.seconds for a in newest if a.score is not None and (a.seconds or {}).get("wall")][-TYPICAL:]
        if not known:
            return None, 0.0
        after = (max(0.0, seconds["wall"] - seconds.get("train", 0.0)) for seconds in known)
        return statistics.median(seconds["wall"] for seconds in known), statistics.median(after)

    @functools.cached_property
    def seconds(self) -> float:
        """Seconds of all trials that have a verdict."""
        finished = self.ledger.finished
        return sum((attempt.seconds or {}).get("wall", 0.0) + attempt.screening_seconds for attempt in finished)

    @functools.cached_property
    def noise(self) -> float:
        """The standard deviation of scores of identical code, as far as this run knows it; 0 if it does not."""
        return self.ledger.noise()

    @functools.cached_property
    def findings(self) -> Findings | None:
        """What `verify` found; None where it has not run."""
        return findings(self.ledger, self.task.lower_is_better, self.task.line_price)

    @functools.cached_property
    def doubt(self) -> str:
        """Why the kept changes are not to be believed, taken together; empty where nothing speaks against them."""
        return doubt(self.ledger.kept)

    @functools.cached_property
    def _kept_by_commit(self) -> dict[str, Attempt]:
        return {attempt.commit: attempt for attempt in self.ledger.kept}

    def row(self, attempt: Attempt) -> Row:
        gain, error = None, 0.0
        base = None if attempt.is_baseline else self._kept_by_commit.get(attempt.parent)
        standing = base.score if attempt.standing is None and base else attempt.standing
        if not attempt.is_baseline and attempt.score is not None and standing is not None:
            gain = self.sign * (standing - attempt.score)
            runs = 1 / max(1, len(attempt.own)) + 1 / max(1, attempt.standing_runs)
            error = (attempt.noise or 0.0) * math.sqrt(runs)
        return Row(
            attempt.number,
            attempt.status or "waiting",
            None if attempt.is_screened else attempt.score,
            gain,
            error,
            (attempt.seconds or {}).get("wall"),
            one_line(attempt.description),
            one_line(attempt.reason or ""),
            attempt.agent,
            attempt.category,
            attempt.commit,
            attempt.time,
            attempt.lines,
            attempt.tokens,
            attempt.dollars,
            attempt.holdout,
            attempt.repairs,
            attempt.predicted,
            attempt.node,
        )


# ----------------------------------------------------------------------------------------------
# Both


@dataclasses.dataclass
class Champion:
    number: int
    commit: str
    score: float
    description: str


@dataclasses.dataclass
class TrialState:
    """A trial that runs, and how far it is."""

    number: int
    worker: int
    label: str  # what it is, in words
    phase: str
    since: float  # when the phase began
    began: float
    log: str  # path
    clock: float | None = None  # when the training clock started; None while it does not run, as the next four
    done: float | None = None  # seconds of it
    budget: float | None = None  # of it
    loss: float | None = None
    step: int | None = None
    left: float | None = None  # seconds until its verdict, estimated
    node: str = ""  # of a cluster, where it runs

    @property
    def doing(self) -> str:
        return PHASES.get(self.phase, self.phase) if self.clock is None else "training"


@dataclasses.dataclass
class SeatState:
    """A place where one trial at a time runs: of a loop that runs, or as the last one left it."""

    number: int
    node: str  # of a cluster; else empty
    kind: str  # of its device
    experiment: int | None  # that runs on it
    busy: float | None  # share of the time that it was there, in the whole run, in which it ran a trial
    trials: int  # number of trials it has run, whatever their outcome

    @property
    def name(self) -> str:
        return f"seat {self.number}" + (f", {self.node}" if self.node else "")


@dataclasses.dataclass
class Waiting:
    """An agent that cannot be reached, and when it is called again."""

    agent: str
    until: float


@dataclasses.dataclass
class Used:
    """What a run has used of a limit."""

    used: float
    allowed: float


@dataclasses.dataclass
class State:
    """A run at one moment. `loop.py status --json` prints all but `record`.

    Times are seconds since 1970; what is not known is None, in JSON null.
    """

    tag: str
    time: float
    running: bool  # a loop is running
    process: int | None  # its id
    stopping: bool  # it was asked to stop
    paused: bool  # nothing new begins until `loop.py resume`
    notes: list[str]  # of people, newest first, at most NOTES
    held: dict[int, str]  # what waits for approval, as text, by number of the experiment
    since: float | None  # when it was called
    reason: str  # why the last one ended; empty while one runs
    device: str | None
    profile: str | None
    data: str | None
    metric: str
    direction: str  # minimize or maximize
    baseline: float | None  # its score
    champion: Champion | None
    gain: float | None  # of the champion over the baseline, positive is better
    experiments: int  # that have a verdict, the baseline included; as are the next three
    keep: int
    discard: int
    crash: int
    keep_rate: float | None  # of what came after the baseline
    doubt: str  # why the kept changes are not to be believed, taken together; mostly empty
    per_hour: float | None  # experiments while a loop ran
    curve: list[float]  # best score so far, oldest first, at most CURVE points
    last: list[Row]  # the last verdicts, newest first, at most LAST
    trials: list[TrialState]  # that run
    seats: list[SeatState]
    busy: float | None  # share of the time of all seats, those that are gone included
    seat_dollars: float  # that the seats have cost, as far as they have a price
    thinking: Thinking | None  # the first of these
    in_the_making: list[Thinking]
    waiting: Waiting | None
    proposals: int
    tokens: int
    dollars: float
    unknown_tokens: int  # proposals of which nobody knows
    unknown_dollars: int
    limits: dict[str, Used]  # by option, without dashes
    finish: float | None  # estimate of when the first of them will be reached
    workers: int
    seconds: dict[str, float]  # worker-seconds of the whole run by kind, see record/accounting.py
    wall: float  # seconds by the clock while a loop ran
    record: Record = dataclasses.field(repr=False)  # all the rest

    @property
    def has_seats(self) -> bool:
        """Whether seats are worth a word: there are several, or they are a cluster's."""
        return len(self.seats) > 1 or any(seat.node for seat in self.seats)

    @property
    def spent(self) -> Spent:
        return Spent(self.proposals, self.tokens, self.dollars, self.unknown_tokens, self.unknown_dollars)

    def as_json(self) -> dict:
        """What `status --json` prints: all fields but the record, as plain values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["record"]
        return json.loads(json.dumps(fields, default=dataclasses.asdict))


def look(ledger: Ledger, record: Record | None = None) -> State:
    """The state of a run that another process may be working on. record: of an earlier look."""
    folder = ledger.path.parent
    process = holder(folder)
    now = read_now(folder, process) if process else None
    return state_of(record.latest() if record else Record(ledger), now, process, time.time())


def state_of(record: Record, now: Now | None, process: int | None, at: float) -> State:
    """The state of a run. process: which holds its lock, None for none. at: the present time."""
    ledger, facts, account = record.ledger, record.facts, record.ledger.account
    running = process is not None
    # A loop that prepares, or verifies, has no session of its own: then an open one is that of a loop that was killed.
    at_work = running and not (now and account.last_start < now.since)
    present = at if at_work else None
    wall = account.wall(present)
    experiments = sum(record.counts.values())
    spent = ledger.spent
    since = None if not running else now.since if now else at - account.session(at)
    hours = (at - since) / 3600 if since else 0.0
    uses = account.used(present)
    total = sum(uses.values(), Use())
    cost = spent.dollars + total.dollars
    used = {"experiments": experiments, "hours": hours, "max-cost": cost, "max-tokens": spent.tokens}
    limits = {name: Used(used[name], allowed) for name, allowed in (now.limits if now else {}).items() if name in used}
    trials = now.trials if now else []
    running_on = {trial.worker: trial.number for trial in trials}
    seats = [
        SeatState(
            *worker.name[:2], worker.kind or facts.device or "", running_on.get(worker.number), use.share, use.trials
        )
        for worker in account.workers.values()
        if (use := uses.get(worker.name, Use()))
    ]
    away = running and not (now and now.thinking) and account.waits_until > at
    return State(
        tag=record.run.tag,
        time=at,
        running=running,
        process=process or None,
        stopping=bool(now and now.stopping),
        paused=ledger.paused,
        held={number: describe_held(held) for number, held in ledger.held.items()},
        notes=[text for _, text in ledger.notes[: -NOTES - 1 : -1]],
        since=since,
        reason="" if running else why_it_ended(ledger),
        device=facts.device,
        profile=facts.profile,
        data=facts.data,
        metric=record.task.metric,
        direction=record.task.direction,
        baseline=ledger.kept[0].score if ledger.kept else None,
        champion=champion_of(ledger),
        gain=record.gain,
        experiments=experiments,
        **record.counts,
        keep_rate=record.keep_rate,
        doubt=record.doubt,
        per_hour=3600 * experiments / wall if wall > 0 and experiments else None,
        curve=record.curve,
        last=record.last,
        trials=[trial_of(trial, record, at) for trial in trials],
        seats=sorted(seats, key=lambda seat: seat.number),
        busy=total.share,
        seat_dollars=total.dollars,
        thinking=now.thinking[0] if now and now.thinking else None,
        in_the_making=now.thinking if now else [],
        waiting=Waiting(account.waits_for, account.waits_until) if away else None,
        **dataclasses.asdict(spent),
        limits=limits,
        finish=finish_of(limits, at, wall) if running else None,
        workers=len(account.workers) or 1,
        seconds={kind: round(seconds, 3) for kind, seconds in account.total(present).items()},
        wall=round(wall, 3),
        record=record,
    )


def champion_of(ledger: Ledger) -> Champion | None:
    kept = ledger.champion
    if kept is None or kept.score is None:
        return None
    return Champion(kept.number, kept.commit, kept.score, kept.description)


def why_it_ended(ledger: Ledger) -> str:
    """Why the last loop ended; empty if none ever ran."""
    account = ledger.account
    if account.stopped_because or not ledger.attempts:
        return account.stopped_because
    if account.external:
        return "no trial is running; an external agent calls the next one"
    return "it ended without recording a stop: it was killed, or the machine went down"


def trial_of(trial: Running, record: Record, at: float) -> TrialState:
    """The progress of a running trial."""
    typical, after = record.typical
    state = TrialState(trial.number, trial.worker, trial.label, trial.phase, trial.since, trial.began, str(trial.log))
    state.node = trial.node
    if trial.phase == TRAIN and (progress := read_progress(Path(trial.folder))):
        state.clock = max(progress.clock, trial.since)
        state.done = min(progress.budget, max(0.0, at - state.clock))
        state.budget, state.loss, state.step = progress.budget, progress.loss, progress.step
        state.left = progress.budget - state.done + after
    elif typical:
        state.left = max(0.0, typical - (at - trial.began))
    return state


def finish_of(limits: dict[str, Used], at: float, wall: float) -> float | None:
    """When the first limit will be reached: hours pass by the clock, all else as fast as in the run so far."""
    ends = []
    for name, limit in limits.items():
        missing = max(0.0, limit.allowed - limit.used)
        if name == "hours":
            ends.append(at + 3600 * missing)
        elif limit.used and wall > 0:
            ends.append(at + missing * wall / limit.used)
    return min(ends, default=None)
