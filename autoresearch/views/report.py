"""Report: one short paper of a run, from its record alone. Markdown with two figures, and a PDF of the same.

Every number comes from the journal; diffs and the agenda come from git. No sentence claims more than `verify` has shown.
"""

import collections
import dataclasses
import datetime
import html
import math
import re
from pathlib import Path

from autoresearch import count
from autoresearch.accounting import shares
from autoresearch.judge import mean
from autoresearch.ledger import Attempt, Ledger, one_line
from autoresearch.repo import short
from autoresearch.task import Task
from autoresearch.verify import BASELINE, CHAMPION, Estimate, Findings, findings, signed

GREEN, GREY, RED, INK = "#1b7f4d", "#9aa3ad", "#c0392b", "#24352c"
DIFF_LINES = 40  # of a kept change, at most
NEAR_MISSES = 5


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, as its record tells it."""

    tag: str
    task: Task
    ledger: Ledger
    diffs: dict[int, str]  # by number, of kept changes

    @property
    def sign(self) -> int:
        return 1 if self.task.lower_is_better else -1

    def gain(self, attempt: Attempt) -> float:
        """Over the champion of its time, as the judge saw it."""
        standing = self.before(attempt).score if attempt.standing is None else attempt.standing
        return self.sign * (standing - attempt.score)

    def error(self, attempt: Attempt) -> float:
        """The standard error of that gain, from the noise known at its verdict; 0 where nobody knew."""
        return (attempt.noise or 0.0) * (1 / max(1, len(attempt.runs)) + 1 / attempt.standing_runs) ** 0.5

    def before(self, attempt: Attempt) -> Attempt:
        return next(other for other in self.ledger.kept if other.commit == attempt.parent)


def write_report(run: Run, folder: Path, pdf: bool) -> Path:
    """Write report.md and its figures into the folder; with `pdf` report.pdf too. Returns the path of what was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    found = findings(run.ledger, run.task.lower_is_better, run.task.line_price)
    draw_curve(run, folder / "curve.png")
    draw_gains(run, found, folder / "gains.png")
    text = (
        "\n\n".join(
            part
            for section in (
                summary,
                asked,
                setup,
                night,
                what_was_kept,
                what_did_not_help,
                agents,
                what_verify_found,
                cost,
                threats,
            )
            for part in section(run, found)
        )
        + "\n"
    )
    path = folder / "report.md"
    path.write_text(text, encoding="utf-8")
    return write_pdf(text, folder) if pdf else path


# ----------------------------------------------------------------------------------------------
# The sections: each gives paragraphs


def summary(run: Run, found: Findings | None) -> list[str]:
    kept, tried = run.ledger.kept, run.ledger.tried
    first, last = kept[0], kept[-1]
    if found is None or found.gain is None:
        claim = "**Not verified.** The numbers below are those by which the run chose its champion, so they flatter it."
        if found is not None:
            claim = "**Not verified: too few runs had a score.** " + "; ".join(map(plain, found.failed)) + "."
        elif len(kept) > 1:
            claim += f" `uv run loop.py verify --tag {run.tag}` measures the gain again with fresh seeds."
    else:
        gain, failed = found.gain, [plain(line) for line in found.failed if line.startswith((BASELINE, CHAMPION))]
        word = "a gain" if gain.low > 0 else "no gain shown" if gain.high > 0 else "the champion is worse"
        claim = (
            f"**Verified: {word}.** With fresh seeds, {gain.runs[1]} runs of the champion against {gain.runs[0]} of the baseline, the difference is "
            f"{signed(gain.gain)} ({interval(gain)}) on val"
            + (f" and {signed(found.holdout.gain)} ({interval(found.holdout)}) on the holdout" if found.holdout else "")
            + "; positive is better."
            + (" " + "; ".join(failed) + "." if failed else "")
        )
    return [
        f"# Run {plain(run.tag)}",
        claim,
        f"{len(tried)} changes were tried after the baseline, {len(kept) - 1} were kept. In the run {plain(run.task.metric)} "
        f"went from {first.score:.6f} to {last.score:.6f} ({'lower' if run.task.lower_is_better else 'higher'} is better): a gain of "
        f"{signed(run.sign * (first.score - last.score))}. The champion is commit `{short(last.commit)}`.",
    ]


def asked(run: Run, found: Findings | None) -> list[str]:
    lines = [line for line in run.ledger.agenda.splitlines() if not line.startswith("#")]
    paragraph = " ".join("\n".join(lines).strip().partition("\n\n")[0].split())
    return [
        "## What was asked",
        f"> {plain(paragraph)}" if paragraph else "The record holds no agenda.",
        f"An experiment may change {', '.join(f'`{name}`' for name in run.task.editable)} and is run by `{run.task.train}`"
        + (f", scored by `{run.task.score}`" if run.task.score else "")
        + ".",
    ]


def setup(run: Run, found: Findings | None) -> list[str]:
    game = run.ledger.game or {}
    budget = game.get("time_budget")
    rows = {
        "device": game.get("device"),
        **(game.get("machine") or {}),
        "profile": game.get("profile"),
        "data": f"{game['data']} ({game.get('game')})" if game.get("data") else None,
        "training": f"{budget:g} s" if budget else None,
        "seed": game.get("seed"),
        "agent": ", ".join(sorted({attempt.agent for attempt in run.ledger.tried})),
        "began": day(run.ledger.run["time"]),
        "base commit": short(run.ledger.run["base"]),
    }
    return [
        "## Setup",
        table(["", ""], [[name, str(value)] for name, value in rows.items() if value not in (None, "")]),
    ]


def night(run: Run, found: Findings | None) -> list[str]:
    counts = collections.Counter(attempt.status for attempt in run.ledger.tried)
    noise = run.ledger.noise()
    return [
        "## The night",
        f"Of {len(run.ledger.tried)} changes {counts['keep']} were kept, {counts['discard']} discarded, {counts['crash']} crashed. "
        + (
            f"The score of identical code has a standard deviation of {noise:.6f}, as far as this run knows."
            if noise
            else "How far scores of identical code lie apart is not known: none ran twice."
        ),
        "![scores of all experiments](curve.png)",
    ]


def what_was_kept(run: Run, found: Findings | None) -> list[str]:
    kept = run.ledger.kept[1:]
    if not kept:
        return ["## What was kept", "Nothing."]
    parts = {part.attempt.number: part for part in found.parts} if found else {}
    rows = []
    for attempt in kept:
        error, part = run.error(attempt), parts.get(attempt.number)
        worth = (
            ""
            if part is None
            else f"{signed(part.worth.gain)} ({interval(part.worth)}): {part.says}"
            if part.worth
            else part.says
        )
        rows.append(
            [
                str(attempt.number),
                one_line(attempt.description, 80),
                signed(run.gain(attempt)) + (f" ± {error:.6f}" if error else ""),
                "" if attempt.lines is None else f"{attempt.lines:+d}",
                worth,
            ]
        )
    heading = ["experiment", "change", "gain in the run ± standard error", "lines"] + [
        "lost when it is left out"
    ] * bool(parts)
    paragraphs = [
        "## What was kept",
        table(heading, [row[: len(heading)] for row in rows]),
        "![what each change is worth](gains.png)",
    ]
    if within := [attempt.number for attempt in kept if run.gain(attempt) <= 2 * run.error(attempt)]:
        paragraphs.append(
            f"By these runs alone, {len(within)} of the {len(kept)} gains (of experiments {listing(within)}) are within two standard errors of nothing."
        )
    for attempt in kept:
        lines = run.diffs.get(attempt.number, "").splitlines()
        lines = [line for line in lines if not line.startswith(("diff --git ", "index "))]
        shown = lines[:DIFF_LINES] + [f"... {len(lines) - DIFF_LINES} more lines"] * (len(lines) > DIFF_LINES)
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", "\n".join(shown))), default=0))
        paragraphs += [
            f"### Experiment {attempt.number}: {plain(one_line(attempt.description, 80))}",
            "\n".join([f"{fence}diff", *shown, fence]),
        ]
    return paragraphs


def what_did_not_help(run: Run, found: Findings | None) -> list[str]:
    tried = run.ledger.tried
    groups: dict[str, list[Attempt]] = {}
    for attempt in tried:
        groups.setdefault(attempt.category or "not said", []).append(attempt)
    failed = {name: group for name, group in groups.items() if all(attempt.status != "keep" for attempt in group)}
    paragraphs = ["## What did not help"]
    if failed:
        rows = []
        for name, group in sorted(failed.items(), key=lambda item: -len(item[1])):
            gains = [run.gain(attempt) for attempt in group if attempt.score is not None]
            crashes = sum(attempt.status == "crash" for attempt in group)
            rows.append([name, str(len(group)), str(crashes), signed(max(gains)) if gains else ""])
        paragraphs += [
            f"{len(failed)} of {len(groups)} categories brought nothing that was kept:",
            table(["category", "tried", "crashed", "best gain"], rows),
        ]
    else:
        paragraphs.append(
            "Every category that was tried brought something that was kept." if tried else "Nothing was tried."
        )
    near = sorted((attempt for attempt in tried if attempt.status == "discard"), key=run.gain, reverse=True)[
        :NEAR_MISSES
    ]
    if near:
        paragraphs += [
            "The nearest misses:",
            table(
                ["experiment", "change", "gain", "why not"],
                [
                    [
                        str(attempt.number),
                        one_line(attempt.description, 60),
                        signed(run.gain(attempt)),
                        one_line(attempt.reason, 120),
                    ]
                    for attempt in near
                ],
            ),
        ]
    crashes = collections.Counter(one_line(attempt.reason, 100) for attempt in tried if attempt.status == "crash")
    if crashes:
        paragraphs += [
            "Crashes:",
            table(["times", "reason"], [[str(times), reason] for reason, times in crashes.most_common()]),
        ]
    return paragraphs


def what_verify_found(run: Run, found: Findings | None) -> list[str]:
    if found is None:
        return ["## What verify found", "It has not run."]
    rows = []
    for name, scores in found.scores.items():
        held = found.holdouts.get(name, [])
        rows.append([name, str(len(scores)), f"{mean(scores):.6f}", f"{mean(held):.6f}" if held else ""])
    paragraphs = [
        "## What verify found",
        table(["code", "runs", f"mean {run.task.metric}", "mean on the holdout"], rows),
    ]
    if found.gain:
        first, last = run.ledger.kept[0], run.ledger.kept[-1]
        claimed = run.sign * (first.score - last.score)
        paragraphs.append(
            f"The run claimed {signed(claimed)} (from {first.score:.6f} to {last.score:.6f}). Again, with fresh seeds: {signed(found.gain.gain)} ({interval(found.gain)})"
            + (f", {found.gain.gain / claimed:.0%} of it" if claimed > 0 else "")
            + "."
        )
    if found.parts:
        words = collections.defaultdict(list)
        for part in found.parts:
            words[part.says].append(part.attempt.number)
        paragraphs.append(
            "Each kept change left out alone: "
            + "; ".join(f"{word}: {listing(numbers)}" for word, numbers in words.items())
            + "."
        )
    if found.pruned:
        paragraphs.append(
            f"Without what can go (`{short(found.pruned_commit)}`) the champion changes by {signed(found.pruned.gain)} ({interval(found.pruned)})"
            + (": what can go one by one cannot go together." if found.pruned.high < 0 else ".")
        )
    if found.failed:
        paragraphs.append("; ".join(map(plain, found.failed)) + ".")
    return paragraphs


def agents(run: Run, found: Findings | None) -> list[str]:
    """Who proposed what, and what came of it."""
    rows = []
    for name, spent in run.ledger.spent_by.items():
        tried = [attempt for attempt in run.ledger.tried if attempt.agent == name]
        if not tried and name == "loop":  # which made the baseline
            continue
        kept = [attempt for attempt in tried if attempt.status == "keep"]
        rows.append(
            [
                plain(name),
                str(spent.proposals),
                str(len(tried)),
                str(len(kept)),
                signed(math.fsum(max(0.0, run.gain(attempt)) for attempt in kept)),
                known(f"{spent.tokens:,}", spent.unknown_tokens, spent.proposals),
                known(f"{spent.dollars:.2f}", spent.unknown_dollars, spent.proposals),
            ]
        )
    paragraphs = (
        ["## Who proposed", table(["agent", "proposals", "tried", "kept", "gain of these", "tokens", "dollars"], rows)]
        if rows
        else []
    )
    foretold = [attempt for attempt in run.ledger.tried if attempt.predicted and attempt.score is not None]
    right = [attempt for attempt in foretold if (attempt.predicted < 0) == (run.sign * -run.gain(attempt) < 0)]
    if foretold:
        paragraphs.append(f"Of {count(len(foretold), 'predicted change')}, {len(right)} had the right sign.")
    return paragraphs


def known(total: str, unknown: int, of: int) -> str:
    """A sum, and of how many of its parts nobody knows."""
    return "not known" if unknown == of else total + (f" (not known of {unknown})" if unknown else "")


def cost(run: Run, found: Findings | None) -> list[str]:
    night_seconds = sum((attempt.seconds or {}).get("wall", 0.0) for attempt in run.ledger.finished)
    verify_seconds = sum(event["seconds"].get("wall", 0.0) for event in run.ledger.verified)
    device = "GPU" if (run.ledger.game or {}).get("profile") == "gpu" else "machine"
    spent = run.ledger.spent
    return [
        "## What it cost",
        table(
            ["", ""],
            [
                [f"{device} hours, experiments", f"{night_seconds / 3600:.2f}"],
                [f"{device} hours, verify", f"{verify_seconds / 3600:.2f}"],
                ["tokens", known(f"{spent.tokens:,}", spent.unknown_tokens, spent.proposals)],
                ["dollars", known(f"{spent.dollars:.2f}", spent.unknown_dollars, spent.proposals)],
            ],
        ),
        *where_the_time_went(run),
    ]


def where_the_time_went(run: Run) -> list[str]:
    """Every second of the run, by kind."""
    account = run.ledger.account
    rows = [
        [kind, f"{seconds / 3600:.2f}", f"{share:.1%}" if share else ""]
        for kind, seconds, share in shares(account.total())
    ]
    workers = f" of each of {account.workers} workers" if account.workers > 1 else ""
    return (
        [
            f"Where the time went: a loop was at work for {account.wall() / 3600:.2f} hours by the clock, and this is every second{workers} in it, "
            "and what lay between two calls of the loop.",
            table(["", "hours", "share"], rows),
        ]
        if rows
        else []
    )


def threats(run: Run, found: Findings | None) -> list[str]:
    game, groups = run.ledger.game or {}, run.ledger.replicates()
    points = [
        f"{len(run.ledger.tried)} changes were compared with a champion on the same rows. The best of so many draws is partly luck: fresh seeds take that of the training "
        "away, and only rows that no decision read"
        + (", the holdout," if run.task.holdout else ", which this task has not,")
        + " that of the rows.",
        f"Changes were judged by runs with seed {run.ledger.seed}, on one machine. What they found need not hold on another, for longer training, or for larger models.",
        f"The noise was estimated from {count(len(groups), 'code')} that ran more than once"
        + (f" and from a prior of {game['noise']:g}" if game.get("noise") is not None else "")
        + ".",
        "Exact duplicates of documents are kept out of the held-out text; near ones are not."
        if run.task.referee
        else "",
        "What was not verified is not claimed."
        if found is None
        else f"The intervals of verify assume that scores of identical code are normal, with one variance for all codes, pooled over {len(found.scores)} of them.",
    ]
    return ["## Threats to validity", "\n".join(f"- {point}" for point in points if point)]


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


# ----------------------------------------------------------------------------------------------
# Figures


def new_figure(height: float):
    """(a figure, its axes), drawn without a display."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(10, height), layout="constrained", dpi=130)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e8ebee", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def legend_above(axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8)


def draw_curve(run: Run, path: Path) -> None:
    """Scores of all experiments, the champion's path, and the band in which identical code would score."""
    figure, axes = new_figure(4.2)
    kept, others = run.ledger.kept, [attempt for attempt in run.ledger.tried if attempt.status == "discard"]
    steps = [attempt.number for attempt in kept] + [run.ledger.finished[-1].number + 0.5]
    path_scores = [attempt.score for attempt in kept] + [kept[-1].score]
    noise = run.ledger.noise()
    axes.fill_between(
        steps,
        [score - 2 * noise for score in path_scores],
        [score + 2 * noise for score in path_scores],
        step="post",
        color=GREEN,
        alpha=0.12,
        linewidth=0,
        label="two standard deviations of identical code",
    )
    axes.step(steps, path_scores, where="post", color=GREEN, linewidth=1.6, label="champion")
    axes.scatter([a.number for a in kept], path_scores[:-1], s=30, color=GREEN, zorder=4)
    low, high = min(path_scores), max(path_scores)
    worst = (
        high + max(0.6 * (high - low), 4 * noise, 1e-9)
        if run.task.lower_is_better
        else low - max(0.6 * (high - low), 4 * noise, 1e-9)
    )
    inside = [run.sign * a.score <= run.sign * worst for a in others]
    axes.scatter(
        [a.number for a in others],
        [a.score if near else worst for a, near in zip(others, inside, strict=True)],
        s=14,
        color=GREY,
        alpha=0.7,
        label="discarded (at the edge: far worse)",
    )
    crashed = [a.number for a in run.ledger.tried if a.status == "crash"]
    axes.scatter(crashed, [worst] * len(crashed), marker="x", s=18, color=RED, label="crashed" if crashed else None)
    axes.set(
        xlabel="experiment", ylabel=f"{run.task.metric} ({'lower' if run.task.lower_is_better else 'higher'} is better)"
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend_above(axes)
    figure.savefig(path)


def draw_gains(run: Run, found: Findings | None, path: Path) -> None:
    """The gain of each kept change with its interval; beside it what was lost when it was left out."""
    kept = run.ledger.kept[1:]
    figure, axes = new_figure(max(1.6, 0.6 + 0.36 * len(kept)))
    places = [-place for place in range(len(kept))]
    axes.errorbar(
        [run.gain(a) for a in kept],
        places,
        xerr=[2 * run.error(a) for a in kept],
        fmt="o",
        color=GREEN,
        capsize=2,
        label="gain in the run, two standard errors",
    )
    parts = {part.attempt.number: part.worth for part in found.parts if part.worth} if found else {}
    measured = [(place - 0.25, parts[a.number]) for place, a in zip(places, kept, strict=True) if a.number in parts]
    if measured:
        axes.errorbar(
            [worth.gain for _, worth in measured],
            [place for place, _ in measured],
            fmt="s",
            color=INK,
            capsize=2,
            markersize=4,
            xerr=[worth.high - worth.gain for _, worth in measured],
            label="lost when left out, 95% interval of fresh seeds",
        )
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(places, [f"{a.number}. {one_line(a.description, 44)}" for a in kept], fontsize=8, parse_math=False)
    axes.set(xlabel=f"gain in {run.task.metric}", ylim=(0.4 - max(1, len(kept)), 0.6))
    if kept:
        legend_above(axes)
    figure.savefig(path)


# ----------------------------------------------------------------------------------------------
# PDF


def write_pdf(text: str, folder: Path) -> Path:
    """report.pdf from the Markdown: markdown-it makes HTML, fpdf2 sets it, in the fonts that matplotlib brings."""
    import fpdf
    import markdown_it
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    pdf = fpdf.FPDF(format="A4")
    pdf.set_margin(18)
    for style, name in (("", ""), ("B", "-Bold"), ("I", "-Oblique"), ("BI", "-BoldOblique")):
        pdf.add_font("sans", style, fonts / f"DejaVuSans{name}.ttf")
        pdf.add_font("mono", style, fonts / f"DejaVuSansMono{name}.ttf")
    pdf.add_page()
    pdf.set_font("sans", size=9)
    page = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for name in ("curve", "gains"):
        page = page.replace(f'src="{name}.png"', f'src="{html.escape(str(folder / name))}.png" width="490"')
    heading = {
        f"h{level}": fpdf.TextStyle(color=INK, font_size_pt=size, t_margin=above, b_margin=1.5)
        for level, size, above in ((1, 18, 0), (2, 13, 4), (3, 10, 3))
    }
    pdf.write_html(
        page,
        font_family="sans",
        tag_styles={
            **heading,
            "blockquote": fpdf.TextStyle(color=INK, font_style="I"),
            "code": fpdf.FontFace(family="mono"),
            "pre": fpdf.TextStyle(font_family="mono", font_size_pt=7),
        },
    )
    path = folder / "report.pdf"
    pdf.output(str(path))
    return path
