"""A page for each attempt, .autoresearch/<tag>/attempts/<number>.md: everything about it, for agents and people."""

from pathlib import Path

from autoresearch import keys
from autoresearch.brief import page
from autoresearch.files import write_whole
from autoresearch.record.ledger import Attempt
from autoresearch.run import Run
from autoresearch.runner import TRAIN


class Pages:
    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.folder / "attempts"
        self.written = 0  # of the finished attempts, those that have their page

    def catch_up(self) -> None:
        """Write the pages that are missing because the loop was killed."""
        for attempt in self.run.ledger.finished[self.written :]:
            self.write(attempt)
        self.written = len(self.run.ledger.finished)

    def write(self, attempt: Attempt) -> None:
        if not (path := self.path(attempt.number)).exists():
            path.parent.mkdir(exist_ok=True)
            log = self.run.runner.log(str(attempt.number), phases=(TRAIN,))
            write_whole(path, keys.scrub(page(attempt, self.run.task, self.run.diff(attempt), log)))

    def path(self, number: int) -> Path:
        return self.folder / f"{number}.md"
