"""The score of a run, from the referee's side: what it waits for, what it computes, what it probes."""

import os
import socket
import sys
import time
from pathlib import Path

import numpy as np

from autoresearch.referee.clock import Referee
from autoresearch.referee.models import ModelProcess
from autoresearch.referee.probes import probe, probe_count
from prepare import Game, bits_per_byte, losses_of, read_figures


def score(
    game: Game, split: str = "val", wait: bool = False, train_py: Path | None = None, probe_all: bool = False
) -> dict:
    """Bits per byte of the last run's checkpoint on a held-out split, and the run's figures.

    The arithmetic is prepare.py's, always on the same rows, whatever batch size train.py used. Raises NoScore for a
    model that has none: one that fails, does not give finite logits of the right shape, or fails a probe.

    wait: be the referee of a training that runs beside this; a line on standard input says that its
    process has ended. train_py: the file that defines the model, else the one that the run names.
    probe_all: probe every row once, instead of a sample.
    """
    channel = os.environ.pop("AUTORESEARCH_REFEREE", None)
    referee = Referee(socket.socket(fileno=int(channel)), game) if channel else None
    import torch  # noqa: F401  (here, for the processes forked below; the clock runs without it)

    if wait and not sys.stdin.readline():
        raise SystemExit(1)  # the training failed: nothing to score
    if referee:
        referee.require_in_time(game.weights)
    with ModelProcess(game) as scored, ModelProcess(game) as probed:  # forked while this process holds nothing to hide
        began = time.perf_counter()
        figures = read_figures(game)
        rows = np.array(game.rows(split))
        model = train_py or Path(figures["train_py"])
        scored.load(model, figures["device"])
        losses = losses_of(scored, rows)
        scored.end()  # before the other one begins: they must not meet
        value = bits_per_byte(losses, game.token_bytes()[rows[:, 1:]])
        probed.batch_size = scored.batch_size
        probed.load(model, figures["device"])
        probe(probed, rows, losses, len(rows) if probe_all else probe_count(game))
    return {**figures, f"{split}_bpb": value, "score_seconds": time.perf_counter() - began}
