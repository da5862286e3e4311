"""The ledger: the state of a run, computed from its journal: attempts, champion, noise, costs, use of time."""

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoresearch.judge import gains_of, noise_of_turns, noise_scale, step_of
from autoresearch.record import events, journal
from autoresearch.record.accounting import Account
from autoresearch.record.conditions import Run, alike, by_conditions, comparable
from autoresearch.task import Facts, Task, task_of
from autoresearch.text import count

# Parts of the reasons of attempts with a verdict but no trial; the second ones are from version 0.1.
OUTRUN = "its edit does not apply to the new champion", "it does not go onto the champion any more"
HELD = "held back"  # start of the reason of a large gain that a person has to `accept` (not: Held, see gate.py)
DROPPED = "dropped by a person"
ABANDONED = (
    "its trial was interrupted, and another edit was tried instead",
    "its trial was interrupted, and its driver went on with another edit",
)


@dataclasses.dataclass
class Spent:
    """What proposals have used, whatever their outcome."""

    proposals: int = 0
    tokens: int = 0  # as far as known
    dollars: float = 0.0
    unknown_tokens: int = 0  # number of proposals whose tokens are unknown
    unknown_dollars: int = 0

    def add(self, tokens: int | None, dollars: float | None) -> None:
        self.proposals += 1
        self.tokens += tokens or 0
        self.dollars += dollars or 0.0
        self.unknown_tokens += tokens is None
        self.unknown_dollars += dollars is None

    def words(self) -> str:
        """`12,345 tokens and $0.67`; unknown amounts are mentioned."""
        tokens = f"{self.tokens:,} tokens" if self.tokens or not self.unknown_tokens else "an unknown number of tokens"
        dollars = f"${self.dollars:.2f}" if self.dollars or not self.unknown_dollars else "an unknown cost"
        if self.unknown_dollars and self.dollars:
            dollars += f" (the cost of {count(self.unknown_dollars, 'proposal')} is unknown)"
        return f"{tokens} and {dollars}"


@dataclasses.dataclass
class Attempt:
    """One experiment. `status` is None until there is a verdict."""

    number: int
    commit: str
    parent: str
    description: str
    agent: str
    edit: str = ""  # hash of what the editable files do: equal for equal edits
    status: str | None = None  # keep, discard or crash
    score: float | None = None
    memory_gb: float = 0.0
    reason: str = ""
    figures: dict = dataclasses.field(default_factory=dict)
    seconds: dict = dataclasses.field(default_factory=dict)
    holdout: float | None = None  # the score on rows that no decision reads; only of keeps
    noise: float | None = None  # the standard deviation of one score, as the judge estimated it
    standing: float | None = None  # the champion's score, as the judge saw it
    standing_runs: int = 1  # the number of runs behind it
    lines: int | None = None  # lines of code that the edit adds, net
    constants: dict | None = None  # name: [old, new value] of changed constants; None if anything else was changed
    beside: str = ""  # hash of the code around the constants
    category: str = ""  # the kind of change
    hypothesis: str = ""  # why it should help, according to its agent
    predicted: float | None = None  # the change of the metric that its agent expected
    lesson: str = ""  # what its agent learned, or `L3` if it tests lesson 3
    ideas: Sequence[str] = ()  # `I3` if it tests idea 3, and new ideas of its agent
    tokens: int | None = None  # tokens and dollars that its proposal used; None: not known
    dollars: float | None = None
    transcript: str = ""  # folder with what the agent was told and what it answered
    repairs: int = 0  # how often it was repaired after an early crash
    reruns: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # Rerun events, by `why`
    node: str = ""  # on a cluster: where it ran last
    time: float = 0.0  # when it was committed
    runs: list[float] = dataclasses.field(default_factory=list)  # scores of this code, the first with the run's seed
    taken: list[float | None] = dataclasses.field(default_factory=list)  # of each run: share that others used
    taken_by: str = ""  # of the last run, as text
    screened: list[Run] = dataclasses.field(default_factory=list)  # with --tiers: its runs on the first kind
    screened_again: list[Run] = dataclasses.field(default_factory=list)  # its later runs there, as the champion
    promoted: bool = False  # it looked good there, and runs on the last kind next
    screening_seconds: float = 0.0  # duration of the screening

    @property
    def is_screened(self) -> bool:
        """With --tiers, whether it has run only on the first kind. Its score, if any, and that of the champion that it
        was compared with are then from that kind.
        """
        return bool(self.screened) and not self.promoted

    @property
    def own(self) -> list[Run]:
        """Its runs on the kind of device that it ran on last."""
        taken = itertools.chain(self.taken, itertools.repeat(None))
        return self.screened if self.is_screened else list(zip(taken, self.runs, strict=False))

    @property
    def last_taken(self) -> float | None:
        """The CPU share of other programs during its last run; None if unknown."""
        return self.own[-1][0] if self.own else None

    @property
    def is_baseline(self) -> bool:
        return self.commit == self.parent

    @property
    def was_outrun(self) -> bool:
        """Whether it never ran, because its edit did not apply to the new champion."""
        return any(text in self.reason for text in OUTRUN)


class Ledger:
    """The journal of one run, and the state that follows from it.

    repair: remove an incomplete last line (after a power failure) from the file. Do not use it while a loop may be
    writing that line.
    """

    def __init__(self, folder: Path, repair: bool = True) -> None:
        self.path = folder / "journal.jsonl"
        self.run: events.Run | None = None
        self.task: Task | None = None
        self.facts: Facts | None = None
        self.attempts: list[Attempt] = []  # by number
        self.finished: list[Attempt] = []  # those that have a verdict, in the order of the verdicts
        self.kept: list[Attempt] = []  # the baseline, and what was kept after it
        # By number of the edit that took turns with its champion (0: the champion ran again alone), then of the code.
        self.in_turn: dict[int, dict[int, list[Run]]] = {}
        self.stale = {False: 0, True: 0}  # verdicts since the champion last ran; True: on the first kind of --tiers
        self.screening = ""  # the first kind of --tiers
        self.aside: dict[str, str] = {}  # why a node of a cluster is not used any more, by its name
        self.paces: dict[tuple[str, str], list[float]] = {}  # of the baseline, by kind and name of a node
        self.dropped: list[Attempt] = []  # keeps that a person has dropped
        self.accepted: set[int] = set()  # numbers of attempts that a person has accepted
        self.verified: list[events.Verified] = []
        self.refused: list[events.Refused] = []  # since the last attempt
        self.repaired: dict[str, Attempt] = {}  # by edit: attempts that crashed and were repaired
        self._crashed: set[str] = set()  # commits
        self._boots: dict[int, str] = {}  # by number: of trials whose end is not recorded, the boot that they began in
        self.spent_by: dict[str, Spent] = {}  # by agent
        self.started = events.Start()  # the last time that the loop was started
        self.called: int | None = None  # the experiment that it has begun, or refused, since then
        self.first_seed: int | None = None
        self.notes: list[tuple[int, str]] = []  # of people: (the experiment that came next, the note)
        self.paused = False  # nothing new starts
        self.messages: set[str] = set()  # of people, by name
        self.held: dict[int, events.Held] = {}  # by number of the experiment: what waits for approval
        self.words: dict[int, tuple[events.Held, events.Rejected | None]] = {}  # decisions not yet acted on
        self.approved: set[int] = set()  # numbers of approved edits
        self.cleared = 0.0  # dollars that had been spent when a person last approved more cost
        self.cost_rejected = ""  # why no more may be spent until the loop is started again
        self.account = Account()  # where the time went
        self.size = 0  # bytes of the journal that have been read
        if self.path.exists():
            self.catch_up()
            if repair and self.path.stat().st_size > self.size:
                os.truncate(self.path, self.size)

    def append(self, event: events.Event) -> None:
        """Write an event and wait until it is on the disk. If it raises OSError, nothing has changed."""
        written, self.size = journal.append(self.path, event)
        self._apply(written)

    def catch_up(self) -> None:
        """Read the complete lines that another process has added."""
        new, self.size = journal.read(self.path, self.size)
        for event in new:
            self._apply(event)

    # -- what follows

    @property
    def tried(self) -> list[Attempt]:
        """Attempts after the baseline that have a verdict."""
        return self.finished[self.finished.index(self.kept[0]) + 1 :] if self.kept else []

    @property
    def champion(self) -> Attempt | None:
        """The attempt kept last."""
        return self.kept[-1] if self.kept else None

    @property
    def measured(self) -> bool:
        """Whether there is any score. Until then, the task may still change."""
        return any(attempt.runs or attempt.screened for attempt in self.attempts) or bool(self.kept)

    @property
    def base(self) -> str:
        """The commit that the run began with."""
        assert self.run is not None
        return self.run.base

    @property
    def champion_commit(self) -> str:
        """The champion's commit; without a champion, the one that the run began with."""
        return self.champion.commit if self.champion else self.base

    @property
    def seed(self) -> int:
        """The seed of the run's trials."""
        known = self.facts.seed if self.facts else None
        return self.first_seed if self.first_seed is not None else 42 if known is None else known

    def scores(self, attempt: Attempt) -> list[float]:
        """All scores of an attempt's code: its own runs, its later runs as the champion, and those of `verify`.

        If the edit took turns with its champion, only the runs of these turns: its first score was selected for being
        good.
        """
        return [score for _, score in self.runs_of(attempt)]

    def runs_of(self, attempt: Attempt, screened: bool = False) -> list[Run]:
        """The runs behind these scores; with `screened`, those on the first kind of --tiers."""
        if screened:
            return attempt.screened + attempt.screened_again
        own = self.in_turn.get(attempt.number, {}).get(attempt.number) or attempt.own
        own = own or ([] if attempt.score is None else [(None, attempt.score)])
        beside = (by_code.get(attempt.number, ()) for edit, by_code in self.in_turn.items() if edit != attempt.number)
        fresh = [(r.taken, r.score) for r in self.verified if r.commit == attempt.commit and r.score is not None]
        return [*own, *itertools.chain.from_iterable(beside), *fresh]

    def standing(self, attempt: Attempt) -> list[float]:
        """The scores of the champion that an attempt was built on, as far as they are comparable with its last run: on
        the same kind of device, and on a similarly busy machine. Empty for the baseline.
        """
        base = self.base_of(attempt)
        if base is None or self.task is None:
            return []
        runs = self.runs_of(base, attempt.is_screened)
        return comparable(runs, attempt.last_taken, self.most_taken, self.task.lower_is_better)

    def base_of(self, attempt: Attempt) -> Attempt | None:
        """The attempt that an attempt was built on; None for the baseline."""
        kept = reversed(self.kept)
        return next((other for other in kept if other.commit == attempt.parent and other is not attempt), None)

    def latest(self, attempt: Attempt) -> list[float]:
        """The scores of an attempt's runs under the same conditions as its last one."""
        return alike(attempt.own, attempt.last_taken, self.most_taken) or [score for _, score in attempt.own]

    @property
    def most_taken(self) -> float | None:
        """By how much the shares of the machine that others use may differ between comparable runs (Facts)."""
        return self.facts.most_taken if self.facts else None

    def replicates(self, screened: bool = False) -> list[list[float]]:
        """Groups of scores of identical code under the same conditions. screened: on the first kind of --tiers, else on
        that of the run.

        Without quarantined attempts, and without scores that were selected for being good if there are fresh ones.
        """
        baselines = itertools.takewhile(lambda attempt: attempt.is_baseline, self.attempts)  # they come first
        by_number = {attempt.number: attempt for attempt in (*baselines, *self.kept)}
        kept = [by_number[number] for number in sorted(by_number)]
        groups: Iterable[Sequence[Run]]
        if screened:
            groups = itertools.chain.from_iterable((attempt.screened, attempt.screened_again) for attempt in kept)
        else:
            groups = self._groups(kept)
        alike_ones = itertools.chain.from_iterable(by_conditions(group, self.most_taken) for group in groups)
        return [scores for scores in alike_ones if len(scores) > 1]

    def _groups(self, kept: Sequence[Attempt]) -> Iterable[Sequence[Run]]:
        fresh: dict[str | None, list[Run]] = {}
        for run in self.verified:
            if run.score is not None:
                fresh.setdefault(run.commit, []).append((run.taken, run.score))
        own = (attempt.own for attempt in kept if len(attempt.runs) > 1)
        in_turn = itertools.chain.from_iterable(by_code.values() for by_code in self.in_turn.values())
        return (*own, *in_turn, *fresh.values())

    def noise(self, screened: bool = False) -> float:
        """The standard deviation of scores of identical code, as estimated in this run; 0 if there is no estimate."""
        return noise_scale(self.replicates(screened), self.facts.noise if self.facts else None)

    def turns(self, edit: int) -> tuple[list[float], list[float]]:
        """(The champion's scores, its own scores) of an edit that took turns with its champion; empty for others."""
        by_code = self.in_turn.get(edit, {})
        theirs = next((runs for number, runs in by_code.items() if number != edit), [])
        return [score for _, score in theirs], [score for _, score in by_code.get(edit, [])]

    def noise_of_turns(self) -> float:
        """The noise of the gain in one turn, if the metric is a time."""
        assert self.task
        pairs = [self.turns(edit) for edit, by_code in self.in_turn.items() if edit in by_code]
        whole = [gains_of(*pair, self.task.lower_is_better) for pair in pairs if len(pair[0]) == len(pair[1])]
        return noise_of_turns(self.kept[0].runs if self.kept else [], whole)

    def steps(self, lower_is_better: bool, bounds: Sequence[float] | None) -> list[float]:
        """By how much each keep beat the champion of its time, as defined by judge.step_of."""
        kept = ((attempt.standing, attempt.score) for attempt in self.kept)
        return [step_of(*pair, lower_is_better, bounds) for pair in kept if None not in pair]  # type: ignore[arg-type]

    @property
    def pending(self) -> list[Attempt]:
        """Attempts without a verdict, in order. They are among the newest."""
        found, missing = [], len(self.attempts) - len(self.finished)
        for attempt in reversed(self.attempts):
            if len(found) == missing:
                break
            if attempt.status is None:
                found.insert(0, attempt)
        return found

    @property
    def spent(self) -> Spent:
        """The spending of all agents together."""
        total = Spent()
        for spent in self.spent_by.values():
            for field in dataclasses.fields(Spent):
                setattr(total, field.name, getattr(total, field.name) + getattr(spent, field.name))
        return total

    def went_down(self, attempt: Attempt, boot: str) -> bool:
        """Whether this machine was restarted before an attempt's last trial had ended. boot: identity.boot. A loop that
        was killed leaves a trial without an end, too, but in the same boot; one that was told to end has recorded that.
        """
        before = self._boots.get(attempt.number, "")
        return before != boot and before.partition(" ")[0] == boot.partition(" ")[0] != ""

    # -- events

    def _apply(self, event: events.Event) -> None:
        self.account.add(event)
        if isinstance(event, events.Interrupted | events.Crashed | events.Rerun | events.Verdict):
            self._boots.pop(event.number, None)
        if isinstance(event, events.Message):
            self.messages.add(event.message)
        match event:
            case events.Run():
                self.run, self.task, self.facts = event, task_of(event.task), None
            case events.Start():
                self.started, self.called, self.cost_rejected = event, None, ""
            case events.Aside():
                self.aside[event.node] = event.reason
            case events.Pace():
                self.paces.setdefault((event.kind, event.node), []).append(event.pace)
            case events.Game():
                self.facts = Facts.of(event.facts)
            case events.Attempt():
                self._begin_attempt(event)
                self._spend(event)
            case events.Moved():
                attempt = self.attempts[event.number - 1]
                attempt.commit, attempt.parent, attempt.edit = event.commit, event.parent, event.edit
                attempt.screened, attempt.promoted = [], False  # its code is another now
            case events.Crashed():
                self._crashed.add(event.commit)
            case events.Refused():
                self.refused.append(event)
                self.called = event.number
                self._spend(event)
            case events.Waited() if event.tokens or event.dollars:
                self._spend(event)
            case events.Trial():
                self.attempts[event.number - 1].runs.clear()
                self.attempts[event.number - 1].taken.clear()
                self.in_turn.pop(event.number, None)
                self.called, self.attempts[event.number - 1].node = event.number, event.node
                self._boots[event.number] = event.boot
            case events.Measured():
                self.attempts[event.number - 1].runs.append(event.score)
                self.attempts[event.number - 1].taken.append(event.taken)
                self.attempts[event.number - 1].taken_by = event.taken_by
                self.first_seed = event.seed if self.first_seed is None else self.first_seed
            case events.Screened():
                attempt, self.screening = self.attempts[event.number - 1], event.kind
                (attempt.screened_again if event.during else attempt.screened).append((event.taken, event.score))
                attempt.taken_by = attempt.taken_by if event.during else event.taken_by
                self.stale[True] = 0 if event.during else self.stale[True]
                self.first_seed = event.seed if self.first_seed is None else self.first_seed
            case events.Promoted():
                attempt = self.attempts[event.number - 1]
                attempt.promoted = True
                attempt.screening_seconds += event.seconds.get("wall", 0.0)
            case events.Verdict():
                self._end_attempt(event)
            case events.InTurn():
                by_code = self.in_turn.setdefault(event.edit, {})
                by_code.setdefault(event.number, []).append((event.taken, event.score))
                self.stale[False] = 0
            case events.Dropped():
                self._drop(event.number)
            case events.Accepted():
                self.accepted.add(event.number)
            case events.Verified():
                self.verified.append(event)
            case events.Held():
                self.held[event.number] = event
            case events.Approved() | events.Rejected() if held := self.held.pop(event.number, None):
                self._decide(held, event)
            case events.Rerun():
                attempt = self.attempts[event.number - 1]
                self.words.pop(event.number, None)
                attempt.reruns[event.why] += 1
                if attempt.is_screened:
                    attempt.screened.clear()
            case events.Note():
                self.notes.append((len(self.attempts) + 1, event.text))
            case events.Pause() | events.Resume():
                self.paused = isinstance(event, events.Pause)
            case events.Stop():
                self._boots.clear()

    def _decide(self, held: events.Held, word: events.Approved | events.Rejected) -> None:
        no = word if isinstance(word, events.Rejected) else None
        if held.what == "cost":
            self.cleared = self.cleared if no else self.spent.dollars
            self.cost_rejected = (no.reason or "no reason given") if no else ""
        elif held.what == "edit" and not no:
            self.approved.add(held.number)
        else:
            self.words[held.number] = held, no

    def _begin_attempt(self, event: events.Attempt) -> None:
        known = {field.name for field in dataclasses.fields(Attempt)} & vars(event).keys()
        attempt = Attempt(**{name: getattr(event, name) for name in known})
        self.refused.clear()
        if attempt.number > len(self.attempts):
            self.attempts.append(attempt)
            return
        first = self.attempts[attempt.number - 1]  # which is replaced
        self.approved.discard(attempt.number)
        attempt.repairs, attempt.reruns = first.repairs, first.reruns
        if first.commit in self._crashed:
            self.repaired[first.edit] = first
            attempt.repairs += 1
        attempt.tokens, attempt.dollars = plus(first.tokens, attempt.tokens), plus(first.dollars, attempt.dollars)
        self.attempts[attempt.number - 1] = attempt

    def _end_attempt(self, event: events.Verdict) -> None:
        attempt = self.attempts[event.number - 1]
        for field in dataclasses.fields(event):
            if field.name not in ("number", "time"):
                setattr(attempt, field.name, getattr(event, field.name))
        self.finished.append(attempt)
        self.stale = {kind: 0 if attempt.status == "keep" else number + 1 for kind, number in self.stale.items()}
        self.words.pop(attempt.number, None)
        if attempt.status == "keep":
            self.kept.append(attempt)

    def _drop(self, number: int) -> None:
        place = [attempt.number for attempt in self.kept].index(number)
        for attempt in self.kept[place:]:
            built = "" if attempt.number == number else f", with experiment {number}, on which it was built"
            attempt.status, attempt.reason = "discard", f"{DROPPED}{built}; it was: {attempt.reason}"
        self.dropped += self.kept[place:]
        del self.kept[place:]

    def _spend(self, event: events.Attempt | events.Refused | events.Waited) -> None:
        if event.agent:
            self.spent_by.setdefault(event.agent, Spent()).add(event.tokens, event.dollars)


def is_a_miss(attempt) -> bool:
    """Whether an attempt, or a row of it, was discarded for its score, and not held back, dropped or rejected."""
    return attempt.status == "discard" and not attempt.reason.startswith((HELD, DROPPED, "rejected"))


def plus(a, b):
    """The sum of two amounts; None where one is not known."""
    return None if a is None or b is None else a + b
