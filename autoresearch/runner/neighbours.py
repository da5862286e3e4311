"""What other programs took of the processors while a trial trained.

Where a training is against the clock, the machine is a part of its score: beside somebody else's work it comes less far
in the same time, and looks like a bad idea.
"""

import asyncio
import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from autoresearch.runner.process import family

LOOK = 5.0  # seconds between two looks while it waits for the machine to be free


@dataclasses.dataclass(frozen=True)
class Processors:
    """Seconds, since the machine started, of the processors that this program may use."""

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
        """The share of the machine, 0 to 1, that others used, or the host did (steal)."""
        total, idle, own = self.total - before.total, self.idle - before.idle, self.own - before.own
        return max(0.0, total - idle - own) / total if total > 0 else 0.0

    def taken_since(self, before: "Processors") -> float:
        """The share that others took and this program could have used: what they used beyond what was idle anyway, and
        nothing while a whole processor was.
        """
        total, idle = self.total - before.total, self.idle - before.idle
        if total <= 0 or idle * self.count >= total:
            return 0.0
        return max(0.0, self.others_since(before) - idle / total)


def has_quota() -> bool:
    """Whether this is a container with a share of the processors of its own: then those of the whole machine, which
    are all that can be seen, say little.
    """
    for name, none in (("cpu.max", "max"), ("cpu/cpu.cfs_quota_us", "-1")):
        with contextlib.suppress(OSError, IndexError):
            return Path("/sys/fs/cgroup", name).read_text().split()[0] != none
    return False


async def quiet(most: float, limit: float, also: Callable[[], bool] = lambda: True) -> bool:
    """Wait until others use at most this share of the processors, `limit` seconds at most. Whether they do. also: what
    else has to be true.
    """
    end, before = time.monotonic() + limit, Processors.now()
    while time.monotonic() < end:
        await asyncio.sleep(min(LOOK, limit / 4))
        now = Processors.now()
        if now.others_since(before) <= most and also():
            return True
        before = now
    return False
