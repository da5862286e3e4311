"""Asking a cluster's autoscaler for seats (--max-seats), and giving them back.

What is asked for stands until something else is asked for, even when the loop is gone. So a process beside it, which
outlives it by a moment, gives back what a loop that was killed had asked for.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

from autoresearch.runner.places import KIND, Place
from autoresearch.text import count

AGAIN = 10.0  # seconds after which it is said again: what a loop that was killed gives back may come after our word
GIVEN_BACK = b"given back"
KEEPER = f"""import sys
if sys.stdin.buffer.read() != {GIVEN_BACK!r}:  # the loop is gone
    import ray
    from ray.autoscaler.sdk import request_resources
    ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
    request_resources(bundles=[])
"""


class Demand:
    """most: seats. say: told what a person should know. Made inside the running event loop, connected to a cluster."""

    def __init__(self, most: int, say: Callable[..., None]) -> None:
        import ray

        self.most, self.wanted, self._say = most, 1, say
        self._asked: list[dict[str, float]] | None = None
        self._when = 0.0
        address = ray.get_runtime_context().gcs_address
        self._keeper = subprocess.Popen(
            [sys.executable, "-P", "-c", KEEPER, address], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def want(self, trials: int) -> None:
        """So many could run. Less than before changes nothing, since nodes may be on their way, but 0 does: no more
        will begin.
        """
        before, self.wanted = self.wanted, min(self.most, max(self.wanted, trials)) if trials else 0
        if self.wanted > before:
            self._say(f"{count(self.wanted, 'seat')} of at most {self.most} are asked for")
        elif before and not self.wanted:
            self._say("no more trials will begin: seats are given back as they are free")

    def due(self, shape: dict[str, float]) -> Callable[[], None] | None:
        """What tells the autoscaler, where it has to be told. It blocks. shape: of a seat."""
        asked, now = [shape] * self.wanted, asyncio.get_running_loop().time()
        if asked == self._asked and now < self._when + AGAIN:
            return None
        self._asked, self._when = asked, now
        return lambda: request(asked)

    def give_back(self) -> None:
        """Ask for nothing any more. It blocks."""
        request([])
        self._keeper.communicate(GIVEN_BACK)


def request(seats: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=seats)


def shape_of(kind: str, nodes: Sequence[dict], places: Sequence[Place], seat_cpus: int | None) -> dict[str, float]:
    """The resources of Ray's that a seat of a kind takes. nodes: as ray.nodes() has them. places: the known ones."""
    cores = next((place.cores for place in places if place.kind == kind), seat_cpus or cores_in(kind))
    shape: dict[str, float] = {"CPU": cores} if cores else {"GPU": 1}
    if any(f"{KIND}{kind}" in node["Resources"] for node in nodes):
        shape[f"{KIND}{kind}"] = 0.001  # so that each of a node's seats can have as much
    return shape


def cores_in(kind: str) -> int:
    found = re.fullmatch(r"CPU, (\d+) cores?", kind)
    return int(found[1]) if found else 0
