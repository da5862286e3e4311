"""The loop: propose, commit, train, score, judge, record, keep or reset. Again, until morning.

    uv run loop.py                      # an agent does research all night; Ctrl-C stops after the running trial
    uv run loop.py --experiments 5      # stop when the run has five experiments
    uv run loop.py --help               # all options, and the commands: start, try, verify, status, watch, report, ...

Run the same command again to continue. In autoresearch/, propose.py gets edits from agents, experiment.py runs and
judges them, cli.py has the commands. A run is a branch and its journal; a night is one call of the loop. An attempt, a
committed edit, gets a verdict: keep, discard or crash. A seat, a GPU or a share of the CPU, runs one trial at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING

from autoresearch import Stopped, cli
from autoresearch.tasks import cancel, first_of, start

if TYPE_CHECKING:  # commands.py builds these parts; importing them here would slow down `loop.py --help`
    import asyncio

    from autoresearch.drafts import Draft
    from autoresearch.experiment import Experiments, Returned
    from autoresearch.limits import Limits
    from autoresearch.propose import Proposer
    from autoresearch.record.ledger import Attempt
    from autoresearch.run import Run
    from autoresearch.runner import Seat


@dataclasses.dataclass
class Trial:
    """A running experiment and its seat."""

    task: asyncio.Task
    seat: Seat
    began: float = dataclasses.field(default_factory=time.monotonic)


class Loop:
    """The loop over one run. Everything is decided in one thread, as asyncio tasks: proposals and experiments.

    While trials run, one on each seat, agents work on the next edits. lookahead: number of attempts to have ready.
    waves: have more ready when several trials are about to end.
    """

    def __init__(
        self, run: Run, proposer: Proposer, experiments: Experiments, limits: Limits, lookahead: int = 0,
        waves: bool = False,
    ) -> None:  # fmt: skip
        self.run, self.ledger, self.disk, self.stop = run, run.ledger, run.disk, run.stop
        self.proposer, self.experiments, self.limits = proposer, experiments, limits
        self.lookahead, self.waves = lookahead, waves
        self.proposals: dict[asyncio.Task, Draft] = {}
        self.trials: dict[int, Trial] = {}  # by attempt number
        self.seats: Sequence[Seat] = []  # as of the last start of trials
        self.returned: list[Returned] = []  # attempts that go back to their agents
        self.fault: BaseException | None = None  # the error that ends the night; running trials finish first

    async def night(self) -> str:
        """Propose and try out until a limit is reached, the user stops or no agent has ideas left. Returns why."""
        try:
            while True:
                try:
                    await self.start_trials()
                    if not (self.fault or self.reason_to_end()):
                        self.start_proposals()
                    self.experiments.ahead.look(self.waiting(), self.trials.values())
                except Exception as fault:
                    self.end_with(fault)
                if not (self.trials or self.proposals or self.held() or self.lacks_seats()):
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
        """Whether something waits for a person: the run is paused, or something needs approval."""
        return not self.fault and not self.reason_to_end() and bool(self.ledger.paused or self.ledger.held)

    def lacks_seats(self) -> bool:
        """Whether something cannot run because a cluster has lost all its nodes, or all of one kind."""
        ends = self.fault or self.reason_to_end()
        return not ends and self.experiments.tiers.lack(self.run.runner.seats, self.waiting())

    # -- propose

    def start_proposals(self) -> None:
        """Let agents propose: first redo the edits that were returned, then new ones as needed."""
        for warning in self.limits.warnings(self.ledger):
            self.run.console.line(warning, "yellow")
        drafts, gate = self.proposer.drafts, self.experiments.gate
        while self.proposer.has_place() and not (self.ledger.paused or gate.holds_proposals(self.ledger, len(drafts))):
            room = self.experiments.tiers.room_for_new(self.waiting(), self.idle())
            if self.returned:
                draft = drafts.begin(self.returned.pop(0))
            elif self.proposer.wanted(*room, max(self.lookahead, self.due()[0])):
                draft = drafts.begin()
            else:
                return
            self.proposals[start(self.make(draft))] = draft

    async def make(self, draft: Draft) -> None:
        """Turn a draft into an attempt, unless its proposal fails. A returned edit that is not redone is concluded."""
        if not (back := draft.back):
            await self.disk.with_room(lambda: self.proposer.next_attempt(draft))
        elif not await self.disk.with_room(lambda: self.proposer.retry(draft, back)):
            await self.experiments.conclude(back.verdict)

    def due(self) -> tuple[int, float | None]:
        """(How many trials will have ended when a proposal begun now is ready, seconds until one more will have.)"""
        trials = [trial for trial in self.trials.values() if self.experiments.tiers.suits(trial.seat)]
        return self.proposer.drafts.due([trial.began for trial in trials]) if self.waves else (0, None)

    def waiting(self) -> list[Attempt]:
        """Attempts that can run next."""
        back = [*self.returned, *(draft.back for draft in self.proposals.values() if draft.back)]
        away = {*self.trials, *(one.attempt.number for one in back), *self.ledger.held, *self.ledger.words}
        return [attempt for attempt in self.ledger.pending if attempt.number not in away]

    # -- try out

    async def start_trials(self) -> None:
        """Start waiting attempts on idle seats, except those that need a person's approval."""
        self.seats = await self.run.take_seats()
        await self.experiments.settle(self.waiting(), bool(self.proposals))
        for attempt in self.waiting():
            if self.fault or self.ledger.paused or self.reason_to_end(spending=False) or not (idle := self.idle()):
                return
            ready = await self.experiments.stands_on_champion(attempt)
            if ready is not True:
                self.returned += [ready] if ready else []
            elif seat := next((seat for seat in idle if self.experiments.suits(seat, attempt, self.trials)), None):
                work: Coroutine = self.disk.with_room(lambda attempt=attempt, seat=seat: self.try_out(attempt, seat))
                self.trials[attempt.number] = Trial(start(work), seat)
                self.stop.trials = len(self.trials)

    def idle(self) -> list[Seat]:
        """Seats that run no trial."""
        busy = [trial.seat for trial in self.trials.values()]
        return [seat for seat in self.seats if seat not in busy]

    async def try_out(self, attempt: Attempt, seat: Seat) -> None:
        if back := await self.experiments.try_out(attempt, seat):
            self.returned.append(back)

    # -- wait

    async def wait_for_something(self) -> None:
        """Wait until a task ends, the time limit is reached, a message arrives or the user asks to stop.

        If the night is ending, cancel the proposals. If the user wants to stop now (level 2), cancel the trials too.
        """
        self.proposer.want_seats([trial.seat for trial in self.trials.values()], self.fault or self.reason_to_end())
        asked = start(self.stop.reaches(self.stop.level + 1))
        told = start(self.run.told(self.seats))
        thinks = any(not task.cancelling() for task in self.proposals)
        left = self.limits.seconds_left(self.ledger) if thinks or self.held() or self.lacks_seats() else None
        until = [seconds for seconds in (left, self.due()[1]) if seconds is not None]
        await first_of([*self.tasks(), asked, told], min(until, default=None))
        asked.cancel()
        if not told.cancel():  # it has ended
            self.look_at(told)
        if self.stop.level or self.limits.seconds_left(self.ledger) == 0:
            cancel(*self.proposals)
        if self.stop.now():
            cancel(*self.tasks())

    def tasks(self) -> list[asyncio.Task]:
        return [*(trial.task for trial in self.trials.values()), *self.proposals, *self.experiments.ahead.tasks]

    def take_in(self) -> None:
        """Remove the finished tasks from the lists, and note their errors."""
        for number, trial in list(self.trials.items()):
            if trial.task.done():
                del self.trials[number]
                self.look_at(trial.task)
                self.proposer.nothing_left = ""  # after a verdict agents may have new ideas
        for task in [task for task in self.proposals if task.done()]:
            self.proposer.drafts.end(self.proposals.pop(task))
            self.look_at(task)
        self.stop.trials = len(self.trials)

    def look_at(self, task: asyncio.Task) -> None:
        if not task.cancelled() and (fault := task.exception()):
            self.end_with(fault)

    def end_with(self, fault: BaseException) -> None:
        """End the night because of an error: running trials finish, proposals are cancelled."""
        self.fault = self.fault or fault
        cancel(*self.proposals)

    async def cancel_all(self) -> None:
        """Cancel what still runs. There is something only if the night itself failed."""
        cancel(*self.tasks())
        for task in self.tasks():
            await first_of([task])

    # -- an external agent (`loop.py try`)

    async def try_edit(self) -> Attempt | None:
        """Run one experiment: the edit in the worktree, or one that was interrupted. None if the edit is refused."""
        attempt, champion = None, self.ledger.champion
        for pending in self.proposer.interrupted_edits():
            if attempt is None and await self.experiments.stands_on_champion(pending) is True:
                attempt = pending
        if attempt and champion and self.run.edit() not in (attempt.edit, champion.edit):
            await self.experiments.abandon(attempt)
            attempt = None
        attempt = attempt or await self.stop.unless_asked(self.proposer.next_attempt(self.proposer.drafts.begin()))
        if attempt:
            await self.until_verdict(attempt)
        return attempt

    async def until_verdict(self, attempt: Attempt) -> None:
        """Try an attempt out until it has a verdict, and reset the worktree to the champion."""
        seat = self.run.runner.seats[0]
        self.stop.trials = 1
        while not attempt.status and not self.stop.level:
            with contextlib.suppress(Stopped):
                await self.stop.unless_asked(self.disk.with_room(lambda: self.experiments.try_out(attempt, seat)), 2)
        self.run.reset()


def main() -> None:
    cli.main(Loop)


if __name__ == "__main__":
    main()
