"""The processes that run train.py's model: what reaches the referee from one that breaks every rule."""

import dataclasses
import json
import os
import sys

import pytest
import torch

import prepare
from autoresearch.referee import models, score
from autoresearch.referee.models import ModelProcess, copy_weights, why_not

# A process in the place of answer.py, without torch: a few lines that know the channel, and then misbehave.
STRANGER = """import json, os, random, signal, socket, sys, time
channel = socket.socket(fileno=int(os.environ["AUTORESEARCH_REFEREE"]))
def serve(batches):
    channel.send(b"imported")
    channel.recv(4096)
    channel.send(b"ready")
    for _ in range(batches):
        channel.recv(64)
        channel.send(b"done")
"""
ENDED, BROKE, SILENT = "its process ended while", "its process broke the rules while", "its process took more than"
STRANGERS = {
    "ends at once": ("", ENDED),
    "ends after it was built": ("serve(0)", ENDED),
    "ends in the middle": ("serve(2)", ENDED),
    "kills itself": ("serve(1); os.kill(os.getpid(), signal.SIGKILL)", ENDED),
    "closes the channel and stays": ("serve(1); channel.close(); time.sleep(60)", SILENT),
    "closes it one way": ("serve(1); channel.shutdown(socket.SHUT_WR); time.sleep(60)", ENDED),
    "says nothing": ("serve(1); time.sleep(60)", SILENT),
    "says nothing from the start": ("time.sleep(60)", SILENT),
    "always less memory": ("serve(0)\nwhile channel.recv(64):\n time.sleep(1)\n channel.send(b'memory')", SILENT),
    "an empty packet": ("serve(1); channel.send(b''); time.sleep(60)", ENDED),
    "a packet too large": ("serve(1); channel.send(b'done' * 20_000)", BROKE),
    "the answer and more": ("serve(1); channel.send(b'done '); time.sleep(60)", BROKE),
    "another answer": ("serve(1); channel.send(b'ready')", BROKE),
    "an answer before its time": ("channel.send(b'done')", BROKE),
    "failed, and says more": ("serve(1); channel.send(b'failed of the people by the people')", BROKE),
    "a line that is none": ("serve(1); channel.send(b'failed ValueError -7')", BROKE),
    "a line that is long": ("serve(1); channel.send(b'failed ValueError ' + b'9' * 400)", "ValueError while"),
    "zeros": ("serve(1); channel.send(bytes(64))", BROKE),
    "handles": ("serve(1); socket.send_fds(channel, [b'x'], [0] * 50)", BROKE),
    "a flood": (
        "channel.setblocking(False)\nwhile True:\n    try: channel.send(b'done')\n    except OSError: pass",
        BROKE,
    ),
    "a flood of answers, none of which waits": (
        "serve(0)\nwhile True:\n    channel.send(b'done')",
        None,  # what its memory holds is scored, and is no number or a bad one
    ),
}


class Stranger(ModelProcess):
    code = ""

    def program(self):
        return [sys.executable, "-I", "-S", "-c", STRANGER + self.code]


@pytest.fixture
def trained(game, tmp_path):
    """A run that never was: weights and a train.py that nobody reads."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "train.py").write_text("a = 1\nb = 2\n")
    return dataclasses.replace(game, run_folder=tmp_path)


def score_of(stranger: ModelProcess, game, rows) -> str | None:
    """Why there is no score of a stranger; None if there is one."""
    try:
        with stranger as model:
            model.wait_until_imported()
            model.load(game.run_folder / "train.py", "cpu")
            losses = prepare.losses_of(model, rows)
            prepare.bits_per_byte(losses, game.token_bytes()[rows[:, 1:]])
    except prepare.NoScore as reason:
        return str(reason)
    return None


@pytest.mark.parametrize(("code", "reason"), STRANGERS.values(), ids=STRANGERS)
def test_a_process_that_breaks_the_rules(trained, monkeypatch, code, reason):
    """There is a reason in plain words or a score, no traceback, and nothing hangs."""
    if reason == SILENT:
        monkeypatch.setattr(models, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(Stranger, "code", code)
    found = score_of(Stranger(trained), trained, trained.rows("val")[:64])
    assert found is None if reason is None else reason in found
    assert not any(path.name.startswith("model-") for path in trained.run_folder.iterdir())


def test_a_model_has_no_time_to_train_while_it_is_scored(trained, monkeypatch, tmp_path):
    """What takes much longer than the baseline did has no score, whatever it did."""
    figures = {"profile": "test", "data": trained.data, "device": "cpu", "train_py": str(tmp_path / "train.py")}
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    monkeypatch.setenv("AUTORESEARCH_REFERENCE", str(tmp_path / "reference"))
    monkeypatch.setattr(score, "PATIENCE", 0.0)
    monkeypatch.setattr(Stranger, "code", "serve(10**6)")
    baseline = score.score(trained, process=Stranger)
    assert baseline["val_bpb"] > 3.5, "its logits are all the same"
    learns = f"time.sleep({score.SLOWER * baseline['score_seconds'] + 0.1})"
    slow = f"channel.send(b'imported'); channel.recv(4096); {learns}; channel.send(b'ready')"
    monkeypatch.setattr(Stranger, "code", f"{slow}\nwhile channel.recv(64): channel.send(b'done')")
    with pytest.raises(prepare.NoScore, match=r"void: scoring took .* since the baseline's took"):
        score.score(trained, process=Stranger)


def test_the_last_word_of_a_process_that_ended_with_a_question_unread(trained, monkeypatch):
    class Late(Stranger):
        """Listens only when the process has ended."""

        code = "serve(0); channel.send(b'failed ValueError 2'); time.sleep(1)"

        def expect(self, *words, during):
            if during == "it gave logits":
                self.process.wait()
            return super().expect(*words, during=during)

    found = score_of(Late(trained), trained, trained.rows("val")[:64])
    assert found == "the model cannot be scored: ValueError in line 2 of train.py while it gave logits"


def test_random_bytes(trained, monkeypatch):
    """Two hundred last words drawn by lot; none of them is repeated by the referee."""
    for seed in range(4):
        code = f"serve(1); random.seed({seed}); channel.send(random.randbytes(random.randrange(1, 200)))"
        monkeypatch.setattr(Stranger, "code", code)
        assert BROKE in score_of(Stranger(trained), trained, trained.rows("val")[:64])
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        size = int(torch.randint(1, 64, (1,), generator=random))
        said = b"failed " * (size % 2) + bytes(torch.randint(256, (size,), generator=random).tolist())
        reason = why_not(said, trained, 16, 2, "it gave logits")
        assert reason == "the model cannot be scored: its process broke the rules while it gave logits"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"failed ValueError 2", "ValueError in line 2 of train.py while it gave logits"),
        (b"failed ValueError 3", "ValueError while it gave logits"),  # there is no third line
        (b"failed FourScoreAndSevenYears 1", "an exception in line 1 of train.py while it gave logits"),
        (b"failed print 1", "an exception in line 1 of train.py while it gave logits"),
        (b"failed OutOfMemoryError 0", "OutOfMemoryError while it gave logits"),
    ],
)
def test_of_a_failure_type_and_line_are_told(trained, said, reason):
    assert why_not(said, trained, 16, 2, "it gave logits") == f"the model cannot be scored: {reason}"


def test_what_a_model_process_inherits(trained, monkeypatch):
    """One socket; an environment without keys, home or names of the run; no trace of its parent's handles."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("AUTORESEARCH_REFERENCE", "/secret")
    look = (
        "channel.send(b'imported'); held = socket.recv_fds(channel, 4096, 1)\n"
        "channel.send(b'ready'); channel.recv(64)\n"
        "path = os.environ['HOME'] + '/found'\n"
        "paths = [f'/proc/self/fd/{number}' for number in range(3, 100)]\n"
        "handles = [os.readlink(path) for path in paths if os.path.islink(path)]\n"
        "open(path, 'w').write(json.dumps([handles, dict(os.environ)]))\n"
        "channel.send(b'done'); channel.recv(64)"
    )
    monkeypatch.setattr(Stranger, "code", look)
    leaking = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(leaking, True)
    with Stranger(trained) as model:
        model.wait_until_imported()
        model.load(trained.run_folder / "train.py", "cpu")
        model.logits(torch.zeros(1, 64, dtype=torch.int64))
        handles, environment = json.loads((model.folder / "found").read_text())
        assert environment["HOME"] == environment["TMPDIR"] == str(model.folder)
        assert (model.folder / "model.safetensors").read_bytes() == b"weights"
    os.close(leaking)
    assert not model.folder.exists()
    assert sorted(handle.partition(":")[0] for handle in handles) == ["/memfd", "socket"]  # the memory that it was sent
    assert not set(environment) & {"ANTHROPIC_API_KEY", "AUTORESEARCH_REFERENCE", "AUTORESEARCH_RUN_DIR", "USER"}


@pytest.mark.parametrize(
    ("answers", "free", "sizes"),
    [
        ("ready", 16, [(16, 2)]),
        ("ready", 4, [(4, 2)]),  # the device holds the logits of four rows
        ("memory memory ready", 16, [(16, 2), (8, 2), (4, 2)]),  # or those of more, but not the model beside them
        ("memory memory ready", 2, [(2, 2), (1, 2), (1, 1)]),
        ("ready", 0, [(1, 1)]),  # then through the host's memory
        ("closed ready", 16, [(16, 2), (16, 1)]),
        ("closed memory", 16, None),
    ],
)
def test_less_memory_of_the_device_than_usual(trained, monkeypatch, answers, free, sizes):
    """Fewer rows at a time, then the host's memory; what is not used any more is given back. The device is made up."""
    sizes_of, held = trained.profile, []

    def device_memory(size):
        if size > 4 * free * sizes_of.max_seq_len * sizes_of.vocab_size:
            raise MemoryError
        held.append(torch.empty(size // 4))
        return held[-1], os.memfd_create("device")

    def close_device_memory(memory):
        held[:] = [other for other in held if other is not memory]

    monkeypatch.setattr(models.shared, "device_memory", device_memory)
    monkeypatch.setattr(models.shared, "close_device_memory", close_device_memory)
    asked = trained.run_folder / "asked"
    code = (
        "channel.send(b'imported')\n"
        f"for answer in {answers.split()}:\n"
        "    request, handles, *_ = socket.recv_fds(channel, 4096, 2)\n"
        f"    open({str(asked)!r}, 'a').write(f'{{json.loads(request)[\"batch_size\"]}} {{len(handles)}}\\n')\n"
        "    channel.send(answer.encode())\n"
        "channel.recv(64)\n"
    )
    monkeypatch.setattr(Stranger, "code", code)
    with Stranger(trained) as model:
        model.wait_until_imported()
        model.batch_size = 16
        if sizes is None:
            with pytest.raises(prepare.NoScore, match="too little memory left to build it"):
                model.load(trained.run_folder / "train.py", "cuda")
            return
        model.load(trained.run_folder / "train.py", "cuda")
        rows, handles = sizes[-1]
        assert [tuple(map(int, line.split())) for line in asked.read_text().splitlines()] == sizes
        assert len(held) == handles - 1 and model.batch_size == rows == len(model.shared_logits)
    assert not held


def test_both_processes_start_the_gpu_at_once(trained, monkeypatch, tmp_path):
    """Each says that it has only when the other one was told, too. There is no GPU here: what needs it would say so."""
    (tmp_path / "told").mkdir()
    wait = "open(f'told/{os.getpid()}', 'w')\nwhile len(os.listdir('told')) < 2: time.sleep(0.01)"
    code = f"channel.send(b'imported'); assert channel.recv(64) == b'start'\n{wait}\nchannel.send(b'started')"
    monkeypatch.setattr(Stranger, "code", code)
    monkeypatch.chdir(tmp_path)
    with Stranger(trained) as first, Stranger(trained) as second:
        for model in (first, second):
            model.wait_until_imported()
        models.start_device((first, second))


@pytest.mark.slow
def test_what_torch_imports_late_is_there_before_the_training_s_clock(trained, monkeypatch):
    """On a GPU the first attention with a window imports torch._dynamo: nobody waits for that when a training ends."""
    monkeypatch.setenv("AUTORESEARCH_PROFILE", "gpu")
    game = dataclasses.replace(trained, profile=prepare.PROFILES["gpu"])
    train_py = trained.run_folder / "train.py"
    train_py.write_text("import sys\nraise KeyError if 'torch._dynamo' in sys.modules else IndexError\n")
    with ModelProcess(game) as model:
        model.wait_until_imported()
        models.start_device([model])
        with pytest.raises(prepare.NoScore, match=r"KeyError in line 2 of train\.py while it was built"):
            model.load(train_py, "cpu")


def test_weights_that_are_none(tmp_path):
    source, target = tmp_path / "model.safetensors", tmp_path / "copy"
    with pytest.raises(prepare.NoScore, match="saved no weights"):
        copy_weights(source, target)
    source.symlink_to("/etc/hostname")
    with pytest.raises(prepare.NoScore, match="saved no weights"):
        copy_weights(source, target)
    source.unlink()
    os.mkfifo(source)
    with pytest.raises(prepare.NoScore, match="is no file"):
        copy_weights(source, target)
    source.unlink()
    with open(source, "wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(prepare.NoScore, match="no room"):
        copy_weights(source, target)
    assert not target.exists()
