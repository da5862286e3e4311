"""The clock that is the data loader, `finish`, and the score: the promises that make a trial fair."""

import contextlib
import ctypes
import dataclasses
import itertools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import games
import numpy as np
import pytest
import torch
from conftest import HANGS, ROOT

import prepare
from autoresearch.referee import clock
from autoresearch.runner.progress import Progress, read_progress

# A train.py of the least size: a bigram table. Small enough that the score can be worked out by hand.
BIGRAM = f"""import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from prepare import SEED, VOCAB_SIZE, TrainBatches, finish, warmup_batch

class Bigram(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE)
    def forward(self, idx):
        return self.table(idx)

def build_model():
    return Bigram()

if __name__ == "__main__":
    torch.manual_seed(SEED)
    model = build_model()
    warmup_batch(8, "cpu")
    batches, steps = TrainBatches(8, "cpu"), 0
    with torch.no_grad():
        for inputs, targets in batches:
            model.table.weight.index_put_((inputs, targets), torch.tensor(0.001), accumulate=True)
            steps += 1
    finish(model, batches, num_steps=steps)
"""


def program(*words: str, game: prepare.Game, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess:
    """A program of the game that has ended: `prepare.py score`, `-m autoresearch.referee score`, ..."""
    usual = {"AUTORESEARCH_PROFILE": "test", "AUTORESEARCH_CACHE": str(game.cache)}
    environment = games.clean_environment(**usual | more)
    return subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def fresh_clock(monkeypatch):
    """The clock is one for a process; here every test has its own."""
    monkeypatch.setattr(prepare.TrainBatches, "_start", None)


@pytest.fixture
def short(game) -> prepare.Game:
    """The same game with half a second on the clock."""
    return dataclasses.replace(game, profile=dataclasses.replace(game.profile, time_budget=0.5))


def test_batches_are_rows_of_the_training_split(game):
    batches = prepare.TrainBatches(5, "cpu", game)
    inputs, targets = next(batches)
    assert inputs.shape == targets.shape == (5, 64) and inputs.dtype == targets.dtype == torch.int64
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    rows = {row.tobytes() for row in game.rows("train")}
    for one, other in zip(inputs.numpy(), targets.numpy(), strict=True):
        assert np.append(one, other[-1]).astype(np.uint16).tobytes() in rows


@pytest.fixture
def endless(game) -> prepare.Game:
    """The same game with a clock that no test sees the end of."""
    return dataclasses.replace(game, profile=dataclasses.replace(game.profile, time_budget=3600.0))


def test_the_order_is_seeded_and_every_row_comes_once_an_epoch(endless, monkeypatch):
    monkeypatch.setattr(prepare.Game, "rows", lambda game, split: np.arange(50 * 65, dtype=np.uint16).reshape(50, 65))

    def first_rows(seed: int) -> list[int]:
        monkeypatch.setattr(prepare.TrainBatches, "_start", None)
        batches = prepare.TrainBatches(7, "cpu", dataclasses.replace(endless, seed=seed))
        return [int(row) // 65 for _ in range(14) for row in next(batches)[0][:, 0]]

    one, again, other = first_rows(1), first_rows(1), first_rows(2)
    assert one == again != other
    assert sorted(one[:50]) == sorted(one[50:][:48] + list(set(range(50)) - set(one[50:][:48]))) == list(range(50))
    assert one[:50] != one[50:98]


def test_a_batch_is_not_overwritten_by_later_ones(endless):
    batches = prepare.TrainBatches(4, "cpu", endless)
    held = [next(batches)[0] for _ in range(12)]
    copies = [batch.clone() for batch in held]
    for _ in range(12):
        next(batches)
    assert all((batch == copy).all() for batch, copy in zip(held, copies, strict=True))


def test_a_training_says_how_it_goes_once_a_second_at_most(game, monkeypatch, tmp_path):
    now = [1000.0]
    monkeypatch.setattr(prepare, "time", types.SimpleNamespace(time=lambda: now[0]))
    batches = prepare.TrainBatches(2, "cpu", dataclasses.replace(game, run_folder=tmp_path / "run"))
    batches.report(loss=9.0, step=1)  # before the clock starts there is nothing to say
    assert not (tmp_path / "run").exists()
    next(batches)
    assert read_progress(tmp_path) == Progress(1000.0, 3.0)
    now[0] += 0.9
    batches.report(loss=4.0, step=40)
    assert read_progress(tmp_path) == Progress(1000.0, 3.0)
    now[0] += 0.1
    batches.report(loss=3.0, step=50)
    assert read_progress(tmp_path) == Progress(1000.0, 3.0, 3.0, 50)
    for loss in (torch.tensor(2.0), float("nan")):  # a mistake of the edit's is none that ends a training
        now[0] += 1
        batches.report(loss=loss)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("no folder")  # nor is a disk that takes nothing
    now[0] += 1
    batches.report(loss=3.0, step=50)


def test_the_clock_starts_with_the_first_batch_and_nothing_is_handed_out_after_it(game, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(prepare, "_now", lambda: now[0])
    batches = prepare.TrainBatches(2, "cpu", game)
    now[0] += 1000  # building and compiling take their time
    assert batches.elapsed == batches.progress == 0
    next(batches)
    now[0] += 1.5
    next(batches)
    assert batches.progress == 0.5 and batches.elapsed == 1.5
    now[0] += 1.5
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(batches)
    assert batches.batches == 2 and batches.tokens == 2 * 2 * 64 and batches.progress == 1


def test_more_rows_a_batch_than_there_are(game, monkeypatch):
    monkeypatch.setattr(prepare.Game, "rows", lambda game, split: np.arange(3 * 65, dtype=np.uint16).reshape(3, 65))
    inputs, _ = next(prepare.TrainBatches(8, "cpu", game))
    assert sorted(np.bincount(inputs[:, 0].numpy() // 65)) == [2, 3, 3]


def test_there_is_one_clock_however_many_iterators(game, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(prepare, "_now", lambda: now[0])
    next(prepare.TrainBatches(2, "cpu", game))
    now[0] += 1.5
    larger = prepare.TrainBatches(4, "cpu", game)
    next(larger)
    assert larger.progress == 0.5
    now[0] += 1.5
    with pytest.raises(StopIteration):
        next(larger)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_batch_size_that_is_none(game, size):
    with pytest.raises(ValueError, match="whole number of rows"):
        prepare.TrainBatches(size, "cpu", game)


def test_a_fault_of_the_loader_reaches_the_training_loop(game, monkeypatch):
    def broken(self):
        raise OSError("the disk went away")
        yield

    monkeypatch.setattr(prepare.CacheRows, "shuffled", broken)
    with pytest.raises(OSError, match="the disk went away"):
        next(prepare.TrainBatches(2, "cpu", game))


def test_warm_up_rows_are_noise():
    inputs, targets = prepare.warmup_batch(64, "cpu")
    assert inputs.shape == targets.shape == (64, 64) and (inputs[:, 1:] == targets[:, :-1]).all()
    counts = torch.bincount(inputs.flatten(), minlength=512)
    assert counts.max() < 30 and (counts > 0).all()  # 8 of each on average: no word of the language is likelier
    assert (prepare.warmup_batch(64, "cpu")[0] == inputs).all()


def test_finish_without_a_batch_is_an_error(game):
    with pytest.raises(RuntimeError, match="nothing was trained"):
        prepare.finish(torch.nn.Linear(1, 1), prepare.TrainBatches(2, "cpu", game), num_steps=0)


# -- the score


@pytest.fixture(scope="module")
def run(game, tmp_path_factory) -> dict[str, str]:
    """A whole run by hand, train.py and the scorer that it becomes: the summary that it printed."""
    folder = tmp_path_factory.mktemp("by-hand")
    (folder / "bigram.py").write_text(BIGRAM)
    answer = program("bigram.py", game=game, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    _, _, block = answer.stdout.partition("---\n")
    return dict(line.split(":") for line in block.splitlines())


def expected_score(game, split: str) -> float:
    """Bits per byte of the bigram table, in float64 and one token after the other."""
    from safetensors.numpy import load_file

    table = load_file(game.weights)["table.weight"].astype(np.float64)
    log_probability = table - np.logaddexp.reduce(table, axis=1, keepdims=True)
    token_bytes = np.load(game.cache / "sotu-test/token_bytes.npy")
    rows = np.fromfile(game.cache / f"sotu-test/{split}.bin", dtype=np.uint16).reshape(-1, 65)
    nats = sum(-log_probability[a, b] for row in rows for a, b in itertools.pairwise(row) if token_bytes[b])
    return nats / math.log(2) / sum(int(token_bytes[b]) for row in rows for b in row[1:])


PLAIN, REFEREE = ("prepare.py", "score"), ("-m", "autoresearch.referee", "score")


@pytest.mark.slow
def test_the_score_is_bits_per_byte(game, run):
    assert float(run["val_bpb"]) == pytest.approx(expected_score(game, "val"), abs=1e-6)


def test_the_referee_finds_the_plain_score(game, run):
    answer = program(*REFEREE, game=game)
    assert f"val_bpb:{run['val_bpb']}\n" in answer.stdout, answer.stderr


def test_the_summary_has_the_public_keys(game, run):
    assert list(run) == [
        "val_bpb",
        "training_seconds",
        "total_seconds",
        "peak_vram_mb",
        "mfu_percent",
        "total_tokens_M",
        "num_steps",
        "num_params_M",
        "depth",
    ]
    figures = json.loads((game.run_folder / "figures.json").read_text())
    clock, finished = (figures["timeline"][name] for name in ("clock", "finished"))
    assert 3.0 <= figures["training_seconds"] <= finished - clock
    assert float(run["training_seconds"]) == round(figures["training_seconds"], 1)
    assert run["mfu_percent"].strip() == run["depth"].strip() == "n/a"
    assert float(run["num_params_M"]) == 0.3  # 512 x 512


@pytest.mark.slow
def test_the_holdout_is_scored_on_its_own_rows(game, run):
    answer = program(*REFEREE, "--split", "holdout", "--probe-all", game=game)
    score = float(answer.stdout.partition("holdout_bpb:")[2].split()[0])
    assert score == pytest.approx(expected_score(game, "holdout"), abs=1e-6)
    assert score == pytest.approx(prepare.score(game, "holdout")["holdout_bpb"], abs=1e-6)
    assert score != float(run["val_bpb"])


@pytest.mark.parametrize("scorer", [PLAIN, REFEREE], ids=["plain", "referee"])
@pytest.mark.slow
def test_scoring_what_was_never_trained(game, tmp_path, scorer):
    answer = program(*scorer, game=game, AUTORESEARCH_RUN_DIR=str(tmp_path))
    assert answer.returncode == 2 and "there is no finished run" in answer.stderr


def test_scoring_with_the_settings_of_another_game(game, run):
    answer = program(*PLAIN, game=game, AUTORESEARCH_PROFILE="cpu")
    assert answer.returncode == 2 and "AUTORESEARCH_PROFILE=test AUTORESEARCH_DATA=sotu" in answer.stderr


def another_model(game, folder, old: str, new: str, device: str = "cpu") -> None:
    """A run whose train.py differs in one place from that which was trained."""
    (folder / "train.py").write_text(BIGRAM.replace(old, new))
    figures = json.loads((game.run_folder / "figures.json").read_text())
    figures |= {"device": device, "train_py": str(folder / "train.py")}
    (folder / "figures.json").write_text(json.dumps(figures))
    shutil.copy(game.weights, folder)


@pytest.mark.parametrize(
    ("scorer", "forward", "message"),
    [
        (
            PLAIN,
            "return self.table(idx)[..., :100]",
            "must give logits (16, 64, 512) in floating point, not (16, 64, 100)",
        ),
        (
            REFEREE,
            "return self.table(idx)[..., :100]",
            "must give logits (16, 64, 512) in floating point\n",  # and no number that the model chose
        ),
        (REFEREE, "return self.table(idx) * float('nan')", "not a finite number"),
        (
            REFEREE,
            "raise ValueError(idx)",
            "the model cannot be scored: ValueError in line 11 of train.py while it gave",
        ),
    ],
    ids=["plain, narrow", "referee, narrow", "referee, not finite", "referee, an exception"],
)
@pytest.mark.slow
def test_a_model_without_a_score(game, run, tmp_path, forward, message, scorer):
    another_model(game, tmp_path, "return self.table(idx)", forward)
    answer = program(*scorer, game=game, AUTORESEARCH_RUN_DIR=str(tmp_path))
    assert answer.returncode == 1 and "no score: " in answer.stderr and message in answer.stderr
    assert "val_bpb" not in answer.stdout and "Traceback" not in answer.stderr and "tensor" not in answer.stderr


def test_a_score_that_is_no_number():
    with pytest.raises(prepare.NoScore, match="not a finite number: nan"):
        prepare.bits_per_byte(torch.full((2, 3), math.nan), np.ones((2, 3), dtype=np.int32))


class Forgetful:
    """A prepare.ScoredModel whose memory holds three rows, or none. Its logits say that every token repeats."""

    device = "cpu"

    def __init__(self, holds: int) -> None:
        self.batch_size, self.holds, self.sizes = 16, holds, []

    def logits(self, ids):
        self.sizes.append(len(ids))
        if len(ids) > self.holds:
            raise torch.OutOfMemoryError
        return torch.nn.functional.one_hot(ids, 512).float()


@pytest.mark.parametrize("added", [1e9, 2.0**22, -1e9, 1e30])
def test_logits_so_large_that_rounding_eats_them_win_nothing(added):
    """In float32 a large logit and the logarithm of the sum over all are one number, which would be no loss at all."""
    logits, targets = torch.randn(64, 512) + added, torch.arange(64)
    exact = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    assert torch.allclose(prepare.cross_entropy(logits, targets).double(), exact, atol=1e-4)


def test_losses_are_those_of_logsumexp_to_the_last_bit():
    """Scores of all versions can be compared, however often the arithmetic goes over the logits."""
    logits, targets = 9 * torch.randn(64, 512), torch.arange(64)
    logits[1] *= 1e36
    logits[2, 300:] = -math.inf
    shifted = logits - logits.amax(-1, keepdim=True)
    expected = shifted.logsumexp(-1) - shifted.gather(-1, targets[:, None])[:, 0]
    assert torch.equal(prepare.cross_entropy(logits, targets), expected)


def test_memory_that_runs_out_changes_the_batches_and_not_the_losses(game):
    rows = game.rows("val")[:9]
    plenty, little = Forgetful(holds=16), Forgetful(holds=3)
    assert torch.equal(prepare.losses_of(plenty, rows), prepare.losses_of(little, rows))
    assert plenty.sizes == [16] and little.sizes == [16, 8, 4, 2, 2, 2, 2, 2]
    with pytest.raises(prepare.NoScore, match="more memory than there is for a single row"):
        prepare.losses_of(Forgetful(holds=0), rows)


def test_memory_that_runs_out_in_the_arithmetic(game, monkeypatch):
    """Of the referee itself, while the model's process holds the rest; CUDA and cuBLAS say it in words of their own."""
    rows, arithmetic = game.rows("val")[:9], prepare.cross_entropy
    expected = prepare.losses_of(Forgetful(holds=16), rows)
    words = iter(["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"])

    def nearly_full(*arguments):
        if word := next(words, ""):
            raise RuntimeError(word)
        return arithmetic(*arguments)

    monkeypatch.setattr(prepare, "cross_entropy", nearly_full)
    model = Forgetful(holds=16)
    assert torch.equal(prepare.losses_of(model, rows), expected) and model.sizes == [16, 8, 4, 4, 4]
    words = iter(["an illegal memory access"])
    with pytest.raises(RuntimeError, match="illegal"):
        prepare.losses_of(model, rows)


def test_training_without_prepared_data_says_what_to_run(game, tmp_path):
    (tmp_path / "train.py").write_text(BIGRAM)
    answer = program("train.py", game=game, cwd=tmp_path, AUTORESEARCH_CACHE=str(tmp_path / "empty"))
    assert answer.returncode == 2 and "run `uv run prepare.py` first" in answer.stderr
    assert "Traceback" not in answer.stderr


# -- the referee


@contextlib.contextmanager
def referee_of(game: prepare.Game, monkeypatch):
    """A referee, and this process in the place of the training: (referee, channel to it)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    referee = clock.Referee(theirs, game)
    monkeypatch.setenv("AUTORESEARCH_REFEREE", str(ours.fileno()))
    monkeypatch.setattr(prepare.RefereeRows, "channel", ours, raising=False)
    monkeypatch.setattr(prepare.RefereeRows, "started", threading.Event())
    yield referee, ours
    ours.close()
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(referee.pid, 9)
        os.waitpid(referee.pid, 0)


@pytest.fixture
def joined(short, monkeypatch):
    with referee_of(short, monkeypatch) as pair:
        yield pair


@pytest.fixture
def joined_for_long(endless, monkeypatch):
    with referee_of(endless, monkeypatch) as pair:
        yield pair


def test_the_referee_gives_the_rows_that_a_run_by_hand_gets(joined_for_long, endless, monkeypatch):
    from_referee = [batch[0] for batch, _ in zip(prepare.TrainBatches(4, "cpu", endless), range(20), strict=False)]
    monkeypatch.delenv("AUTORESEARCH_REFEREE")
    monkeypatch.setattr(prepare.TrainBatches, "_start", None)
    by_hand = [batch[0] for batch, _ in zip(prepare.TrainBatches(4, "cpu", endless), range(20), strict=False)]
    assert len(from_referee) == 20 and all(
        (one == other).all() for one, other in zip(from_referee, by_hand, strict=True)
    )


def test_two_that_were_made_before_the_clock(joined_for_long, endless):
    """As of a training that takes batches of two sizes: the first batch of either starts the clock of both."""
    large, small = prepare.TrainBatches(4, "cpu", endless), prepare.TrainBatches(2, "cpu", endless)
    assert [len(next(batches)[0]) for batches in (small, large, small)] == [2, 4, 2]


def test_the_referee_gives_nothing_before_its_clock_and_nothing_after(joined, short):
    referee, channel = joined
    channel.send(b"open 2")
    number, (memory,), _, _ = socket.recv_fds(channel, 64, 1)
    channel.send(b"next " + number)
    assert channel.recv(64) == b"over" and not prepare.shared_rows(memory, 2, short).any()
    channel.send(b"start")
    assert channel.recv(64) == b"go"
    answer = b"go"
    while answer == b"go":
        channel.send(b"next " + number)
        answer = channel.recv(64)
    began, _, last_given, _ = referee.times
    assert answer == b"over" and last_given - began < 0.5 <= time.perf_counter() - began
    channel.send(b"start")  # a second start is none
    assert channel.recv(64) == b"go"
    channel.send(b"next " + number)
    assert channel.recv(64) == b"over"


def test_a_training_that_goes_on_after_the_clock_is_void(joined, short, tmp_path, monkeypatch):
    referee, _ = joined
    list(prepare.TrainBatches(4, "cpu", short))
    with pytest.raises(prepare.NoScore, match=r"void: the training process went on for 6\.0 s after its 0\.5 s"):
        referee.require_in_time(tmp_path / "model.safetensors", referee.times[0] + 0.5 + 6)


@pytest.mark.parametrize("file_is", ["written", "sparse", "reserved"])
def test_saving_a_large_model_takes_its_time(joined, short, tmp_path, monkeypatch, file_is):
    """A second for 200 MB that are there, none for a file that only says it is large, or only takes up room."""
    referee, _ = joined
    with open(tmp_path / "model.safetensors", "wb") as file:
        size = 300_000_000
        if file_is == "written":
            os.posix_fallocate(file.fileno(), 0, size)
        elif file_is == "sparse":
            file.truncate(size)
        else:  # beyond its end
            assert ctypes.CDLL(None).fallocate(file.fileno(), 1, ctypes.c_long(0), ctypes.c_long(size)) == 0
    list(prepare.TrainBatches(4, "cpu", short))
    began, longest_step, *_ = referee.times.tolist()
    ended = began + short.profile.time_budget + clock.FAIR_END + min(longest_step, 2.0) + 1.2
    with contextlib.nullcontext() if file_is == "written" else pytest.raises(prepare.NoScore, match="went on for"):
        referee.require_in_time(tmp_path / "model.safetensors", ended)


def test_the_clock_waits_until_nothing_else_starts_up(short):
    """A training's first batch comes when the referee has imported what it needs, and its time begins then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    referee = clock.Referee(theirs, short, hold=True)
    with ours:
        ours.send(b"start")
        ours.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ours.recv(64)
        released = time.perf_counter()
        referee.release()
        ours.settimeout(HANGS)
        assert ours.recv(64) == b"go" and referee.times[0] > released
    os.kill(referee.pid, 9)
    os.waitpid(referee.pid, 0)


def test_a_training_that_begins_too_late_is_void(joined, short, tmp_path):
    """Whatever its progress.json says: what it could learn before its clock starts is limited."""
    referee, _ = joined
    list(prepare.TrainBatches(4, "cpu", short))
    referee.began = referee.times[3] - 130
    with pytest.raises(prepare.NoScore, match=r"void: the training drew its first batch after 130 s; it has 120 s"):
        referee.require_in_time(tmp_path / "model.safetensors", time.perf_counter())


def test_a_training_without_a_batch_has_no_score(joined, tmp_path):
    with pytest.raises(prepare.NoScore, match="drew no batch"):
        joined[0].require_in_time(tmp_path / "model.safetensors", time.perf_counter())


def test_figures_are_read_as_what_a_stranger_wrote(game, tmp_path, capsys):
    game = dataclasses.replace(game, run_folder=tmp_path)
    good = {"profile": "test", "data": "sotu", "device": "cpu", "train_py": "x", "num_steps": 3}
    strange = {"val_bpb": 0.1, "depth": "7", "mfu_percent": float("nan"), "peak_vram_mb": [1]}
    (tmp_path / "figures.json").write_text(json.dumps(good | strange))
    figures = prepare.read_figures(game)
    assert figures["num_steps"] == 3 and "val_bpb" not in figures
    assert figures["depth"] is figures["mfu_percent"] is figures["peak_vram_mb"] is figures["started"] is None
    for text in ("", "[]", "{}", json.dumps(good | {"device": "file:///"}), json.dumps(good | {"data": 7})):
        (tmp_path / "figures.json").write_text(text)
        with pytest.raises(SystemExit):
            prepare.read_figures(game)
    (tmp_path / "figures.json").unlink()
    (tmp_path / "other.json").write_text(json.dumps(good))
    for make in (
        lambda: (tmp_path / "figures.json").symlink_to("other.json"),
        lambda: os.mkfifo(tmp_path / "figures.json"),
    ):
        make()
        with pytest.raises(SystemExit):
            prepare.read_figures(game)
        (tmp_path / "figures.json").unlink()


# -- the score on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("shared_by", ["handle", "host", "little"])
def test_the_score_on_a_gpu(game, run, tmp_path, shared_by):
    """Logits through the device's own memory, through the host's where that cannot be shared, and a row at a time where
    little is free: as on the CPU.
    """
    another_model(game, tmp_path, "return Bigram()", "return Bigram().cuda()", device="cuda")
    code = (
        "from autoresearch.referee import score, shared\nimport prepare\n"
        "def note(memory, handle):\n    print('shared by handle'); return memory, handle\n"
        "original = shared.device_memory\n"
        "def none(size):\n    raise OSError\n"
        "def little(size):\n"
        "    if size > 4 * prepare.MAX_SEQ_LEN * prepare.VOCAB_SIZE:\n        raise MemoryError\n"
        "    return handle(size)\n"
        "def handle(size):\n    return note(*original(size))\n"
        f"shared.device_memory = {'none' if shared_by == 'host' else shared_by}\n"
        + "print('score', score.score(prepare.GAME)['val_bpb'])"
    )
    answer = program("-c", code, game=game, AUTORESEARCH_RUN_DIR=str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    assert ("shared by handle" in answer.stdout) == (shared_by != "host")
    assert float(answer.stdout.rpartition("score ")[2]) == pytest.approx(expected_score(game, "val"), abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_plain_score_on_a_gpu(game, run, tmp_path):
    another_model(game, tmp_path, "return Bigram()", "return Bigram().cuda()", device="cuda")
    answer = program(*PLAIN, game=game, AUTORESEARCH_RUN_DIR=str(tmp_path))
    score = float(answer.stdout.partition("val_bpb:")[2].split()[0])
    assert score == pytest.approx(expected_score(game, "val"), abs=1e-5)
