"""What keeps false gains out of a game with noisy scores, and costs no true ones? Simulated, with the loop's own judge.

    uv run bench/in_turn.py                  # the table of bench/RESULTS.md: 300 games for each cell, half a minute

A game times a program. 60 edits change nothing and 20 gain 15%, in random order; after each true keep the next edit is
compared with that code again as if it took one second. A run's time has normal noise, a drift that lasts some 50 runs
(a fifth of the noise a step) and now and then a spike upwards (exponential, three times the noise on average), as with
a neighbour who loads a core. The loop learns its noise from the baseline's runs and from all that ran in turn.
"""

import argparse
import dataclasses
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from autoresearch.judge import RULES, TURN_MARGIN, TURNS, could_be_noise, judge, mean, noise_scale

NOISES = ((0.01, 0.05), (0.03, 0.05), (0.05, 0.1), (0.08, 0.1))  # of a run, and how often there is a spike
NOTHING, SOMETHING, GAIN = 60, 20, 0.15
STRICTER = dataclasses.replace(RULES["margin"], margin=TURN_MARGIN, slack=0.0)


def play(seed: int, noise: float, spikes: float, in_turn: bool, baseline_runs: int) -> tuple[int, int, int]:
    """(False keeps, true keeps, runs) of a game."""
    draw, drift = random.Random(seed), 0.0

    def run(value: float) -> float:
        nonlocal drift
        drift = 0.98 * drift + draw.gauss(0, noise / 5)
        spike = 1 + draw.expovariate(1 / (3 * noise)) if draw.random() < spikes else 1
        return value * (1 + drift + draw.gauss(0, noise)) * spike

    edits = [0.0] * NOTHING + [GAIN] * SOMETHING
    draw.shuffle(edits)
    champion = [run(1.0) for _ in range(baseline_runs)]
    groups, false, true, runs = [list(champion)], 0, 0, baseline_runs
    for gain in edits:
        scores, runs = [run(1 - gain)], runs + 1
        scale = noise_scale(groups)
        kept = judge(scores, champion, scale).status == "keep"
        if kept and in_turn and could_be_noise(mean(champion) - scores[0], scale, scores, champion):
            pairs = [(run(1.0), run(1 - gain)) for _ in range(TURNS)]
            theirs, scores = ([pair[which] for pair in pairs] for which in (0, 1))
            groups, runs = [*groups, theirs, scores], runs + 2 * TURNS
            kept = judge(scores, theirs, noise_scale(groups), rule=STRICTER).status == "keep"
            champion = champion if kept else champion + theirs
        if kept:
            true, false = true + bool(gain), false + (not gain)
            champion = [score / (1 - gain) for score in scores]
    return false, true, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=300)
    games = parser.parse_args().games
    print("| noise, spikes | rule | false of 60 | at most 1 false | true of 20 | at least 19 true | runs |")
    print("|---|---|---|---|---|---|---|")
    for noise, spikes in NOISES:
        for name, in_turn, baseline_runs in (("margin alone", False, 2), ("in turn", True, 2), ("in turn", True, 5)):
            played = [play(seed, noise, spikes, in_turn, baseline_runs) for seed in range(games)]
            false, true, runs = (statistics.fmean(column) for column in zip(*played, strict=True))
            few, many = (statistics.fmean(map(test, played)) for test in (lambda g: g[0] <= 1, lambda g: g[1] >= 19))
            rule = f"{name}, {baseline_runs} baseline runs"
            cells = f"{false:.2f} | {few:.0%} | {true:.1f} | {many:.0%} | {runs:.0f}"
            print(f"| {noise:.0%}, {spikes:.0%} | {rule} | {cells} |")


if __name__ == "__main__":
    main()
