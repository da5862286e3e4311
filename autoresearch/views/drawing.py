"""What a report draws: the curve of a run, what each kept change gained, and the whole as a PDF."""

import html
from pathlib import Path

from autoresearch.text import one_line
from autoresearch.views.state import State

GREEN, GREY, RED, INK = "#1b7f4d", "#9aa3ad", "#c0392b", "#24352c"


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


def draw_curve(state: State, path: Path) -> None:
    """Scores of all experiments, the champion's path, and the band in which identical code would score."""
    import matplotlib.ticker

    figure, axes = new_figure(4.2)
    record, champions = state.record, state.record.champions
    steps = [*(number for number, _ in champions), max(row.number for row in (*record.kept, *record.tried)) + 0.5]
    scores = [*(score for _, score in champions), champions[-1][1]]
    noise, lower = record.noise, record.task.lower_is_better
    axes.fill_between(
        steps,
        [score - 2 * noise for score in scores],
        [score + 2 * noise for score in scores],
        step="post",
        color=GREEN,
        alpha=0.12,
        linewidth=0,
        label="two standard deviations of identical code",
    )
    axes.step(steps, scores, where="post", color=GREEN, linewidth=1.6, label="champion")
    kept = [(row.number, row.score) for row in record.kept if row.score is not None]
    axes.scatter(*zip(*kept, strict=True), s=30, color=GREEN, zorder=4)
    low, high = min(scores), max(scores)
    room = max(0.6 * (high - low), 4 * noise, 1e-9)
    worst = high + room if lower else low - room
    others = [(row.number, row.score) for row in record.tried if row.status == "discard" and row.score is not None]
    axes.scatter(
        [number for number, _ in others],
        [score if record.sign * score <= record.sign * worst else worst for _, score in others],
        s=14,
        color=GREY,
        alpha=0.7,
        label="discarded (at the edge: far worse)",
    )
    crashed = [row.number for row in record.tried if row.status == "crash"]
    axes.scatter(crashed, [worst] * len(crashed), marker="x", s=18, color=RED, label="crashed" if crashed else None)
    axes.set(xlabel="experiment", ylabel=f"{state.metric} ({'lower' if lower else 'higher'} is better)")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    legend_above(axes)
    figure.savefig(path)


def draw_gains(state: State, path: Path) -> None:
    """The gain of each kept change with its interval; beside it what was lost when it was left out."""
    kept, found = state.record.kept[1:], state.record.findings
    figure, axes = new_figure(max(1.6, 0.6 + 0.36 * len(kept)))
    places = [-place for place in range(len(kept))]
    axes.errorbar(
        [row.gain or 0.0 for row in kept],
        places,
        xerr=[2 * row.error for row in kept],
        fmt="o",
        color=GREEN,
        capsize=2,
        label="gain in the run, two standard errors",
    )
    parts = {part.attempt.number: part.worth for part in found.parts if part.worth} if found else {}
    measured = [
        (place - 0.25, parts[row.number]) for place, row in zip(places, kept, strict=True) if row.number in parts
    ]
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
    labels = [f"{row.number}. {one_line(row.description, 44)}" for row in kept]
    axes.set_yticks(places, labels, fontsize=8, parse_math=False)
    axes.set(xlabel=f"gain in {state.metric}", ylim=(0.4 - max(1, len(kept)), 0.6))
    if kept:
        legend_above(axes)
    figure.savefig(path)


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
    ink = (0x24, 0x35, 0x2C)
    heading = {
        f"h{level}": fpdf.TextStyle(color=ink, font_size_pt=size, t_margin=above, b_margin=2)
        for level, size, above in ((1, 18, 0), (2, 13, 4), (3, 10, 3))
    }
    pdf.write_html(
        page,
        font_family="sans",
        tag_styles={
            **heading,
            "blockquote": fpdf.TextStyle(color=ink, font_style="I"),
            "code": fpdf.FontFace(family="mono"),
            "pre": fpdf.TextStyle(font_family="mono", font_size_pt=7),
        },
    )
    path = folder / "report.pdf"
    pdf.output(str(path))
    return path
