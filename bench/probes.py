"""How often the probes catch a model that looks ahead or learns while it is scored, and how often an honest one.

    uv run bench/probes.py                            # 4 seeds, 3 scorings of each checkpoint; test profile
    uv run bench/probes.py --seeds 1 --scorings 1     # fewer

Every variant of tests/small_train.py is trained for 150 steps with each seed, and then scored by the real scorer with
its random cuts, each time anew. The first is the honest baseline, whose losses the others are compared with. The
attacks of tests/gaming/score, whose author knows the probes, are scored with its weights.
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--scorings", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="names of variants; default: all")
    asked = parser.parse_args()
    honest = chosen(sorted((ROOT / "tests/honest").glob("*.py")), asked.only)
    others = (ROOT / f"bench/{name}.py" for name in ("expert_choice", "smallest_leak"))
    leaks = chosen([*sorted((ROOT / "tests/gaming/models").glob("*.py")), *others], asked.only)
    adaptive = chosen(sorted((ROOT / "tests/gaming/score").glob("*.py")), asked.only)
    baseline = ROOT / "tests/honest/plain.py"
    honest.remove(baseline)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "AUTORESEARCH_PROFILE": "test", "AUTORESEARCH_CACHE": folder}
        subprocess.run([sys.executable, ROOT / "prepare.py"], env=environment, check=True)
        scored = collections.defaultdict(list)
        command = [sys.executable, ROOT / "tests/games.py", f"{folder}/runs", str(asked.steps), str(asked.seeds)]
        command += [baseline, *honest, *leaks, "--borrow", *adaptive, "--scorings", str(asked.scorings)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as games:
            for line in games.stdout:
                entry = json.loads(line)
                if "failed" in entry:
                    sys.exit(f"error: {entry}")
                scored[entry["name"]].append(entry)
                if entry["score"] is None and entry["name"] in {path.stem for path in (baseline, *honest)}:
                    print(f"false alarm: {entry['name']}, seed {entry['seed']}: {entry['reason']}", flush=True)
    kinds = ("honest", [baseline, *honest]), ("looking ahead or learning", leaks), ("by who knows the probes", adaptive)
    for kind, files in kinds:
        names = [path.stem for path in files]
        entries = [entry for name in names for entry in scored[name]]
        caught = sum(entry["score"] is None for entry in entries)
        print(f"\n{kind}: {caught} of {len(entries)} caught, 95% interval {interval(caught, len(entries))}")
        for name in names:
            none = [entry["reason"].partition(":")[0] for entry in scored[name] if entry["score"] is None]
            print(f"  {name:<28}{len(none):>4} of {len(scored[name])}  {'; '.join(sorted(set(none)))}")
    passed = [entry for path in (baseline, *honest) for entry in scored[path.stem] if entry["score"] is not None]
    worst = max(abs(entry["score"] - entry["plain"]) for entry in passed)
    print(f"\nlargest difference between a score and a plain evaluation of the same weights: {worst:.1e} bits a byte")
    gaps = [entry["gap"] / entry["error"] for entry in passed if entry["error"] and entry["name"] != baseline.stem]
    errors = [entry["error"] / entry["score"] for entry in passed if entry["name"] != baseline.stem]
    if len(gaps) > 1:
        print(
            f"unseen tokens of honest models: {statistics.mean(gaps):+.2f} standard errors harder on average, "
            f"deviation {statistics.stdev(gaps):.2f}, at most {max(gaps):.2f}; one is {statistics.median(errors):.1%} "
            "of the score"
        )


def chosen(paths: list[Path], only: list[str]) -> list[Path]:
    """Those of the files that were asked for, and always the baseline."""
    files = [path for path in paths if not path.stem.startswith("test_")]
    return [path for path in files if not only or path.stem in (*only, "plain")]


def interval(caught: int, scored: int) -> str:
    """The exact interval of a share (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, caught, scored - caught + 1)) if caught else 0.0
    high = float(beta.ppf(0.975, caught + 1, scored - caught)) if caught < scored else 1.0
    return f"{low:.1%} to {high:.1%}"


if __name__ == "__main__":
    main()
