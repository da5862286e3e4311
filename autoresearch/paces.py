"""Nodes of a cluster that are not as fast as others of their kind: they are put aside, since scores there do not
compare.

The pace is that of the baseline, which is the same code everywhere: the seconds that its training took, or, where all
train equally long, the steps that it made. A node that joins later runs it before it gets an edit.
"""

import statistics
from collections.abc import Sequence

from autoresearch.judge import odd_ones
from autoresearch.record import events
from autoresearch.run import Run
from autoresearch.runner import TRAIN, Measurement, Seat

LONG_ENOUGH = 10.0  # seconds of training; what is shorter says more of the start of a program than of the machine


class Paces:
    """The paces of one run's nodes; the ledger has them."""

    def __init__(self, run: Run) -> None:
        self.run, self.ledger = run, run.ledger

    def known(self, seat: Seat) -> list[tuple[str, float]]:
        """(Node, pace) of the runs of the baseline on others of a seat's kind."""
        paces = self.ledger.paces.items()
        others = ((node, pace) for (kind, node), some in paces for pace in some if kind == seat.kind)
        return [(node, pace) for node, pace in others if node != seat.node and node not in self.ledger.aside]

    def is_new(self, seat: Seat) -> bool:
        """Whether it is not known how fast a seat's node is, and is of others."""
        return bool(seat.node and (seat.kind, seat.node) not in self.ledger.paces and self.known(seat))

    async def compare(self, seats: Sequence[Seat], results: Sequence[Measurement]) -> None:
        """Take down how fast the baseline ran on seats of one kind at once, and put aside the nodes that are odd."""
        if not all(seat.node for seat in seats) or any(measured.score is None for measured in results):
            return
        seconds = [measured.seconds.get(TRAIN, 0.0) for measured in results]
        if statistics.median(seconds) < LONG_ENOUGH:
            return
        steps = [measured.figures.get("num_steps", 0.0) for measured in results]
        new, unit = (steps, "steps") if self.run.task.referee and all(steps) else (seconds, "s")
        here = {seat.node for seat in seats}
        before = [(node, pace) for node, pace in self.known(seats[0]) if node not in here]
        runs = [*before, *((seat.node, pace) for seat, pace in zip(seats, new, strict=True))]
        for seat, pace in zip(seats, new, strict=True):
            await self.run.record(events.Pace(node=seat.node, kind=seat.kind, pace=pace))
        paces = [pace for _, pace in runs]
        odd = dict(runs[place] for place in odd_ones(paces))
        for node, pace in odd.items():
            middle = f"{statistics.median(paces):,.0f} in the middle of {len(paces)}"
            await self.put_aside(node, f"is not like those of its kind: {pace:,.0f} {unit}, {middle}")

    async def put_aside(self, node: str, why: str) -> None:
        """Use a node no more. why: what is said of its run of the baseline."""
        reason = f"its run of the baseline {why}"
        await self.run.record(events.Aside(node=node, reason=reason))
        self.run.console.line(f"  {node} is put aside: {reason}", "yellow")
