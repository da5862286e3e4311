"""A State as text: the panel for a terminal, or the same as plain lines."""

import collections
import datetime
import os
from collections.abc import Iterable, Iterator

import rich.console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from autoresearch import keys
from autoresearch.record.accounting import shares
from autoresearch.text import count, digits, duration, one_line, short, to_type
from autoresearch.views.state import SeatState, State, TrialState
from autoresearch.views.verdicts import Row

COLORS = {"keep": "green", "discard": "bright_black", "crash": "red"}
WIDEST = 110  # columns
BAR, SHORT_BAR = 24, 6  # columns of the bar, on a wide terminal and on one of eighty columns
SEATS = 16  # number of seats shown, one per row, if the height is not limited
PROPOSALS = 3  # number of proposals in progress shown, one per row
BLOCKS = " ▁▂▃▄▅▆▇█"


def screen(to_errors: bool = False) -> tuple[rich.console.Console, bool]:
    """The console to print to, and whether it can show a panel."""
    console = rich.console.Console(highlight=False, stderr=to_errors)
    return console, console.is_terminal and not console.is_dumb_terminal and "NO_COLOR" not in os.environ


def print_state(state: State, plain: bool = False) -> None:
    """Print the panel of a run once."""
    console, draws = screen()
    if plain or not draws:
        print(keys.scrub("\n".join(lines_of(state))))
    else:
        console.print(panel_of(state, console.width))


def panel_of(state: State, width: int, height: int | None = None) -> Panel:
    """The state as a panel that fits a terminal. height: of the terminal, if the panel stays on it."""
    table = Table.grid(padding=(0, 2))
    width = min(width, WIDEST)
    table.add_column(style="bold", no_wrap=True, width=8)
    table.add_column(no_wrap=True, overflow="ellipsis", width=max(1, width - 14))
    seats = SEATS if height is None else max(2, height // 3)
    shown = min(seats, len(state.seats)) if state.has_seats else len(state.trials)
    shown += min(PROPOSALS, max(0, len(state.in_the_making) - 1))
    verdicts = 8 if height is None else max(1, min(8, height - 16 - shown))
    for name, text in rows_of(state, verdicts, bar=BAR if width > 100 else SHORT_BAR, seats=seats):
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
    """The same as plain lines, without bars."""
    rows = rows_of(state, verdicts=8, bar=0)
    return [title_of(state), *(f"  {name:<10}{text.plain}".rstrip() for name, text in rows)]


def title_of(state: State) -> str:
    if not state.running or state.since is None:
        return f"autoresearch: run {state.tag}, " + ("not running" if state.experiments else "nothing done yet")
    stopping = ", stopping" if state.stopping else ""
    return f"autoresearch: run {state.tag}, running for {duration(state.time - state.since)}{stopping}"


def rows_of(state: State, verdicts: int, bar: int, seats: int = SEATS) -> Iterator[tuple[str, Text]]:
    """(name, text) of each row. verdicts, seats: how many to show. bar: width of the progress bar; 0 for no bar and no
    curve."""
    game = ", ".join(f"{name} {value}" for name, value in (("profile", state.profile), ("data", state.data)) if value)
    if state.device or game:
        yield "device", Text("; ".join(filter(None, (state.device, game))))
    if champion := state.champion:
        what = f", experiment {champion.number}, {short(champion.commit)}: {one_line(champion.description, 80)}"
        yield "champion", Text.assemble((f"{state.metric} {digits(champion.score)}", "bold"), what)
    if champion and state.keep > 1 and state.gain is not None:
        gain = f"{digits(state.gain)} over the baseline's {digits(state.baseline)}"
        yield "gain", Text(gain, "green" if state.gain > 0 else "")
    if state.doubt:
        yield "doubt", Text(state.doubt, "red")
    if bar and len(set(state.curve)) > 1:
        for name, line in zip(("curve", ""), sparkline(state.curve), strict=True):
            yield name, Text(line, "green")
    if state.has_seats:
        yield "seats", Text(seats_in_words(state))
    yield from named("now", doing(state, bar, seats))
    yield from named("notes", map(Text, state.notes))
    if state.reason:
        yield "ended", Text(state.reason)
    yield from named("last", (verdict_row(row) for row in state.last[:verdicts]))
    if state.experiments:
        counts = f"{state.keep} keep, {state.discard} discard, {state.crash} crash"
        rate = "" if state.keep_rate is None else f"; {state.keep_rate:.0%} of the changes kept"
        hour = f"; {state.per_hour:.{0 if state.per_hour >= 10 else 1}f} an hour" if state.per_hour else ""
        yield "so far", Text(f"{count(state.experiments, 'experiment')}: {counts}{rate}{hour}")
    spent = state.spent
    if cost := cost_in_words(state):
        limit = None if spent.unknown_dollars else state.limits.get("max-cost")
        left = f"; ${max(0.0, limit.allowed - limit.used):.2f} left" if limit else ""
        yield "cost", Text(cost + left)
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
    """Rows, with the name on the first one only."""
    for text in texts:
        yield name, text
        name = ""


def cost_in_words(state: State) -> str:
    """What proposals and seats have cost; empty if nothing has."""
    spent = state.spent
    parts = [spent.words()] if spent.tokens or spent.dollars or spent.unknown_dollars else []
    return "; ".join(parts + ([f"seats ${state.seat_dollars:.2f}"] if state.seat_dollars else []))


def seats_in_words(state: State) -> str:
    """`16 of H100 on 4 nodes, 95% busy`."""
    kinds = collections.Counter(seat.kind for seat in state.seats)
    nodes = len({seat.node for seat in state.seats if seat.node})
    parts = [f"{number} of {kind}" if kind else count(number, "seat") for kind, number in sorted(kinds.items())]
    busy = [] if state.busy is None else [f"{state.busy:.0%} busy"]
    return ", ".join([" and ".join(parts) + (f" on {count(nodes, 'node')}" if nodes else ""), *busy])


def doing(state: State, bar: int, seats: int) -> Iterator[Text]:
    """What is going on now, one row each."""
    if state.has_seats and state.running:
        yield from seat_rows(state, bar, seats)
    else:
        for trial in state.trials:
            yield trial_row(trial, state.time, bar)
    for thinking in state.in_the_making[:PROPOSALS]:
        since = duration(state.time - thinking.since)
        yield Text(f"experiment {thinking.number}: {thinking.agent} is thinking, {since}")
    if (more := len(state.in_the_making) - PROPOSALS) > 0:
        yield Text(f"{count(more, 'more proposal')} in progress")
    if waiting := state.waiting:
        left = duration(waiting.until - state.time)
        yield Text(f"{waiting.agent} cannot be reached; next call in {left}", "yellow")
    for number, words in state.held.items():
        yield Text(f"{words}: {to_type('approve')} {number}, or reject", "yellow")
    if state.paused:
        yield Text(f"paused: nothing new starts until {to_type('resume')}", "yellow")
    elif state.running and not (state.trials or state.thinking or waiting or state.held):
        yield Text("between two steps")


def seat_rows(state: State, bar: int, most: int) -> Iterator[Text]:
    """Each seat and what runs on it; if there is no room for all, busy ones first."""
    trials = {trial.worker: trial for trial in state.trials}
    seats = state.seats
    if len(seats) > most:
        seats = sorted(seats, key=lambda seat: seat.number not in trials)[: most - 1]
    for seat in seats:
        row = Text(f"{seat_in_words(seat)}: ")
        row.append(trial_row(trials[seat.number], state.time, bar) if seat.number in trials else "idle")
        yield row
    if hidden := len(state.seats) - len(seats):
        busy = sum(seat.number in trials for seat in state.seats if seat not in seats)
        yield Text(f"and {count(hidden, 'seat')} more, {busy} of them busy")


def seat_in_words(seat: SeatState) -> str:
    return seat.name + ("" if seat.busy is None else f", {seat.busy:.0%} busy")


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
    score = "" if row.score is None else f"{digits(row.score)} "
    return Text.assemble(f"{row.number:>4} ", status, f"{score}{row.description}: ", (row.reason, "bright_black"))


def until(state: State) -> str:
    """When the night will end."""
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
    """`17:40`, with the day if it is not today."""
    moment, today = (datetime.datetime.fromtimestamp(value) for value in (min(then, now + 3e9), now))
    if moment.date() == today.date():
        return f"{moment:%H:%M}"
    return f"{moment:%a %H:%M}" if then - now < 6 * 86400 else f"{moment:%Y-%m-%d}"


def sparkline(values: list[float], lines: int = 2) -> list[str]:
    """A curve in block characters, top line first; the smallest value is one eighth of a line high."""
    low, high = min(values), max(values)
    levels = [1 + round((8 * lines - 1) * (value - low) / (high - low)) if high > low else 1 for value in values]
    return ["".join(BLOCKS[min(8, max(0, level - 8 * line))] for level in levels) for line in reversed(range(lines))]
