"""Logs of commands: their ends, the figures in them, and the line that says why a command failed."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from autoresearch import keys
from autoresearch.text import METRIC, clean, one_line

LOG_KEPT = 8 << 20  # bytes of a log that are kept, of its beginning and of its end
LOG_TAIL = 1 << 20  # bytes at the end of a log in which a metric is looked for
LONGEST_NAME = 100  # characters of a figure's name in JSON
# A compiler's first error says what is wrong, and what it and `make` print after it does not.
COMPILER = re.compile(
    r"\berror(?:\[\w+\])?: (?!could not compile|failed to|command |linker command|ld returned)|undefined reference|"
    r"\bld(?:\.\w+)?: (?:cannot find|library not found)|multiple definition of|panicked at|^\S+\.go:\d+:\d+: "
)
RAISED = re.compile(
    r"^(?:E\s+|Uncaught )?[\w.]*(?:Error|Exception)\b.*:|^FAILED |^not ok |^\s*--- FAIL: |"
    r"^\S+:\d+:in .*\(\w[\w:]*\)$"
)
NOISE = re.compile(
    r"^(?:make|gmake)(?:\[\d+\])?: |^collect2: |^ninja: |^compilation terminated|^Node\.js v|^=+ .* =+$|"
    r"^npm (?:ERR!|error) |^error: (?:could not compile|aborting)|^\s+(?:at|from) |^[\s^~|]*$|"
    r"^exit code -?\d+ of: "  # of what a scorer has run
)

NUMBER = (
    r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?i:inf|infinity|nan)"
)
# Blanks are taken at once, `*+`: to share a million of them out between two places in each way took hours.
FIGURE = re.compile(
    rf"^[ \t]*(?:METRIC[ \t]+)?({METRIC})(?:[ \t]*=[ \t]*|[ \t]*:[ \t]+)({NUMBER})[ \t]*+(%|[^\W\d]\S*)?[ \t]*+\r?$"
)
# Of units that a program may choose by the size of the number, so that 900 us stay less than 1.2 ms: s and bytes.
SCALES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "min": 60.0, "h": 3600.0}
SCALES |= {letter + "B": 10.0 ** (3 * power) for power, letter in enumerate(("", "k", "M", "G", "T"))} | {"KB": 1e3}
SCALES |= {letter + "iB": 1024.0**power for power, letter in enumerate(("", "K", "M", "G", "T"))}


def shorten(log: Path) -> None:
    """Cut the middle out of a very long log."""
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
    """The figures in a log; if a name occurs several times, the last one. They may be infinite or NaN.

    A figure is on a line of its own: `name: 1`, `name=1`, `METRIC name=1`, optionally indented and with a unit or %; or
    in a line that is a JSON object. Times with a unit are converted to seconds, sizes to bytes.
    """
    return {name: number for line in read_tail(path).split("\n") for name, number in figures_of(line)}


def figures_of(line: str) -> Iterator[tuple[str, float]]:
    """The figures of one line of a log."""
    if found := FIGURE.match(line):
        name, number, unit = found.groups()
        yield name, float(number.replace(",", "")) * SCALES.get((unit or "").partition("/")[0], 1.0)
    elif line.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError, OverflowError):
            values = json.loads(line)
            for name, value in values.items():
                if type(value) in (int, float) and name.isprintable() and len(name) <= LONGEST_NAME:
                    yield name, float(value)


def last_line(path: Path) -> str:
    """The last non-empty line of a log, cut to 200 characters."""
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
