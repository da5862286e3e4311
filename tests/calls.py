"""One call of an agent, without a loop around it: a folder with the toy's file, a brief, and what comes of it."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import games
import psutil
from clocks import time_passes
from conftest import set_environment, solver

from autoresearch.agents import Agent, Proposal
from autoresearch.brief import Brief
from autoresearch.record.ledger import Attempt
from autoresearch.task import Facts, Task
from autoresearch.tried import Tried

TASK = Task(editable=("solver.py",), train="python solver.py", metric="score", direction="maximize")
BASELINE = Attempt(1, "b" * 40, "b" * 40, "baseline", "loop", status="keep", score=1.0)

# A stand-in for the program `claude`: it does what FAKE_DOES says.
FAKE = """#!/usr/bin/env python3
import json, os, sys, time
if "--version" in sys.argv:
    print(os.environ.get("FAKE_VERSION", "2.1.197 (Claude Code)"))
    sys.exit()
brief = sys.stdin.read()
exec(os.environ["FAKE_DOES"])
"""


def fake_claude(folder: Path) -> str:
    """The PATH with a stand-in for `claude` in front."""
    folder.mkdir()
    (folder / "claude").write_text(FAKE)
    (folder / "claude").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def prints(text: str, **more) -> str:
    """A line of FAKE_DOES: print a result, as `claude -p --output-format json` does."""
    return f"print(json.dumps({{'type': 'result', 'is_error': False, 'result': {text!r}, **{more!r}}}))\n"


class Call:
    """A call for experiment 2. Its environment is clean, and set by `environment`."""

    def __init__(self, folder: Path, monkeypatch, **environment: str) -> None:
        set_environment(monkeypatch, games.clean_environment(HOME=str(folder), **environment))
        self.folder, self.transcript = folder / "worktree", folder / "transcript"
        self.folder.mkdir()
        self.transcript.mkdir()
        self.original = solver(1).encode()
        (self.folder / "solver.py").write_bytes(self.original)

    def brief(self, **more) -> Brief:
        usual = {
            "agenda": "Raise the number.",
            "facts": Facts(),
            "champion": BASELINE,
            "sources": {"solver.py": self.original.decode()},
            "transcript": self.transcript,
            "pages": self.transcript / "pages",
            "check": self.check,
        }
        tried = Tried(TASK.lower_is_better, more.pop("attempts", [BASELINE]))
        return Brief(2, TASK, tried=tried, **{**usual, **more})

    async def check(self) -> str | None:
        """As the loop does: why the edit cannot be run, or None."""
        originals = {"solver.py": self.original}
        changed = [path.name for path in self.folder.iterdir() if originals.get(path.name) != path.read_bytes()]
        return TASK.objection(self.folder, changed, originals)

    def propose(self, agent: Agent, late: tuple[float, Callable] | None = None, **more) -> Proposal:
        """late: (seconds that have passed, as soon as when())."""

        async def call() -> Proposal:
            async with time_passes(*late) if late else contextlib.nullcontext():
                said = await agent.propose(self.brief(**more), self.folder)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return said

        return asyncio.run(call())

    def cancel(self, agent: Agent, when: Callable, **more) -> BaseException | None:
        """The exception of a call that is cancelled as soon as when(); None for CancelledError. It leaves no task."""

        async def call() -> BaseException | None:
            task = asyncio.create_task(agent.propose(self.brief(**more), self.folder))
            while not when():
                assert not task.done(), task
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.wait({task})
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return None if task.cancelled() else task.exception()

        return asyncio.run(call())

    def text(self) -> str:
        return (self.folder / "solver.py").read_text()


def running(word: str) -> list[int]:
    """Processes with a word on their command lines."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if word in (process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def connections(url: str) -> list:
    """This process's connections to a server."""
    port = int(url.rpartition(":")[2])
    return [one for one in psutil.Process().net_connections("tcp") if one.raddr and one.raddr.port == port]


def discarded(number: int) -> Attempt:
    return Attempt(number, f"{number:040}", "b" * 40, "lower", "a", status="discard", score=0.5, standing=1.0)
