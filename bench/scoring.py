"""What the referee's score with its probes costs over the plain score of the same weights in one process.

    uv run bench/scoring.py                     # the shipped train.py, cpu profile, sotu; trains for a minute first
    uv run bench/scoring.py --profile gpu       # the same on a GPU

Both start with torch imported; each is measured three times, in turn, in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SCORE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch, prepare
from autoresearch.referee import score as referee
score = prepare.score if sys.argv[2] == "plain" else referee.score
result = score(prepare.GAME)
print(json.dumps({"score": result["val_bpb"], "seconds": result["score_seconds"]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--data", default="sotu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "AUTORESEARCH_PROFILE": arguments.profile,
            "AUTORESEARCH_DATA": arguments.data,
            "AUTORESEARCH_RUN_DIR": folder,
        }
        for script in ("prepare.py", "train.py"):
            subprocess.run([sys.executable, ROOT / script], env=environment, check=True)
        results = {"plain": [], "probed": []}
        for _ in range(3):
            for name in results:
                words = [sys.executable, "-c", SCORE, ROOT, name]
                answer = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                results[name].append(json.loads(answer.stdout))
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        took = f"{statistics.median(seconds):7.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"{name:<8}{took}   val_bpb {runs[0]['score']:.6f}")
    median = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()}
    print(f"two processes and the probes add {median['probed'] - median['plain']:.2f} s")


if __name__ == "__main__":
    main()
