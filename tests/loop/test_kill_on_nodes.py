"""SIGKILL at the steps of a night that only a cluster has, and the same command again: one verdict each, and nothing
goes on on the nodes."""

import contextlib

import psutil
import pytest
from conftest import solver, wait_for
from kill_loop import ON_NODES
from test_cluster import GONE, Nodes, nodes, on_nodes, verdicts  # noqa: F401
from test_kill import killed, require_nothing_lost_or_twice, words

pytestmark = pytest.mark.slow
SAVES = (
    "if __name__ == '__main__':\n    open(os.path.join(os.environ['AUTORESEARCH_RUN_DIR'], 'weights'), 'w').close()\n"
)
RUNNING = "before a trial is sent", "a trial is sent", "a running trial has said something"


def ours(nodes: Nodes) -> list[psutil.Process]:  # noqa: F811
    """What runs on the nodes for a loop: the processes of its seats, and their trials."""
    found = nodes.trials()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "autoresearch.runner.node" in " ".join(process.cmdline()) and is_of(process, nodes):
                found.append(process)
    return found


def is_of(process: psutil.Process, nodes: Nodes) -> bool:  # noqa: F811
    return process.environ().get("AUTORESEARCH_CLUSTER") == str(nodes.folder)


def test_killed_at_each_step_that_a_cluster_adds(on_nodes, nodes):  # noqa: F811
    """Each start is killed in the next experiment, at another step; the last one comes to its end."""
    toy, gates, plan = on_nodes, {}, {}
    for number in range(2, len(ON_NODES) + 2):
        gates[number] = toy.go.with_name(f"go-{number}")
        there = f"os.path.exists({str(gates[number])!r})"
        before = f"import os, time\nwhile __name__ == '__main__' and not {there}:\n    time.sleep(0.05)\n" + SAVES
        plan[f"e{number}"] = [{"files": {"solver.py": solver(number, before)}, "say": f"set it to {number}"}]
    toy.plan_steps(**plan)
    night = "--max-seats", "1", "--experiments", str(len(ON_NODES) + 1)  # one seat: one experiment after the other
    for number, step in enumerate(ON_NODES, 2):
        if step not in RUNNING:
            gates[number].touch()
        killed(toy, step, number, *night, "--sandbox", "auto")
        wait_for(lambda: not ours(nodes), GONE)
        gates[number].touch()
    toy.run(*words(toy, *night, "--sandbox", "auto"))
    require_nothing_lost_or_twice(toy)
    assert verdicts(toy) == {number: ("keep", number) for number in range(1, len(ON_NODES) + 2)}
    assert [number for number in gates if not (toy.runs / f"trials/{number}/run/weights").exists()] == []
    wait_for(lambda: not ours(nodes), GONE)
