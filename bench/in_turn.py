"""What keeps false gains out of a game with noisy scores, and costs no true ones? With the loop's own judge.

    uv run bench/in_turn.py                  # the simulated table of bench/RESULTS.md: 300 games a cell, two minutes
    uv run bench/in_turn.py --real           # one real game on this machine, with a neighbour that loads a core

A game times a program. 60 edits change nothing and 20 gain 15%, in random order; after each true keep the next edit is
compared with that code again as if it took one second. A run's time has normal noise, a drift (a random walk that
forgets in some 50 runs) and now and then a spike upwards (exponential, three times the noise on average), as with a
neighbour who loads a core. The loop learns its noise from the baseline's runs and from all that ran in turn. Rules:

- margin: a gain above the judge's margin is kept (this project's own game, whose trials are long);
- checked: it runs three times in turn with its champion first (other games that measure no time); a champion is
  measured again after STALE verdicts;
- turn by turn: what is not clear at once is judged by runs in turn alone (where a time is measured). `repeats` measures
  several times in a trial and takes the median.

The real game is the loop itself: a repository with a program that counts, whose edits are the same 80. What changes
nothing renames a variable; what gains counts 15% less far.
"""

import argparse
import dataclasses
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from autoresearch.judge import (
    RULES,
    STALE,
    TURN_MARGIN,
    TURNS,
    could_be_noise,
    gains_of,
    judge,
    judge_turns,
    mean,
    noise_of_turns,
    noise_scale,
)

ROOT = Path(__file__).resolve().parent.parent
# Of a run: the noise, the standard deviation of the drift, and how often there is a spike.
MACHINES = ((0.01, 0.01, 0.05), (0.03, 0.03, 0.05), (0.05, 0.05, 0.1), (0.08, 0.08, 0.1), (0.07, 0.2, 0.05))
MEMORY = 0.98  # of the drift, from one run to the next
RULES_PLAYED = (
    ("margin", 1),
    ("checked", 1),
    ("checked", 3),
    ("turn by turn", 1),
    ("turn by turn", 3),
    ("turn by turn", 5),
)
NOTHING, SOMETHING, GAIN = 60, 20, 0.15
STRICTER = dataclasses.replace(RULES["margin"], margin=TURN_MARGIN, slack=0.0)
COLUMNS = "false of 60 | at most 1 false | true of 20 | at least 19 true | runs"


def edits_of(draw: random.Random) -> list[float]:
    """The gain of each edit, in random order."""
    edits = [0.0] * NOTHING + [GAIN] * SOMETHING
    draw.shuffle(edits)
    return edits


def play(seed: int, machine: tuple[float, float, float], rule: str, repeats: int) -> tuple[int, int, int]:
    """(False keeps, true keeps, runs) of a simulated game."""
    noise, drifts, spikes = machine
    draw, runs = random.Random(seed), 0
    drift = draw.gauss(0, drifts)

    def run() -> float:
        nonlocal drift, runs
        runs += 1
        drift = MEMORY * drift + draw.gauss(0, drifts * math.sqrt(1 - MEMORY**2))
        spike = 1 + draw.expovariate(1 / (3 * noise)) if draw.random() < spikes else 1
        return max(0.2, 1 + drift + draw.gauss(0, noise)) * spike

    def trial(value: float) -> float:
        return value * statistics.median(run() for _ in range(repeats))

    edits = edits_of(draw)
    champion = [trial(1.0) for _ in range(2 if rule == "margin" else 5)]
    baseline, groups, turns, false, true, stale = list(champion), [list(champion)], [], 0, 0, 0
    for gain in edits:
        if rule == "checked" and stale >= STALE:
            champion, stale = [*champion, trial(1.0)], 0
        scores, stale, theirs = [trial(1 - gain)], stale + 1, []
        scale = noise_scale(groups)
        difference = mean(champion) - scores[0]
        verdict = judge(scores, champion, scale)
        if rule == "turn by turn" and could_be_noise(abs(difference), scale, scores, champion):
            theirs, verdict = [trial(1.0)], None
            while not (verdict := judge_turns(gains := gains_of(theirs, scores), noise_of_turns(baseline, turns))):
                scores, theirs = [*scores, trial(1 - gain)], [*theirs, trial(1.0)]
            turns.append(gains)
        if rule == "checked" and verdict.status == "keep" and could_be_noise(difference, scale, scores, champion):
            pairs = [(trial(1.0), trial(1 - gain)) for _ in range(TURNS)]
            theirs, scores = ([pair[which] for pair in pairs] for which in (0, 1))
            verdict = judge(scores, theirs, noise_scale([*groups, theirs, scores]), rule=STRICTER)
        if theirs:
            groups, stale, champion = [*groups, theirs, scores], 0, champion + theirs
        if verdict.status == "keep":
            true, false, stale = true + bool(gain), false + (not gain), 0
            champion = [score / (1 - gain) for score in scores]
    return false, true, runs


def simulate(games: int) -> None:
    print(f"| noise, drift, spikes | rule, repeats | {COLUMNS} |\n|---|---|---|---|---|---|---|")
    for machine in MACHINES:
        for rule, repeats in RULES_PLAYED:
            played = [play(seed, machine, rule, repeats) for seed in range(games)]
            false, true, runs = (statistics.fmean(column) for column in zip(*played, strict=True))
            few, many = (statistics.fmean(map(test, played)) for test in (lambda g: g[0] <= 1, lambda g: g[1] >= 19))
            cells = f"{false:.2f} | {few:.0%} | {true:.1f} | {many:.0%} | {runs:.0f}"
            print(f"| {', '.join(f'{share:.0%}' for share in machine)} | {rule}, {repeats} | {cells} |", flush=True)


# -- the real game

TASK = """---
task:
  editable: [work.py]
  score: python bench.py
  metric: seconds
  repeats: {repeats}
---
Make it faster.
"""
BENCH = """import time
import work
began = time.perf_counter()
work.count()
print(f"seconds: {time.perf_counter() - began:.6f}")
"""
WORK = """FAR = {far}


def count():
    {name} = 0
    while {name} < FAR:
        {name} += 1
"""
AGENT = """import json, re, sys
number = re.match(r"# Experiment (\\d+)", sys.stdin.read()).group(1)
name, gain = json.load(open(sys.argv[1]))[int(number) - 2]
code = open("work.py").read()
code = re.sub(r"FAR = (\\d+)", lambda far: f"FAR = {round(int(far[1]) * (1 - gain))}", code)
open("work.py", "w").write(re.sub(r"\\bnumber\\w*\\b", name, code))
print("count less far" if gain else "another name")
"""


def real(seed: int, repeats: int, seconds: float, neighbours: int) -> None:
    """Play one real game and print how it ended. seconds: that the program takes in the beginning."""
    edits = edits_of(random.Random(seed))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            repository, plan = Path(folder, "repository"), Path(folder, "plan.json")
            repository.mkdir()
            speed = 2_000_000 / timed_count(2_000_000)
            plan.write_text(json.dumps([(f"number_{place}", gain) for place, gain in enumerate(edits)]))
            texts = {"program.md": TASK.format(repeats=repeats), "bench.py": BENCH, ".gitignore": "results.tsv\n"}
            texts["work.py"] = WORK.format(far=round(speed * seconds), name="number")
            for name, text in {**texts, "../agent.py": AGENT}.items():
                (repository / name).write_text(text)
            for command in ("init -q -b main", "add -A", "-c user.name=a -c user.email=a@b commit -qm game"):
                subprocess.run(["git", *command.split()], cwd=repository, check=True)
            agent = f"{sys.executable} {folder}/agent.py {plan}"
            began = time.monotonic()
            options = f"--tag game --agent command --experiments {len(edits) + 1} --seed {seed}".split()
            subprocess.run(
                [sys.executable, ROOT / "loop.py", *options, "--agent-command", agent],
                cwd=repository,
                env={**os.environ, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "NO_COLOR": "1"},
                check=True,
                stdout=sys.stderr,
            )
            journal = (repository / ".autoresearch/game/journal.jsonl").read_text().splitlines()
            took = time.monotonic() - began
    finally:
        for process in busy:
            process.kill()
    events = [json.loads(line) for line in journal]
    verdicts = [event for event in events if event["event"] == "verdict"]
    kept = [edits[event["number"] - 2] for event in verdicts if event["status"] == "keep" and event["number"] > 1]
    baseline = [event["score"] for event in events if event["event"] == "measured" and event["number"] == 1]
    noise = statistics.stdev(baseline) / statistics.fmean(baseline)
    runs = sum(event["event"] in ("measured", "in turn") for event in events)
    print(
        f"seed {seed}, repeats: {repeats}, {neighbours} busy neighbours on {os.cpu_count()} cores; noise of the "
        f"baseline {noise:.1%}; false keeps {kept.count(0.0)} of {NOTHING}, true {kept.count(GAIN)} of {SOMETHING}; "
        f"{runs} trials in {took:.0f} s; crashes {sum(event['status'] == 'crash' for event in verdicts)}"
    )


def timed_count(far: int) -> float:
    """Seconds that counting so far takes here."""
    space: dict = {}
    exec(WORK.format(far=far, name="number"), space)
    began = time.perf_counter()
    space["count"]()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=300, help="simulated games of each cell")
    parser.add_argument("--real", action="store_true", help="play one real game instead")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="that the program takes in the beginning")
    parser.add_argument("--neighbours", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.real:
        real(options.seed, options.repeats, options.seconds, options.neighbours)
    else:
        simulate(options.games)


if __name__ == "__main__":
    main()
