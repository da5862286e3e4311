"""results.tsv in the user's checkout: five columns, one row per experiment. It is generated from the journal."""

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path

from autoresearch import UserError
from autoresearch.files import write_whole
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.text import one_line, short


def header(metric: str) -> str:
    """The names of the columns, as in the public project but for the metric of another game."""
    return f"commit\t{metric}\tmemory_gb\tstatus\tdescription\n"


def row(attempt: Attempt) -> str:
    """The line of an attempt that has its verdict. A score on the first kind of --tiers compares with no other row."""
    score = 0.0 if attempt.score is None else math.nan if attempt.is_screened else attempt.score
    said = f"{score:.6f}" if score == 0 or 1e-5 <= abs(score) < 1e15 else f"{score:.7g}"
    columns = [short(attempt.commit), said, f"{attempt.memory_gb:.1f}", attempt.status or ""]
    return "\t".join([*columns, one_line(attempt.description)]) + "\n"


def whole(ledger: Ledger) -> str:
    """All of results.tsv."""
    return header(ledger.task.metric if ledger.task else "val_bpb") + "".join(map(row, ledger.finished))


def for_comparison(text: str) -> str:
    """Without statuses, since a keep that a person took back may not be written yet, and without the metric's name and
    the scores, which older versions wrote in another way."""
    plain = re.sub(r"^(commit|[0-9a-f]{7})\t[^\t\n]*", r"\1\t", text, flags=re.MULTILINE)
    return re.sub(r"^((?:[^\t\n]*\t){3})\w*", r"\1", plain, flags=re.MULTILINE)


def readable(runs: Path) -> Iterator[Ledger]:
    """The journals below a folder, but for those that are damaged or of a newer version."""
    for path in sorted(runs.glob("*/journal.jsonl")):
        try:
            ledger = Ledger(path.parent, repair=False)
        except UserError:
            continue
        yield ledger


class Results:
    """The file: rebuilt from the journal at the start, then one line a verdict."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path, self.ledger = path, ledger
        self.size: int | None = None  # bytes, as it was written last; None: rows may be missing

    def require_ours(self, runs: Path) -> None:
        """Raises UserError if results.tsv was not made from a journal below `runs`: it would be replaced."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace").rstrip("\0")  # of a power failure
        journals = itertools.chain([self.ledger], readable(runs))
        if text and not any(for_comparison(whole(ledger)).startswith(for_comparison(text)) for ledger in journals):
            raise UserError(
                f"{self.path} was not written by this loop, so it is not overwritten; move it away: "
                f"`mv {self.path.name} results-old.tsv`"
            )

    def rebuild(self) -> None:
        """Rewrite the whole file, unless it is up to date already."""
        text = whole(self.ledger)
        if not self.path.exists() or self.path.read_text(encoding="utf-8", errors="replace") != text:
            write_whole(self.path, text)
        self.size = self.path.stat().st_size

    def add(self, attempt: Attempt) -> None:
        """The row of a new verdict, and those that are missing. Raises OSError."""
        size, self.size = self.size, None
        if size is None or not self.path.exists() or self.path.stat().st_size != size:  # another run has written it
            return self.rebuild()
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(row(attempt))
        self.size = self.path.stat().st_size
