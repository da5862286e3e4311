"""How much of a trial is not training, and where it goes.

    uv run bench/loop_overhead.py                       # three sweep trials on the cpu profile, in a clone of this repository
    uv run bench/loop_overhead.py --run .autoresearch/TAG       # the trials of a run that was made before

Every figure comes from the run's own record: the journal's times and each trial's figures.json,
where prepare.py notes when the process had imported, built, started the clock, finished and saved.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("preflight", "import", "build", "warm-up", "save", "exit", "score", "holdout", "rest", "git and record")
MEANING = {
    "preflight": "an edit is built and run once before it costs a trial; the baseline is not",
    "import": "process start until torch and prepare.py are imported",
    "build": "until the model and its optimizers are made",
    "warm-up": "until the clock starts",
    "save": "from the end of training until the weights are on disk",
    "exit": "until the training process has ended",
    "score": "until val_bpb is known, probes included; the scorer imported torch while the training did",
    "holdout": "of what is kept only: import, holdout score, every row probed",
    "rest": "checking out the attempt, starting processes, reading figures",
    "git and record": "verdict, keep or reset, proposal, stage, commit",
}


def make_run(experiments: int, profile: str, folder: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    command = [sys.executable, "loop.py", "--plain", "--tag", "bench", "--profile", profile, "--data", "sotu", "--agent", "sweep",
               "--experiments", str(experiments)]
    subprocess.run(command, cwd=folder, check=True)
    return folder / ".autoresearch/bench"


def measure(run: Path) -> list[dict[str, float]]:
    """Seconds of every part, one entry a trial that was trained and scored; the first lacks what precedes it."""
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    trials, previous = [], None
    rehearsed = {event["number"]: event["preflight"] for event in events if event.get("preflight")}
    for event in events:
        if event["event"] in ("run", "stop", "interrupted"):
            previous = None                 # time between two calls of the loop is nobody's overhead
        if event["event"] != "verdict":
            continue
        figures_file = run / f"trials/{event['number']}/run/figures.json"
        if event["status"] != "crash" and figures_file.exists():
            line, seconds = json.loads(figures_file.read_text())["timeline"], event["seconds"]
            trial = {
                "import": line["imported"],
                "build": line["built"] - line["imported"],
                "warm-up": line["clock"] - line["built"],
                "training": line["finished"] - line["clock"],
                "save": line["saved"] - line["finished"],
                "exit": seconds["train"] - line["saved"],
                "score": seconds["score"],
                "rest": seconds["wall"] - seconds["train"] - seconds["score"] - seconds.get("holdout", 0.0),
            }
            if event["number"] in rehearsed:
                trial["preflight"] = rehearsed[event["number"]]
            if "holdout" in seconds:
                trial["holdout"] = seconds["holdout"]
            if previous is not None:
                trial["whole"] = event["time"] - previous
                trial["git and record"] = trial["whole"] - seconds["wall"] - trial.get("preflight", 0.0)
                trial["outside training"] = trial["whole"] - trial["training"]
            trials.append(trial)
        previous = event["time"]
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--experiments", type=int, default=4)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--run", type=Path, help="folder of a run made before, .autoresearch/TAG")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        trials = measure(arguments.run or make_run(arguments.experiments, arguments.profile, Path(temporary) / "clone"))
    if not any("whole" in trial for trial in trials):
        sys.exit("error: the run has no two trials with a score, one after the other")
    print(f"\n{'seconds a trial':<18}{'median':>8}{'least':>8}{'most':>8}")
    for part in (*PARTS, "outside training", "training", "whole"):
        values = [trial[part] for trial in trials if part in trial]
        print(f"{part:<18}{statistics.median(values):8.2f}{min(values):8.2f}{max(values):8.2f}  {MEANING.get(part, '')}")
    print(f"\n{len(trials)} trials")


if __name__ == "__main__":
    main()
