"""Small files that are read and written by several processes at once."""

import json
import os
from pathlib import Path

LARGEST = 1 << 16  # bytes of a JSON file that are read


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader, or a restart after a kill, finds the old contents or the new, never a part.

    Text is encoded as UTF-8; bytes that were not valid when it was read (surrogateescape) are kept. Raises OSError.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
        part.replace(path)
    finally:  # of a full disk
        part.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """A small JSON object from an untrusted file: follows no link, opens no pipe, reads a limited size. Empty if it is
    not one.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(path, "rb", opener=lambda name, more: os.open(name, more | flags)) as file:
            found = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
