"""What a person sees of a run: the first screen, a panel with its state, one line for each event.

On a terminal the panel stays below the lines while they scroll. Elsewhere, with --plain or with NO_COLOR set, only
the lines are printed, so that a log file reads well. `loop.py status` prints the same panel of a run in another
process: both are drawn from a State. This console, which is told of every phase, writes the now.json from which other
processes know the present.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
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
from autoresearch.record.accounting import shares
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.runner import Phase
from autoresearch.runner.identity import identify
from autoresearch.text import count, duration, one_line, short
from autoresearch.views.notify import Notifier
from autoresearch.views.state import Now, Record, Row, Running, State, Thinking, TrialState, state_of

COLORS = {"keep": "green", "discard": "bright_black", "crash": "red"}
REDRAWN = 2  # times a second
WIDEST = 110  # columns
BAR, SHORT_BAR = 24, 6  # columns of the bar, on a wide terminal and on one of eighty columns
BLOCKS = " ▁▂▃▄▅▆▇█"


class Stop(Protocol):
    """Whether the user asked to stop."""

    level: int  # 0: no; 1: after the running trial; 2: now


class Console:
    """Prints to standard output; with to_errors to standard error. No key is ever shown."""

    def __init__(self, plain: bool = False, to_errors: bool = False) -> None:
        self.began = time.monotonic()
        self.output = sys.stderr if to_errors else sys.stdout
        self._console = rich.console.Console(highlight=False, stderr=to_errors)
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal and "NO_COLOR" not in os.environ
        self.plain = plain or not terminal
        self._followed: Followed | None = None
        self._live: rich.live.Live | None = None
        self._announced: int | None = None  # the experiment that was announced last, if nothing was printed since

    # -- lines

    def first_screen(self, title: str, facts: dict[str, str]) -> None:
        """What is about to happen, before anything does."""
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
        self._note(anew=True)  # not before: --detach waits for it, and shows what was printed until then

    def line(self, text: str, style: str = "") -> None:
        text, self._announced = keys.scrub(text), None
        self._note()
        with contextlib.suppress(OSError):  # a log on a full disk, a terminal that is gone: no reason to end a night
            if self.plain:
                print(text, file=self.output, flush=True)
            else:
                self._console.print(escape(text), style=style, soft_wrap=True)

    def status(self, state: State) -> None:
        """The panel of a run, once."""
        if self.plain:
            print(keys.scrub("\n".join(lines_of(state))), file=self.output)
        else:
            self._console.print(panel_of(state, self._console.width))

    # -- a run

    @contextlib.asynccontextmanager
    async def follow(
        self,
        ledger: Ledger,
        folder: Path,
        stop: Stop,
        limits: Limits | None = None,
        notifier: Notifier | None = None,
    ) -> AsyncIterator[None]:
        """Inside, what goes on in a run is shown, and written down for `status`.

        folder: of the run. An error that ends it is told to the notifier.
        """
        allowed = vars(limits) if limits else {}
        names = {"experiments": "experiments", "hours": "hours", "max-cost": "dollars", "max-tokens": "tokens"}
        limited = {name: allowed[field] for name, field in names.items() if allowed.get(field) is not None}
        now = Now(identify(os.getpid()), time.time() - (time.monotonic() - self.began), limited)
        self._followed = Followed(ledger, folder, stop, now, notifier)
        drawing = asyncio.create_task(self._redraw())
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            self.tell("fault", reason=one_line(keys.scrub(str(error) or type(error).__name__), 500))
            raise
        finally:
            drawing.cancel()
            self._followed, live, self._live = None, self._live, None
            if live:
                with contextlib.suppress(OSError):
                    live.stop()
            (folder / "now.json").unlink(missing_ok=True)

    def proposing(self, number: int, agent: str) -> None:
        """The agent works on a proposal, until `proposed`."""
        if self._followed:
            now = self._followed.now
            now.trials = [trial for trial in now.trials if trial.number != number]  # it crashed, and is repaired
            now.thinking = Thinking(number, agent, time.time())
        self._changed()

    def proposed(self) -> None:
        """The agent does not work any more."""
        if self._followed and self._followed.now.thinking:
            self._followed.now.thinking = None
            self._changed()

    def unreachable(self, agent: str, reason: str, again: bool) -> None:
        """An agent cannot be reached. again: nor could it be the time before."""
        if not again:
            self.tell("fault", reason=one_line(f"{agent} cannot be reached: {keys.scrub(reason)}", 500))

    def trial(self, attempt: Attempt, again: str = "", seat: int = 0) -> "TrialView":
        """Announce a trial; the view that comes back is told its phases. again: which repetition it is."""
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
        head = "  " if self._announced == attempt.number else f"experiment {attempt.number}: "  # others run beside it
        status = attempt.status or ""
        self.line(f"{head}{status}: {one_line(attempt.reason, 200)}  ({wall:.0f} s)", COLORS.get(status, ""))
        if status == "keep":
            self.tell(
                "keep",
                number=attempt.number,
                score=attempt.score,
                before=attempt.standing,
                commit=attempt.commit,
                description=one_line(attempt.description),
                reason=one_line(attempt.reason),
            )
        self._changed()

    def tell(self, event: str, **fields) -> None:
        """Tell the notifier, if there is one."""
        if self._followed and self._followed.notifier:
            ledger = self._followed.ledger
            tag, metric = ledger.run and ledger.run.tag, ledger.task and ledger.task.metric
            self._followed.notifier.send({"event": event, "run": tag, "metric": metric, **fields})

    # -- the panel

    def show_trial(self, running: Running, ended: bool = False) -> None:
        """A trial began a phase, or ended. A worker has one at a time."""
        if self._followed:
            now = self._followed.now
            others = [trial for trial in now.trials if trial is not running]
            if not ended:
                others = [trial for trial in others if trial.worker != running.worker]
                others = sorted([*others, running], key=lambda trial: trial.number)
            now.trials = others
        self._changed()

    def _changed(self) -> None:
        """What goes on is another thing now: write it down and draw it."""
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
        """Write now.json where something is new, or the user has asked to stop since."""
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
    """A run that goes on in this process."""

    ledger: Ledger
    folder: Path
    stop: Stop
    now: Now
    notifier: Notifier | None
    record: Record | None = None
    written: bool = False  # now.json exists

    def state(self) -> State:
        self.record = self.record.latest() if self.record else Record(self.ledger)
        return state_of(self.record, self.now, os.getpid(), time.time())


class TrialView:
    """Follows one trial: call it when a phase begins, and close it."""

    def __init__(self, console: Console, running: Running) -> None:
        self.console, self.running = console, running

    def __call__(self, phase: Phase) -> None:
        self.running.phase, self.running.folder, self.running.since = phase.name, phase.folder, time.time()
        self.console.show_trial(self.running)

    def close(self) -> None:
        self.console.show_trial(self.running, ended=True)


# ----------------------------------------------------------------------------------------------
# A state in rows


def panel_of(state: State, width: int, height: int | None = None) -> Panel:
    """The state as a panel that fits a terminal. height: of the terminal, of a panel that stays in it."""
    table = Table.grid(padding=(0, 2))
    width = min(width, WIDEST)
    table.add_column(style="bold", no_wrap=True, width=8)
    table.add_column(no_wrap=True, overflow="ellipsis", width=max(1, width - 14))
    verdicts = 8 if height is None else max(1, min(8, height - 16 - len(state.trials)))
    for name, text in rows_of(state, verdicts, bar=BAR if width > 100 else SHORT_BAR):
        table.add_row(name, text)
    stopping = "stopping after the running experiment; Ctrl-C again: now"
    foot = stopping if state.stopping else "Ctrl-C: stop after the running experiment; twice: now"
    return Panel(
        table,
        title=Text(title_of(state), style="bold"),
        title_align="left",
        width=width,
        subtitle=foot if height else None,
        subtitle_align="left",
    )


def lines_of(state: State) -> list[str]:
    """The same, one line a row, without bars."""
    rows = rows_of(state, verdicts=8, bar=0)
    return [title_of(state), *(f"  {name:<10}{text.plain}".rstrip() for name, text in rows)]


def title_of(state: State) -> str:
    if not state.running or state.since is None:
        return f"autoresearch: run {state.tag}, " + ("not running" if state.experiments else "nothing done yet")
    stopping = ", stopping" if state.stopping else ""
    return f"autoresearch: run {state.tag}, running for {duration(state.time - state.since)}{stopping}"


def rows_of(state: State, verdicts: int, bar: int) -> Iterator[tuple[str, Text]]:
    """(name, text) of each row. bar: columns of the running trial's; 0 for no bar and no curve."""
    game = ", ".join(f"{name} {value}" for name, value in (("profile", state.profile), ("data", state.data)) if value)
    if state.device or game:
        yield "device", Text("; ".join(filter(None, (state.device, game))))
    if champion := state.champion:
        what = f", experiment {champion.number}, {short(champion.commit)}: {one_line(champion.description, 80)}"
        yield "champion", Text.assemble((f"{state.metric} {champion.score:.6f}", "bold"), what)
    if champion and state.keep > 1 and state.gain is not None:
        gain = f"{state.gain:.6f} over the baseline's {state.baseline:.6f}"
        yield "gain", Text(gain, "green" if state.gain > 0 else "")
    if state.doubt:
        yield "doubt", Text(state.doubt, "red")
    if bar and len(set(state.curve)) > 1:
        for name, line in zip(("curve", ""), sparkline(state.curve), strict=True):
            yield name, Text(line, "green")
    yield from named("now", doing(state, bar))
    if state.reason:
        yield "ended", Text(state.reason)
    yield from named("last", (verdict_row(row) for row in state.last[:verdicts]))
    if state.experiments:
        counts = f"{state.keep} keep, {state.discard} discard, {state.crash} crash"
        rate = "" if state.keep_rate is None else f"; {state.keep_rate:.0%} of the changes kept"
        hour = f"; {state.per_hour:.{0 if state.per_hour >= 10 else 1}f} an hour" if state.per_hour else ""
        yield "so far", Text(f"{count(state.experiments, 'experiment')}: {counts}{rate}{hour}")
    spent = state.spent
    if spent.tokens or spent.dollars or spent.unknown_dollars:
        limit = None if spent.unknown_dollars else state.limits.get("max-cost")
        left = f"; ${max(0.0, limit.allowed - limit.used):.2f} left" if limit else ""
        yield "cost", Text(spent.words() + left)
    if state.running:
        yield "until", Text(until(state))
    parts = [
        f"{name} {share:.0%}" if share else f"{name} {duration(seconds)}"
        for name, seconds, share in shares(state.seconds)
        if not share or share >= 0.005
    ]
    if parts:
        workers = f" of {state.workers} workers" if state.workers > 1 else ""
        yield "time", Text(f"{duration(state.wall)}{workers}: " + ", ".join(parts), no_wrap=False, overflow="fold")


def named(name: str, texts: Iterable[Text]) -> Iterator[tuple[str, Text]]:
    """Rows of which the first alone has the name."""
    for text in texts:
        yield name, text
        name = ""


def doing(state: State, bar: int) -> Iterator[Text]:
    """What goes on now, a row each."""
    for trial in state.trials:
        yield trial_row(trial, state.time, bar)
    if thinking := state.thinking:
        since = duration(state.time - thinking.since)
        yield Text(f"experiment {thinking.number}: {thinking.agent} is thinking, {since}")
    if waiting := state.waiting:
        left = duration(waiting.until - state.time)
        yield Text(f"{waiting.agent} cannot be reached; next call in {left}", "yellow")
    if state.running and not (state.trials or thinking or waiting):
        yield Text("between two steps")


def trial_row(trial: TrialState, at: float, bar: int) -> Text:
    text = Text(f"{trial.label}: {trial.doing}")
    if trial.done is None or trial.budget is None:
        text.append(f", {duration(at - trial.since)}")
    else:
        if bar:
            full = round(bar * trial.done / trial.budget)
            text.append(" ").append("━" * full, "green").append("━" * (bar - full), "bright_black")
        text.append(f" {trial.done:.0f} of {trial.budget:.0f} s")
    if trial.left is not None:
        text.append(f", {duration(trial.left)} left" if trial.left >= 1 else ", nearly done")
    if trial.loss is not None:
        text.append(f", loss {trial.loss:.4f}" + (f" at step {trial.step}" if trial.step is not None else ""))
    return text


def verdict_row(row: Row) -> Text:
    status = (f"{row.status:<8}", COLORS[row.status])
    score = "" if row.score is None else f"{row.score:.6f} "
    return Text.assemble(f"{row.number:>4} ", status, f"{score}{row.description}: ", (row.reason, "bright_black"))


def until(state: State) -> str:
    """When the night will be over."""
    words = {
        "experiments": lambda n: count(int(n), "experiment"),
        "hours": lambda n: f"{n:g} hours",
        "max-cost": lambda n: f"${n:g}",
        "max-tokens": lambda n: f"{int(n):,} tokens",
    }
    allowed = " or ".join(words[name](limit.allowed) for name, limit in state.limits.items())
    if state.finish is None:
        return allowed or "you stop it"
    return f"{allowed}: about {clock_time(state.finish, state.time)}"


def clock_time(then: float, now: float) -> str:
    """`17:40`, and the day where it is another."""
    moment, today = (datetime.datetime.fromtimestamp(value) for value in (min(then, now + 3e9), now))
    if moment.date() == today.date():
        return f"{moment:%H:%M}"
    return f"{moment:%a %H:%M}" if then - now < 6 * 86400 else f"{moment:%Y-%m-%d}"


def sparkline(values: list[float], lines: int = 2) -> list[str]:
    """A curve in block characters, from the top line to the bottom one; the least value is one eighth high."""
    low, high = min(values), max(values)
    levels = [1 + round((8 * lines - 1) * (value - low) / (high - low)) if high > low else 1 for value in values]
    return ["".join(BLOCKS[min(8, max(0, level - 8 * line))] for level in levels) for line in reversed(range(lines))]
