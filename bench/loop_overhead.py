"""How much of a trial is not training, and where it goes; how much of a night is training; what the loop needs itself.

    uv run bench/loop_overhead.py               # three sweep trials on the cpu profile, in a clone of this repository
    uv run bench/loop_overhead.py --run .autoresearch/TAG   # the trials of a run that was made before
    uv run bench/loop_overhead.py --night       # a toy, 20 times as fast: trials of 300 s, an agent that takes 60 s
    uv run bench/loop_overhead.py --long 2000   # a toy whose trials take almost no time: what the loop itself needs

Every figure comes from the run's own record: the journal's times and each trial's figures.json,
where prepare.py notes when the process had imported, built, started the clock, finished and saved.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
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
    command = [
        sys.executable,
        "loop.py",
        "--plain",
        "--tag",
        "bench",
        "--profile",
        profile,
        "--data",
        "sotu",
        "--agent",
        "sweep",
        "--experiments",
        str(experiments),
    ]
    subprocess.run(command, cwd=folder, check=True)
    return folder / ".autoresearch/bench"


def measure(run: Path) -> list[dict[str, float]]:
    """Seconds of every part, one entry a trial that was trained and scored; the first lacks what precedes it."""
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    trials, previous = [], None
    rehearsed = {event["number"]: event["preflight"] for event in events if event.get("preflight")}
    for event in events:
        if event["event"] in ("run", "stop", "interrupted"):
            previous = None  # time between two calls of the loop is nobody's overhead
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


# ----------------------------------------------------------------------------------------------
# The loop on a toy

TOY = {
    "program.md": "---\ntask:\n  editable: [value.txt]\n  train: sh train.sh\n  metric: score\n"
    "  direction: maximize\n---\nRaise it.\n",
    "value.txt": "0\n",
    "train.sh": "sleep {training}\necho score: $(cat value.txt)\n",
    # For experiment n another value below one, the same for no two; now and then the best so far.
    "agent.sh": "n=$(head -1 | tr -dc 0-9)\ncat > /dev/null\nsleep {thinking}\n"
    "echo 0.$((n * 7919 % 10007 + 10000)) > value.txt\necho description: try $n\n",
}


def start_toy(folder: Path, training: float, thinking: float, experiments: int, *arguments: str) -> subprocess.Popen:
    folder.mkdir(parents=True)
    for name, text in TOY.items():
        (folder / name).write_text(text.format(training=training, thinking=thinking) if name.endswith(".sh") else text)
    for words in (
        ("init", "-q"),
        ("add", "-A"),
        ("-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-qm", "toy"),
        ("config", "user.name", "bench"),
        ("config", "user.email", "bench@localhost"),
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "loop.py"),
            "--plain",
            "--tag",
            "bench",
            "--agent",
            "command",
            "--agent-command",
            "sh agent.sh",
            "--experiments",
            str(experiments),
            "--baseline-runs",
            "1",
            *arguments,
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )


def night(scale: float, experiments: int, folder: Path) -> None:
    """Training as a share of wall clock, with a proposal ahead and without, side by side: both only sleep."""
    nights = {
        lookahead: start_toy(
            folder / str(lookahead), 300 / scale, 60 / scale, experiments, "--lookahead", str(lookahead)
        )
        for lookahead in (1, 0)
    }
    print(f"{experiments} trials of {300 / scale:g} s, an agent that takes {60 / scale:g} s")
    for lookahead, process in nights.items():
        process.wait()
        state = json.loads(
            subprocess.run(
                [sys.executable, str(ROOT / "loop.py"), "status", "--json"],
                cwd=folder / str(lookahead),
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in state["seconds"].items() if seconds >= 0.05)
        share = state["seconds"]["training"] / state["wall"]
        print(f"  lookahead {lookahead}: training is {share:.1%} of {state['wall']:.0f} s ({parts})")


def memory_of(process: int) -> float:
    """Resident MB of a process."""
    with open(f"/proc/{process}/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def long_run(experiments: int, folder: Path) -> None:
    """Memory of the loop, and time a trial that is neither the trial's command nor the agent's."""
    process = start_toy(folder, 0, 0, experiments)
    journal, memory = folder / ".autoresearch/bench/journal.jsonl", {}
    while process.poll() is None:
        done = journal.read_text().count('"event": "verdict"') if journal.exists() else 0
        try:
            memory[done] = memory_of(process.pid)
        except (OSError, StopIteration):
            break  # it has just ended
        time.sleep(2)
    process.wait()
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    verdicts = [event for event in events if event["event"] == "verdict"]
    own = [after["time"] - before["time"] - after["seconds"]["train"] for before, after in itertools.pairwise(verdicts)]
    wall, kept = events[-1]["time"] - events[0]["time"], sum(event["status"] == "keep" for event in verdicts)
    print(f"{len(verdicts)} trials in {wall:.0f} s, {kept} kept, exit code {process.returncode}")
    part = max(1, len(own) // 20)
    first, last = statistics.median(own[:part]), statistics.median(own[-part:])
    print(
        "  seconds a trial besides its command, the agent's process included: "
        f"{first:.3f} in the first {part}, {last:.3f} in the last {part} (medians)"
    )
    early = next((size for done, size in sorted(memory.items()) if done >= experiments / 20), 0.0)
    end, most = memory[max(memory)], max(memory.values())
    print(
        f"  memory of the loop: {early:.0f} MB after a twentieth of the trials, {end:.0f} MB at the end, "
        f"{most:.0f} MB at most"
    )
    journal_size, results_size = journal.stat().st_size, (folder / "results.tsv").stat().st_size
    print(f"  journal {journal_size / 1e6:.1f} MB, results.tsv {results_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--experiments", type=int, default=4)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--run", type=Path, help="folder of a run made before, .autoresearch/TAG")
    parser.add_argument("--night", action="store_true", help="the idle time of a night, on a toy")
    parser.add_argument(
        "--scale", type=float, default=20.0, help="how much faster than a real one that night is (default: %(default)g)"
    )
    parser.add_argument(
        "--long", type=int, metavar="TRIALS", help="the loop's own memory and time over many trials, on a toy"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.night:
            return night(arguments.scale, 12, Path(temporary))
        if arguments.long:
            return long_run(arguments.long, Path(temporary) / "toy")
        trials = measure(arguments.run or make_run(arguments.experiments, arguments.profile, Path(temporary) / "clone"))
    if not any("whole" in trial for trial in trials):
        sys.exit("error: the run has no two trials with a score, one after the other")
    print(f"\n{'seconds a trial':<18}{'median':>8}{'least':>8}{'most':>8}")
    for part in (*PARTS, "outside training", "training", "whole"):
        values = [trial[part] for trial in trials if part in trial]
        print(
            f"{part:<18}{statistics.median(values):8.2f}{min(values):8.2f}{max(values):8.2f}  {MEANING.get(part, '')}"
        )
    print(f"\n{len(trials)} trials")


if __name__ == "__main__":
    main()
