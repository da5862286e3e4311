"""Which finds more without a model, `sweep` or `optimize`? The real agents, in nights of a game that costs nothing.

    uv run bench/optimize.py                    # 40 nights each, of 100 trials: some minutes
    uv run bench/optimize.py --nights 200

A night edits a file of 24 constants. The loss is a sum of squares around a hidden optimum, in logarithms, turned so
that constants depend on each other a little; most constants matter hardly at all. Scores have noise, and the keep rule
is the loop's. In a second game the whole numbers, a quarter of the constants, matter more and are further from their
optimum, as sizes were in real nights. Printed: what was gained of what could be, and how much more than `sweep`, the
same nights compared. What it says of a real train.py is little: there nobody knows how the constants act together.
"""

import argparse
import asyncio
import math
import sys
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.agents import NothingLeft  # noqa: E402
from autoresearch.agents.optimize import Optimize, distance  # noqa: E402
from autoresearch.agents.sweep import Sweep  # noqa: E402
from autoresearch.brief import Brief  # noqa: E402
from autoresearch.constants import change, read_code  # noqa: E402
from autoresearch.judge import RULES, margin  # noqa: E402
from autoresearch.record.ledger import Attempt  # noqa: E402
from autoresearch.task import Facts, Task, edit_hash  # noqa: E402
from autoresearch.tried import Tried  # noqa: E402

CONSTANTS = 24
NOISE = 0.0035  # of one score, as on the `cpu` profile
TRIALS = 100
FIRST = 1000  # seed of the first night; the agent's settings were chosen on seeds below 100
SHOWN = (10, 30, 60, 100)
TASK = Task(editable=("a.py",), train="true", metric="loss", direction="minimize")
AGENTS = {"sweep": Sweep, "optimize": Optimize}


class Night:
    """A hidden optimum, the same for the same seed, and the noise that scores have."""

    def __init__(self, seed: int, sizes: bool) -> None:
        """sizes: whole numbers matter more."""
        self.random = np.random.default_rng(seed)
        far = self.random.normal(0, 0.6, CONSTANTS) * (self.random.random(CONSTANTS) < 0.6)  # in doublings
        self.optimum, self.weights = far, np.exp(self.random.normal(math.log(0.0075), 1.2, CONSTANTS))
        if sizes:
            whole = np.arange(CONSTANTS) % 4 == 1
            self.weights = self.weights * np.where(whole, 3.0, 1.0)
            self.optimum = np.where(whole, self.random.normal(0, 1.5, CONSTANTS), self.optimum)
        turned = np.eye(CONSTANTS) + 0.15 * self.random.normal(0, 1, (CONSTANTS, CONSTANTS))
        self.turn, _ = np.linalg.qr(turned)
        self.start = {f"C{i:02}": [0.02, 128, 0.95, 3.0][i % 4] for i in range(CONSTANTS)}

    def loss(self, values: dict) -> float:
        place = [distance(self.start[name], values[name]) for name in self.start]
        return 1.0 + float(self.weights @ (self.turn @ (np.array(place) - self.optimum)) ** 2)

    def score(self, values: dict) -> float:
        return self.loss(values) + self.random.normal(0, NOISE)


def play(night: Night, agent: Sweep | Optimize, folder: Path) -> list[float]:
    """The champion's true loss after each trial."""
    file = folder / "a.py"
    source = "".join(f"{name} = {value}\n" for name, value in night.start.items()).encode()
    score = mean(night.score(night.start) for _ in range(2))
    champion = Attempt(1, "1", "1", "baseline", "loop", edit_hash({"a.py": source}), "keep", score, standing_runs=2)
    attempts, losses, facts = [champion], [], Facts()
    for number in range(2, TRIALS + 2):
        file.write_bytes(source)
        brief = Brief(number, TASK, "", facts, champion, {"a.py": source.decode()}, Tried(True, attempts), noise=NOISE)
        try:
            said = asyncio.run(agent.propose(brief, folder))
        except NothingLeft:
            return losses + [losses[-1]] * (TRIALS - len(losses))
        edit = file.read_bytes()
        before, after = (read_code({"a.py": text}, gpu=False) for text in (source, edit))
        made = change(before, after)
        assert made, said
        score = night.score(after.constants)
        owed = margin(RULES["margin"], NOISE, [0.0], [champion.score] * champion.standing_runs)
        kept = champion.score - score > owed
        attempt = Attempt(
            number, str(number), champion.commit, said.description, agent.name, edit_hash({"a.py": edit}),
            "keep" if kept else "discard", score, standing=champion.score,
            constants={name: list(values) for name, values in made.items()},
        )  # fmt: skip
        attempts.append(attempt)
        if kept:
            champion, source = attempt, edit
        losses.append(night.loss(read_code({"a.py": source}, gpu=False).constants))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=40)
    arguments = parser.parse_args()
    for sizes in (False, True):
        compare(range(FIRST, FIRST + arguments.nights), sizes)


def compare(seeds: range, sizes: bool) -> None:
    """Play these nights with each agent, and print what they gained."""
    start = np.array([Night(seed, sizes).loss(Night(seed, sizes).start) for seed in seeds])
    game = "whole numbers matter more" if sizes else "constants matter alike"
    print(f"\n{game}: {len(seeds)} nights, noise {NOISE}; {start.mean() - 1:.4f} could be gained")
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: np.array([play(Night(seed, sizes), agent(seed), Path(folder)) for seed in seeds])
            for name, agent in AGENTS.items()
        }
    for name, losses in found.items():
        gained, more = start[:, None] - losses, found["sweep"] - losses
        print(f"\n{name}\n  trials   gained   more than sweep (95% interval)")
        for trials in SHOWN:
            difference = more[:, trials - 1]
            error = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
            print(f"  {trials:>6}   {gained[:, trials - 1].mean():.4f}   {difference.mean():+.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
