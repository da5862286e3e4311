"""What a person sees of a run: the first screen, a panel with its state, one line for each event.

On a terminal the panel stays below the lines while they scroll. Elsewhere, with --plain or with NO_COLOR set, only the lines are printed, so
that a log file reads well. `loop.py status` prints the same panel of a run in another process: both are drawn from a status.State, and this
console, which is told of every phase, writes the now.json from which others know the present.
"""

import contextlib
import dataclasses
import datetime
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import rich.console
import rich.live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from autoresearch import count, keys
from autoresearch.accounting import shares
from autoresearch.ledger import Attempt, Spent, one_line
from autoresearch.notify import Notifier
from autoresearch.process import identify
from autoresearch.repo import short
from autoresearch.status import Now, Past, Running, State, Thinking, past_of, read_progress, state_of

if TYPE_CHECKING:
    from autoresearch.lab import Lab
    from autoresearch.limits import Limits

COLORS = {"keep": "green", "discard": "bright_black", "crash": "red"}
PHASES = {"train": "starting up", "score": "scoring", "guard": "running the guard", "holdout": "scoring the holdout"}
REDRAWN = 2  # times a second
WIDEST = 110  # columns
BAR, SHORT_BAR = 24, 6  # columns of the bar, on a wide terminal and on one of eighty columns
BLOCKS = " ▁▂▃▄▅▆▇█"


class Console:
    """Prints to standard output; with to_errors to standard error. No key is ever shown. May be called from several threads at once."""

    def __init__(self, plain: bool = False, to_errors: bool = False) -> None:
        self.began = time.monotonic()
        self.output = sys.stderr if to_errors else sys.stdout
        self._console = rich.console.Console(highlight=False, stderr=to_errors)
        self.plain = (
            plain or not self._console.is_terminal or self._console.is_dumb_terminal or "NO_COLOR" in os.environ
        )
        self._lock = (
            threading.RLock()
        )  # nothing is printed by who holds it: a signal handler may, and rich has a lock of its own
        self._live: rich.live.Live | None = None
        self._lab: Lab | None = None
        self._now: Now | None = None
        self._past: tuple[int, Past] | None = None  # as it was at a certain change
        self._changes = 0
        self._noting = False
        self._announced: int | None = None  # the experiment whose announcement was printed last, and nothing since
        self._notifier: Notifier | None = None

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
        self._note()

    def line(self, text: str, style: str = "") -> None:
        text, self._announced = keys.scrub(text), None
        if self._now and self._now.stopping != bool(self._lab.stop.level):
            self._note()
        with contextlib.suppress(
            OSError
        ):  # of a log on a full disk, or a terminal that is gone: no reason to end a night
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

    @contextlib.contextmanager
    def following(self, lab: "Lab", limits: "Limits | None" = None, notifier: Notifier | None = None) -> Iterator[None]:
        """Inside, what goes on in a run is shown, and written down for `status`. A fault that ends it is told to the notifier."""
        allowed = (
            {
                "experiments": limits.experiments,
                "hours": limits.hours,
                "max-cost": limits.dollars,
                "max-tokens": limits.tokens,
            }
            if limits
            else {}
        )
        self._now = Now(
            identify(os.getpid()),
            time.time() - (time.monotonic() - self.began),
            {name: value for name, value in allowed.items() if value is not None},
        )
        self._lab, self._notifier = lab, notifier
        try:
            yield
        except Exception as error:
            self.tell("fault", reason=one_line(keys.scrub(str(error) or type(error).__name__), 500))
            raise
        finally:
            with self._lock:
                live, self._live, self._now = self._live, None, None
            if live:
                live.stop()
            (lab.folder / "now.json").unlink(missing_ok=True)

    def proposing(self, number: int, agent: str) -> None:
        """The agent is at work, until stop_bar."""
        with self._lock:
            if self._now:
                self._now.trials = [
                    trial for trial in self._now.trials if trial.number != number
                ]  # it crashed, and is mended
                self._now.thinking = Thinking(number, agent, time.time())
        self._changed()

    def stop_bar(self) -> None:
        """The agent is not at work any more."""
        with self._lock:
            if not (self._now and self._now.thinking):
                return
            self._now.thinking = None
        self._changed()

    def unreachable(self, agent: str, reason: str, again: bool) -> None:
        """An agent cannot be reached. again: nor could it the time before."""
        if not again:
            self.tell("fault", reason=one_line(f"{agent} cannot be reached: {keys.scrub(reason)}", 500))

    def trial(self, attempt: Attempt, folder: Path, training: float, again: str = "", worker: int = 0) -> "TrialView":
        """Announce a trial; the view that comes back is told its phases. again: which repetition it is."""
        self.line(f"experiment {attempt.number}: " + (again or one_line(attempt.description, 100)))
        self._announced = attempt.number
        return TrialView(
            self,
            Running(
                attempt.number,
                worker,
                f"experiment {attempt.number}" + (again and f", {again}"),
                str(folder),
                time.time(),
            ),
        )

    def verifying(self, name: str, number: int, total: int, left: float, folder: Path, training: float) -> "TrialView":
        """Announce run `number` of `total` of `verify`; `left`: seconds until all are done."""
        self.line(f"run {number} of {total}: {name}; {duration(left)} left")
        return TrialView(self, Running(0, 0, f"{name}, {number} of {total}", str(folder), time.time()))

    def verdict(self, attempt: Attempt, wall: float) -> None:
        with self._lock:
            if self._now:
                self._now.trials = [trial for trial in self._now.trials if trial.number != attempt.number]
        head = "  " if self._announced == attempt.number else f"experiment {attempt.number}: "  # others run beside it
        self.line(f"{head}{attempt.status}: {one_line(attempt.reason, 200)}  ({wall:.0f} s)", COLORS[attempt.status])
        if attempt.status == "keep":
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
        if self._notifier:
            task = self._lab.task
            self._notifier.send(
                {
                    "event": event,
                    "run": self._lab.ledger.run and self._lab.ledger.run["tag"],
                    "metric": task.metric,
                    **fields,
                }
            )

    # -- the panel

    def show_trial(self, running: Running, gone: bool = False) -> None:
        """A trial began a phase, or is over. A worker has one at a time."""
        with self._lock:
            if self._now:
                others = [
                    trial
                    for trial in self._now.trials
                    if trial is not running and (gone or trial.worker != running.worker)
                ]
                self._now.trials = others if gone else sorted([*others, running], key=lambda trial: trial.number)
        self._changed()

    def _changed(self) -> None:
        self._changes += 1
        self._note()
        if not self.plain and self._now and self._lab.ledger.run:
            with self._lock:
                live = None
                if self._live is None and self._now:
                    self._live = live = rich.live.Live(
                        console=self._console, get_renderable=self._panel, refresh_per_second=REDRAWN, transient=True
                    )
            if live:
                live.start()

    def _note(self) -> None:
        """Write now.json. A signal handler that comes in the middle of it leaves it alone."""
        with self._lock:
            if self._now and not self._noting:
                self._noting = True
                self._now.stopping = bool(self._lab.stop.level)
                self._now.write(self._lab.folder)
                self._noting = False

    def _panel(self) -> rich.console.RenderableType:
        """Drawn in rich's own thread. Takes no lock: a signal handler that prints waits for this, and may have stopped what holds it."""
        now, changes, past = self._now, self._changes, self._past
        if not now:
            return Text()
        if past is None or past[0] != changes:
            self._past = past = changes, past_of(self._lab.ledger)
        now = dataclasses.replace(now, stopping=bool(self._lab.stop.level))
        return panel_of(
            state_of(self._lab.ledger, now, os.getpid(), time.time(), past[1]),
            self._console.width,
            self._console.height,
        )

    @property
    def drawn(self) -> bool:
        return self._live is not None


class TrialView:
    """Follows one trial: call it with the name of a phase when it begins, with None now and then, and close it."""

    def __init__(self, console: Console, running: Running) -> None:
        self.console, self.running, self._read = console, running, 0.0

    def __call__(self, phase: str | None) -> None:
        if phase:
            self.running.phase, self.running.since, self.running.progress = phase, time.time(), None
            self.console.show_trial(self.running)
        elif self.console.drawn and self.running.phase == "train" and time.monotonic() - self._read >= 1:
            self._read = time.monotonic()
            self.running.progress = read_progress(Path(self.running.folder))

    def close(self) -> None:
        self.console.show_trial(self.running, gone=True)


# ----------------------------------------------------------------------------------------------
# A state in rows


def panel_of(state: State, width: int, height: int | None = None) -> Panel:
    """The state as a panel that fits a terminal. height: of the terminal, of a panel that stays in it."""
    table = Table.grid(padding=(0, 2))
    width = min(width, WIDEST)
    table.add_column(style="bold", no_wrap=True, width=8)
    table.add_column(no_wrap=True, overflow="ellipsis", width=max(1, width - 14))
    for name, text in rows_of(
        state,
        verdicts=8 if height is None else max(1, min(8, height - 16 - len(state.trials))),
        bar=BAR if width > 100 else SHORT_BAR,
    ):
        table.add_row(name, text)
    foot = (
        "stopping after the running experiment; Ctrl-C again: now"
        if state.stopping
        else "Ctrl-C: stop after the running experiment; twice: now"
    )
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
    return [
        title_of(state),
        *(f"  {name:<10}{text.plain}".rstrip() for name, text in rows_of(state, verdicts=8, bar=0)),
    ]


def title_of(state: State) -> str:
    if not state.running:
        return f"autoresearch: run {state.tag}, " + ("not running" if state.experiments else "nothing done yet")
    return f"autoresearch: run {state.tag}, running for {duration(state.time - state.since)}" + (
        ", stopping" if state.stopping else ""
    )


def rows_of(state: State, verdicts: int, bar: int) -> Iterator[tuple[str, Text]]:
    """(name, text) of each row. bar: columns of the running trial's; 0 for no bar and no curve."""
    game = ", ".join(f"{name} {value}" for name, value in (("profile", state.profile), ("data", state.data)) if value)
    if state.device or game:
        yield "device", Text("; ".join(filter(None, (state.device, game))))
    if champion := state.champion:
        yield (
            "champion",
            Text.assemble(
                (f"{state.metric} {champion['score']:.6f}", "bold"),
                f", experiment {champion['number']}, {short(champion['commit'])}: {one_line(champion['description'], 80)}",
            ),
        )
    if champion and state.keep > 1:
        yield (
            "gain",
            Text(f"{state.gain:.6f} over the baseline's {state.baseline:.6f}", "green" if state.gain > 0 else ""),
        )
    if bar and len(set(state.curve)) > 1:
        for name, line in zip(("curve", ""), sparkline(state.curve), strict=True):
            yield name, Text(line, "green")
    name = "now"
    for trial in state.trials:
        yield name, trial_row(trial, state.time, bar)
        name = ""
    if state.thinking:
        yield (
            name,
            Text(
                f"experiment {state.thinking['number']}: {state.thinking['agent']} is thinking, {duration(state.time - state.thinking['since'])}"
            ),
        )
        name = ""
    if state.waiting:
        yield (
            name,
            Text(
                f"{state.waiting['agent']} cannot be reached; next call in {duration(state.waiting['until'] - state.time)}",
                "yellow",
            ),
        )
        name = ""
    if state.running and name:
        yield name, Text("between two steps")
    if state.reason:
        yield "ended", Text(state.reason)
    name = "last"
    for attempt in state.last[:verdicts]:
        score = "" if attempt["score"] is None else f"{attempt['score']:.6f} "
        yield (
            name,
            Text.assemble(
                f"{attempt['number']:>4} ",
                (f"{attempt['status']:<8}", COLORS[attempt["status"]]),
                f"{score}{attempt['description']}: ",
                (attempt["reason"], "bright_black"),
            ),
        )
        name = ""
    if state.experiments:
        rate = "" if state.keep_rate is None else f"; {state.keep_rate:.0%} of the changes kept"
        hour = f"; {state.per_hour:.{0 if state.per_hour >= 10 else 1}f} an hour" if state.per_hour else ""
        yield (
            "so far",
            Text(
                f"{count(state.experiments, 'experiment')}: {state.keep} keep, {state.discard} discard, {state.crash} crash{rate}{hour}"
            ),
        )
    spent = Spent(state.proposals, state.tokens, state.dollars, state.unknown_tokens, state.unknown_dollars)
    if spent.tokens or spent.dollars or spent.unknown_dollars:
        left = None if spent.unknown_dollars else state.limits.get("max-cost")
        yield "cost", Text(spent.words() + (f"; ${max(0.0, left['allowed'] - left['used']):.2f} left" if left else ""))
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


def trial_row(trial: dict, at: float, bar: int) -> Text:
    text = Text(f"{trial['label']}: ")
    if trial["done"] is None:
        text.append(f"{PHASES.get(trial['phase'], trial['phase'])}, {duration(at - trial['since'])}")
    else:
        text.append("training ")
        if bar:
            full = round(bar * trial["done"] / trial["budget"])
            text.append("━" * full, "green").append("━" * (bar - full), "bright_black").append(" ")
        text.append(f"{trial['done']:.0f} of {trial['budget']:.0f} s")
    if trial["left"] is not None:
        text.append(f", {duration(trial['left'])} left" if trial["left"] >= 1 else ", nearly done")
    if trial["loss"] is not None:
        text.append(f", loss {trial['loss']:.4f}" + (f" at step {trial['step']}" if trial["step"] is not None else ""))
    return text


def until(state: State) -> str:
    """When the night will be over."""
    words = {
        "experiments": lambda n: count(int(n), "experiment"),
        "hours": lambda n: f"{n:g} hours",
        "max-cost": lambda n: f"${n:g}",
        "max-tokens": lambda n: f"{int(n):,} tokens",
    }
    allowed = " or ".join(words[name](limit["allowed"]) for name, limit in state.limits.items())
    if state.finish is None:
        return allowed or "you stop it"
    return f"{allowed}: about {clock_time(state.finish, state.time)}"


def clock_time(then: float, now: float) -> str:
    """`17:40`, and the day where it is another."""
    moment, today = (datetime.datetime.fromtimestamp(value) for value in (min(then, now + 3e9), now))
    return (
        f"{moment:%H:%M}"
        if moment.date() == today.date()
        else f"{moment:%a %H:%M}"
        if then - now < 6 * 86400
        else f"{moment:%Y-%m-%d}"
    )


def sparkline(values: list[float], lines: int = 2) -> list[str]:
    """A curve in block characters, from the top line to the bottom one; the least value is one eighth high."""
    low, high = min(values), max(values)
    levels = [1 + round((8 * lines - 1) * (value - low) / (high - low)) if high > low else 1 for value in values]
    return ["".join(BLOCKS[min(8, max(0, level - 8 * line))] for level in levels) for line in reversed(range(lines))]


def duration(seconds: float) -> str:
    """About how long: `40 s`, `6 min`, `2 h 10 min`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{max(0.0, seconds):.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
