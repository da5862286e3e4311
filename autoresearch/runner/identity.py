"""An identifier of a process that stays unique when its process id is reused, and one of the time since the machine
started. Imports nothing slow.
"""

import os
from pathlib import Path


def boot() -> str:
    """`host identifier`, of this machine and, from the kernel, of this boot. Empty if unknown."""
    try:
        return f"{os.uname().nodename} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:
        return ""


def identify(pid: int) -> str:
    """`pid start-time`: identifies a process uniquely, since a pid may be reused."""
    import psutil

    try:
        start = psutil.Process(pid).create_time() - psutil.boot_time()  # which does not move when the clock is set
        return f"{pid} {round(100 * start)}"
    except psutil.NoSuchProcess:
        return f"{pid} gone"
