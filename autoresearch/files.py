"""Small files that are read and written by several processes at once, and folders that have to be removed for sure."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import BinaryIO

LARGEST = 1 << 16  # bytes of a JSON file that are read, unless it may have more


def write_whole(path: Path, content: str | bytes, lasting: bool = True) -> None:
    """Write a file atomically: a reader, or a restart after a kill, finds the old contents or the new, never a part.

    lasting: wait until it is on the disk, so that the same holds for a power failure. False is for files that are
    written often, or large, and that nobody misses then. Text is encoded as UTF-8; bytes that were not valid when it
    was read (surrogateescape) are kept. Raises OSError.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
        if lasting:
            flush_folder(path.parent)
    finally:  # of a full disk
        part.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can be asked for that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_plain(path: Path) -> BinaryIO:
    """Open a file that others can write to, for reading: follows no link, waits for no pipe. Raises OSError."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))


def read_json(path: Path, largest: int = LARGEST) -> dict:
    """A JSON object from an untrusted file of a limited size, in bytes. Empty if it is not one."""
    try:
        with open_plain(path) as file:
            found = json.loads(file.read(largest))
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
