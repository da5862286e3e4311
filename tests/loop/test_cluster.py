"""Trials on the nodes of a real Ray cluster, which runs on this machine alone: raylets, actors, processes, signals.

One cluster for all tests, of two nodes of one kind and one of another. What kills a node puts one in its place.
"""

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import PROGRAM, ROOT, Toy, git, solver, step, wait_for

from autoresearch import UserError
from autoresearch.repo import Repository, RunRepo
from autoresearch.runner import Job, Measurement
from autoresearch.runner.checkout import links_of
from autoresearch.runner.cluster import Cluster, objection
from autoresearch.runner.node import Fingerprint, News, Node
from autoresearch.runner.places import Place
from autoresearch.runner.sent import bundle_of, bundles_of, clone, find_links

PACED = Path(__file__).with_name("paced_loop.py")
GONE = 30.0  # seconds after which an actor whose loop is gone has ended its trial


class Nodes:
    """A Ray cluster on 127.0.0.1. folder: where its seats are."""

    usual = {"include_dashboard": False, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **self.usual})
        self.nodes = [self.add("fast"), self.add("fast"), self.add("slow")]
        self.cluster.wait_for_nodes(timeout=120)

    def add(self, kind: str):
        own = {"resources": {f"kind:{kind}": 1}, "env_vars": {"KIND": kind}}
        return self.cluster.add_node(num_cpus=1, wait=False, **own, **self.usual)

    def under(self, trial: psutil.Process) -> str:
        """Name of the node on which a trial runs."""
        above = {process.pid for process in trial.parents()}
        ids = {node.all_processes["raylet"][0].process.pid: node.node_id for node in self.nodes}
        return f"host/{next(name for pid, name in ids.items() if pid in above)}"

    def kill(self, name: str) -> None:
        """End the raylet of a node with SIGKILL, and start another one."""
        node = next(node for node in self.nodes if node.node_id.startswith(name.partition("/")[2]))
        self.nodes[self.nodes.index(node)] = self.add("fast")
        self.cluster.remove_node(node, allow_graceful=False)

    @contextlib.contextmanager
    def cut_off(self, name: str):
        """Inside, a node of Ray answers nobody, but its trial goes on. Afterwards another one is there."""
        place = next(i for i, node in enumerate(self.nodes) if node.node_id.startswith(name.partition("/")[2]))
        raylet = psutil.Process(self.nodes[place].all_processes["raylet"][0].process.pid)
        stopped = [raylet, *raylet.children()]
        for process in stopped:
            process.suspend()
        try:
            yield
        finally:
            for process in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            psutil.wait_procs([raylet], GONE)  # it is told that it is taken for dead
            gone, self.nodes[place] = self.nodes[place], self.add("fast")
            self.cluster.remove_node(gone, allow_graceful=False)

    @contextlib.contextmanager
    def silent(self):
        """Inside, the head of the cluster answers nobody."""
        (head,) = self.cluster.head_node.all_processes["gcs_server"]
        os.kill(head.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(head.process.pid, signal.SIGCONT)

    def trials(self) -> list[psutil.Process]:
        """The commands that run on the nodes, without their keepers."""
        return [process for process in psutil.process_iter() if is_trial(process, self.folder)]


def is_trial(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.cwd().startswith(str(folder)) and process.cmdline()[1:] == ["solver.py"]
    return False


@pytest.fixture(scope="module")
def nodes():
    short = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the name of a socket has at most 107 characters
    before = dict(os.environ)
    folder = short / "seats"
    os.environ |= {"RAY_TMPDIR": str(short), "AUTORESEARCH_CLUSTER": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    nodes = None
    try:
        nodes = Nodes(folder)
        yield nodes
    finally:
        if nodes:
            nodes.cluster.shutdown()
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def on_nodes(toy, nodes, tmp_path) -> Toy:
    """The toy, whose trials run on the nodes. Those that `waits` makes end when `go` is there, which they may read."""
    toy.go = tmp_path / "gate" / "go"
    toy.go.parent.mkdir()
    toy.write(
        "program.md",
        PROGRAM.replace("  metric", f"  env: [MARK, KIND]\n  readable: ['{toy.go.parent}']\n  metric"),
    )
    toy.commit()
    toy.environment |= {"RAY_TMPDIR": os.environ["RAY_TMPDIR"], "MARK": "of the loop's machine"}
    toy.agent += ["--cluster", "auto", "--baseline-runs", "1", "--repairs", "0"]
    return toy


def waits(toy: Toy, value: int) -> dict:
    """A planned edit whose trial ends when `go` is there."""
    there = f"os.path.exists({str(toy.go)!r})"
    before = f"import os, time\nwhile __name__ == '__main__' and not {there}:\n    time.sleep(0.05)\n"
    return {"files": {"solver.py": solver(value, before)}, "say": f"set it to {value}"}


def verdicts(toy: Toy) -> dict[int, tuple]:
    return {entry["number"]: (entry["status"], entry["score"]) for entry in toy.journal("verdict")}


def ran(toy: Toy) -> list[tuple[int, str]]:
    return [(entry["number"], entry["node"]) for entry in toy.journal("trial")]


@pytest.mark.slow
def test_a_night_on_two_nodes_has_the_record_of_a_night_at_home(on_nodes, environment, tmp_path):
    """Fails where a job loses files, a guard does not find its trial, or logs do not come home; where a seat of another
    kind is used, or not spoken of; where a variable of the loop's machine reaches a trial."""
    toy = on_nodes
    said = "import os, time\ntime.sleep(1)\nprint('MARK is', os.environ.get('MARK'))\n"
    steps = {
        "e2": [{"files": {"solver.py": solver(0, said)}, "say": "worse"}],
        "e3": [{"files": {"solver.py": "raise SystemExit('it broke')\n"}, "say": "breaks"}],
        "e4": [step(30)],
        "e5": [{"files": {"solver.py": solver(5, said)}, "say": "better"}],
    }
    toy.plan_steps(**steps)
    output = toy.run(*toy.agent, "--experiments", "5")
    assert "2 seats of fast on 2 nodes; idle: 1 seat of slow: scores compare only between devices of one kind" in output
    toy.require_whole(in_order=False)
    used = {node for _, node in ran(toy)}
    assert len(used) == 2, used
    assert "MARK is None" in (toy.runs / "trials/2/train.log").read_text()
    assert "it broke" in (toy.runs / "trials/3/train.log").read_text()
    state = status(toy)
    assert {row["node"] for row in state["last"]} == used
    assert {(seat["node"], seat["kind"]) for seat in state["seats"]} == {(node, "fast") for node in used}
    assert sum(seat["trials"] for seat in state["seats"]) == len(ran(toy)) and 0 < state["busy"] <= 1
    assert "2 of fast on 2 nodes, " in toy.run("status")
    home = tmp_path / "home-night"
    home.mkdir()
    there = Toy(home / "repository", environment)
    there.plan_steps(**steps)
    there.run_agent(5)
    assert verdicts(toy) == verdicts(there)
    assert [status for status, _ in verdicts(toy).values()].count("keep") == 2
    assert git(toy.folder, "show", f"{toy.tip()}:solver.py") == git(there.folder, "show", f"{there.tip()}:solver.py")
    assert len(toy.references()) == len(there.references())
    refused = toy.run("--agent", "sweep", "--experiments", "6", expect=2)  # scores of two machines never meet
    assert "continue it with --cluster" in refused


def status(toy: Toy) -> dict:
    return json.loads(toy.run("status", "--json"))


@pytest.mark.slow
def test_a_node_that_dies_loses_no_trial_and_a_new_one_takes_work(on_nodes, nodes):
    """Fails where the end of a node counts as a crash of the edit, ends the night, or a node that joins stays idle."""
    toy = on_nodes
    toy.plan_steps(otherwise=[waits(toy, 2)], e3=[waits(toy, 3)], e4=[waits(toy, 4)])
    process = toy.start(*toy.agent, "--experiments", "3")
    node = wait_for(lambda: dict(ran(toy)).get(2))
    assert wait_for(lambda: len(nodes.trials()) == 2)
    nodes.kill(node)
    lost = wait_for(lambda: toy.journal("rerun"))[0]
    assert lost["number"] == 2 and "lost" in lost["reason"]
    again = wait_for(lambda: [where for number, where in ran(toy) if number == 2][1:])[0]
    assert again != node
    toy.go.touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "has joined" in output, output
    toy.require_whole(in_order=False)
    assert sorted(verdicts(toy)) == [1, 2, 3] and "crash" not in toy.statuses()


@pytest.mark.slow
def test_a_node_that_cannot_be_reached_for_a_while(on_nodes, nodes):
    """Fails where its trial never runs again, counts twice, or goes on when the node is back."""
    toy = on_nodes
    toy.plan_steps(e2=[waits(toy, 2)], e3=[waits(toy, 3)])
    process = toy.start(*toy.agent, "--experiments", "3")
    node = wait_for(lambda: dict(ran(toy)).get(2))
    before = wait_for(lambda: len(found := nodes.trials()) == 2 and found)
    old = [trial for trial in before if nodes.under(trial) == node]
    with nodes.cut_off(node):
        (lost,) = wait_for(lambda: toy.journal("rerun"))  # Ray takes half a minute to believe it
        assert lost["number"] == 2 and lost["why"] == "lost"
    assert not psutil.wait_procs(old, GONE)[1]
    toy.go.touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    toy.require_whole(in_order=False)
    assert sorted(verdicts(toy)) == [1, 2, 3] and "crash" not in toy.statuses()


@pytest.mark.slow
def test_a_loop_that_is_killed_leaves_no_trial_and_the_same_command_goes_on(on_nodes, nodes):
    """Fails where trials outlive the loop, or Ctrl-C twice; where a run that was cut off loses or doubles one; where
    the loop does not hear Ctrl-C while the head of the cluster does not answer."""
    toy = on_nodes
    toy.plan_steps(otherwise=[waits(toy, 2)], e3=[waits(toy, 3)])
    night = *toy.agent, "--experiments", "3"
    process = toy.start(*night)
    running = wait_for(lambda: len(found := nodes.trials()) == 2 and found)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(running, GONE)[1]
    process = toy.start(*night)
    running = wait_for(lambda: len(found := nodes.trials()) == 2 and found)
    with nodes.silent():
        time.sleep(1.5)  # it asks for nodes each second
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "stopping after" in process.stdout.readline())
    time.sleep(0.4)  # two that are closer count once
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 130
    assert not psutil.wait_procs(running, 5)[1]
    assert len(toy.journal("interrupted")) == 2 and not verdicts(toy).keys() - {1}
    toy.go.touch()
    toy.run(*night)
    toy.require_whole(in_order=False)
    assert sorted(verdicts(toy)) == [1, 2, 3]


@pytest.mark.alone
def test_a_slow_node_is_put_aside(on_nodes, nodes):
    """Fails where a node that is slower than its kind keeps its seat, or what it measured counts; or where a loop that
    is started again takes it back."""
    toy = on_nodes
    slow = nodes.cluster.add_node(
        num_cpus=1, wait=True, resources={"kind:fast": 1}, env_vars={"KIND": "lame"}, **nodes.usual
    )
    try:
        before = "import os, time\nLAME = os.environ['KIND'] == 'lame'\n"
        before += "if __name__ == '__main__':\n    time.sleep(12 if LAME else 4)\n"
        toy.write("solver.py", solver("7 if LAME else 1", before))
        toy.commit()
        toy.plan_steps(e2=[step(2)], e3=[step(3)])
        night = *toy.agent, "--baseline-runs", "4"
        output = toy.run(*night, "--experiments", "1", loop=PACED)
        (aside,) = toy.journal("aside")
        assert slow.node_id.startswith(aside["node"].partition("/")[2])
        said = ": its baseline run had "
        assert f"{aside['node']} is not used any more{said}" in output
        assert verdicts(toy) == {1: ("keep", 1)}
        assert f"{aside['node']} is still not used{said}" in toy.run(*night, "--experiments", "3", loop=PACED)
        assert all(node != aside["node"] for number, node in ran(toy) if number > 1)
        assert aside["node"] not in {seat["node"] for seat in toy.journal("seats")[-1]["seats"]}
    finally:
        nodes.cluster.remove_node(slow)


@pytest.mark.alone
def test_a_node_that_joins_later_is_checked_like_the_first_ones(on_nodes, nodes, tmp_path):
    """Fails where a slow node that joins during the night gets an edit before the baseline, keeps its seat, or costs
    the edit its verdict; where one with another torch gets a seat, or is not spoken of."""
    toy = on_nodes
    before = "import os, time\nif __name__ == '__main__':\n    time.sleep(12 if os.environ['KIND'] == 'lame' else 4)\n"
    toy.write("solver.py", solver(1, before))
    toy.commit()
    toy.plan_steps(e2=[waits(toy, 2)], e3=[waits(toy, 3)], e4=[step(0)])
    other = tmp_path / "torch-0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.1\n")
    process = toy.start(*toy.agent, "--baseline-runs", "3", "--experiments", "4", loop=PACED)
    wait_for(lambda: len(nodes.trials()) == 2 and toy.journal("verdict"))
    late = [
        nodes.cluster.add_node(num_cpus=1, wait=True, resources={"kind:fast": 1}, env_vars=own, **nodes.usual)
        for own in ({"KIND": "lame"}, {"KIND": "fast", "PYTHONPATH": str(tmp_path)})
    ]
    try:
        lame, differs = (node.node_id[:6] for node in late)
        (aside,) = wait_for(lambda: toy.journal("aside"))
        assert aside["node"].endswith(lame) and "s, against a median of 4 over 4 seats" in aside["reason"]
        toy.go.touch()
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert f"{differs}: it has torch 0.1, this machine " in output
        assert not any(node.endswith(differs) for _, node in ran(toy))
        assert [number for number, node in ran(toy) if node.endswith(lame)] == [4]
        assert [entry["number"] for entry in toy.journal("measured")].count(4) == 1  # elsewhere
        (moved,) = [entry for entry in toy.journal("rerun") if "it runs elsewhere" in entry["reason"]]
        assert moved["number"] == 4 and not moved.get("why")  # no other program disturbed it
        assert sorted(verdicts(toy)) == [1, 2, 3, 4] and verdicts(toy)[4] == ("discard", 0)
        toy.require_whole(in_order=False)
    finally:
        for node in late:
            nodes.cluster.remove_node(node)


def test_what_is_said_against_a_node():
    """Fails where a difference between nodes is overlooked, or one that does not matter is held against a node."""
    home = Fingerprint("code", "3.13.1", "2.11.0", "", "CPU A", "Landlock")
    gpu = dataclasses.replace(home, torch="2.11.0+cu130", driver="600.1")
    for field, value, why in (
        ("code", "other", "its loop code differs"), ("python", "3.12.1", "Python 3.12.1, this machine 3.13.1"),
        ("torch", "2.12.0", "torch 2.12.0, this machine 2.11.0"), ("driver", "601.2", "driver 601.2, the first"),
        ("torch", "2.11.0+cu128", "torch 2.11.0+cu128, the first node 2.11.0+cu130"), ("sandbox", "", "Landlock"),
    ):  # fmt: skip
        assert why in objection(dataclasses.replace(gpu, **{field: value}), home, gpu, True), field
    assert not objection(dataclasses.replace(gpu, processor="CPU B"), home, gpu, True)
    assert not objection(dataclasses.replace(gpu, sandbox=""), home, gpu, False)
    assert "processor CPU B" in objection(dataclasses.replace(home, processor="CPU B"), home, home, True)


def of_kind(toy: Toy, fast: int, slow: int, wait: bool = False) -> dict:
    """A planned edit with a score for each kind of node. wait: on the slow one its trial ends when `go` is there."""
    before = "import os, time\nSLOW = os.environ.get('KIND') == 'slow'\n"
    if wait:
        before += (
            f"while __name__ == '__main__' and SLOW and not os.path.exists({str(toy.go)!r}):\n    time.sleep(0.05)\n"
        )
    return {"files": {"solver.py": solver(f"{slow} if SLOW else {fast}", before)}, "say": f"{fast} and {slow}"}


@pytest.mark.slow
def test_tiers_screen_on_the_first_kind_and_decide_on_the_last(on_nodes):
    """Fails where scores of two kinds meet, where what loses the screening costs a trial on the last kind, where a keep
    comes from the first kind, or where a loop that was killed screens again."""
    toy = on_nodes
    toy.write("solver.py", of_kind(toy, 1, 101)["files"]["solver.py"])
    toy.commit()
    toy.plan_steps(
        e2=[of_kind(toy, 0, 200)],  # loses the screening
        e3=[of_kind(toy, 5, 7)],  # looks good there alone
        e4=[of_kind(toy, 2, 103, wait=True)],
        e5=[of_kind(toy, 3, 104)],
    )
    night = *toy.agent, "--tiers", "fast,slow"
    process = toy.start(*night, "--experiments", "4")
    wait_for(lambda: [entry for entry in toy.journal("promoted") if entry["number"] == 4])
    process.kill()
    process.wait()
    process.stdout.close()
    toy.go.touch()
    output = toy.run(*toy.agent, "--experiments", "5")  # its tiers are the run's
    assert "screening: 2 seats of fast on 2 nodes; verdicts: 1 seat of slow on 1 node" in output
    toy.require_whole(in_order=False)
    assert verdicts(toy) == {
        1: ("keep", 101), 2: ("discard", 0), 3: ("discard", 7), 4: ("keep", 103), 5: ("keep", 104)
    }  # fmt: skip
    assert [row[1] for row in toy.rows()] == ["101.000000", "nan", "7.000000", "103.000000", "104.000000"]
    kinds = {seat["node"]: seat["kind"] for entry in toy.journal("seats") for seat in entry["seats"]}
    where = [(number, kinds[node]) for number, node in ran(toy)]
    assert [kind for number, kind in where if number == 2] == ["fast"]
    screened = [(entry["number"], entry["score"]) for entry in toy.journal("screened")]
    assert [score for number, score in screened if number == 4] == [2]  # once, and not after the kill
    (lost,) = [entry["reason"] for entry in toy.journal("verdict") if entry["number"] == 2]
    assert lost.startswith("in the screening on fast: 0 is 1 worse than the champion's 1")
    other = toy.run(*toy.agent, "--tiers", "slow,fast", expect=2)
    assert "began with --tiers fast,slow" in other
    assert "has none of gone now: it has 2 seats of fast, 1 seat of slow" in toy.run(
        *toy.agent, "--tiers", "fast,gone", "--tag", "new", expect=2
    )


@pytest.mark.slow
def test_the_budget_counts_what_seats_cost(on_nodes):
    """Fails where a night goes on, or waits for its agent, when its seats have cost what they may."""
    toy = on_nodes
    toy.plan_steps(otherwise=[waits(toy, 2)])
    toy.go.touch()
    slow_agent = "--agent", "command", "--agent-command", "sleep 600"
    limits = "--max-cost", "40", "--seat-price", "fast=3600"  # two dollars a second
    output = toy.run(*toy.agent, *slow_agent, *limits)
    assert "$3600 per hour for each fast" in output and "are used up; continue with a larger --max-cost" in output
    state = status(toy)
    assert 40 <= state["seat_dollars"] < 80 and not state["dollars"]
    toy.require_whole()


@pytest.mark.slow
def test_verify_runs_on_a_seat_of_the_run(on_nodes, nodes):
    """Fails where a run of a cluster cannot be verified, or is on another machine; where a node that dies costs verify
    a score; where a command that runs here only does not say so."""
    toy = on_nodes
    toy.plan_steps(e2=[waits(toy, 2)])
    toy.go.touch()
    toy.run(*toy.agent, "--experiments", "2")
    toy.go.unlink()
    night = "--tag", toy.tag
    assert "(`start` and `try` run only on this machine)" in toy.run("try", "-m", "x", *night, expect=2)
    assert "as the loop and `verify` can" in toy.run("verify", *night, expect=2)
    assert "only on this machine: omit --cluster" in toy.run("start", "--cluster", "auto", *night, expect=2)
    process = toy.start("verify", "--cluster", "auto", "--runs", "2", "--plain", *night)
    wait_for(lambda: toy.journal("verified"))  # of the baseline, which waits for nobody
    (trial,) = wait_for(nodes.trials)
    nodes.kill(nodes.under(trial))
    (trial,) = wait_for(lambda: [other for other in nodes.trials() if other.pid != trial.pid])
    toy.go.touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "cluster   one seat of fast" in output and "was lost in the middle of it: it runs again" in output
    assert [(entry["name"], entry["score"]) for entry in toy.journal("verified")] == 2 * [
        ("baseline", 1),
        ("champion", 2),
    ]
    assert not psutil.wait_procs([trial], 5)[1]


@pytest.mark.slow
def test_what_is_linked_and_submodules_are_on_the_nodes(on_nodes, tmp_path):
    """Fails where a trial on a node lacks what `link` names or a submodule, or can change it."""
    toy, part = on_nodes, tmp_path / "part"
    part.mkdir()
    git(part, "init", "-q")
    (part / "inside").write_text("20")
    git(part, "add", "-A")
    git(part, "commit", "-qm", "part")
    git(toy.folder, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(part), "deep/part")
    (toy.folder / "data").mkdir()
    (toy.folder / "data/number").write_text("3")
    toy.write(".gitignore", "results.tsv\n__pycache__/\ndata/\n")
    toy.write("program.md", (toy.folder / "program.md").read_text().replace("  env:", "  link: [data/]\n  env:"))
    toy.commit()
    reads = "SUM = int(open('data/number').read()) + int(open('deep/part/inside').read())\n"
    writes = "try:\n    open('data/number', 'w')\nexcept OSError:\n    SUM += 100\n"
    toy.plan_steps(e2=[{"files": {"solver.py": solver("SUM", reads + writes)}, "say": "read them"}])
    toy.run(*toy.agent, "--experiments", "2", "--sandbox", "require")
    assert verdicts(toy)[2] == ("keep", 123)
    assert (toy.folder / "data/number").read_text() == "3"


def test_what_a_node_lacks_of_a_game_is_said(toy, tmp_path):
    """Fails where a node without what `link` names trains all the same, or does not say what to do about it; where a
    shallow submodule ends in a fault of git's."""
    with pytest.raises(UserError, match=r"names data, and .*/gone is not there: copy it to the same path"):
        find_links(tmp_path, {"data": str(tmp_path / "gone")})
    with pytest.raises(UserError, match="names data, and there is no such file or folder"):
        links_of(toy.folder, ["data"])
    toy.write("solver.py", solver(2))
    toy.commit()
    git(toy.folder, "clone", "-q", "--depth=1", f"file://{toy.folder}", "part")
    commit = git(toy.folder / "part", "rev-parse", "HEAD")
    with pytest.raises(UserError, match="`git -C part fetch --unshallow`"):
        bundles_of(toy.folder, git(toy.folder, "rev-parse", "HEAD"), {"part": commit})
    git(toy.folder / "part", "fetch", "-q", "--unshallow")
    bundles = bundles_of(toy.folder, git(toy.folder, "rev-parse", "HEAD"), {"part": commit})
    clone(tmp_path, bundles[""], commit)
    assert (clone(tmp_path, bundles["part"], commit, "part") / "solver.py").read_text() == solver(2)


def test_a_node_is_asked_about_a_job_before_it_has_it(tmp_path):
    """Fails where what is asked too early is answered of the job before, so that nothing is seen of one; or where a job
    that was ended before it came runs all the same."""

    class Jobs:
        """A runner whose jobs last until they are told to end. begun: those that run."""

        seats = (None,)

        def __init__(self) -> None:
            self.begun, self.over = [], asyncio.Event()

        def folder_of(self, name: str) -> Path:
            return tmp_path / name

        async def run(self, job: Job, seat: None, tell) -> Measurement:
            self.begun.append(job.name)
            self.folder_of(job.name).mkdir()
            (self.folder_of(job.name) / "train.log").write_text(job.name)
            await self.over.wait()
            return Measurement(score=1)

    async def ask() -> None:
        node, jobs = Node(), Jobs()
        node.local, early = jobs, asyncio.create_task(node.news(1))
        running = asyncio.create_task(node.run(Job("first", {}, 0), 1))
        news = await early
        assert not news.over
        while not news.files:
            news = await node.news(1)
        assert news.files == {"train.log": b"first"} and not news.over
        early = asyncio.create_task(node.news(2))
        await asyncio.sleep(0)
        jobs.over.set()
        assert (await running).result.score == 1
        assert await early == News("", {}, over=False) and (await node.news(1)).over
        await node.end(2)
        assert (await node.run(Job("second", {}, 0), 2)).fault == "it was ended"
        assert (await node.run(Job("third", {}, 0), 3)).result and jobs.begun == ["first", "third"]
        assert (await node.news(2)).over

    asyncio.run(ask())


def test_a_place_whose_actor_could_not_be_made_is_tried_again(tmp_path):
    """As while the head of the cluster does not answer. Fails where its seat is lost for the rest of the night."""
    ray = pytest.importorskip("ray")

    async def fails(*asked: object) -> None:
        raise ray.exceptions.RpcError("the head does not answer")

    async def open_places() -> None:
        said = []
        fleet = SimpleNamespace(ask=fails, say=lambda *words: said.append(words[0]), aside={}, most=9, demand=None)
        settings = {"task": None, "repo": None, "base": "", "settings": {}, "confined": False}
        cluster = Cluster(fleet, SimpleNamespace(folder=tmp_path, **settings))
        place = Place("0" * 56, "node1", "CPU, 1 core", 0, 1, 1)
        for _ in range(2):
            cluster._look({place.key: place})
            (opening,) = cluster._opening.values()
            await opening
            assert not cluster._opening
            cluster._aside.update({key: (why, 0.0) for key, (why, _) in cluster._aside.items()})  # some time passes
        assert said == ["a seat is not used: node1: the head does not answer"]

    asyncio.run(open_places())


def test_without_cluster_no_ray_is_imported(toy):
    toy.plan_steps(otherwise=[step(2)])
    code = "import sys, loop\ntry:\n    loop.main()\nfinally:\n    print('Ray is here:', 'ray' in sys.modules)\n"
    words = [sys.executable, "-c", code, *toy.agent, "--experiments", "2", "--baseline-runs", "1", "--tag", "night"]
    environment = {**toy.environment, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(words, cwd=toy.folder, env=environment, capture_output=True, text=True).stdout
    assert "Ray is here: False" in output and toy.statuses() == ["keep", "keep"]


def test_what_to_type_where_there_is_no_cluster_or_no_ray(toy, refused, monkeypatch, tmp_path):
    night = "--agent", "command", "--agent-command", "true"
    assert "uv run --group cluster ray start" in refused(*night, "--cluster", "127.0.0.1:1")
    assert "no cluster runs on this machine" in refused(*night, "--cluster", "auto", RAY_TMPDIR=str(tmp_path))
    assert "takes auto or HOST:PORT" in refused(*night, "--cluster", "somewhere")
    assert "omit --gpus and --workers" in refused(*night, "--cluster", "auto", "--workers", "2")
    assert "--tiers is about the devices of a cluster" in refused(*night, "--tiers", "fast,slow")
    assert "--max-seats asks a cluster for nodes" in refused(*night, "--max-seats", "4")
    both = "--max-seats", "4", "--tiers", "fast,slow"
    assert "omit it, or --tiers" in refused(*night, "--cluster", "auto", *both)
    assert "--seat-price is about the devices of a cluster" in refused(*night, "--seat-price", "fast=2")
    assert "takes two kinds" in refused(*night, "--cluster", "auto", "--tiers", "fast")
    assert "names fast twice" in refused(*night, "--cluster", "auto", "--tiers", "fast,fast")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    assert "Type: uv run --group cluster loop.py --cluster auto" in refused(*night, "--cluster", "auto")


def test_a_node_gets_the_commit_wherever_ray_was_started(toy, tmp_path, monkeypatch):
    """Fails where git looks for the commit in the folder that Ray was started in, which may be the checkout itself."""
    repo = RunRepo(Repository(toy.folder), "night", toy.runs)
    base, seat = repo.head(), tmp_path / "seat-0"
    bundle = bundle_of(toy.folder, base)
    seat.mkdir()
    monkeypatch.chdir(toy.folder)
    root = clone(seat, bundle, base)
    assert git(root, "rev-parse", "HEAD") == base and (root / "solver.py").is_file()
    (root / "mark").touch()
    assert (clone(seat, bundle, base) / "mark").exists()  # what is there is used again
    toy.write("solver.py", solver(2))
    toy.commit()
    assert git(clone(seat, bundle_of(toy.folder, repo.head()), repo.head()), "rev-parse", "HEAD") == repo.head()
