"""Tasks of the one thread. asyncio is imported where it is needed: `loop.py status` need not wait for it."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def start(work: Coroutine) -> asyncio.Task:
    import asyncio

    return asyncio.create_task(work)


async def first_of(tasks: Iterable[asyncio.Task], seconds: float | None = None) -> None:
    """Wait until one of them is over, or the seconds are."""
    import asyncio

    await asyncio.wait(list(tasks), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


def cancel(*tasks: asyncio.Task) -> None:
    """Cancel each task once: it may take seconds to end its processes, and a second time would hurry it."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()
