"""How much of the machine other programs used while a trial trained: of the CPU; gpu.py looks at the GPU.

A training with a fixed time makes less progress on a busy machine, and would look like a bad idea.
"""

import asyncio
import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from autoresearch.runner.gpu import Taken, Watch
from autoresearch.runner.process import family

LOOK = 5.0  # seconds between two looks while it waits for the machine to be free


@dataclasses.dataclass(frozen=True)
class Processors:
    """CPU seconds since boot, of the processors that this program may use."""

    count: int
    total: float
    idle: float
    own: float  # of this program and all that it started

    @classmethod
    def now(cls) -> "Processors":
        names = re.findall(r"^cpu(\d+)", Path("/proc/stat").read_text(), re.MULTILINE)  # of those that are switched on
        every = dict(zip(map(int, names), psutil.cpu_times(percpu=True), strict=False))
        usable = [every[number] for number in os.sched_getaffinity(0) if number in every]
        total = sum(sum(times) - times.guest - times.guest_nice for times in usable)  # `user` and `nice` hold those
        own = 0.0
        for process in family(os.getpid()):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile: its parent has its seconds
                own += sum(process.cpu_times()[:4])  # with its children that have ended
        return cls(len(usable), total, sum(times.idle + times.iowait for times in usable), own)

    def others_since(self, before: "Processors") -> float:
        """The share of the machine, 0 to 1, that other programs used, or the host did (steal)."""
        total, idle, own = self.total - before.total, self.idle - before.idle, self.own - before.own
        return max(0.0, total - idle - own) / total if total > 0 else 0.0

    def taken_since(self, before: "Processors") -> float:
        """The share that other programs used and this program could have used: their use beyond the idle time; 0 if a
        whole processor was idle.
        """
        total, idle = self.total - before.total, self.idle - before.idle
        if total <= 0 or idle * self.count >= total:
            return 0.0
        return max(0.0, self.others_since(before) - idle / total)


def has_quota() -> bool:
    """Whether this is a container with a CPU quota. Then only the use of the whole machine is visible."""
    for name, none in (("cpu.max", "max"), ("cpu/cpu.cfs_quota_us", "-1")):
        with contextlib.suppress(OSError, IndexError):
            return Path("/sys/fs/cgroup", name).read_text().split()[0] != none
    return False


class Neighbours:
    """What others take of the machine from now on, until `end` is called. environment: of the trial that may use it."""

    def __init__(self, environment: Mapping[str, str], has_gpu: bool) -> None:
        self._before = None if has_quota() else Processors.now()
        self._gpu = Watch(environment) if has_gpu else None

    def taken(self) -> Taken | None:
        """What they took so far, of the processors or of the GPU, whichever is more; None where nobody knows."""
        known = [self._gpu.taken()] if self._gpu else []
        if self._before:
            known.append(Taken(round(Processors.now().taken_since(self._before), 3)))
        return max(filter(None, known), key=lambda taken: taken.share, default=None)

    def end(self) -> None:
        if self._gpu:
            self._gpu.end()


async def quiet(most: float, limit: float, also: Callable[[], bool] = lambda: True) -> bool:
    """Wait until other programs use at most this share of the CPU, at most `limit` seconds. Returns whether they do.
    also: another condition that has to hold.
    """
    end, before = time.monotonic() + limit, Processors.now()
    while time.monotonic() < end:
        await asyncio.sleep(min(LOOK, limit / 4))
        now = Processors.now()
        if now.others_since(before) <= most and also():
            return True
        before = now
    return False
