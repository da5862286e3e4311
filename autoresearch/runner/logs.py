"""Logs of commands: their end, their figures, the line that says why a command failed."""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from autoresearch import keys
from autoresearch.text import clean, one_line

LOG_KEPT = 8 << 20  # bytes of a log that are kept, of its beginning and of its end
LOG_TAIL = 1 << 20  # bytes at the end of a log in which a metric is looked for


def shorten(log: Path) -> None:
    """Leave the middle out of a log that is longer than anybody reads."""
    size = log.stat().st_size
    if size > 2 * LOG_KEPT:
        with open(log, "r+b") as file:
            file.seek(size - LOG_KEPT)
            end = file.read()
            file.seek(LOG_KEPT)
            file.write(b"\n[%d bytes are left out here]\n" % (size - 2 * LOG_KEPT) + end)
            file.truncate()


def read_tail(path: Path, size: int = LOG_TAIL) -> str:
    """The end of a log as text; what is not UTF-8 is replaced."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def ends_of(folder: Path, size: int, names: Iterable[str]) -> str:
    """The ends of a trial's logs, one after the other, without keys."""
    return keys.scrub("\n".join(filter(None, (read_tail(folder / f"{name}.log", size) for name in names))))


def read_figures(path: Path) -> dict[str, float]:
    """The numeric `key: value` lines of a log; of equal keys the last counts. They may be infinite or not a number."""
    figures = {}
    for key, text in re.findall(r"^([A-Za-z_][\w.-]*):[ \t]+(\S+)[ \t]*$", read_tail(path), re.MULTILINE):
        with contextlib.suppress(ValueError):
            figures[key] = float(text)
    return figures


def last_line(path: Path) -> str:
    """The last line of a log that says something, cut to 200 characters."""
    return cut(next((line for line in reversed(read_tail(path, 1 << 14).splitlines()) if line.strip()), ""))


def last_word(path: Path) -> str:
    """Why a command failed: the exception that ends its last traceback, else its last line."""
    _, found, trace = read_tail(path, 1 << 16).rpartition("Traceback (most recent call last):\n")
    ending = next((line for line in trace.splitlines() if line[:1].strip()), "") if found else ""
    return cut(ending) or last_line(path)


def cut(line: str) -> str:
    return one_line(clean(line.strip()), 200)
