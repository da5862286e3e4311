"""Where runs are: .autoresearch/<tag>/ at the top of the user's checkout. Does not import git, so it is quick."""

import dataclasses
import datetime
import re
from pathlib import Path
from typing import TYPE_CHECKING

from autoresearch import UserError

if TYPE_CHECKING:  # a tenth of a second, which `loop.py --help` need not wait for
    from autoresearch.record.ledger import Ledger
    from autoresearch.task import Task

RUNS = ".autoresearch"  # folder of all runs, in the user's checkout


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A run as it is recorded."""

    root: Path  # the user's checkout
    tag: str
    task: "Task"
    ledger: "Ledger"

    @property
    def folder(self) -> Path:
        """Where its record is."""
        return self.ledger.path.parent


def root_of(folder: Path) -> Path:
    """The top folder of the user's checkout around a folder, also from inside a run's worktree. Raises UserError."""
    folder = folder.resolve()
    for top in (folder, *folder.parents):
        if (top / ".git").exists():
            inside = len(top.parents) > 2 and top.parents[1].name == RUNS
            return root_of(top.parents[2]) if inside else top
    raise UserError(
        f"{folder} is not in a git repository; make it one: `git init && git add -A && git commit -m start`"
    )


def recorded_run(tag: str | None, advice: str = "") -> Recorded:
    """An existing run; without a tag, the last one. Raises UserError if there is none. advice: what to do then."""
    from autoresearch.record.ledger import Ledger

    root = root_of(Path.cwd())
    runs = root / RUNS
    tag = choose_tag(runs, tag)
    ledger = Ledger(runs / tag, repair=False)  # a loop may be writing it
    if ledger.run is None or ledger.task is None:
        known = ", ".join(sorted(path.parent.name for path in runs.glob("*/journal.jsonl"))) or "none"
        raise UserError(f"there is no run {tag} here; runs are: {known}" + (f"; {advice}" if advice else ""))
    return Recorded(root, tag, ledger.task, ledger)


def choose_tag(runs: Path, tag: str | None) -> str:
    """The given tag; else that of the last active run; else today's date. Raises UserError for an invalid tag."""
    if tag is None:
        journals = sorted(runs.glob("*/journal.jsonl"), key=lambda path: path.stat().st_mtime)
        tag = journals[-1].parent.name if journals else datetime.date.today().isoformat()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*([.][A-Za-z0-9_-]+)*", tag):
        raise UserError(
            f"{tag!r} is not a valid tag: use letters, digits, '-', '_' and '.', e.g. --tag {datetime.date.today()}"
        )
    return tag


def make_folder(runs: Path) -> None:
    """Create the folder of all runs, ignored by git."""
    runs.mkdir(parents=True, exist_ok=True)
    (runs / ".gitignore").write_text("*\n")


def folder_of(tag: str | None) -> Path:
    """The folder of a run, whether the run exists or not."""
    runs = root_of(Path.cwd()) / RUNS
    return runs / choose_tag(runs, tag)
