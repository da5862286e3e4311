"""A full disk holds a step up and does not end the night. What is full is real: /dev/full, and /proc, without room."""

import asyncio
import contextlib
import errno
import itertools
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from autoresearch.disk import Disk
from autoresearch.limits import StopRequest
from autoresearch.views.console import Console

FULL = "the disk is full: waiting until this changes. Nothing is lost; Ctrl-C ends the loop"
BUSY = "no more processes can be started: waiting until this changes. Nothing is lost; Ctrl-C ends the loop"
RECORD = "a line of the journal"


class Place:
    """A run's folder, and a file in which a step writes. Both are links, to what is full and later to what is not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.room = folder / "run", folder / "record", folder / "room"
        self.room.mkdir()
        self.folder.symlink_to(self.room)
        self.file.symlink_to("/dev/full")
        self.tries: list[float] = []  # when the step was tried, by the clock of the event loop

    def fill(self) -> None:
        self.folder.unlink()
        self.folder.symlink_to("/proc")

    def free(self) -> None:
        for link, target in ((self.folder, self.room), (self.file, self.room / "record")):
            link.unlink()
            link.symlink_to(target)

    def write(self, free_at: int = 0) -> int:
        """A step. free_at: the try before which there is room again; 0: somebody else sees to that."""
        self.tries.append(asyncio.get_running_loop().time())
        assert len(self.tries) < 100, "it does not wait"
        if len(self.tries) == free_at:
            self.free()
        return self.file.write_text(RECORD)

    async def write_later(self, free_at: int = 0) -> int:
        await asyncio.sleep(0)
        return self.write(free_at)


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


@contextlib.asynccontextmanager
async def disk_of(folder: Path) -> AsyncIterator[Disk]:
    """The disk of a run. Inside, the event loop never sleeps, and its clock goes on by 0.05 s whenever it is asked.

    Raises TimeoutError after 1,000 of these seconds.
    """

    async def spin() -> None:
        while True:  # noqa: ASYNC110  it would sleep through the time that passes
            await asyncio.sleep(0)

    loop, spinning = asyncio.get_running_loop(), asyncio.create_task(spin())
    loop.time = itertools.count(loop.time(), 0.05).__next__  # type: ignore[method-assign]
    console = Console(plain=True)
    try:
        async with asyncio.timeout(1000.0):
            yield Disk(folder, console, StopRequest(console.line))
    finally:
        del loop.time  # type: ignore[misc]
        spinning.cancel()
        await asyncio.wait({spinning})


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


@pytest.mark.parametrize("later", [False, True])
def test_a_step_waits_for_room_and_is_repeated(place, capsys, later):
    async def night() -> int:
        async with disk_of(place.folder) as disk:
            return await disk.with_room(lambda: (place.write_later if later else place.write)(free_at=4))

    assert asyncio.run(night()) == len(RECORD) and place.file.read_text() == RECORD
    assert len(place.tries) == 4, "and not once more when it had succeeded"
    assert capsys.readouterr().out.splitlines() == [FULL], "once, however often it is tried"


def test_it_is_tried_again_ever_more_seldom_but_once_a_minute(place):
    """Where the disk has room, and only a quota is full, nothing but another try tells when that has changed."""

    async def night() -> None:
        async with disk_of(place.folder) as disk:
            await disk.with_room(lambda: place.write(free_at=10))

    asyncio.run(night())
    waits = [later - earlier for earlier, later in itertools.pairwise(place.tries)]
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], abs=0.7)


def test_it_is_not_tried_again_while_the_disk_has_no_room(place):
    freed = []

    async def free_after(seconds: float) -> None:
        await asyncio.sleep(seconds)
        freed.append(asyncio.get_running_loop().time())
        place.free()

    async def night() -> None:
        async with disk_of(place.folder) as disk:
            place.fill()
            with pytest.raises(OSError) as full:
                disk.require_room()
            assert full.value.errno == errno.ENOSPC and full.value.filename == str(place.folder)
            await asyncio.gather(disk.with_room(place.write), free_after(100.0))
            disk.require_room()

    asyncio.run(night())
    first, second = place.tries
    assert first < freed[0] <= second < freed[0] + 10, "soon after there is room"


def test_each_time_that_it_is_full_is_said(place, capsys):
    async def night() -> None:
        async with disk_of(place.folder) as disk:
            steps = [disk.with_room(place.write) for _ in range(3)]
            waiting = asyncio.gather(*steps)
            await until(lambda: len(place.tries) > 9)
            assert capsys.readouterr().out.splitlines() == [FULL], "by one for all that wait"
            place.free()
            await waiting
            place.file.unlink()
            place.file.symlink_to("/dev/full")
            place.tries.clear()
            await disk.with_room(lambda: place.write(free_at=2))
            assert capsys.readouterr().out.splitlines() == [FULL], "again"

    asyncio.run(night())


def test_it_waits_until_processes_can_be_started(place, capsys):
    def start() -> str:
        place.write()
        if len(place.tries) < 3:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return "started"

    async def night() -> str:
        async with disk_of(place.folder) as disk:
            place.free()
            return await disk.with_room(start)

    assert asyncio.run(night()) == "started" and capsys.readouterr().out.splitlines() == [BUSY]


@pytest.mark.parametrize("has_room", [False, True])
def test_asked_to_stop_it_waits_no_longer(place, has_room):
    """Its error ends the night. Where only a quota is full, the third try, after 3 s, would succeed."""

    async def night() -> None:
        async with disk_of(place.folder) as disk:
            if not has_room:
                place.fill()
            waiting = asyncio.create_task(disk.with_room(lambda: place.write(free_at=3)))
            await asyncio.sleep(2.0)
            assert len(place.tries) == (2 if has_room else 1)
            signal.raise_signal(signal.SIGINT)
            await asyncio.wait({waiting}, timeout=100.0)
            assert isinstance(error := waiting.exception(), OSError) and error.errno == errno.ENOSPC

    asyncio.run(night())


def test_a_step_that_is_cancelled_does_not_wait(place):
    """As a trial that writes while it ends: the night waits for it."""
    begun = []

    async def trial() -> None:
        try:
            begun.append(True)
            await asyncio.Event().wait()
        finally:
            place.write(free_at=2)

    async def night() -> None:
        async with disk_of(place.folder) as disk:
            running = asyncio.create_task(disk.with_room(trial))
            await until(lambda: begun)
            running.cancel()
            await running

    with pytest.raises(OSError) as full:
        asyncio.run(night())
    assert full.value.errno == errno.ENOSPC and len(place.tries) == 1


def test_other_errors_are_not_waited_for(place, capsys):
    async def night() -> None:
        async with disk_of(place.folder) as disk:
            await disk.with_room(place.room.read_text)

    with pytest.raises(IsADirectoryError):
        asyncio.run(night())
    assert not capsys.readouterr().out


def test_what_follows_from_the_record_may_fail(place, capsys):
    """But for a full disk, which is waited for here as well, until the user asks to stop."""

    async def night() -> None:
        async with disk_of(place.folder) as disk:
            for name in ("ideas.md", "ideas.md", "results.tsv"):
                await disk.write_aside(name, place.room.read_text, "so what")
            await disk.write_aside("lessons.md", lambda: place.write(free_at=2))
            assert place.file.read_text() == RECORD
            signal.raise_signal(signal.SIGINT)
            await until(lambda: disk.stop.level)
            await disk.write_aside("lessons.md", lambda: Path("/dev/full").write_text(RECORD))

    with pytest.raises(OSError) as full:
        asyncio.run(night())
    assert full.value.errno == errno.ENOSPC
    said = [f"{name} cannot be written: Is a directory; so what" for name in ("ideas.md", "results.tsv")]
    assert capsys.readouterr().out.splitlines() == [*said, FULL, FULL]
