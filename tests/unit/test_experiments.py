"""From a verdict to the record, and from a cancelled process to none: on real repositories and processes."""

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, git, solver, wait_for

from autoresearch import suspension
from autoresearch.agents import Proposal
from autoresearch.experiment import Experiments
from autoresearch.judge import RULES, Verdict
from autoresearch.limits import StopRequest
from autoresearch.pages import Pages
from autoresearch.propose import Proposer
from autoresearch.record import events
from autoresearch.refusal import Refusals
from autoresearch.repo import RunRepo, open_repository
from autoresearch.run import Run, open_run
from autoresearch.runner import TRAIN, Measurement, Phase, SeatLost, checkout
from autoresearch.runner.identity import identify
from autoresearch.runner.local import Local
from autoresearch.runner.process import Process
from autoresearch.runner.trial import end_left_overs
from autoresearch.views.console import Console
from autoresearch.views.now import read_now


def in_a_loop(work):
    """What a coroutine returns, run as the command line runs it."""
    with asyncio.Runner(loop_factory=suspension.event_loop) as runner:
        return runner.run(work)


@pytest.fixture
def toy(toy, monkeypatch):
    """The toy, with its folder and environment as this process's own."""
    monkeypatch.chdir(toy.folder)
    for name, value in toy.environment.items():
        monkeypatch.setenv(name, value)
    return toy


@contextlib.contextmanager
def begun_run() -> Iterator[Run]:
    """The run `night` of the folder that this process is in."""
    console = Console(plain=True)
    with open_run("night", "off", console, StopRequest(console.line)) as run:
        run.begin()
        yield run


def test_of_two_that_beat_one_champion_only_the_first_is_kept(toy):
    """Both were judged before either was recorded, as when a full disk holds both up. The second has to run again."""

    async def conclude() -> list[bool]:
        with begun_run() as run:
            base = run.ledger.base
            run.runner = Local(run.task, run.repo, base, run.folder, run.choose_seats(), {}, False, sys.stderr)
            experiments = Experiments(run, RULES["margin"], Pages(run))
            answers, waiting = [], []
            for number, value in enumerate((1, 2, 3), 1):
                commit = base
                if number > 1:
                    run.reset()
                    (run.repo.worktree / "solver.py").write_text(solver(value))
                    commit = run.repo.agents_worktree(0).commit(("solver.py",), f"set it to {value}")
                parent = base
                run.ledger.append(events.Attempt(number=number, commit=commit, parent=parent, description="x"))
                run.ledger.append(events.Measured(number=number, seed=42, score=value))
                attempt = run.ledger.attempts[-1]
                verdict = experiments.verdict_event(attempt, Verdict("keep", "better"), Measurement(score=value))
                if number == 1:
                    answers.append(await experiments.conclude(verdict))
                else:
                    waiting.append(verdict)
            answers += [await experiments.conclude(verdict) for verdict in waiting]
            assert [attempt.number for attempt in run.ledger.kept] == [1, 2]
            assert [attempt.number for attempt in run.ledger.pending] == [3]
            return answers

    assert in_a_loop(conclude()) == [True, True, False]
    assert toy.tip() == git(toy.folder, "rev-parse", "autoresearch/night")


@pytest.mark.parametrize(
    ("trouble", "times", "reason"),
    [
        ("lost", 5, "node1 was lost, as 5 times before"),
        ("suspended", 3, "it was suspended for 9 s, after 3 earlier suspensions"),
        ("disturbed", 2, "other programs used 90% of the CPU"),
    ],
)
def test_a_trial_that_is_in_trouble_again_and_again_has_its_verdict(toy, trouble, times, reason):
    """Not at once: a node that goes is no fault of the edit's. But one that takes its nodes down would never end, also
    where the loop is started again in the meantime.
    """

    class Troubled(Local):
        async def run(self, job, seat, tell=lambda phase: None) -> Measurement:
            if job.name != "2":
                return await super().run(job, seat, tell)
            if trouble == "lost":
                raise SeatLost("the seat on node1 was lost")
            return Measurement(1.0, taken=0.9) if trouble == "disturbed" else Measurement(suspended=9.0)

    async def try_out(times: int) -> None:
        with begun_run() as run:
            await run.open(run.choose_seats(), {}, 42, lambda facts: None, Troubled)
            run.ledger.append(events.Game(facts={"most_taken": 0.05}))
            base, experiments = run.ledger.base, Experiments(run, RULES["margin"], Pages(run))
            for number in (1, 2):
                if number > len(run.ledger.attempts):
                    run.ledger.append(events.Attempt(number=number, commit=base, parent=base, description="x"))
                    run.repo.remember(number, base)
                attempt = run.ledger.attempts[number - 1]
                for _ in range(times):
                    if not attempt.status:
                        await experiments.try_out(attempt, run.runner.seats[0])

    in_a_loop(try_out(1))
    in_a_loop(try_out(9))
    assert reason in toy.journal("verdict")[1]["reason"]
    assert [entry["why"] for entry in toy.journal("rerun")] == [trouble] * times


def test_a_turn_that_is_cut_short_is_not_shown_any_longer(toy):
    """Else `status` shows it on its seat, as a trial that runs, until another one begins there."""

    class Lost(Local):
        async def run(self, job, seat, tell=lambda phase: None) -> Measurement:
            tell(Phase(TRAIN, str(self.folder_of(job.name))))
            assert len(read_now(toy.runs, os.getpid()).trials) == 1
            raise SeatLost("the seat was lost")

    async def take_turns() -> None:
        console = Console(plain=True)
        stop = StopRequest(console.line)
        with open_run("night", "off", console, stop) as run:
            run.begin()
            base = run.ledger.base
            run.runner = Lost(run.task, run.repo, base, run.folder, run.choose_seats(), {}, False, sys.stderr)
            run.ledger.append(events.Attempt(number=1, commit=base, parent=base, description="x"))
            (attempt,), trials = run.ledger.attempts, Experiments(run, RULES["margin"], Pages(run)).trials
            async with console.follow(run.ledger, run.folder, stop):
                with pytest.raises(SeatLost):
                    await trials.turn(attempt, attempt, 1, 42, run.runner.seats[0])
                assert read_now(run.folder, os.getpid()).trials == []

    in_a_loop(take_turns())


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"],
                         start_new_session=True)
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""  # noqa: E501


@pytest.mark.parametrize("cancels", [1, 2])
@pytest.mark.slow
def test_a_cancelled_command_leaves_nothing_however_stubborn_it_is(tmp_path, cancels):
    """It ignores SIGTERM and has a child in another session. Cancelled twice, its end is hurried, and no less whole."""
    told = tmp_path / "told"

    async def run() -> None:
        async def work():
            words = [sys.executable, "-c", STUBBORN, str(told)]
            async with Process(words, tmp_path, dict(os.environ), tmp_path / "log") as process:
                await process.wait(600)

        task = asyncio.create_task(work())
        await asyncio.to_thread(wait_for, lambda: told.exists() and told.read_text().count(" "))
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0.3)
        await asyncio.wait({task})
        assert task.cancelled()

    in_a_loop(run())
    pids = [int(pid) for pid in told.read_text().split()]
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_a_loop_that_is_busy_is_no_suspension(tmp_path, monkeypatch):
    """Blocked without using the processor, as by a slow disk or a terminal that takes nothing: the trial goes on."""
    passed = [0.0]  # seconds, besides those that the test takes

    def clock(real):
        return lambda *which: real(*which) + passed[0]

    clocks = {"monotonic": clock(time.monotonic), "clock_gettime": clock(time.clock_gettime)}
    monkeypatch.setattr(suspension, "time", types.SimpleNamespace(**clocks, CLOCK_BOOTTIME=time.CLOCK_BOOTTIME))

    async def run() -> float:
        words = [sys.executable, "-c", "input()"]
        async with Process(words, Path.cwd(), dict(os.environ), tmp_path / "log", on_stdin=True) as process:
            waiting = asyncio.create_task(process.wait(120))
            await asyncio.sleep(0)  # it waits
            passed[0] += 100  # before the loop looks again
            process.go("on")
            return (await waiting).suspended

    assert in_a_loop(run()) == 0.0


DEAF = """import signal
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""
START = "import pathlib, sys; from autoresearch.runner.trial import end_left_overs; end_left_overs(pathlib.Path('.'))"


def test_a_start_that_is_killed_while_it_ends_what_was_left_over_leaves_that_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("autoresearch.runner.process.GRACE_SECONDS", 0.0)
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, start_new_session=True) as left_over:
        assert left_over.stdout.readline() == b"ready\n"
        (tmp_path / "process").write_text(f"{identify(left_over.pid)}\n")
        path = {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen([sys.executable, "-c", START], cwd=tmp_path, env={**os.environ, **path}) as start:
            assert left_over.stdout.readline() == b"asked\n"
            start.kill()
        try:
            assert end_left_overs(tmp_path) and not end_left_overs(tmp_path)
        finally:
            left_over.kill()


def test_a_branch_that_is_taken_again_is_mentioned_again(toy, capsys):
    """By whoever looked at the champion, left it, and comes back: the loop cannot move the branch once more."""

    async def look_twice() -> None:
        with begun_run() as run:
            for number in (1, 2):
                git(toy.folder, "switch", "-q", "autoresearch/night")
                run.repo.agents_worktree(0).reset(parent := run.ledger.champion_commit)
                (run.repo.worktree / "solver.py").write_text(solver(number + 1))
                commit = run.repo.agents_worktree(0).commit(("solver.py",), "one more")
                run.ledger.append(events.Attempt(number=number, commit=commit, parent=parent))
                run.ledger.append(events.Verdict(number=number, status="keep", score=1.0))
                run.advance()
                run.advance()
                git(toy.folder, "switch", "-q", "main")
                run.advance()
                assert toy.tip() == commit

    in_a_loop(look_twice())
    assert capsys.readouterr().out.count("the run continues, but") == 2


def test_a_proposal_that_a_full_disk_undoes_is_paid_for_all_the_same(toy, monkeypatch):
    """The agent is asked again when there is room. What it took before counts towards --max-cost."""

    class Paid:
        name, retries, paid = "paid", False, True

        async def propose(self, brief, folder: Path) -> Proposal:
            (folder / "solver.py").write_text(solver(2))
            return Proposal("two", tokens=100, dollars=0.25)

    real, full = Refusals.of, [OSError(errno.ENOSPC, "no room")]

    async def refusal(refusals, draft) -> str | None:
        if full:
            raise full.pop()
        return await real(refusals, draft)

    async def propose() -> tuple[int, float]:
        monkeypatch.setattr(Refusals, "of", refusal)
        with begun_run() as run:
            base = run.ledger.base
            run.runner = Local(run.task, run.repo, base, run.folder, run.choose_seats(), {}, False, sys.stderr)
            run.ledger.append(events.Attempt(number=1, commit=base, parent=base, agent="loop"))
            run.ledger.append(events.Verdict(number=1, status="keep", score=1.0))
            proposer = Proposer(run, Pages(run), [Paid()])
            draft = proposer.drafts.begin()
            assert await run.disk.with_room(lambda: proposer.next_attempt(draft))
            return run.ledger.spent.tokens, run.ledger.spent.dollars

    assert in_a_loop(propose()) == (200, 0.5)


def test_the_runs_of_a_baseline_are_cancelled_once(toy):
    """Each may take seconds to end its processes. When one has, a second cancel must not cut that of others short."""
    begun, ended, everywhere = [], [], asyncio.Event()

    class Slow(Local):
        async def run(self, job, seat, tell=lambda phase: None) -> Measurement:
            begun.append(job.name)
            if len(begun) == 3:
                everywhere.set()
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(100 * seat.number):
                    await asyncio.sleep(0)
                ended.append(job.name)

    async def cancel() -> bool:
        with begun_run() as run:
            base = run.ledger.base
            seats = run.choose_seats(workers=3)
            run.runner = Slow(run.task, run.repo, base, run.folder, seats, {}, False, sys.stderr)
            run.ledger.append(events.Attempt(number=1, commit=base, parent=base, description="x"))
            trials = Experiments(run, RULES["margin"], Pages(run)).trials
            baseline = asyncio.create_task(trials.baseline(run.ledger.attempts[0], range(1, 4), seats))
            await everywhere.wait()
            baseline.cancel()
            await asyncio.wait({baseline})
            return baseline.cancelled()

    assert in_a_loop(cancel()) and ended == ["1", "1-2", "1-3"]


def test_what_trials_made_beside_the_sources_is_forgotten_once_it_is_gone(toy, monkeypatch):
    """Else a build that names its files by their contents would fill the loop's memory, over thousands of edits."""
    monkeypatch.setattr(checkout, "SETTLED", -1.0)  # so that a file is known at once
    repo = RunRepo(open_repository(toy.folder), "night", toy.folder / ".autoresearch/night")
    stage = checkout.Checkout(repo, "stage")
    assert stage.prepare(repo.head(), "")
    stage.seal()
    known = dict(stage._known)
    for number in range(3):
        stage.set(repo.head(), {"solver.py": solver(number).encode()})
        (stage.folder / f"{number}.o").write_text("built")
        stage.changed()
    stage.reset()
    stage.reset()  # which looks at what the first has left
    assert known and stage._known.keys() == known.keys()
