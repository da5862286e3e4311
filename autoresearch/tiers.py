"""Two kinds of devices (--tiers): new edits are screened on the first; those that look good are judged on the last.

Scores are only compared within one kind. The record keeps runs on the first kind separate (ledger.py): noise, champion
and results.tsv are about the last kind.
"""

import dataclasses
from collections.abc import Sequence

from autoresearch.judge import Verdict
from autoresearch.record import events
from autoresearch.record.ledger import Attempt
from autoresearch.run import Run
from autoresearch.runner import Measurement, Seat
from autoresearch.trials import Tell, Trials, without_score


class Tiers:
    """Which seats an attempt can run on, and the screening. Without --tiers any seat will do."""

    def __init__(self, run: Run, trials: Trials) -> None:
        self.run, self.ledger, self.trials = run, run.ledger, trials

    def suits(self, seat: Seat, attempt: Attempt | None = None) -> bool:
        """Whether an attempt (None: a future one) can run on a seat: on the first kind until it has looked good there,
        then on the last kind.
        """
        kinds = self.run.tiers
        if seat.node in self.ledger.aside:
            return False
        return not kinds or seat.kind == kinds[-1 if attempt and attempt.promoted else 0]

    def lack(self, seats: Sequence[Seat], waiting: Sequence[Attempt]) -> bool:
        """Whether there is no seat for new edits, or none for one of the waiting attempts."""
        return not all(any(self.suits(seat, attempt) for seat in seats) for attempt in (None, *waiting))

    def room_for_new(self, waiting: Sequence[Attempt], idle: Sequence[Seat]) -> tuple[int, int]:
        """(How many attempts wait for the seats that new edits need, how many of these seats are idle or may join.)
        Attempts that wait for the last kind count too, if there are more than seats of that kind: they would only pile
        up.
        """
        last = sum(not self.suits(seat) for seat in self.run.runner.seats)
        promoted = sum(attempt.promoted for attempt in waiting)
        return len(waiting) - min(promoted, last), sum(map(self.suits, idle)) + self.run.runner.room

    async def screen(self, attempt: Attempt, seat: Seat, view: Tell) -> tuple[Verdict, Measurement]:
        """Run an attempt on the first kind, unless it has run there, and judge it by the champion's scores there. A
        baseline gets all its runs. Raises Disturbed.
        """
        measured, trials = Measurement(), self.trials
        if not attempt.screened:
            measured = await trials.first(attempt, seat, view)
            trials.require_undisturbed(attempt, measured)
            if measured.score is None:
                return without_score(measured), measured
            await trials.champion_again(attempt, seat)
        if attempt.is_baseline:
            objection = await trials.baseline_again(attempt, seat, sum(measured.seconds.values()))
            if objection:
                return objection, measured
        verdict = trials.judge(attempt, self.ledger.latest(attempt))
        return dataclasses.replace(verdict, reason=f"in the screening on {seat.kind}: {verdict.reason}"), measured

    async def promote(self, attempt: Attempt, verdict: Verdict, measured: Measurement, wall: float) -> None:
        """Promote an attempt that looked good on the first kind: it waits for a seat of the last kind."""
        seconds = {**measured.seconds, "wall": round(wall, 3)}
        await self.run.record(events.Promoted(number=attempt.number, reason=verdict.reason, seconds=seconds))
        self.run.runner.tidy(str(attempt.number), keep_weights=False)
        self.run.console.line(f"experiment {attempt.number}: promoted to {self.run.tiers[-1]}: {verdict.reason}")
