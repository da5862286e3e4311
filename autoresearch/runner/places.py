"""Which seats a cluster has, and which of them a run can use: those of one kind of device, since only their scores are
comparable, or those of the two kinds of --tiers, each compared with its own.

The kind comes from Ray: a node's resource `kind:NAME` if it has one, else the type of its GPUs, else the number of
cores per seat.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

from autoresearch import UserError
from autoresearch.text import count

KIND, GPU_TYPE = "kind:", "accelerator_type:"  # resources of Ray's that name a device


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a seat can be: a GPU of a node, or a number of its cores."""

    node_id: str
    node: str  # its name, for people
    kind: str
    number: int  # which one of its node
    share: int  # how many its node has
    cores: int  # of a place without a GPU; else 0

    @property
    def key(self) -> tuple[str, int]:
        return self.node_id, self.number


def places_of(nodes: Iterable[dict], seat_cpus: int | None = None) -> list[Place]:
    """The places of all nodes that are alive. nodes: as ray.nodes() has them. seat_cpus: cores of a seat on nodes
    without a GPU; None: all that a node has."""
    alive = sorted((node for node in nodes if node["Alive"]), key=lambda node: node["NodeID"])
    hosts = collections.Counter(node["NodeManagerHostname"] for node in alive)
    places = []
    for node in alive:
        resources, host = node["Resources"], node["NodeManagerHostname"]
        name = host if hosts[host] == 1 else f"{host}/{node['NodeID'][:6]}"
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        cores = 0 if gpus else seat_cpus or cpus
        share = gpus or (cpus // cores if cores else 0)
        kind = named(resources, KIND) or (
            named(resources, GPU_TYPE) or "GPU" if gpus else f"CPU, {count(cores, 'core')}"
        )
        places += [Place(node["NodeID"], name, kind, number, share, cores) for number in range(share)]
    return places


def named(resources: dict, prefix: str) -> str:
    return min((name.removeprefix(prefix) for name in resources if name.startswith(prefix)), default="")


def tiers_of(said: str) -> tuple[str, ...]:
    """The kinds that --tiers names. A comma followed by a space is part of a name. Raises UserError."""
    kinds = tuple(kind.strip() for kind in re.split(r",(?! )", said))
    if len(kinds) != 2 or "" in kinds:
        raise UserError(
            f"--tiers takes two kinds of devices, as --tiers H100,H200: the first screens edits, the last decides; not "
            f"{said!r}. To use one kind alone, leave it out"
        )
    if kinds[0] == kinds[1]:
        raise UserError(f"--tiers names {kinds[0]} twice: one kind alone is used without it")
    return kinds


def prices_of(said: Iterable[str]) -> dict[str, float]:
    """The prices of --seat-price: dollars per hour for a seat, by kind. Raises UserError."""
    prices = {}
    for part in (part for text in said for part in re.split(r",(?! )", text)):
        kind, _, price = part.rpartition("=")
        try:
            prices[kind.strip()] = dollars = float(price)
        except ValueError:
            dollars = -1.0
        if not kind.strip() or not 0 <= dollars < math.inf:
            raise UserError(
                f"--seat-price takes the kind of a seat and dollars an hour, as --seat-price H100=2.5, not {part!r}"
            )
    return prices


def require_known(prices: Iterable[str], places: Sequence[Place]) -> None:
    """Raises UserError if a price names a kind that the cluster does not have: it would have no effect."""
    kinds = collections.Counter(place.kind for place in places)
    for kind in prices:
        if kind not in kinds:
            there = seats_by_kind(kinds)
            raise UserError(f"--seat-price names {kind}, and the cluster has no seat of that kind: it has {there}")


def choose_kinds(places: Sequence[Place], asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The kinds that a run uses: those asked for, else the one with most seats, preferring GPUs. Raises UserError."""
    kinds = collections.Counter(place.kind for place in places)
    for kind in asked:
        if kind not in kinds:
            there = f"it has {seats_by_kind(kinds)}" if kinds else "it has no seat at all"
            raise UserError(
                f"the run trains on {', then '.join(asked)}, and the cluster has none of {kind} now: {there}. Start a "
                "node of that kind (docs/cluster.md) and type the same again, or begin another run with --tag NEW"
            )
    if asked:
        return tuple(asked)
    if not kinds:
        raise UserError(
            "the cluster has no seat: no node with a GPU, or with as many cores as --seat-cpus says. Start one, on its "
            "machine: `uv run --group cluster ray start --address=HOST:6379` (docs/cluster.md)"
        )
    gpus = {place.kind for place in places if not place.cores}
    return (min(kinds, key=lambda kind: (kind not in gpus, -kinds[kind], kind)),)


def seats_in_words(places: Sequence[Place], kinds: Sequence[str]) -> str:
    """A description of which seats the run uses, and which it leaves idle and why."""
    parts = []
    for kind, role in zip(kinds, ("screening: ", "verdicts: ") if kinds[1:] else ("",), strict=True):
        ours = [place.node_id for place in places if place.kind == kind]
        parts.append(f"{role}{count(len(ours), 'seat')} of {kind} on {count(len(set(ours)), 'node')}")
    others = collections.Counter(place.kind for place in places if place.kind not in kinds)
    why = f"scores compare only between devices of one kind, and this run is on {' and '.join(kinds)}"
    return "; ".join(parts + ([f"idle: {seats_by_kind(others)}: {why}"] if others else []))


def seats_by_kind(kinds: collections.Counter[str]) -> str:
    return ", ".join(f"{count(number, 'seat')} of {kind}" for kind, number in sorted(kinds.items()))
