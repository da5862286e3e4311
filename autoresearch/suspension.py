"""Tells a suspended machine or program from a busy one.

A thread of asyncio is either in its selector, where it waits for something to happen, or busy. So if much more time has
passed than the thread was busy, and nothing woke it although something was due, it was suspended.
"""

import asyncio
import selectors
import time


class Selector(selectors.DefaultSelector):
    """A selector that adds up the time for which its thread was busy: outside of `select`."""

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
    """The loop of a program that wants to know: a factory for asyncio.Runner."""
    global _selector
    _selector = Selector()
    return asyncio.SelectorEventLoop(_selector)


def now() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def busy() -> float:
    """Seconds that the thread of `event_loop` was busy so far, or kept from running by others that are: a trial that
    starves the loop is no suspension. On a clock that stops while the machine sleeps."""
    return _selector.busy + time.monotonic() - _selector.left + starved()


def starved() -> float:
    """Seconds that this thread has waited for a processor; 0 where the kernel does not count them."""
    try:
        with open("/proc/thread-self/schedstat") as counts:
            return int(counts.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
