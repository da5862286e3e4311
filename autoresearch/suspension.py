"""Tells a suspended machine or program from a busy one.

Time that passed while the one thread neither computed nor waited for a program was a suspension.
"""

import contextlib
import time
from collections.abc import Iterator

_waited = 0.0  # seconds that the thread stood in programs which it waits for at once: git


def now() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def busy() -> float:
    """Seconds that this program has computed, or waited for a program without giving way to other tasks."""
    return time.process_time() + _waited


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Inside, the thread waits for a program and does nothing else."""
    global _waited
    began = time.monotonic()
    try:
        yield
    finally:
        _waited += time.monotonic() - began
