"""What a person sees while the loop runs: a panel on a terminal, lines elsewhere."""

import contextlib
import dataclasses
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
import types

import pytest
import rich.console
from conftest import ROOT, as_at_a_terminal, solver, step, wait_for
from hypothesis import given
from hypothesis import strategies as st
from test_status import TRAINING

from autoresearch import console as console_module
from autoresearch.background import ESCAPES
from autoresearch.console import Console, clock_time, lines_of, panel_of, sparkline
from autoresearch.ledger import Attempt, Ledger
from autoresearch.status import read_now, state_of
from autoresearch.task import OWN_GAME


def own_the_terminal() -> None:
    as_at_a_terminal()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A program on a terminal of its own, which can be closed."""

    def __init__(self, words: list[str], folder, environment: dict[str, str]) -> None:
        self.end, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            env={
                "TERM": "xterm-256color",
                "COLUMNS": "120",
                "LINES": "40",
                **{name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")},
            },
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=own_the_terminal,
        )
        os.close(other)
        self.raw = ""

    def read(self) -> bool:
        """Take what there is. False at the end."""
        try:
            if select.select([self.end], [], [], 0.05)[0]:
                self.raw += os.read(self.end, 1 << 16).decode(errors="replace")
        except OSError:
            return False
        return True

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.raw)

    @property
    def screen(self) -> list[str]:
        """What stands there in the end: as much of a terminal as the panel needs, which writes, goes up and clears lines."""
        lines, row, column = [""], 0, 0
        for found in re.finditer(r"\x1b\[(\d*)([A-Za-z])|\x1b\[\?\d+[hl]|(\r)|(\n)|([^\x1b])", self.raw):
            number, letter, carriage, newline, character = found.groups()
            if letter == "A":
                row = max(0, row - int(number or 1))
            elif letter == "K":
                lines[row] = ""
            elif carriage:
                column = 0
            elif newline:
                row += 1
                lines += [""] * (row == len(lines))
            elif character:
                lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
                column += 1
        return lines

    def wait_for(self, word: str) -> None:
        try:
            wait_for(lambda: (self.read() and word in self.text) or word in self.text)
        except AssertionError:
            raise AssertionError(f"{word!r} did not come: {self.text[-3000:]}") from None

    def finish(self) -> str:
        while self.read() and self.process.poll() is None:
            pass
        while self.read() and select.select([self.end], [], [], 0)[0]:
            pass
        assert self.process.wait(10) == 0, self.text
        return self.text

    def close(self) -> None:
        os.close(self.end)


@pytest.fixture
def terminal(toy):
    """Starts the loop on the toy in a terminal. Its second trial waits to be released."""
    toy.plan_steps(
        e2=[{"files": {"solver.py": solver(2, before=TRAINING)}, "say": "wait, then [red]two"}], e3=[step(0.5)]
    )
    open_ones = []

    def start(*arguments, **more) -> Terminal:
        words = [
            sys.executable,
            str(ROOT / "loop.py"),
            *toy.agent,
            "--experiments",
            "3",
            "--baseline-runs",
            "1",
            "--tag",
            toy.tag,
            *arguments,
        ]
        open_ones.append(Terminal(words, toy.folder, {**toy.environment, **more}))
        return open_ones[-1]

    yield start
    for one in open_ones:
        one.process.kill()
        one.process.wait()
        with contextlib.suppress(OSError):
            one.close()


def test_a_panel_below_the_lines(toy, terminal):
    screen = terminal()
    screen.wait_for("loss 3.2500 at step 50")
    text = screen.text
    assert (
        re.search(r"experiment 2: training ━+ \d+ of 100 s, .* left, loss", text)
        and "autoresearch: run night, running for" in text
    )
    assert "champion  score 1.000000, experiment 1" in text and "until     3 experiments" in text
    assert "experiment 2: wait, then [red]two" in text  # nobody's markup is obeyed
    (toy.runs / "trials/2/run/release").touch()
    text = screen.finish()
    assert (
        "  keep: 2.000000 is 1.000000 better" in text
        and "  discard: 0.500000" in text
        and "3 experiments: 2 keep, 1 discard" in text
    )
    left = "\n".join(screen.screen[10:]).strip()  # below the first screen: the panel is gone, and the cursor back
    assert (
        left.startswith("experiment 1: baseline\n  keep: ") and left.endswith("autoresearch/night") and "─" not in left
    )
    assert len(left.splitlines()) == 10
    assert screen.raw.count("\x1b[?25l") == screen.raw.count("\x1b[?25h") == 1 and "\x1b[?1049" not in screen.raw
    toy.require_whole()


@pytest.mark.parametrize(("arguments", "more"), [(["--plain"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})])
def test_only_lines(toy, terminal, arguments, more):
    screen = terminal(*arguments, **more)
    screen.wait_for("experiment 2: wait")
    (toy.runs / "trials/2/run").mkdir(parents=True, exist_ok=True)
    wait_for((toy.runs / "trials/2/run/started").exists)
    (toy.runs / "trials/2/run/release").touch()
    text = screen.finish()
    assert "\x1b" not in screen.raw and "─" not in text
    events = [
        line for line in text.replace("\r", "").split("\n") if line.startswith(("experiment ", "  keep", "  discard"))
    ]
    assert len(events) == 6  # two for each experiment, and nothing else


# -- the console alone


@pytest.fixture
def lab(tmp_path):
    """As much of a run as the console asks for."""
    ledger = Ledger(tmp_path)
    ledger.append("run", tag="night", base="0" * 40, task=dataclasses.asdict(OWN_GAME))
    ledger.append("start", workers=2, setup=1.0)
    return types.SimpleNamespace(ledger=ledger, folder=tmp_path, task=OWN_GAME, stop=types.SimpleNamespace(level=0))


def attempt(lab, number: int, description: str = "wider") -> Attempt:
    lab.ledger.append(
        "attempt", number=number, commit=f"{number:040x}", parent="0" * 40, description=description, agent="sweep"
    )
    return lab.ledger.attempts[-1]


def verdict(lab, number: int, status: str, score: float | None) -> None:
    lab.ledger.append(
        "verdict",
        number=number,
        status=status,
        score=score,
        memory_gb=0.0,
        reason="why",
        figures={},
        seconds={"wall": 70, "train": 60},
    )


def test_what_is_written_down_for_status(lab, capsys):
    console = Console()
    assert console.plain  # pytest's output is no terminal
    with console.following(lab):
        view = console.trial(attempt(lab, 1), lab.folder / "trials/1", 60)
        view("train")
        console.proposing(2, "sweep")
        now = read_now(lab.folder, os.getpid())
        assert [(trial.number, trial.phase, trial.worker) for trial in now.trials] == [
            (1, "train", 0)
        ] and now.thinking.agent == "sweep"
        other = console.trial(attempt(lab, 2), lab.folder / "trials/2", 60, "again, seed 43", worker=1)
        other("train")
        view("score")
        console.stop_bar()
        now = read_now(lab.folder, os.getpid())
        assert [(trial.label, trial.phase) for trial in now.trials] == [
            ("experiment 1", "score"),
            ("experiment 2, again, seed 43", "train"),
        ]
        assert now.thinking is None
        verdict(lab, 1, "keep", 1.0)
        console.verdict(lab.ledger.attempts[0], 70.0)
        other.close()
        assert read_now(lab.folder, os.getpid()).trials == []
    assert not (lab.folder / "now.json").exists()
    assert capsys.readouterr().out.splitlines() == [
        "experiment 1: wider",
        "experiment 2: again, seed 43",
        "experiment 1: keep: why  (70 s)",
    ]


def on_a_terminal() -> Console:
    console = Console()
    console.plain, console._console = (
        False,
        rich.console.Console(file=io.StringIO(), force_terminal=True, width=100, height=40),
    )
    return console


def test_ticks_cost_next_to_nothing(lab, monkeypatch):
    looks = []
    monkeypatch.setattr(console_module, "read_progress", lambda folder: looks.append(folder))
    console = on_a_terminal()
    with console.following(lab):
        view = console.trial(attempt(lab, 1), lab.folder / "trials/1", 60)
        view("train")
        began = time.monotonic()
        for _ in range(1000):
            view(None)
        assert len(looks) <= 2 + (time.monotonic() - began)


def test_many_threads_and_a_signal_among_them(lab):
    """Nothing is lost, nothing hangs, and what stands in now.json is whole at every moment."""
    console = on_a_terminal()
    attempts = [attempt(lab, number) for number in range(1, 5)]
    done = threading.Event()

    def work(worker: int) -> None:
        for turn in range(30):
            view = console.trial(attempts[worker], lab.folder / "trials", 60, f"turn {turn}", worker=worker)
            view("train")
            view(None)
            view.close()

    def look() -> None:
        while not done.is_set():
            if (lab.folder / "now.json").exists():
                assert read_now(lab.folder, os.getpid()) is not None
                seen.append(1)

    seen: list[int] = []
    with console.following(lab):
        console.proposing(5, "sweep")
        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in range(4)]
        looker = threading.Thread(target=look, daemon=True)
        for thread in (*threads, looker):
            thread.start()
        for number in range(50):
            with console._lock:  # where a signal may strike; its handler prints
                console.line(f"signal {number}")
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        done.set()
        looker.join(30)
    assert seen
    text = ESCAPES.sub("", console._console.file.getvalue())
    assert all(f"experiment {number}: turn {turn}\n" in text for number in range(1, 5) for turn in range(30))
    assert all(f"signal {number}\n" in text for number in range(50))


# -- what is drawn


def test_a_state_with_two_workers_and_an_agent_that_is_away(lab):
    for number, (status, score) in enumerate([("keep", 1.4), ("discard", 1.5), ("crash", None), ("keep", 1.3)], 1):
        attempt(lab, number, "x" * 500 if number == 3 else "[bold]wider[/]")
        verdict(lab, number, status, score)
    lab.ledger.append("waited", reason="no network", seconds=200.0, agent="claude-api")
    state = state_of(lab.ledger, None, 5, time.time())
    text = "\n".join(lines_of(state))
    assert (
        "claude-api cannot be reached; next call in 3 min" in text
        and "gain      0.100000 over the baseline's 1.400000" in text
    )
    assert "4 experiments: 2 keep, 1 discard, 1 crash; 33% of the changes kept" in text and "of 2 workers: " in text
    assert "experiment 4, 0000000: [bold]wider[/]" in text and "crash   xxxx" in text
    screen = rich.console.Console(file=io.StringIO(), width=90)
    screen.print(panel_of(state, 90, 40))
    drawn = screen.file.getvalue().splitlines()
    assert (
        len({len(line) for line in drawn}) == 1
        and "stop after the running experiment" in drawn[-1]
        and "[bold]wider[/]" in "\n".join(drawn)
    )


def test_before_anything_was_done(lab):
    assert "nothing done yet" in "\n".join(lines_of(state_of(lab.ledger, None, None, time.time())))
    assert "between two steps" in "\n".join(lines_of(state_of(lab.ledger, None, 5, time.time())))


def test_a_curve():
    assert sparkline([0.0, 7.0, 15.0]) == ["  █", "▁██"] and sparkline([3.0, 3.0]) == ["  ", "▁▁"]


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=80), st.integers(1, 3))
def test_any_curve(values, lines):
    drawn = sparkline(values, lines)
    assert len(drawn) == lines and {len(line) for line in drawn} == {len(values)} and drawn[-1].strip()


def test_when_it_ends():
    noon = time.mktime((2026, 11, 21, 12, 0, 0, 0, 0, -1))
    assert (
        clock_time(noon + 3600, noon) == "13:00"
        and clock_time(noon + 86400, noon) == "Sun 12:00"
        and clock_time(noon + 1e18, noon)[:2] == "21"
    )
