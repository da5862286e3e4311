"""Signals at bad moments: between the start of a program and the wait for it, and at a terminal while git commits."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
from conftest import ROOT, step, wait_for

# Starts a program as the loop does, again and again; each time a signal comes 0 to 12 ms later and stops it.
RACE = """
import asyncio, os, random, signal, sys, threading
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from autoresearch.limits import Stopped, StopRequest
from autoresearch.runner.process import Process

async def one(stop, marker):
    async def work():
        async with Process(["sleep", marker], Path.cwd(), dict(os.environ), Path("log")) as process:
            await process.wait(600)
    timer = threading.Timer(random.uniform(0, 0.012), os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        await stop.unless_asked(work())
        raise SystemExit("it was not stopped")
    except Stopped:
        timer.join()
        stop.level = 0

async def main():
    stop = StopRequest(print)
    for number in range(int(sys.argv[2])):
        await one(stop, f"{sys.argv[3]}.{number}")
    print("done", flush=True)

asyncio.run(main())
"""


def processes(marker: str) -> list[int]:
    """Processes whose command line holds a marker."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(word.startswith(marker) for word in words):
            found.append(process.pid)
    return found


@pytest.mark.slow
def test_a_signal_just_after_a_start_leaves_no_process(tmp_path):
    """Of 300 starts none leaves one, neither then nor a second later."""
    marker = f"98765{os.getpid()}"
    words = [sys.executable, "-c", RACE, str(ROOT), "300", marker]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert answer.stdout == "done\n", answer.stderr
    assert processes(marker) == []
    with pytest.raises(AssertionError):  # nor later: a keeper that was slow to start would start it now
        wait_for(lambda: processes(marker), 1.0)


def test_ctrl_c_at_the_terminal_does_not_break_off_a_commit(toy):
    """The whole process group gets it, as at a terminal, while git commits. The commit is made; then the loop stops."""
    waits, programs = toy.folder.parent / "waits", toy.folder.parent / "programs"
    programs.mkdir()
    (programs / "git").write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        case "$*" in *refs/autoresearch/night/2*) touch {waits}; while [ ! -e {waits}.go ]; do sleep 0.02; done;; esac
        exec {shutil.which("git")} "$@"
        """)
    )
    (programs / "git").chmod(0o755)
    toy.plan_steps(e2=[step(2)])
    process = toy.start(
        *toy.agent, "--experiments", "3", "--baseline-runs", "1", group=True, PATH=f"{programs}:{os.environ['PATH']}"
    )
    wait_for(waits.exists)
    os.killpg(process.pid, signal.SIGINT)
    (waits.parent / "waits.go").touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "you asked it to stop" in output, output
    toy.require_whole()
