"""Logs of commands: their end, their figures, the line that says why a command failed."""

import contextlib
import os
import re
from pathlib import Path

from autoresearch.text import clean, one_line

LOG_KEPT = 8 << 20  # bytes of a log that are kept, of its beginning and of its end
LOG_TAIL = 1 << 20  # bytes at the end of a log in which a metric is looked for
# A compiler's first error says what is wrong, and what it and `make` print after it does not.
COMPILER = re.compile(
    r"\berror(?:\[\w+\])?: (?!could not compile|failed to|command |linker command)|undefined reference|"
    r"\bld(?:\.\w+)?: (?:cannot find|library not found)|panicked at|^\S+\.go:\d+:\d+: "
)
RAISED = re.compile(r"^(?:E\s+|Uncaught )?[\w.]*(?:Error|Exception)\b.*:|^FAILED |^not ok ")
NOISE = re.compile(
    r"^(?:make|gmake)(?:\[\d+\])?: |^collect2: |^ninja: |^compilation terminated|^Node\.js v|^=+ .* =+$|"
    r"^npm (?:ERR!|error) |^error: (?:could not compile|aborting)|^\s+at |^[\s^~|]*$"
)


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
    """Why a command failed: the exception that ends its last traceback; else a compiler's first error, the last
    exception that another language names, the last line that is no closing formula, or just the last one."""
    text = read_tail(path, 1 << 16)
    _, found, trace = text.rpartition("Traceback (most recent call last):\n")
    ending = next((line for line in trace.splitlines() if line[:1].strip()), "") if found else ""
    if cut(ending):
        return cut(ending)
    lines = text.splitlines()
    raised = (line for line in reversed(lines) if RAISED.search(line))
    telling = (line for line in reversed(lines) if not NOISE.search(line))
    said = next((line for line in lines if COMPILER.search(line)), "") or next(raised, "") or next(telling, "")
    return cut(said) or last_line(path)


def cut(line: str) -> str:
    return one_line(clean(line.strip()), 200)
