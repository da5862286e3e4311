"""A Ray cluster that this process is connected to: its nodes, and the kinds of seats that a run uses.

What Ray answers from the head of the cluster may take long. It is asked on a thread that does nothing else; the one
that decides awaits the answer. Only connecting, before the night, and leaving, after it, are done on that.
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

LOOK = 1.0  # seconds between two looks at which nodes there are
Result = TypeVar("Result")


@dataclasses.dataclass
class Fleet:
    """kinds: what the run uses, the one that decides last. say: told what a person should know. aside: why a node is
    not used, by its name; the loop adds to it. most: seats to use, at most. demand: what asks for them, with
    --max-seats. closes: ends the runner on it.
    """

    kinds: tuple[str, ...]
    seat_cpus: int | None
    say: Callable[..., None]
    aside: Mapping[str, str]
    most: float = math.inf
    demand: Demand | None = None
    nodes: list[dict] = dataclasses.field(default_factory=list)  # as Ray said last
    closes: Callable[[], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "ray")

    def ask(self, function: Callable[..., Result], *arguments: object) -> Awaitable[Result]:
        """What a function of Ray's returns, which may block."""
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def send(self, function: Callable, *arguments: object) -> None:
        """Call one whose answer nobody needs."""
        self._thread.submit(function, *arguments)

    async def look(self) -> None:
        """Ask which nodes there are, and for those that are wanted. Raises ray.exceptions.RayError."""
        import ray

        self.nodes = await self.ask(ray.nodes)
        if self.demand:
            shape = shape_of(self.kinds[-1] if self.kinds else "", self.nodes, self.places(), self.seat_cpus)
            if asks := self.demand.due(shape):
                await self.ask(asks)

    def places(self) -> list[Place]:
        return [place for place in places_of(self.nodes, self.seat_cpus) if place.node not in self.aside]

    def in_words(self) -> str:
        more = f"; up to {self.demand.most} are asked for while there is work for them" if self.demand else ""
        return seats_in_words(self.places(), self.kinds) + more

    async def first_seat(self) -> None:
        """Wait for a seat of the run's kind, where the cluster begins with none."""
        said = False
        while not any(place.kind in self.kinds or not self.kinds for place in self.places()):
            if not said:
                self.say(
                    f"the cluster has no seat of {self.kinds[-1] if self.kinds else 'any kind'} yet: one is asked for"
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
        await asyncio.to_thread(self._thread.shutdown)  # what was sent, and is being asked
        ray.shutdown()


async def join(
    asked: str, seat_cpus: int | None, kinds: tuple[str, ...], say: Callable[..., None], aside: Mapping[str, str],
    most: int | None = None, grows: bool = False,
) -> Fleet:  # fmt: skip
    """Connect to a cluster. asked: auto, or host:port. kinds: of the run's seats; none: those it has most of. grows:
    whether its autoscaler is asked for so many seats. The rest is as Fleet has it. Raises UserError.
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
        say(f"{node} stays aside: {aside[node]}", "yellow")
    return fleet
