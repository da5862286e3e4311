"""What a night of each agent gives. Every agent has to beat the curve of the control, `sweep`.

    uv run bench/agents.py                              # 30 trials of `sweep` on this machine's profile: half an hour
    uv run bench/agents.py --runs .autoresearch/TAG ... # nights that were made before, beside each other

Prints for each night the best score after each trial, the keep rate, the gain of each kept edit, and what the proposals
cost. Nights compare only on one profile, one data set and one machine, with the same keep rule.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.record.ledger import Attempt, Ledger  # noqa: E402
from autoresearch.task import Facts  # noqa: E402

SHOWN = (0, 5, 10, 15, 20, 25, 30, 50, 75, 100)  # trials after which the best score is printed


def make_night(agent: str, trials: int, profile: str | None, seed: int, folder: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    command = [
        sys.executable,
        "loop.py",
        "--plain",
        "--tag",
        "bench",
        "--data",
        "sotu",
        "--agent",
        agent,
        "--experiments",
        str(trials + 1),
        "--seed",
        str(seed),
        *(("--profile", profile) if profile else ()),
    ]
    subprocess.run(command, cwd=folder, check=True)
    return folder / ".autoresearch/bench"


def best_so_far(attempts: list[Attempt]) -> list[float]:
    """The champion's score after each trial, as the judge saw it."""
    best, scores = attempts[0].score, []
    for attempt in attempts:
        best = attempt.score if attempt.status == "keep" else best
        scores.append(best)
    return scores


def describe(run: Path) -> None:
    ledger = Ledger(run)
    tried, game = ledger.tried, ledger.facts or Facts()
    sign = 1 if ledger.task.lower_is_better else -1
    agents = ", ".join(dict.fromkeys(attempt.agent for attempt in tried)) or "nobody"
    scores = best_so_far([ledger.kept[0], *tried])
    kept = [attempt for attempt in tried if attempt.status == "keep"]
    crashed = sum(attempt.status == "crash" for attempt in tried)
    print(f"\n{agents}: {len(tried)} trials, profile {game.profile}, data {game.data}, seed {game.seed}, {game.device}")
    print("  best after   " + "  ".join(f"{number}: {scores[number]:.6f}" for number in SHOWN if number < len(scores)))
    print(f"  gain         {sign * (scores[0] - scores[-1]):.6f} (noise of one score {ledger.noise():.6f})")
    print(f"  kept         {len(kept)} of {len(tried)} ({len(kept) / max(1, len(tried)):.0%}), {crashed} crashed")
    for attempt in kept:
        print(f"    {attempt.number:>3}  {sign * (attempt.standing - attempt.score):+.6f}  {attempt.description}")
    minutes = sum(attempt.seconds.get("wall", 0) for attempt in tried) / 60
    print(f"  took         {minutes:.0f} minutes, {ledger.spent.words()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", help="folders of nights that were made before")
    parser.add_argument("--agent", default="sweep", help="as for loop.py")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--profile", help="default: this machine's")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    if arguments.runs:
        for run in arguments.runs:
            if not (run / "journal.jsonl").exists():
                parser.error(f"{run} holds no journal.jsonl; name folders such as .autoresearch/TAG")
            describe(run)
        return
    with tempfile.TemporaryDirectory() as folder:
        describe(
            make_night(arguments.agent, arguments.trials, arguments.profile, arguments.seed, Path(folder) / "clone")
        )


if __name__ == "__main__":
    main()
