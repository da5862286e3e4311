"""What the two-process score with its probes costs over a plain evaluation of the same weights in one process.

    uv run bench/scoring.py                     # the shipped train.py on the cpu profile, sotu; trains for a minute first
    uv run bench/scoring.py --profile gpu       # the same on a GPU

Plain: build the model, load the weights, score every row in batches of the scorer's size. Both start with torch imported; each
is measured three times, in turn, in a process of its own.
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

PLAIN = """
import json, math, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np, torch, prepare
from pathlib import Path
began = time.perf_counter()
figures = prepare.read_figures()
model = prepare.load_model(Path(figures["train_py"]), figures["device"])
token_bytes = torch.from_numpy(np.load(prepare.cache_folder() / "token_bytes.npy")).to(figures["device"])
rows, size = prepare.open_rows("val"), max(1, prepare.LOGITS_BYTES // (4 * prepare.VOCAB_SIZE * prepare.MAX_SEQ_LEN))
nats = counted = 0.0
with torch.inference_mode():
    for first in range(0, len(rows), size):
        batch = torch.from_numpy(rows[first:first + size].astype(np.int64)).to(figures["device"])
        targets = batch[:, 1:].flatten()
        losses = torch.nn.functional.cross_entropy(model(batch[:, :-1]).float().flatten(0, 1), targets, reduction="none")
        nats += (losses * (token_bytes[targets] > 0)).sum(dtype=torch.float64).item()
        counted += token_bytes[targets].sum().item()
print(json.dumps({"score": nats / math.log(2) / counted, "seconds": time.perf_counter() - began}))
"""
PROBED = """
import json, sys
sys.path.insert(0, sys.argv[1])
import prepare
result = prepare.score()
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
            for name, code in (("plain", PLAIN), ("probed", PROBED)):
                answer = subprocess.run(
                    [sys.executable, "-c", code, ROOT], env=environment, check=True, stdout=subprocess.PIPE, text=True
                )
                results[name].append(json.loads(answer.stdout))
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        print(
            f"{name:<8}{statistics.median(seconds):7.2f} s ({min(seconds):.2f} to {max(seconds):.2f})   val_bpb {runs[0]['score']:.6f}"
        )
    added = statistics.median(run["seconds"] for run in results["probed"]) - statistics.median(
        run["seconds"] for run in results["plain"]
    )
    print(f"two processes and the probes add {added:.2f} s")


if __name__ == "__main__":
    main()
