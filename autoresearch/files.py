"""Small files that others read while they are written, or write while they are read; and what has to go for sure."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import BinaryIO

LARGEST = 1 << 16  # bytes of a JSON file that are read


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that whoever reads it, and whatever is killed, finds it as it was or as it is to be.

    Text becomes UTF-8; what was no text when it was read (surrogateescape) stays as it was. Raises OSError.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
        part.replace(path)
    finally:  # of a full disk
        part.unlink(missing_ok=True)


def open_plain(path: Path) -> BinaryIO:
    """A file that others can write, to be read: no link is followed, no pipe waited for. Raises OSError."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))


def read_json(path: Path) -> dict:
    """A small JSON object in a file that others can write. Empty where it is none."""
    try:
        with open_plain(path) as file:
            found = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it, whatever its names, modes and depth; what cannot go stays."""
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            path.unlink()
            return
        with contextlib.suppress(OSError, RecursionError):
            shutil.rmtree(path)
        for words in (["rm", "-rf"], ["chmod", "-R", "u+rwx"], ["rm", "-rf"]):  # which know no depth
            if path.exists():
                subprocess.run([*words, "--", path], stderr=subprocess.DEVNULL, check=False)
