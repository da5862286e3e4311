"""Inbox: what people tell a run from other processes. A note, a pause, a word on what waits for them.

Each message is a file in .autoresearch/<tag>/inbox/. The process that holds the run's lock takes it into the journal;
where nobody does, whoever leaves it. The journal knows the names of the files: nothing is taken in twice.
"""

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path

from autoresearch import UserError
from autoresearch.files import write_whole
from autoresearch.record import events
from autoresearch.record.journal import Lock, holder
from autoresearch.record.ledger import Ledger
from autoresearch.text import clean

LONGEST = 2000  # characters of a note or a reason


def leave(folder: Path, message: events.Message) -> None:
    """Tell a run, at work or not. folder: of the run."""
    name, box = f"{time.time_ns()}-{os.getpid()}", folder / "inbox"
    box.mkdir(exist_ok=True)
    said = json.dumps(events.to_json(dataclasses.replace(message, message=name)), ensure_ascii=False)
    write_whole(box / f"{name}.json", said)
    if holder(folder) is None:
        with contextlib.suppress(UserError):  # a loop has just begun: then it takes it in
            lock = Lock(folder, folder.name)
            try:
                take_in(folder, Ledger(folder))
            finally:
                lock.release()


def take_in(folder: Path, ledger: Ledger) -> list[events.Message]:
    """Take what was left into the journal. Only for the process that holds the lock. Raises OSError."""
    taken = []
    for path in sorted(folder.glob("inbox/*.json")):
        try:
            message = events.from_json(json.loads(path.read_bytes()))
        except (ValueError, TypeError, AttributeError, UserError):
            message = None
        if isinstance(message, events.Message) and path.stem not in ledger.messages:
            ledger.append(dataclasses.replace(message, message=path.stem))
            taken.append(message)
        path.unlink()
    return taken


def text_of(words: str) -> str:
    """A note or a reason as it is kept. Raises UserError for an empty one."""
    text = " ".join(clean(words).split())[:LONGEST]
    if not text:
        raise UserError('there is nothing to say in this; put it in quotes, e.g. "try smaller batches"')
    return text
