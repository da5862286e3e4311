"""Text for people and agents: cleaning it, and formatting commands, counts, scores and durations."""

import math
import os
import re
import shlex
import sys

from autoresearch import keys

# What a terminal would obey: colours and cursor moves, window titles, single-letter escapes.
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|.)?")

METRIC = r"[A-Za-z_][\w./-]*"  # the name of a figure that a command prints


def to_type(words: str = "") -> str:
    """A command of this program as its user would type it: how it was called, then the words.

    `uv run loop.py` in the folder of loop.py, with its path elsewhere; `autoresearch` if that command was called.
    """
    called = os.path.abspath(sys.argv[0])
    if os.path.basename(called) != "loop.py":
        said = "autoresearch"
    elif os.path.dirname(called) == os.getcwd():
        said = "uv run loop.py"
    else:
        said = f"uv run --project {shlex.quote(os.path.dirname(called))} {shlex.quote(called)}"
    return f"{said} {words}".rstrip()


def clean(text: str) -> str:
    """Untrusted text, made safe to show: without keys, escapes and control characters except newlines and tabs.

    If a line was overwritten with carriage returns, its last state is kept.
    """
    if not text.replace("\n", "").isprintable():
        text = ESCAPES.sub("", text)
        lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
        text = "\n".join("".join(c for c in line if c.isprintable() or c == "\t") for line in lines)
    return keys.scrub(text)


def one_line(text: str, limit: int = 300) -> str:
    """Text for a table cell: one line without control characters, at most `limit` long. Does not remove keys."""
    if len(text) <= limit and text.isprintable() and "  " not in text and text == text.strip():
        return text  # as most are: a brief has thousands
    text = "".join(c if c.isprintable() else " " for c in ESCAPES.sub("", text))
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def short(commit: str) -> str:
    """The first seven digits of a commit, as git shows them."""
    return commit[:7]


def count(number: int, noun: str) -> str:
    """`1 line`, `2 lines`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def digits(value: float | None) -> str:
    """A score, or a change of one: six decimals; none for a whole number; the first digits of a tiny one."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if value == 0 or (0.5 <= abs(value) < 1e15 and round(value, 9) == round(value)):
        return str(round(value))
    return f"{value:.6f}" if 1e-5 <= abs(value) < 1e15 else f"{value:.{3 if abs(value) < 1 else 7}g}"


def signed(value: float | None) -> str:
    """The same for a change, with its sign."""
    said = digits(value)
    return said if said.startswith(("-", "n")) else f"+{said}"


def duration(seconds: float) -> str:
    """A rounded duration: `40 s`, `6 min`, `2 h 10 min`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{max(0.0, seconds):.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
