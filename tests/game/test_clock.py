"""The clock that is the data loader, `finish`, and the score: the promises that make a trial fair."""

import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT

import prepare
from autoresearch.status import Progress, read_progress

# A train.py of the least size: a bigram table. Small enough that the score can be worked out by hand.
BIGRAM = """import sys
sys.path.insert(0, {root!r})
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


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The prepared data of the `test` profile, for this process and its children."""
    folder = tmp_path_factory.mktemp("cache")
    before = prepare.CACHE, prepare.RUN_FOLDER
    prepare.CACHE, prepare.RUN_FOLDER = folder, folder / "last-run"
    prepare.prepare()
    yield folder
    prepare.CACHE, prepare.RUN_FOLDER = before


@pytest.fixture(autouse=True)
def fresh_clock(monkeypatch):
    """The clock is one for a process; here every test has its own."""
    monkeypatch.setattr(prepare.TrainBatches, "_start", None)


def environment(cache, **more) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AUTORESEARCH_")}
    return {**kept, "AUTORESEARCH_PROFILE": "test", "AUTORESEARCH_CACHE": str(cache), **more}


@pytest.fixture
def budget(monkeypatch):
    monkeypatch.setattr(prepare, "TIME_BUDGET", 0.5)
    return 0.5


def test_batches_are_rows_of_the_training_split(cache):
    batches = prepare.TrainBatches(5, "cpu")
    inputs, targets = next(batches)
    assert inputs.shape == targets.shape == (5, 64) and inputs.dtype == targets.dtype == torch.int64
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    rows = {row.tobytes() for row in prepare.open_rows("train")}
    for one, other in zip(inputs.numpy(), targets.numpy(), strict=True):
        assert np.append(one, other[-1]).astype(np.uint16).tobytes() in rows


def test_the_order_is_seeded_and_every_row_comes_once_an_epoch(cache, monkeypatch, budget):
    monkeypatch.setattr(prepare, "open_rows", lambda split: np.arange(50 * 65, dtype=np.uint16).reshape(50, 65))

    def first_rows(seed: int) -> list[int]:
        monkeypatch.setattr(prepare, "SEED", seed)
        monkeypatch.setattr(prepare.TrainBatches, "_start", None)
        batches = prepare.TrainBatches(7, "cpu")
        return [int(row) // 65 for _ in range(14) for row in next(batches)[0][:, 0]]

    one, again, other = first_rows(1), first_rows(1), first_rows(2)
    assert one == again != other
    assert sorted(one[:50]) == sorted(one[50:][:48] + list(set(range(50)) - set(one[50:][:48]))) == list(range(50))
    assert one[:50] != one[50:98]


def test_a_batch_is_not_overwritten_by_later_ones(cache, budget):
    batches = prepare.TrainBatches(4, "cpu")
    held = [next(batches)[0] for _ in range(12)]
    copies = [batch.clone() for batch in held]
    for _ in range(12):
        next(batches)
    assert all((batch == copy).all() for batch, copy in zip(held, copies, strict=True))


def test_a_training_says_how_it_goes_once_a_second_at_most(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "RUN_FOLDER", tmp_path / "run")
    batches = prepare.TrainBatches(2, "cpu")
    batches.report(loss=9.0, step=1)  # before the clock starts there is nothing to say
    assert not (tmp_path / "run").exists()
    next(batches)
    first = read_progress(tmp_path)
    assert abs(first.clock - time.time()) < 30 and (first.budget, first.loss) == (prepare.TIME_BUDGET, None)
    batches.report(loss=3.0, step=50)
    assert read_progress(tmp_path) == first
    monkeypatch.setattr(batches, "REPORT_SECONDS", 0.0)
    batches.report(loss=3.0, step=50)
    assert read_progress(tmp_path) == Progress(first.clock, first.budget, 3.0, 50)
    for loss in (torch.tensor(2.0), float("nan")):  # a mistake of the edit's is none that ends a training
        batches.report(loss=loss)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("no folder")  # nor is a disk that takes nothing
    batches.report(loss=3.0, step=50)


def test_the_clock_starts_with_the_first_batch_and_nothing_is_handed_out_after_it(cache, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(prepare, "_now", lambda: now[0])
    batches = prepare.TrainBatches(2, "cpu")
    now[0] += 1000  # building and compiling take their time
    assert batches.elapsed == batches.progress == 0
    next(batches)
    now[0] += prepare.TIME_BUDGET / 2
    next(batches)
    assert batches.progress == 0.5 and batches.elapsed == prepare.TIME_BUDGET / 2
    now[0] += prepare.TIME_BUDGET / 2
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(batches)
    assert batches.batches == 2 and batches.tokens == 2 * 2 * 64 and batches.progress == 1


def test_more_rows_a_batch_than_there_are(cache, monkeypatch):
    monkeypatch.setattr(prepare, "open_rows", lambda split: np.arange(3 * 65, dtype=np.uint16).reshape(3, 65))
    inputs, _ = next(prepare.TrainBatches(8, "cpu"))
    assert sorted(np.bincount(inputs[:, 0].numpy() // 65)) == [2, 3, 3]


def test_there_is_one_clock_however_many_iterators(cache, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(prepare, "_now", lambda: now[0])
    next(prepare.TrainBatches(2, "cpu"))
    now[0] += prepare.TIME_BUDGET / 2
    larger = prepare.TrainBatches(4, "cpu")
    next(larger)
    assert larger.progress == 0.5
    now[0] += prepare.TIME_BUDGET / 2
    with pytest.raises(StopIteration):
        next(larger)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_batch_size_that_is_none(cache, size):
    with pytest.raises(ValueError, match="whole number of rows"):
        prepare.TrainBatches(size, "cpu")


def test_a_fault_of_the_loader_reaches_the_training_loop(cache, monkeypatch):
    def broken(self):
        raise OSError("the disk went away")
        yield

    monkeypatch.setattr(prepare.CacheRows, "shuffled", broken)
    with pytest.raises(OSError, match="the disk went away"):
        next(prepare.TrainBatches(2, "cpu"))


def test_warm_up_rows_are_noise(cache):
    inputs, targets = prepare.warmup_batch(64, "cpu")
    assert inputs.shape == targets.shape == (64, 64) and (inputs[:, 1:] == targets[:, :-1]).all()
    counts = torch.bincount(inputs.flatten(), minlength=512)
    assert counts.max() < 30 and (counts > 0).all()  # 8 of each on average: no word of the language is likelier
    assert (prepare.warmup_batch(64, "cpu")[0] == inputs).all()


def test_finish_without_a_batch_is_an_error(cache):
    with pytest.raises(RuntimeError, match="nothing was trained"):
        prepare.finish(torch.nn.Linear(1, 1), prepare.TrainBatches(2, "cpu"), num_steps=0)


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """A whole run by hand: train.py, and the scorer that it becomes."""
    folder = tmp_path_factory.mktemp("by-hand")
    (folder / "train.py").write_text(BIGRAM.format(root=str(ROOT)))
    answer = subprocess.run(
        [sys.executable, "train.py"], cwd=folder, env=environment(cache), capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    _, _, block = answer.stdout.partition("---\n")
    return folder, dict(line.split(":") for line in block.splitlines())


def expected_score(cache, split: str) -> float:
    """Bits per byte of the bigram table, in float64 and one token after the other."""
    from safetensors.numpy import load_file

    table = load_file(cache / "last-run/model.safetensors")["table.weight"].astype(np.float64)
    log_probability = table - np.logaddexp.reduce(table, axis=1, keepdims=True)
    token_bytes = np.load(cache / "sotu-test/token_bytes.npy")
    rows = np.fromfile(cache / f"sotu-test/{split}.bin", dtype=np.uint16).reshape(-1, 65)
    nats = sum(-log_probability[a, b] for row in rows for a, b in zip(row[:-1], row[1:], strict=True) if token_bytes[b])
    return nats / math.log(2) / sum(int(token_bytes[b]) for row in rows for b in row[1:])


def test_the_score_is_bits_per_byte(cache, run):
    assert float(run[1]["val_bpb"]) == pytest.approx(expected_score(cache, "val"), abs=1e-6)


def test_the_summary_has_the_public_keys(run):
    assert list(run[1]) == [
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
    assert 3.0 <= float(run[1]["training_seconds"]) < 3.5
    assert run[1]["mfu_percent"].strip() == run[1]["depth"].strip() == "n/a"
    assert float(run[1]["num_params_M"]) == 0.3  # 512 x 512


def test_the_holdout_is_scored_on_its_own_rows(cache, run):
    answer = subprocess.run(
        [sys.executable, str(ROOT / "prepare.py"), "score", "--split", "holdout"],
        env=environment(cache),
        capture_output=True,
        text=True,
        check=True,
    )
    score = float(answer.stdout.partition("holdout_bpb:")[2].split()[0])
    assert score == pytest.approx(expected_score(cache, "holdout"), abs=1e-6)
    assert score != float(run[1]["val_bpb"])


def test_scoring_what_was_never_trained(cache, tmp_path):
    answer = subprocess.run(
        [sys.executable, str(ROOT / "prepare.py"), "score"],
        capture_output=True,
        text=True,
        env=environment(cache, AUTORESEARCH_RUN_DIR=str(tmp_path)),
    )
    assert answer.returncode == 2 and "there is no finished run" in answer.stderr


def test_scoring_with_the_settings_of_another_game(cache, run):
    answer = subprocess.run(
        [sys.executable, str(ROOT / "prepare.py"), "score"],
        capture_output=True,
        text=True,
        env=environment(cache, AUTORESEARCH_PROFILE="cpu"),
    )
    assert answer.returncode == 2 and "AUTORESEARCH_PROFILE=test AUTORESEARCH_DATA=sotu" in answer.stderr


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("return self.table(idx) * float('nan')", "not a finite number"),
        ("return self.table(idx)[..., :100]", "must give logits (16, 64, 512) in floating point, not (16, 64, 100)"),
    ],
)
def test_a_model_without_a_score(cache, run, tmp_path, forward, message):
    (tmp_path / "train.py").write_text(BIGRAM.format(root=str(ROOT)).replace("return self.table(idx)", forward))
    figures = json.loads((cache / "last-run/figures.json").read_text())
    (tmp_path / "figures.json").write_text(json.dumps({**figures, "train_py": str(tmp_path / "train.py")}))
    (tmp_path / "model.safetensors").write_bytes((cache / "last-run/model.safetensors").read_bytes())
    answer = subprocess.run(
        [sys.executable, str(ROOT / "prepare.py"), "score"],
        capture_output=True,
        text=True,
        env=environment(cache, AUTORESEARCH_RUN_DIR=str(tmp_path)),
    )
    assert answer.returncode == 1 and message in answer.stderr and "val_bpb" not in answer.stdout


def test_training_without_prepared_data_says_what_to_run(tmp_path):
    (tmp_path / "train.py").write_text(BIGRAM.format(root=str(ROOT)))
    answer = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=environment(tmp_path / "empty"), capture_output=True, text=True
    )
    assert (
        answer.returncode == 2 and "run `uv run prepare.py` first" in answer.stderr and "Traceback" not in answer.stderr
    )


# -- the referee


@pytest.fixture
def joined(cache, monkeypatch):
    """A referee, and this process in the place of the training."""
    monkeypatch.setattr(prepare, "TIME_BUDGET", 0.5)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    referee = prepare.Referee(theirs)
    monkeypatch.setenv("AUTORESEARCH_REFEREE", str(ours.fileno()))
    monkeypatch.setattr(prepare.RefereeRows, "channel", ours)
    yield referee, ours
    ours.close()
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(referee.pid, 9)
        os.waitpid(referee.pid, 0)


def test_the_referee_gives_the_rows_that_a_run_by_hand_gets(joined, monkeypatch):
    from_referee = [batch[0] for batch, _ in zip(prepare.TrainBatches(4, "cpu"), range(20), strict=False)]
    monkeypatch.delenv("AUTORESEARCH_REFEREE")
    monkeypatch.setattr(prepare.TrainBatches, "_start", None)
    by_hand = [batch[0] for batch, _ in zip(prepare.TrainBatches(4, "cpu"), range(20), strict=False)]
    assert len(from_referee) == 20 and all(
        (one == other).all() for one, other in zip(from_referee, by_hand, strict=True)
    )


def test_the_referee_gives_nothing_before_its_clock_and_nothing_after(joined):
    referee, channel = joined
    channel.send(b"open 2")
    number, (memory,), _, _ = socket.recv_fds(channel, 64, 1)
    channel.send(b"next " + number)
    assert channel.recv(64) == b"over" and not prepare.shared_rows(memory, 2).any()
    channel.send(b"start")
    assert channel.recv(64) == b"go"
    began, answers = time.monotonic(), []
    while not answers or answers[-1] == b"go":
        channel.send(b"next " + number)
        answers.append(channel.recv(64))
    assert answers[-1] == b"over" and len(answers) > 2 and 0.45 < time.monotonic() - began < 5.0
    channel.send(b"start")  # a second start is none
    assert channel.recv(64) == b"go"
    channel.send(b"next " + number)
    assert channel.recv(64) == b"over"


def test_a_training_that_goes_on_after_the_clock_is_void(joined, tmp_path, monkeypatch):
    referee, channel = joined
    list(prepare.TrainBatches(4, "cpu"))
    real = time.perf_counter
    monkeypatch.setattr(prepare, "_now", lambda: real() + 6)
    with pytest.raises(prepare.NoScore, match=r"void: the training process went on for 6\.\d s after its 0\.5 s"):
        referee.require_in_time(tmp_path / "model.safetensors")


@pytest.mark.parametrize("sparse", [False, True])
def test_saving_a_large_model_takes_its_time(joined, tmp_path, monkeypatch, sparse):
    """A second for 200 MB that are there, none for a file that only says it is large."""
    referee, channel = joined
    list(prepare.TrainBatches(4, "cpu"))
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(300_000_000) if sparse else os.posix_fallocate(file.fileno(), 0, 300_000_000)
    real = time.perf_counter
    monkeypatch.setattr(prepare, "_now", lambda: real() + 2.8)
    with pytest.raises(prepare.NoScore) if sparse else contextlib.nullcontext():
        referee.require_in_time(tmp_path / "model.safetensors")


def test_a_training_without_a_batch_has_no_score(joined, tmp_path):
    with pytest.raises(prepare.NoScore, match="drew no batch"):
        joined[0].require_in_time(tmp_path / "model.safetensors")


def test_figures_are_read_as_what_a_stranger_wrote(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "RUN_FOLDER", tmp_path)
    good = {"profile": "test", "data": "sotu", "device": "cpu", "train_py": "x", "num_steps": 3}
    strange = {"val_bpb": 0.1, "depth": "7", "mfu_percent": float("nan"), "peak_vram_mb": [1]}
    (tmp_path / "figures.json").write_text(json.dumps(good | strange))
    figures = prepare.read_figures()
    assert figures["num_steps"] == 3 and "val_bpb" not in figures
    assert figures["depth"] is figures["mfu_percent"] is figures["peak_vram_mb"] is figures["started"] is None
    for text in ("", "[]", "{}", json.dumps(good | {"device": "file:///"}), json.dumps(good | {"data": 7})):
        (tmp_path / "figures.json").write_text(text)
        with pytest.raises(SystemExit):
            prepare.read_figures()
    (tmp_path / "figures.json").unlink()
    (tmp_path / "other.json").write_text(json.dumps(good))
    for make in (
        lambda: (tmp_path / "figures.json").symlink_to("other.json"),
        lambda: os.mkfifo(tmp_path / "figures.json"),
    ):
        make()
        with pytest.raises(SystemExit):
            prepare.read_figures()
        (tmp_path / "figures.json").unlink()


def test_cuts_cover_the_whole_row():
    cuts = prepare.spread(500, np.random.default_rng())
    assert cuts.min() == 1 and cuts.max() == prepare.MAX_SEQ_LEN - 1 and set(cuts) == set(range(1, prepare.MAX_SEQ_LEN))


# -- the score on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("shared_by", ["handle", "host"])
def test_the_score_on_a_gpu(cache, run, tmp_path, shared_by):
    """Logits through the device's own memory, and through the host's where that cannot be shared: the score of the CPU."""
    (tmp_path / "train.py").write_text(
        BIGRAM.format(root=str(ROOT)).replace("return Bigram()", "return Bigram().cuda()")
    )
    figures = json.loads((cache / "last-run/figures.json").read_text())
    (tmp_path / "figures.json").write_text(
        json.dumps({**figures, "device": "cuda", "train_py": str(tmp_path / "train.py")})
    )
    (tmp_path / "model.safetensors").write_bytes((cache / "last-run/model.safetensors").read_bytes())
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import prepare\n"
        "def note(memory, handle):\n    print('shared by', 'handle' if handle else 'host'); return memory, handle\n"
        "original = prepare.device_memory\n"
        + (
            "def none(size):\n    raise OSError\nprepare.device_memory = none\n"
            if shared_by == "host"
            else "prepare.device_memory = lambda size: note(*original(size))\n"
        )
        + "print('score', prepare.score()['val_bpb'])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(cache, AUTORESEARCH_RUN_DIR=str(tmp_path)),
    )
    assert answer.returncode == 0, answer.stderr
    assert ("shared by handle" in answer.stdout) == (shared_by == "handle")
    assert float(answer.stdout.rpartition("score ")[2]) == pytest.approx(expected_score(cache, "val"), abs=1e-5)
