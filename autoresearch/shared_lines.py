"""A text file that all runs of a repository share and people edit by hand: lessons.md, ideas.md."""

import contextlib
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path

from autoresearch.files import write_whole
from autoresearch.record.runs import make_folder


class SharedLines:
    """The lines of such a file. Lines that a subclass does not understand stay as they are."""

    HEADING = ""  # of a new file

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # a link stays one

    @contextlib.contextmanager
    def lines_to_edit(self) -> Iterator[list[str]]:
        """The lines, which are written back afterwards. Other runs wait until then."""
        make_folder(self.path.parent)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lines = self.lines("surrogateescape")
            before = list(lines)
            yield lines
            if lines != before:
                write_whole(self.path, "\n".join(lines) + "\n")

    def lines(self, errors: str = "replace") -> list[str]:
        """errors: how to handle bytes that are not valid text."""
        try:
            text = self.path.read_text(encoding="utf-8", errors=errors)
        except FileNotFoundError:
            text = self.HEADING
        return text.removesuffix("\n").split("\n")


def named(letter: str, text: str) -> int | None:
    """The number in what names one: `L3`, `confirms L3`, `L3: also here`; not in `L2 decay helps`."""
    found = re.fullmatch(rf"(?:(?:confirm|test)s?\s+)?{letter}(\d{{1,9}})(?:[\s.,]*|:.*)", text.strip(), re.IGNORECASE)
    return int(found[1]) if found else None


def core(text: str) -> str:
    """The words alone: equal for texts that differ in layout and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))
