"""A connection to a Ray cluster: its nodes, and the kinds of seats that a run uses.

Calls that need an answer from the head of the cluster may take long. They run on a thread that does nothing else; the
thread that decides awaits the answer. Only connecting, before the night, and leaving, after it, run on the latter.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from autoresearch.runner.connect import connect
from autoresearch.runner.demand import Demand, shape_of
from autoresearch.runner.places import Place, choose_kinds, places_of, seats_in_words

LOOK = 1.0  # seconds between two checks for nodes
Result = TypeVar("Result")


@dataclasses.dataclass
class Fleet:
    """kinds: the kinds of devices that the run uses; the last one decides. say: prints a message. aside: why a node is
    not used, by its name; the loop adds to it. most: the largest number of seats to use. demand: asks for seats, with
    --max-seats. closes: ends the runner on it.
    """

    kinds: tuple[str, ...]
    seat_cpus: int | None
    say: Callable[..., None]
    aside: Mapping[str, str]
    most: float = math.inf
    demand: Demand | None = None
    nodes: list[dict] = dataclasses.field(default_factory=list)  # the last answer of Ray
    closes: Callable[[], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "ray")

    def ask(self, function: Callable[..., Result], *arguments: object) -> Awaitable[Result]:
        """Call a function of Ray that may block, and return its result."""
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def send(self, function: Callable, *arguments: object) -> None:
        """Call a function of Ray whose result is not needed."""
        self._thread.submit(function, *arguments)

    async def look(self) -> None:
        """List the nodes, and ask for the seats that are wanted. Raises ray.exceptions.RayError."""
        import ray

        self.nodes = await self.ask(ray.nodes)
        if self.demand:
            shape = shape_of(self.kinds[-1] if self.kinds else "", self.nodes, self.places(), self.seat_cpus)
            if asks := self.demand.due(shape):
                await self.ask(asks)

    def places(self) -> list[Place]:
        return [place for place in places_of(self.nodes, self.seat_cpus) if place.node not in self.aside]

    def describe(self) -> str:
        more = f"; up to {self.demand.most} are requested while there is work for them" if self.demand else ""
        return seats_in_words(self.places(), self.kinds) + more

    async def first_seat(self) -> None:
        """Wait for a seat of the run's kind, if the cluster begins without one."""
        said = False
        while not any(place.kind in self.kinds or not self.kinds for place in self.places()):
            if not said:
                self.say(
                    f"the cluster has no seat of {self.kinds[-1] if self.kinds else 'any kind'} yet: one was requested"
                )
            said = True
            await asyncio.sleep(LOOK)
            await self.look()

    async def close(self) -> None:
        import ray

        if self.closes:
            await self.closes()
        if self.demand:
            with contextlib.suppress(ray.exceptions.RayError):
                await self.ask(self.demand.give_back)
        await asyncio.to_thread(self._thread.shutdown)  # after what was sent or asked
        ray.shutdown()


async def join(
    asked: str, seat_cpus: int | None, kinds: tuple[str, ...], say: Callable[..., None], aside: Mapping[str, str],
    most: int | None = None, grows: bool = False,
) -> Fleet:  # fmt: skip
    """Connect to a cluster. asked: auto, or host:port. kinds: of the run's seats; empty: the most frequent kind. grows:
    whether its autoscaler is asked for `most` seats. The other arguments are those of Fleet. Raises UserError.
    """
    await connect(asked)
    fleet = Fleet(kinds, seat_cpus, say, aside, most or math.inf, Demand(most, say) if most and grows else None)
    try:
        await fleet.look()
        if fleet.demand:
            await fleet.first_seat()
        fleet.kinds = choose_kinds(fleet.places(), kinds)
    except BaseException:
        await fleet.close()
        raise
    here = {place.node for place in places_of(fleet.nodes, seat_cpus)}
    for node in (node for node in aside if node in here):
        say(f"{node} is still not used: {aside[node]}", "yellow")
    return fleet
