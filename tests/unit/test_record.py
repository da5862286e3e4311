"""What is written down: the columns of results.tsv, the figures read from a log."""

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.ledger import Attempt, one_line
from autoresearch.task import OWN_GAME, code_lines, read_agenda, read_task
from autoresearch.trial import last_word, read_figures


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
    assert attempt.row() == "0123456\t0.997912\t44.0\tkeep\twider mlp\n"
    crash = Attempt(4, "abcdef0123456789", "0" * 40, "boom", "sweep", status="crash")
    assert crash.row() == "abcdef0\t0.000000\t0.0\tcrash\tboom\n"


def test_figures_of_a_log(tmp_path):
    log = tmp_path / "train.log"
    log.write_bytes(
        b"\xff\x00 noise\nval_bpb: 9\nstep 1 val_bpb: 3\n---\nval_bpb:          1.250000\nmfu_percent: n/a\ndepth: 8\n"
    )
    assert read_figures(log) == {"val_bpb": 1.25, "depth": 8.0}
    assert read_figures(tmp_path / "none") == {}


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
