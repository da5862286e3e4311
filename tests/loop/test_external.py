"""An external agent: `loop.py start` and `loop.py try`, on the toy task and, as program.md says, on the real game."""

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys

import psutil
import pytest
from conftest import ROOT, git, solver, wait_for
from test_end_to_end import Game
from test_loop import WAITING

from autoresearch.record.journal import holder


def edit(toy, value: object, before: str = "") -> None:
    (toy.runs / "worktree/solver.py").write_text(solver(value, before))


def attempt(toy, *arguments: str, expect: int, **more) -> dict:
    process = toy.start("try", *arguments, "--json", **more)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == expect, output
    return json.loads(output.splitlines()[-1])


def test_keep_discard_crash_refused(toy, refused):
    assert "begin one: uv run loop.py start" in refused("try", "-m", "x")
    said = toy.run("start")
    assert "edit      .autoresearch/night/worktree/solver.py" in said and 'loop.py try -m "what and why"' in said
    edit(toy, 5)
    kept = attempt(
        toy,
        "-m",
        "raise it",
        "--category",
        "Value",
        "--hypothesis",
        "more is more",
        "--predicted",
        "3",
        "--lesson",
        "larger is better",
        expect=0,
    )
    assert (kept["verdict"], kept["score"], kept["champion_before"], kept["champion"]) == ("keep", 5.0, 1.0, 5.0)
    assert kept["champion_commit"] == toy.tip()
    entry = toy.journal("attempt")[1]
    assert (entry["agent"], entry["category"], entry["hypothesis"], entry["predicted"]) == (
        "external",
        "value",
        "more is more",
        3.0,
    )
    assert "larger is better" in (toy.folder / ".autoresearch/lessons.md").read_text()
    edit(toy, 4)
    assert attempt(toy, "-m", "lower it", expect=1)["reason"] == "4 is 1 worse than the champion's 5"
    assert (
        git(toy.runs / "worktree", "show", "HEAD:solver.py") == solver(5).strip()
    )  # which is where the next edit begins
    edit(toy, "1 / 0")
    crash = attempt(toy, "-m", "divide", expect=3)
    assert "ZeroDivisionError" in crash["reason"] and "Traceback" in crash["log_tail"]
    edit(toy, "(")
    refused = attempt(toy, "-m", "half an edit", expect=4)
    assert refused["verdict"] == "refused" and "does not parse" in refused["reason"]
    assert (toy.runs / "worktree/solver.py").read_text() == solver("(")  # it stays, to be corrected
    edit(toy, 5, "# a comment\n")
    assert "only comments or layout changed" in attempt(toy, "-m", "comment", expect=4)["reason"]
    edit(toy, 6)
    text = toy.run("try", "-m", "again")
    assert re.search(r"^---\nscore: +6\nexperiment: +5\nverdict: +keep$", text, re.MULTILINE)
    assert toy.statuses() == ["keep", "keep", "discard", "crash", "keep"]
    git(toy.runs / "worktree", "checkout", "HEAD")
    toy.require_whole()
    toy.run_agent(5)  # a night may go on from there


@pytest.mark.slow
def test_the_edit_in_the_wrong_place_is_said_to_be_there(toy):
    toy.run("start")
    toy.write("solver.py", solver(5))
    reason = attempt(toy, "-m", "raise it", expect=4)["reason"]
    assert (
        "you edited solver.py in your checkout, which is not what is tried: edit .autoresearch/night/worktree/solver.py"
        in reason
    )


@pytest.mark.slow
def test_from_inside_the_worktree(toy):
    toy.run("start")
    edit(toy, 5)
    process = subprocess.run(
        [sys.executable, ROOT / "loop.py", "try", "-m", "from inside", "--tag", "night"],
        cwd=toy.runs / "worktree",
        env=toy.environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert toy.statuses() == ["keep", "keep"] and not (toy.runs / "worktree/.autoresearch").exists()


@pytest.mark.parametrize(("signals", "taken_back"), [((15, 9), True), ((9, 15), False)])
@pytest.mark.slow
def test_a_try_that_is_ended_in_its_middle(toy, signals, taken_back):
    """With its own process. The same edit goes on under its number; another one is another experiment."""
    toy.run("start")
    edit(toy, 5, WAITING)
    for tries, number in enumerate(signals, 1):
        process = toy.start("try", "-m", "slow")
        wait_for(lambda tries=tries: len(toy.journal("trial")) == 1 + tries)
        os.kill(holder(toy.runs), number)
        process.communicate(timeout=60)
        assert process.returncode == 130 and "was interrupted" in toy.run("wait", expect=130)
        assert [entry["number"] for entry in toy.journal("attempt")] == [1, 2] and len(toy.journal("verdict")) == 1
        if taken_back:
            git(toy.runs / "worktree", "checkout", "--quiet", git(toy.folder, "rev-parse", "autoresearch/night"))
    edit(toy, 6)
    assert attempt(toy, "-m", "another", expect=0)["number"] == 3
    assert toy.statuses() == ["keep", "crash", "keep"]
    assert "another edit was tried instead" in toy.journal("verdict")[1]["reason"]
    toy.require_whole()


@pytest.mark.slow
def test_what_a_person_accepted_outlasts_the_agent_s_next_edit(toy):
    """The agent has made it already, and knows nothing of the decision. Then the accepted one has its turn."""
    toy.run("start")
    edit(toy, 5)
    assert attempt(toy, "-m", "too good", expect=0)["number"] == 2
    toy.run("drop", "2")
    record = (toy.runs / "journal.jsonl").read_text()  # as of a run in which it was held back
    held = record.replace('"status": "keep", "score": 5.0', '"status": "discard", "score": 5.0')
    held = re.sub(r'"reason": "5 is 4 better[^"]*"', '"reason": "held back: it gains 4"', held)
    lines = [line for line in held.splitlines(keepends=True) if '"event": "dropped"' not in line]
    (toy.runs / "journal.jsonl").write_text("".join(lines))
    assert "runs again as experiment 3" in toy.run("accept", "2")
    edit(toy, 0)
    assert attempt(toy, "-m", "lower it", expect=1)["number"] == 4
    assert [entry["number"] for entry in toy.journal("verdict")] == [1, 2, 4]
    said = attempt(toy, "-m", "nothing new", expect=0)
    assert (said["number"], said["verdict"], said["score"]) == (3, "keep", 5.0)


def started(toy, number: int) -> bool:
    return (toy.runs / f"trials/{number}/run/started").exists()


def release(toy, number: int) -> None:
    (toy.runs / f"trials/{number}/run/release").touch()


@pytest.mark.slow
def test_the_trial_of_a_caller_that_is_killed_goes_on(toy):
    """With all its children, as a coding agent ends a tool call that took too long."""
    toy.run("start")
    for number, (killed, value) in enumerate({signal.SIGKILL: 5, signal.SIGTERM: 4, signal.SIGHUP: 6}.items(), 2):
        edit(toy, value, WAITING)
        process = toy.start("try", "-m", "slow")
        wait_for(lambda number=number: started(toy, number))
        assert not psutil.Process(process.pid).children()
        process.send_signal(killed)
        process.communicate(timeout=60)
        assert f"experiment {number}: still starting up" in toy.run("wait", "--for", "0", expect=5)
        release(toy, number)
        code = 1 if value == 4 else 0
        said = json.loads(toy.run("wait", "--json", expect=code))
        assert (said["number"], said["score"]) == (number, value)
    assert toy.run("wait", "3", expect=1).startswith("---\nscore:             4\n")  # of an earlier one, too
    assert toy.statuses() == ["keep", "keep", "discard", "keep"]
    toy.require_whole()


def test_a_run_that_somebody_elsewhere_works_on(toy, refused):
    """In a container, say, with process numbers of its own: then its number is that of another process here."""
    toy.run("start")
    edit(toy, 5)
    with open(toy.runs / "lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write("1")
        lock.flush()
        for command in (["try", "-m", "x"], ["start"]):
            assert "a loop is already running on tag night (process 1)" in refused(*command)


@pytest.mark.slow
def test_in_the_background(toy, refused):
    """The number at once, the same edit again, another one meanwhile, and a refusal."""
    toy.run("start", "--background")
    assert "verdict:           keep" in toy.run("wait")
    edit(toy, 5, WAITING)
    said = toy.run("try", "-m", "slow", "--background")
    assert "experiment 2: still " in said and "wait --tag night --for 100" in said
    said = json.loads(toy.run("try", "-m", "slow", "--background", "--json").splitlines()[-1])
    assert (said["number"], said["verdict"]) == (2, "running")
    text = (toy.runs / "worktree/solver.py").read_text()
    edit(toy, 7)
    assert "another edit is already being tried on tag night" in refused("try", "-m", "me too")
    (toy.runs / "worktree/solver.py").write_text(text)
    process = toy.start("try", "-m", "slow")
    assert "this edit is already being tried, as experiment 2" in process.stdout.readline()
    release(toy, 2)
    assert "verdict:           keep" in process.communicate(timeout=60)[0] and process.returncode == 0
    edit(toy, "(")
    assert "does not parse" in toy.run("try", "-m", "half", "--background", expect=4)
    assert "does not parse" in toy.run("wait", expect=4)
    assert "has no experiment 9" in refused("wait", "9")
    edit(toy, 6)
    toy.run("try", "-m", "more")
    toy.require_whole()


@pytest.mark.slow
def test_ctrl_c_stops_after_the_trial_and_twice_at_once(toy):
    toy.run("start")
    edit(toy, 5, WAITING)
    process = toy.start("try", "-m", "slow")
    wait_for(lambda: started(toy, 2))
    process.send_signal(signal.SIGINT)
    assert any("stopping after the running experiment" in line for line in process.stdout)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.4)  # two that are closer are one
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and holder(toy.runs) is None
    (toy.runs / "trials/2/run/started").unlink()
    process = toy.start("try", "-m", "slow")
    wait_for(lambda: started(toy, 2))
    process.send_signal(signal.SIGINT)
    release(toy, 2)
    assert "verdict:           keep" in process.communicate(timeout=60)[0] and process.returncode == 0


def commands_of(program: str) -> list[list[str]]:
    """The commands that program.md shows, in order, without `uv run`."""
    return [
        shlex.split(line.strip().removeprefix("uv run "), comments=True)
        for line in program.splitlines()
        if line.startswith("    uv run loop.py")
    ]


@pytest.mark.slow
def test_an_external_agent_does_as_program_md_tells_it(tmp_path, environment):
    """An agent of a few lines does what program.md says: start, then edit, try and wait, three times. The real game."""
    game = Game(tmp_path / "clone", environment, small=True)
    start, wait, attempt, again = commands_of((game.folder / "program.md").read_text())
    assert start == ["loop.py", "start", "--background"] and attempt[:3] == ["loop.py", "try", "--background"]
    assert wait == again == ["loop.py", "wait", "--for", "100"]

    def verdict_of(command: list[str]) -> tuple[int, str]:
        code, said = do(command)
        while code in (0, 5) and "verdict:" not in said:
            code, said = do([*wait[:-1], "5"])
        return code, said

    def do(command: list[str]) -> tuple[int, str]:
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=game.folder,
            env=game.environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=240,
        )
        return ended.returncode, ended.stdout

    code, said = verdict_of([*start, "--tag", "night"])
    assert code == 0
    train = game.folder / re.search(r"^edit next: +(.+)$", said, re.MULTILINE)[1]
    champion, codes = train.read_text(), []
    for old, new in [
        ("3e-3", "6e-3"),
        ("def build_model(", "def built_model("),
        ("nn.GELU()", "nn.ReLU()"),
    ]:
        source = train.read_text()
        assert old in source
        train.write_text(source.replace(old, new, 1))
        code, said = verdict_of(attempt)
        verdict = re.search(r"^verdict: +(\w+)$", said, re.MULTILINE)[1]
        assert {"keep": 0, "discard": 1, "refused": 4}[verdict] == code, said
        codes.append(code)
        if code == 4:  # it stays, to be corrected
            assert "it must define build_model()" in said and train.read_text() == source.replace(old, new, 1)
            train.write_text(source)
        else:
            champion = source.replace(old, new, 1) if code == 0 else champion
            assert train.read_text() == champion
    assert codes.count(4) == 1 and len(game.rows()) == 3
    train.write_text(champion.replace("6e-3", "4e-3").replace("3e-3", "4e-3"))
    trying = game.start("try", "-m", "a rate in between")
    wait_for(lambda: (game.runs / "trials/preflight/process").exists())
    train.write_text(later := f"import os\n{champion}")
    said, _ = trying.communicate(timeout=240)
    assert trying.returncode == 4 and "train.py changed while it was checked" in said and train.read_text() == later
    train.write_text(champion)
    game.require_whole()


# -- whatever happens, the edit of an external agent stays until it has a verdict


def test_ended_before_it_began(toy):
    toy.run("start")
    edit(toy, "(")
    assert "number" not in attempt(toy, "-m", "half an edit", expect=4)
    edit(toy, 5)
    describe = "import os, sys, time\nopen(sys.argv[1], 'w')\ntime.sleep(600)\n"
    (toy.folder.parent / "describe.py").write_text(describe)
    journal = (toy.runs / "journal.jsonl").read_text()
    task = toy.journal("run")[0]["task"]
    slow = f"{sys.executable} {toy.folder.parent}/describe.py {toy.folder.parent}/here"
    program = (toy.folder / "program.md").read_text()
    toy.write("program.md", program.replace("  time_limit", f"  describe: {slow}\n  time_limit"))
    (toy.runs / "journal.jsonl").write_text(journal.replace(json.dumps(task), json.dumps({**task, "describe": slow})))
    process = toy.start("try", "-m", "raise")
    wait_for(lambda: (toy.folder.parent / "here").exists())
    assert "still being prepared" in toy.run("wait", "2", "--for", "0", expect=5)  # not the refusal before it
    os.kill(holder(toy.runs), 15)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and (toy.runs / "worktree/solver.py").read_text() == solver(5), said


@pytest.mark.slow
def test_a_lock_that_git_left_behind(toy):
    toy.run("start")
    edit(toy, 5)
    lock = toy.folder / git(toy.runs / "worktree", "rev-parse", "--git-dir") / "index.lock"
    lock.write_text("")
    assert "index.lock" in attempt(toy, "-m", "raise", expect=4)["reason"]
    assert (toy.runs / "worktree/solver.py").read_text() == solver(5)
    lock.unlink()
    assert attempt(toy, "-m", "raise", expect=0)["score"] == 5


@pytest.mark.slow
def test_killed_between_its_verdict_and_the_reset(toy):
    toy.run("start")
    edit(toy, -5)
    attempt(toy, "-m", "lower", expect=1)
    edit(toy, -5)  # as a kill before the reset leaves it
    toy.run("start")
    assert (toy.runs / "worktree/solver.py").read_text() == solver(1)
    edit(toy, -5)  # or as an agent leaves it that tries the same edit again
    again = attempt(toy, "-m", "lower", expect=4)["reason"]
    assert again == "the same edit was tried before, as experiment 2 (discard); the champion is restored"
    assert (toy.runs / "worktree/solver.py").read_text() == solver(1)


@pytest.mark.slow
def test_verify_leaves_it_alone(toy):
    toy.run("start")
    edit(toy, 5)
    attempt(toy, "-m", "raise", expect=0)
    edit(toy, 6)
    toy.run("verify", "--runs", "2")
    assert (toy.runs / "worktree/solver.py").read_text() == solver(6)


@pytest.mark.slow
def test_start_keeps_the_rule_and_the_seed_of_its_run(toy):
    toy.run("start", "--keep-rule", "strict", "--seed", "7")
    toy.run("start")
    assert [entry["keep_rule"] for entry in toy.journal("start")] == ["strict", "strict"] and toy.journal("measured")[
        0
    ]["seed"] == 7
