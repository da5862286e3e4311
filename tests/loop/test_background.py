"""A loop in the background, its log, and what it tells a command."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
from clocks import time_passes
from conftest import ROOT, solver, step, wait_for
from test_console import Terminal
from test_loop import WAITING, alive

from autoresearch import UserError
from autoresearch.background import Reader, has_open
from autoresearch.record.journal import holder
from autoresearch.views import notify
from autoresearch.views.console import Console
from autoresearch.views.notify import Notifier

KEY = "sk-ant-api03-0123456789abcdefghij"
NOISY = r"""print('\x1b[31mred\x1b[0m and \x07bell')
print('key', 'sk-ant-api03-' + '0123456789abcdefghij', flush=True)
"""


@pytest.fixture
def background(toy):
    """Starts the loop with --detach in a terminal, and ends it afterwards. Its second trial waits to be released."""
    toy.plan_steps(
        e2=[{"files": {"solver.py": solver(2, before=NOISY + WAITING)}, "say": "wait, then two"}], e3=[step(3)]
    )
    terminals = []

    def start(*arguments: str) -> Terminal:
        words = [
            sys.executable,
            str(ROOT / "loop.py"),
            *toy.agent,
            "--detach",
            "--experiments",
            "3",
            "--baseline-runs",
            "1",
            "--tag",
            toy.tag,
            *arguments,
        ]
        terminals.append(
            Terminal(
                ["sh", "-c", f"{shlex.join(words)}; echo ended with $?; exec sleep 600"], toy.folder, toy.environment
            )
        )
        return terminals[-1]

    yield start
    if process := holder(toy.runs):
        os.kill(process, signal.SIGTERM)
        wait_for(lambda: holder(toy.runs) is None)
    for terminal in terminals:
        terminal.process.kill()
        terminal.process.wait()


@pytest.mark.slow
def test_it_goes_on_when_the_terminal_is_closed(toy, background):
    terminal = background()
    terminal.wait_for("ended with 0")
    process = holder(toy.runs)
    assert (
        f"It runs in the background as process {process}" in terminal.text
        and "autoresearch: run night, new" in terminal.text
    )
    assert "loop.py logs -f --tag night" in terminal.text
    wait_for((toy.runs / "trials/2/run/started").exists)
    again = toy.run(*toy.agent, "--detach", expect=2)  # one loop a tag
    assert again.startswith(f"error: a loop is already running on tag night (process {process})")
    terminal.close()  # which ends all that belongs to it
    terminal.process.wait(60)
    assert alive(process) and os.getsid(process) == process
    follower = toy.start("logs", "-f")
    (toy.runs / "trials/2/run/release").touch()
    output, _ = follower.communicate(timeout=60)  # ends with the loop
    assert follower.returncode == 0 and "  keep: 3 is 1 better than the champion's 2" in output
    assert output.rstrip().endswith("on autoresearch/night") and "experiment 1: baseline" in output
    assert toy.statuses() == ["keep"] * 3
    toy.require_whole()


@pytest.mark.slow
def test_what_the_running_trial_prints(toy, background):
    background().wait_for("ended with 0")
    wait_for((toy.runs / "trials/2/run/started").exists)
    output = toy.run("logs", "--trial")
    assert output.endswith("trials/2/train.log <==\nred and bell\nkey [key removed]\n")
    follower = toy.start("logs", "-f", "--trial")
    assert follower.stdout.readline().endswith("trials/2/train.log <==\n")
    assert [follower.stdout.readline() for _ in range(2)] == ["red and bell\n", "key [key removed]\n"]
    follower.send_signal(signal.SIGINT)  # Ctrl-C is the ordinary end of it
    assert follower.communicate(timeout=60)[0] == "" and follower.returncode == 0
    toy.run("stop", "--now")
    wait_for(lambda: holder(toy.runs) is None)


@pytest.mark.slow
def test_detaching_what_cannot_run_says_why(toy, refused):
    assert toy.run("--agent", "nobody", "--detach", expect=2).startswith("error: ")
    assert refused("run", "--agent", "nobody").startswith("error: ")  # `run` may be said
    toy.plan_steps(otherwise=[step(2)])
    assert "autoresearch: run night, new" in toy.run(*toy.agent, "--hours", "0", "--detach")  # which is over at once
    wait_for(
        lambda: (
            "the time limit of 0 hours is reached" in (toy.runs / "loop.log").read_text() and holder(toy.runs) is None
        )
    )
    assert "was not detached" in refused("logs", "--tag", "other")


def test_a_log_that_grows_and_one_that_is_written_anew(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\xff\r\nbar 1\rbar 2\nhal")
    reader = Reader(path)
    assert reader.lines() == ["one", "two\ufffd", "bar 2"] and reader.lines() == []
    with open(path, "a") as file:
        file.write("f\n\x1b]0;title\x07\x1b[2J\x9b31m" + "x" * 9000 + "\n-----BEGIN RSA PRIVATE KEY-----\nabc\n")
    assert [line[:9] for line in reader.lines()] == ["half", "31mxxxxxx", "[key remo"]
    with open(path, "a") as file:
        file.write("def\n-----END RSA PRIVATE KEY-----\nafter\nrest")
    assert reader.lines() == ["after"] and reader.lines(rest=True) == ["rest"]
    path.write_text("anew\n")
    assert reader.lines() == ["anew"]
    path.write_text("x\n" * 100_000)
    assert set(Reader(path).lines()) == {"x"}


def test_keys_and_escapes_do_not_hide_what_comes_after_them(tmp_path):
    """A private key that is whole in one look, and a window title that never ends."""
    path = tmp_path / "log"
    key = "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n"
    path.write_text(f"before\n{key}after\n\x1b]0;title\nthe rest {KEY}\n")
    assert Reader(path).lines() == ["before", "[key removed]", "after", "", "the rest [key removed]"]


def test_who_has_a_file_open(tmp_path):
    path = tmp_path / "lock"
    with open(path, "w"):
        assert has_open(os.getpid(), path)
    assert not has_open(os.getpid(), path) and not has_open(2**22 + 1, path)  # there is no such process


# -- notices


def notices(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_command_is_told_of_keeps_the_stop_and_faults(toy, tmp_path):
    toy.plan_steps(e2=[step(2)], e3=[step(1.5)], e4=[step(4, f"four {KEY}")], e5=[{"files": {}, "say": "nothing"}])
    script = tmp_path / "notify.sh"
    script.write_text(f"cat >> {tmp_path}/told\nenv > {tmp_path}/seen\n")
    toy.run_agent(4, "--notify", f"sh {script}", MY_TOKEN="0123456789abcdef", MINE=KEY, OTHER="kept")
    told = notices(tmp_path / "told")
    assert [(one["event"], one.get("number"), one.get("score")) for one in told] == [
        ("keep", 1, 1),
        ("keep", 2, 2),
        ("keep", 4, 4),
        ("stop", None, 4),
    ]
    assert (told[2]["before"], told[2]["run"], told[2]["metric"]) == (2, "night", "score")
    assert told[3]["experiments"] == 4 and told[3]["digest"] == toy.run("digest").rstrip("\n")
    seen = (tmp_path / "seen").read_text()
    assert "OTHER=kept" in seen and "MY_TOKEN" not in seen and KEY not in seen + (tmp_path / "told").read_text()
    toy.run_agent(5, "--notify", f"sh {script}", expect=2)
    assert (
        notices(tmp_path / "told")[4]["event"] == "fault"
        and "failed 5 times in a row" in notices(tmp_path / "told")[4]["reason"]
        and "ended: a fault: " in notices(tmp_path / "told")[4]["digest"]
    )
    assert toy.journal("stop")[-1]["reason"].startswith("a fault: ")


@pytest.mark.slow
def test_a_command_that_fails_is_said_once_and_disturbs_nothing(toy, refused):
    toy.plan_steps(e2=[step(2)])
    output = toy.run_agent(2, "--notify", "sh -c 'exit 3'")
    assert output.count("--notify: `sh` ended with exit code 3; the loop continues") == 1 and toy.statuses() == [
        "keep",
        "keep",
    ]
    assert "there is no program" in refused("--notify", "no-such-program x")


def test_a_command_that_hangs_is_ended_and_delays_nobody(tmp_path):
    async def night() -> None:
        notifier = Notifier(f"sh -c 'echo $$ >> {pids}; sleep 600'", said.append)
        async with time_passes(notify.LIMIT, lambda: pids.exists() and pids.read_text()):
            notifier.send({"event": "keep"})  # returns at once
            notifier.send({"event": "stop"})
            await notifier.close()

    pids, said = tmp_path / "pids", []
    asyncio.run(night())
    assert len(said) == 1 and "did not end within" in said[0]
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


def test_what_was_sent_arrives_in_order_before_the_end(tmp_path):
    async def night() -> None:
        notifier = Notifier(f"sh -c 'sleep 0.05; cat >> {tmp_path}/told'", said.append)
        for number in range(5):
            notifier.send({"event": "keep", "number": number})
        await notifier.close()

    said: list[str] = []
    asyncio.run(night())
    assert [notice["number"] for notice in notices(tmp_path / "told")] == [0, 1, 2, 3, 4] and said == []


@pytest.mark.parametrize("command", ["", "'", "no-such-program"])
def test_a_command_to_notify_that_cannot_be_run(command):
    async def night() -> None:
        Notifier(command, print)

    with pytest.raises(UserError, match="--notify"):
        asyncio.run(night())


def test_an_agent_that_cannot_be_reached_is_told_the_first_time():
    """Not again each time that a call fails."""
    console, told = Console(), []
    console.tell = lambda event, **fields: told.append((event, fields["reason"]))
    for again in (False, True, True):
        console.unreachable("claude-api", "no network", again)
    assert told == [("fault", "claude-api cannot be reached: no network")]


def test_a_reader_that_has_seen_enough(toy):
    (toy.runs).mkdir(parents=True)
    (toy.runs / "loop.log").write_text("line\n" * 40)
    process = subprocess.Popen(
        f"{sys.executable} {ROOT / 'loop.py'} logs --tag night | head -1",
        shell=True,
        cwd=toy.folder,
        env=toy.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.communicate(timeout=60) == ("line\n", "")
