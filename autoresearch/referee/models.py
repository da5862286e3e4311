"""The processes that run train.py's model while it is scored, as the referee sees them."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from autoresearch.referee import shared
from autoresearch.referee.answer import answer
from autoresearch.runner import sandbox
from prepare import Game, NoScore, scored_batch_size

if TYPE_CHECKING:
    import torch

PRIVATE_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
ANSWERS = (b"ready", b"done", b"memory", b"closed")
GRACE_SECONDS = 6.0  # between SIGTERM and SIGKILL


class ModelProcess:
    """A process that runs train.py's model and nothing else of ours. What it may read holds no target.

    A prepare.ScoredModel. Forked from this process, which has imported torch and must not have used it yet.
    AUTORESEARCH_CONFINE holds the words of the loop's sandbox.launcher, by which it is confined; it writes to a
    folder of its own and nowhere else.
    """

    def __init__(self, game: Game) -> None:
        self.game, self.batch_size = game, scored_batch_size(game.profile)
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
        self.pid: int | None = pid
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
            answer(channel, self.game)
        rules = json.loads(launcher[-1])
        if rules and rules["by"] != "Landlock":  # a program confines it, so it has to begin anew
            os.environ["AUTORESEARCH_REFEREE"] = str(channel.fileno())
            channel.set_inheritable(True)
            os.execv(launcher[0], [*launcher, sys.executable, "-m", "autoresearch.referee", "answer"])
        sandbox.run(rules, lambda: answer(channel, self.game))

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
        for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)  # its keeper, where it has one, ends all
            if select.select([handle], [], [], seconds)[0]:
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.close(handle)
        os.waitpid(self.pid, 0)
        self.pid = None

    def load(self, train_py: Path, device: str) -> None:
        """Have it build the model with the run's weights. Raises NoScore where it cannot.

        Logits travel through the device's memory if both sides can open it, else through the host's.
        """
        self.device, sizes = device, self.game.profile
        ids = self.batch_size * sizes.max_seq_len
        logits = ids * sizes.vocab_size
        for shared_by in ("handle", "host") if device.startswith("cuda") else ("host",):
            handle = ""
            if shared_by == "handle":
                try:
                    floats, handle = shared.device_memory(4 * logits)
                except (OSError, RuntimeError):
                    continue
                self.shared_logits: torch.Tensor = floats.view(-1, sizes.max_seq_len, sizes.vocab_size)
            memory = os.memfd_create("logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(memory, 8 * ids + (0 if handle else 4 * logits))
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self.shared_ids, in_memory = shared.ids_and_logits(memory, self.batch_size, sizes, only_ids=bool(handle))
            request = {
                "train_py": str(train_py),
                "weights": str(self.game.weights),
                "device": device,
                "batch_size": self.batch_size,
                "handle": handle,
            }
            with contextlib.suppress(OSError):  # it has ended: the answer says so
                socket.send_fds(self.channel, [json.dumps(request).encode()], [memory])
            os.close(memory)
            if self.answer() == b"ready":
                if not handle:
                    self.shared_logits = in_memory
                return
        raise NoScore("the model's process could not open the memory for its logits")

    def logits(self, ids: "torch.Tensor") -> "torch.Tensor":
        """As prepare.ScoredModel says; what is returned is memory that the process can still write to."""
        import torch

        self.shared_ids[: len(ids)] = ids
        with contextlib.suppress(OSError):
            self.channel.send(b"%d" % len(ids))
        if self.answer() == b"memory":
            raise torch.OutOfMemoryError
        return self.shared_logits

    def answer(self) -> bytes:
        """The process's next word. Raises NoScore, with the last line of its log, where there is no such word."""
        try:
            answer = self.channel.recv(64)
        except OSError:
            answer = b""
        if answer in ANSWERS:
            return answer
        self.end()
        log = (self.folder / "log").read_bytes()[-4000:].decode(errors="replace")
        lines = ["".join(c for c in line if c.isprintable()) for line in log.splitlines() if line.strip()]
        for line in lines[-15:]:
            print(f"  model | {line[:300]}", file=sys.stderr)
        raise NoScore(f"the model cannot be scored: {lines[-1][:200] if lines else 'its process ended without a word'}")
