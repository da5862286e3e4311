"""The ledger: what follows from a run's journal. Attempts, champion, noise, costs, and where the time went."""

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

# In the reasons of attempts that have a verdict without a trial; the second ones are those of version 0.1.
OUTRUN = "its edit does not apply to the new champion", "it does not go onto the champion any more"
HELD = "held back"  # so begins the reason of a gain that is to be looked at by a person
DROPPED = "taken back by a person"
ABANDONED = (
    "its trial was interrupted, and another edit was tried instead",
    "its trial was interrupted, and its driver went on with another edit",
)


@dataclasses.dataclass
class Spent:
    """What proposals took, whatever became of them."""

    proposals: int = 0
    tokens: int = 0  # as far as they are known
    dollars: float = 0.0
    unknown_tokens: int = 0  # proposals of which nobody knows
    unknown_dollars: int = 0

    def add(self, tokens: int | None, dollars: float | None) -> None:
        self.proposals += 1
        self.tokens += tokens or 0
        self.dollars += dollars or 0.0
        self.unknown_tokens += tokens is None
        self.unknown_dollars += dollars is None

    def words(self) -> str:
        """`12,345 tokens and $0.67`; what nobody knows is said."""
        tokens = f"{self.tokens:,} tokens" if self.tokens or not self.unknown_tokens else "an unknown number of tokens"
        dollars = f"${self.dollars:.2f}" if self.dollars or not self.unknown_dollars else "an unknown cost"
        if self.unknown_dollars and self.dollars:
            dollars += f" (the cost of {count(self.unknown_dollars, 'proposal')} is not known)"
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
    holdout: float | None = None  # the score on rows that no decision reads, of what was kept
    noise: float | None = None  # what the judge took for the standard deviation of one score
    standing: float | None = None  # the champion's score as the judge saw it
    standing_runs: int = 1  # and over how many runs
    lines: int | None = None  # of code that the edit adds, net
    constants: dict | None = None  # name: [old, new value] of those that it changed; None where it did something else
    beside: str = ""  # names the code around them
    category: str = ""  # what kind of change it is
    hypothesis: str = ""  # why it should help, as its agent saw it
    predicted: float | None = None  # change of the metric that its agent expected
    lesson: str = ""  # what its agent learned, or `L3` where it tests lesson 3
    ideas: Sequence[str] = ()  # `I3` where it tests idea 3, and what else its agent would try
    tokens: int | None = None  # that the agent took for it, and what they cost; None: not known
    dollars: float | None = None
    transcript: str = ""  # folder of what the agent was told and what it said
    repairs: int = 0  # times that it was repaired after an early crash
    node: str = ""  # of a cluster, where it ran last
    time: float = 0.0  # when it was committed
    runs: list[float] = dataclasses.field(
        default_factory=list
    )  # scores of this very code, the first with the run's seed
    taken: list[float | None] = dataclasses.field(default_factory=list)  # of each run: what others took meanwhile
    screened: list[Run] = dataclasses.field(default_factory=list)  # with --tiers: its runs on the first kind
    screened_again: list[Run] = dataclasses.field(default_factory=list)  # those beside other edits, as their champion
    promoted: bool = False  # it looked good there, and goes on to the last kind
    screening_seconds: float = 0.0  # that this took

    @property
    def is_screened(self) -> bool:
        """With --tiers, whether it ran on the first kind alone. Its score, if it has one, and that of the champion that
        it was compared with are of that kind then.
        """
        return bool(self.screened) and not self.promoted

    @property
    def own(self) -> list[Run]:
        """Its runs, on the kind of device that it ran on last."""
        taken = itertools.chain(self.taken, itertools.repeat(None))
        return self.screened if self.is_screened else list(zip(taken, self.runs, strict=False))

    @property
    def last_taken(self) -> float | None:
        """What others took of its last run; None where nobody knows."""
        return self.own[-1][0] if self.own else None

    @property
    def is_baseline(self) -> bool:
        return self.commit == self.parent

    @property
    def was_outrun(self) -> bool:
        """Whether it never ran, because its edit did not apply to the new champion."""
        return any(text in self.reason for text in OUTRUN)


class Ledger:
    """The journal of one run, and what follows from it.

    repair: remove from the file a last line that was cut off by a power failure. Not beside a loop, which may be
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
        self.in_turn: dict[tuple[int, int], list[Run]] = {}  # by number of the code, and of the edit it ran for, or 0
        self.stale = {False: 0, True: 0}  # verdicts since the champion ran last; True: on the first kind of --tiers
        self.screening = ""  # the first kind of --tiers
        self.aside: dict[str, str] = {}  # why a node of a cluster is used no more, by its name
        self.paces: dict[tuple[str, str], list[float]] = {}  # of the baseline, by kind and name of a node
        self.dropped: list[Attempt] = []  # what was kept and taken back by a person
        self.accepted: set[int] = set()  # numbers of attempts that a person has looked at
        self.verified: list[events.Verified] = []
        self.refused: list[events.Refused] = []  # since the last attempt
        self.repaired: dict[str, Attempt] = {}  # by edit: attempts that crashed and were repaired
        self._crashed: set[str] = set()  # commits
        self.spent_by: dict[str, Spent] = {}  # by agent
        self.started = events.Start()  # the last time that the loop was started
        self.called: int | None = None  # the experiment that it began to try out since, or refused
        self.first_seed: int | None = None
        self.notes: list[tuple[int, str]] = []  # of people: (the experiment that came next, the note)
        self.paused = False  # nothing new begins
        self.messages: set[str] = set()  # of people, by name
        self.held: dict[int, events.Held] = {}  # by number of the experiment: what waits for a person's word
        self.words: dict[int, tuple[events.Held, events.Rejected | None]] = {}  # the word, until it is acted on
        self.approved: set[int] = set()  # edits
        self.cleared = 0.0  # dollars that were spent when a person last said yes to more
        self.cost_rejected = ""  # why no more may be spent, until the loop is started again
        self.account = Account()  # where the time went
        self.size = 0  # bytes of the journal that were taken in
        if self.path.exists():
            self.catch_up()
            if repair and self.path.stat().st_size > self.size:
                os.truncate(self.path, self.size)

    def append(self, event: events.Event) -> None:
        """Write an event, and wait until it is on the disk. Raises OSError; then nothing has changed."""
        written, self.size = journal.append(self.path, event)
        self._apply(written)

    def catch_up(self) -> None:
        """Take in the whole lines that another process has added."""
        new, self.size = journal.read(self.path, self.size)
        for event in new:
            self._apply(event)

    # -- what follows

    @property
    def tried(self) -> list[Attempt]:
        """What has a verdict and came after the baseline."""
        return self.finished[self.finished.index(self.kept[0]) + 1 :] if self.kept else []

    @property
    def champion(self) -> Attempt | None:
        """The attempt kept last."""
        return self.kept[-1] if self.kept else None

    @property
    def measured(self) -> bool:
        """Whether there is any score. Before, the task may still change."""
        return any(attempt.runs or attempt.screened for attempt in self.attempts) or bool(self.kept)

    @property
    def base(self) -> str:
        """The commit that the run began with."""
        assert self.run is not None
        return self.run.base

    @property
    def champion_commit(self) -> str:
        """The champion's commit; before there is a champion, the one that the run began with."""
        return self.champion.commit if self.champion else self.base

    @property
    def seed(self) -> int:
        """The seed of the run's trials."""
        known = self.facts.seed if self.facts else None
        return self.first_seed if self.first_seed is not None else 42 if known is None else known

    def scores(self, attempt: Attempt) -> list[float]:
        """All scores of an attempt's code: its runs, those beside other edits, and those of `verify`.

        Of an edit that ran in turn with its champion those runs alone: the first one was chosen for being good.
        """
        return [score for _, score in self.runs_of(attempt)]

    def runs_of(self, attempt: Attempt, screened: bool = False) -> list[Run]:
        """The runs behind these scores; those on the first kind of --tiers instead."""
        if screened:
            return attempt.screened + attempt.screened_again
        own = self.in_turn.get((attempt.number, attempt.number)) or attempt.own
        own = own or ([] if attempt.score is None else [(None, attempt.score)])
        beside = (runs for key, runs in self.in_turn.items() if key[0] == attempt.number != key[1])
        fresh = [(r.taken, r.score) for r in self.verified if r.commit == attempt.commit and r.score is not None]
        return [*own, *itertools.chain.from_iterable(beside), *fresh]

    def standing(self, attempt: Attempt) -> list[float]:
        """The scores of the champion that an attempt was built on, of runs that compare with its last one: on the same
        kind of device, to begin with. Empty for the baseline.
        """
        base = self.base_of(attempt)
        if base is None or self.task is None:
            return []
        runs = self.runs_of(base, attempt.is_screened)
        return comparable(runs, attempt.last_taken, self.most_taken, self.task.lower_is_better)

    def base_of(self, attempt: Attempt) -> Attempt | None:
        """What an attempt was built on; None for the baseline."""
        kept = reversed(self.kept)
        return next((other for other in kept if other.commit == attempt.parent and other is not attempt), None)

    def latest(self, attempt: Attempt) -> list[float]:
        """The scores of an attempt's runs that were made as the last of them was."""
        return alike(attempt.own, attempt.last_taken, self.most_taken) or [score for _, score in attempt.own]

    @property
    def most_taken(self) -> float | None:
        """The share of the processors that others may take of one trial more than of another (Facts)."""
        return self.facts.most_taken if self.facts else None

    def replicates(self, screened: bool = False) -> list[list[float]]:
        """Scores of identical code under the same conditions, where there are several. screened: on the first kind of
        --tiers, else on that of the run.

        Not those of a suspect, nor scores that were chosen for being good beside fresh ones.
        """
        kept = [attempt for attempt in self.attempts if attempt.status == "keep" or attempt.is_baseline]
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
        return (*own, *self.in_turn.values(), *fresh.values())

    def noise(self, screened: bool = False) -> float:
        """The standard deviation of scores of identical code, as far as this run knows it; 0 if it does not."""
        return noise_scale(self.replicates(screened), self.facts.noise if self.facts else None)

    def turns(self, edit: int) -> tuple[list[float], list[float]]:
        """(The champion's, its own) scores of an edit that ran in turn with its champion; empty for others."""
        theirs = (runs for (number, other), runs in self.in_turn.items() if other == edit != number)
        champions, own = (
            [score for _, score in runs] for runs in (next(theirs, []), self.in_turn.get((edit, edit), []))
        )
        return champions, own

    def noise_of_turns(self) -> float:
        """The noise of the gain of one turn, where a time is measured."""
        assert self.task
        pairs = [self.turns(edit) for number, edit in self.in_turn if number == edit]
        whole = [gains_of(*pair, self.task.lower_is_better) for pair in pairs if len(pair[0]) == len(pair[1])]
        return noise_of_turns(self.kept[0].runs if self.kept else [], whole)

    def steps(self, lower_is_better: bool, bounds: Sequence[float] | None) -> list[float]:
        """By how much each keep was better than the champion of its time, as judge.step_of has it."""
        kept = ((attempt.standing, attempt.score) for attempt in self.kept)
        return [step_of(*pair, lower_is_better, bounds) for pair in kept if None not in pair]  # type: ignore[arg-type]

    @property
    def pending(self) -> list[Attempt]:
        """Attempts that were committed and have no verdict yet, in order. They are among the newest."""
        found, missing = [], len(self.attempts) - len(self.finished)
        for attempt in reversed(self.attempts):
            if len(found) == missing:
                break
            if attempt.status is None:
                found.insert(0, attempt)
        return found

    @property
    def spent(self) -> Spent:
        """What all agents took."""
        total = Spent()
        for spent in self.spent_by.values():
            for field in dataclasses.fields(Spent):
                setattr(total, field.name, getattr(total, field.name) + getattr(spent, field.name))
        return total

    # -- events

    def _apply(self, event: events.Event) -> None:
        self.account.add(event)
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
            case events.Waited() if event.tokens:
                self._spend(event)
            case events.Trial():
                self.attempts[event.number - 1].runs.clear()
                self.attempts[event.number - 1].taken.clear()
                self.in_turn = {key: runs for key, runs in self.in_turn.items() if key[1] != event.number}
                self.called, self.attempts[event.number - 1].node = event.number, event.node
            case events.Measured():
                self.attempts[event.number - 1].runs.append(event.score)
                self.attempts[event.number - 1].taken.append(event.taken)
                self.first_seed = event.seed if self.first_seed is None else self.first_seed
            case events.Screened():
                attempt, self.screening = self.attempts[event.number - 1], event.kind
                (attempt.screened_again if event.during else attempt.screened).append((event.taken, event.score))
                self.stale[True] = 0 if event.during else self.stale[True]
                self.first_seed = event.seed if self.first_seed is None else self.first_seed
            case events.Promoted():
                attempt = self.attempts[event.number - 1]
                attempt.promoted = True
                attempt.screening_seconds += event.seconds.get("wall", 0.0)
            case events.Verdict():
                self._end_attempt(event)
            case events.InTurn():
                self.in_turn.setdefault((event.number, event.edit), []).append((event.taken, event.score))
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
                self.words.pop(event.number, None)
                if self.attempts[event.number - 1].is_screened:
                    self.attempts[event.number - 1].screened.clear()
            case events.Note():
                self.notes.append((len(self.attempts) + 1, event.text))
            case events.Pause() | events.Resume():
                self.paused = isinstance(event, events.Pause)

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
        attempt.repairs = first.repairs
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
    """Whether an attempt, or a row of it, was discarded for its score, and not held back, taken back or rejected."""
    return attempt.status == "discard" and not attempt.reason.startswith((HELD, DROPPED, "rejected"))


def plus(a, b):
    """The sum of two amounts; None where one is not known."""
    return None if a is None or b is None else a + b
