"""Helpers for asyncio tasks. asyncio is imported only where needed, so that `loop.py status` starts quickly."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def start(work: Coroutine) -> asyncio.Task:
    import asyncio

    return asyncio.create_task(work)


async def first_of(tasks: Iterable[asyncio.Task], seconds: float | None = None) -> None:
    """Wait until one of the tasks is done, or the seconds have passed."""
    import asyncio

    await asyncio.wait(list(tasks), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


def cancel(*tasks: asyncio.Task) -> None:
    """Cancel each task once: it may take seconds to end its processes, and a second cancel would cut that short."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()
