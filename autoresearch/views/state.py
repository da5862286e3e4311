"""State: everything known about a run at one moment. Console, `status`, watch and report are all drawn from it.

The past follows from the journal (verdicts.py). The present is in the run's now.json (now.py) and in the progress.json
of running trials. The lock tells whether a loop is running.
"""

import dataclasses
import json
import time
from pathlib import Path

from autoresearch.gate import describe_held
from autoresearch.record.accounting import Use
from autoresearch.record.journal import holder
from autoresearch.record.ledger import Ledger, Spent
from autoresearch.runner import GUARD, HOLDOUT, SCORE, TRAIN
from autoresearch.runner.progress import read_progress
from autoresearch.views.now import Now, Running, Thinking, read_now
from autoresearch.views.verdicts import Record, Row

PHASES = {TRAIN: "starting up", SCORE: "scoring", GUARD: "running the guard", HOLDOUT: "scoring the holdout"}
NOTES = 3  # of people that are shown, at most


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
    """A run at one moment. `loop.py status --json` prints all but `record`. Row is in verdicts.py, Thinking in now.py.

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
    curve: list[float]  # best score so far, oldest first, at most verdicts.CURVE points
    last: list[Row]  # the last verdicts, newest first, at most verdicts.LAST
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
    at_work = running and not (now and ledger.started.process != now.process)
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
