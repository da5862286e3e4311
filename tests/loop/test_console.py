"""What a person sees while the loop runs: a panel on a terminal, lines elsewhere."""

import asyncio
import contextlib
import dataclasses
import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest
import rich.console
from conftest import ROOT, as_at_a_terminal, solver, step, wait_for
from hypothesis import given
from hypothesis import strategies as st
from test_status import TRAINING

from autoresearch.limits import Limits
from autoresearch.record import events
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.runner import SCORE, TRAIN, Phase
from autoresearch.task import OWN_GAME
from autoresearch.text import ESCAPES
from autoresearch.views import report
from autoresearch.views.console import Console
from autoresearch.views.now import Now, Running, Thinking, read_now
from autoresearch.views.panel import clock_time, lines_of, panel_of, sparkline
from autoresearch.views.state import state_of
from autoresearch.views.verdicts import Record
from autoresearch.views.watch import facts_of


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
        """What stands there in the end, as far as a panel needs a terminal: it writes, goes up and clears lines."""
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
        assert self.process.wait(60) == 0, self.text
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
    assert "champion  score 1, experiment 1" in text and "until     3 experiments" in text
    assert "experiment 2: wait, then [red]two" in text  # nobody's markup is obeyed
    (toy.runs / "trials/2/run/release").touch()
    text = screen.finish()
    assert (
        "  keep: 2 is 1 better" in text and "  discard: 0.500000" in text and "3 experiments: 2 keep, 1 discard" in text
    )
    left = "\n".join(screen.screen[10:]).strip()  # below the first screen: the panel is gone, and the cursor back
    assert (
        left.startswith("experiment 1: baseline\n  keep: ") and left.endswith("autoresearch/night") and "─" not in left
    )
    assert len(left.splitlines()) == 10
    assert screen.raw.count("\x1b[?25l") == screen.raw.count("\x1b[?25h") == 1 and "\x1b[?1049" not in screen.raw
    toy.require_whole()


def test_only_lines(toy, terminal):
    screen = terminal("--plain")
    screen.wait_for("experiment 2: wait")
    wait_for((toy.runs / "trials/2/run/started").exists)
    (toy.runs / "trials/2/run/release").touch()
    text = screen.finish()
    assert "\x1b" not in screen.raw and "─" not in text
    lines = text.replace("\r", "").split("\n")
    # two for each experiment, and nothing else
    assert len([line for line in lines if line.startswith(("experiment ", "  keep", "  discard"))]) == 6


@pytest.mark.parametrize(("more", "plain"), [({}, False), ({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, True)], ids=str)
def test_where_only_lines_are_printed(environment, more, plain):
    code = "from autoresearch.views.console import Console; print('plain:', Console().plain)"
    screen = Terminal([sys.executable, "-c", code], ROOT, {**environment, **more})
    assert f"plain: {plain}" in screen.finish()
    screen.close()


# -- the console alone


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    """The record of a run that has begun, with two workers."""
    found = Ledger(tmp_path)
    found.append(events.Run(tag="night", base="0" * 40, task=vars(OWN_GAME)))
    found.append(events.Start(workers=2, setup=1.0))
    return found


class Asked:
    """What the user asked for; a StopRequest without signals."""

    level = 0


def attempt(ledger: Ledger, number: int, description: str = "wider") -> Attempt:
    parent = f"{max(1, number - 1):040x}"
    ledger.append(
        events.Attempt(
            number=number, commit=f"{number:040x}", parent=parent, description=description, agent="sweep", time=1.0
        )
    )
    return ledger.attempts[-1]


def verdict(ledger: Ledger, number: int, status: str, score: float | None) -> None:
    seconds = {"wall": 70, "train": 60}
    ledger.append(events.Verdict(number=number, status=status, score=score, reason="why", seconds=seconds))


def test_what_is_written_down_for_status(ledger, tmp_path, capsys):
    async def night() -> None:
        async with console.follow(ledger, tmp_path, stop, Limits(experiments=9)):
            assert not (tmp_path / "now.json").exists()  # --detach waits for the first screen
            console.first_screen("the title", {"agent": "sweep"})
            assert read_now(tmp_path, os.getpid()).limits == {"experiments": 9}
            view = console.trial(attempt(ledger, 1))
            view(Phase(TRAIN, str(tmp_path / "trials/1")))
            console.thinking([Thinking(2, "sweep", time.time())])
            now = read_now(tmp_path, os.getpid())
            assert [(trial.number, trial.phase, trial.worker) for trial in now.trials] == [(1, TRAIN, 0)]
            assert now.trials[0].log == tmp_path / "trials/1/train.log" and now.thinking[0].agent == "sweep"
            other = console.trial(attempt(ledger, 2), "again, seed 43", seat=1)
            other(Phase(TRAIN, str(tmp_path / "trials/2-again")))
            view(Phase(SCORE, str(tmp_path / "trials/1")))
            console.thinking([])
            now = read_now(tmp_path, os.getpid())
            assert [(trial.label, trial.phase) for trial in now.trials] == [
                ("experiment 1", SCORE),
                ("experiment 2, again, seed 43", TRAIN),
            ]
            assert now.thinking == [] and not now.stopping
            stop.level = 1
            console.line("stopping")
            assert read_now(tmp_path, os.getpid()).stopping
            verdict(ledger, 1, "keep", 1.0)
            console.verdict(ledger.attempts[0], 70.0)
            other.__exit__()
            assert read_now(tmp_path, os.getpid()).trials == []

    console, stop = Console(), Asked()
    assert console.plain  # pytest's output is no terminal
    asyncio.run(night())
    assert not (tmp_path / "now.json").exists()
    assert capsys.readouterr().out.splitlines() == [
        "the title",
        "  agent     sweep",
        "experiment 1: wider",
        "experiment 2: again, seed 43",
        "stopping",
        "experiment 1: keep: why  (70 s)",
    ]


class Screen(io.StringIO):
    """What was drawn so far. Can be awaited."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = asyncio.Event()

    def write(self, text: str) -> int:
        self.drawn.set()
        return super().write(text)

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.getvalue())

    async def shows(self, words: str) -> None:
        async with asyncio.timeout(20):
            while words not in self.text:
                self.drawn.clear()
                await self.drawn.wait()


def on_a_terminal() -> Console:
    console = Console()
    console.plain = False
    console._console = rich.console.Console(file=Screen(), force_terminal=True, width=100, height=40)
    return console


def test_what_a_trial_printed_does_not_reach_the_terminal_as_it_is(capsys):
    Console(plain=True).line("a log\x1b]0;owned\x07 says\x1b[2J this\x08\n\tin two lines")
    assert capsys.readouterr().out == "a log says this\n\tin two lines\n"


def test_the_panel_is_redrawn_by_itself(ledger, tmp_path):
    """While nothing happens the panel still says how far the training is, and now.json that the user asked to stop."""

    async def night() -> None:
        async with console.follow(ledger, tmp_path, stop):
            view = console.trial(attempt(ledger, 1))
            view(Phase(TRAIN, str(tmp_path)))
            (tmp_path / "run").mkdir()
            (tmp_path / "run/progress.json").write_text(json.dumps({"clock": time.time(), "budget": 60, "loss": 3.25}))
            await screen.shows("loss 3.2500")
            stop.level = 1
            await screen.shows("stopping after the running experiment")
            assert read_now(tmp_path, os.getpid()).stopping

    console, stop = on_a_terminal(), Asked()
    screen = console._console.file
    asyncio.run(night())
    assert "experiment 1: starting up" in screen.text and "experiment 1: training ━" in screen.text


def test_many_at_once(ledger, tmp_path):
    """No line is lost, now.json is whole at every moment, and a drawing does not count all verdicts anew."""
    console = on_a_terminal()
    attempts = [attempt(ledger, number) for number in range(1, 5)]

    async def work(worker: int) -> None:
        for turn in range(30):
            with console.trial(attempts[worker], f"turn {turn}", seat=worker) as view:
                view(Phase(TRAIN, str(tmp_path / "trials")))
                assert worker in [trial.worker for trial in read_now(tmp_path, os.getpid()).trials]
                await asyncio.sleep(0)

    async def night() -> None:
        async with console.follow(ledger, tmp_path, Asked()):
            console.thinking([Thinking(5, "sweep", time.time())])
            record = console._followed.record
            await asyncio.gather(*map(work, range(4)))
            assert record is not None and console._followed.record is record  # the journal has not grown
            assert read_now(tmp_path, os.getpid()).thinking[0].number == 5

    asyncio.run(night())
    text = console._console.file.text
    assert all(f"experiment {number}: turn {turn}\n" in text for number in range(1, 5) for turn in range(30))


def test_an_error_is_told_and_a_cancelled_night_is_not(ledger, tmp_path):
    told: list[dict] = []

    class Told:
        send = staticmethod(told.append)

    async def night(error: BaseException) -> None:
        async with Console().follow(ledger, tmp_path, Asked(), listeners=[Told()]):
            raise error

    for error in (ValueError("it broke"), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            asyncio.run(night(error))
    (fault,) = told
    assert (fault["event"], fault["run"], fault["metric"], fault["reason"]) == ("fault", "night", "val_bpb", "it broke")


# -- what is drawn


def test_a_state_with_two_workers_and_an_agent_that_is_away(ledger):
    for number, (status, score) in enumerate([("keep", 1.4), ("discard", 1.5), ("crash", None), ("keep", 1.3)], 1):
        attempt(ledger, number, "x" * 500 if number == 3 else "[bold]wider[/]")
        verdict(ledger, number, status, score)
    ledger.append(events.Waited(reason="no network", seconds=200.0, agent="claude-api"))
    state = state_of(Record(ledger), None, 5, time.time())
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


def test_seats_are_shown_where_there_are_several(tmp_path):
    """Fails where a view does not say which seats there are, what runs on each and how busy it was; or says it of one
    machine with one seat."""
    moment = [1000.0]
    ledger = Ledger(tmp_path)

    def happened(event: events.Event) -> None:
        ledger._apply(dataclasses.replace(event, time=moment[0]))

    def seats(*numbers: int) -> events.Seats:
        return events.Seats(seats=[{"number": number, "node": f"node{number}", "kind": "H100"} for number in numbers])

    happened(events.Run(tag="night", base="0" * 40, task=vars(OWN_GAME)))
    happened(events.Start(workers=1, setup=0.0))
    assert not state_of(Record(ledger), None, 5, 1000.0).has_seats
    happened(events.Start(workers=20, setup=0.0, kind="H100", process="5 5"))
    happened(seats(*range(20)))
    for number in (1, 2):
        happened(events.Attempt(number=number, commit=f"{number}" * 40, parent="1" * 40))
        happened(events.Trial(number=number, worker=2 * number, node=f"node{2 * number}"))
    moment[0] += 1800
    happened(events.Verdict(number=1, status="keep", score=1.4, seconds={"train": 1800.0}))
    now = Now("5 5", 1000.0, {}, [Running(2, 4, "experiment 2", 1000.0, TRAIN, 2700.0, str(tmp_path), "node4")])
    state = state_of(Record(ledger), now, 5, 4600.0)
    lines = lines_of(state)
    assert "  seats     20 of H100 on 20 nodes, 8% busy" in lines  # a half, and a whole hour, of twenty
    assert "  now       seat 4, node4, 100% busy: experiment 2: starting up, 32 min" in lines
    assert (
        "            seat 2, node2, 50% busy: idle" in lines and "            and 5 seats more, 0 of them busy" in lines
    )
    said = {seat["number"]: seat for seat in state.as_json()["seats"]}
    assert (said[4]["experiment"], said[4]["busy"], said[4]["kind"]) == (2, 1.0, "H100") and not said[3]["trials"]
    assert facts_of(state)["seats"] == "20 of H100 on 20 nodes, 8% busy" and facts_of(state)["per_hour"] == 1
    assert any("| H100 | 20 | 20 | 20.00 h | 8% | 1 |" in part for part in report.seats(state))
    happened(seats(4))  # and one seat of a cluster is shown as well
    assert "  seats     1 of H100 on 1 node, 14% busy" in lines_of(state_of(Record(ledger), now, 5, 4600.0))


def test_before_anything_was_done(ledger):
    assert "nothing done yet" in "\n".join(lines_of(state_of(Record(ledger), None, None, time.time())))
    assert "between two steps" in "\n".join(lines_of(state_of(Record(ledger), None, 5, time.time())))


def test_status_is_there_at_once():
    """What it imports: nothing that takes long, and that it has no use for."""
    words = ["pandas", "matplotlib", "anthropic", "scipy", "torch", "plotly", "numpy"]
    code = "import sys, autoresearch.views.console, autoresearch.background\n"
    code += f"print([name for name in {words} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


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


def test_of_many_proposals_in_the_making_the_first_ones_have_a_row(ledger):
    now = Now("process", 0.0, {}, thinking=[Thinking(number, "model", 990.0) for number in range(2, 8)])
    state = state_of(Record(ledger), now, 5, 1000.0)
    text = "\n".join(lines_of(state))
    assert text.count("model is thinking, 10 s") == 3 and "3 more proposals in progress" in text
    assert state.thinking.number == 2 and len(state.in_the_making) == 6
