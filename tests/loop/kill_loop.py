"""The loop, killed with SIGKILL at a named step of an experiment: `python kill_loop.py STEP NUMBER ARGUMENTS...`.

Part of test_kill.py, and of test_kill_on_nodes.py.
"""

import inspect
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import loop
from autoresearch import experiment, pages, refusal, repo, run
from autoresearch.agents import command
from autoresearch.record import journal, results
from autoresearch.record.ledger import Ledger
from autoresearch.runner import cluster
from autoresearch.runner.checkout import Checkout
from autoresearch.runner.local import Local
from autoresearch.runner.trial import Trial


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


RECORDS: list[Ledger] = []  # of the run that is open


def note_ledger() -> None:
    real = run.Run.__init__

    def opened(self, *arguments):
        real(self, *arguments)
        RECORDS.append(self.ledger)

    run.Run.__init__ = opened


def kill(when: str, owner: object, name: str, wanted=lambda *arguments, **fields: True) -> None:
    """Die before or after the first call of a function that is wanted."""
    real = getattr(owner, name)

    def is_due(*arguments, **fields) -> bool:
        due = wanted(*arguments, **fields)
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


def proposing(when: str, owner: object, name: str):
    """A call while experiment `number` has no attempt yet."""
    return lambda number: kill(when, owner, name, lambda *_, **__: len(RECORDS[-1].attempts) == number - 1)


def trying(when: str, owner: object, name: str):
    """A call while it is the last attempt there is."""
    return lambda number: kill(when, owner, name, lambda *_, **__: len(RECORDS[-1].attempts) == number)


def of_attempt(when: str, owner: object, name: str):
    """A call with the attempt `number` that has, or comes to, its verdict."""
    return lambda number: kill(when, owner, name, lambda self, attempt, *_, **__: attempt.number == number)


def event(when: str, wanted: str):
    """At the journal's line of an event, of experiment `number` where it has one. half: a part of it is on the disk."""

    def of_it(number):
        return lambda self, event: event.name == wanted and getattr(event, "number", number) == number

    def half(number):
        real = journal.os.write

        def write(handle, line):
            of_this = b'"number"' not in line or f'"number": {number},'.encode() in line
            if f'"event": "{wanted}"'.encode() in line and of_this:
                real(handle, line[: len(line) // 2])
                die()
            return real(handle, line)

        journal.os.write = write

    return half if when == "half" else lambda number: kill(when, Ledger, "append", of_it(number))


def half_a_row(number: int) -> None:
    def add(self, attempt):
        if attempt.number == number:
            with open(self.path, "a") as file:
                file.write(results.row(attempt)[:20])
            die()
        real(self, attempt)

    real = results.Results.add
    results.Results.add = add


def remembered(name: str):
    """A reference of experiment `number` is written: of its attempt, or of one that was moved."""
    return lambda number: kill(
        "after", repo.RunRepo, "remember", lambda self, found, commit: str(found).startswith(name.format(number))
    )


STEPS = {
    # of the run: these come one after the other
    "the lock is taken": lambda number: kill("after", journal.Lock, "__init__"),
    "before the run is recorded": event("before", "run"),
    "the run is recorded": event("after", "run"),
    "the game is recorded": event("after", "game"),
    "before the baseline is recorded": event("before", "attempt"),
    "the baseline has its verdict": event("after", "verdict"),
    "before the end is recorded": event("before", "stop"),
    "the end is recorded": event("after", "stop"),
    # of any experiment
    "the worktree is reset": proposing("after", run.Run, "reset"),
    "the agent is told": proposing("before", command.CommandAgent, "propose"),
    "the agent has edited": proposing("after", command.CommandAgent, "propose"),
    "the edit is looked at": proposing("after", refusal.Refusals, "of"),
    "the edit is committed": proposing("after", repo.Worktree, "commit"),
    "half an attempt is recorded": event("half", "attempt"),
    "the attempt is recorded": event("after", "attempt"),
    "the attempt has its reference": remembered("{}"),
    "the stage is set": trying("after", Checkout, "set"),
    "the trial is announced": event("after", "trial"),
    "the trial is over": trying("after", Trial, "run"),
    "half a score is recorded": event("half", "measured"),
    "the score is recorded": event("after", "measured"),
    "it is judged": of_attempt("after", experiment.Experiments, "decide"),
    "before the verdict is recorded": event("before", "verdict"),
    "half a verdict is recorded": event("half", "verdict"),
    "the verdict is recorded": event("after", "verdict"),
    "half a row is written": half_a_row,
    "the row is written": of_attempt("after", results.Results, "add"),
    "the branch is moved": trying("after", run.Run, "advance"),
    "the trial is tidied": lambda number: kill(
        "after", Local, "tidy", lambda self, name, *_, **__: name == str(number)
    ),
    "the page is written": lambda number: kill(
        "after", pages.Pages, "write", lambda self, attempt: attempt.number == number and attempt.status is not None
    ),
    # with a proposal ahead, or two workers
    "an edit is moved": lambda number: kill("after", repo.RunRepo, "move"),
    "half a move is recorded": event("half", "moved"),
    "the move is recorded": event("after", "moved"),
    "the moved edit has its reference": remembered("{}-on"),
    "a trial has to run again": event("after", "rerun"),
}
OF_PEOPLE = {"before an edit is accepted": event("before", "attempt")}


def calling(when: str, method: str):
    """A call to a node, about the trial of experiment `number`."""

    def about_it(number):
        return lambda self, name, *said: name == method and getattr(said[0], "name", said[0]) == str(number)

    return lambda number: kill(when, cluster.Worker, "call", about_it(number))


def written(when: str, folder: str):
    """The first file of experiment `number` that comes home into a folder."""
    ends = lambda number: f"/trials/{number}{folder}"  # noqa: E731
    return lambda number: kill(
        when, cluster, "write_whole", lambda path, content, **_: str(path.parent).endswith(ends(number))
    )


ON_NODES = {
    "before a seat is made": lambda number: kill(
        "before", cluster.Worker, "call", lambda self, name, *_: name == "open"
    ),
    "before a trial is sent": calling("before", "run"),
    "a trial is sent": calling("after", "run"),
    "a running trial has said something": written("after", ""),
    "before it is known what it measured": written("before", ""),
    "what it measured is here": lambda number: kill(
        "after", cluster.Cluster, "run", lambda self, job, *_: job.name == str(number)
    ),
    "its weights are sent for": calling("after", "tidy"),
    "before its weights are here": written("before", "/run"),
}

if __name__ == "__main__":
    step, number = sys.argv.pop(1), int(sys.argv.pop(1))
    sys.argv[0] = loop.__file__  # Ray's nodes import from beside it
    note_ledger()
    (STEPS | OF_PEOPLE | ON_NODES)[step](number)
    loop.main()
