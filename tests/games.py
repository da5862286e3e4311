"""Variants of small_train.py: composed, trained for some steps and scored, many in one go.

A file of tests/honest or tests/gaming holds what it changes: definitions that take the place of those with the
same name. As a program, in a process that has imported torch and does no more with it than to fork:

    python tests/games.py FOLDER STEPS SEEDS FILE ... [--borrow FILE ...] [--scorings N] [--rehearse]

prints for each file, seed and scoring one JSON line: the score or why there is none, the score of a plain evaluation
of the same weights, and with --rehearse what the preflight has to say. The first file is the baseline of each seed.
Those after --borrow are not trained but scored with its weights. AUTORESEARCH_CACHE names the prepared data.
"""

import argparse
import ast
import dataclasses
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
MAIN = '\n\nif __name__ == "__main__":\n    train()\n'


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of the project, of git, and of agents, whose keys cost money."""
    others = ("AUTORESEARCH_", "GIT_", "ANTHROPIC_", "CLAUDE", "OPENAI_", "CODEX_", "GEMINI_", "GOOGLE_", "OPENCODE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return {**kept, "GIT_CONFIG_NOSYSTEM": "1", **more}


def compose(path: Path) -> str:
    """The whole train.py of a variant."""
    return composed(changes(path))


def changes(path: Path) -> str:
    """What a variant changes."""
    lines = path.read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("from small_train import *"))


def composed(definitions: str) -> str:
    base, _, _ = (TESTS / "small_train.py").read_text().partition(MAIN)
    return f"{base}\n\n{definitions}{MAIN}"


def in_a_child(function, *arguments):
    """What function(*arguments) returns in a forked child: text."""
    answer, mine = os.pipe()
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            os.write(mine, json.dumps(function(*arguments)).encode())
        except BaseException as error:
            os.write(mine, json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        finally:
            os._exit(0)
    os.close(mine)
    with open(answer) as pipe:
        text = pipe.read()
    os.wait()
    return json.loads(text)


def train(game, file: Path, steps: int) -> dict:
    """Train a variant for some steps, save it as `finish` does, and score it in this very process."""
    import importlib
    import itertools
    import math

    import numpy as np
    import torch
    from safetensors.torch import save_model

    import prepare

    sys.path.insert(0, str(file.parent))
    prepare.SEED = game.seed  # what the variant imports
    torch.manual_seed(game.seed)
    module = importlib.import_module(file.stem)
    model = module.build_model()
    batches = list(itertools.islice(prepare.TrainBatches(module.ROWS, "cpu", game), steps)) if steps else []
    module.train_on(model, batches, module.build_optimizer(model))
    save_model(model, str(game.weights))
    figures = {"profile": game.profile.name, "data": game.data, "device": "cpu", "train_py": str(file)}
    prepare.write_json(game.run_folder / "figures.json", figures)
    rows = torch.from_numpy(game.rows("val").astype(np.int64))
    token_bytes = torch.from_numpy(game.token_bytes())[rows[:, 1:]]
    began, nats = time.perf_counter(), 0.0
    with torch.inference_mode():
        model.eval()
        for row, counted in zip(rows.split(4), (token_bytes > 0).split(4), strict=True):
            losses = torch.nn.functional.cross_entropy(model(row[:, :-1]).double().mT, row[:, 1:], reduction="none")
            nats += (losses * counted).sum().item()
    return {"plain": nats / math.log(2) / token_bytes.sum().item(), "plain_seconds": time.perf_counter() - began}


class Child:
    """A forked process, with what the referee needs of a subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self, timeout: float | None = None) -> None:
        handle = os.pidfd_open(self.pid)
        ended, _, _ = select.select([handle], [], [], timeout)
        os.close(handle)
        if not ended:
            raise subprocess.TimeoutExpired("a forked process", timeout)
        os.waitpid(self.pid, 0)


def forked():
    """A ModelProcess that is forked from this one, which has torch: as the real one, but at once and unconfined."""
    import prepare
    from autoresearch.referee.answer import answer
    from autoresearch.referee.models import ModelProcess

    class Forked(ModelProcess):
        def start(self, channel):
            if (pid := os.fork()) == 0:
                os.setsid()
                os.closerange(3, channel.fileno())
                os.closerange(channel.fileno() + 1, 1 << 12)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(1, 2)
                os.environ["TMPDIR"] = str(self.folder)
                answer(channel, prepare.GAME)
            return Child(pid)

    return Forked


def score(game) -> dict:
    import prepare
    from autoresearch.referee.score import score

    try:
        result = score(game, process=forked())
        names = {"score": "val_bpb", "gap": "val_gap", "error": "val_error", "score_seconds": "score_seconds"}
        return {name: result[key] for name, key in names.items()}
    except prepare.NoScore as reason:
        return {"score": None, "reason": str(reason)}


def rehearse(file: Path, fake: bool) -> dict:
    from autoresearch import preflight

    return {"preflight": preflight.violation(ast.parse(file.read_text())) or preflight.rehearse(file, fake=fake)}


def main() -> None:
    sys.path.insert(0, str(TESTS.parent))
    import safetensors.torch  # noqa: F401
    import torch._subclasses.fake_tensor

    import prepare

    with torch._subclasses.fake_tensor.FakeTensorMode():  # imports a second's worth of modules, once for all children
        torch.nn.functional.cross_entropy(torch.ones(2, 2) @ torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("seeds", type=int)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--borrow", nargs="*", type=Path, default=[])
    parser.add_argument("--scorings", type=int, default=1)
    parser.add_argument("--rehearse", action="store_true")
    asked = parser.parse_args()
    baseline = asked.files[0]
    for path in (*asked.files, *asked.borrow):
        for seed in range(asked.seeds):
            variant = asked.folder / f"{path.stem}-{seed}"
            variant.mkdir(parents=True)
            file = variant / "train.py"
            file.write_text(compose(path))
            game = dataclasses.replace(prepare.GAME, run_folder=variant, seed=seed)
            os.environ["AUTORESEARCH_RUN_DIR"] = str(variant)  # some of them look for it
            os.environ["AUTORESEARCH_REFERENCE"] = f"{asked.folder}/reference-{seed}"
            answer = {"name": path.stem, "seed": seed}
            if path in asked.borrow:
                for saved in ("model.safetensors", "figures.json"):
                    shutil.copy(asked.folder / f"{baseline.stem}-{seed}" / saved, variant)
                figures = json.loads((variant / "figures.json").read_text())
                prepare.write_json(variant / "figures.json", figures | {"train_py": str(file)})
            else:
                for fake in (False, True) if asked.rehearse and seed == 0 else ():
                    answer |= in_a_child(rehearse, file, fake) if not answer.get("preflight") else {}
                answer |= in_a_child(train, game, file, asked.steps)
            for _ in range(asked.scorings):
                print(json.dumps(answer | (in_a_child(score, game) if "failed" not in answer else {})), flush=True)


if __name__ == "__main__":
    main()
