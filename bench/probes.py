"""How often the probes catch a model that looks ahead or learns while it is scored, and how often an honest one.

    uv run bench/probes.py                  # 10 seeds of every honest model and of every leak; test profile, 15 minutes
    uv run bench/probes.py --seeds 2        # fewer

Every variant of tests/small_train.py is trained for 150 steps with each seed, and then scored by the real scorer
with its random cuts.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    honest = sorted(path for path in (ROOT / "tests/honest").glob("*.py") if not path.stem.startswith("test_"))
    cheating = [*sorted((ROOT / "tests/gaming").glob("lea*.py")), ROOT / "bench/smallest_leak.py"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "AUTORESEARCH_PROFILE": "test", "AUTORESEARCH_CACHE": folder}
        subprocess.run([sys.executable, ROOT / "prepare.py"], env=environment, check=True)
        command = [
            sys.executable,
            ROOT / "tests/games.py",
            f"{folder}/runs",
            str(arguments.steps),
            str(arguments.seeds),
            *honest,
            *cheating,
        ]
        caught, scored, worst = collections.Counter(), collections.Counter(), 0.0
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as games:
            for line in games.stdout:
                entry = json.loads(line)
                if "failed" in entry:
                    sys.exit(f"error: {entry}")
                scored[entry["name"]] += 1
                caught[entry["name"]] += entry["score"] is None
                if entry["score"] is None and entry["name"] in {path.stem for path in honest}:
                    print(f"false alarm: {entry['name']}, seed {entry['seed']}: {entry['reason']}", flush=True)
                elif entry["score"] is not None:
                    worst = max(worst, abs(entry["score"] - entry["plain"]))
    for kind, files in (("honest", honest), ("looking ahead or learning", cheating)):
        names = [path.stem for path in files]
        print(f"\n{kind}: {sum(caught[name] for name in names)} of {sum(scored[name] for name in names)} caught")
        for name in names:
            print(f"  {name:<28}{caught[name]:>4} of {scored[name]}")
    print(f"\nlargest difference between a score and a plain evaluation of the same weights: {worst:.1e} bits a byte")


if __name__ == "__main__":
    main()
