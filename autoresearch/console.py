"""What a person sees of a run: the first screen, a bar for the running trial, one line for each event.

On a terminal the bar is live. Elsewhere, with --plain or with NO_COLOR set, only the lines are
printed, so that a log file reads well.
"""

import json
import os
import sys
import time
from pathlib import Path

import rich.console
import rich.progress
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from autoresearch import keys
from autoresearch.ledger import Attempt, one_line

COLORS = {"keep": "green", "discard": "bright_black", "crash": "red"}


class Console:
    """Prints to standard output; with to_errors to standard error. No key is ever shown."""

    def __init__(self, plain: bool = False, to_errors: bool = False) -> None:
        self.output = sys.stderr if to_errors else sys.stdout
        self._console = rich.console.Console(highlight=False, soft_wrap=True, stderr=to_errors)
        self.plain = plain or not self._console.is_terminal or "NO_COLOR" in os.environ
        self._bar: rich.progress.Progress | None = None

    def first_screen(self, title: str, facts: dict[str, str]) -> None:
        """What is about to happen, before anything does."""
        if self.plain:
            self.line(title)
            for name, text in facts.items():
                self.line(f"  {name:<10}{text}")
            return
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, text in facts.items():
            table.add_row(name, escape(text))
        self._console.print(Panel(table, title=f"[bold]{escape(title)}[/]", title_align="left", expand=False))

    def line(self, text: str, style: str = "") -> None:
        text = keys.scrub(text)
        if self.plain:
            print(text, file=self.output, flush=True)
        else:
            self._console.print(escape(text), style=style)

    def proposing(self, number: int, agent: str) -> None:
        """The agent is at work; what follows is a trial or a line that says why not."""
        self._start_bar(f"experiment {number}: {agent} is thinking", None)

    def trial(self, attempt: Attempt, folder: Path, training: float, again: str = "") -> "TrialView":
        """Announce a trial; the view that comes back is told its phases. again: which repetition it is."""
        self.stop_bar()
        self.line(f"experiment {attempt.number}: " + (again or one_line(attempt.description, 100)))
        return TrialView(self, folder, training)

    def verifying(self, name: str, number: int, total: int, left: float, folder: Path, training: float) -> "TrialView":
        """Announce run `number` of `total` of `verify`; `left`: seconds until all are done."""
        self.stop_bar()
        self.line(f"run {number} of {total}: {name}; {duration(left)} left")
        return TrialView(self, folder, training, f"{number} of {total}, {duration(left)} left: ")

    def verdict(self, attempt: Attempt, wall: float) -> None:
        self.stop_bar()
        self.line(f"  {attempt.status}: {one_line(attempt.reason, 200)}  ({wall:.0f} s)", COLORS[attempt.status])

    def _start_bar(self, text: str, total: float | None) -> None:
        if self.plain:
            return
        self.stop_bar()
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(), rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[note]}"), console=self._console, transient=True,
        )
        self._bar.add_task(escape(text), total=total, note="")
        self._bar.start()

    def update_bar(self, **fields) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], **fields)

    def stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """About how long: `40 s`, `6 min`, `2 h 10 min`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class TrialView:
    """Follows one trial: call it with the name of a phase when it begins, and with None now and then."""

    PHASES = {"train": "starting up", "score": "scoring", "guard": "running the guard", "holdout": "scoring the holdout"}

    def __init__(self, console: Console, folder: Path, training: float, before: str = "") -> None:
        self.console, self.folder, self.training, self.before = console, folder, training, before
        self.phase = "train"
        self.began = time.monotonic()

    def __call__(self, phase: str | None) -> None:
        if phase:
            self.phase, self.began = phase, time.monotonic()
            self.console._start_bar(self.before + self.PHASES.get(phase, phase), None)
        elif not self.console.plain:
            clock = self._clock() if self.phase == "train" else None
            if clock is None:
                self.console.update_bar(note=f"{time.monotonic() - self.began:.0f} s")
                return
            done = min(self.training, max(0.0, time.time() - clock))
            self.console.update_bar(description=f"{self.before}training", total=self.training, completed=done,
                                    note=f"{done:.0f} of {self.training:.0f} s")

    def _clock(self) -> float | None:
        """When the training clock started, as the trial itself says."""
        try:
            return float(json.loads((self.folder / "run/progress.json").read_text())["clock"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
