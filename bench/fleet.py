"""How busy a cluster's seats are, what the loop needs itself, and what is lost when nodes die.

    uv run bench/fleet.py --seats 1 4 16                # a real Ray cluster on 127.0.0.1, four seats a node
    uv run bench/fleet.py --seats 4 --kill 30           # every 30 s a node is killed, and another one joins

The nodes are raylets on this machine with made-up cores; trials only wait, so that many of them fit. What is measured
is the loop, the runner and Ray. Before that the baseline runs on all seats at once. Busy is the share of the seats'
time, from the first trial of an edit to the start of the last one, in which a seat's command ran. It exits with 1 where
an experiment has not exactly one verdict.
"""

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
SEATS_OF_NODE = 4
PROGRAM = """---
task:
  editable: [solver.sh]
  train: sh solver.sh
  metric: score
  direction: maximize
---
"""
AGENT = "sleep THINKS; echo 'sleep SECONDS; echo score: -'$$ > solver.sh; echo set it to -$$"


def make_game(folder: Path, seconds: float, thinks: float) -> None:
    folder.mkdir()
    (folder / "program.md").write_text(PROGRAM)
    (folder / "solver.sh").write_text(f"sleep {seconds}; echo score: 0\n")
    (folder / ".gitignore").write_text("results.tsv\n")
    agent = AGENT.replace("SECONDS", str(seconds)).replace("THINKS", str(thinks))
    (folder.parent / "agent.sh").write_text(agent + "\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "game"]):
        subprocess.run(
            ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *words], cwd=folder, check=True
        )


class Nodes:
    """A Ray cluster with so many seats."""

    def __init__(self, seats: int) -> None:
        from ray.cluster_utils import Cluster

        self.usual = {"include_dashboard": False, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **self.usual})
        self.sizes = [SEATS_OF_NODE] * (seats // SEATS_OF_NODE) + [seats % SEATS_OF_NODE] * bool(seats % SEATS_OF_NODE)
        self.nodes = [self.add(size) for size in self.sizes]
        self.cluster.wait_for_nodes(timeout=300)

    def add(self, size: int):
        return self.cluster.add_node(num_cpus=size, wait=False, resources={"kind:bench": 1}, **self.usual)

    def replace(self) -> None:
        """Kill a node, and start another one."""
        place = random.randrange(len(self.nodes))
        self.cluster.remove_node(self.nodes[place], allow_graceful=False)
        self.nodes[place] = self.add(self.sizes[place])


def night(game: Path, trials: int, nodes: Nodes, kill: float | None) -> dict:
    """Run the loop. Its largest memory in MB, its processor time in seconds, and the kills."""
    agent = ["--agent", "command", "--agent-command", f"sh {game.parent / 'agent.sh'}"]
    limits = ["--experiments", str(trials + 1), "--repairs", "0", "--plain", "--tag", "bench"]
    words = [sys.executable, str(ROOT / "loop.py"), "--cluster", "auto", "--seat-cpus", "1", *agent, *limits]
    found = {"memory": 0.0, "processor": 0.0, "kills": 0}
    with open(game.parent / "night.log", "w") as log:
        process = psutil.Popen(words, cwd=game, stdout=log, stderr=log)
        next_kill = None
        while process.poll() is None:
            try:
                found["memory"] = max(found["memory"], process.memory_info().rss / 1e6)
                times = process.cpu_times()
                found["processor"] = times.user + times.system + times.children_user + times.children_system
            except psutil.Error:
                break
            if kill and next_kill is None and began(game):
                next_kill = time.monotonic() + kill
            if next_kill and time.monotonic() >= next_kill:
                nodes.replace()
                found["kills"] += 1
                next_kill = time.monotonic() + kill
            time.sleep(0.5)
    if process.wait():
        sys.exit((game.parent / "night.log").read_text())
    return found


def events_of(game: Path) -> list[dict]:
    path = game / ".autoresearch/bench/journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def began(game: Path) -> bool:
    return any(event["event"] == "trial" and event["number"] > 1 for event in events_of(game))


def measure(game: Path, seats: int, seconds: float) -> dict:
    """From the journal: busy share, speed-up over one seat that is always busy, numbers without exactly one verdict."""
    events = [event for event in events_of(game) if event.get("number", 2) > 1]
    starts = [event["time"] for event in events if event["event"] == "trial"]
    verdicts = [event for event in events if event["event"] == "verdict"]
    first, last = min(starts), max(starts)
    running, ends = {}, {}
    busy = 0.0
    for event in events:
        if event["event"] == "trial":
            running[event["number"]] = event["time"]
        elif event["event"] in ("verdict", "rerun") and (at := running.pop(event["number"], None)) is not None:
            spent = event["seconds"] if event["event"] == "verdict" else {}  # what was lost is no work
            ends[event["number"]] = event["time"]
            busy += max(0.0, min(last, at + spent.get("train", 0.0)) - at)
    counts = collections.Counter(event["number"] for event in verdicts)
    numbers = {event["number"] for event in events if event["event"] == "attempt"}
    wrong = {number: counts[number] for number in numbers | counts.keys() if counts[number] != 1}
    reruns = sum(event["event"] == "rerun" for event in events)
    done = sum(end <= last for end in ends.values())
    span = last - first
    crashed = sum(event["status"] == "crash" for event in verdicts)
    return {
        "busy": busy / (seats * span) if span else 0.0, "speed-up": busy / span if span else 0.0, "span": span,
        "done": done, "reruns": reruns, "wrong": wrong, "crashed": crashed, "verdicts": len(verdicts),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seats", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--trials", type=int, default=20, help="of each seat")
    parser.add_argument("--seconds", type=float, default=20.0, help="that a trial waits")
    parser.add_argument("--thinks", type=float, default=0.0, help="seconds that the agent takes for a proposal")
    parser.add_argument("--kill", type=float, help="seconds from one kill of a node to the next")
    options = parser.parse_args()
    failed = False
    for seats in options.seats:
        with tempfile.TemporaryDirectory(prefix="fleet-", dir="/tmp") as name:
            os.environ |= {
                "RAY_TMPDIR": name, "AUTORESEARCH_CLUSTER": f"{name}/seats", "RAY_USAGE_STATS_ENABLED": "0",
                "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.org", "GIT_COMMITTER_NAME": "Ada",
                "GIT_COMMITTER_EMAIL": "ada@example.org",
            }  # fmt: skip
            game, nodes = Path(name) / "game", Nodes(seats)
            try:
                make_game(game, options.seconds, options.thinks)
                found = night(game, options.trials * seats, nodes, options.kill)
            finally:
                nodes.cluster.shutdown()
            said = measure(game, seats, options.seconds)
        trials = said["verdicts"]
        print(
            f"{seats} seats, {trials} trials of {options.seconds:g} s, proposals of {options.thinks:g} s, in "
            f"{said['span']:.0f} s: "
            f"{said['busy']:.1%} busy, speed-up {said['speed-up']:.1f}; "
            f"the loop took {found['processor'] / trials:.2f} s of processor a trial (git and agents included) and "
            f"{found['memory']:.0f} MB; {found['kills']} nodes killed, {said['reruns']} trials ran again, "
            f"{said['crashed']} crashed; without exactly one verdict: {said['wrong'] or 'none'}",
            flush=True,
        )
        failed = failed or bool(said["wrong"])
    sys.exit(failed)


if __name__ == "__main__":
    main()
