"""Accounting: where every second of a run went, computed from its journal.

A session is one call of the loop, from `start` to `stop`; if the loop was killed, it ends with the last event. The time
of each worker, or seat, is divided without gaps into trials and what it waited for between them. So the seconds of all
kinds add up to the workers' time in sessions, plus the time between sessions. If the clock was set back, the step in
which that happened counts as zero, never as negative. The seats of a cluster come and go.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

from autoresearch.record import events

KINDS = {
    "training": "training",  # the training clock ran
    "startup": "start-up",  # of trials: import, build, compile, warm up; and the rehearsals before them
    "scoring": "scoring",  # score, guard and holdout
    "interrupted": "trials without a verdict",  # which were stopped, suspended, or repaired and run again
    "disturbed": "trials beside others' work",  # other programs used too much of the machine: they ran again
    "running": "running trials",  # they have no verdict yet
    "agent": "waiting for the agent",  # a worker had nothing to run
    "network": "waiting for the network",  # it had nothing to run because no agent could be reached
    "setup": "set-up",  # from the call to the first trial, or to the first question to an agent
    "rest": "rest",  # git, record, judging; workers that wait for the last trial of a night
    "verify": "verify",  # runs of `verify`, between sessions
    "stopped": "stopped",  # between sessions
}


@dataclasses.dataclass
class Busy:
    """A trial that a worker runs."""

    number: int
    began: float
    measured: list[dict] = dataclasses.field(default_factory=list)  # seconds of its runs that have a score


@dataclasses.dataclass
class Worker:
    """A seat in a session. Times are by the account's clock."""

    number: int
    since: float  # when it joined
    free: float  # when it last became idle
    node: str = ""  # on a cluster
    kind: str = ""  # of its device, on a cluster
    price: float = 0.0  # dollars per hour
    busy: Busy | None = None
    gone: bool = False  # it has left, but the end of its trial is not recorded yet

    @property
    def name(self) -> tuple[int, str, str]:
        return self.number, self.node, self.kind


@dataclasses.dataclass
class Use:
    """How long a seat was there, in all sessions, and how long it ran trials. Seconds."""

    there: float = 0.0
    busy: float = 0.0
    trials: int = 0  # whatever their outcome
    dollars: float = 0.0  # for the time that it was there

    @property
    def share(self) -> float | None:
        return min(1.0, self.busy / self.there) if self.there > 0 else None

    def __add__(self, other: "Use") -> "Use":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Use(*(one + more for one, more in zip(mine, theirs, strict=True)))


class Account:
    """Adds events up one by one, so that its cost does not grow with the length of a run."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.ended_sessions = 0.0  # by the clock
        self.covered = 0.0  # what the seconds add up to
        self.workers: dict[int, Worker] = {}  # by number; of the open session, or the last one
        self.uses: dict[tuple[int, str, str], Use] = {}  # by name of the worker, without what is still open
        self.began: float | None = None  # the open session
        self.last_time = 0.0  # of the last event, as recorded
        self.stopped_because = ""  # reason of the last `stop`; empty while a session is open
        self.waits_until = 0.0  # by the clock of the journal: the next call of an agent that could not be reached
        self.waits_for = ""
        self._offset = 0.0  # added to the clock, which may be set back
        self._time = 0.0  # of the last event, never less than before
        self._ended: float | None = None  # the session before
        self._first: float | None = None  # the `run` event
        self.external = False  # the session is one call of an external agent
        self._set_up = 0.0  # until then an idle worker waits for the set-up
        # By number, of a trial that may be repaired: (its length, its runs).
        self._crashed: dict[int, tuple[float, list[dict]]] = {}
        self._held: set[int] = set()  # trials that are over, and whose verdict waits for a person
        self._marks: list[tuple[float, float, str]] = []  # what idle time was for: (from, to, kind)

    # -- events

    def add(self, event: events.Event) -> None:
        if isinstance(event, events.Message):  # which also comes when no loop runs
            return
        before = self._time
        time = self._clock(event.time)
        if self.began is None and not isinstance(event, events.Run | events.Start | events.Stop | events.Verified):
            return  # it belongs to no session, so it takes no time
        match event:
            case events.Run():
                self._first = time
            case events.Start():
                self._begin(event, before, time)
            case events.Stop():
                self._close(time, asked=True)
                self.stopped_because = event.reason
            case events.Verified():
                self._close(before)
                gap = time - (before if self._ended is None else self._ended)
                wall = min(gap, seconds_of(event.seconds, "wall"))
                self.seconds["verify"] += wall
                self.seconds["stopped"] += gap - wall
                self.covered += gap
                self._ended = time
            case events.Attempt():
                if event.agent == "loop":
                    self._set_up = math.inf  # until the baseline runs
                if rehearsed := positive(event.preflight):
                    self._marks.append((time - rehearsed, time, "startup"))
            case events.Seats():
                self._seat(event.seats, time)
            case events.Waited():
                wait = positive(event.seconds)
                self._marks.append((time, time + wait, "network"))
                self.waits_until, self.waits_for = self.last_time + wait, event.agent
            case events.Trial():
                self._crashed.pop(event.number, None)
                self._held.discard(event.number)
                self._marks.append((time - positive(event.waited), time, "disturbed"))
                self._start_trial(event.number, event.worker, time)
            case events.Measured() | events.InTurn() | events.Screened():
                of = getattr(event, "edit", 0) or getattr(event, "during", 0) or event.number
                for worker in self.workers.values():
                    if worker.busy and worker.busy.number == of:
                        worker.busy.measured.append(event.seconds)
            case events.Crashed():
                if ended := self._end_trial(event.number, time):
                    self._crashed[event.number] = ended
                    self.seconds["interrupted"] += ended[0]
            case events.Interrupted() | events.Rerun():
                if ended := self._end_trial(event.number, time):
                    disturbed = isinstance(event, events.Rerun) and event.taken is not None
                    self.seconds["disturbed" if disturbed else "interrupted"] += ended[0]
            case events.Held() if event.what == "keep":
                self._held.add(event.number)
                self._conclude(event.number, event.verdict.get("seconds"), time)
            case events.Promoted():
                self._conclude(event.number, event.seconds, time)
            case events.Verdict() if event.number in self._held:
                self._held.discard(event.number)
            case events.Verdict():
                self._conclude(event.number, event.seconds, time)

    def _conclude(self, number: int, measured: dict | None, time: float) -> None:
        if number in self._crashed:  # it was not repaired after all
            ended = self._crashed.pop(number)
            self.seconds["interrupted"] -= ended[0]
        else:
            only = next(iter(self.workers.values())) if len(self.workers) == 1 else None
            if only and not only.busy:  # the oldest journals do not say when a trial began
                self._start_trial(number, only.number, max(only.free, time - seconds_of(measured, "wall")))
            ended = self._end_trial(number, time)
        if ended:
            for kind, seconds in parts_of(ended[0], [measured, *ended[1][1:]]):
                self.seconds[kind] += seconds

    def _clock(self, told: object) -> float:
        """The time of an event on a clock that is never set back."""
        if isinstance(told, int | float) and math.isfinite(told):
            self.last_time = told
            if self._time:
                self._offset = max(self._offset, self._time - told)
            self._time = max(self._time, told + self._offset)  # which rounding could set back, too
        return self._time

    def _begin(self, event: events.Start, before: float, time: float) -> None:
        self._close(before)
        if event.setup is not None:
            began = time - positive(event.setup)
        else:
            began = time if self._first is None or self._ended is not None else self._first
        if self._ended is not None:
            began = max(began, self._ended)
            self.seconds["agent" if event.external and self.external else "stopped"] += began - self._ended
            self.covered += began - self._ended
        self.began, self._set_up, self.external, self.stopped_because = began, time, event.external, ""
        number = event.workers if isinstance(event.workers, int) and 1 <= event.workers <= 1024 else 1
        self.workers = {worker: Worker(worker, began, began) for worker in range(number)}
        self._marks = []

    def _seat(self, seats: Iterable[dict], time: float) -> None:
        """Seats have come or gone. Those that the session began with get their names."""
        there = {
            seat["number"]: Worker(seat["number"], time, time, seat["node"], seat["kind"], seat.get("price", 0.0))
            for seat in seats
        }
        for number, worker in list(self.workers.items()):
            seat = there.pop(number, None)
            if seat and worker.name in (seat.name, (number, "", "")):
                worker.node, worker.kind, worker.price = seat.node, seat.kind, seat.price
                continue
            if seat:
                there[number] = seat
            if worker.busy and not seat:
                worker.gone = True
            else:
                self._leave(worker, time)
        self.workers |= there

    def _leave(self, worker: Worker, time: float) -> None:
        """A worker has left."""
        if worker.busy:  # the end of its trial was not recorded
            self._end_trial(worker.busy.number, time, "interrupted")
        if self.workers.get(worker.number) is worker:
            self._idled(worker, time)
            self._was_there(worker, time)
            del self.workers[worker.number]

    def _idled(self, worker: Worker, time: float) -> None:
        for kind, seconds in self._idle(worker.free, time):
            self.seconds[kind] += seconds

    def _was_there(self, worker: Worker, time: float) -> None:
        self.covered += time - worker.since
        self.uses[worker.name] = self._use(worker) + self._presence(worker, time)

    def _presence(self, worker: Worker, time: float) -> Use:
        there = time - worker.since
        return Use(there, dollars=there * worker.price / 3600)

    def _use(self, worker: Worker) -> Use:
        return self.uses.setdefault(worker.name, Use())

    def _start_trial(self, number: int, asked: object, time: float) -> None:
        place = asked if isinstance(asked, int) and 0 <= asked < 1024 else 0
        for other in list(self.workers.values()):
            if other.busy and (other.number == place or other.busy.number == number):
                self._end_trial(other.busy.number, time, "interrupted")
        worker = self.workers.setdefault(place, Worker(place, time, time))  # an older record names no seat that came
        self._idled(worker, time)
        worker.busy, self._set_up = Busy(number, time), min(self._set_up, time)
        since = min((worker.free for worker in self.workers.values() if not worker.busy), default=time)
        self._marks = [mark for mark in self._marks if mark[1] > since]

    def _end_trial(self, number: int, time: float, kind: str = "") -> tuple[float, list[dict]] | None:
        """(Length, seconds of its runs) of the trial that a worker runs under a number. kind: what its time was for."""
        for worker in self.workers.values():
            if worker.busy and worker.busy.number == number:
                busy, worker.busy, worker.free = worker.busy, None, time
                length, use = time - busy.began, self._use(worker)
                use.busy, use.trials = use.busy + length, use.trials + 1
                if kind:
                    self.seconds[kind] += length
                if worker.gone:
                    self._leave(worker, time)
                return length, busy.measured
        return None

    def _close(self, end: float, asked: bool = False) -> None:
        if self.began is not None:
            for kind, seconds in self._open_parts(end, "interrupted", asked):
                self.seconds[kind] += seconds
            self.ended_sessions += end - self.began
            for worker in self.workers.values():
                self._was_there(worker, end)
                self._use(worker).busy += end - worker.busy.began if worker.busy else 0.0
                worker.busy = None
            self.began, self._ended = None, end
            self._crashed.clear()

    # -- what the time was used for

    def _open_parts(self, end: float, busy_kind: str, asked: bool = False) -> Iterator[tuple[str, float]]:
        """(kind, seconds) of what each worker has done since its last change."""
        for worker in self.workers.values():
            if worker.busy:
                yield busy_kind, end - worker.busy.began
            elif asked and len(self.workers) > 1:  # its last trial ended before those of the others
                yield "rest", end - worker.free
            else:
                yield from self._idle(worker.free, end)

    def _idle(self, since: float, until: float) -> Iterator[tuple[str, float]]:
        """(kind, seconds) of a time in which a worker had nothing to run."""
        if since < (set_up := min(until, self._set_up)):
            yield "setup", set_up - since
            since = set_up
        for begin, end, kind in sorted(self._marks):
            begin, end = max(since, begin), min(until, end)
            if end > begin:
                yield "agent", begin - since
                yield kind, end - begin
                since = end
        yield "agent", until - since

    # -- the answer

    def total(self, now: float | None = None) -> dict[str, float]:
        """Seconds by kind.

        now: the present time, if a loop is at work. Without it, an open session was killed, and ended with its last
        event.
        """
        seconds = dict(self.seconds)
        if self.began is not None:
            for kind, more in self._open_parts(self._until(now), "interrupted" if now is None else "running"):
                seconds[kind] += more
        return seconds

    def wall(self, now: float | None = None) -> float:
        """Seconds by the clock in which a loop was at work."""
        return self.ended_sessions + (0.0 if self.began is None else self._until(now) - self.began)

    def there(self, now: float | None = None) -> float:
        """What the seconds of all kinds add up to."""
        open_session = self.workers.values() if self.began is not None else ()
        return self.covered + sum(self._until(now) - worker.since for worker in open_session)

    def used(self, now: float | None = None) -> dict[tuple[int, str, str], Use]:
        """By (number, node, kind) of each seat that ever was there: how it was used."""
        uses = dict(self.uses)
        if self.began is not None:
            until = self._until(now)
            for worker in self.workers.values():
                busy = until - worker.busy.began if worker.busy else 0.0
                uses[worker.name] = uses.get(worker.name, Use()) + self._presence(worker, until) + Use(busy=busy)
        return uses

    def dollars(self, now: float | None = None) -> float:
        """What the seats that have a price have cost."""
        return math.fsum(use.dollars for use in self.used(now).values())

    @property
    def dollars_an_hour(self) -> float:
        """What the present seats cost per hour."""
        return math.fsum(worker.price for worker in self.workers.values()) if self.began is not None else 0.0

    def session(self, now: float) -> float:
        """Seconds by the clock since the open session began."""
        return 0.0 if self.began is None else self._until(now) - self.began

    def _until(self, now: float | None) -> float:
        return self._time if now is None else max(self._time, now + self._offset)


def parts_of(length: float, runs: list[dict | None]) -> Iterator[tuple[str, float]]:
    """(kind, seconds) of a trial and its repetitions, which took `length` together.

    The oldest journals do not say when the training clock ran.
    """
    wanted = dict.fromkeys(("training", "scoring", "startup"), 0.0)
    for run in runs:
        train = seconds_of(run, "train")
        training = min(train, seconds_of(run, "training")) if isinstance(run, dict) and "training" in run else train
        wanted["training"] += training
        wanted["startup"] += train - training
        wanted["scoring"] += sum(seconds_of(run, phase) for phase in ("score", "guard", "holdout"))
    for kind, seconds in wanted.items():
        yield kind, min(seconds, length)
        length -= min(seconds, length)
    yield "rest", length


def seconds_of(fields: object, name: str) -> float:
    """A duration in a record; 0 where there is none."""
    return positive(fields.get(name)) if isinstance(fields, dict) else 0.0


def positive(value: object) -> float:
    """A duration in seconds; 0 for what is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0.0


def shares(seconds: dict[str, float]) -> list[tuple[str, float, float]]:
    """(kind in words, seconds, share of the time in sessions) of all kinds that took any, in the order of KINDS.

    Time between sessions has no share.
    """
    inside = sum(value for kind, value in seconds.items() if kind not in ("verify", "stopped"))
    return [
        (KINDS[kind], seconds[kind], 0.0 if kind in ("verify", "stopped") or not inside else seconds[kind] / inside)
        for kind in KINDS
        if seconds[kind] >= 0.05
    ]
