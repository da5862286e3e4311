"""The fixed side of the game, as train.py and a person see it: sizes, training text, the clock, the plain score.

    uv run prepare.py                         prepare the data once; safe to interrupt and run again
    uv run prepare.py score                   score the checkpoint of the last run
    uv run prepare.py score --split holdout   the same on rows that no decision ever reads

train.py imports the sizes (MAX_SEQ_LEN, VOCAB_SIZE, TIME_BUDGET, SEED, PROFILE), `TrainBatches` (training text and, by
handing it out, the clock), `warmup_batch` (noise to compile on) and `finish` (saves the weights). An agent edits
train.py and never this file.

This file and train.py, copied out alone, still train and print a score, on data that was prepared before. The rest is
in the repository's package: autoresearch/data makes the data; autoresearch/referee gives the training its rows, keeps
the time, and computes the score that the loop believes, out of train.py's reach.

Environment: AUTORESEARCH_PROFILE, AUTORESEARCH_DATA, AUTORESEARCH_SHARDS, AUTORESEARCH_CACHE, AUTORESEARCH_SEED,
AUTORESEARCH_RUN_DIR, AUTORESEARCH_CLIMBMIX_URL (a mirror). torch is imported only where it is used, so that
preparing stays quick.
"""

import contextlib
import ctypes
import dataclasses
import hashlib
import importlib
import json
import math
import mmap
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

# ----------------------------------------------------------------------------------------------
# The game


@dataclasses.dataclass(frozen=True)
class Profile:
    """The sizes that fix a game. Scores of two profiles are never compared."""

    name: str
    time_budget: float  # seconds of training
    max_seq_len: int  # tokens a row
    vocab_size: int  # tokens, the four reserved ones included
    scored_tokens: int  # at most; a small data set may hold fewer
    data: str  # the default data set
    spare_rows: int  # of val, never scored, for the referee's probes; at most


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("gpu", 300.0, 2048, 8192, 40 * 524_288, "climbmix", 6144),
        Profile("cpu", 60.0, 256, 2048, 586 * 256, "sotu", 320),
        Profile("test", 3.0, 64, 512, 128 * 64, "sotu", 320),
    )
}


PUBLIC_PACE = 1.65e6  # tokens/s of github.com/karpathy/autoresearch as it starts, on an H100


@dataclasses.dataclass(frozen=True)
class Game:
    """One game: its sizes, its text, its seed, and where its files are. Made once, then handed to whoever needs it."""

    FORMAT: ClassVar[int] = 2  # raised whenever the files in the cache change their meaning

    profile: Profile
    data: str  # `climbmix`, `sotu`, or the path of a folder with text
    seed: int  # given by the loop: picking seeds is not research
    cache: Path  # prepared data of all games
    run_folder: Path  # weights and figures of a run
    shards: int = 20  # of climbmix, to train on; about 40 million packed tokens each, an estimate: see `epochs`
    climbmix_url: str = ""  # a mirror of it; empty for the public address

    @classmethod
    def from_environment(cls) -> "Game":
        """The game that the environment's variables name. Ends the program where one of them is wrong."""
        profile = choose_profile(os.environ.get("AUTORESEARCH_PROFILE"))
        data = os.environ.get("AUTORESEARCH_DATA") or profile.data
        if data not in ("climbmix", "sotu"):
            data = str(Path(data).expanduser().resolve())
        cache = Path(os.environ.get("AUTORESEARCH_CACHE") or "~/.cache/autoresearch").expanduser().absolute()
        return cls(
            profile=profile,
            data=data,
            seed=number_from_environment("AUTORESEARCH_SEED", 42),
            cache=cache,
            run_folder=Path(os.environ.get("AUTORESEARCH_RUN_DIR") or cache / "last-run").absolute(),
            shards=number_from_environment("AUTORESEARCH_SHARDS", cls.shards),
            climbmix_url=os.environ.get("AUTORESEARCH_CLIMBMIX_URL") or "",
        )

    @property
    def folder(self) -> Path:
        """Where the prepared files of this game are: token_bytes.npy, one file of rows a split, manifest.json."""
        name = self.data
        if name not in ("climbmix", "sotu"):
            digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
            name = f"{Path(name).name}-{digest[:8]}"
        return self.cache / f"{name}-{self.profile.name}"

    @property
    def weights(self) -> Path:
        return self.run_folder / "model.safetensors"

    def manifest(self) -> dict | None:
        """What is prepared: None if it was made for other sizes, or a file is missing or of another length."""
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
            shaped_by = ("name", "max_seq_len", "vocab_size", "scored_tokens", "spare_rows")
            fits = all(manifest["profile"][name] == getattr(self.profile, name) for name in shaped_by)
            sizes = ((self.folder / name, entry["bytes"]) for name, entry in manifest["files"].items())
            complete = fits and all(path.stat().st_size == size for path, size in sizes)
            return manifest if complete and manifest["format"] == self.FORMAT else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def rows(self, split: str) -> np.ndarray:
        """The packed rows of a split, train, val, spare or holdout: (rows, max_seq_len + 1) uint16, a read-only map."""
        manifest = self.manifest()
        if manifest is None:
            stop(
                f"the data of profile {self.profile.name} on {self.data} is not prepared, or only half; run "
                f"`uv run prepare.py` first (AUTORESEARCH_PROFILE={self.profile.name} AUTORESEARCH_DATA={self.data})"
            )
        shape = (manifest["splits"][split]["rows"], self.profile.max_seq_len + 1)
        return np.memmap(self.folder / f"{split}.bin", dtype=np.uint16, mode="r", shape=shape)

    def epochs(self, manifest: dict) -> str:
        """How often a fast training would go through the training text of this manifest, as a sentence."""
        tokens = manifest["splits"]["train"]["rows"] * self.profile.max_seq_len
        passes = self.profile.time_budget * PUBLIC_PACE / tokens
        more = f"; AUTORESEARCH_SHARDS={int(self.shards * passes) + 1} makes it less than one" if passes >= 1 else ""
        return (
            f"{tokens / 1e6:,.1f} million tokens to train on: {self.profile.time_budget:g} s at {PUBLIC_PACE / 1e6:g} "
            f"million tokens/s, the public baseline's pace on an H100, are {passes:.2f} epochs{more}"
        )

    def token_bytes(self) -> np.ndarray:
        """Raw bytes of each token, (vocab_size,) int32; zero for those that stand for no text."""
        return np.load(self.folder / "token_bytes.npy")


def stop(message: str) -> NoReturn:
    """End the program for a user's mistake: one clear message, exit code 2."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def cuda_device_name() -> str | None:
    """Name of the first CUDA device, or None. Asks the driver itself: torch takes seconds to import.

    In a child, since a process that has spoken to the driver cannot be forked any more.
    """
    answer, mine = os.pipe()
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            driver = ctypes.CDLL("libcuda.so.1")
            device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
            failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
            if not (failed or driver.cuDeviceGetName(name, len(name), device)):
                os.write(mine, name.value)
        os._exit(0)
    os.close(mine)
    with open(answer, "rb") as pipe:
        name = pipe.read().decode(errors="replace")
    os.waitpid(child, 0)
    return name or None


def choose_profile(name: str | None) -> Profile:
    """The profile of that name; without a name `gpu` where CUDA is there, else `cpu`."""
    name = name or ("gpu" if cuda_device_name() else "cpu")
    if name not in PROFILES:
        stop(f"there is no profile {name!r}; choose one of {', '.join(PROFILES)} (--profile or AUTORESEARCH_PROFILE)")
    return PROFILES[name]


def number_from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text and not text.isdigit():
        stop(f"{name}={text!r} is not a whole number; unset it or give one, e.g. {name}={default}")
    return int(text or default)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: page faults on fresh ones are a third of a training step on a CPU."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
            libc.mallopt(parameter, 2**31 - 1)


if sys.platform != "linux":
    stop(
        "this runs on Linux: on Windows in WSL2 (`wsl --install`), on macOS in a virtual machine; or on another machine"
    )
GAME = Game.from_environment()
PROFILE = GAME.profile
TIME_BUDGET = PROFILE.time_budget
MAX_SEQ_LEN = PROFILE.max_seq_len
VOCAB_SIZE = PROFILE.vocab_size
SEED = GAME.seed
if PROFILE.name != "gpu":
    keep_freed_memory()


# ----------------------------------------------------------------------------------------------
# Training text. The clock is the data loader.


def seconds_since_process_start() -> float:
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - started


_now = time.perf_counter
_PROCESS_START = _now() - seconds_since_process_start()
_TIMELINE: dict[str, float] = {"imported": _now() - _PROCESS_START}  # seconds since the process began


def warmup_batch(batch_size: int, device, game: Game | None = None):
    """Random tokens to compile and warm up on, free of charge: nothing can be learned from them.

    Returns (inputs, targets), each (batch_size, MAX_SEQ_LEN) int64 on the device.
    """
    import torch

    _TIMELINE.setdefault("built", _now() - _PROCESS_START)
    sizes = (game or GAME).profile
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(sizes.vocab_size, (batch_size, sizes.max_seq_len + 1), generator=generator).to(device)
    return rows[:, :-1], rows[:, 1:]


class TrainBatches:
    """The only way to training text, and the clock.

    Iterates over (inputs, targets), each (batch_size, MAX_SEQ_LEN) int64 on `device`. The clock, one
    for a process however many iterators it makes, starts when the first batch is handed out; after
    TIME_BUDGET seconds the iteration ends and nothing is handed out any more. On a GPU the host runs
    at most two batches ahead of the device, so what is still queued when time is up is no more than
    two micro-batches.

    A background thread gathers shuffled rows into pinned buffers. A buffer is filled again only after
    the event behind its copy to the device has happened.
    """

    BUFFERS = 3
    REPORT_SECONDS = 1.0
    _start: float | None = None  # of the process, so of the class
    _began = _reported = 0.0  # by time.time(): when the clock started, and when progress was last written

    def __init__(self, batch_size: int, device, game: Game | None = None) -> None:
        import torch

        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of rows, 1 or more, not {batch_size!r}")
        self._game = game or GAME
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.batches = 0  # handed out so far
        self._torch = torch
        self._cuda = self.device.type == "cuda"
        under_a_referee = "AUTORESEARCH_REFEREE" in os.environ
        self._source = (RefereeRows if under_a_referee else CacheRows)(batch_size, self._game)
        self._last_step = None  # event: what was queued before the last batch is done
        self._full: queue.Queue = queue.Queue()
        self._free: queue.Queue = queue.Queue()
        for _ in range(self.BUFFERS):
            shape = (batch_size, self._game.profile.max_seq_len + 1)
            self._free.put((torch.empty(shape, dtype=torch.int16, pin_memory=self._cuda), None))
        threading.Thread(target=self._fill, daemon=True, name="train-batches").start()

    @property
    def elapsed(self) -> float:
        """Seconds since the first batch was handed out; 0 before."""
        return 0.0 if self._start is None else _now() - self._start

    @property
    def progress(self) -> float:
        """Share of the time budget that is over, 0 to 1."""
        return min(1.0, self.elapsed / self._game.profile.time_budget)

    @property
    def tokens(self) -> int:
        """Tokens handed out so far."""
        return self.batches * self.batch_size * self._game.profile.max_seq_len

    def report(self, loss: float | None = None, step: int | None = None) -> None:
        """Say how the training goes, for people who watch; no decision reads it. Written once a second at most."""
        if self._start is not None and time.time() - self._reported >= self.REPORT_SECONDS:
            self._write_progress(loss=loss, step=step)

    def _write_progress(self, **more) -> None:
        TrainBatches._reported = time.time()
        said = {"clock": self._began, "budget": self._game.profile.time_budget, **more}
        with contextlib.suppress(OSError, TypeError):  # a full disk, or a tensor for a number: not worth a training
            write_json(self._game.run_folder / "progress.json", said)

    def _fill(self) -> None:
        try:
            while True:
                buffer, copied = self._free.get()
                if copied is not None:
                    copied.synchronize()
                # int16 on torch's side, whose unsigned types are young; no vocabulary here reaches 2**15.
                if not self._source.fill(buffer.numpy().view(np.uint16)):
                    self._full.put(None)
                    return
                self._full.put(buffer)
        except BaseException as error:  # handed to the training loop, which raises it
            self._full.put(error)

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self):
        budget = self._game.profile.time_budget
        if self._cuda:
            if self._last_step is not None:
                self._last_step.synchronize()
            self._last_step = self._torch.cuda.Event(blocking=True)
            self._last_step.record()
        if self._start is None:
            if self._cuda:
                self._torch.cuda.synchronize()
            self._source.start()
        buffer = self._full.get() if self.elapsed < budget else None
        if buffer is None:
            self._full.put(None)  # whoever asks again hears the same
            _TIMELINE.setdefault("ended", _now() - _PROCESS_START)
            raise StopIteration
        if isinstance(buffer, BaseException):
            raise buffer
        if self._start is not None and self.elapsed >= budget:  # time ran out while waiting for the loader
            raise StopIteration
        rows = buffer.to(self.device, non_blocking=True)
        copied = None
        if self._cuda:
            copied = self._torch.cuda.Event()
            copied.record()
        rows = rows.to(self._torch.int64)  # on a CPU this is the copy that frees the buffer
        self._free.put((buffer, copied))
        if self._start is None:
            TrainBatches._start = started = _now()
            _TIMELINE["clock"] = started - _PROCESS_START
            TrainBatches._began = time.time()
            self._write_progress()
        self.batches += 1
        return rows[:, :-1], rows[:, 1:]


class CacheRows:
    """Training rows in seeded order, from the cache: for a run by hand, and for the referee."""

    def __init__(self, batch_size: int, game: Game) -> None:
        self.batch_size, self.seed = batch_size, game.seed
        self.rows = game.rows("train")
        self.order = self.shuffled()

    def shuffled(self) -> Iterator[np.ndarray]:
        """Row numbers of one batch after the other: seeded shuffles of all rows, end to end."""
        generator = np.random.default_rng(self.seed)
        order = np.empty(0, dtype=np.int64)
        while True:
            while len(order) < self.batch_size:
                order = np.concatenate([order, generator.permutation(len(self.rows))])
            yield order[: self.batch_size]
            order = order[self.batch_size :]

    def start(self) -> None:
        pass

    def fill(self, batch: np.ndarray) -> bool:
        """Write the next rows into `batch`, (batch_size, MAX_SEQ_LEN + 1) uint16. False when time is over."""
        np.take(self.rows, next(self.order), axis=0, out=batch, mode="clip")
        return True


MOST_ROWS = 1 << 16  # of a batch that the referee hands over


class RefereeRows:
    """The same rows from the referee, through memory that both see. There are none before its clock starts.

    On the channel, one packet a message: `open BATCH_SIZE` is answered by a number and the memory,
    `start` and `next NUMBER` by `go`, or by `over` when time is.
    """

    channel: socket.socket  # of the process, made when first needed: all iterators take turns on it
    turn = threading.Lock()
    started = threading.Event()  # the clock, which is one for all

    def __init__(self, batch_size: int, game: Game) -> None:
        if not hasattr(RefereeRows, "channel"):
            RefereeRows.channel = socket.socket(fileno=int(os.environ["AUTORESEARCH_REFEREE"]))
        with self.turn:
            self.channel.send(b"open %d" % batch_size)
            number, memories, _, _ = socket.recv_fds(self.channel, 64, 1)
        if not memories:
            raise RuntimeError(f"the referee gives no batch of {batch_size} rows ({MOST_ROWS} at most)")
        self.number, memory = int(number), memories[0]
        self.batch = shared_rows(memory, batch_size, game)

    def ask(self, message: bytes) -> bytes:
        with self.turn:
            self.channel.send(message)
            if not (answer := self.channel.recv(64)):
                raise RuntimeError("the referee has ended")
        return answer

    def start(self) -> None:
        self.ask(b"start")
        self.started.set()

    def fill(self, batch: np.ndarray) -> bool:
        self.started.wait()
        if self.ask(b"next %d" % self.number) == b"over":
            return False
        batch[:] = self.batch
        return True


def shared_rows(memory: int, batch_size: int, game: Game) -> np.ndarray:
    """The rows in shared memory, (batch_size, MAX_SEQ_LEN + 1) uint16."""
    view = mmap.mmap(memory, 2 * batch_size * (game.profile.max_seq_len + 1))
    return np.frombuffer(view, np.uint16).reshape(batch_size, -1)


def finish(
    model, batches: TrainBatches, *, num_steps: int, depth: int | None = None, mfu_percent: float | None = None
) -> NoReturn:
    """End a run: wait for the device, save the weights and the run's figures, hand over to the scorer.

    model: the trained module; its parameters and buffers go to model.safetensors.
    num_steps: optimizer steps. depth: layers, if that means something. mfu_percent: share of the
    device's peak bf16 arithmetic that was used, None where the peak is unknown.

    Never returns. Under the loop (AUTORESEARCH_RUN_DIR is set) the process ends at once and the referee
    scores; by hand it becomes `prepare.py score`. Either way the device's memory is free.
    """
    import resource

    import torch
    from safetensors.torch import save_model

    if batches.batches == 0:
        raise RuntimeError("finish was called before a single batch was drawn: nothing was trained")
    game = batches._game
    if batches.device.type == "cuda":
        torch.cuda.synchronize()
        peak_bytes = torch.cuda.max_memory_allocated()
    else:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    training_seconds = batches.elapsed
    _TIMELINE["finished"] = _now() - _PROCESS_START
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    game.run_folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(game.weights))
    _TIMELINE["saved"] = _now() - _PROCESS_START
    figures = {
        "profile": game.profile.name,
        "data": game.data,
        "device": str(batches.device),
        "train_py": os.path.abspath(str(sys.modules["__main__"].__file__)),
        "training_seconds": training_seconds,
        "started": time.time() - (_now() - _PROCESS_START),
        "peak_vram_mb": peak_bytes / 2**20,
        "mfu_percent": mfu_percent,
        "total_tokens_M": batches.tokens / 1e6,
        "num_steps": num_steps,
        "num_params_M": sum(p.numel() for p in model.parameters()) / 1e6,
        "depth": depth,
        "timeline": _TIMELINE,
    }
    write_json(game.run_folder / "figures.json", figures)
    sys.stdout.flush()
    sys.stderr.flush()
    if "AUTORESEARCH_RUN_DIR" in os.environ:
        os._exit(0)
    os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), "score"])


def write_json(path: Path, values: dict) -> None:
    """Write a small JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(values))
    temporary.replace(path)


# ----------------------------------------------------------------------------------------------
# The score: bits per byte on held-out text. The plain one runs the model in this process; the referee's does the same
# arithmetic on logits from a process that holds no target, and probes the model besides.


class NoScore(Exception):
    """Why a run has no score, in one line."""


def score(game: Game, split: str = "val") -> dict:
    """The plain score of the last run's checkpoint on a held-out split, and the run's figures.

    Raises NoScore for a model that does not give finite logits of the right shape.
    """
    began = _now()
    figures = read_figures(game)
    rows = game.rows(split)
    model = PlainModel(Path(figures["train_py"]), game.weights, figures["device"], game)
    value = bits_per_byte(losses_of(model, rows), game.token_bytes()[rows[:, 1:]])
    return {**figures, f"{split}_bpb": value, "score_seconds": _now() - began}


class ScoredModel(Protocol):
    """A trained model, in this process or in another."""

    batch_size: int  # rows that it takes at a time
    device: str  # where the arithmetic on its logits is done

    def logits(self, ids: "torch.Tensor") -> "torch.Tensor":
        """(batch_size, T) int64 on the CPU -> (batch_size, T, VOCAB_SIZE). Raises torch.OutOfMemoryError."""
        raise NotImplementedError


class PlainModel:
    """`build_model()` of a train.py with trained weights, in this process."""

    def __init__(self, train_py: Path, weights: Path, device: str, game: Game) -> None:
        from safetensors.torch import load_model

        self.batch_size, self.device, self.sizes = scored_batch_size(game.profile), device, game.profile
        sys.path.insert(0, str(train_py.parent))
        module = importlib.import_module(train_py.stem).build_model()
        load_model(module, str(weights))
        self.module = module.to(device).eval()

    def logits(self, ids: "torch.Tensor") -> "torch.Tensor":
        """As ScoredModel says. Raises NoScore for what are no logits of the right shape."""
        import torch

        with torch.inference_mode():
            given = self.module(ids.to(self.device))
        expected = (len(ids), self.sizes.max_seq_len, self.sizes.vocab_size)
        is_tensor = isinstance(given, torch.Tensor)
        if not is_tensor or tuple(given.shape) != expected or not given.is_floating_point():
            form = f"{tuple(given.shape)} {given.dtype}" if is_tensor else type(given).__name__
            raise NoScore(f"the model must give logits {expected} in floating point, not {form}")
        return given


def scored_batch_size(sizes: Profile) -> int:
    """Rows that are scored at a time: a fact of the game, whatever batch size train.py used."""
    logits_bytes = (512 if sizes.name == "gpu" else 32) << 20  # float32, at most
    at_most = sizes.scored_tokens // sizes.max_seq_len // 8  # so that what learns from batch to batch shows
    return max(1, min(at_most, logits_bytes // (4 * sizes.vocab_size * sizes.max_seq_len)))


def losses_of(model: ScoredModel, rows: np.ndarray, targets: np.ndarray | None = None):
    """Nats of every target of the rows (N, T + 1): an (N, T) float32 tensor on the CPU.

    targets: (N, T), where they are not the rows' own next tokens.

    Always in batches of one shape, the last one filled up with rows that do not count; in smaller
    ones after the device's memory ran out, which changes nothing but the time it takes.
    """
    import torch

    targets = rows[:, 1:] if targets is None else targets
    losses = torch.empty(targets.shape)
    first = 0
    while first < len(rows):
        numbers = np.arange(first, first + model.batch_size) % len(rows)
        count = min(model.batch_size, len(rows) - first)
        try:
            wanted = torch.from_numpy(targets[numbers].astype(np.int64)).to(model.device)
            given = model.logits(torch.from_numpy(rows[numbers, :-1].astype(np.int64)))
            # A copy: logits in memory that another process shares could change under the arithmetic.
            copies = (given[row].to(model.device, torch.float32, copy=True) for row in range(count))
            losses[first : first + count] = torch.stack(
                [cross_entropy(*pair) for pair in zip(copies, wanted, strict=False)]
            )
            first += count
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if model.batch_size == 1:
            raise NoScore("the model needs more memory than there is for a single row")
        model.batch_size //= 2
        given = copies = None
        torch.cuda.empty_cache()
    return losses


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory ran out, in the words of PyTorch, CUDA or cuBLAS."""
    import torch

    words = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def cross_entropy(logits, targets):
    """Nats of each target: logits (T, VOCAB_SIZE) float32, targets (T,) -> (T,). A row at a time: next to no memory.

    Overwrites the logits, of which each pass over all of them counts: it is logsumexp without what that does again.
    """
    logits -= logits.amax(-1, keepdim=True)  # of large ones rounding would leave no difference, and no loss
    wanted = logits.gather(-1, targets[:, None])[:, 0]
    return logits.exp_().sum(-1).log_() - wanted


def bits_per_byte(losses, token_bytes: np.ndarray) -> float:
    """Nats of all targets that stand for bytes, divided by ln 2 and by the number of those bytes.

    losses, token_bytes: (N, T), nats and raw bytes of each target. Raises NoScore where that is no finite number.
    """
    import torch

    nats = (losses.double() * torch.from_numpy(token_bytes > 0)).sum().item()
    value = float(nats / math.log(2) / token_bytes.sum(dtype=np.int64))
    if not math.isfinite(value):
        raise NoScore(f"the score is not a finite number: {value}")
    return value


SUMMARY = {  # numbers of a run, and how they are printed
    "training_seconds": ".1f",
    "total_seconds": ".1f",
    "peak_vram_mb": ".1f",
    "mfu_percent": ".2f",
    "total_tokens_M": ".1f",
    "num_steps": ".0f",
    "num_params_M": ".1f",
    "depth": ".0f",
}


def read_figures(game: Game) -> dict:
    """What `finish` wrote. The training process could write anything there: only what has the right form counts."""
    try:
        handle = os.open(game.run_folder / "figures.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle) as file:
            found = json.loads(file.read(1 << 16))
        figures = {name: found[name] for name in ("profile", "data", "device", "train_py")}
        kind = figures["device"].split(":")[0]
        if not all(isinstance(text, str) for text in figures.values()) or kind not in ("cpu", "cuda"):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        stop(f"there is no finished run in {game.run_folder}; train first: `uv run train.py`")
    if (figures["profile"], figures["data"]) != (game.profile.name, game.data):
        stop(
            f"the run in {game.run_folder} was trained as {figures['profile']} on {figures['data']}; score it with "
            f"AUTORESEARCH_PROFILE={figures['profile']} AUTORESEARCH_DATA={figures['data']}"
        )
    for name in ("started", *SUMMARY):
        value = found.get(name)
        figures[name] = value if isinstance(value, int | float) and math.isfinite(value) else None
    return figures


def print_summary(result: dict, split: str) -> None:
    """The public summary block: one `key: value` a line after a line of dashes."""
    values = {**result, "total_seconds": result["started"] and time.time() - result["started"]}
    print("---")
    for key, pattern in {f"{split}_bpb": ".6f", **SUMMARY}.items():
        print(f"{key + ':':<18}{'n/a' if values[key] is None else format(values[key], pattern)}")


# ----------------------------------------------------------------------------------------------
# Command line


def prepared(game: Game) -> dict:
    """The manifest of the game's data, which are made first where they are missing."""
    try:
        from autoresearch import UserError
        from autoresearch.data import cache
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "autoresearch":
            raise
        return game.manifest() or stop(
            f"there is no prepared data in {game.folder}, and preparing it needs the whole repository: "
            "run `uv run prepare.py` in a clone of it, with the same settings"
        )
    try:
        return cache.prepare(game)
    except UserError as error:
        stop(str(error))


def main() -> None:
    import argparse

    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="{score}")
    scoring = commands.add_parser("score", help="score the checkpoint of the last run, without the referee's probes")
    scoring.add_argument("--split", choices=("val", "holdout"), default="val")
    split = getattr(parser.parse_args(), "split", None)
    try:
        if split:
            print_summary(score(GAME, split), split)
        else:
            manifest = prepared(GAME)
            rows = {split: counts["rows"] for split, counts in manifest["splits"].items()}
            print(
                f"ready: profile {PROFILE.name}, data {GAME.data}, rows of {MAX_SEQ_LEN} tokens: "
                + ", ".join(f"{count:,} {split}" for split, count in rows.items())
                + f", in {GAME.folder}"
            )
            if GAME.data == "climbmix":
                print(GAME.epochs(manifest))
    except NoScore as reason:
        print(f"no score: {reason}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
