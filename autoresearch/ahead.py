"""Compile for attempts that wait, while trials run on all seats (`--compile-ahead`). compile_ahead.py does the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from autoresearch.runner import AHEAD, Seat
from autoresearch.tasks import cancel, start

if TYPE_CHECKING:
    import asyncio

    from autoresearch.record.ledger import Attempt
    from autoresearch.run import Run


class Begun(Protocol):
    """A running trial."""

    seat: Seat
    began: float


class Ahead:
    """One attempt at a time. Nothing depends on it: what is not compiled when the trial begins, the trial compiles.

    wanted: whether to do it at all. It is done in this project's own game on a GPU only; on a CPU nothing is compiled.
    """

    def __init__(self, run: Run, wanted: bool = False) -> None:
        self.run, self.wanted = run, wanted
        self.tasks: list[asyncio.Task] = []  # at most one
        self.commit = ""  # that it is about
        self.begun: set[str] = set()  # commits

    def look(self, waiting: Sequence[Attempt], trials: Iterable[Begun]) -> None:
        """Begin with the next attempt that waits, for the seat that will probably be free first, whose caches it will
        use; or stop if the attempt does not wait any more.
        """
        if not (self.wanted and self.run.facts.gpu and self.run.task.referee):
            return
        if self.run.stop.level or self.run.ledger.paused:  # nothing that waits will run soon
            waiting = ()
        self.tasks = [task for task in self.tasks if not task.done()]
        if self.tasks:
            if self.commit not in [attempt.commit for attempt in waiting]:  # it runs, was moved, or will not run
                cancel(*self.tasks)
            return
        for attempt, trial in zip(waiting, sorted(trials, key=lambda trial: trial.began), strict=False):
            if attempt.commit not in self.begun:
                self.begun.add(attempt.commit)
                self.commit, self.tasks = attempt.commit, [start(self.compile(attempt.commit, trial.seat))]
                return

    async def compile(self, commit: str, seat: Seat) -> None:
        runner = self.run.runner
        try:
            job = dataclasses.replace(self.run.job(commit, AHEAD, self.run.seed), phases=(AHEAD,))
            await runner.run(job, seat, lambda phase: None)
        except Exception as failure:  # no reason to end a night
            self.run.console.line(f"compiling ahead failed: {failure}", "yellow")
        finally:
            runner.tidy(AHEAD, keep_weights=False)
