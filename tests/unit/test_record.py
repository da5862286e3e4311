"""What is written down: the columns of results.tsv, the figures read from a log, and a run of version 0.1."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from autoresearch import UserError
from autoresearch.program import read_agenda, read_task
from autoresearch.record import events, results
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.runner.logs import last_word, read_figures
from autoresearch.task import OWN_GAME, code_lines
from autoresearch.text import one_line
from autoresearch.views.panel import lines_of
from autoresearch.views.report import write_report
from autoresearch.views.state import look
from autoresearch.views.verdicts import Record
from autoresearch.views.watch import Watch

OLD = Path(__file__).with_name("journal-0.1.jsonl")  # of a night of the toy task, written by version 0.1
PRINTED = json.loads(Path(__file__).with_name("printed-0.1.json").read_text())  # what that version made of it


@given(st.text())
def test_a_description_is_one_short_printable_line(text):
    line = one_line(text)
    assert len(line) <= 300 and line.isprintable() and "\t" not in line and line == line.strip()
    assert one_line(line) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\twords\nand more", "two words and more"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("smile 😀", "smile 😀"),
        ("x" * 10_000, "x" * 299 + "…"),
    ],
)
def test_descriptions_that_agents_write(text, line):
    assert one_line(text) == line


def test_a_row_has_the_public_columns():
    attempt = Attempt(
        3, "0123456789abcdef", "0" * 40, "wider\tmlp", "sweep", status="keep", score=0.99791234, memory_gb=43.96
    )
    assert results.row(attempt) == "0123456\t0.997912\t44.0\tkeep\twider mlp\n"
    crash = Attempt(4, "abcdef0123456789", "0" * 40, "boom", "sweep", status="crash")
    assert results.row(crash) == "abcdef0\t0.000000\t0.0\tcrash\tboom\n"


@pytest.mark.parametrize(
    ("score", "said"), [(1.7e308, "1.7e+308"), (3.25e-7, "3.25e-07"), (-0.5, "-0.500000"), (0.0, "0.000000")]
)
def test_a_score_of_any_size_is_legible(score, said):
    attempt = Attempt(2, "0123456789", "0" * 40, "x", "sweep", status="keep", score=score)
    assert results.row(attempt).split("\t")[1] == said and float(said) == score


def test_rows_as_older_versions_wrote_them_are_this_loop_s(old, tmp_path):
    """A score of any size had six decimals."""
    old.finished[1].score = 3.25e-7
    text = results.whole(old)
    path = tmp_path / "results.tsv"
    for theirs in (text, text.replace("3.25e-07", "0.000000"), text[: text.index("3.25e-07") + 3], text[:-20]):
        path.write_text(theirs)
        results.Results(path, old).require_ours(tmp_path / "none")
    for other in ("hello", text + "my own note\n", text.replace(old.finished[1].commit[:7], "0000000")):
        path.write_text(other)
        with pytest.raises(UserError, match="was not written by this loop"):
            results.Results(path, old).require_ours(tmp_path / "none")


def test_a_file_that_was_cut_off_anywhere_is_this_loop_s(old, tmp_path):
    path, text = tmp_path / "results.tsv", results.whole(old)
    for size in range(len(text)):
        path.write_text(text[:size])
        results.Results(path, old).require_ours(tmp_path / "none")


def test_figures_of_a_log(tmp_path):
    log = tmp_path / "train.log"
    log.write_bytes(
        b"\xff\x00 noise\nval_bpb: 9\nstep 1 val_bpb: 3\n---\nval_bpb:          1.250000\nmfu_percent: n/a\ndepth: 8\n"
    )
    assert read_figures(log) == {"val_bpb": 1.25, "depth": 8.0}
    assert read_figures(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("line", "figures"),
    [
        ("accuracy: 0.93", {"accuracy": 0.93}),
        ("accuracy=0.93", {"accuracy": 0.93}),
        ("METRIC accuracy=0.93", {"accuracy": 0.93}),
        ("METRIC accuracy: 1e-3", {"accuracy": 0.001}),
        ("\t  accuracy = -93 % \r", {"accuracy": -93.0}),
        ("bytes: 12,345", {"bytes": 12345.0}),
        ("time: 12.5 ms", {"time": 0.0125}),
        ("time: 900us", {"time": 0.0009}),
        ("throughput: 1.5 MB/s", {"throughput": 1.5e6}),
        ("size: 2 KiB", {"size": 2048.0}),
        ("speed: 3.1 tokens/s", {"speed": 3.1}),
        ("tests/parse.time: 3x", {"tests/parse.time": 3.0}),
        ('{"accuracy": 0.93, "steps": 7, "ok": true, "name": "1"}', {"accuracy": 0.93, "steps": 7.0}),
        ('{"\\u001b]0;owned\\u0007": 1, "%s": 2, "loss": 3}' % ("x" * 200), {"loss": 3.0}),
        ("loss: inf", {"loss": float("inf")}),
        ("version: 1.2.3", {}),
        ("day: 2026-11-26", {}),
        ("at 12:30 accuracy: 0.9", {}),
        ("took: 3 s in all", {}),
        ("accuracy: high", {}),
        ("localhost:8080", {}),
        ('{"accuracy": ', {}),
        ("[1, 2]", {}),
    ],
)
def test_forms_of_a_figure(tmp_path, line, figures):
    log = tmp_path / "score.log"
    log.write_text(f"first\n{line}\nlast\n", newline="")
    assert read_figures(log) == pytest.approx(figures)


def test_a_line_that_takes_forever_to_read(tmp_path):
    """A figure, a million blanks, and what makes it none: the kernel ends who looks at each way to divide them."""
    (tmp_path / "score.log").write_text("score: 1" + " " * 1_000_000 + "!\nscore: 2\n")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (20, 20))"
    reads = "import pathlib, sys; from autoresearch.runner.logs import read_figures"
    said = "print(read_figures(pathlib.Path(sys.argv[1])))"
    words = [sys.executable, "-c", f"{limit}\n{reads}\n{said}", tmp_path / "score.log"]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout == "{'score': 2.0}\n"


def test_the_last_word_of_a_failure(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(
        "Traceback (most recent call last):\n  File 'x'\n    y\nValueError: first\n\nDuring handling:\n\n"
        "Traceback (most recent call last):\n  File 'z'\nKeyError: 'second'\nleaked 4 instances\n"
    )
    assert last_word(log) == "KeyError: 'second'"
    log.write_text("starting\nout of luck\n\n")
    assert last_word(log) == "out of luck"


def test_this_projects_own_program_is_the_own_game():
    assert read_task(ROOT / "program.md") == OWN_GAME
    assert "val_bpb" in read_agenda(ROOT / "program.md")


# -- what an edit costs in lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("", 0),
        ("x = 1\n", 1),
        ("# a comment\n\nx = 1      # another\n", 1),
        ('"""A docstring."""\nx = 1; y = 2\n', 2),  # each statement counts, however it is laid out
        ("f(1,\n  2,\n  3)\n", 1),
        ('def f():\n    """Says what."""\n    return 1\n', 2),
        ('def f():\n    """Says what, and does nothing."""\n', 2),
        ("if x: y\n", 2),
        ("x =", 1),  # not Python: lines that are not blank
    ],
)
def test_lines_of_code(source, lines):
    assert code_lines({"a.py": source.encode()}) == lines


def test_lines_of_other_files():
    assert code_lines({"a.toml": b"a = 1\n\n# b\n", "b.py": b"x = 1\n"}) == 3


def test_the_price_of_a_line(tmp_path):
    path = tmp_path / "program.md"
    assert read_task(path).line_price == pytest.approx(0.001 / 20)  # this project's own game
    path.write_text("---\nsimplicity: {gain: 0.01, lines: 10}\n---\n")
    assert read_task(path).line_price == pytest.approx(0.001)
    path.write_text("---\ntask: {editable: [a.py], train: x, metric: m}\n---\n")
    assert read_task(path).line_price == 0.0
    assert read_task(ROOT / "program.md") == OWN_GAME


# -- a run of version 0.1


@pytest.fixture
def old(tmp_path) -> Ledger:
    """A run with keep, discard, crash, refused, moved, void, crashed, interrupted, quarantine and verified in it."""
    shutil.copy(OLD, tmp_path / "journal.jsonl")
    return Ledger(tmp_path)


def same(found: object, printed: object) -> bool:
    """Whether what this version says holds all that the old one said: sums perhaps in another order, whole numbers
    perhaps without decimals.
    """
    match printed:
        case dict():
            return isinstance(found, dict) and all(same(found.get(name), value) for name, value in printed.items())
        case list():
            return isinstance(found, list) and len(found) == len(printed) and all(map(same, found, printed))
        case float():
            return found == pytest.approx(printed, rel=1e-12)
        case str():
            return found in (printed, printed.replace(".000000", ""))
    return found == printed


def test_an_old_run_has_the_same_results_and_state(old):
    assert results.whole(old) == PRINTED["results"].replace("val_bpb", "score", 1)
    state = look(old)
    found = state.as_json()
    assert {name for name, value in PRINTED["status"].items() if not same(found[name], value)} == set()
    assert "  gain      407 over the baseline's 2.033863" in lines_of(state)
    assert not state.running and old.path.read_bytes() == OLD.read_bytes()


def test_an_old_run_has_the_same_page(old):
    page = json.loads(Watch(None, old).state())
    assert same(page["facts"], PRINTED["watch"]["facts"]) and same(page["now"], PRINTED["watch"]["now"])
    assert same(page["attempts"], PRINTED["watch"]["attempts"])


def test_an_old_run_has_the_same_report(old, tmp_path):
    text = write_report(look(old), {}, tmp_path / "report", pdf=False).read_text()
    numbers = {number.removesuffix(".000000") for number in re.findall(r"[+-]?\d+(?:\.\d+)?", text)}
    assert {number.removesuffix(".000000") for number in PRINTED["report"]["numbers"]} <= numbers
    assert [line for line in text.splitlines() if re.search(r"^\|.*\| \d+\.\d\d \|", line)] == PRINTED["report"][
        "hours"
    ]


def test_the_error_of_a_gain_counts_the_turns_behind_it(tmp_path):
    """Of an edit that took turns with its champion, the score is the mean of these runs, and not its first one."""
    ledger = Ledger(tmp_path)
    task = {"editable": ["x"], "train": "true", "metric": "score", "direction": "minimize"}
    ledger.append(events.Run(tag="t", base="c1", task=task))
    for number, score in ((1, 1.0), (2, 0.5), (3, 0.5)):
        ledger.append(events.Attempt(number=number, commit=f"c{number}", parent="c1"))
        ledger.append(events.Measured(number=number, seed=42, score=score))
        for turn, code in itertools.product(range(4), (1, 3) if number == 3 else ()):
            ledger.append(events.InTurn(number=code, edit=3, seed=turn, score=0.5))
        runs = 4 if number == 3 else 1
        said = {"status": "keep", "score": score, "standing": 1.0, "standing_runs": runs, "noise": 0.1}
        ledger.append(events.Verdict(number=number, **said))
    errors = [row.error for row in Record(ledger).tried]
    assert errors == [pytest.approx(0.1 * 2**0.5), pytest.approx(0.1 * (1 / 4 + 1 / 4) ** 0.5)]


def test_the_curve_of_champions_goes_forward_and_ends_at_the_last_one(tmp_path):
    """Where several trials run at once, an edit with a higher number may be kept first."""
    ledger = Ledger(tmp_path)
    ledger.append(events.Run(tag="t", base="c1", task={"editable": ["x"], "train": "true", "metric": "score"}))
    for number in (1, 2, 3, 4):
        ledger.append(events.Attempt(number=number, commit=f"c{number}", parent="c1"))
    for number, status, score in ((1, "keep", 9.0), (3, "keep", 8.0), (2, "keep", 7.0), (4, "discard", 8.5)):
        ledger.append(events.Verdict(number=number, status=status, score=score))
    assert Record(ledger).champions == [(1, 9.0), (3, 8.0), (3, 7.0)]


def test_a_run_of_a_newer_version_is_refused(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"event": "run", "form": 3, "time": 1.0, "tag": "night"}\n')
    with pytest.raises(UserError, match="newer version of autoresearch"):
        Ledger(tmp_path)
