"""How fast training text is handed out, beside the public loader's method and beside plain copying, in one run.

    uv run bench/loader.py          # sizes of the gpu profile on sotu, on the CPU; prepares them first; a minute

The public loader packs while it trains: one thread keeps a list of 1,000 tokenized documents and searches it for every
document of every row. Here rows are packed once, when the data is prepared, and a batch is a gather from a file. Both
are written and read on the CPU; nothing is copied to a device. Every figure is a median over rounds in which all take
turns; a ratio is taken within its round.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ |= {"AUTORESEARCH_PROFILE": "gpu", "AUTORESEARCH_DATA": "sotu"}  # importing prepare.py sets malloc up for it
import prepare
from autoresearch.data import cache
from autoresearch.data.packing import PACKING_BUFFER, pack_rows
from autoresearch.data.sources import open_source
from autoresearch.data.texts import DOCUMENT_BATCH
from autoresearch.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from autoresearch.referee.clock import Referee

GAME = prepare.GAME

ROUNDS, SECONDS = 5, 0.8  # every method runs that long in every round
ROWS = 64  # a batch
LENGTH = GAME.profile.max_seq_len + 1
TOKENS = ROWS * GAME.profile.max_seq_len  # that a batch trains on
MEDIAN_WORDS = 490  # of a document: some 600 tokens, with the long tail of web text
LARGE = 512 << 20  # bytes: sotu's rows fit into a processor's cache, a real data set's do not
PUBLIC_PACE = 1.65e6  # tokens/s that the public recipe trains on with an H100
PACED_BATCHES = 25
LEAST_RATIO, LEAST_PACKING = 20, 20e6  # the goals


def documents() -> list[str]:
    """All speeches end to end, cut at words into documents of seeded log-normal lengths."""
    words = " ".join(open_source(GAME).documents()).split(" ")
    ends = np.cumsum(1 + np.random.default_rng(0).lognormal(np.log(MEDIAN_WORDS), 1.0, len(words)).astype(np.int64))
    return [" ".join(words[start:end]) for start, end in itertools.pairwise([0, *ends[ends < len(words)]])]


def refills(items: list) -> Iterator[list]:
    """128 items at a time, over and over."""
    return itertools.cycle([items[first : first + DOCUMENT_BATCH] for first in range(0, len(items), DOCUMENT_BATCH)])


def public_loader(batches: Iterator[list[list[int]]]) -> Iterator:
    """The public loader's method, from its description: best fit by searching a list, a tensor each row, copied."""
    import torch

    waiting: list[list[int]] = []
    inputs = torch.empty(ROWS, LENGTH - 1, dtype=torch.int64)
    targets = torch.empty_like(inputs)
    while True:
        for number in range(ROWS):
            row, position = torch.empty(LENGTH, dtype=torch.int64), 0
            while position < LENGTH:
                while len(waiting) < PACKING_BUFFER:
                    waiting.extend(next(batches))
                room, longest, chosen = LENGTH - position, 0, None
                for index, document in enumerate(waiting):
                    if longest < len(document) <= room:
                        longest, chosen = len(document), index
                if chosen is None:
                    chosen = min(range(len(waiting)), key=lambda index: len(waiting[index]))
                piece = waiting.pop(chosen)[:room]
                row[position : position + len(piece)] = torch.tensor(piece)
                position += len(piece)
            inputs[number], targets[number] = row[:-1], row[1:]
        yield inputs, targets


@contextlib.contextmanager
def batches_of_a_referee(game: prepare.Game) -> Iterator[prepare.TrainBatches]:
    """TrainBatches as a trial under the loop has it: another process hands the rows over through shared memory."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    referee = Referee(theirs, game)
    os.environ["AUTORESEARCH_REFEREE"] = str(ours.detach())
    try:
        batches = prepare.TrainBatches(ROWS, "cpu", game)
        del os.environ["AUTORESEARCH_REFEREE"]
        yield batches
    finally:
        os.kill(referee.pid, signal.SIGKILL)
        os.waitpid(referee.pid, 0)


def gather(source: prepare.CacheRows) -> Callable[[], None]:
    batch = np.empty((ROWS, LENGTH), dtype=np.uint16)
    return lambda: source.fill(batch)


def copy_of(kind: type, rows: np.ndarray) -> Callable[[], None]:
    """Copies one batch of consecutive rows after the other, as numbers of that kind."""
    batch = np.empty((ROWS, LENGTH), dtype=kind)
    whole = itertools.cycle(np.split(rows[: len(rows) // ROWS * ROWS].astype(kind), len(rows) // ROWS))
    return lambda: np.copyto(batch, next(whole))


def rate(hand_out: Callable) -> float:
    """Tokens a second of something that makes one batch a call."""
    began, batches = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < SECONDS:
        hand_out()
        batches += 1
    return batches * TOKENS / seconds


def waits_at_the_public_pace(batches: prepare.TrainBatches) -> int:
    """How many of PACED_BATCHES were not ready when a step as fast as the public recipe's asked for them."""
    waits = 0
    for _ in range(PACED_BATCHES):
        time.sleep(TOKENS / PUBLIC_PACE)
        waits += batches._full.empty()  # what the background thread has ready
        next(batches)
    return waits


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    cache.prepare(GAME)
    with tempfile.TemporaryDirectory() as folder:
        game = dataclasses.replace(GAME, run_folder=Path(folder))  # progress goes there, not to the user's last run
        with batches_of_a_referee(game) as from_referee:  # forked before torch is imported
            next(from_referee)  # the clock is one for all: who draws first starts the referee's
            measure(game, from_referee)


def measure(game: prepare.Game, from_referee: prepare.TrainBatches) -> None:
    encoding = load_tokenizer(json.loads((game.folder / "tokenizer.json").read_text()))
    bos = encoding.encode_single_token(SPECIAL_TOKENS[0])

    def tokenized(batch: list[str]) -> list[list[int]]:
        return [[bos, *tokens] for tokens in encoding.encode_ordinary_batch(batch, num_threads=1)]

    texts = documents()
    lists = tokenized(texts)
    arrays = [np.array(tokens, dtype=np.uint16) for tokens in lists]
    small, large = prepare.CacheRows(ROWS, game), prepare.CacheRows(ROWS, game)
    large.rows = np.tile(small.rows, (LARGE // small.rows.nbytes, 1))
    from_cache = prepare.TrainBatches(ROWS, "cpu", game)
    packed = pack_rows(refills(arrays), LENGTH)
    public, public_tokenizing = public_loader(refills(lists)), public_loader(map(tokenized, refills(texts)))
    methods = {
        "the public loader's method, tokenizing": lambda: next(public_tokenizing),
        "the public loader's method, tokenized before": lambda: next(public),
        "TrainBatches from the cache": lambda: next(from_cache),
        "TrainBatches through the referee": lambda: next(from_referee),
        "the gather alone, 2 bytes a token": gather(small),
        f"the gather alone, out of {LARGE >> 20} MB": gather(large),
        "np.copyto of a batch, 2 bytes a token": copy_of(np.uint16, small.rows),
        "np.copyto of a batch, 8 bytes a token": copy_of(np.int64, small.rows),
        "packing (pack_rows), done once": lambda: list(itertools.islice(packed, ROWS)),
    }
    for hand_out in methods.values():
        hand_out()  # fills the lists of 1,000 documents, touches memory
    rounds = [{name: rate(hand_out) for name, hand_out in methods.items()} for _ in range(ROUNDS)]
    waits = waits_at_the_public_pace(from_referee)

    _, reference, cached, referee, *_, packing = methods
    median = {name: statistics.median(rates[name] for rates in rounds) for name in methods}
    ratio = {name: statistics.median(rates[name] / rates[reference] for rates in rounds) for name in methods}
    print(
        f"{os.cpu_count()} cores; batches of {ROWS} rows of {LENGTH} tokens, vocabulary {GAME.profile.vocab_size}; "
        f"{len(lists):,} documents of {statistics.median(map(len, lists)):.0f} tokens (median)\n"
    )
    print(f"{'':<46}{'million tokens/s':>18}{'least':>10}{'most':>10}{'ratio':>9}")
    for name in methods:
        every = [rates[name] / 1e6 for rates in rounds]
        print(f"{name:<46}{median[name] / 1e6:>18,.2f}{min(every):>10,.2f}{max(every):>10,.2f}{ratio[name]:>9,.1f}")
    slower = min(cached, referee, key=median.get)
    print(
        f"\nTraining at {PUBLIC_PACE / 1e6:.2f} million tokens/s takes {PUBLIC_PACE / median[slower]:.2%} of what "
        f"{slower} gives; at that pace {waits} of {PACED_BATCHES} batches were waited for."
    )
    goals = {
        f"{ratio[slower]:,.0f} times the public loader (goal: {LEAST_RATIO})": ratio[slower] >= LEAST_RATIO,
        f"packing at {median[packing] / 1e6:,.0f} million tokens/s (goal: {LEAST_PACKING / 1e6:.0f})": median[packing]
        >= LEAST_PACKING,
        f"{waits} waits (goal: none)": waits == 0,
    }
    missed = [goal for goal, met in goals.items() if not met]
    print("goals missed: " + "; ".join(missed) if missed else "goals met: " + "; ".join(goals))


if __name__ == "__main__":
    main()
