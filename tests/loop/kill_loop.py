"""The loop, killed with SIGKILL at a named step: `python kill_loop.py STEP ARGUMENTS...`. Part of test_kill.py."""

import inspect
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import loop
from autoresearch import experiment, pages, propose, repo, run
from autoresearch.agents import command
from autoresearch.record import journal, results
from autoresearch.record.ledger import Ledger
from autoresearch.runner.local import Local
from autoresearch.runner.trial import Trial


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill(when: str, owner: object, name: str, turn: int = 1, wanted=lambda *arguments, **fields: True) -> None:
    """Die before or after a function's call number `turn` of those that are wanted."""
    real, turns = getattr(owner, name), [0]

    def is_due(*arguments, **fields) -> bool:
        chosen = wanted(*arguments, **fields)
        turns[0] += chosen
        due = chosen and turns[0] == turn
        if due and when == "before":
            die()
        return due

    def patched(*arguments, **fields):
        due = is_due(*arguments, **fields)
        answer = real(*arguments, **fields)
        return die() if due else answer

    async def patched_coroutine(*arguments, **fields):
        due = is_due(*arguments, **fields)
        answer = await real(*arguments, **fields)
        return die() if due else answer

    setattr(owner, name, patched_coroutine if inspect.iscoroutinefunction(real) else patched)


def event(when: str, wanted: str, number: int | None = None):
    """At the journal's line of an event, of experiment `number`. half: when only a part of it is on the disk."""

    def of_it(self, event):
        return event.name == wanted and number in (None, getattr(event, "number", None))

    def half(handle, line):
        of_this = number is None or f'"number": {number},'.encode() in line
        if f'"event": "{wanted}"'.encode() in line and of_this:
            real(handle, line[: len(line) // 2])
            die()
        return real(handle, line)

    real = os.write
    if when == "half":
        return lambda: setattr(journal.os, "write", half)
    return lambda: kill(when, Ledger, "append", wanted=of_it)


def half_a_row() -> None:
    def add(self, attempt):
        if attempt.number == 3:
            with open(self.path, "a") as file:
                file.write(results.row(attempt)[:20])
            die()
        real(self, attempt)

    real = results.Results.add
    results.Results.add = add


STEPS = {
    "the lock is taken": lambda: kill("after", journal.Lock, "__init__"),
    "before the run is recorded": event("before", "run"),
    "the run is recorded": event("after", "run"),
    "the game is recorded": event("after", "game"),
    "before the baseline is recorded": event("before", "attempt", 1),
    "the baseline has its verdict": event("after", "verdict", 1),
    "the worktree is reset": lambda: kill("after", run.Run, "reset", 2),
    "the agent is told": lambda: kill("before", command.CommandAgent, "propose", 2),
    "the agent has edited": lambda: kill("after", command.CommandAgent, "propose", 2),
    "the edit is looked at": lambda: kill("after", propose.Proposer, "refusal", 2),
    "the edit is committed": lambda: kill("after", repo.RunRepo, "commit", 2),
    "half an attempt is recorded": event("half", "attempt", 3),
    "the attempt is recorded": event("after", "attempt", 3),
    "the attempt has its reference": lambda: kill("after", repo.RunRepo, "remember", 3),
    "the stage is set": lambda: kill("after", repo.Stage, "set", 4),
    "the trial is announced": event("after", "trial", 3),
    "the trial is over": lambda: kill("after", Trial, "run", 3),
    "half a score is recorded": event("half", "measured", 3),
    "the score is recorded": event("after", "measured", 3),
    "it is judged": lambda: kill("after", experiment.Experiments, "decide", 3),
    "before the verdict is recorded": event("before", "verdict", 3),
    "half a verdict is recorded": event("half", "verdict", 3),
    "the verdict is recorded": event("after", "verdict", 3),
    "half a row is written": half_a_row,
    "the row is written": lambda: kill("after", results.Results, "add", 3),
    "the branch is moved": lambda: kill("after", run.Run, "advance", 3),
    "the trial is tidied": lambda: kill("after", Local, "tidy", 3),
    "the page is written": lambda: kill("after", pages.Pages, "write", 9),
    "before the end is recorded": event("before", "stop"),
    "the end is recorded": event("after", "stop"),
    # with a proposal ahead, or two workers
    "an edit is moved": lambda: kill("after", repo.RunRepo, "move"),
    "half a move is recorded": event("half", "moved"),
    "the move is recorded": event("after", "moved"),
    "the moved edit has its reference": lambda: kill(
        "after", repo.RunRepo, "remember", wanted=lambda self, name, commit: str(name).startswith("3-on")
    ),
    "a trial has to run again": event("after", "rerun"),
}

if __name__ == "__main__":
    step = sys.argv.pop(1)
    if step:
        STEPS[step]()
    loop.main()
