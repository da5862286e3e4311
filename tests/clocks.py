"""Clocks that a test sets forward: a limit is over when the test says so, and not when a slow machine gets there."""

import asyncio
import contextlib
import time
import types
from collections.abc import AsyncIterator, Callable


def set_forward(due: Callable[[], object], seconds: float = 1000.0, looks: int = 1) -> types.SimpleNamespace:
    """In the place of the module `time`: its `monotonic` is so many seconds ahead from that look on for which due() has
    been true so often.
    """

    def monotonic() -> float:
        nonlocal looks
        looks -= looks > 0 and bool(due())
        return time.monotonic() + (0.0 if looks else seconds)

    return types.SimpleNamespace(monotonic=monotonic)


@contextlib.asynccontextmanager
async def time_passes(seconds: float, once: Callable[[], object]) -> AsyncIterator[None]:
    """Inside, the clock of the event loop is so many seconds ahead when once() is true and what has come is read."""

    async def look() -> None:  # a loop that waits for something else would sleep through it
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    loop, looking = asyncio.get_running_loop(), asyncio.create_task(look())
    loop.time = set_forward(once, seconds, looks=100).monotonic  # type: ignore[method-assign]
    try:
        yield
    finally:
        del loop.time  # type: ignore[misc]
        looking.cancel()
        await asyncio.wait({looking})
