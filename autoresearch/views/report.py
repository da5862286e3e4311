"""Report: a short paper about a run, from its record. Markdown with two figures, and optionally a PDF of it.

Every number comes from the journal, and diffs come from git. No sentence claims more than `verify` has shown.
"""

import collections
import datetime
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from autoresearch.judge import mean
from autoresearch.record.accounting import Use, shares
from autoresearch.record.findings import BASELINE, CHAMPION, Estimate
from autoresearch.record.ledger import is_a_miss
from autoresearch.text import count, digits, one_line, short, signed, to_type
from autoresearch.views.drawing import draw_curve, draw_gains, write_pdf
from autoresearch.views.state import State
from autoresearch.views.verdicts import Row

DIFF_LINES = 40  # of a kept change, at most
NEAR_MISSES = 5
UNSAID = "not said"  # the kind of a change whose agent named none


def write_report(state: State, diffs: Mapping[int, str], folder: Path, pdf: bool) -> Path:
    """Write report.md and its figures into the folder, with `pdf` report.pdf too. Returns the path of the report.

    state: of a run that has its baseline. diffs: of the kept changes, by number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw_curve(state, folder / "curve.png")
    draw_gains(state, folder / "gains.png")
    text = "\n\n".join(paragraphs(state, diffs)) + "\n"
    path = folder / "report.md"
    path.write_text(text, encoding="utf-8")
    return write_pdf(text, folder) if pdf else path


def paragraphs(state: State, diffs: Mapping[int, str]) -> Iterator[str]:
    """The report in Markdown."""
    yield from summary(state)
    yield from asked(state)
    yield from setup(state)
    yield from night(state)
    yield from what_was_kept(state, diffs)
    yield from what_did_not_help(state)
    yield from agents(state)
    yield from what_verify_found(state)
    yield from cost(state)
    yield from threats(state)


# ----------------------------------------------------------------------------------------------
# The sections: each gives paragraphs


def summary(state: State) -> list[str]:
    record, task, found = state.record, state.record.task, state.record.findings
    tried, kept = sum(record.tried_counts.values()), record.tried_counts["keep"]
    first, last = record.kept[0], record.kept[-1]
    if found is None:
        claim = "**Not verified.** The numbers below are those by which the run chose its champion, so they flatter it."
        if kept:
            claim += f" `{to_type('verify')} --tag {state.tag}` measures the gain again with fresh seeds."
    elif found.gain is None:
        claim = "**Not verified: too few runs had a score.** " + "; ".join(map(plain, found.failed)) + "."
    else:
        gain, failed = found.gain, [plain(line) for line in found.failed if line.startswith((BASELINE, CHAMPION))]
        held = found.holdout
        holdout = f" and {signed(held.gain)} ({interval(held)}) on the holdout" if held else ""
        claim = (
            f"**Verified: {gain.claim}.** With fresh seeds, {gain.runs[1]} runs of the champion against "
            f"{gain.runs[0]} of the baseline, the difference is {signed(gain.gain)} ({interval(gain)}) on "
            f"val{holdout}; positive is better." + (" " + "; ".join(failed) + "." if failed else "")
        )
    better = "lower" if task.lower_is_better else "higher"
    return [
        f"# Run {plain(state.tag)}",
        claim,
        *([f"**Doubtful:** {record.doubt}."] if record.doubt else []),
        f"{tried} changes were tried after the baseline, {kept} were kept. In the run {plain(task.metric)} "
        f"went from {digits(first.score)} to {digits(last.score)} ({better} is better): a gain of "
        f"{signed(state.gain or 0.0)}. The champion is commit `{short(last.commit)}`.",
    ]


def asked(state: State) -> list[str]:
    task = state.record.task
    lines = [line for line in state.record.ledger.started.agenda.splitlines() if not line.startswith("#")]
    paragraph = " ".join("\n".join(lines).strip().partition("\n\n")[0].split())
    files, scored = (
        ", ".join(f"`{name}`" for name in task.editable),
        f", scored by `{task.score}`" if task.score else "",
    )
    return [
        "## What was asked",
        f"> {plain(paragraph)}" if paragraph else "The record holds no agenda.",
        f"An experiment may change {files} and is run by `{task.train}`{scored}.",
    ]


def setup(state: State) -> list[str]:
    record, facts = state.record, state.record.facts
    rows = {
        "device": facts.device,
        **facts.machine,
        "profile": facts.profile,
        "data": f"{facts.data} ({facts.game})" if facts.data else None,
        "training": f"{facts.time_budget:g} s" if facts.time_budget else None,
        "seed": facts.seed,
        "agent": ", ".join(sorted({row.agent for row in record.tried})),
        "began": day(record.run.time),
        "base commit": short(record.run.base),
    }
    return [
        "## Setup",
        table(["", ""], [[name, str(value)] for name, value in rows.items() if value not in (None, "")]),
    ]


def night(state: State) -> list[str]:
    counts, noise = state.record.tried_counts, state.record.noise
    known = f"The score of identical code has a standard deviation of {digits(noise)}, as far as this run knows."
    unknown = "How far scores of identical code lie apart is not known: none ran twice."
    return [
        "## The night",
        f"Of {sum(counts.values())} changes {counts['keep']} were kept, {counts['discard']} discarded, "
        f"{counts['crash']} crashed. " + (known if noise else unknown),
        "![scores of all experiments](curve.png)",
    ]


def what_was_kept(state: State, diffs: Mapping[int, str]) -> list[str]:
    kept, found = state.record.kept[1:], state.record.findings
    if not kept:
        return ["## What was kept", "Nothing."]
    parts = {part.attempt.number: part for part in found.parts} if found else {}
    rows = []
    for row in kept:
        part, worth = parts.get(row.number), ""
        if part:
            worth = f"{signed(part.worth.gain)} ({interval(part.worth)}): " if part.worth else ""
            worth += part.says
        gain = signed(row.gain or 0.0) + (f" ± {digits(row.error)}" if row.error else "")
        lines = "" if row.lines is None else f"{row.lines:+d}"
        rows.append([str(row.number), one_line(row.description, 80), gain, lines, worth])
    heading = ["experiment", "change", "gain in the run ± standard error", "lines"]
    if parts:
        heading.append("lost when it is left out")
    told = [
        "## What was kept",
        table(heading, [row[: len(heading)] for row in rows]),
        "![what each change is worth](gains.png)",
    ]
    if within := [row.number for row in kept if (row.gain or 0.0) <= 2 * row.error]:
        told.append(
            f"By these runs alone, {len(within)} of the {len(kept)} gains (of experiments {listing(within)}) are "
            "within two standard errors of nothing."
        )
    for row in kept:
        told += [
            f"### Experiment {row.number}: {plain(one_line(row.description, 80))}",
            fenced(diffs.get(row.number, "")),
        ]
    return told


def fenced(diff: str) -> str:
    """The beginning of a diff, in a fence that nothing in it ends."""
    lines = [line for line in diff.splitlines() if not line.startswith(("diff --git ", "index "))]
    shown = lines[:DIFF_LINES]
    if len(lines) > DIFF_LINES:
        shown.append(f"... {len(lines) - DIFF_LINES} more lines")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", "\n".join(shown))), default=0))
    return "\n".join([f"{fence}diff", *shown, fence])


def categories(tried: list[Row]) -> dict[str, list[Row]]:
    """What was tried, by its kind."""
    groups: dict[str, list[Row]] = {}
    for row in tried:
        groups.setdefault(row.category or UNSAID, []).append(row)
    return groups


def barren(groups: dict[str, list[Row]]) -> list[tuple[str, list[Row]]]:
    """The kinds of change of which none was kept, the one that was tried most first."""
    failed = [(name, group) for name, group in groups.items() if all(row.status != "keep" for row in group)]
    return sorted(failed, key=lambda item: -len(item[1]))


def near_misses(tried: list[Row]) -> list[Row]:
    """What was discarded, the best first."""
    discarded = [row for row in tried if is_a_miss(row) and row.gain is not None]
    return sorted(discarded, key=lambda row: row.gain or 0.0, reverse=True)


def crashes(tried: list[Row]) -> list[tuple[str, int]]:
    """(Reason of crashes, how many had it), the most frequent first."""
    return collections.Counter(one_line(row.reason, 100) for row in tried if row.status == "crash").most_common()


def what_did_not_help(state: State) -> list[str]:
    tried = state.record.tried
    groups = categories(tried)
    failed = barren(groups)
    told = ["## What did not help"]
    if failed:
        rows = []
        for name, group in failed:
            gains = [row.gain for row in group if row.gain is not None]
            crashed = str(sum(row.status == "crash" for row in group))
            rows.append([name, str(len(group)), crashed, signed(max(gains)) if gains else ""])
        told += [
            f"{len(failed)} of {len(groups)} categories brought nothing that was kept:",
            table(["category", "tried", "crashed", "best gain"], rows),
        ]
    elif tried:
        told.append("Every category that was tried brought something that was kept.")
    else:
        told.append("Nothing was tried.")
    if near := near_misses(tried):
        rows = [
            [str(row.number), one_line(row.description, 60), signed(row.gain or 0.0), one_line(row.reason, 120)]
            for row in near[:NEAR_MISSES]
        ]
        told += ["The nearest misses:", table(["experiment", "change", "gain", "why not"], rows)]
    if found := crashes(tried):
        rows = [[str(times), reason] for reason, times in found]
        told += ["Crashes:", table(["times", "reason"], rows)]
    return told


def what_verify_found(state: State) -> list[str]:
    record, found = state.record, state.record.findings
    if found is None:
        return ["## What verify found", "It has not run."]
    rows = []
    for name, scores in found.scores.items():
        held = found.holdouts.get(name, [])
        rows.append([name, str(len(scores)), digits(mean(scores)), digits(mean(held)) if held else ""])
    heading = ["code", "runs", f"mean {record.task.metric}", "mean on the holdout"]
    told = ["## What verify found", table(heading, rows)]
    if found.gain and state.gain is not None:
        first, last = record.kept[0], record.kept[-1]
        share = f", {found.gain.gain / state.gain:.0%} of it" if state.gain > 0 else ""
        told.append(
            f"The run claimed {signed(state.gain)} (from {digits(first.score)} to {digits(last.score)}). Again, with "
            f"fresh seeds: {signed(found.gain.gain)} ({interval(found.gain)}){share}."
        )
    if found.parts:
        words = collections.defaultdict(list)
        for part in found.parts:
            words[part.says].append(part.attempt.number)
        parts = "; ".join(f"{word}: {listing(numbers)}" for word, numbers in words.items())
        told.append(f"Each kept change left out alone: {parts}.")
    if found.pruned:
        worse = ": what can go one by one cannot go together" if found.pruned.high < 0 else ""
        change = f"{signed(found.pruned.gain)} ({interval(found.pruned)})"
        told.append(
            f"Without what can go (`{short(found.pruned_commit or '')}`) the champion changes by {change}{worse}."
        )
    if found.failed:
        told.append("; ".join(map(plain, found.failed)) + ".")
    return told


def agents(state: State) -> list[str]:
    """Who proposed what, and how much of it was kept."""
    record, rows = state.record, []
    for name, spent in record.ledger.spent_by.items():
        tried = [row for row in record.tried if row.agent == name]
        if not tried and name == "loop":  # which made the baseline
            continue
        kept = [row for row in tried if row.status == "keep"]
        gain = math.fsum(max(0.0, row.gain or 0.0) for row in kept)
        tokens = known(f"{spent.tokens:,}", spent.unknown_tokens, spent.proposals)
        dollars = known(f"{spent.dollars:.2f}", spent.unknown_dollars, spent.proposals)
        counts = [str(number) for number in (spent.proposals, len(tried), len(kept))]
        rows.append([plain(name), *counts, signed(gain), tokens, dollars])
    heading = ["agent", "proposals", "tried", "kept", "gain of these", "tokens", "dollars"]
    told = ["## Who proposed", table(heading, rows)] if rows else []
    predicted = [
        (row.predicted, record.sign * -row.gain) for row in record.tried if row.predicted and row.gain is not None
    ]
    right = sum((expected < 0) == (change < 0) for expected, change in predicted)
    if predicted:
        told.append(f"Of {count(len(predicted), 'predicted change')}, {right} had the right sign.")
    return told


def known(total: str, unknown: int, of: int) -> str:
    """A sum, and of how many of its parts nobody knows."""
    return "not known" if unknown == of else total + (f" (not known of {unknown})" if unknown else "")


def cost(state: State) -> list[str]:
    device = "GPU" if state.profile == "gpu" else "machine"
    spent = state.spent
    rows = [
        [f"{device} hours, experiments", f"{state.record.seconds / 3600:.2f}"],
        [f"{device} hours, verify", f"{seconds_of_verify(state) / 3600:.2f}"],
        ["tokens", known(f"{spent.tokens:,}", spent.unknown_tokens, spent.proposals)],
        ["dollars", known(f"{spent.dollars:.2f}", spent.unknown_dollars, spent.proposals)],
    ]
    if state.seat_dollars:
        rows.append(["dollars, seats", f"{state.seat_dollars:.2f}"])
    return ["## What it cost", table(["", ""], rows), *seats(state), *where_the_time_went(state)]


def seats(state: State) -> list[str]:
    """How the seats of each kind were used; nothing of a machine with one."""
    if not state.has_seats:
        return []
    account, kinds = state.record.ledger.account, collections.defaultdict(list)
    for (_, node, kind), use in account.used(state.time if state.running else None).items():
        kinds[kind or state.device or ""].append((node, use))
    rows = []
    for kind, used in sorted(kinds.items()):
        nodes, total = len({node for node, _ in used if node}), sum((use for _, use in used), Use())
        share = "" if total.share is None else f"{total.share:.0%}"
        row = [kind, str(len(used)), str(nodes or 1), f"{total.there / 3600:.2f} h", share, str(total.trials)]
        rows.append([*row, f"{total.dollars:.2f}"])
    hour = f" {state.per_hour:.1f} experiments came to a verdict an hour." if state.per_hour else ""
    heading = ["kind", "seats", "nodes", "time", "busy", "trials", *(["dollars"] if state.seat_dollars else [])]
    return [
        f"Seats that ever were there, and how much of their time they ran trials.{hour}",
        table(heading, [row[: len(heading)] for row in rows]),
    ]


def seconds_of_verify(state: State) -> float:
    return sum(event.seconds.get("wall", 0.0) for event in state.record.ledger.verified)


def where_the_time_went(state: State) -> list[str]:
    """Every second of the run, by kind."""
    rows = [
        [kind, f"{seconds / 3600:.2f}", f"{share:.1%}" if share else ""]
        for kind, seconds, share in shares(state.seconds)
    ]
    if not rows:
        return []
    workers = f" of each of {state.workers} workers" if state.workers > 1 else ""
    return [
        f"Where the time went: a loop was running for {state.wall / 3600:.2f} hours by the clock, and this is every "
        f"second{workers} in it, and what lay between two calls of the loop.",
        table(["", "hours", "share"], rows),
    ]


def threats(state: State) -> list[str]:
    record, task, found = state.record, state.record.task, state.record.findings
    groups, noise = record.ledger.replicates(), record.facts.noise
    holdout = ", the holdout," if task.holdout else ", which this task does not have,"
    prior = f" and from a prior of {noise:g}" if noise is not None else ""
    points = [
        f"{sum(record.tried_counts.values())} changes were compared with a champion on the same rows. The best of so "
        "many draws is partly luck: fresh seeds take that of the training away, and only rows that no decision read"
        f"{holdout} that of the rows.",
        f"Changes were judged by runs with seed {record.ledger.seed}, on one machine. What they found need not hold on "
        "another, for longer training, or for larger models.",
        f"The noise was estimated from {count(len(groups), 'code')} that ran more than once{prior}.",
    ]
    if task.referee:
        points.append("Exact duplicates of documents are kept out of the held-out text; near ones are not.")
    if found is None:
        points.append("What was not verified is not claimed.")
    else:
        points.append(
            "The intervals of verify assume that scores of identical code are normal, with one variance for all codes, "
            f"pooled over {len(found.scores)} of them."
        )
    return ["## Threats to validity", "\n".join(f"- {point}" for point in points)]


# ----------------------------------------------------------------------------------------------
# Words


def interval(estimate: Estimate) -> str:
    return f"95% interval {signed(estimate.low)} to {signed(estimate.high)}"


def day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def listing(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def plain(text: str) -> str:
    """Text that somebody else wrote, so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", text)


def table(heading: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of plain texts."""
    lines = [heading, ["---"] * len(heading), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)
