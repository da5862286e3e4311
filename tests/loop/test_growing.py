"""A real Ray cluster that begins without a seat and grows: Ray's own autoscaler, whose nodes are raylets here.

Ray's provider for tests starts them. Its AutoscalingCluster is not used: it lacks a file in what is installed, and it
ends every Ray of the machine.
"""

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from conftest import Toy, wait_for
from test_cluster import is_trial, on_nodes, solver, verdicts, waits  # noqa: F401

pytestmark = pytest.mark.slow
SLOW = """import subprocess, sys, time
brief = sys.stdin.read()
if not brief.startswith("# Experiment 2\\n"):
    time.sleep(600)
subprocess.run([sys.executable, *sys.argv[1:]], input=brief, text=True, check=True)
"""
HEAD = f"{0:05}".rjust(56, "f")  # id of the head that the provider expects
IDLE = 0.05  # minutes after which the autoscaler removes a node that nobody asks for


class Growing:
    """A cluster of up to two nodes of one core. folder: where its seats are."""

    usual = {"include_dashboard": False, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}

    def __init__(self, short: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = short / "seats"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        steps = "initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"
        grown = {"CPU": 1, "kind:grown": 1, "object_store_memory": 80 << 20}
        settings = {
            "cluster_name": "growing", "max_workers": 2, "idle_timeout_minutes": IDLE, "upscaling_speed": 10,
            "provider": {
                "type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}", "use_node_id_as_ip": True,
                "disable_node_updaters": True, "disable_launch_config_check": True, "launch_multiple": True,
            },
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "grown": {"resources": grown, "node_config": {}, "min_workers": 0, "max_workers": 2},
            },
            "head_node_type": "ray.head.default", "head_node": {}, "worker_nodes": {}, "cluster_synced_files": [],
            "file_mounts": {}, "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
            "auth": {"ssh_user": "nobody"}, **{f"{name}_commands": [] for name in steps},
        }  # fmt: skip
        (short / "settings.json").write_text(json.dumps(settings))
        own = {"autoscaling_config": str(short / "settings.json"), "gcs_server_port": port, "num_cpus": 0}
        own["env_vars"] = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
        self.cluster = Cluster(initialize_head=True, head_node_args={**own, **self.usual})

    def there(self) -> int:
        """Nodes besides the head."""
        return sum(node["Alive"] for node in self.cluster.global_state.node_table()) - 1

    def trials(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if is_trial(process, self.folder)]


@pytest.fixture(scope="module")
def nodes():
    short = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the name of a socket has at most 107 characters
    before, nodes = dict(os.environ), None
    os.environ |= {
        "RAY_TMPDIR": str(short), "AUTORESEARCH_CLUSTER": str(short / "seats"), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    try:
        nodes = Growing(short)
        yield nodes
    finally:
        if nodes:
            nodes.cluster.shutdown()
        for process in psutil.process_iter():  # of nodes that the autoscaler started
            with contextlib.suppress(psutil.Error):
                if any(str(short) in word for word in process.cmdline()):
                    process.kill()
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(short, ignore_errors=True)


def night_of(toy: Toy, *arguments: str) -> list[str]:
    return [*toy.agent, "--seat-cpus", "1", "--max-seats", "2", *arguments]


def test_seats_are_asked_for_while_proposals_wait_and_given_back(on_nodes, nodes):  # noqa: F811
    """Fails where a cluster without a seat ends the night, where proposals that wait bring no node, where a node stays
    that no trial will come to, or after the night."""
    toy = on_nodes
    last = toy.go.with_name("last")
    then = (
        f"import os, time\nwhile __name__ == '__main__' and not os.path.exists({str(last)!r}):\n    time.sleep(0.05)\n"
    )
    toy.plan_steps(e2=[waits(toy, 2)], e3=[{"files": {"solver.py": solver(0, then)}, "say": "set it to 0"}])
    assert not nodes.there()
    process = toy.start(*night_of(toy, "--experiments", "3"))
    assert wait_for(lambda: len(nodes.trials()) == 2) and nodes.there() == 2
    toy.go.touch()
    wait_for(lambda: nodes.there() == 1)  # while experiment 3 runs on the other
    assert len(nodes.trials()) == 1 and sorted(verdicts(toy)) == [1, 2]
    last.touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "no seat of any kind yet: one was requested" in output and "2 seats of at most 2 are requested" in output
    assert "up to 2 are requested while there is work for them" in output and "seats are given back" in output
    wait_for(lambda: not nodes.there())
    toy.require_whole(in_order=False)
    assert sorted(verdicts(toy)) == [1, 2, 3] and not toy.journal("rerun")
    assert [len(entry["seats"]) for entry in toy.journal("seats")] == [1, 2, 1]


@pytest.mark.alone
def test_a_budget_that_is_spent_gives_seats_back(on_nodes, nodes):  # noqa: F811
    """Fails where seats that cost what they may are kept while what runs comes to its verdict."""
    toy = on_nodes
    toy.plan_steps(e2=[waits(toy, 2)])
    agent, place = toy.folder.parent / "slow.py", toy.agent.index("--agent-command") + 1
    agent.write_text(SLOW)
    toy.agent[place] = toy.agent[place].replace(sys.executable, f"{sys.executable} {agent}")
    process = toy.start(*night_of(toy, "--max-cost", "80", "--seat-price", "grown=3600"))  # a dollar a second
    wait_for(lambda: nodes.there() == 2)
    wait_for(lambda: nodes.there() == 1)
    assert len(nodes.trials()) == 1 and sorted(verdicts(toy)) == [1]
    toy.go.touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "are used up; continue with a larger --max-cost" in output, output
    wait_for(lambda: not nodes.there())
    toy.require_whole(in_order=False)
    assert sorted(verdicts(toy)) == [1, 2]


def test_a_loop_that_is_killed_gives_its_seats_back_and_goes_on(on_nodes, nodes):  # noqa: F811
    """Fails where the nodes of a loop that is gone stay, and cost, all night; or where it does not get them again."""
    toy = on_nodes
    toy.plan_steps(otherwise=[waits(toy, 2)], e3=[waits(toy, 3)])
    night = night_of(toy, "--experiments", "3")
    process = toy.start(*night)
    wait_for(lambda: len(nodes.trials()) == 2)
    process.kill()
    process.communicate()
    wait_for(lambda: not nodes.there())
    toy.go.touch()
    toy.run(*night)
    toy.require_whole(in_order=False)
    assert sorted(verdicts(toy)) == [1, 2, 3]
    wait_for(lambda: not nodes.there())
