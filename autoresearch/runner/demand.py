"""Asking a cluster's autoscaler for seats (--max-seats), and giving them back.

A request is valid until the next one, even if the loop is gone. So a separate process, which outlives the loop by a
moment, withdraws the request of a loop that was killed.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

from autoresearch.runner.places import KIND, Place
from autoresearch.text import count

AGAIN = 10.0  # seconds until a request is repeated: the withdrawal of a loop that was killed may arrive after ours
GIVEN_BACK = b"given back"
KEEPER = f"""import sys
if sys.stdin.buffer.read() != {GIVEN_BACK!r}:  # the loop is gone
    import ray
    from ray.autoscaler.sdk import request_resources
    ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
    request_resources(bundles=[])
"""


class Demand:
    """most: the largest number of seats. say: prints a message. Create it in the event loop, connected to a cluster."""

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
        """Set how many trials could run. A smaller number changes nothing, since nodes may be about to join; but 0
        means that no more trials will begin.
        """
        before, self.wanted = self.wanted, min(self.most, max(self.wanted, trials)) if trials else 0
        if self.wanted > before:
            self._say(f"{count(self.wanted, 'seat')} of at most {self.most} are requested")
        elif before and not self.wanted:
            self._say("no more trials will begin: seats are given back once they are free")

    def due(self, shape: dict[str, float]) -> Callable[[], None] | None:
        """A blocking function that sends the request, if it has to be sent. shape: the resources of a seat."""
        asked, now = [shape] * self.wanted, asyncio.get_running_loop().time()
        if asked == self._asked and now < self._when + AGAIN:
            return None
        self._asked, self._when = asked, now
        return lambda: request(asked)

    def give_back(self) -> None:
        """Withdraw the request. Blocks."""
        request([])
        self._keeper.communicate(GIVEN_BACK)


def request(seats: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=seats)


def shape_of(kind: str, nodes: Sequence[dict], places: Sequence[Place], seat_cpus: int | None) -> dict[str, float]:
    """The resources of Ray that a seat of a kind needs. nodes: as ray.nodes() lists them. places: those known."""
    cores = next((place.cores for place in places if place.kind == kind), seat_cpus or cores_in(kind))
    shape: dict[str, float] = {"CPU": cores} if cores else {"GPU": 1}
    if any(f"{KIND}{kind}" in node["Resources"] for node in nodes):
        shape[f"{KIND}{kind}"] = 0.001  # so little that all seats of a node can have it
    return shape


def cores_in(kind: str) -> int:
    found = re.fullmatch(r"CPU, (\d+) cores?", kind)
    return int(found[1]) if found else 0
