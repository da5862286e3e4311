"""`loop.py status` and `loop.py stop`: what another process knows of a run, and how it ends one."""

import fcntl
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import solver, step, wait_for
from test_loop import WAITING, alive

from autoresearch import UserError
from autoresearch.background import ask_to_stop
from autoresearch.record import events
from autoresearch.record.journal import Lock, holder
from autoresearch.record.ledger import Ledger
from autoresearch.runner.identity import identify
from autoresearch.runner.progress import read_progress
from autoresearch.task import OWN_GAME
from autoresearch.views.now import Now, Running, Thinking, read_now
from autoresearch.views.state import Used, finish_of, look, state_of
from autoresearch.views.verdicts import Record

PROGRESS = """import json
(run / 'progress.json').write_text(json.dumps({'clock': time.time(), 'budget': 100, 'loss': 3.25, 'step': 50}))
"""
HEAD, TAIL = WAITING.split("while", 1)
TRAINING = HEAD + PROGRESS + "while" + TAIL  # says how it goes, then waits to be released


@pytest.fixture
def training(toy):
    """A loop that stands in the middle of its second trial, and the folder of that trial."""
    toy.plan_steps(e2=[{"files": {"solver.py": solver(2, before=TRAINING)}, "say": "wait, then two"}], e3=[step(3)])
    process = toy.start(*toy.agent, "--experiments", "3", "--baseline-runs", "1")
    folder = toy.runs / "trials/2/run"
    wait_for(lambda: (folder / "progress.json").exists())
    yield process, folder
    process.kill()
    process.wait()
    process.stdout.close()


def status(toy) -> dict:
    return json.loads(toy.run("status", "--json"))


@pytest.mark.slow
def test_a_run_in_another_process_and_after_its_end(toy, training):
    process, folder = training
    with open(toy.runs / "journal.jsonl", "ab") as journal:  # the loop is about to write a line
        journal.write(b'{"event": "verd')
    before = (toy.runs / "journal.jsonl").read_bytes()
    asked, state = time.time(), status(toy)
    assert (state["running"], state["process"], state["experiments"], state["keep"]) == (True, process.pid, 1, 1)
    (trial,) = state["trials"]
    assert (trial["number"], trial["phase"], trial["budget"], trial["loss"], trial["step"]) == (
        2,
        "train",
        100,
        3.25,
        50,
    )
    assert 0 <= trial["done"] < 60 and 40 < trial["left"] <= 101
    assert state["limits"] == {"experiments": {"used": 1, "allowed": 3}} and state["finish"] > asked
    assert state["champion"]["description"] == "baseline" and state["last"][0]["status"] == "keep"
    shown = toy.run("status")
    assert (
        "running for" in shown
        and "experiment 2: training " in shown
        and "left, loss 3.2500 at step 50" in shown
        and "\x1b" not in shown
    )
    assert (toy.runs / "journal.jsonl").read_bytes() == before  # who only looks repairs nothing
    os.truncate(toy.runs / "journal.jsonl", len(before) - 15)

    (folder / "release").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    state = status(toy)
    assert (state["running"], state["process"], state["trials"], state["experiments"]) == (False, None, [], 3)
    assert (
        state["reason"].startswith("the run has its 3 experiments")
        and state["curve"] == [1, 2, 3]
        and state["gain"] == 2
    )
    assert sum(state["seconds"].values()) == pytest.approx(state["wall"], abs=0.05)  # every second has a kind
    assert state["seconds"]["training"] > 0 and state["seconds"]["agent"] > 0 and state["seconds"]["setup"] > 0
    assert "not running" in toy.run("status") and not (toy.runs / "now.json").exists()


def test_a_run_that_was_killed(toy, training):
    process, _ = training
    process.kill()
    process.wait()
    state = status(toy)
    assert (state["running"], state["trials"]) == (False, []) and "killed" in state["reason"]


def test_no_run(toy, refused):
    assert "there is no run night here" in refused("status")
    assert toy.run("stop", expect=1) == "no loop is running on tag night\n"
    assert not toy.runs.exists()


@pytest.mark.slow
def test_stop_after_the_trial_and_at_once(toy, training):
    process, _ = training
    assert "stops after the running experiment" in toy.run("stop")
    wait_for(lambda: status(toy)["stopping"])
    assert "was asked before: it stops after" in toy.run("stop")  # which changes nothing
    assert process.poll() is None and status(toy)["trials"]
    assert "stops now" in toy.run("stop", "--now")
    process.communicate(timeout=60)
    assert process.returncode == 130 and len(toy.journal("interrupted")) == 1

    again = toy.start(*toy.agent, "--experiments", "3")
    wait_for(lambda: look(Ledger(toy.runs, repair=False)).trials)
    assert "stops now" in toy.run("stop", "--now")
    again.communicate(timeout=60)
    assert again.returncode == 130 and toy.statuses() == ["keep"]


def test_stop_reaches_no_other_process(tmp_path):
    """A lock that names a process which does not hold it: another machine's, or a number that was used again."""
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        (tmp_path / "lock").write_text(str(bystander.pid))
        assert ask_to_stop(tmp_path, "night", now=True) is None  # nobody holds it
        with open(tmp_path / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(UserError, match=f"held by process {bystander.pid}, which is not"):
                ask_to_stop(tmp_path, "night", now=True)
        assert bystander.poll() is None and alive(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


def test_looking_does_not_keep_a_loop_out(tmp_path, monkeypatch):
    """The lock is asked for by holding it for a moment; whoever comes in that moment tries again."""
    look_on = f"""import fcntl
file = open({str(tmp_path / "lock")!r})
fcntl.flock(file, fcntl.LOCK_SH)
print(flush=True)
input()
"""
    (tmp_path / "lock").touch()
    onlooker = subprocess.Popen([sys.executable, "-c", look_on], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    onlooker.stdout.readline()
    monkeypatch.setattr("autoresearch.record.journal.time.sleep", lambda seconds: onlooker.communicate(b"\n"))
    lock = Lock(tmp_path, "night")
    assert onlooker.returncode == 0, "nobody had to wait"
    assert holder(tmp_path) == os.getpid()
    lock.release()
    assert holder(tmp_path) is None


def test_a_loop_that_prepares_after_one_that_was_killed(tmp_path):
    """The killed one's trial does not go on meanwhile. Which of them has started is no question of the clock."""
    ledger = Ledger(tmp_path)
    for event in (
        events.Run(time=1000.0, tag="night", base="0" * 40, task=vars(OWN_GAME)),
        events.from_json({"event": "start", "time": 1000.0, "process": "5 5"}),
        events.Attempt(time=1000.0, number=1, commit="1" * 40, parent="1" * 40, agent="loop"),
        events.Trial(time=1000.0, number=1),
    ):
        ledger._apply(event)
    assert state_of(Record(ledger), Now("5 5", 999.0, {}), 5, 1100.0).seconds["running"] == 100
    set_back = Now("5 5", 1050.0, {})  # the clock, while it prepared
    assert state_of(Record(ledger), set_back, 5, 1100.0).seconds["running"] == 100
    assert state_of(Record(ledger), Now("6 6", 5000.0, {}), 6, 5100.0).wall == 0


# -- files that others may have written


def test_the_present_is_read_back_as_it_was_written(tmp_path):
    trial = Running(3, 1, "experiment 3", 6.0, "score", 7.0, str(tmp_path / "trials/3"))
    now = Now(identify(os.getpid()), 5.0, {"hours": 8}, [trial], [Thinking(4, "sweep", 8.0)], True)
    now.write(tmp_path)
    assert read_now(tmp_path, os.getpid()) == now
    assert read_now(tmp_path, 1) is None  # another process's
    now.trials[0].folder = str(tmp_path / "../elsewhere")
    now.write(tmp_path)
    assert read_now(tmp_path, os.getpid()) is None
    (tmp_path / "now.json").write_text('{"process": 3, "trials": 5}')
    assert read_now(tmp_path, os.getpid()) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        "{}",
        '{"clock": 1}',
        '{"clock": "1", "budget": 5}',
        '{"clock": NaN, "budget": 5}',
        '{"clock": 1, "budget": Infinity}',
        '{"clock": 1, "budget": 0}',
        '{"clock": true, "budget": 5}',
        '{"clock": 1, "budget": 1e400}',
        '{"clock": 1, "budget": ' + "9" * 400 + "}",
        '{"clock": 1, "budget": 5, "loss": "' + "x" * 100_000 + '"}',
        "[" * 50_000,
    ],
)
def test_progress_that_cannot_be_true(tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/progress.json").write_text(text)
    assert read_progress(tmp_path) is None


def test_progress_without_a_loss_that_could_be_shown(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/progress.json").write_text('{"clock": 1, "budget": 5, "loss": NaN, "step": [7]}')
    found = read_progress(tmp_path)
    assert (found.clock, found.budget, found.loss, found.step) == (1, 5, None, None)


def test_progress_that_is_no_plain_file(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "secret.json").write_text('{"clock": 1, "budget": 5}')
    path = tmp_path / "run/progress.json"
    path.symlink_to(tmp_path / "secret.json")
    assert read_progress(tmp_path) is None
    path.unlink()
    os.mkfifo(path)  # whoever waits for its other end waits for ever
    assert read_progress(tmp_path) is None
    path.unlink()
    path.mkdir()
    assert read_progress(tmp_path) is None


def test_when_the_night_will_be_over():
    limits = {
        "experiments": Used(10, 40),
        "hours": Used(1, 8),
        "max-cost": Used(0.0, 5),
    }
    assert finish_of(limits, 1000.0, wall=3600.0) == 1000 + 3 * 3600
    assert finish_of(limits | {"max-tokens": Used(9, 3)}, 1000.0, wall=3600.0) == 1000
    assert finish_of({}, 1000.0, wall=3600.0) is None
