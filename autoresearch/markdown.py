"""Markdown for agents: blocks that nothing in them ends, and texts that are cut to so many bytes."""

import re
from collections.abc import Iterable

DATA_LIMIT = 4000  # bytes of what a trial printed


def fence(text: str, limit: int = DATA_LIMIT, language: str = "") -> str:
    """Text in a block that it cannot break out of: without control characters, cut to its last `limit` bytes."""
    if not text.replace("\n", "").isprintable():
        text = "".join(
            c for c in text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(8) if c == "\n" or c.isprintable()
        )
    raw = text.encode()
    if len(raw) > limit:
        text = "[cut]\n" + raw[-limit:].decode(errors="ignore")
    return block(text, language)


def block(text: str, language: str = "") -> str:
    """Text between fences longer than any in it."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"


def first(lines: Iterable[str], limit: int) -> str:
    """The first lines, as many as fit into `limit` bytes."""
    kept = []
    for line in lines:
        limit -= size(line)
        if limit < 0:
            break
        kept.append(line)
    return "\n".join(kept)


def last(lines: Iterable[str], limit: int) -> str:
    """The last lines, as many as fit into `limit` bytes."""
    return "\n".join(reversed(first(reversed(list(lines)), limit).split("\n")))


def trim(text: str, limit: int) -> str:
    """The beginning of a text, `limit` bytes at most."""
    raw = text.encode()
    if len(raw) <= limit:
        return text
    return raw[:limit].decode(errors="ignore") + "\n\n[the rest does not fit: see program.md]"


def size(text: str) -> int:
    """Bytes of a line."""
    return len(text.encode()) + 1
