"""The score of a run, from the referee's side: what it waits for, what it computes, what it probes."""

import contextlib
import io
import math
import os
import socket
import sys
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoresearch.files import write_whole
from autoresearch.referee import probes
from autoresearch.referee.clock import Referee
from autoresearch.referee.models import ModelProcess, start_device
from prepare import Game, NoScore, bits_per_byte, losses_of, read_figures

# How often as long as the baseline's a scoring may take, and so many seconds more: a model could train in that time.
SLOWER, PATIENCE = 4.0, 30.0


class Reference(NamedTuple):
    """The scoring of the first run that was scored: the baseline's."""

    scored: np.ndarray  # losses of the scored rows
    spare: np.ndarray  # and of the spare rows
    seconds: float  # that it took


def score(
    game: Game,
    split: str = "val",
    wait: bool = False,
    train_py: Path | None = None,
    probe_all: bool = False,
    process: type[ModelProcess] = ModelProcess,
) -> dict:
    """Bits per byte of the last run's checkpoint on a held-out split, and the run's figures.

    The arithmetic is prepare.py's, always on the same rows, whatever batch size train.py used. Raises NoScore for a
    model that has none: one that fails, does not give finite logits of the right shape, or fails a probe.

    wait: be the referee of a training that runs beside this; a line on standard input says when its
    process has ended, by time.perf_counter(). train_py: the file that defines the model, else the one that the run
    names. probe_all: probe every row, instead of a sample. process: what runs the model; tests have their own.

    AUTORESEARCH_REFERENCE names a folder, out of the trials' reach, for the losses of the first run that is scored
    with it and the seconds that it took: the baseline's, against which those of later ones are compared.
    """
    channel = os.environ.pop("AUTORESEARCH_REFEREE", None)
    referee = Referee(socket.socket(fileno=int(channel)), game, hold=True) if channel else None
    with process(game) as first, process(game) as second:
        import torch

        first.wait_until_imported()
        second.wait_until_imported()
        if referee:
            referee.release()  # from here on nothing computes beside the training
        if wait and not (line := sys.stdin.readline()):
            raise SystemExit(1)  # the training failed: nothing to score
        if referee:
            referee.require_in_time(game.weights, float(line) if wait else time.perf_counter())
        began = time.perf_counter()
        figures = read_figures(game)
        if figures["device"].startswith("cuda"):
            start_device((first, second))
        train_py = train_py or Path(figures["train_py"])
        random = np.random.default_rng()  # never seeded: who trains must not know the cuts
        rows, spare = np.array(game.rows(split)), spare_rows(game)
        if probe_all:
            donors, spare = np.array(game.rows("val")) if split != "val" else spare, spare[:0]
            streams = probes.plan_all(rows, donors if len(donors) else rows, random)
        else:
            streams = probes.plan(np.concatenate([rows, spare]), len(rows), probes.probe_counts(game), random)
        losses = []
        for model, stream in zip((first, second), streams, strict=True):
            model.batch_size = first.batch_size  # less than at first where memory ran out
            model.load(train_py, figures["device"])
            losses.append(losses_of(model, stream.rows, stream.targets).numpy())
            first.end()  # before the other one begins: they must not meet
        took = time.perf_counter() - began
        text = np.concatenate([rows, spare])
        token_bytes = game.token_bytes()[text[:, 1:]]
        given = probes.answers(streams, losses, len(rows))
        value = bits_per_byte(torch.from_numpy(given.losses), token_bytes[: len(rows)])
        company, ahead = probes.depends_on_company(given.again), probes.looks_ahead(given.altered, given.cuts)
        if reason := company or ahead or probes.learns(given.learned):
            raise NoScore(random_instead(second, streams[1].rows) or reason)
        folder = os.environ.get("AUTORESEARCH_REFERENCE")
        reference = read_reference(Path(folder) / f"{split}.npz", given, len(spare)) if folder else None
        if reference and took > (most := SLOWER * reference.seconds + PATIENCE):
            theirs = f"since the baseline's took {reference.seconds:.0f} s"
            raise NoScore(f"void: scoring took {took:.0f} s; {most:.0f} s are allowed, {theirs}")
        found = probes.excess(given, reference[:2] if reference else None, token_bytes > 0)
        if reason := found.reason():
            raise NoScore(reason)
        if folder and not reference:
            write_reference(Path(folder) / f"{split}.npz", given, losses_of(second, spare).numpy(), took)
    unit = (token_bytes > 0).sum() / token_bytes.sum() / math.log(2)  # bits a byte for a nat a token
    probed = {f"{split}_gap": found.gap * unit, f"{split}_error": found.error * unit}
    return {**figures, f"{split}_bpb": value, **probed, "score_seconds": time.perf_counter() - began}


def spare_rows(game: Game) -> np.ndarray:
    """Rows of val that are never scored, (rows, MAX_SEQ_LEN + 1); a small data set has none."""
    manifest = game.manifest()
    none = np.empty((0, game.profile.max_seq_len + 1), np.uint16)
    return np.array(game.rows("spare")) if manifest and manifest["splits"]["spare"]["rows"] else none


def random_instead(model: ModelProcess, rows: np.ndarray) -> str | None:
    """Whether what a model says is not even the same for the same batch, given twice."""
    batch = rows[: model.batch_size]
    with contextlib.suppress(NoScore):
        moved = (losses_of(model, batch) - losses_of(model, batch)).numpy()
        if not abs(moved).mean() <= 1e-3 and not probes.rises(moved.mean(1)):  # which they do in a model that learns
            return (
                f"the score is random: the same rows, given twice in one batch, moved by {abs(moved).mean():.2g} "
                "nats a token. Is dropout left on, or a random number drawn, when self.training is False?"
            )
    return None


def read_reference(path: Path, given: probes.Answers, spare: int) -> Reference | None:
    """None where there is none for these rows."""
    try:
        with np.load(path) as file:
            scored, others = file["scored"].astype(np.float32), file["spare"].astype(np.float32)
            seconds = float(file["seconds"]) if "seconds" in file else math.inf  # of a run that is older than this
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    fits = scored.shape == given.losses.shape and others.shape == (spare, scored.shape[1])
    return Reference(scored, others, seconds) if fits else None


def write_reference(path: Path, given: probes.Answers, spare: np.ndarray, seconds: float) -> None:
    """Keep what the first run that is scored has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    losses = {"scored": given.losses.astype(np.float16), "spare": spare.astype(np.float16)}
    np.savez(packed, **losses, seconds=np.array(seconds))
    write_whole(path, packed.getvalue())
