"""Compile for attempts that wait, while trials run on all seats (`--compile-ahead`). compile_ahead.py does the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoresearch.runner import AHEAD, Seat
from autoresearch.tasks import cancel, start

if TYPE_CHECKING:
    import asyncio

    from autoresearch.record.ledger import Attempt
    from autoresearch.run import Run


class Ahead:
    """One attempt at a time. Nothing depends on it: what is not compiled when the trial begins, the trial compiles."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.task: asyncio.Task | None = None
        self.commit = ""  # that it is about
        self.begun: set[str] = set()  # commits

    def look(self, waiting: Sequence[Attempt], seats: Sequence[Seat]) -> None:
        """Begin with the next attempt that waits, or stop if the attempt does not wait any more.

        seats: in the order in which they will probably be free; each has its own caches.
        """
        if self.task and not self.task.done():
            if self.commit not in [attempt.commit for attempt in waiting]:  # it runs, was moved, or the night ends
                cancel(self.task)
            return
        for attempt, seat in zip(waiting, seats, strict=False):
            if attempt.commit not in self.begun:
                self.begun.add(attempt.commit)
                self.commit, self.task = attempt.commit, start(self.compile(attempt.commit, seat))
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
