"""Digest: a run summed up in at most ten lines, from its record."""

from collections.abc import Iterator

from autoresearch.record.events import FAULT
from autoresearch.record.ledger import HELD
from autoresearch.record.runs import RUNS
from autoresearch.task import Stages
from autoresearch.text import count, digits, duration, one_line, short, signed, to_type
from autoresearch.views.panel import cost_in_words, until
from autoresearch.views.report import UNSAID, barren, categories, crashes, interval, near_misses, seconds_of_verify
from autoresearch.views.state import State
from autoresearch.views.verdicts import Row

WIDEST = 300  # characters of a line
NAMED = 3  # changes, kinds or reasons that a line names
LONG_WITHOUT = 10  # verdicts without a keep after which the agenda may need a person


def digest(state: State) -> list[str]:
    """What a person wants to know about a run: at most ten lines of plain text."""
    return [one_line(f"{name}: {text}", WIDEST) for name, text in rows(state) if text]


def rows(state: State) -> Iterator[tuple[str, str]]:
    """(name, text) of each line; a line without a text is left out."""
    record = state.record
    tried, counts = record.tried, record.tried_counts
    outcome = f"{counts['keep']} kept, {counts['discard']} discarded, {counts['crash']} crashed"
    yield f"run {state.tag}", f"{count(len(tried), 'change')} tried in {duration(state.wall)}: {outcome}"
    yield ("running", f"until {until(state)}") if state.running else ("ended", state.reason)
    yield "best", best(state)
    yield "verified", verified(state)
    yield "worked", worked(record.kept[1:])
    kinds = [f"{name} ({len(group)} tried)" for name, group in barren(categories(tried)) if name != UNSAID]
    yield "no keep from", "; ".join(kinds[:NAMED])
    yield "near misses", "; ".join(map(change, near_misses(tried)[:NAMED]))
    yield "failures", failures(state)
    yield "cost", cost(state)
    yield "next", "; ".join(advice(state)[:NAMED])


def best(state: State) -> str:
    champion = state.champion
    if champion is None:
        return "nothing has a score yet"
    score = f"{state.metric} {digits(champion.score)}"
    if champion.number == state.record.kept[0].number:
        return f"{score}, the baseline"
    gain = f"{signed(state.gain or 0.0)} on the baseline's {digits(state.baseline)}"
    return f"{score}, {gain}; experiment {champion.number}, {short(champion.commit)}: {champion.description}"


def verified(state: State) -> str:
    """Whether the gain holds with fresh seeds; empty if there is no gain."""
    found, doubtful = state.record.findings, f"doubtful: {state.doubt}" if state.doubt else ""
    if len(state.record.kept) < 2:
        return ""
    if doubtful:
        return doubtful
    if found is None:
        return "no: the best score is the one that was chosen for being good, so it flatters"
    if found.gain is None:
        return "no: too few runs had a score; " + "; ".join(found.failed)
    held = found.holdout
    holdout = f", {signed(held.gain)} ({interval(held)}) on the holdout" if held else ""
    return f"{found.gain.claim}, {signed(found.gain.gain)} ({interval(found.gain)}) with fresh seeds{holdout}"


def worked(kept: list[Row]) -> str:
    """The kept changes, the largest gain first."""
    ordered = sorted(kept, key=lambda row: -(row.gain or 0.0))
    more = len(kept) - NAMED
    return "; ".join(map(change, ordered[:NAMED])) + (f"; and {more} more" if more > 0 else "")


def change(row: Row) -> str:
    return f"{one_line(row.description, 60)} ({row.number}, {signed(row.gain or 0.0)})"


def failures(state: State) -> str:
    found = crashes(state.record.tried)
    crashed = sum(times for _, times in found)
    named = [f"{reason} ({times})" if times > 1 else reason for reason, times in found[:NAMED]]
    away = state.seconds["network"]
    parts = [f"no agent could be reached for {duration(away)}"] if away >= 60 else []
    parts += [f"{crashed} crashed: " + "; ".join(named)] if found else []
    return "; ".join(parts)


def cost(state: State) -> str:
    """The cost of proposals and trials."""
    fresh, dollars = seconds_of_verify(state), cost_in_words(state)
    parts = [dollars] if dollars else []
    parts += [f"{duration(state.record.seconds)} of experiments"]
    parts += [f"{duration(fresh)} of verify"] if fresh else []
    return "; ".join(parts)


def advice(state: State) -> list[str]:
    """What to look at or to type next, the most urgent first."""
    record, found, tag = state.record, state.record.findings, state.tag
    kept, parts = record.kept[1:], found.parts if found else []
    told = []
    if state.reason.startswith(FAULT):
        told.append(f"what ended it: `{to_type('logs')} --tag {tag}`, `{to_type('doctor')}`")
    if state.doubt:
        told.append(f"read the diffs of what was kept: `{to_type('report')} --tag {tag}`")
    looked_at = max(record.ledger.accepted, default=0)
    if held := [row.number for row in record.tried if row.reason.startswith(HELD) and row.number > looked_at]:
        page = f"{RUNS}/{tag}/attempts/{held[-1]}.md"
        told.append(f"experiment {held[-1]} is held back: see {page}; if it is sound `{to_type(f'accept {held[-1]}')}`")
    if kept and found is None:
        told.append(f"`{to_type('verify')} --ablate --tag {tag}` says which of this holds")
    elif any(part.removable for part in parts) and not (found and found.pruned_commit):
        told.append(f"`{to_type('verify')} --prune --tag {tag}` takes out what carries nothing")
    if kept:
        base = short(record.run.base)
        largest = max(kept, key=lambda row: row.gain or 0.0).number
        told.append(f"`git diff {base} autoresearch/{tag}`; {RUNS}/{tag}/attempts/{largest}.md, the largest gain")
    since = Stages().barren(record.ledger.finished)
    if since >= LONG_WITHOUT:
        told.append(f"the last {since} verdicts brought no keep: a new direction in program.md")
    if failed := [row.number for row in record.tried if row.status == "crash"]:
        told.append(f"{RUNS}/{tag}/attempts/{failed[-1]}.md, the last crash")
    return told
