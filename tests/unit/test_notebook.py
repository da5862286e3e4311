"""analysis.ipynb, run as a researcher runs it: a real kernel, in a folder with one results.tsv (or none).

The kernel is the same for all tests, which saves importing pandas again; each begins with an empty namespace.
The figures asserted here are worked out by hand in the comments, not by the notebook.
"""

import functools
import json
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "analysis.ipynb"
HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"

# Nine experiments after the baseline, written the way that agents write: capitals, stray spaces, quotes
# that do not close, a formula that is none, letters that the font lacks, a hash of digits, an empty
# description, a score far off, no newline at the end.
NIGHT = HEADER + "\n".join(
    [
        "0012345\t1.000000\t44.0\tkeep\tbaseline",
        "1e10000\t0.000000\t0.0\tcrash\tdouble the width",
        '22aa22a\t0.990000\t45.5\tkeep\ta "wider" 模型 🚀, costs $\\nothing$',
        "33bb33b\t0.995000\t44.0\tdiscard\twarmup of 5%",
        "44cc44c\t2.500000\t46.2\tDiscard\tlearning rate x 100",
        "55dd55d\t0.960000\t44.1\t KEEP \t",
        '66ee66e\t0.961000\t44.1\tdiscard\t"one more layer',
        "77ff77f\t0.955000\t44.2\tKeep\thalve the batch",
        "88aa88a\t0.957000\t44.2\tdiscard\tléger",
        "99bb99b\t0.000000\t0.0\tCRASH\ta kernel of its own",
    ]
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    manager = KernelManager(kernel_name="python3")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AUTORESEARCH_")}
    manager.start_kernel(env={**inherited, "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython"))})
    yield manager
    manager.shutdown_kernel(now=True)  # asked politely it takes up to 5 s


@pytest.fixture
def run(kernel):
    return functools.partial(run_in, kernel)


def run_in(
    kernel: KernelManager,
    folder: Path,
    results: str | None,
    lower_is_better: bool = True,
    more: str = "",
    **environment: str,
) -> str:
    """All that the notebook prints and displays. Fails on an exception and on anything written to stderr."""
    if results is not None:
        (folder / environment.get("AUTORESEARCH_RESULTS", "results.tsv")).write_text(results, encoding="utf-8")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if not lower_is_better:
        setting = next(cell for cell in notebook.cells if "LOWER_IS_BETTER = True" in cell.source)
        setting.source = setting.source.replace("LOWER_IS_BETTER = True", "LOWER_IS_BETTER = False")
    if more:
        notebook.cells.append(nbformat.v4.new_code_cell(more))
    begin = (
        f"%reset -f\nimport os\nos.chdir({str(folder)!r})\n"
        f"os.environ.pop('AUTORESEARCH_RESULTS', None)\nos.environ.update({environment!r})\ndel os"
    )
    notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
    # the kernel may flush in the middle of a line; coalesced it is in one piece
    NotebookClient(notebook, timeout=120, km=kernel, coalesce_streams=True).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    complaints = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not complaints, f"the notebook wrote to stderr: {complaints}"
    return "\n".join(output["text"] if "text" in output else output["data"]["text/plain"] for output in outputs)


def require_picture(folder: Path) -> None:
    """progress.png is a PNG of a readable size with something drawn on it."""
    path = folder / "progress.png"
    assert path.exists(), "no progress.png was written"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = plt.imread(path)
    height, width = pixels.shape[:2]
    assert width >= 1500 and height >= 700, f"progress.png is {width} x {height}: too small for a README"
    assert np.ptp(pixels[..., :3]) > 0.2, "progress.png is blank"


def table_line(text: str, number: int) -> str:
    """The line of an experiment in the table of gains, single-spaced."""
    gains = text[text.index("gain %") :]
    return " ".join(re.search(rf"^{number} .*$", gains, re.MULTILINE).group().split())


LOOK_AT_FIGURE = """
figure = draw_progress(night)
axes, renderer = figure.axes[0], figure.canvas.get_renderer()
print("title:", figure.get_suptitle())
print("legend:", "; ".join(axes.get_legend_handles_labels()[1]))
print("labels:", "; ".join(label.get_text() for label in axes.texts))
print("line:", *axes.lines[0].get_ydata())
frame = axes.get_window_extent()
for label in axes.texts:
    box = label.get_window_extent(renderer)
    if box.x0 < 0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1:
        print("out of the frame:", label.get_text())
plt.close(figure)
"""


@pytest.mark.slow
def test_a_night_in_the_public_format(run, tmp_path):
    text = run(tmp_path, NIGHT, more=LOOK_AT_FIGURE)
    assert "all rows: 4 keep, 4 discard, 2 crash" in text
    # without the baseline 9 experiments, 3 kept; 2 crashed, so 7 have a score
    assert "baseline: row 1, 1.000000, not counted below" in text
    assert re.search(r"all experiments \(crashes counted\): +3 of 9 = 33\.3%", text)
    assert re.search(r"scored experiments \(crashes not counted\): +3 of 7 = 42\.9%", text)
    # 1.000 -> 0.990 -> 0.960 -> 0.955: percent of 1.000, 0.990 and 0.960; in all percent of 1.000
    assert (
        table_line(text, 3)
        == '3 22aa22a 0.990000 +0.010000 +1.000 +0.010000 +1.000 a "wider" 模型 🚀, costs $\\nothing$'
    )
    assert table_line(text, 6) == "6 55dd55d 0.960000 +0.030000 +3.030 +0.040000 +4.000"
    assert table_line(text, 8) == "8 77ff77f 0.955000 +0.005000 +0.521 +0.045000 +4.500 halve the batch"
    hits = text[text.index("top hit") :]
    assert hits.startswith("top hit: experiment 6, gain +0.030000")
    assert re.findall(r"^(\d+) +\w{7} ", hits, re.MULTILINE) == ["6", "3", "8"]
    # kept were rows 1, 3, 6 and 8 of 10
    assert "experiments per kept improvement: 3.0" in text
    assert "longest wait for one: 3; since the last one: 2" in text
    assert "experiments for each: 2 3 2" in text
    assert "maximum memory: 46.2 GB (experiment 5: learning rate x 100)" in text
    assert "memory of the best: 44.2 GB (experiment 8: halve the batch)" in text
    require_picture(tmp_path)
    assert "line: 1.0 0.99 0.96 0.955 0.955" in text  # drawn on to the last experiment
    assert "title: 9 experiments, 3 kept: val_bpb 1.0000 → 0.9550 (4.50% better)" in text
    assert (
        "legend: best so far; kept (3 and the baseline); discarded (3 in view); discarded, off the scale (1); "
        "crashed (2)" in text
    )
    assert 'labels: baseline; a "wider" 模型 🚀, costs $\\nothing$; 55dd55d; halve the batch' in text
    assert "out of the frame" not in text


@pytest.mark.slow
def test_many_keeps_are_labelled_within_the_picture(run, tmp_path):
    """Thirty keeps in a row, tiny gains and long descriptions: the worst for labels. A commit like 0000012 stays."""
    rows = [
        f"{place:07d}\t{1 - place / 10000:.6f}\t44.0\tkeep\tidea {place}, and a story about it that goes on and on"
        for place in range(31)
    ]
    text = run(tmp_path, HEADER + "\n".join(rows) + "\n", more=LOOK_AT_FIGURE)
    assert table_line(text, 13).startswith("13 0000012 0.998800 +0.000100 +0.010 +0.001200 +0.120 idea 12")
    labels = re.search("labels: (.*)", text).group(1).split("; ")
    assert len(labels) == 24 and all(len(label) <= 40 for label in labels)
    assert "out of the frame" not in text


@pytest.mark.slow
def test_without_a_file_it_says_what_to_run(run, tmp_path):
    assert "There is no results.tsv yet. To make one: uv run loop.py" in run(tmp_path, None)
    assert not (tmp_path / "progress.png").exists()


@pytest.mark.parametrize(
    "results, says, counts",
    [
        ("", "results.tsv has no rows yet", "0 keep, 0 discard, 0 crash"),
        (HEADER, "results.tsv has no rows yet", "0 keep, 0 discard, 0 crash"),
        (HEADER + "aaaaaaa\t0.000000\t0.0\tcrash\tbaseline\n" * 2, "baseline: none yet", "0 keep, 0 discard, 2 crash"),
    ],
    ids=["empty", "header-only", "only-crashes"],
)
def test_nothing_scored_yet(run, tmp_path, results, says, counts):
    text = run(tmp_path, results)
    assert says in text
    assert f"all rows: {counts}" in text
    assert "no scored experiments yet" in text
    assert "maximum memory: not measured yet" in text
    require_picture(tmp_path)


def test_the_first_keep_is_the_baseline_when_the_first_row_crashed(run, tmp_path):
    text = run(
        tmp_path,
        HEADER + "aaaaaaa\t0.000000\t0.0\tcrash\tbaseline\n"
        "aaaaaaa\t1.200000\t3.0\tkeep\tbaseline\n"
        "bbbbbbb\t1.300000\t3.0\tmaybe\twho knows\n"
        "ccccccc\t0.900000\t3.0\tkeep\thalf\ta model\n"  # a tab in the description
        "ddddddd\t0.8",
    )  # being written just now
    assert "Left out, no known status or no score: row 3, 5" in text
    assert "all rows: 2 keep, 0 discard, 1 crash" in text
    assert "baseline: row 2, 1.200000, not counted below" in text
    assert re.search(r"crashes counted\): +1 of 1 = 100\.0%", text)
    # 1.2 - 0.9 = 0.3, a quarter of 1.2
    assert table_line(text, 4) == "4 ccccccc 0.900000 +0.300000 +25.000 +0.300000 +25.000 half a model"
    require_picture(tmp_path)


def test_no_keep_beyond_the_baseline(run, tmp_path):
    text = run(
        tmp_path,
        HEADER + "aaaaaaa\t1.000000\t40.0\tkeep\tbaseline\n"
        "bbbbbbb\t1.010000\t41.0\tdiscard\tworse\n"
        "ccccccc\t0.000000\t0.0\tcrash\tno\n",
        more=LOOK_AT_FIGURE,
    )
    assert re.search(r"crashes counted\): +0 of 2 = 0\.0%", text)
    assert re.search(r"crashes not counted\): +0 of 1 = 0\.0%", text)
    assert "nothing kept beyond the baseline yet" in text
    assert "no improvement yet after 2 experiments" in text
    assert "discarded (1 in view)" in text
    require_picture(tmp_path)


def test_higher_is_better_and_a_file_of_another_name(run, tmp_path):
    text = run(
        tmp_path,
        HEADER.replace("val_bpb", "accuracy") + "aaaaaaa\t0.500000\t0.0\tkeep\tbaseline\n"
        "bbbbbbb\t0.600000\t0.0\tkeep\tup\n"
        "ccccccc\t0.550000\t0.0\tkeep\tsimpler\n"
        "ddddddd\t-9.000000\t0.0\tdiscard\tdown\n",
        lower_is_better=False,
        more=LOOK_AT_FIGURE,
        AUTORESEARCH_RESULTS="other.tsv",
    )
    # from 0.5 to 0.6 is a gain of 0.1, a fifth of 0.5
    assert table_line(text, 2) == "2 bbbbbbb 0.600000 +0.100000 +20.000 +0.100000 +20.000 up"
    assert table_line(text, 3) == "3 ccccccc 0.550000 -0.050000 -8.333 +0.050000 +10.000 simpler"  # 0.05 of 0.6
    assert "line: 0.5 0.6 0.6 0.6" in text  # the best so far does not follow it down
    assert "title: 3 experiments, 2 kept: accuracy 0.5000 → 0.6000 (20.00% better)" in text
    assert "discarded, off the scale (1)" in text
    assert "maximum memory: not measured yet" in text
    require_picture(tmp_path)


def test_the_notebook_is_stored_clean():
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "outputs are stored: clear them"


@pytest.mark.slow
def test_val_and_holdout_side_by_side(run, tmp_path):
    """The journal holds 1.01, 1.002, 0.985 for the first three keeps: 0.025 of the 0.040 that val gained."""
    folder = tmp_path / ".autoresearch/night"
    folder.mkdir(parents=True)
    commits = [
        ("0012345", 1.01),
        ("1e10000", None),
        ("22aa22a", 1.002),
        ("33bb33b", None),
        ("44cc44c", None),
        ("55dd55d", 0.985),
    ]
    events = [
        event
        for number, (commit, holdout) in enumerate(commits, 1)
        for event in (
            {"event": "attempt", "number": number, "commit": commit + "0" * 33},
            {"event": "verdict", "number": number, "holdout": holdout},
        )
    ]
    events[10]["commit"] = "f" * 40  # and then it was moved onto a new champion
    events.insert(11, {"event": "moved", "number": 6, "commit": "55dd55d" + "0" * 33})
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "verd')
    text = run(tmp_path, NIGHT)
    assert "gain since the baseline: val +0.040000, holdout +0.025000, 62% of it" in text
    assert "no holdout scores to compare" in run(tmp_path, HEADER)


@pytest.mark.slow
def test_keeps_within_the_noise_are_marked(run, tmp_path):
    """The run last knew a noise of 0.004: a band of 0.008. Of the gains 0.010, 0.030 and 0.005 the last is inside."""
    folder = tmp_path / ".autoresearch/night"
    folder.mkdir(parents=True)
    events = [
        event
        for number, (commit, noise) in enumerate([("0012345", 0.001), ("22aa22a", None), ("77ff77f", 0.004)], 1)
        for event in (
            {"event": "attempt", "number": number, "commit": commit + "0" * 33},
            {"event": "verdict", "number": number, "noise": noise},
        )
    ]
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    look = """print([text.get_text() for text in figure_of_the_night.axes[0].get_legend().get_texts()])
shapes = figure_of_the_night.axes[0].collections
print([type(shape).__name__ for shape in shapes if shape.get_label().startswith("within noise")])
print(within_noise(night[night["status"] == "keep"], noise_of(night)).tolist())"""
    text = run(tmp_path, NIGHT, more=look)
    assert "within noise (±0.008)" in text and "of these within noise (1)" in text
    assert "[False, False, False, True]" in text and "FillBetweenPolyCollection" in text
    (folder / "journal.jsonl").unlink()
    assert "within noise" not in run(tmp_path, NIGHT, more=look.splitlines()[0])
