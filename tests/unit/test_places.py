"""Which seats a cluster has, and which of them a run takes."""

import os

import pytest

from autoresearch import UserError
from autoresearch.runner.demand import shape_of
from autoresearch.runner.local import seats_of
from autoresearch.runner.places import choose_kinds, places_of, seats_in_words, tiers_of


def node(name: str, alive: bool = True, **resources: float) -> dict:
    named = {key.replace("__", ":"): value for key, value in resources.items()}
    return {"NodeID": name * 8, "NodeManagerHostname": f"host-{name}", "Alive": alive, "Resources": named}


NODES = [
    node("a", GPU=2.0, CPU=64.0, accelerator_type__H100=1.0),
    node("b", GPU=1.0, CPU=8.0, accelerator_type__A100=1.0),
    node("c", CPU=8.0),
    node("d", CPU=4.0, kind__lab=1.0),
    node("e", alive=False, GPU=8.0, accelerator_type__H100=1.0),
    node("f", CPU=0.0),
]


def test_a_seat_is_a_gpu_or_so_many_cores_of_a_node_that_is_alive():
    seats = [(place.node, place.kind, place.number, place.cores) for place in places_of(NODES)]
    assert seats == [
        ("host-a", "H100", 0, 0),
        ("host-a", "H100", 1, 0),
        ("host-b", "A100", 0, 0),
        ("host-c", "CPU, 8 cores", 0, 8),
        ("host-d", "lab", 0, 4),
    ]
    by_cores = [place for place in places_of(NODES, seat_cpus=3) if place.cores]
    assert [(place.kind, place.share) for place in by_cores] == [("CPU, 3 cores", 2), ("CPU, 3 cores", 2), ("lab", 1)]


def test_workers_share_the_cores_that_this_program_may_use(monkeypatch):
    """Not all that the machine has: taskset, or a container with a set of its own."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [seat.device for seat in seats_of(None, 2)] == [{"OMP_NUM_THREADS": "4"}] * 2


def test_nodes_of_one_machine_have_names_of_their_own():
    twins = [{**node(name, CPU=1.0), "NodeManagerHostname": "host"} for name in "ab"]
    assert [place.node for place in places_of(twins)] == ["host/aaaaaa", "host/bbbbbb"]


def test_a_run_takes_the_kind_with_most_seats_and_stays_with_its_own():
    places = places_of(NODES)
    assert choose_kinds(places) == ("H100",)
    assert choose_kinds(places, ["A100"]) == ("A100",)
    idle = "idle: 1 seat of A100, 1 seat of CPU, 8 cores, 1 seat of lab: scores compare only"
    assert seats_in_words(places, ["H100"]).startswith(f"2 seats of H100 on 1 node; {idle}")
    assert seats_in_words(places[:2], ["H100"]) == "2 seats of H100 on 1 node"
    with pytest.raises(UserError, match="none of H100 now: it has 1 seat of A100"):
        choose_kinds(places[2:], ["H100"])
    with pytest.raises(UserError, match="no seat"):
        choose_kinds([])


def test_tiers_are_two_kinds_that_are_there():
    places = places_of(NODES)
    assert tiers_of("CPU, 8 cores,H100") == ("CPU, 8 cores", "H100")  # a comma before a blank is part of a name
    assert choose_kinds(places, ["A100", "H100"]) == ("A100", "H100")
    used = seats_in_words(places[:3], ["A100", "H100"])
    assert used == "screening: 1 seat of A100 on 1 node; verdicts: 2 seats of H100 on 1 node"
    with pytest.raises(UserError, match="none of B200 now"):
        choose_kinds(places, ["A100", "B200"])
    for said, why in (("H100", "takes two kinds"), ("A,B,C", "takes two kinds"), ("A,", "two"), ("A,A", "twice")):
        with pytest.raises(UserError, match=why):
            tiers_of(said)


def test_what_the_autoscaler_is_asked_for_is_a_seat():
    """Fails where a kind that somebody named is not asked for by that name, or a GPU's type by one that no autoscaler
    may know; where nothing can be asked for while there is no node."""
    places = places_of(NODES)
    assert shape_of("H100", NODES, places, None) == {"GPU": 1}
    assert shape_of("lab", NODES, places, None) == {"CPU": 4, "kind:lab": 0.001}
    assert shape_of("lab", NODES, places_of(NODES, 2), 2) == {"CPU": 2, "kind:lab": 0.001}
    assert shape_of("CPU, 8 cores", [], [], None) == {"CPU": 8}
    assert shape_of("", [], [], None) == {"GPU": 1} and shape_of("", [], [], 3) == {"CPU": 3}
