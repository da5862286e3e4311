"""The fixed side of the game: data, tokenizer, packed rows, the training clock, the score.

    uv run prepare.py                         prepare the data once; safe to interrupt and run again
    uv run prepare.py score                   score the checkpoint of the last run
    uv run prepare.py score --split holdout   the same on rows that no decision ever reads
    uv run prepare.py describe                what a run on this machine would use, as JSON

train.py imports four things: the sizes of the game (MAX_SEQ_LEN, VOCAB_SIZE, TIME_BUDGET, SEED),
`TrainBatches` (training text and, by handing it out, the clock), `warmup_batch` (noise to compile
on) and `finish` (saves the weights; the score is computed by other processes). The agent edits
train.py and never this file. torch is imported only where it is used, so that preparing and
describing stay quick.

Under the loop, `score --wait` is the referee: it starts beside train.py, hands it the training text,
keeps the time, and scores the weights in the end. train.py's process sees no file of the cache.

Environment: AUTORESEARCH_PROFILE, AUTORESEARCH_DATA, AUTORESEARCH_SHARDS, AUTORESEARCH_CACHE,
AUTORESEARCH_SEED, AUTORESEARCH_RUN_DIR, AUTORESEARCH_CLIMBMIX_URL (a mirror).
"""

import base64
import bisect
import collections
import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import functools
import hashlib
import importlib
import importlib.metadata
import json
import math
import mmap
import os
import platform
import queue
import re
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np

# ----------------------------------------------------------------------------------------------
# The game

FORMAT = 1  # raised whenever the files in the cache change their meaning


@dataclasses.dataclass(frozen=True)
class Profile:
    """The sizes that fix a game. Scores of two profiles are never compared."""

    name: str
    time_budget: float  # seconds of training
    max_seq_len: int  # tokens a row
    vocab_size: int  # tokens, the four reserved ones included
    scored_tokens: int  # at most; a small data set may hold fewer
    data: str  # the default data set


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("gpu", 300.0, 2048, 8192, 40 * 524_288, "climbmix"),
        Profile("cpu", 60.0, 256, 2048, 586 * 256, "sotu"),
        Profile("test", 3.0, 64, 512, 128 * 64, "sotu"),
    )
}


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
            count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
            if not (
                driver.cuInit(0)
                or driver.cuDeviceGetCount(ctypes.byref(count))
                or count.value < 1
                or driver.cuDeviceGet(ctypes.byref(device), 0)
                or driver.cuDeviceGetName(name, len(name), device)
            ):
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


PROFILE = choose_profile(os.environ.get("AUTORESEARCH_PROFILE"))
TIME_BUDGET = PROFILE.time_budget
MAX_SEQ_LEN = PROFILE.max_seq_len
VOCAB_SIZE = PROFILE.vocab_size
SEED = number_from_environment("AUTORESEARCH_SEED", 42)  # given by the loop: picking seeds is not research
DATA = os.environ.get("AUTORESEARCH_DATA") or PROFILE.data
if DATA not in ("climbmix", "sotu"):
    DATA = str(Path(DATA).expanduser().resolve())  # a folder of the user's
CACHE = Path(os.environ.get("AUTORESEARCH_CACHE") or "~/.cache/autoresearch").expanduser().absolute()
RUN_FOLDER = Path(os.environ.get("AUTORESEARCH_RUN_DIR") or CACHE / "last-run").absolute()
SPLITS = ("train", "val", "holdout")
if PROFILE.name != "gpu":
    keep_freed_memory()

# Facts of the public game (github.com/karpathy/autoresearch), kept so that gpu/climbmix scores compare.
CLIMBMIX_URL = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main"
CLIMBMIX_VAL, CLIMBMIX_HOLDOUT = 6542, 6541  # the last two shards, never trained on
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = [f"<|reserved_{i}|>" for i in range(4)]  # the first one is BOS
TOKENIZER_CHARACTERS = 1_000_000_000  # text that the merges are learned from, at most
TOKENIZER_DOCUMENT = 10_000  # characters taken of one document, at most
DOCUMENT_BATCH = 128  # documents a refill of the packing buffer
PACKING_BUFFER = 1_000  # documents to choose from, at least

HELD_OUT_SHARE = 0.06  # of the characters, each for val and holdout


# ----------------------------------------------------------------------------------------------
# Sources of text. A source names itself (`identity`) and yields batches of documents for a split.


class Climbmix:
    """The public parquet set: `shards` training shards, the last for val, the one before for holdout."""

    crops = True  # as the public loader does: there is text in plenty

    def __init__(self) -> None:
        self.shards = number_from_environment("AUTORESEARCH_SHARDS", 10)
        self.folder = CACHE / "climbmix"
        if not 1 <= self.shards <= CLIMBMIX_HOLDOUT:
            stop(f"AUTORESEARCH_SHARDS={self.shards} is out of range; give 1 to {CLIMBMIX_HOLDOUT}")
        self.numbers = {
            "train": range(self.shards),
            "val": [CLIMBMIX_VAL],
            "holdout": [CLIMBMIX_HOLDOUT],
        }

    def identity(self) -> dict:
        return {"name": "climbmix", "shards": self.shards, "val": CLIMBMIX_VAL, "holdout": CLIMBMIX_HOLDOUT}

    def files(self, split: str) -> list[Path]:
        return [self.folder / f"shard_{number:05d}.parquet" for number in self.numbers[split]]

    def fetch(self) -> None:
        url = os.environ.get("AUTORESEARCH_CLIMBMIX_URL") or CLIMBMIX_URL
        paths = [path for split in ("val", "holdout", "train") for path in self.files(split)]
        download_all([(f"{url}/{path.name}", path) for path in paths if not path.exists()])

    def batches(self, split: str) -> Iterator[list[str]]:
        for path in self.files(split):
            yield from parquet_batches(path)

    def deduplicated(self, split: str) -> Iterator[list[str]]:
        """Batches of a split without the documents that a more protected split holds too."""
        protected = {"val": (), "holdout": ("val",), "train": ("val", "holdout")}[split]
        seen = {digest(text) for other in protected for batch in self.batches(other) for text in batch}
        for batch in self.batches(split):
            yield [text for text in batch if digest(text) not in seen] if seen else batch


class Documents:
    """Documents of no given split: their digests, in order, decide who is held out.

    Equal documents have equal digests and so share a split. A document longer than a row is cut into
    rows: packing would crop it and drop the rest, which small sets cannot spare.
    """

    crops = False

    def __init__(self) -> None:
        sizes: dict[bytes, int] = {}
        for text in self.documents():
            sizes[digest(text)] = len(text)
        if len(sizes) < len(SPLITS):
            stop(
                f"{self.identity()['name']} holds {len(sizes)} different documents; at least {len(SPLITS)} are needed, "
                "one each to train on, to score and to hold out"
            )
        self.split_of: dict[bytes, str] = {}
        order, total = sorted(sizes), sum(sizes.values())
        for split in ("val", "holdout"):
            taken = 0
            while taken < HELD_OUT_SHARE * total and len(order) > 1 + (split == "val"):
                self.split_of[chosen := order.pop()] = split
                taken += sizes[chosen]

    def identity(self) -> dict:
        raise NotImplementedError

    def documents(self) -> Iterator[str]:
        raise NotImplementedError

    def fetch(self) -> None:
        pass

    def batches(self, split: str) -> Iterator[list[str]]:
        texts = self.documents()
        return in_batches(text for text in texts if self.split_of.get(digest(text), "train") == split)

    deduplicated = batches


class Sotu(Documents):
    """249 State of the Union speeches from the package of that name: public domain, no network."""

    def identity(self) -> dict:
        return {"name": "sotu", "version": importlib.metadata.version("sotu")}

    def documents(self) -> Iterator[str]:
        folder = importlib.metadata.distribution("sotu").locate_file("sotu/data/speeches")
        for path in sorted(Path(folder).glob("*.txt")):
            yield path.read_text(encoding="utf-8")


class Folder(Documents):
    """A user's folder of .parquet (column `text`), .jsonl (key `text`) or .txt files."""

    SUFFIXES = (".parquet", ".jsonl", ".txt")

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        choice = "AUTORESEARCH_DATA takes `climbmix`, `sotu` or a folder of .parquet, .jsonl or .txt files"
        if not self.path.is_dir():
            stop(f"{self.path} is not a folder. {choice}")
        try:
            self.paths = sorted(p for p in self.path.rglob("*") if p.suffix in self.SUFFIXES and p.is_file())
            if not self.paths:
                list(self.path.iterdir())  # an unreadable folder raises here: rglob passes over it
        except PermissionError as error:
            stop(
                f"{error.filename} cannot be read: {error.strerror}. Mend its permissions with `chmod -R u+rX {self.path}`"
            )
        if not self.paths:
            stop(f"{self.path} holds no .parquet, .jsonl or .txt file. {choice}")
        super().__init__()

    def identity(self) -> dict:
        stats = [(path, path.stat()) for path in self.paths]
        return {
            "name": str(self.path),
            "files": [[str(path.relative_to(self.path)), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
        }

    def documents(self) -> Iterator[str]:
        for path in self.paths:
            try:
                for text in self.read(path):
                    if text.strip():
                        yield text
            except PermissionError as error:
                stop(f"{path} cannot be read: {error.strerror}. Mend its permissions with `chmod u+r {path}`")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                stop(f"{path} cannot be read as {path.suffix[1:]}: {error}. Mend or remove the file")

    def read(self, path: Path) -> Iterator[str]:
        if path.suffix == ".parquet":
            for batch in parquet_batches(path):
                yield from batch
        elif path.suffix == ".jsonl":
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    if line.strip():
                        yield json.loads(line)["text"].strip()
        else:
            yield from passages(path.read_text(encoding="utf-8"), 65_536)


def open_source(data: str) -> Climbmix | Documents:
    """The source that a name or a path means."""
    if data == "climbmix":
        return Climbmix()
    return Sotu() if data == "sotu" else Folder(data)


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch = []
    for text in texts:
        batch.append(text)
        if len(batch) == DOCUMENT_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def parquet_batches(path: Path) -> Iterator[list[str]]:
    """Texts of a parquet file in refills of 128; a refill never spans two row groups.

    Raises ValueError when the file is not readable parquet or has no column `text`.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                texts = file.read_row_group(group, columns=["text"]).column("text").to_pylist()
                yield from in_batches(text for text in texts if text is not None)
    except KeyError:
        raise ValueError("it has no column `text`") from None
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # a fault of the disk or of permissions
            raise
        raise ValueError(str(error).splitlines()[0]) from None


def passages(text: str, limit: int) -> Iterator[str]:
    """Cut `text` into pieces of at most `limit` characters: at a blank line, else a space, else anywhere."""
    start = 0
    while len(text) - start > limit:
        for mark in ("\n\n", "\n", " "):
            cut = text.rfind(mark, start + limit // 2, start + limit)
            if cut > 0:
                break
        else:
            cut = start + limit
        yield text[start:cut].strip()
        start = cut
    yield text[start:].strip()


# ----------------------------------------------------------------------------------------------
# Download: to a .part file, resumed, checked for its length and for readable parquet

DOWNLOAD_ATTEMPTS = 8
DOWNLOAD_WORKERS = 4
PASSING_FAULTS = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers worth another try


class DownloadFailed(Exception):
    """A file that could not be had; the text says which and why."""


def download_all(files: list[tuple[str, Path]], first_wait: float = 1.0) -> None:
    """Fetch each (url, path), four at a time. Stops the program if one cannot be had; what arrived stays."""
    if not files:
        return
    files[0][1].parent.mkdir(parents=True, exist_ok=True)
    with progress_bars(transfer=True) as bars, ThreadPoolExecutor(DOWNLOAD_WORKERS) as pool:
        jobs = [(path, pool.submit(download, url, path, bars, first_wait)) for url, path in files]
        failures = [f"{path.name}: {error}" for path, job in jobs if (error := job.exception())]
        for _, job in jobs:
            if isinstance(error := job.exception(), OSError):
                raise error  # a full disk: `main` says what to do
    if failures:
        stop(
            "could not download "
            + "; ".join(failures)
            + f". What arrived stays in {files[0][1].parent}; run `uv run prepare.py` again to go on. "
            "Without a network, AUTORESEARCH_DATA=sotu needs none"
        )


def download(url: str, path: Path, bars, first_wait: float = 1.0) -> None:
    """Fetch a parquet file and read it once. A passing fault is tried again, from where it broke off,
    after a growing wait; a file that cannot be read, from its beginning."""
    import requests

    part = path.with_name(path.name + ".part")
    bar = bars.add_task(path.name, total=None)
    for attempt in range(DOWNLOAD_ATTEMPTS):
        if attempt:
            time.sleep(min(60.0, first_wait * 2 ** (attempt - 1)))
        try:
            fetch_rest(url, part, lambda done, total: bars.update(bar, completed=done, total=total))
            for _ in parquet_batches(part):
                pass
            part.rename(path)
            return
        except requests.HTTPError as error:
            if error.response.status_code not in PASSING_FAULTS:
                raise DownloadFailed(f"the server answered {error.response.status_code} for {url}") from None
            reason = f"the server answered {error.response.status_code}"
        except requests.RequestException as error:
            reason = f"the connection failed ({type(error).__name__})"
        except ValueError as error:
            part.unlink()
            reason = f"what arrived is not readable parquet ({error})"
        bars.update(bar, description=f"{path.name} (again: {reason})")
    raise DownloadFailed(f"{reason}, {DOWNLOAD_ATTEMPTS} times")


def fetch_rest(url: str, part: Path, report) -> None:
    """Append to `part` what is still missing of `url`.

    Raises requests.RequestException when the answer is an error or ends before its stated length.
    """
    import requests

    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, stream=True, timeout=30, headers=headers) as response:
        if response.status_code == 416:  # the part reaches to the end or past it: begin again
            part.unlink()
            raise requests.ConnectionError("the part on disk does not fit the file on the server")
        response.raise_for_status()
        have = have if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with open(part, "ab" if have else "wb") as file:
            for chunk in response.iter_content(1 << 14):
                file.write(chunk)
                have += len(chunk)
                report(have, total)
    if total is not None and have < total:
        raise requests.ConnectionError(f"{have} of {total} bytes arrived")


@contextlib.contextmanager
def progress_bars(transfer: bool = False):
    """rich's progress bars on standard error: bytes and rate for transfers, counts otherwise."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    counts = [DownloadColumn(), TransferSpeedColumn()] if transfer else [TextColumn("{task.fields[note]}")]
    columns = [TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield bars


# ----------------------------------------------------------------------------------------------
# Tokenizer


def train_tokenizer(batches: Iterable[list[str]]) -> dict:
    """Learn byte-pair merges. Returns what tokenizer.json holds: the tokens' bytes in the order of their rank."""
    import rustbpe

    def sample() -> Iterator[str]:
        characters = 0
        for batch in batches:
            for text in batch:
                yield text[:TOKENIZER_DOCUMENT]
                characters += min(len(text), TOKENIZER_DOCUMENT)
                if characters >= TOKENIZER_CHARACTERS:
                    return

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(sample(), VOCAB_SIZE - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda entry: entry[1])
    return {
        "pattern": SPLIT_PATTERN,
        "special_tokens": SPECIAL_TOKENS,
        "tokens": [base64.b64encode(bytes(token)).decode() for token, _ in ranks],
    }


def load_tokenizer(description: dict):
    """A tiktoken.Encoding of what `train_tokenizer` returned. Special tokens follow the learned ones."""
    import tiktoken

    tokens = [base64.b64decode(token) for token in description["tokens"]]
    return tiktoken.Encoding(
        name="autoresearch",
        pat_str=description["pattern"],
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={name: len(tokens) + i for i, name in enumerate(description["special_tokens"])},
    )


def count_token_bytes(encoding) -> np.ndarray:
    """Raw bytes of each token, (VOCAB_SIZE,) int32; special and unused tokens count zero."""
    counts = np.zeros(VOCAB_SIZE, dtype=np.int32)
    for token in range(encoding.n_vocab - len(SPECIAL_TOKENS)):
        counts[token] = len(encoding.decode_single_token_bytes(token))
    return counts


# ----------------------------------------------------------------------------------------------
# Packing


def pack_rows(batches: Iterable[list[np.ndarray]], row_length: int) -> Iterator[np.ndarray]:
    """Best-fit packing as in the public evaluator. Yields full rows, (row_length,) uint16.

    A row takes the longest document that still fits, the first of equals; when none fits, the
    shortest is cropped to fill the row and its rest is dropped. The buffer of documents to choose
    from is kept at 1,000 or more while the source lasts. Documents begin with BOS, so rows do too.
    """
    batches = iter(batches)
    waiting: dict[int, collections.deque] = {}  # length -> documents of that length, in order of arrival
    lengths: list[int] = []  # the keys of `waiting`, sorted
    count, exhausted = 0, False
    while True:
        row, position = np.empty(row_length, dtype=np.uint16), 0
        while position < row_length:
            while count < PACKING_BUFFER and not exhausted:
                batch = next(batches, None)
                exhausted = batch is None
                for document in batch or ():
                    length = len(document)
                    if length not in waiting:
                        waiting[length] = collections.deque()
                        bisect.insort(lengths, length)
                    waiting[length].append(document)
                    count += 1
            if count == 0:
                return  # the row begun last is not full: dropped
            fitting = bisect.bisect_right(lengths, row_length - position)
            index = max(fitting - 1, 0)  # the longest that fits, else the shortest of all
            length = lengths[index]
            document = waiting[length].popleft()
            count -= 1
            if not waiting[length]:
                del waiting[length], lengths[index]
            end = min(position + length, row_length)
            row[position:end] = document[: end - position]
            position = end
        yield row


# ----------------------------------------------------------------------------------------------
# The cache: one folder a (data, profile), complete or absent


def cache_folder() -> Path:
    """Where the prepared files of this game live."""
    name = DATA if DATA in ("climbmix", "sotu") else f"{Path(DATA).name}-{digest(DATA).hex()[:8]}"
    return CACHE / f"{name}-{PROFILE.name}"


def read_manifest() -> dict | None:
    """The manifest if it belongs to this game and every file has its size, else None."""
    folder = cache_folder()
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        fits = manifest["format"] == FORMAT and manifest["profile"] == dataclasses.asdict(PROFILE)
        whole = all((folder / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items())
        return manifest if fits and whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def need_manifest() -> dict:
    manifest = read_manifest()
    if manifest is None:
        stop(
            f"the data of profile {PROFILE.name} on {DATA} is not prepared, or only half; run `uv run prepare.py` first "
            f"(AUTORESEARCH_PROFILE={PROFILE.name} AUTORESEARCH_DATA={DATA})"
        )
    return manifest


def open_rows(split: str) -> np.ndarray:
    """The packed rows of a split, (rows, MAX_SEQ_LEN + 1) uint16, as a read-only memory map."""
    rows = need_manifest()["splits"][split]["rows"]
    return np.memmap(cache_folder() / f"{split}.bin", dtype=np.uint16, mode="r", shape=(rows, MAX_SEQ_LEN + 1))


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare() -> dict:
    """Make the cache of this game if it is not there, whole and of this source. Returns its manifest."""
    folder = cache_folder()
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second program waits and then finds the work done
        source = open_source(DATA)
        manifest = read_manifest()
        if manifest is not None and manifest["source"] == source.identity():
            if all(file_hash(folder / name) == entry["sha256"] for name, entry in manifest["files"].items()):
                return manifest
        if folder.exists():
            print(f"{folder} is not whole or was made for something else: it is built again", file=sys.stderr)
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)  # left behind by a preparation that was killed
        try:
            part.mkdir()
            manifest = build(source, part)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return manifest


def build(source: Climbmix | Documents, part: Path) -> dict:
    """Write every file of the cache into `part`."""
    source.fetch()
    with progress_bars() as bars:
        bar = bars.add_task("tokenizer", total=None, note="learning merges")
        description = train_tokenizer(source.batches("train"))
        (part / "tokenizer.json").write_text(json.dumps(description))
        encoding = load_tokenizer(description)
        np.save(part / "token_bytes.npy", count_token_bytes(encoding))
        bars.update(bar, total=1, completed=1, note=f"{encoding.n_vocab} tokens")
        splits = {split: write_rows(source, split, encoding, part / f"{split}.bin", bars) for split in SPLITS}
    for split, counts in splits.items():
        if counts["rows"] == 0:
            stop(f"{DATA} has too little text: no full row of {MAX_SEQ_LEN} tokens for {split}. Add text to it")
    manifest = {
        "format": FORMAT,
        "profile": dataclasses.asdict(PROFILE),
        "source": source.identity(),
        "splits": splits,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in sorted(part.iterdir())
        },
    }
    with open(part / "manifest.json", "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    return manifest


def write_rows(source: Climbmix | Documents, split: str, encoding, path: Path, bars) -> dict:
    """Tokenize and pack one split into `path`. Val and holdout end at the profile's number of scored tokens."""
    limit = None if split == "train" else PROFILE.scored_tokens // MAX_SEQ_LEN
    bos = encoding.encode_single_token(SPECIAL_TOKENS[0])
    longest = sys.maxsize if source.crops else MAX_SEQ_LEN  # tokens a document, BOS apart
    counts = {"documents": 0, "characters": 0, "rows": 0}
    bar = bars.add_task(split, total=limit, note="")

    def tokenized() -> Iterator[list[np.ndarray]]:
        for batch in source.deduplicated(split):
            counts["documents"] += len(batch)
            counts["characters"] += sum(map(len, batch))
            encoded = encoding.encode_ordinary_batch(batch, num_threads=os.cpu_count() or 1)
            yield [
                np.array([bos, *tokens[start : start + longest]], dtype=np.uint16)
                for tokens in encoded
                for start in range(0, max(1, len(tokens)), longest)
            ]

    with open(path, "wb") as file:
        for row in pack_rows(tokenized(), MAX_SEQ_LEN + 1):
            file.write(row.data)
            counts["rows"] += 1
            if counts["rows"] % 256 == 0:
                bars.update(bar, completed=counts["rows"], note=f"{counts['rows'] * MAX_SEQ_LEN / 1e6:.1f}M tokens")
            if counts["rows"] == limit:
                break
    bars.update(
        bar, total=counts["rows"], completed=counts["rows"], note=f"{counts['rows'] * MAX_SEQ_LEN / 1e6:.1f}M tokens"
    )
    return counts


# ----------------------------------------------------------------------------------------------
# The clock is the data loader


def seconds_since_process_start() -> float:
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - started


_now = time.perf_counter
_PROCESS_START = _now() - seconds_since_process_start()
_TIMELINE: dict[str, float] = {"imported": _now() - _PROCESS_START}  # seconds since the process began


def write_json(path: Path, values: dict) -> None:
    """Write a small JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(values))
    temporary.replace(path)


def warmup_batch(batch_size: int, device):
    """Random tokens to compile and warm up on, free of charge: nothing can be learned from them.

    Returns (inputs, targets), each (batch_size, MAX_SEQ_LEN) int64 on the device.
    """
    import torch

    _TIMELINE.setdefault("built", _now() - _PROCESS_START)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(VOCAB_SIZE, (batch_size, MAX_SEQ_LEN + 1), generator=generator).to(device)
    return rows[:, :-1], rows[:, 1:]


class TrainBatches:
    """The only door to training text, and the clock.

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
    _began = _reported = 0.0  # by the clock on the wall: when that was; when progress was reported last

    def __init__(self, batch_size: int, device) -> None:
        import torch

        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of rows, 1 or more, not {batch_size!r}")
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.batches = 0  # handed out so far
        self._torch = torch
        self._cuda = self.device.type == "cuda"
        self._source = RefereeRows(batch_size) if "AUTORESEARCH_REFEREE" in os.environ else CacheRows(batch_size)
        self._last_step = None  # event: what was queued before the last batch is done
        self._full: queue.Queue = queue.Queue()
        self._free: queue.Queue = queue.Queue()
        for _ in range(self.BUFFERS):
            shape = (batch_size, MAX_SEQ_LEN + 1)
            self._free.put((torch.empty(shape, dtype=torch.int16, pin_memory=self._cuda), None))
        threading.Thread(target=self._fill, daemon=True, name="train-batches").start()

    @property
    def elapsed(self) -> float:
        """Seconds since the first batch was handed out; 0 before."""
        return 0.0 if self._start is None else _now() - self._start

    @property
    def progress(self) -> float:
        """Share of the time budget that is over, 0 to 1."""
        return min(1.0, self.elapsed / TIME_BUDGET)

    @property
    def tokens(self) -> int:
        """Tokens handed out so far."""
        return self.batches * self.batch_size * MAX_SEQ_LEN

    def report(self, loss: float | None = None, step: int | None = None) -> None:
        """Say how the training goes, for people who watch; nothing is judged by it. Once a second at most: more often costs nothing."""
        if self._start is not None and time.time() - self._reported >= self.REPORT_SECONDS:
            self._write_progress(loss=loss, step=step)

    def _write_progress(self, **more) -> None:
        TrainBatches._reported = time.time()
        try:
            write_json(RUN_FOLDER / "progress.json", {"clock": self._began, "budget": TIME_BUDGET, **more})
        except (OSError, TypeError):  # a full disk, or a tensor instead of a number: no reason to lose a training
            pass

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
        if self._cuda:
            if self._last_step is not None:
                self._last_step.synchronize()
            self._last_step = self._torch.cuda.Event(blocking=True)
            self._last_step.record()
        if self._start is None:
            if self._cuda:
                self._torch.cuda.synchronize()
            self._source.start()
        buffer = self._full.get() if self.elapsed < TIME_BUDGET else None
        if buffer is None:
            self._full.put(None)  # whoever asks again hears the same
            _TIMELINE.setdefault("ended", _now() - _PROCESS_START)
            raise StopIteration
        if isinstance(buffer, BaseException):
            raise buffer
        if self._start is not None and self.elapsed >= TIME_BUDGET:  # time ran out while waiting for the loader
            raise StopIteration
        rows = buffer.to(self.device, non_blocking=True)
        copied = None
        if self._cuda:
            copied = self._torch.cuda.Event()
            copied.record()
        rows = rows.to(self._torch.int64)  # on a CPU this is the copy that frees the buffer
        self._free.put((buffer, copied))
        if self._start is None:
            TrainBatches._start = _now()
            _TIMELINE["clock"] = self._start - _PROCESS_START
            TrainBatches._began = time.time()
            self._write_progress()
        self.batches += 1
        return rows[:, :-1], rows[:, 1:]


class CacheRows:
    """Training rows in seeded order, from the cache: for a run by hand, and for the referee."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.rows = open_rows("train")
        self.order = self.shuffled()

    def shuffled(self) -> Iterator[np.ndarray]:
        """Row numbers of one batch after the other: seeded shuffles of all rows, end to end."""
        generator = np.random.default_rng(SEED)
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

    channel: socket.socket | None = None  # of the process: all iterators take turns on it
    turn = threading.Lock()

    def __init__(self, batch_size: int) -> None:
        if RefereeRows.channel is None:
            RefereeRows.channel = socket.socket(fileno=int(os.environ["AUTORESEARCH_REFEREE"]))
        with self.turn:
            self.channel.send(b"open %d" % batch_size)
            number, memories, _, _ = socket.recv_fds(self.channel, 64, 1)
        if not memories:
            raise RuntimeError(f"the referee gives no batch of {batch_size} rows ({MOST_ROWS} at most)")
        self.number, memory = int(number), memories[0]
        self.started = threading.Event()
        self.batch = shared_rows(memory, batch_size)
        if TrainBatches._start is not None:
            self.started.set()

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


def shared_rows(memory: int, batch_size: int) -> np.ndarray:
    """The rows in shared memory, (batch_size, MAX_SEQ_LEN + 1) uint16."""
    return np.frombuffer(mmap.mmap(memory, 2 * batch_size * (MAX_SEQ_LEN + 1)), np.uint16).reshape(batch_size, -1)


class Referee:
    """A process that hands training rows to the training process and keeps the time, out of that one's reach.

    A child without torch, so that nothing in this process can hold up a batch.
    """

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        # By _now(): when the clock started, the longest time between two requests for a batch, the last request.
        self.times = np.frombuffer(mmap.mmap(-1, 24), np.float64)
        if (pid := os.fork()) == 0:
            with contextlib.suppress(BaseException):  # of a process that breaks the rules: it gets no more
                self.run()
            os._exit(0)
        self.pid = pid
        channel.close()

    def run(self) -> None:
        streams: list[tuple[CacheRows, np.ndarray]] = []
        while message := self.channel.recv(64):
            word, _, number = message.partition(b" ")
            if word == b"open" and len(streams) < 64 and int(number) <= MOST_ROWS:
                memory = os.memfd_create("rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                os.ftruncate(memory, 2 * int(number) * (MAX_SEQ_LEN + 1))
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
                socket.send_fds(self.channel, [b"%d" % len(streams)], [memory])
                streams.append((CacheRows(int(number)), shared_rows(memory, int(number))))
                os.close(memory)
                continue
            now = _now()
            if word == b"start" and not self.times[0]:
                self.times[0] = self.times[2] = now
            if word == b"next":
                rows, batch = streams[int(number)]
                if not self.times[0] or now - self.times[0] >= TIME_BUDGET:
                    self.channel.send(b"over")
                    continue
                self.times[1:] = max(self.times[1], now - self.times[2]), now
                rows.fill(batch)
            self.channel.send(b"go")

    def require_in_time(self, saved: Path) -> None:
        """Call when the training process has just ended. Raises NoScore if it went on after the clock.

        Allowed are two seconds, one step, and what saving the weights takes at 200 MB/s; the latter two up to two
        seconds or a twentieth of the budget each.
        """
        now = _now()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        clock, longest_step, last = self.times.tolist()
        if not clock:
            raise NoScore("the training drew no batch from TrainBatches")
        over = now - clock - TIME_BUDGET
        longest_step = max(longest_step, clock + TIME_BUDGET - last)
        saving = saved.lstat().st_blocks * 512 / 200e6 if saved.exists() else 0.0
        most = max(2.0, TIME_BUDGET / 20)
        allowed = 2.0 + min(longest_step, most) + min(saving, most)
        if over > allowed:
            raise NoScore(
                f"void: the training process went on for {over:.1f} s after its {TIME_BUDGET:g} s; {allowed:.1f} s are "
                "allowed, for the last step and for saving"
            )


def finish(
    model, batches: TrainBatches, *, num_steps: int, depth: int | None = None, mfu_percent: float | None = None
) -> NoReturn:
    """End a run: wait for the device, save the weights and the run's figures, hand over to the scorer.

    model: the trained module; its parameters and buffers go to model.safetensors.
    num_steps: optimizer steps. depth: layers, if that means something. mfu_percent: share of the
    device's peak bf16 arithmetic that was used, None where the peak is unknown.

    Never returns. Under the loop (AUTORESEARCH_RUN_DIR is set) the process ends at once and the loop
    runs the scorer; by hand it becomes `prepare.py score`. Either way the device's memory is free.
    """
    import resource

    import torch
    from safetensors.torch import save_model

    if batches.batches == 0:
        raise RuntimeError("finish was called before a single batch was drawn: nothing was trained")
    if batches.device.type == "cuda":
        torch.cuda.synchronize()
        peak_bytes = torch.cuda.max_memory_allocated()
    else:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    training_seconds = batches.elapsed
    _TIMELINE["finished"] = _now() - _PROCESS_START
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    RUN_FOLDER.mkdir(parents=True, exist_ok=True)
    save_model(model, str(RUN_FOLDER / "model.safetensors"))
    _TIMELINE["saved"] = _now() - _PROCESS_START
    write_json(
        RUN_FOLDER / "figures.json",
        {
            "profile": PROFILE.name,
            "data": DATA,
            "device": str(batches.device),
            "train_py": os.path.abspath(sys.modules["__main__"].__file__),
            "training_seconds": training_seconds,
            "started": time.time() - (_now() - _PROCESS_START),
            "peak_vram_mb": peak_bytes / 2**20,
            "mfu_percent": mfu_percent,
            "total_tokens_M": batches.tokens / 1e6,
            "num_steps": num_steps,
            "num_params_M": sum(p.numel() for p in model.parameters()) / 1e6,
            "depth": depth,
            "timeline": _TIMELINE,
        },
    )
    sys.stdout.flush()
    sys.stderr.flush()
    if "AUTORESEARCH_RUN_DIR" in os.environ:
        os._exit(0)
    os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), "score"])


# ----------------------------------------------------------------------------------------------
# The score. Two sides: the referee (this process) holds targets and does the arithmetic; train.py's model
# runs in a process of its own, which reads token ids and writes logits into memory that both see.

LOGITS_BYTES = (512 if PROFILE.name == "gpu" else 32) << 20  # float32 logits of one batch, at most
PROBES = 512 if PROFILE.name == "gpu" else 128  # rows that are scored again with their end replaced
PRIVATE_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")


class NoScore(Exception):
    """Why a run has no score, in one line."""


def score(split: str = "val", wait: bool = False, train_py: Path | None = None, probe_all: bool = False) -> dict:
    """Bits per byte of the last run's checkpoint on a held-out split, and the run's figures.

    Cross-entropy in nats over all targets that stand for bytes, divided by ln 2 and by the number
    of those bytes. Always the same rows, whatever batch size train.py used. Raises NoScore for a model
    that has none: one that fails, does not give finite logits of the right shape, or fails a probe.

    wait: be the referee of a training that runs beside this; a line on standard input says that its
    process has ended. train_py: the file that defines the model, else the one that the run names.
    probe_all: probe every row once, not PROBES of them.
    """
    channel = os.environ.pop("AUTORESEARCH_REFEREE", None)
    referee = Referee(socket.socket(fileno=int(channel))) if channel else None
    import torch

    if wait and not sys.stdin.readline():
        raise SystemExit(1)  # the training failed: nothing to score
    if referee:
        referee.require_in_time(RUN_FOLDER / "model.safetensors")
    with ModelProcess() as scored, ModelProcess() as probed:  # forked while this process holds nothing to hide
        began = _now()
        figures = read_figures()
        token_bytes = np.load(cache_folder() / "token_bytes.npy")
        rows = np.array(open_rows(split))
        counts = token_bytes[rows[:, 1:]]
        scored.load(train_py or Path(figures["train_py"]), figures["device"])
        losses = scored.losses(rows)
        scored.end()  # before the other one begins: they must not meet
        bits_per_byte = (
            (losses.double() * torch.from_numpy(counts > 0)).sum().item() / math.log(2) / counts.sum(dtype=np.int64)
        )
        if not math.isfinite(bits_per_byte):
            raise NoScore(f"the score is not a finite number: {bits_per_byte}")
        probed.batch_size = scored.batch_size
        probed.load(train_py or Path(figures["train_py"]), figures["device"])
        probe(probed, rows, losses, len(rows) if probe_all else PROBES)
    return {**figures, f"{split}_bpb": float(bits_per_byte), "score_seconds": _now() - began}


def read_figures() -> dict:
    """What `finish` wrote. The training process could write anything there: only what has the right form counts."""
    numbers = (
        "training_seconds",
        "started",
        "peak_vram_mb",
        "mfu_percent",
        "total_tokens_M",
        "num_steps",
        "num_params_M",
        "depth",
    )
    try:
        handle = os.open(RUN_FOLDER / "figures.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle) as file:
            found = json.loads(file.read(1 << 16))
        figures = {name: found[name] for name in ("profile", "data", "device", "train_py")}
        if not all(isinstance(text, str) for text in figures.values()) or figures["device"].split(":")[0] not in (
            "cpu",
            "cuda",
        ):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        stop(f"there is no finished run in {RUN_FOLDER}; train first: `uv run train.py`")
    if (figures["profile"], figures["data"]) != (PROFILE.name, DATA):
        stop(
            f"the run in {RUN_FOLDER} was trained as {figures['profile']} on {figures['data']}; score it with "
            f"AUTORESEARCH_PROFILE={figures['profile']} AUTORESEARCH_DATA={figures['data']}"
        )
    for name in numbers:
        value = found.get(name)
        figures[name] = value if isinstance(value, int | float) and math.isfinite(value) else None
    return figures


class ModelProcess:
    """A process that runs train.py's model and nothing else of ours. What it may read holds no target.

    Forked from this one, which has imported torch and must not have used it yet. AUTORESEARCH_CONFINE holds the
    words of the loop's sandbox.launcher, by which it is confined; it writes to a folder of its own
    and nowhere else.
    """

    def __init__(self) -> None:
        at_most = PROFILE.scored_tokens // MAX_SEQ_LEN // 8  # so that what learns from batch to batch shows
        self.batch_size = max(1, min(at_most, LOGITS_BYTES // (4 * VOCAB_SIZE * MAX_SEQ_LEN)))
        self.folder = Path(tempfile.mkdtemp(prefix="model-"))
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        if (pid := os.fork()) == 0:
            try:
                self.become(theirs)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        self.pid = pid
        theirs.close()

    def become(self, channel: socket.socket) -> NoReturn:
        """In the child: leave everything behind but the channel, confine itself, answer."""
        os.setsid()
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for target, handle in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
            os.dup2(handle, target)
        os.closerange(3, channel.fileno())
        os.closerange(channel.fileno() + 1, 1 << 16)
        tempfile.tempdir = None
        os.environ |= {"TMPDIR": str(self.folder), **{name: str(self.folder / name.lower()) for name in PRIVATE_CACHES}}
        launcher = json.loads(os.environ.pop("AUTORESEARCH_CONFINE", "[]"))
        if not launcher:
            answer(channel)
        sandbox = runpy.run_path(launcher[-2])
        rules = json.loads(launcher[-1])
        if rules and rules["by"] != "Landlock":  # a program confines it, so it has to begin anew
            os.environ["AUTORESEARCH_REFEREE"] = str(channel.fileno())
            channel.set_inheritable(True)
            os.execv(launcher[0], [*launcher, sys.executable, os.path.abspath(__file__), "answer"])
        sandbox["run"](rules, lambda: answer(channel))

    def __enter__(self) -> "ModelProcess":
        return self

    def __exit__(self, *exception) -> None:
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        """End the process and all that it started, at once."""
        self.channel.close()
        if self.pid is None:
            return
        handle = os.pidfd_open(self.pid)
        for number, seconds in (
            (signal.SIGTERM, 6.0),
            (signal.SIGKILL, None),
        ):  # its keeper, where it has one, ends all
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            if select.select([handle], [], [], seconds)[0]:
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.close(handle)
        os.waitpid(self.pid, 0)
        self.pid = None

    def load(self, train_py: Path, device: str) -> None:
        """Have it build the model with the run's weights. Logits travel through the device's memory if both sides can open it."""
        import torch

        self.device = torch.device(device)
        ids, logits = self.batch_size * MAX_SEQ_LEN, self.batch_size * MAX_SEQ_LEN * VOCAB_SIZE
        for shared_by in ("handle", "host") if self.device.type == "cuda" else ("host",):
            handle = ""
            if shared_by == "handle":
                try:
                    self.logits, handle = device_memory(4 * logits)
                except (OSError, RuntimeError):
                    continue
            memory = os.memfd_create("logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(memory, 8 * ids + (0 if handle else 4 * logits))
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self.ids, in_memory = shared_ids_and_logits(memory, self.batch_size, bool(handle))
            request = {"train_py": str(train_py), "device": device, "batch_size": self.batch_size, "handle": handle}
            try:
                socket.send_fds(self.channel, [json.dumps(request).encode()], [memory])
            except OSError:
                pass  # it has ended: the answer says so
            os.close(memory)
            if self.answer() == b"ready":
                if not handle:
                    self.logits = in_memory
                return
        raise NoScore("the model's process could not open the memory for its logits")

    def answer(self) -> bytes:
        try:
            answer = self.channel.recv(64)
        except OSError:
            answer = b""
        if answer in (b"ready", b"done", b"memory", b"closed"):
            return answer
        self.end()
        log = (self.folder / "log").read_bytes()[-4000:].decode(errors="replace")
        lines = ["".join(c for c in line if c.isprintable()) for line in log.splitlines() if line.strip()]
        for line in lines[-15:]:
            print(f"  model | {line[:300]}", file=sys.stderr)
        raise NoScore(f"the model cannot be scored: {lines[-1][:200] if lines else 'its process ended without a word'}")

    def losses(self, rows: np.ndarray, targets: np.ndarray | None = None):
        """Nats of every target of the rows (N, MAX_SEQ_LEN + 1): an (N, MAX_SEQ_LEN) float32 tensor on the CPU.

        targets: (N, MAX_SEQ_LEN), where they are not the rows' own next tokens.

        Always in batches of one shape, the last one filled up with rows that do not count; smaller
        ones after the device's memory ran out, which changes nothing but the time it takes.
        """
        import torch

        losses = torch.empty(len(rows), MAX_SEQ_LEN)
        first = 0
        while first < len(rows):
            numbers = np.arange(first, first + self.batch_size) % len(rows)
            self.ids[: self.batch_size] = torch.from_numpy(rows[numbers, :-1].astype(np.int64))
            wanted = torch.from_numpy((rows[:, 1:] if targets is None else targets)[numbers].astype(np.int64)).to(
                self.device
            )
            with contextlib.suppress(OSError):
                self.channel.send(b"%d" % self.batch_size)
            if self.answer() == b"memory":
                if self.batch_size == 1:
                    raise NoScore("the model needs more memory than there is for a single row")
                self.batch_size //= 2
                continue
            for row in range(min(self.batch_size, len(rows) - first)):
                logits = self.logits[row].to(self.device, copy=True)  # theirs could change under the arithmetic
                losses[first + row] = cross_entropy(logits, wanted[row])
            first += self.batch_size
        return losses


def cross_entropy(logits, targets):
    """Nats of each target: logits (T, VOCAB_SIZE) float32, targets (T,) -> (T,). A row at a time: next to no memory."""
    return logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]


def probe(model: ModelProcess, rows: np.ndarray, losses, count: int) -> None:
    """Raise NoScore unless what the model says about a token follows from the tokens before it, and from nothing else.

    Rows are scored again, by a process that has seen none of them, in batches of other company: first some
    that were scored late, as they are; then `count` of all, cut at a random place, what follows replaced by text
    from another row. Over all of an untouched row, and up to the cut, the losses must be those of the first
    scoring, `losses` (rows, MAX_SEQ_LEN), but for noise of the arithmetic.
    """
    import torch

    random = np.random.default_rng()  # never seeded: who trains must not know the cuts
    altered, cuts = np.resize(random.permutation(len(rows)), count), spread(count, random)
    donors = (altered + random.integers(1, max(2, len(rows)), count)) % len(rows)
    untouched = np.resize(len(rows) // 2 + random.permutation(len(rows) - len(rows) // 2), (count + 3) // 4)
    first = len(untouched)
    again = rows[np.concatenate([untouched, altered])]
    originals = again.copy()
    for row, donor, cut in zip(again[first:], donors, cuts, strict=True):
        end = rows[donor, cut:]
        if end[0] == row[cut]:  # the first token after the cut must be another one
            end = np.roll(end, -int(np.argmax(end != row[cut])))
        row[cut:] = end
    moved = model.losses(again, originals[:, 1:]) - losses[np.concatenate([untouched, altered])]
    moved = moved.nan_to_num(math.inf)
    if reason := depends_on_company(moved[:first]) or looks_ahead(moved[first:], torch.from_numpy(cuts), moved[:first]):
        raise NoScore(reason)


def depends_on_company(moved) -> str | None:
    """Whether rows that were scored again as they were have other losses: moved (rows, MAX_SEQ_LEN), in nats."""
    mean = moved.abs().mean().item()
    if mean > STATE_LIMIT or rises(moved):
        return (
            f"a row's score depends on what was scored with it or before it: the same rows, scored again by a fresh process in "
            f"other batches, moved by {mean:.3g} nats a token"
        )
    return None


def looks_ahead(moved, cuts, untouched) -> str | None:
    """Whether replacing the text from a cut on has moved losses before it: moved (probes, MAX_SEQ_LEN), cuts (probes,).

    Three signs, any of which is enough; honest noise (rounding that depends on the other tokens) has none:
    a single loss moves by more than noise can; losses next to the cut move more often than those farther
    away, by six standard errors; or losses before the cut rise together when the true text behind it is gone.
    """
    import torch

    position = torch.arange(MAX_SEQ_LEN)
    before = position < cuts[:, None]
    size = moved.abs() * before
    last = size[torch.arange(len(cuts)), cuts - 1] > MOVED
    share = ((size > MOVED).sum() - last.sum()).item() / max(1, before.sum().item() - len(cuts))
    expected = share * len(cuts)
    too_large = size.max() > max(LEAK_LIMIT, 4 * untouched.abs().max().item())
    at_the_cut = last.sum() > 1 + expected + 6 * (expected * (1 - share)) ** 0.5
    if too_large or at_the_cut or rises(moved * before):
        worst = size.amax(1).argmax()
        token = size[worst].argmax()
        return (
            f"the model looks ahead: the loss of token {token + 1} moved by {size[worst, token]:.3g} nats when only tokens from "
            f"{cuts[worst]} on were replaced; {((size > MOVED).any(1)).sum()} of {len(cuts)} probes moved something"
        )
    return None


def rises(moved) -> bool:
    """Whether the losses of rows (rows, MAX_SEQ_LEN) have risen by five standard errors, and by enough to matter."""
    sums = moved.double().sum(1)
    mean, error = sums.mean().item(), (sums.std() / len(sums) ** 0.5).item()
    return mean > max(5 * error, 1e-4)


MOVED = 1e-4  # nats: less is the noise of float32
LEAK_LIMIT = 0.25  # nats that rounding has never moved the loss of a single token by
STATE_LIMIT = 0.01  # nats a token on average; atomic sums on a GPU move bf16 models by less


def spread(count: int, random: np.random.Generator) -> np.ndarray:
    """`count` random cuts, one from each equal part of the row's length, in random order. A cut is 1 or more."""
    return random.permutation(
        1 + ((np.arange(count) + random.random(count)) * (MAX_SEQ_LEN - 1) / count).astype(np.int64)
    )


# The other side


def answer(channel: socket.socket) -> NoReturn:
    """Run the agent's code while it is scored: read token ids, write logits. Knows no target."""
    import torch

    with channel:
        model = None
        while True:
            request, memories, _, _ = socket.recv_fds(channel, 4096, 1)
            if not request:
                os._exit(0)
            request = json.loads(request)
            ids, logits = shared_ids_and_logits(memories[0], request["batch_size"], bool(request["handle"]))
            if request["handle"]:
                try:
                    logits = open_device_memory(request["handle"]).view(-1, MAX_SEQ_LEN, VOCAB_SIZE)
                except (OSError, RuntimeError):
                    channel.send(b"closed")
                    continue
            model = model or load_model(Path(request["train_py"]), request["device"])
            break
        channel.send(b"ready")
        with torch.inference_mode():
            while rows := channel.recv(64):
                try:
                    given = model(ids[: int(rows)].to(request["device"]))
                    expected = (int(rows), MAX_SEQ_LEN, VOCAB_SIZE)
                    if (
                        not isinstance(given, torch.Tensor)
                        or tuple(given.shape) != expected
                        or not given.is_floating_point()
                    ):
                        form = (
                            f"{tuple(given.shape)} {given.dtype}"
                            if isinstance(given, torch.Tensor)
                            else type(given).__name__
                        )
                        print(f"the model must give logits {expected} in floating point, not {form}", flush=True)
                        os._exit(1)
                    logits[: int(rows)].copy_(given)
                    if logits.device.type != given.device.type or given.is_cuda:
                        torch.cuda.synchronize()
                except torch.OutOfMemoryError:
                    given = None
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                    channel.send(b"memory")
                    continue
                channel.send(b"done")
    os._exit(0)


def load_model(train_py: Path, device: str):
    """The trained model: `build_model()` of train.py with the run's weights, on the run's device."""
    from safetensors.torch import load_model as load_weights

    sys.path.insert(0, str(train_py.parent))
    model = importlib.import_module(train_py.stem).build_model()
    load_weights(model, str(RUN_FOLDER / "model.safetensors"))
    return model.to(device).eval()


def shared_ids_and_logits(memory: int, batch_size: int, only_ids: bool):
    """Shared host memory as ids (batch_size, MAX_SEQ_LEN) int64 and logits (.., VOCAB_SIZE) float32; those may be elsewhere."""
    import torch

    ids, logits = batch_size * MAX_SEQ_LEN, 0 if only_ids else batch_size * MAX_SEQ_LEN * VOCAB_SIZE
    view = mmap.mmap(memory, 8 * ids + 4 * logits)
    floats = (
        torch.frombuffer(view, dtype=torch.float32, offset=8 * ids).view(-1, MAX_SEQ_LEN, VOCAB_SIZE)
        if logits
        else None
    )
    return torch.frombuffer(view, dtype=torch.int64, count=ids).view(batch_size, MAX_SEQ_LEN), floats


class DeviceMemory:
    """Device memory at an address, in the form that torch.as_tensor understands."""

    def __init__(self, address: int, floats: int) -> None:
        self.__cuda_array_interface__ = {"shape": (floats,), "typestr": "<f4", "data": (address, False), "version": 2}


class MemoryHandle(ctypes.Structure):  # CUipcMemHandle of cuda.h
    _fields_ = [("reserved", ctypes.c_char * 64)]


@functools.cache
def device_memory(size: int):
    """`size` bytes of the first GPU's memory that other processes can open: ((..) float32 logits, the handle in hex).

    Asks the driver itself, since torch's own allocations share their handle with others. Raises OSError.
    """
    import torch

    torch.zeros(1, device="cuda")  # makes the context that the driver's calls need
    cuda, address, handle = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64(), MemoryHandle()
    if cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)):
        raise OSError("no memory on the device")
    if cuda.cuIpcGetMemHandle(ctypes.byref(handle), address):
        cuda.cuMemFree_v2(address)
        raise OSError("the device's memory cannot be shared")
    floats = torch.as_tensor(DeviceMemory(address.value, size // 4), device="cuda")
    return floats.view(-1, MAX_SEQ_LEN, VOCAB_SIZE), f"{size} {bytes(handle).hex()}"


def open_device_memory(text: str):
    """The memory behind a handle of `device_memory`, as a flat float32 tensor. Raises OSError."""
    import torch

    torch.zeros(1, device="cuda")
    size, handle = text.split()
    cuda, address = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64()
    cuda.cuIpcOpenMemHandle_v2.argtypes = [ctypes.c_void_p, MemoryHandle, ctypes.c_uint]
    if cuda.cuIpcOpenMemHandle_v2(ctypes.byref(address), MemoryHandle.from_buffer_copy(bytes.fromhex(handle)), 1):
        raise OSError("the device's memory cannot be opened here")
    return torch.as_tensor(DeviceMemory(address.value, int(size) // 4), device="cuda")


def print_summary(result: dict, split: str) -> None:
    """The public summary block: one `key: value` a line after a line of dashes."""

    def number(value, pattern: str) -> str:
        return "n/a" if value is None else format(value, pattern)

    lines = {
        f"{split}_bpb": number(result[f"{split}_bpb"], ".6f"),
        "training_seconds": number(result["training_seconds"], ".1f"),
        "total_seconds": number(result["started"] and time.time() - result["started"], ".1f"),
        "peak_vram_mb": number(result["peak_vram_mb"], ".1f"),
        "mfu_percent": number(result["mfu_percent"], ".2f"),
        "total_tokens_M": number(result["total_tokens_M"], ".1f"),
        "num_steps": number(result["num_steps"], ".0f"),
        "num_params_M": number(result["num_params_M"], ".1f"),
        "depth": number(result["depth"], ".0f"),
    }
    print("---")
    for key, value in lines.items():
        print(f"{key + ':':<18}{value}")


# ----------------------------------------------------------------------------------------------
# Command line


def source_folders() -> list[Path]:
    """Where the text of this game lies before it is packed."""
    if DATA == "sotu":
        return [Path(importlib.metadata.distribution("sotu").locate_file("sotu"))]
    return [CACHE / "climbmix" if DATA == "climbmix" else Path(DATA)]


# The standard deviation of the score of identical code, as far as it is known before a run has measured its own. On an H100
# another seed moves it by 0.0007; a CPU shared with others trains more steps in one minute than in the next.
NOISE = {"gpu": 0.0007, "cpu": 0.003, "test": 0.02}


def machine() -> dict[str, str]:
    """What a reader of the results needs to know of the machine, besides the device."""
    facts = {
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        facts["processor"] = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    with contextlib.suppress(OSError, IndexError):
        facts["driver"] = re.findall(r"Kernel Module.*?  (\d[\d.]*)", Path("/proc/driver/nvidia/version").read_text())[
            0
        ]
    return facts


def describe() -> dict:
    """What a run on this machine would use. `game` names the prepared data; None when it is not there yet."""
    manifest = read_manifest()
    game = manifest and digest(json.dumps(manifest["files"], sort_keys=True)).hex()[:12]
    cuda = cuda_device_name() if PROFILE.name == "gpu" else None
    return {
        "profile": PROFILE.name,
        "device": cuda or f"CPU, {os.cpu_count()} cores",
        "machine": machine(),
        "data": DATA,
        "time_budget": TIME_BUDGET,
        "seed": SEED,
        "cache": str(cache_folder()),
        "game": game,
        "noise": NOISE[PROFILE.name],  # what the score's standard deviation usually is
        "implausible_gain": 0.05 if PROFILE.name == "gpu" else None,  # bits a byte over the champion
        "hidden": [
            str(path) for path in (cache_folder(), *source_folders())
        ],  # no trial sees text but through the referee
    }


def main() -> None:
    import argparse

    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="{score,describe}")
    scoring = commands.add_parser("score", help="score the checkpoint of the last run")
    scoring.add_argument("--split", choices=("val", "holdout"), default="val")
    scoring.add_argument(
        "--wait", action="store_true", help="be the referee of a training; score when a line arrives on standard input"
    )
    scoring.add_argument(
        "--train", type=Path, metavar="FILE", help="the file that defines the model; default: that of the run"
    )
    scoring.add_argument("--probe-all", action="store_true", help="probe every row for looking ahead, not a sample")
    commands.add_parser("answer")  # the other side of the score, begun by the first; of no use by hand
    commands.add_parser("describe", help="print what a run on this machine would use, as JSON")
    arguments = parser.parse_args()
    try:
        if arguments.command == "describe":
            print(json.dumps(describe()))
        elif arguments.command == "score":
            result = score(
                arguments.split, arguments.wait, arguments.train and arguments.train.absolute(), arguments.probe_all
            )
            print_summary(result, arguments.split)
        elif arguments.command == "answer":
            answer(socket.socket(fileno=int(os.environ.pop("AUTORESEARCH_REFEREE"))))
        else:
            manifest = prepare()
            rows = {split: counts["rows"] for split, counts in manifest["splits"].items()}
            print(
                f"ready: profile {PROFILE.name}, data {DATA}, rows of {MAX_SEQ_LEN} tokens: "
                + ", ".join(f"{count:,} {split}" for split, count in rows.items())
                + f", in {cache_folder()}"
            )
    except NoScore as reason:
        print(f"no score: {reason}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        stop(
            f"the disk is full: could not write below {CACHE}. Free some space, or name another disk with "
            "AUTORESEARCH_CACHE=FOLDER, and run the same command again: what was downloaded stays"
        )
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
