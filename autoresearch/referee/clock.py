"""The clock: a process that hands training rows to the training process and keeps the time, out of its reach."""

import contextlib
import fcntl
import mmap
import os
import select
import signal
import socket
import time
from pathlib import Path

import numpy as np

from autoresearch.runner.progress import longest_start
from prepare import MOST_ROWS, CacheRows, Game, NoScore, shared_rows

MOST_STREAMS = 64  # that a training may open
FAIR_END = 2.0  # seconds after the time is over, for the last step and for saving the weights
SLOWEST_DISK = 200e6  # bytes/s at which weights are saved
LONGEST_HOLD = 60.0  # seconds that a training waits, at most, for what else starts up


class Referee:
    """Hands out rows by the messages that prepare.RefereeRows sends, from the first `start` until the time is over.

    Its child process imports no torch, so that nothing in this process can hold up a batch. hold: the clock starts
    only after `release`, when whatever else starts up computes no more.
    """

    def __init__(self, channel: socket.socket, game: Game, hold: bool = False) -> None:
        self.channel, self.game = channel, game
        self.began = time.perf_counter()
        # By time.perf_counter(): when the clock started, the longest time between two requests for a batch, the last
        # request, and when the training was ready for its clock. In memory that parent and child share.
        self.times = np.frombuffer(mmap.mmap(-1, 32), np.float64)
        self.held, self.holding = os.pipe()
        if not hold:
            self.release()
        if (pid := os.fork()) == 0:
            if hold:
                os.close(self.holding)
            with contextlib.suppress(BaseException):  # of a training that breaks the rules: it gets no more rows
                self.run()
            os._exit(0)
        self.pid = pid
        os.close(self.held)
        channel.close()

    def release(self) -> None:
        """Let the clock start."""
        os.close(self.holding)

    def run(self) -> None:
        streams: list[tuple[CacheRows, np.ndarray]] = []
        while message := self.channel.recv(64):
            word, _, number = message.partition(b" ")
            opened = sum(len(memory) for _, memory in streams)
            if word == b"open" and len(streams) < MOST_STREAMS and opened + int(number) <= MOST_ROWS:
                memory = os.memfd_create("rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                os.ftruncate(memory, 2 * int(number) * (self.game.profile.max_seq_len + 1))
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
                socket.send_fds(self.channel, [b"%d" % len(streams)], [memory])
                streams.append((CacheRows(int(number), self.game), shared_rows(memory, int(number), self.game)))
                os.close(memory)
                continue
            if word == b"start":
                self.times[3] = self.times[3] or time.perf_counter()
                select.select([self.held], [], [], LONGEST_HOLD)
            now = time.perf_counter()
            if word == b"start" and not self.times[0]:
                self.times[0] = self.times[2] = now
            if word == b"next":
                rows, batch = streams[int(number)]
                if not self.times[0] or now - self.times[0] >= self.game.profile.time_budget:
                    self.channel.send(b"over")
                    continue
                self.times[1:3] = max(self.times[1], now - self.times[2]), now
                rows.fill(batch)
            self.channel.send(b"go")

    def require_in_time(self, saved: Path, ended: float) -> None:
        """Call when the training process has ended. Raises NoScore if it began too late or went on too long.

        saved: the weights. ended: when, by time.perf_counter(). Allowed are two seconds, one step, and what saving the
        weights takes at 200 MB/s; the latter two up to two seconds or a twentieth of the budget each.
        """
        budget = self.game.profile.time_budget
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        clock, longest_step, last, ready = self.times.tolist()
        if not clock:
            raise NoScore("the training drew no batch from TrainBatches")
        if ready - self.began > longest_start(budget):
            raise NoScore(
                f"void: the training drew its first batch after {ready - self.began:.0f} s; it has "
                f"{longest_start(budget):.0f} s for importing, building and compiling"
            )
        over = ended - clock - budget
        longest_step = max(longest_step, clock + budget - last)
        status = saved.lstat() if saved.exists() else None  # neither holes nor what is reserved was saved
        saving = min(status.st_size, status.st_blocks * 512) / SLOWEST_DISK if status else 0.0
        most = max(2.0, budget / 20)
        allowed = FAIR_END + min(longest_step, most) + min(saving, most)
        if over > allowed:
            raise NoScore(
                f"void: the training process went on for {over:.1f} s after its {budget:g} s; {allowed:.1f} s are "
                "allowed, for the last step and for saving"
            )
