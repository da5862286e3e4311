"""A full disk: the step that failed waits until there is room, and is repeated. Nothing of the night is lost."""

import asyncio
import contextlib
import errno
import inspect
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, cast

import git

from autoresearch import disk_is_full
from autoresearch.limits import StopRequest
from autoresearch.views.console import Console

ENOUGH_ROOM = 1 << 16  # bytes that must be free before the loop continues after a full disk
Result = TypeVar("Result")


class Disk:
    """The disk that a run writes to. folder: of the run. console: where the user is told, once, that it is full."""

    def __init__(self, folder: Path, console: Console, stop: StopRequest) -> None:
        self.folder, self.console, self.stop = folder, console, stop
        self._waits = False  # it is full, and the user has been told
        self._unwritten: set[str] = set()  # names of files that could not be written; the user has been told

    async def with_room(self, step: Callable[[], Result | Awaitable[Result]]) -> Result:
        """Do a step. If the disk is full, or no process can be started, wait until that has changed and retry.

        Raises OSError if the user asks to stop meanwhile.
        """
        wait = 0.0
        while True:
            try:
                done = step()
                result = await done if inspect.isawaitable(done) else done
                if wait:
                    self._waits = False
                return cast(Result, result)
            except (OSError, git.GitCommandError) as error:
                task, full = asyncio.current_task(), what_is_full(error)
                if not full or (task and task.cancelling()):
                    raise
                if not self._waits:
                    self._waits = True
                    self.console.line(
                        f"{full}: waiting until this changes. Nothing is lost; Ctrl-C ends the loop", "yellow"
                    )
                    self.console.tell("fault", reason=full)
                wait = min(2 * wait, 60.0) or 1.0  # a quota may be full although the disk is not
                if await self._asked_to_stop_before_room(wait):
                    raise

    async def _asked_to_stop_before_room(self, seconds: float) -> bool:
        """Wait so many seconds, and then until the disk has room. True as soon as the user asks to stop."""
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        while clock() < until or self.is_full():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.reaches(1), 0.2)
                return True
        return False

    async def write_aside(
        self, name: str, step: Callable[[], object], advice: str = "the run continues without it"
    ) -> None:
        """Write a file that only follows from the record. If that fails, say so once and continue."""
        try:
            await self.with_room(step)
        except OSError as error:
            if disk_is_full(error):  # and the user has asked to stop
                raise
            if name not in self._unwritten:
                self.console.line(f"{name} cannot be written: {error.strerror}; {advice}", "yellow")
            self._unwritten.add(name)

    def is_full(self) -> bool:
        return shutil.disk_usage(self.folder).free < ENOUGH_ROOM

    def require_room(self) -> None:
        """Raises OSError if the disk is full: a crash then says nothing about the edit, which has to run again."""
        if self.is_full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))


def what_is_full(error: Exception) -> str:
    """What an error says has run out and may come back, in words; empty for other errors."""
    if isinstance(error, BlockingIOError):
        return "no more processes can be started"
    return "the disk is full" if disk_is_full(error) else ""
