"""results.tsv in the user's checkout: five columns, one row an experiment. It follows from the journal."""

from pathlib import Path

from autoresearch import UserError
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.text import one_line, short

HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"  # as in the public project


def row(attempt: Attempt) -> str:
    """The line of an attempt that has its verdict."""
    score = 0.0 if attempt.score is None else attempt.score
    columns = [short(attempt.commit), f"{score:.6f}", f"{attempt.memory_gb:.1f}", attempt.status or ""]
    return "\t".join([*columns, one_line(attempt.description)]) + "\n"


def whole(ledger: Ledger) -> str:
    """All of results.tsv."""
    return HEADER + "".join(map(row, ledger.finished))


class Results:
    """The file: rebuilt from the journal at the start, then one line a verdict."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path, self.ledger = path, ledger
        self.behind = False  # rows are missing

    def require_ours(self, runs: Path) -> None:
        """UserError for a results.tsv that follows from no journal below `runs`: it would be replaced."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        journals = [self.ledger, *(Ledger(p.parent, repair=False) for p in sorted(runs.glob("*/journal.jsonl")))]
        if text and not any(whole(ledger).startswith(text) for ledger in journals):
            raise UserError(
                f"{self.path} was not written by this loop, so it is left alone; move it away: "
                f"`mv {self.path.name} results-old.tsv`"
            )

    def rebuild(self) -> None:
        """Write the whole file, or leave it if it says the same already."""
        text = whole(self.ledger)
        if not self.path.exists() or self.path.read_text(encoding="utf-8", errors="replace") != text:
            temporary = self.path.with_name(".results.tsv.part")
            try:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)

    def add(self, attempt: Attempt) -> None:
        """The row of a new verdict, and those that are missing. Raises OSError."""
        if self.behind or not self.path.exists():
            self.rebuild()
            self.behind = False
            return
        self.behind = True
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(row(attempt))
        self.behind = False
