"""The processes that run train.py's model while it is scored, as the referee sees them."""

import builtins
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoresearch.referee import shared
from autoresearch.runner import keeper, sandbox
from autoresearch.runner.environment import CACHES, HARMLESS, matching
from autoresearch.runner.machine import NEARLY_NOTHING, remove
from prepare import Game, NoScore, scored_batch_size

if TYPE_CHECKING:
    import torch

ENVIRONMENT = (*HARMLESS, "PYTHONDONTWRITEBYTECODE", "AUTORESEARCH_PROFILE", "AUTORESEARCH_SEED")  # what it sees of it
# That the process may take to build the model and give its first logits, and then for each answer; or as long as the
# budget. A model could train in it, so that it is asked for less where its memory ran out is no reason for more.
ANSWER_SECONDS = 60.0
GRACE_SECONDS = 6.0  # between SIGTERM and SIGKILL
# Names of exceptions that are told besides Python's own. Others could be words of the text that is scored.
TOLD = (
    "AcceleratorError",
    "BackendCompilerFailed",
    "CompilationError",
    "InductorError",
    "InternalTorchDynamoError",
    "OutOfMemoryError",
    "SafetensorError",
    "TorchRuntimeError",
    "Unsupported",
)


class ModelProcess:
    """A process that runs train.py's model and nothing else of ours. What it may read holds no target.

    A prepare.ScoredModel. It starts fresh: it inherits one socket, a few harmless variables, and nothing else.
    AUTORESEARCH_CONFINE holds the words of the loop's sandbox.launcher, by which it is confined; it writes to a
    folder of its own and nowhere else, in which it finds a copy of the weights. Nothing that it prints is kept.
    """

    def __init__(self, game: Game) -> None:
        self.game, self.batch_size = game, scored_batch_size(game.profile)
        self.lines = 0  # of train.py
        self.device_memory: torch.Tensor | None = None  # flat; the logits, where they travel through it
        self.folder = Path(tempfile.mkdtemp(prefix="model-"))
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.patience = max(ANSWER_SECONDS, game.profile.time_budget)  # seconds
        self.deadline = time.monotonic() + self.patience
        self.ended = False
        with theirs:
            self.process = self.start(theirs)

    def start(self, channel: socket.socket) -> subprocess.Popen:
        """Start the program, with its end of the channel."""
        environment = {
            **matching(os.environ, ENVIRONMENT),
            **{name: str(self.folder / name.lower()) for name in CACHES},
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "AUTORESEARCH_REFEREE": str(channel.fileno()),
            keeper.PARENT: str(os.getpid()),
        }
        return subprocess.Popen(
            [*self.launcher(), *self.program()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[channel.fileno()],
        )

    def launcher(self) -> list[str]:
        """The words by which the loop confines it, less the folder in which the training has left its files."""
        words = json.loads(os.environ.get("AUTORESEARCH_CONFINE", "[]")) or sandbox.launcher(None)
        if rules := json.loads(words[-1]):
            rules["read"] = [path for path in rules["read"] if Path(path) != self.game.run_folder]
        return [*words[:-1], json.dumps(rules)]

    def program(self) -> list[str]:
        return [sys.executable, "-m", "autoresearch.referee", "answer"]

    def __enter__(self) -> "ModelProcess":
        return self

    def __exit__(self, *exception) -> None:
        self.end()

    def end(self) -> None:
        """End the process and all that it started, at once, and remove its folder: nothing of it is left."""
        self.channel.close()
        self.give_back()
        if self.ended:
            return
        self.signal(signal.SIGTERM)  # its keeper ends all
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()
        self.signal(signal.SIGKILL)
        self.ended = True
        remove(self.folder)  # whatever it has left there

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def wait_until_imported(self) -> None:
        """Wait until it has imported torch and computes nothing any more. Raises NoScore."""
        self.deadline = time.monotonic() + self.patience
        self.expect(b"imported", during="it was started")

    def start_device(self) -> None:
        """Have it start the GPU."""
        with contextlib.suppress(OSError):  # it has ended: the answer says so
            self.channel.send(b"start")

    def wait_until_started(self) -> None:
        """Wait until it has started the GPU, as far as that is possible. Raises NoScore."""
        self.deadline = time.monotonic() + self.patience
        self.expect(b"started", during="it started the GPU")

    def load(self, train_py: Path, device: str) -> None:
        """Have it build the model with the run's weights. Raises NoScore where it cannot.

        Logits travel through the device's memory if both sides can open it, else through the host's. Where the device
        has too little left, fewer rows are scored at a time.
        """
        self.device = device
        self.deadline = time.monotonic() + self.patience
        self.lines = len(train_py.read_bytes().splitlines())
        copy_weights(self.game.weights, self.folder / "model.safetensors")
        on_device = device.startswith("cuda")
        while (said := self.offer(train_py, on_device)) != b"ready":
            if said == b"memory" and on_device and self.batch_size > 1:
                self.batch_size //= 2
            elif on_device:
                on_device = False
            elif said == b"memory":
                raise NoScore("the model cannot be scored: the device has too little memory left to build it")
            else:
                raise NoScore("the model's process could not open the memory for its logits")

    def offer(self, train_py: Path, on_device: bool) -> bytes:
        """Make memory for ids and logits, and have the process build the model beside it. What it says: `ready`,
        `closed` where one side cannot open that memory, `memory` where there is too little of it.
        """
        sizes, handles = self.game.profile, []
        ids = self.batch_size * sizes.max_seq_len
        logits = ids * sizes.vocab_size
        self.give_back()
        if on_device:
            try:
                self.device_memory, handle = shared.device_memory(4 * logits)
            except MemoryError:
                return b"memory"
            except (OSError, RuntimeError):
                return b"closed"
            handles.append(handle)
        memory = os.memfd_create("logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, 8 * ids + (0 if on_device else 4 * logits))
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.shared_ids, self.shared_logits = shared.ids_and_logits(memory, self.batch_size, sizes, only_ids=on_device)
        if self.device_memory is not None:
            self.shared_logits = self.device_memory.view(-1, sizes.max_seq_len, sizes.vocab_size)
        elif self.device.startswith("cuda"):
            shared.pin(self.shared_ids, 8 * ids + 4 * logits)
        request = {
            "train_py": str(train_py),
            "weights": str(self.folder / "model.safetensors"),
            "device": self.device,
            "batch_size": self.batch_size,
        }
        handles.insert(0, memory)
        with contextlib.suppress(OSError):  # it has ended: the answer says so
            socket.send_fds(self.channel, [json.dumps(request).encode()], handles)
        for handle in handles:
            os.close(handle)
        return self.expect(b"ready", b"closed", b"memory", during="it was built")

    def give_back(self) -> None:
        """Give the device's memory back, which another process may need."""
        if self.device_memory is not None:
            with contextlib.suppress(OSError, MemoryError):
                shared.close_device_memory(self.device_memory)
            self.device_memory = None

    def logits(self, ids: "torch.Tensor") -> "torch.Tensor":
        """As prepare.ScoredModel says; what is returned is memory that the process can still write to."""
        import torch

        self.shared_ids[: len(ids)] = ids
        with contextlib.suppress(OSError):
            self.channel.send(b"%d" % len(ids))
        if self.expect(b"done", b"memory", during="it gave logits") == b"memory":
            raise torch.OutOfMemoryError
        self.deadline = time.monotonic() + self.patience
        return self.shared_logits

    def expect(self, *words: bytes, during: str) -> bytes:
        """The process's next word, one of these. Raises NoScore where it is another: see `why_not`."""
        try:
            self.channel.settimeout(max(1e-3, self.deadline - time.monotonic()))
            try:
                said = self.channel.recv(64)
            except ConnectionResetError:  # it ended with a question unread; its last word is there still
                said = self.channel.recv(64)
        except TimeoutError:
            self.end()
            raise NoScore(
                f"the model cannot be scored: while {during}, its process took more than {self.patience:g} s"
            ) from None
        except OSError:
            said = b""
        if said in words:
            return said
        self.end()
        raise NoScore(why_not(said, self.game, self.batch_size, self.lines, during))


def start_device(processes: Sequence[ModelProcess]) -> None:
    """Start the GPU in all of them and in this process at once, as long as none of them runs code of train.py."""
    for process in processes:
        process.start_device()
    shared.start_device()
    for process in processes:
        process.wait_until_started()


def why_not(said: bytes, game: Game, batch_size: int, lines: int, during: str) -> str:
    """Why a model has no score, whose process said this, as its last word, while something was done (`during`).

    Only words that are known and a line of train.py: what it says could be text that is scored.
    """
    if said == b"shape":
        expected = (batch_size, game.profile.max_seq_len, game.profile.vocab_size)
        return f"the model must give logits {expected} in floating point"
    word, *rest = said.decode(errors="replace").split(" ")
    if word == "failed" and len(rest) == 2 and rest[1].isascii() and rest[1].isdigit():
        known = getattr(builtins, rest[0], None)
        told = rest[0] in TOLD or (isinstance(known, type) and issubclass(known, BaseException))
        line = int(rest[1])
        where = f" in line {line} of train.py" if 0 < line <= lines else ""
        return f"the model cannot be scored: {rest[0] if told else 'an exception'}{where} while {during}"
    return f"the model cannot be scored: its process {'broke the rules' if said else 'ended'} while {during}"


def copy_weights(source: Path, target: Path) -> None:
    """Copy what a training has saved. Raises NoScore for what is no file, or too large."""
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise NoScore("the model cannot be scored: the training saved no weights") from None
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise NoScore("the model cannot be scored: what the training saved as weights is no file")
        if status.st_size > shutil.disk_usage(target.parent).free - NEARLY_NOTHING:
            raise NoScore(f"the disk has no room for a copy of the weights, {status.st_size / 2**30:.1f} GiB")
        with open(target, "wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
