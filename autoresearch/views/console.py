"""The console: the first screen, a panel with the state of the run, and one line for each event.

On a terminal the panel stays below the scrolling lines. Elsewhere, with --plain or with NO_COLOR set, only the lines
are printed, so that a log file reads well. `loop.py status` prints the same panel for a run in another process: both
are drawn from a State. The console also writes now.json, which tells other processes what the loop is doing.
"""

import asyncio
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import rich.console
import rich.live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from autoresearch import Stopped, keys
from autoresearch.limits import Limits
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.runner import Phase
from autoresearch.runner.identity import identify
from autoresearch.text import clean, duration, one_line
from autoresearch.views.digest import digest
from autoresearch.views.notify import Listener
from autoresearch.views.now import Now, Running, Thinking
from autoresearch.views.panel import COLORS, panel_of, screen
from autoresearch.views.state import State, state_of
from autoresearch.views.verdicts import Record

REDRAWN = 2  # times a second


class Stop(Protocol):
    """Whether the user asked to stop."""

    level: int  # 0: no; 1: after the running trial; 2: now


class Console:
    """Prints to standard output, or with to_errors to standard error. Never shows a key."""

    def __init__(self, plain: bool = False, to_errors: bool = False) -> None:
        self.began = time.monotonic()
        self.output = sys.stderr if to_errors else sys.stdout
        self._console, draws = screen(to_errors)
        self.plain = plain or not draws
        self._followed: Followed | None = None
        self._live: rich.live.Live | None = None
        self._announced: int | None = None  # the experiment announced by the last line printed

    # -- lines

    def first_screen(self, title: str, facts: dict[str, str]) -> None:
        """Print what is about to happen."""
        if self.plain:
            self.line(title)
            for name, text in facts.items():
                self.line(f"  {name:<10}{text}")
        else:
            table = Table.grid(padding=(0, 2))
            table.add_column(style="bold")
            table.add_column(overflow="fold")
            for name, text in facts.items():
                table.add_row(name, escape(text))
            self._console.print(Panel(table, title=f"[bold]{escape(title)}[/]", title_align="left", expand=False))
        self._note(anew=True)  # last: --detach waits for now.json, and shows what was printed until then

    def line(self, text: str, style: str = "") -> None:
        text, self._announced = clean(text), None  # much of it is what agents and trials have said
        self._note()
        with contextlib.suppress(OSError):  # a full disk or a closed terminal must not end the night
            if self.plain:
                print(text, file=self.output, flush=True)
            else:
                self._console.print(escape(text), style=style, soft_wrap=True)

    # -- a run

    @contextlib.asynccontextmanager
    async def follow(
        self,
        ledger: Ledger,
        folder: Path,
        stop: Stop,
        limits: Limits | None = None,
        listeners: Sequence[Listener] = (),
        external: bool = False,
    ) -> AsyncIterator[None]:
        """Inside this context, the run's events are shown, sent to the listeners, and written to now.json.

        folder: of the run. external: an external agent called. An error that ends the run is sent, too.
        """
        allowed = vars(limits) if limits else {}
        names = {"experiments": "experiments", "hours": "hours", "max-cost": "dollars", "max-tokens": "tokens"}
        limited = {name: allowed[field] for name, field in names.items() if allowed.get(field) is not None}
        now = Now(identify(os.getpid()), time.time() - (time.monotonic() - self.began), limited, external=external)
        self._followed = Followed(ledger, folder, stop, now, listeners, a_night=limits is not None)
        drawing = asyncio.create_task(self._redraw())
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            self.ended("fault", one_line(keys.scrub(str(error) or type(error).__name__), 500))
            raise
        finally:
            drawing.cancel()
            self._followed, live, self._live = None, self._live, None
            if live:
                with contextlib.suppress(OSError):
                    live.stop()
            (folder / "now.json").unlink(missing_ok=True)

    def thinking(self, thinking: list[Thinking]) -> None:
        """Show that agents are working on these proposals, until the next call."""
        if self._followed:
            now, numbers = self._followed.now, {one.number for one in thinking}
            now.trials = [trial for trial in now.trials if trial.number not in numbers]  # crashed, now in repair
            now.thinking = thinking
            self._changed()

    def unreachable(self, agent: str, reason: str, again: bool) -> None:
        """Report that an agent cannot be reached. again: neither could it the time before."""
        if not again:
            self.tell("fault", reason=one_line(f"{agent} cannot be reached: {keys.scrub(reason)}", 500))

    def trial(self, attempt: Attempt, again: str = "", seat: int = 0) -> "TrialView":
        """Announce a trial and return its view. again: describes a repetition."""
        self.line(f"experiment {attempt.number}: " + (again or one_line(attempt.description, 100)))
        self._announced = attempt.number
        label = f"experiment {attempt.number}" + (again and f", {again}")
        return TrialView(self, Running(attempt.number, seat, label, time.time()))

    def verifying(self, name: str, number: int, total: int, left: float) -> "TrialView":
        """Announce run `number` of `total` of `verify`; `left`: seconds until all are done."""
        self.line(f"run {number} of {total}: {name}; {duration(left)} left")
        return TrialView(self, Running(0, 0, f"{name}, {number} of {total}", time.time()))

    def verdict(self, attempt: Attempt, wall: float) -> None:
        """Print a verdict. wall: seconds since the trial began."""
        if self._followed:
            now = self._followed.now
            now.trials = [trial for trial in now.trials if trial.number != attempt.number]
        head = "  " if self._announced == attempt.number else f"experiment {attempt.number}: "  # others run in parallel
        status = attempt.status or ""
        self.line(f"{head}{status}: {one_line(attempt.reason, 200)}  ({wall:.0f} s)", COLORS.get(status, ""))
        judged = {"status": status, "score": attempt.score, "before": attempt.standing, "figures": attempt.figures}
        judged |= {**about(attempt), "reason": one_line(attempt.reason), "seconds": attempt.seconds}
        self.tell("verdict", **judged)
        if status == "keep":
            self.tell("keep", **judged)
        self._changed()

    async def before_trial(self, attempt: Attempt, worker: int) -> None:
        """Wait for the user's hook `before-trial`."""
        for listener in self._followed.listeners if self._followed else ():
            await listener.before_trial(self._notice("trial", worker=worker, **about(attempt)))

    def tell(self, event: str, **fields) -> None:
        """Send an event to the listeners."""
        for listener in self._followed.listeners if self._followed else ():
            listener.send(self._notice(event, **fields))

    def _notice(self, event: str, **fields) -> dict:
        assert self._followed
        ledger = self._followed.ledger
        tag, metric = ledger.run and ledger.run.tag, ledger.task and ledger.task.metric
        return {"event": event, "run": tag, "metric": metric, **fields}

    def ended(self, event: str, reason: str) -> None:
        """Send the event that the loop has ended, with a digest of the run."""
        if not self._followed:
            return
        ledger = self._followed.ledger
        champion, lines = ledger.champion, []
        if ledger.run:
            lines = digest(state_of(Record(ledger), None, None, time.time()))
        counts = {"experiments": len(ledger.finished), "kept": len(ledger.kept)}
        score = champion.score if champion else None
        self.tell(event, reason=reason, ended=self._followed.a_night, **counts, score=score, digest="\n".join(lines))

    # -- the panel

    @contextlib.contextmanager
    def panel(self, look: Callable[[], State | None]) -> Iterator[Callable[[], None]]:
        """Inside this context, the panel of a run in another process is shown. Yields a function to redraw it."""
        if self.plain:
            yield lambda: None
            return

        def panel() -> rich.console.RenderableType:
            state = look()
            return panel_of(state, self._console.width, self._console.height) if state else Text()

        with rich.live.Live(console=self._console, get_renderable=panel, auto_refresh=False, transient=True) as live:
            yield live.refresh

    def show_trial(self, running: Running, ended: bool = False) -> None:
        """Show that a trial began a phase, or ended. A worker has one trial at a time."""
        if self._followed:
            now = self._followed.now
            others = [trial for trial in now.trials if trial is not running]
            if not ended:
                others = [trial for trial in others if trial.worker != running.worker]
                others = sorted([*others, running], key=lambda trial: trial.number)
            now.trials = others
        self._changed()

    def _changed(self) -> None:
        """Something has changed: update now.json and the panel."""
        self._note(anew=True)
        if self.plain or not self._followed or not self._followed.ledger.run:
            return
        if self._live is None:
            self._live = rich.live.Live(
                console=self._console, get_renderable=self._panel, auto_refresh=False, transient=True
            )
            with contextlib.suppress(OSError):
                self._live.start()
        self._draw()

    def _draw(self) -> None:
        if self._live:
            with contextlib.suppress(OSError):
                self._live.refresh()

    async def _redraw(self) -> None:
        while True:
            await asyncio.sleep(1 / REDRAWN)
            self._note()
            self._draw()

    def _note(self, anew: bool = False) -> None:
        """Write now.json if something has changed, or if the user has asked to stop."""
        if followed := self._followed:
            stopping = bool(followed.stop.level)
            if anew or (followed.written and followed.now.stopping != stopping):
                followed.now.stopping, followed.written = stopping, True
                followed.now.write(followed.folder)

    def _panel(self) -> rich.console.RenderableType:
        if not self._followed:
            return Text()
        return panel_of(self._followed.state(), self._console.width, self._console.height)


@dataclasses.dataclass
class Followed:
    """A run in this process."""

    ledger: Ledger
    folder: Path
    stop: Stop
    now: Now
    listeners: Sequence[Listener]
    a_night: bool  # the loop is working on it, not a call of an external agent
    record: Record | None = None
    written: bool = False  # now.json exists

    def state(self) -> State:
        self.record = self.record.latest() if self.record else Record(self.ledger)
        return state_of(self.record, self.now, os.getpid(), time.time())


def about(attempt: Attempt) -> dict:
    """The fields of an attempt that are known before it runs."""
    return {
        "number": attempt.number,
        "commit": attempt.commit,
        "parent": attempt.parent,
        "description": one_line(attempt.description),
        "category": attempt.category,
        "agent": attempt.agent,
        "predicted": attempt.predicted,
    }


class TrialView:
    """Shows one trial inside its context, in which it is called whenever a phase begins."""

    def __init__(self, console: Console, running: Running) -> None:
        self.console, self.running = console, running

    def __call__(self, phase: Phase) -> None:
        self.running.phase, self.running.folder, self.running.since = phase.name, phase.folder, time.time()
        self.running.node = phase.node
        self.console.show_trial(self.running)

    def __enter__(self) -> "TrialView":
        return self

    def __exit__(self, *exception: object) -> None:
        self.console.show_trial(self.running, ended=True)
