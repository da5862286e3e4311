"""Nodes of a cluster that are slower or faster than others of their kind are not used any more, because scores there
are not comparable.

The pace of a node is that of the baseline, which is the same code everywhere: the seconds that its training took, or,
if all train for equal time, the number of steps. A node that joins later runs the baseline before its first edit.
"""

import statistics
from collections.abc import Sequence

from autoresearch.judge import odd_ones
from autoresearch.record import events
from autoresearch.run import Run
from autoresearch.runner import TRAIN, Measurement, Seat

LONG_ENOUGH = 10.0  # seconds of training; what is shorter says more of the start of a program than of the machine


class Paces:
    """Compares the paces of a run's nodes, which are in the ledger."""

    def __init__(self, run: Run) -> None:
        self.run, self.ledger = run, run.ledger

    def known(self, seat: Seat) -> list[tuple[str, float]]:
        """(Node, pace) of the runs of the baseline on other nodes of a seat's kind."""
        paces = self.ledger.paces.items()
        others = ((node, pace) for (kind, node), some in paces for pace in some if kind == seat.kind)
        return [(node, pace) for node, pace in others if node != seat.node and node not in self.ledger.aside]

    def is_new(self, seat: Seat) -> bool:
        """Whether the pace of a seat's node is unknown while that of others is known."""
        return bool(seat.node and (seat.kind, seat.node) not in self.ledger.paces and self.known(seat))

    async def compare(self, seats: Sequence[Seat], results: Sequence[Measurement]) -> None:
        """Record the pace of the baseline on seats of one kind, and stop using nodes that are slower or faster than the
        rest.
        """
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
            median = f"a median of {statistics.median(paces):,.0f} over {len(paces)} seats of its kind"
            await self.exclude(node, f"had {pace:,.0f} {unit}, against {median}")

    async def exclude(self, node: str, why: str) -> None:
        """Stop using a node. why: what is wrong with its run of the baseline."""
        reason = f"its baseline run {why}"
        await self.run.record(events.Aside(node=node, reason=reason))
        self.run.console.line(f"  {node} is not used any more: {reason}", "yellow")
