"""Which setting finds more in a night? Plays nights of the real loop for each of several settings, and compares them.

    uv run bench/nights.py bench/nights/agents.yaml              # play what is missing; Ctrl-C, and again to go on
    uv run bench/nights.py bench/nights/agents.yaml --table      # only the table of what was played so far
    uv run bench/nights.py bench/nights/agents.yaml --picture    # and best-so-far curves, in agents.png beside the file

The file lists the settings. A night is a whole `loop.py` in a clone of this repository, and then `loop.py verify`: the
champion's own score is too good by chance, fresh scores of it are not. Night 7 of one setting and of another have the
same seed and are played one after the other, in an order that alternates, so that a machine that changes its speed
changes it for all. A line of agents.jsonl is a night; commit it, and others add to it.

    nights: 20                        # of each setting
    experiments: 31                   # of each night, the baseline included
    verify: 2                         # fresh runs of baseline and champion after a night; 0: none
    options: --profile test --data sotu
    settings:                         # the first is what the others are compared with
      sweep: --agent sweep
      optimize: --agent optimize
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.record.findings import findings  # noqa: E402
from autoresearch.record.ledger import Ledger  # noqa: E402

FIRST_SEED = 1000  # night 1 has the next one
RECORDING = threading.Lock()
DRAWS = 20_000  # of the bootstrap and of the test by signs


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the file says."""

    settings: dict[str, str]  # name: options of loop.py
    nights: int
    experiments: int
    options: str = ""  # of all settings
    verify: int = 0


@dataclasses.dataclass(frozen=True)
class Night:
    """How a night went. Scores are of the run's metric, lower is better."""

    setting: str
    night: int
    options: str  # of loop.py
    commit: str  # of the code that was played
    seconds: float
    curve: list[float]  # the champion's score after the baseline and after each further experiment
    verdicts: dict[str, int]  # of the experiments after the baseline, by status
    fresh: float | None  # gain of the champion over the baseline in fresh runs; None where that was not measured


def read(plan: Path) -> tuple[Plan, list[Night]]:
    """The plan and the nights so far."""
    record = plan.with_suffix(".jsonl")
    lines = record.read_text().splitlines() if record.exists() else []
    return Plan(**yaml.safe_load(plan.read_text())), [Night(**json.loads(line)) for line in lines]


def belonging(plan: Plan, played: list[Night]) -> list[Night]:
    """The nights that were played with the options that the plan has now."""
    options = {setting: f"{plan.options} {more}".strip() for setting, more in plan.settings.items()}
    return [night for night in played if options.get(night.setting) == night.options]


# ----------------------------------------------------------------------------------------------
# Play


def missing(plan: Plan, played: list[Night]) -> Iterator[tuple[str, int]]:
    """(Setting, number of the night) of what is to be played, in order."""
    done = {(night.setting, night.night) for night in belonging(plan, played)}
    for night in range(1, plan.nights + 1):
        settings = list(plan.settings)
        for setting in settings if night % 2 else reversed(settings):
            if (setting, night) not in done:
                yield setting, night


def code(work: Path) -> Path:
    """A clone that stays as it is for all nights: the loop stops where its own code changes."""
    return clone(ROOT, work / "code")


def shares(workers: int) -> queue.SimpleQueue[list[int]]:
    """The cores of this process in equal parts: a night keeps to one, and takes nothing from the night beside it."""
    cores, parts = sorted(os.sched_getaffinity(0)), queue.SimpleQueue()
    if workers > len(cores):
        raise SystemExit(f"--workers {workers}: each needs a core of its own; this machine has {len(cores)}")
    for worker in range(workers):
        parts.put(cores[worker::workers][: len(cores) // workers])
    return parts


def take(parts: queue.SimpleQueue[list[int]]) -> None:
    """Keep this thread, and what it starts, to one part of the cores."""
    os.sched_setaffinity(0, parts.get())


def clone(source: Path, folder: Path) -> Path:
    """A clone of a repository, whole or not there."""
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", str(source), str(part)], check=True)
        part.rename(folder)
    return folder


def play(plan: Plan, setting: str, night: int, work: Path, record: Path) -> Night:
    """One night, or the rest of one that was interrupted; into the record."""
    folder, options = clone(work / "code", work / f"{setting}-{night}"), f"{plan.options} {plan.settings[setting]}"
    began = time.monotonic()
    loop(folder, "--experiments", plan.experiments, "--seed", FIRST_SEED + night, *shlex.split(options))
    ledger = Ledger(folder / ".autoresearch/night")
    if ledger.account.stopped_because.startswith("you asked"):
        raise KeyboardInterrupt
    fresh = 0.0 if plan.verify and len(ledger.kept) == 1 else None  # the champion is the baseline
    if plan.verify and fresh is None:
        loop(folder, "verify", "--runs", plan.verify)
        ledger.catch_up()
        found = findings(ledger, True, 0.0)
        fresh = found.gain.gain if found and found.gain else None
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    ended = Night(
        setting,
        night,
        options.strip(),
        commit.stdout.strip()[:12],
        round(time.monotonic() - began),
        list(champions(ledger)),
        dict(collections.Counter(str(attempt.status) for attempt in ledger.tried)),
        fresh and round(fresh, 6),
    )
    with RECORDING, record.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(ended)) + "\n")
    shutil.rmtree(folder)
    return ended


def loop(folder: Path, *arguments: object) -> None:
    """A command of the loop in the folder's run. Raises SystemExit with what it said where it fails."""
    command = [sys.executable, "loop.py", *map(str, arguments), "--tag", "night", "--plain"]
    said = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if said.returncode:
        raise SystemExit(f"{shlex.join(command)} in {folder} failed:\n{said.stdout[-2000:]}")


def champions(ledger: Ledger) -> Iterator[float]:
    """The champion's score, as it was at its verdict, after the baseline and after each further experiment."""
    score = None
    for attempt in (ledger.kept[0], *ledger.tried):
        score = attempt.score if attempt.status == "keep" else score
        assert score is not None
        yield round(score, 6)


# ----------------------------------------------------------------------------------------------
# Compare


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean of differences of pairs: its 95% interval (bootstrap over pairs), and how likely signs by chance give
    as much (two-sided; Fisher's test of random signs).
    """

    mean: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, differences: np.ndarray) -> "Difference":
        random, count = np.random.default_rng(0), len(differences)
        means = differences[random.integers(0, count, (DRAWS, count))].mean(1)
        turned = (differences * random.choice([-1.0, 1.0], (DRAWS, count))).mean(1)
        as_far = abs(turned) >= abs(differences.mean()) - 1e-12
        low, high = np.quantile(means, [0.025, 0.975])
        return cls(float(differences.mean()), float(low), float(high), float(as_far.sum() + 1) / (DRAWS + 1))

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f}), p = {self.p:.2g}"


def curves(plan: Plan, nights: list[Night]) -> dict[str, dict[int, np.ndarray]]:
    """By setting and night: gain over the baseline after 0, 1, ... further experiments; the last one where they end."""
    found: dict[str, dict[int, np.ndarray]] = {setting: {} for setting in plan.settings}
    for night in nights:
        if night.setting in found:
            curve = (night.curve + [night.curve[-1]] * plan.experiments)[: plan.experiments]
            found[night.setting][night.night] = night.curve[0] - np.array(curve)
    return found


def paired(mine: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """Of the nights that both have."""
    both = sorted(mine.keys() & others.keys())
    return Difference.of(np.array([mine[night] - others[night] for night in both])) if len(both) > 1 else None


def table(plan: Plan, nights: list[Night]) -> Iterator[str]:
    """Lines of Markdown, one for each setting, beside the first."""
    first = next(iter(plan.settings))
    marks = [mark for mark in (10, 30, 100) if mark < plan.experiments]
    gains = curves(plan, nights)
    fresh = {s: {n.night: n.fresh for n in nights if n.setting == s and n.fresh is not None} for s in plan.settings}
    at = "".join(f"| gain after {mark} | more than {first} " for mark in marks)
    yield f"| setting | nights | kept {at}| fresh gain | more than {first} |"
    yield "|---" * (5 + 2 * len(marks)) + "|"
    for setting in plan.settings:
        mine = [night for night in nights if night.setting == setting]
        if not mine:
            continue
        cells = [setting, str(len(mine)), f"{mean(night.verdicts.get('keep', 0) for night in mine):.1f}"]
        for mark in marks:
            reached = {s: {night: float(curve[mark]) for night, curve in gains[s].items()} for s in (setting, first)}
            cells += [f"{mean(reached[setting].values()):.4f}", said(setting, reached[setting], reached[first], first)]
        cells.append(f"{mean(fresh[setting].values()):.4f}" if fresh[setting] else "")
        cells.append(said(setting, fresh[setting], fresh[first], first))
        yield f"| {' | '.join(cells)} |"


def said(setting: str, mine: Mapping[int, float], others: Mapping[int, float], first: str) -> str:
    return "" if setting == first else str(paired(mine, others) or "too few nights")


def draw(plan: Plan, nights: list[Night], path: Path) -> None:
    """Best-so-far curves: means over nights, with their 95% intervals."""
    import matplotlib.figure
    import matplotlib.ticker

    figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained", dpi=130)
    axes = figure.subplots()
    random = np.random.default_rng(0)
    for setting, of_nights in curves(plan, nights).items():
        if not of_nights:
            continue
        gains = np.array(list(of_nights.values()))
        means = gains[random.integers(0, len(gains), (2000, len(gains)))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
        (line,) = axes.step(range(plan.experiments), gains.mean(0), where="post", label=f"{setting} ({len(gains)})")
        axes.fill_between(range(plan.experiments), low, high, step="post", alpha=0.2, color=line.get_color())
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.set_xlabel("experiments after the baseline")
    axes.set_ylabel("gain over the baseline, mean of the nights")
    axes.set_title(f"{path.stem}: {plan.options}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--table", action="store_true", help="play nothing")
    parser.add_argument("--picture", action="store_true", help="play nothing; draw the curves")
    parser.add_argument("--workers", type=int, default=1, help="nights at a time, each on its share of the cores")
    arguments = parser.parse_args()
    plan, played = read(arguments.plan)
    work = ROOT / ".autoresearch/nights" / arguments.plan.stem
    to_play = [] if arguments.table or arguments.picture else list(missing(plan, played))
    parts = shares(arguments.workers)
    with concurrent.futures.ThreadPoolExecutor(arguments.workers, initializer=take, initargs=(parts,)) as pool:
        if to_play:
            code(work)
        record = arguments.plan.with_suffix(".jsonl")
        playing = [pool.submit(play, plan, setting, night, work, record) for setting, night in to_play]
        try:
            for ended in concurrent.futures.as_completed(playing):
                night = ended.result()
                gain = night.curve[0] - night.curve[-1]
                fresh = "" if night.fresh is None else f", {night.fresh:+.4f} in fresh runs"
                print(f"{night.setting} {night.night}: {gain:+.4f}{fresh} in {night.seconds:.0f} s", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    plan, played = read(arguments.plan)
    played = belonging(plan, played)
    print(*table(plan, played), sep="\n")
    if arguments.picture:
        draw(plan, played, arguments.plan.with_suffix(".png"))


if __name__ == "__main__":
    main()
