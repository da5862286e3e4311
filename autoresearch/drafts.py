"""Drafts: proposals in progress. There may be several at once, each in its own worktree, and all different.

A draft has the number that its experiment would get if it were committed now. The draft that is committed first gets
the lowest number, and swaps numbers with the draft that had it. So there are no gaps, even if a draft fails.
"""

import asyncio
import collections
import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence

from autoresearch.agents import Proposal
from autoresearch.brief import COMBINE
from autoresearch.experiment import Returned
from autoresearch.record import events
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.repo import RunRepo, Worktree
from autoresearch.runner import SCORE, TRAIN

AT_ONCE = 16  # default for the most proposals in progress
LATEST = 9  # proposals, or trials, whose median says how long one takes
COMBINE_OF = 4  # with this many proposals at once, one combines near misses


@dataclasses.dataclass(eq=False)
class Draft:
    """One proposal in progress. back: the attempt to redo, under its own number; None for a new one."""

    number: int
    place: int  # of its worktree
    worktree: Worktree
    back: Returned | None = None
    began: float = dataclasses.field(default_factory=time.monotonic)
    asked: float = math.inf  # when its agent was chosen
    agent: str = ""
    base: Attempt | None = None  # the champion that the worktree was given to the agent with
    focus: str = ""  # the kind of change that its agent was asked to begin with
    proposal: Proposal = dataclasses.field(default_factory=Proposal)  # what its agent has made so far
    edit: str = ""  # names that edit
    thinks_since: float | None = None  # by the clock; None: its agent is not at work
    redone: int | None = None  # an attempt whose edit goes back without having run: it may be as it was
    preflight: float | None = None  # seconds
    tokens: int = 0  # taken so far, and not in the record yet
    dollars: float = 0.0
    refused: list[events.Refused] = dataclasses.field(default_factory=list)


class Drafts:
    """The drafts of one run, oldest first."""

    def __init__(self, ledger: Ledger, repo: RunRepo) -> None:
        self.ledger, self.repo = ledger, repo
        self.all: list[Draft] = []
        self.took: collections.deque[float] = collections.deque(maxlen=LATEST)  # seconds of the last ones
        self.requests, self.most = 0, (0, 0.0)  # to models, in progress; most (tokens, dollars) of one so far
        self.request_over = asyncio.Condition()

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[Draft]:
        return iter(self.all)

    def begin(self, back: Returned | None = None) -> Draft:
        used, places = {draft.number for draft in self.all}, {draft.place for draft in self.all}
        number = back.attempt.number if back else first_not_in(used, len(self.ledger.attempts) + 1)
        place = first_not_in(places, 0)
        draft = Draft(number, place, self.repo.agents_worktree(place), back)
        draft.refused = [event for event in self.ledger.refused if event.number == number]
        self.all.append(draft)
        return draft

    def end(self, draft: Draft) -> None:
        self.all.remove(draft)

    def beside(self, draft: Draft) -> list[Draft]:
        return [other for other in self.all if other is not draft]

    def number(self, draft: Draft) -> int:
        """The number that a draft gets if it is committed now."""
        return draft.number if draft.back else len(self.ledger.attempts) + 1

    def committed(self, draft: Draft, number: int) -> None:
        for other in self.beside(draft):
            if other.number == number:
                other.number = draft.number
        draft.number, draft.tokens, draft.dollars = number, 0, 0.0
        if not draft.back and draft.asked < math.inf:
            self.took.append(time.monotonic() - draft.asked)

    # -- when to begin one

    def due(self, trials: Collection[float]) -> tuple[int, float | None]:
        """(How many trials will have ended when a draft begun now is ready, seconds until one more will have.)

        trials: when they began. (0, None) until one proposal and one trial have shown how long they take.
        """
        trial = statistics.median([length for a in self.ledger.finished[-LATEST:] if (length := length_of(a))] or [0])
        if not trial or not self.took:
            return 0, None
        to_wait = [began + trial - statistics.median(self.took) - time.monotonic() for began in trials]
        return sum(left <= 0 for left in to_wait), min((left for left in to_wait if left > 0), default=None)

    # -- what they cost

    def taken(self) -> tuple[int, float]:
        """(Tokens, dollars) spent so far that are not in the record yet."""
        return sum(draft.tokens for draft in self.all), math.fsum(draft.dollars for draft in self.all)

    @contextlib.asynccontextmanager
    async def request(
        self, draft: Draft, spent: Callable[[], tuple[int, float]], reached: Callable[[float, float], object]
    ) -> AsyncIterator[None]:
        """Around a request of a draft's agent to a model. Near a limit only one is made at a time, so that only one
        passes it, unless a request takes more than twice as much as any before.

        spent: (tokens, dollars) that the draft's proposal has used by now. reached: whether so many, besides those in
        the record, reach a limit.
        """

        def too_near() -> object:
            if not any(self.most):  # nobody knows what one takes
                return reached(math.inf, math.inf)
            (tokens, dollars), (most_tokens, most_dollars) = self.taken(), self.most
            return reached(tokens + 2 * self.requests * most_tokens, dollars + 2 * self.requests * most_dollars)

        draft.tokens, draft.dollars = before = spent()
        async with self.request_over:
            await self.request_over.wait_for(lambda: not self.requests or not too_near())
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
            draft.tokens, draft.dollars = after = spent()
            self.most = max(self.most[0], after[0] - before[0]), max(self.most[1], after[1] - before[1])
            async with self.request_over:
                self.request_over.notify_all()

    def expected(self, drafts: Sequence[Draft]) -> tuple[float, float]:
        """The expected (tokens, dollars) of drafts: each counts as an average proposal of its agent, or of the most
        expensive agent while it has none; infinite if no proposal is recorded yet. Unknown costs count as zero.
        """
        known = {name: spent for name, spent in self.ledger.spent_by.items() if name != "loop"}
        tokens, dollars = 0.0, 0.0
        for draft in drafts:
            spent = [known[draft.agent]] if draft.agent in known else [] if draft.agent else known.values()
            tokens += max([draft.tokens, *(one.tokens / one.proposals for one in spent)] if spent else [math.inf])
            dollars += max([draft.dollars, *(one.dollars / one.proposals for one in spent)] if spent else [math.inf])
        return tokens, dollars


def first_not_in(used: Collection[int], least: int) -> int:
    while least in used:
        least += 1
    return least


def length_of(attempt: Attempt) -> float:
    """Seconds of an attempt's first run."""
    return sum(attempt.seconds.get(phase) or 0.0 for phase in (TRAIN, SCORE))


def focus_of(
    categories: Sequence[str], near_misses: int, attempts: Sequence[Attempt], in_flight: Sequence[Attempt],
    others: Sequence[Draft],
) -> str:  # fmt: skip
    """The kind of change that a draft should begin with, so that simultaneous drafts differ; empty if it is alone.

    Among the kinds least in progress, the one that failed least.
    """
    if not others:
        return ""
    if near_misses > 1 and len(others) >= COMBINE_OF - 1 and COMBINE not in [other.focus for other in others]:
        return COMBINE
    busy = collections.Counter([*(attempt.category for attempt in in_flight), *(other.focus for other in others)])
    failed = collections.Counter(attempt.category for attempt in attempts if attempt.status != "keep")
    named = [name for name in categories if name != "other"]
    return min(named, key=lambda name: (busy[name], failed[name]))
