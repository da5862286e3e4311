"""Inbox: messages from people to a run, sent by other processes: a note, a pause, an approval or a rejection.

Each message is a file in .autoresearch/<tag>/inbox/. The process that holds the run's lock writes it to the journal; if
there is none, the sender does. The journal has the file names, so no message counts twice.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from autoresearch import UserError
from autoresearch.files import write_whole
from autoresearch.record import events
from autoresearch.record.journal import sharing
from autoresearch.record.ledger import Ledger
from autoresearch.text import clean

LONGEST = 2000  # characters of a note or a reason


def leave(folder: Path, message: events.Message) -> None:
    """Send a message to a run, whether a loop is working on it or not. folder: of the run."""
    name, box = f"{time.time_ns()}-{os.getpid()}", folder / "inbox"
    box.mkdir(exist_ok=True)
    said = json.dumps(events.to_json(dataclasses.replace(message, message=name)), ensure_ascii=False)
    write_whole(box / f"{name}.json", said)
    with sharing(folder, box / "lock") as alone:
        if alone:
            take_in(folder, Ledger(folder))


def take_in(folder: Path, ledger: Ledger) -> list[events.Message]:
    """Write the waiting messages to the journal. Only for who may write that: see journal.py. Raises OSError."""
    taken = []
    for path, message in waiting(folder):
        if isinstance(message, events.Message) and path.stem not in ledger.messages:
            ledger.append(dataclasses.replace(message, message=path.stem))
            taken.append(message)
        with contextlib.suppress(OSError):  # it stays, and does not count again
            path.unlink()
    return taken


def waiting(folder: Path) -> Iterator[tuple[Path, events.Event | None]]:
    """The files in the inbox, oldest first, and the message in each: None if there is none in it."""
    for path in sorted(folder.glob("inbox/*.json")):
        try:
            yield path, events.from_json(json.loads(path.read_bytes()))
        except (OSError, UserError):  # unreadable, or of a newer version: it waits for a loop that can read it
            continue
        except (ValueError, TypeError, AttributeError):
            yield path, None


def text_of(words: str) -> str:
    """The text of a note or a reason, cleaned. Raises UserError if it is empty."""
    text = " ".join(clean(words).split())[:LONGEST]
    if not text:
        raise UserError('the text is empty; put it in quotes, e.g. "try smaller batches"')
    return text
