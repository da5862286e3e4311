"""Distinguishes a suspended machine or program from a busy one.

An asyncio thread is either in its selector, waiting for an event, or busy. So if much more time has passed than it was
busy, and a timer that was due did not wake it, it was suspended.
"""

import asyncio
import selectors
import time


class Selector(selectors.DefaultSelector):
    """A selector that adds up the time that its thread is busy, i.e. outside of `select`."""

    def __init__(self) -> None:
        super().__init__()
        self.busy, self.left = 0.0, time.monotonic()  # seconds, as far as counted; when the thread became busy last

    def select(self, timeout=None):
        self.busy += time.monotonic() - self.left
        try:
            return super().select(timeout)
        finally:
            self.left = time.monotonic()


_selector = Selector()


def event_loop() -> asyncio.AbstractEventLoop:
    """An event loop with this selector: a factory for asyncio.Runner."""
    global _selector
    _selector = Selector()
    return asyncio.SelectorEventLoop(_selector)


def now() -> float:
    """Seconds on a clock that keeps running while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def busy() -> float:
    """Seconds that the thread of `event_loop` was busy, or waited for a busy processor (a trial that starves the loop
    is not a suspension). On a clock that stops while the machine is suspended."""
    return _selector.busy + time.monotonic() - _selector.left + starved()


def starved() -> float:
    """Seconds that this thread has waited for a processor; 0 if the kernel does not count them."""
    try:
        with open("/proc/thread-self/schedstat") as counts:
            return int(counts.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
