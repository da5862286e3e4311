"""The journal of a run, .autoresearch/<tag>/journal.jsonl: one event per line, on disk before anything else happens.

Only the process that holds the run's lock may write it, and while there is none a sender of messages (`sharing`); any
process may read it.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from autoresearch import UserError
from autoresearch.files import flush_folder
from autoresearch.record.events import Event, from_json, to_json
from autoresearch.text import to_type

LONGEST_LOOK = 10.0  # seconds


def append(path: Path, event: Event) -> tuple[Event, int]:
    """Write an event with the current time and wait until it is on the disk. Returns (the event, the journal's size).

    Raises OSError. If the disk is full, the journal stays as it was.
    """
    line = to_json(dataclasses.replace(event, time=round(time.time(), 3)))
    raw = json.dumps(line, ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    size = os.fstat(handle).st_size
    written = 0
    try:
        while written < len(raw):
            written += os.write(handle, raw[written:])
        os.fsync(handle)
        for folder in path.parents[:3] if not size else ():  # up to the user's checkout: the file is new
            flush_folder(folder)
    except OSError:
        if written:
            os.ftruncate(handle, size)
        raise
    finally:
        os.close(handle)
    read_again = from_json(json.loads(raw))  # as other processes read it
    assert read_again is not None
    return read_again, size + len(raw)


def read(path: Path, start: int = 0) -> tuple[list[Event], int]:
    """(The events from a byte on, the byte after them.) An incomplete last line is ignored, and stays in the file.

    Raises UserError for a journal that is damaged before its end, or was written by a newer version.
    """
    events, end = [], start
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                event = from_json(json.loads(line))
            except (ValueError, TypeError, AttributeError):
                if file.read(1):
                    file.seek(0)
                    number = file.read(end).count(b"\n") + 1
                    raise UserError(
                        f"{path} is damaged in line {number}, before its end; restore it from a backup, or start "
                        "another run with --tag NEW"
                    ) from None
                break
            end += len(line)
            if event is not None:
                events.append(event)
    return events, end


class Lock:
    """Ensures that at most one loop works on a tag. Held until it is released, or the process ends."""

    def __init__(self, folder: Path, tag: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "lock", "a+")  # noqa: SIM115
        try:
            take(self._file)
        except BlockingIOError:
            self._file.seek(0)
            raise UserError(already_running(tag, self._file.read().strip())) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def already_running(tag: str, process: object) -> str:
    return (
        f"a loop is already running on tag {tag} (process {process or 'unknown'}); stop it first with "
        f"`{to_type('stop')} --tag {tag}`, or start another run with --tag NEW"
    )


def take(file: TextIO) -> None:
    """Lock a file, or raise BlockingIOError if it is locked. A process that only tests the lock, or writes a message,
    shares it briefly, on a busy machine for longer: that is waited for.
    """
    import fcntl  # missing on Windows, where the command line prints what is needed

    end = time.monotonic() + LONGEST_LOOK
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # it is not shared
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(0.01)


@contextlib.contextmanager
def sharing(folder: Path, turn: Path) -> Iterator[bool]:
    """Yields whether the journal of a run may be written here because no loop works on the run. One that starts now
    waits. turn: a file by which several such writers wait for each other.
    """
    import fcntl

    def made(name: str, flags: int) -> int:  # to lock a file it need not be one's own
        return os.open(name, os.O_RDONLY | os.O_CREAT, 0o666)

    with open(turn, opener=made) as turns, open(folder / "lock", opener=made) as lock:
        fcntl.flock(turns, fcntl.LOCK_EX)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def holder(folder: Path) -> int | None:
    """The process that holds a run's lock; 0 if it is unknown, None if nobody does."""
    import fcntl

    try:
        with open(folder / "lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdecimal() else 0
    except FileNotFoundError:
        return None
