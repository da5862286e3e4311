"""What the machine has left: host memory and disk."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

CONTAINER_LIMITS = (  # of control groups, version 2 and 1
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ""),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


def free_memory() -> int:
    """Bytes of host memory that can be had: the machine's, and the container's where that is less."""
    free = psutil.virtual_memory().available
    for folder, limit_file, used_file, prefix in CONTAINER_LIMITS:
        try:
            limit, used = (int((folder / name).read_text()) for name in (limit_file, used_file))
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(
                int(counts[prefix + name]) for name in ("inactive_file", "active_file")
            )  # given up when needed
            free = min(free, limit - used + cached)
        except (OSError, ValueError, KeyError):
            pass  # no limit, or not of this kind
    return free


def disk_usage(folders: Iterable[Path]) -> int:
    """Bytes on the disk below the folders."""
    total = 0
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):  # removed meanwhile
                    total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
