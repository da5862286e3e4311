"""The loop: propose, commit, train, score, judge, record, keep or reset. Again, until morning.

    uv run loop.py                      # an agent does research all night; Ctrl-C stops after the running trial
    uv run loop.py --experiments 5      # stop when the run has five experiments
    uv run loop.py --help               # all options, and the commands: start, try, verify, status, watch, report, ...

The same command again continues the run. This file is the idea; how an edit is made stands in autoresearch/propose.py,
how an attempt comes to its verdict in autoresearch/experiment.py, and the commands in autoresearch/cli.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING

from autoresearch import Stopped, cli

if TYPE_CHECKING:  # commands.py builds these parts; `loop.py --help` need not wait for them
    import asyncio

    from autoresearch.experiment import Experiments, Returned
    from autoresearch.limits import Limits
    from autoresearch.propose import Proposer
    from autoresearch.record.ledger import Attempt
    from autoresearch.run import Run
    from autoresearch.runner import Seat


class Loop:
    """The loop over one run. One thread decides: proposals and experiments are tasks that take turns on it.

    While trials run, one on each seat, an agent works on the next edit. lookahead: attempts to have ready.
    """

    def __init__(
        self, run: Run, proposer: Proposer, experiments: Experiments, limits: Limits, lookahead: int = 0
    ) -> None:
        self.run, self.ledger, self.stop = run, run.ledger, run.stop
        self.proposer, self.experiments, self.limits, self.lookahead = proposer, experiments, limits, lookahead
        self.proposing: asyncio.Task | None = None
        self.trials: dict[int, tuple[asyncio.Task, Seat]] = {}  # by number of the attempt
        self.seats: Sequence[Seat] = []  # as they were when trials were started last
        self.returned: list[Returned] = []  # attempts that go back to their agents
        self.fault: BaseException | None = None  # what ends the night; what runs comes to its verdict first

    async def night(self) -> str:
        """Propose and try out until a limit is reached, the user stops it or nothing is left. Returns why it ended."""
        try:
            while True:
                try:
                    await self.start_trials()
                    if not (self.fault or self.reason_to_end()):
                        self.start_proposal()
                except Exception as fault:
                    self.end_with(fault)
                if not (self.trials or self.proposing or self.held() or self.lacks_seats()):
                    break
                await self.wait_for_something()
                self.take_in()
        finally:
            await self.cancel_all()
        if self.fault:
            raise self.fault
        for back in self.returned:
            if back.crashed:  # an edit that went back for a conflict has not run, and can when the run goes on
                await self.experiments.conclude(back.verdict)
        self.run.reset()
        return self.reason_to_end() or self.proposer.nothing_left

    def reason_to_end(self, spending: bool = True) -> str | None:
        if self.stop.level:
            return "you asked it to stop"
        if spending and self.ledger.cost_rejected:
            return f"more cost was rejected: {self.ledger.cost_rejected}"
        return self.limits.reached(self.ledger, spending)

    def held(self) -> bool:
        """Whether something waits for people."""
        return not self.fault and not self.reason_to_end() and bool(self.ledger.paused or self.ledger.held)

    def lacks_seats(self) -> bool:
        """Whether something cannot run until a seat comes back: all nodes of a cluster are gone, or all of a kind."""
        if self.fault or self.reason_to_end():
            return False
        return self.experiments.tiers.lack(self.run.runner.seats, self.waiting())

    # -- propose

    def start_proposal(self) -> None:
        """Let an agent make an attempt: one that came back, else a new one where one is wanted."""
        for warning in self.limits.warnings(self.ledger):
            self.run.console.line(warning, "yellow")
        if self.proposing or self.ledger.paused or self.experiments.gate.holds_proposals(self.ledger):
            return
        if self.returned:
            self.proposing = start(self.retry(self.returned[0]))
        elif self.proposer.wanted(*self.experiments.tiers.room_for_new(self.waiting(), self.idle()), self.lookahead):
            self.proposing = start(self.run.with_room(self.proposer.next_attempt))

    async def retry(self, back: Returned) -> None:
        try:
            if not await self.run.with_room(lambda: self.proposer.retry(back)):
                await self.experiments.conclude(back.verdict)
        finally:  # cancelled, it runs again when the run goes on
            self.returned.remove(back)

    def waiting(self) -> list[Attempt]:
        """Attempts that can run next."""
        away = {*self.trials, *(back.attempt.number for back in self.returned), *self.ledger.held, *self.ledger.words}
        return [attempt for attempt in self.ledger.pending if attempt.number not in away]

    # -- try out

    async def start_trials(self) -> None:
        """Give seats that are idle what waits, but for what a person has to say yes to."""
        self.seats = await self.run.take_seats()
        await self.experiments.settle(self.waiting(), bool(self.proposing))
        for attempt in self.waiting():
            if self.fault or self.ledger.paused or self.reason_to_end(spending=False):
                return
            if not (idle := self.idle()):
                return
            ready = await self.experiments.stands_on_champion(attempt)
            if ready is not True:
                self.returned += [ready] if ready else []
            elif seat := next((seat for seat in idle if self.experiments.tiers.suits(seat, attempt)), None):
                work: Coroutine = self.run.with_room(lambda attempt=attempt, seat=seat: self.try_out(attempt, seat))
                self.trials[attempt.number] = start(work), seat
                self.stop.trials = len(self.trials)

    def idle(self) -> list[Seat]:
        """Seats without a trial."""
        busy = [seat for _, seat in self.trials.values()]
        return [seat for seat in self.seats if seat not in busy]

    async def try_out(self, attempt: Attempt, seat: Seat) -> None:
        if back := await self.experiments.try_out(attempt, seat):
            self.returned.append(back)

    # -- wait

    async def wait_for_something(self) -> None:
        """Wait until a task is over, the hours are, or the user asks to stop or has told the run something.

        Cancel the proposal of a night that ends, and (level 2) the trials too.
        """
        tasks = [task for task, _ in self.trials.values()] + ([self.proposing] if self.proposing else [])
        asked = start(self.stop.reaches(self.stop.level + 1))
        told = start(self.run.told(self.seats))
        thinks = self.proposing and not self.proposing.cancelling()
        left = self.limits.seconds_left(self.ledger) if thinks or self.held() or self.lacks_seats() else None
        await first_of([*tasks, asked, told], left)
        asked.cancel()
        if not told.cancel():
            self.look_at(told)
        if self.proposing and (self.stop.level or self.limits.seconds_left(self.ledger) == 0):
            cancel(self.proposing)
        if self.stop.now():
            for task, _ in self.trials.values():
                cancel(task)

    def take_in(self) -> None:
        """Take the tasks that are over off the lists, and note what went wrong in them."""
        for number, (task, _) in list(self.trials.items()):
            if task.done():
                del self.trials[number]
                self.look_at(task)
                self.proposer.nothing_left = ""  # after a verdict there may be something to propose again
        if self.proposing and self.proposing.done():
            self.look_at(self.proposing)
            self.proposing = None
        self.stop.trials = len(self.trials)

    def look_at(self, task: asyncio.Task) -> None:
        if not task.cancelled() and (fault := task.exception()):
            self.end_with(fault)

    def end_with(self, fault: BaseException) -> None:
        """The night is over; trials come to their verdict first, an agent would think in vain."""
        self.fault = self.fault or fault
        if self.proposing:
            cancel(self.proposing)

    async def cancel_all(self) -> None:
        """End what still runs: only where the night itself failed."""
        tasks = [task for task, _ in self.trials.values()] + ([self.proposing] if self.proposing else [])
        for task in tasks:
            cancel(task)
        for task in tasks:
            await first_of([task])

    # -- an external agent (`loop.py try`)

    async def try_edit(self) -> Attempt | None:
        """One experiment: the edit that stands in the worktree, or one that was interrupted. None if it is refused."""
        attempt, champion = None, self.ledger.champion
        for pending in self.proposer.interrupted_edits():
            if attempt is None and await self.experiments.stands_on_champion(pending) is True:
                attempt = pending
        if attempt and champion and self.run.edit() not in (attempt.edit, champion.edit):
            await self.experiments.abandon(attempt)
            attempt = None
        attempt = attempt or await self.stop.unless_asked(self.proposer.next_attempt())
        if attempt:
            await self.until_verdict(attempt)
        return attempt

    async def until_verdict(self, attempt: Attempt) -> None:
        """One trial, again where it was suspended, and the worktree back to the champion."""
        seat = self.run.runner.seats[0]
        self.stop.trials = 1
        while not attempt.status and not self.stop.level:
            with contextlib.suppress(Stopped):
                await self.stop.unless_asked(self.run.with_room(lambda: self.experiments.try_out(attempt, seat)), 2)
        self.run.reset()


# -- tasks. asyncio is imported where it is needed: `loop.py status` need not wait for it


def start(work: Coroutine) -> asyncio.Task:
    import asyncio

    return asyncio.create_task(work)


async def first_of(tasks: list[asyncio.Task], seconds: float | None = None) -> None:
    """Wait until one of them is over, or the seconds are."""
    import asyncio

    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


def cancel(task: asyncio.Task) -> None:
    """Cancel a task once: it may take seconds to end its processes, and a second time would hurry it."""
    if not task.cancelling():
        task.cancel()


def main() -> None:
    cli.main(Loop)


if __name__ == "__main__":
    main()
