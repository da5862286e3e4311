"""The loop: propose, commit, train, score, judge, record, keep or reset. Again, until morning.

    uv run loop.py                      # an agent does research all night; Ctrl-C stops after the running trial
    uv run loop.py --experiments 5      # stop when the run has five experiments
    uv run loop.py start                # for an agent that drives by itself: baseline, and where to edit (see program.md)
    uv run loop.py try -m "what, why"   # one trial of the edit that stands there, with its verdict
    uv run loop.py verify               # run baseline and champion again with fresh seeds: what is the gain?
    uv run loop.py watch                # a live page of the run
    uv run loop.py report               # a short paper of the run
    uv run loop.py results              # write results.tsv again, from the journal

    uv run loop.py --detach             # the same in the background: it goes on when the terminal is closed
    uv run loop.py status               # how a run stands, also one in another terminal, or one that has ended
    uv run loop.py logs -f              # what a detached loop prints
    uv run loop.py stop                 # stop after the running trial

The same command again continues the run. This file reads like the idea; how each verb is done
stands in the room of that name in autoresearch/.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import git
import typer

from autoresearch import UserError, count, disk_is_full, keys
from autoresearch.agents import Agent, AgentUnavailable, NothingLeft, Proposal
from autoresearch.agents.bandit import choose
from autoresearch.agents.choice import AGENTS, AgentOptions, make_agents
from autoresearch.agents.driver import Driver
from autoresearch.background import LOG, ask_to_stop, detach, loop_command, read_along
from autoresearch.brief import BUDGET
from autoresearch.console import Console
from autoresearch.judge import RULES, KeepRule, Verdict, judge, mean
from autoresearch.lab import LEFT, RUNS, Lab, choose_tag, open_lab, recorded_run, sandbox_says
from autoresearch.ledger import OUTRUN, Attempt, Results, one_line
from autoresearch.limits import Interrupted, Limits, StopRequest
from autoresearch.notify import Notifier
from autoresearch.propose import Proposing
from autoresearch.repo import RunRepo, repository_of, root_of, short
from autoresearch.report import Run, write_report
from autoresearch.show import answer_of, first_screen, show_answer, show_end
from autoresearch.status import look
from autoresearch.task import read_agenda, task_of
from autoresearch.trial import Outcome, Trial, finite, holdout_score
from autoresearch.verify import Verification, lines_of
from autoresearch.watch import Watch, serve

FAILURES = 5  # proposals in a row that came to nothing, before the loop gives up
EARLY = 60.0  # seconds: a trial that crashed before may be mended and run again
SUSPENSIONS = 3  # times that a trial which stood still is run again
ROOM = 1 << 16  # bytes free on a disk that was full, before the loop goes on


@dataclasses.dataclass
class Returned:
    """An attempt that goes back to its agent, to be made anew under its number. conclude: records the verdict if that comes to nothing."""

    attempt: Attempt
    agent: Agent
    reason: str
    conclude: Callable[[], object]
    crashed: bool  # early in its trial; else it does not go onto the new champion


class StoodStill(Exception):
    """The machine, the loop or a trial was suspended in the middle of a training: what was measured counts for nothing."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"it stood still for {outcome.suspended:.0f} s")
        self.outcome = outcome


class Loop:
    """The loop over one run.

    The main thread lets agents propose; trials run in threads of their own, as many at once as the lab has devices. One thread
    at a time does anything but wait: the one that holds the lab's house.

    agents: who proposes; of several the bandit chooses one for each experiment. fill: who does when the agent cannot be reached.
    repairs: how often an edit that crashed early goes back to its agent. lookahead: proposals that wait while all workers are busy.
    """

    def __init__(
        self,
        lab: Lab,
        proposing: Proposing,
        agents: list[Agent],
        rule: KeepRule,
        baseline_runs: int = 1,
        fill: Agent | None = None,
        repairs: int = 0,
        lookahead: int = 0,
    ) -> None:
        self.lab, self.ledger, self.repo, self.task, self.console, self.stop = (
            lab,
            lab.ledger,
            lab.repo,
            lab.task,
            lab.console,
            lab.stop,
        )
        self.proposing, self.agents, self.rule, self.baseline_runs, self.fill, self.repairs = (
            proposing,
            agents,
            rule,
            baseline_runs,
            fill,
            repairs,
        )
        self.lookahead = lookahead
        self.limits = Limits()
        self.failures = 0
        self.suspensions: dict[int, int] = {}  # by number of an attempt
        self.running: dict[int, int] = {}  # numbers of the attempts in trial -> their workers
        self.returned: list[Returned] = []
        self.nothing_left = ""  # why no agent has a proposal, until the next verdict
        self.fault: BaseException | None = None  # of a trial's thread
        self.news = threading.Condition(lab.house)  # a trial is over, or goes back to its agent

    def night(self, limits: Limits) -> str:
        """The loop. Returns why it ended."""
        self.limits = limits
        try:
            while True:
                for warning in limits.warnings(self.ledger):
                    self.console.line(warning, "yellow")
                self.patiently(self.start_trials)
                reason = self.reason_to_end()
                over = self.fault or reason
                if not self.running and (over or (self.nothing_left and not self.returned)):
                    break
                if self.returned and not over:
                    self.patiently(self.give_back, self.returned[0])
                    self.returned.pop(0)
                elif not over and self.wants_proposal():
                    self.patiently(self.next_attempt)
                else:
                    self.news.wait()
        except BaseException:
            self.finish_trials()
            raise
        if self.fault:
            raise self.fault
        for back in self.returned:
            if back.crashed:  # else it has not run, and can when the run is continued
                back.conclude()
        self.lab.settle()
        return reason or self.nothing_left

    def reason_to_end(self, spending: bool = True) -> str | None:
        return "you asked it to stop" if self.stop.level else self.limits.reached(self.ledger, spending)

    def waiting(self) -> list[Attempt]:
        """Attempts that can be run next."""
        away = {*self.running, *(back.attempt.number for back in self.returned)}
        return [attempt for attempt in self.ledger.pending if attempt.number not in away]

    def wants_proposal(self) -> bool:
        """Whether there should be one more attempt: for a worker that is idle, or to have one when a worker is done."""
        waiting, idle = len(self.waiting()), len(self.lab.devices) - len(self.running)
        if self.ledger.champion is None:
            return not self.ledger.pending
        return (
            waiting < max(idle, self.lookahead)
            and self.limits.room(self.ledger)
            and not (self.nothing_left and self.running)
        )

    # -- workers

    def start_trials(self) -> None:
        """Give workers that are idle what waits."""
        while len(self.running) < len(self.lab.devices) and not self.fault and not self.reason_to_end(spending=False):
            attempt = next((attempt for attempt in self.waiting() if self.stands_on_champion(attempt)), None)
            if attempt is None:
                return
            worker = min({*range(len(self.lab.devices))} - {*self.running.values()})
            self.running[attempt.number] = worker
            self.stop.trials = len(self.running)
            try:
                threading.Thread(target=self.work, args=(attempt, worker), name=f"worker-{worker}", daemon=True).start()
            except RuntimeError:  # the machine has no thread left
                del self.running[attempt.number]
                raise

    def work(self, attempt: Attempt, worker: int) -> None:
        """The thread of one trial, and of what comes after it."""
        with self.lab.house:
            try:
                try:
                    self.patiently(self.try_out, attempt, worker)
                finally:
                    del self.running[attempt.number]
                    self.stop.trials = len(self.running)
                self.patiently(self.start_trials)  # not later: the agent may think for long
            except BaseException as fault:  # which the main thread raises
                self.fault = self.fault or fault
                self.stop.interrupt()
            self.news.notify_all()

    def finish_trials(self) -> None:
        """Let what runs come to its verdict."""
        self.fault = self.fault or Interrupted()  # so that nothing else begins
        while self.running:
            self.news.wait()

    def stands_on_champion(self, attempt: Attempt) -> bool:
        """Whether an attempt that waited can be run. Where another one was kept meanwhile it is moved onto that; what does not go there is returned."""
        standing = self.lab.standing_commit
        if attempt.parent == standing:
            return True
        if moved := self.lab.move(attempt):
            self.repo.remember(f"{attempt.number}-on-{short(attempt.parent)}", attempt.commit)
            commit, edit = moved
            self.ledger.append(
                "moved", number=attempt.number, commit=commit, parent=standing, edit=edit, was=attempt.commit
            )
            self.repo.remember(attempt.number, commit)
            return True
        number = self.ledger.champion.number
        reason = f"experiment {number} was kept while this edit waited, and changed the same lines, so {OUTRUN}"
        conclude = functools.partial(self.record_verdict, attempt, Verdict("crash", reason))
        if agent := self.mender(attempt):
            self.returned.append(Returned(attempt, agent, reason, conclude, crashed=False))
        else:
            conclude()
        return False

    def mender(self, attempt: Attempt) -> Agent | None:
        """The agent of an attempt, if it can make it anew."""
        return next((agent for agent in self.agents if agent.name == attempt.agent and agent.mends), None)

    def patiently(self, step: Callable, *arguments, **fields) -> object:
        """Do a step. When the disk is full wait until it is not, and do it again. Others wait, too: they could record nothing."""
        wait = 0.0
        while True:
            try:
                return step(*arguments, **fields)
            except (OSError, git.GitCommandError) as error:
                if not disk_is_full(error):
                    raise
                if not wait:
                    self.console.line(
                        "the disk is full: waiting until there is room. Nothing is lost; Ctrl-C ends the loop", "yellow"
                    )
                    self.console.tell("fault", reason="the disk is full")
                wait = min(2 * wait, 60.0) or 1.0  # a quota may be full where the disk is not
                until = time.monotonic() + wait
                while (
                    time.monotonic() < until or shutil.disk_usage(self.lab.folder).free < ROOM
                ) and not self.stop.level:
                    time.sleep(0.2)
                if self.stop.level:
                    raise

    # -- propose and commit

    def next_attempt(self) -> Attempt | None:
        """The baseline first; then what an agent proposes. None when nothing came of it."""
        number = len(self.ledger.attempts) + 1
        if self.ledger.champion is None:
            return self.record_attempt(
                number, self.lab.base, self.lab.base, Proposal("baseline", tokens=0, dollars=0.0), "loop"
            )
        self.proposing.settle()
        ready = [agent for agent in self.agents if not self.proposing.away(agent)]
        agent = (
            self.fill
            if self.fill and not ready
            else choose(ready or self.agents, self.ledger, self.task.lower_is_better)
        )
        try:
            proposal = self.proposing.ask(number, agent)
        except AgentUnavailable as failure:
            self.proposing.settle()
            self.proposing.wait_for(
                agent,
                failure,
                next((other.name for other in (*ready, self.fill) if other and other is not agent), None),
            )
            return None
        except NothingLeft as nothing:
            if agent is self.fill:
                self.fill = None
            elif len(self.agents) > 1:
                self.agents.remove(agent)
            else:
                self.nothing_left = str(nothing)
            return None
        except Interrupted:
            self.proposing.settle()
            return None
        self.proposing.reached(agent)
        if proposal:
            self.failures = 0
            return self.commit_attempt(number, proposal, agent.name)
        self.proposing.settle()
        self.failures += 1
        if self.failures >= FAILURES:
            raise UserError(
                f"{agent.name} came to nothing {FAILURES} times in a row, the last time: {self.ledger.refused[-1]['reason']}. "
                "What was measured is kept; mend the agent and run the same command again"
            )
        return None

    def commit_attempt(self, number: int, proposal: Proposal, agent: str) -> Attempt:
        proposal = dataclasses.replace(
            proposal,
            description=proposal.description or f"edit of {', '.join(self.task.editable)} without a description",
        )
        commit = self.patiently(self.repo.commit, self.task.editable, proposal.description)
        attempt = self.record_attempt(number, commit, self.proposing.base.commit, proposal, agent)
        self.patiently(self.proposing.learn, proposal.lesson, number)
        return attempt

    def record_attempt(self, number: int, commit: str, parent: str, proposal: Proposal, agent: str) -> Attempt:
        self.patiently(
            self.ledger.append,
            "attempt",
            number=number,
            commit=commit,
            parent=parent,
            **dataclasses.asdict(proposal),
            agent=agent,
            edit=self.lab.edit(),
            lines=self.lab.lines(commit) - self.lab.lines(parent),
            preflight=self.proposing.rehearsed,
        )
        self.patiently(self.repo.remember, number, commit)
        return self.ledger.attempts[number - 1]

    def give_back(self, back: Returned) -> None:
        """Let an agent make an attempt anew, under the same number; where it does not, the attempt has its verdict."""
        attempt, agent = back.attempt, back.agent
        self.console.line(
            f"experiment {attempt.number} "
            + (
                f"crashed early: {one_line(back.reason, 200)}; {agent.name} may mend it"
                if back.crashed
                else f"goes back to {agent.name}: {back.reason}"
            ),
            "yellow",
        )
        while True:
            self.lab.settle()
            try:
                commit = attempt.commit
                if back.crashed and attempt.parent != self.lab.standing_commit:  # another was kept meanwhile
                    commit = next(iter(self.lab.move(attempt) or ()), None)
                if back.crashed and commit:
                    self.repo.take_up(commit, self.task.editable)
                    proposal = self.proposing.ask(attempt.number, agent, attempt, back.reason)
                else:
                    edit = self.repo.diff(attempt.parent, attempt.commit, self.task.editable)
                    proposal = self.proposing.ask(
                        attempt.number,
                        agent,
                        refusal=f"{back.reason}. Make it again, on top of the champion. It was:\n\n{edit}",
                    )
                break
            except AgentUnavailable as failure:
                others = self.fill or len(self.agents) > 1
                self.proposing.wait_for(agent, failure, "its verdict is final, and another" if others else None)
                if self.stop.level:
                    return
                if others:
                    proposal = None
                    break
            except Interrupted:
                self.interrupted(attempt)
                self.lab.settle()
                return
        if proposal is None:
            self.lab.settle()
            back.conclude()
            return
        self.repo.remember(
            f"{attempt.number}-crashed" + (f"-{attempt.repairs + 1}" if attempt.repairs else "")
            if back.crashed
            else f"{attempt.number}-on-{short(attempt.parent)}",
            attempt.commit,
        )
        proposal = dataclasses.replace(proposal, description=proposal.description or attempt.description)
        self.proposing.reached(agent)
        self.commit_attempt(attempt.number, proposal, agent.name)

    # -- run, judge, record, keep or reset

    def try_out(self, attempt: Attempt, worker: int = 0) -> Verdict | None:
        """Run an attempt to its verdict. None when it has none: the user stopped it, it goes back to its agent, or it runs again."""
        began = time.monotonic()
        lab = self.lab
        lab.require_own_code()
        self.repo.stage(worker).set(lab.base, attempt.commit, self.task.editable)
        self.ledger.append("trial", number=attempt.number, worker=worker)
        view = self.console.trial(attempt, lab.trial_folder(attempt), lab.time_budget, worker=worker)
        trial = lab.trial(lab.trial_folder(attempt), view, worker=worker)
        try:
            outcome = self.measure(attempt, trial, lab.seed)
            verdict, holdout = self.decide(attempt, trial, outcome, worker)
        except StoodStill as suspended:
            self.suspensions[attempt.number] = self.suspensions.get(attempt.number, 0) + 1
            if self.suspensions[attempt.number] <= SUSPENSIONS:
                return self.void(attempt, str(suspended), began)
            outcome, verdict, holdout = (
                suspended.outcome,
                Verdict("crash", f"{suspended}, as {SUSPENSIONS} times before"),
                None,
            )
        finally:
            view.close()
        if verdict.status == "crash" and not outcome.stopped:
            lab.require_space()
        if outcome.stopped or (self.stop.now() and verdict.status != "keep"):
            return self.interrupted(attempt)
        if verdict.status == "keep" and attempt.parent != lab.standing_commit:
            return self.void(
                attempt,
                f"it beat the champion that it was built on, but experiment {self.ledger.champion.number} was kept meanwhile: it "
                "is tested on top of that",
                began,
            )
        conclude = functools.partial(
            self.record_verdict, attempt, verdict, outcome, holdout, trial, time.monotonic() - began
        )
        if (
            verdict.status == "crash"
            and outcome.score is None
            and time.monotonic() - began < EARLY
            and attempt.repairs < self.repairs
            and not self.stop.level
            and (agent := self.mender(attempt))
        ):
            self.ledger.append("crashed", number=attempt.number, commit=attempt.commit, reason=verdict.reason)
            self.returned.append(Returned(attempt, agent, verdict.reason, conclude, crashed=True))
            return None
        conclude()
        if self.ledger.champion is None:
            raise UserError(
                f"the baseline crashed: {verdict.reason}\nIts log is {lab.trial_folder(attempt) / 'train.log'}. "
                f"Mend {', '.join(self.task.editable)}, commit, and start again with --tag NEW "
                "(or run the same command again if the fault was a passing one)"
            )
        return verdict

    def record_verdict(
        self,
        attempt: Attempt,
        verdict: Verdict,
        outcome: Outcome | None = None,
        holdout: float | None = None,
        trial: Trial | None = None,
        wall: float = 0.0,
    ) -> None:
        """The last word on an attempt: into the journal, into results.tsv, and the branch to the champion. Without an outcome it never ran."""
        crashed, standing = verdict.status == "crash", self.ledger.standing(attempt)
        self.patiently(
            self.ledger.append,
            "verdict",
            number=attempt.number,
            status=verdict.status,
            reason=verdict.reason,
            score=None if crashed else mean(attempt.runs),
            memory_gb=0.0 if crashed else outcome.memory_gb,
            figures=finite(outcome.figures) if outcome else {},
            holdout=holdout,
            noise=self.ledger.noise(),
            standing=mean(standing) if standing else None,
            standing_runs=len(standing),
            seconds={**(trial.seconds if trial else {}), "wall": round(wall, 3)},
        )
        self.nothing_left = ""
        self.patiently(self.add_row, attempt)
        self.patiently(self.lab.advance)
        if trial:
            trial.tidy(keep_weights=verdict.status == "keep")
        self.patiently(self.proposing.write_page, attempt)
        self.console.verdict(attempt, wall)

    def add_row(self, attempt: Attempt) -> None:
        """Into results.tsv. A file that cannot be written does not end a night: the journal has it all."""
        missing = self.lab.results.behind
        try:
            self.lab.results.add(attempt)
        except OSError as error:
            if disk_is_full(error):
                raise
            if not missing:
                self.console.line(
                    f"results.tsv cannot be written: {error.strerror}. Its rows are in the journal; mend it, and it is written with the "
                    "next verdict, or by `uv run loop.py results`",
                    "yellow",
                )

    def void(self, attempt: Attempt, reason: str, began: float) -> None:
        """What was measured counts for nothing, and the attempt waits to be run again."""
        self.ledger.append("void", number=attempt.number, reason=reason, seconds=round(time.monotonic() - began, 3))
        self.console.line(f"  experiment {attempt.number}: {reason}", "yellow")

    def measure(self, attempt: Attempt, trial: Trial, seed: int) -> Outcome:
        """Train and score. What has a score counts among the attempt's runs from here on."""
        with self.lab.unlocked():
            outcome = trial.run()
        if outcome.suspended and not self.stop.now():
            raise StoodStill(outcome)
        if outcome.score is not None:
            self.patiently(
                self.ledger.append,
                "measured",
                number=attempt.number,
                seed=seed,
                score=outcome.score,
                seconds=dict(trial.seconds),
            )
        return outcome

    def unlocked(self, question: Callable) -> object:
        """The answer of something that takes long."""
        with self.lab.unlocked():
            return question()

    def judge(self, attempt: Attempt, scores: list[float]) -> Verdict:
        """The judge's word on scores of an attempt, against those of the champion that it was built on."""
        sign = 1 if self.task.lower_is_better else -1
        bases = itertools.takewhile(lambda kept: kept.commit != attempt.parent, self.ledger.kept)
        best = min(
            (mean(scores) for scores in (self.ledger.standing(attempt), *map(self.ledger.scores, bases)) if scores),
            key=lambda score: sign * score,
            default=None,
        )
        return judge(
            scores,
            self.ledger.standing(attempt),
            self.ledger.noise(),
            attempt.lines or 0,
            self.rule,
            self.task.lower_is_better,
            best,
        )

    def decide(self, attempt: Attempt, trial: Trial, outcome: Outcome, worker: int) -> tuple[Verdict, float | None]:
        """(The verdict on a trial; of what is kept, its score on the holdout.) What would be kept has more to stand."""
        if outcome.score is None:
            return Verdict("crash", outcome.reason), None
        standing = self.ledger.standing(attempt)
        verdict = self.judge(attempt, attempt.runs)
        if verdict.status == "keep" and attempt.parent != self.lab.standing_commit:  # it will run again, on top of that
            return verdict, None
        if verdict.status == "keep" and (objection := self.unlocked(trial.guard)):
            verdict = Verdict("discard", objection)
        if verdict.status != "keep":
            return verdict, None
        objection, figures = self.unlocked(trial.holdout)
        if objection:
            return Verdict("crash", f"on the holdout: {objection}"), None
        if not standing and (objection := self.run_baseline_again(attempt, worker)):
            return objection, None
        if standing and (
            objection := self.quarantine(attempt, abs(outcome.score - mean(standing)), outcome.score, worker)
        ):
            return objection, None
        if len(attempt.runs) > 1:
            verdict = self.judge(attempt, attempt.runs)
        return verdict, holdout_score(figures, self.task)

    def run_baseline_again(self, attempt: Attempt, worker: int) -> Verdict | None:
        """So that the run knows its noise, and what everything is compared with is not one draw. Why it does not stand, or None."""
        for number in range(2, self.baseline_runs + 1):
            folder = self.lab.folder / "trials" / f"{attempt.number}-{number}"
            seed = self.lab.seed + number - 1
            view = self.console.trial(
                attempt,
                folder,
                self.lab.time_budget,
                f"again, run {number} of {self.baseline_runs}, seed {seed}",
                worker,
            )
            again = self.lab.trial(folder, view, seed=seed, worker=worker)
            outcome = self.measure(attempt, again, seed)
            again.tidy(keep_weights=False)
            if outcome.score is None:
                return Verdict("crash", f"in its run {number}: {outcome.reason}")
        return None

    def quarantine(self, attempt: Attempt, gain: float, score: float, worker: int) -> Verdict | None:
        """A gain larger than any honest step is believed only twice: why it is not kept, or None.

        The second trial has another seed, no compile cache of the run's, and every row of both splits probed.
        """
        largest = self.ledger.game.get("implausible_gain")
        if largest is None or gain <= largest or len(self.ledger.finished) < 5:
            return None
        self.ledger.append("quarantine", number=attempt.number, gain=gain, score=score)
        self.console.line(
            f"  {score:.6f} is {gain:.6f} better: too good to be believed once; it runs again with another seed",
            "yellow",
        )
        folder = self.lab.folder / "trials" / f"{attempt.number}-again"
        view = self.console.trial(attempt, folder, self.lab.time_budget, f"again, seed {self.lab.seed + 1}", worker)
        again = self.lab.trial(folder, view, seed=self.lab.seed + 1, caches=folder / "caches", worker=worker)
        try:
            outcome = self.measure(attempt, again, self.lab.seed + 1)
            if outcome.score is None:
                return Verdict("crash", f"in quarantine: {outcome.reason}")
            second = self.judge(attempt, [outcome.score])
            objection = (
                self.unlocked(again.guard)
                or self.unlocked(again.holdout)[0]
                or (second.status != "keep" and second.reason)
            )
            return Verdict("discard", f"in quarantine, with another seed: {objection}") if objection else None
        finally:
            again.tidy(keep_weights=False)
            shutil.rmtree(folder / "caches", ignore_errors=True)

    def interrupted(self, attempt: Attempt) -> None:
        self.ledger.append("interrupted", number=attempt.number)
        self.console.line(f"  interrupted: experiment {attempt.number} runs again when the run is continued", "yellow")

    # -- an agent that drives by itself

    def try_edit(self) -> Attempt | None:
        """One experiment: the edit that stands in the worktree, or one that was interrupted. None when the edit was refused."""
        pending = next(
            (
                attempt
                for attempt in self.ledger.pending
                if attempt.agent == Driver.name and self.stands_on_champion(attempt)
            ),
            None,
        )
        if pending and self.lab.edit() not in (pending.edit, self.ledger.champion.edit):
            self.record_verdict(pending, Verdict("crash", LEFT))
            pending = None
        attempt = pending or self.next_attempt()
        if attempt and not self.stop.level:
            self.try_until_verdict(attempt)
        return attempt

    def try_until_verdict(self, attempt: Attempt) -> None:
        """One trial, again where it stood still, and the worktree back to the champion."""
        while self.try_out(attempt) is None and not self.stop.level:
            pass
        self.lab.settle()


# ----------------------------------------------------------------------------------------------
# Command line

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Tag = Annotated[str | None, typer.Option(help="Name of the run. Default: the last run, else today's date.")]
Profile = Annotated[str | None, typer.Option(help="gpu, cpu or test. Default: gpu where there is one, else cpu.")]
Data = Annotated[str | None, typer.Option(help="climbmix, sotu or a folder. Default: the profile's.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every trial: picking seeds is not research.")]
Rule = Annotated[
    str,
    typer.Option(
        "--keep-rule",
        help="margin: a gain must exceed half of what noise does to it, and the price of the lines "
        "that it adds. strict: any gain.",
    ),
]
BaselineRuns = Annotated[int, typer.Option(min=1, help="How often the baseline is trained, to know the noise.")]
SandboxMode = Annotated[
    str,
    typer.Option(
        "--sandbox",
        help="auto: confine trials where the kernel can. require: refuse to run "
        "where it cannot. off: trust the agent's code.",
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="One line an event, no live view.")]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    experiments: Annotated[
        int | None, typer.Option(min=1, help="Stop when the run has this many, the baseline included.")
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Start no experiment after this many hours.")] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(min=0, metavar="USD", help="Start no experiment when the run's proposals have cost this."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Start no experiment when they have taken this many tokens.")
    ] = None,
    tag: Tag = None,
    agent: Annotated[
        str,
        typer.Option(
            help=f"Who proposes: {', '.join(AGENTS)}; auto: the first that is ready. NAME:MODEL for a certain model. "
            "A,B: both, the better one more often."
        ),
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="The agent's model. Default: the agent's own.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Of claude-api: any server with a Messages API.")] = None,
    thinking: Annotated[
        str | None,
        typer.Option(
            help="Of claude-api: low, medium, high, xhigh, max, off, or a budget in tokens for models that take one."
        ),
    ] = None,
    agent_command: Annotated[str | None, typer.Option(help="The program of --agent command.")] = None,
    agent_limit: Annotated[float, typer.Option(min=1, help="Seconds for one proposal.")] = 1800,
    web_search: Annotated[
        bool, typer.Option("--web-search", help="Let the agent search the web when it is stuck.")
    ] = False,
    fill: Annotated[str | None, typer.Option(help="sweep: proposes while the agent cannot be reached.")] = None,
    repairs: Annotated[
        int, typer.Option(min=0, help="How often an edit that crashed in its first minute goes back to the agent.")
    ] = 1,
    lookahead: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Proposals to have ready while a trial runs. Default: 1 for agents that take time to think, else 0.",
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            "--gpu",
            metavar="0,1,..",
            help="GPUs to use, by their numbers in nvidia-smi: a trial at a time on "
            "each. Default: the first, or those of the run.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time, without GPUs. Default: 1, or as the run has it.")
    ] = None,
    brief_tokens: Annotated[int, typer.Option(min=4000, help="How much the agent is told.")] = BUDGET,
    profile: Profile = None,
    data: Data = None,
    seed: Seed = 42,
    keep_rule: Rule = "margin",
    baseline_runs: BaselineRuns = 2,
    sandbox_mode: SandboxMode = "auto",
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", help="Called with one JSON line on its standard input on each keep, stop and fault."
        ),
    ] = None,
    detached: Annotated[
        bool,
        typer.Option(
            "--detach", help="Go on in the background, also when the terminal is closed: see status, logs, stop."
        ),
    ] = False,
    plain: Plain = False,
) -> None:
    """Let an agent do language-model research: it edits train.py, each edit is trained for a fixed
    time, scored, and kept or thrown away. The same command again continues the run."""
    if context.invoked_subcommand:
        return
    if detached:
        return run_detached(tag)
    console = Console(plain)
    stop = StopRequest(console.line)
    limits = Limits(experiments, hours, max_cost, max_tokens)
    options = AgentOptions(agent, model, base_url, thinking, agent_command, agent_limit, web_search, seed)
    agents, said = make_agents(options)
    if fill not in (None, "sweep"):
        raise UserError(f"--fill takes sweep, not {fill!r}")
    filler = (
        make_agents(dataclasses.replace(options, agent=fill, model=None, base_url=None, thinking=None, command=None))[
            0
        ][0]
        if fill
        else None
    )
    notifier = Notifier(notify, lambda fault: console.line(fault, "yellow")) if notify else None
    with (
        contextlib.closing(notifier) if notifier else contextlib.nullcontext(),
        open_lab(tag, sandbox_mode, console, stop) as lab,
        console.following(lab, limits, notifier),
    ):
        lab.begin()
        lab.use(gpus, workers)
        if lookahead is None:
            lookahead = int(any(agent.mends for agent in agents))
        loop = Loop(
            lab,
            Proposing(lab, web_search, brief_tokens),
            agents,
            rule_of(keep_rule, lab),
            baseline_runs,
            filler,
            repairs,
            lookahead,
        )
        open_ended = max_cost is None and any(hasattr(agent, "model") for agent in agents)
        shown = {
            "agent": said,
            "at once": count(len(lab.devices), "trial") if len(lab.devices) > 1 else "",
            "until": str(limits),
            **({"cost": "not limited: --max-cost USD would"} if open_ended else {}),
        }
        lab.prepare(settings_of(profile, data), seed, lambda facts: first_screen(lab, facts, shown))
        note_start(lab, keep_rule)
        try:
            reason = loop.night(limits)
        except Exception as error:
            with contextlib.suppress(OSError):  # the disk may be what failed
                lab.ledger.append("stop", reason=f"a fault: {one_line(str(error))}")
            raise
        lab.ledger.append("stop", reason=reason)
        console.tell(
            "stop",
            reason=reason,
            experiments=len(lab.ledger.finished),
            kept=len(lab.ledger.kept),
            score=lab.ledger.champion and lab.ledger.champion.score,
        )
        show_end(lab, reason)
    if stop.now():
        raise typer.Exit(130)


def run_detached(tag: str | None) -> None:
    folder = folder_of(tag)
    process, said = detach(loop_command(arguments(), folder.name), folder)
    print(said)
    if process:
        print(f"\nIt goes on as process {process}, and prints to {folder / LOG}.")
        for command, words in (
            ("status", "how it stands"),
            ("logs -f", "what it prints"),
            ("stop", "stops it after the running experiment"),
        ):
            print(f"  {f'uv run loop.py {command} --tag {folder.name}':<50} {words}")


def arguments() -> list[str]:
    """What this program was called with. `run` may be said, and need not."""
    return sys.argv[2:] if sys.argv[1:2] == ["run"] else sys.argv[1:]


def folder_of(tag: str | None) -> Path:
    """The folder of a run, whether there is one or not."""
    runs = root_of(repository_of(Path.cwd(), RUNS)) / RUNS
    return runs / choose_tag(runs, tag)


def rule_of(name: str, lab: Lab) -> KeepRule:
    if name not in RULES:
        raise UserError(f"--keep-rule takes {' or '.join(RULES)}, not {name!r}")
    return RULES[name] if name == "strict" else dataclasses.replace(RULES[name], line_price=lab.task.line_price)


def settings_of(profile: str | None, data: str | None) -> dict[str, str]:
    """Environment variables of the game. A folder's path must mean the same from the worktree."""
    if data and data not in ("climbmix", "sotu"):
        data = str(Path(data).expanduser().resolve())
    return {name: value for name, value in (("AUTORESEARCH_PROFILE", profile), ("AUTORESEARCH_DATA", data)) if value}


def note_start(lab: Lab, keep_rule: str, driven: bool = False) -> None:
    lab.ledger.append(
        "start",
        code=lab.code,
        keep_rule=keep_rule,
        agenda=read_agenda(lab.root / "program.md"),
        setup=round(time.monotonic() - lab.console.began, 3),
        driven=driven,
        workers=len(lab.devices),
        gpus=lab.gpus,
    )
    lab.results.rebuild()


@app.command()
def start(
    tag: Tag = None,
    profile: Profile = None,
    data: Data = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every trial. Default: the run's, else 42.")] = None,
    keep_rule: Annotated[
        str | None, typer.Option(help="margin or strict, as for the loop itself. Default: the run's, else margin.")
    ] = None,
    baseline_runs: BaselineRuns = 1,
    gpu: Annotated[
        str | None,
        typer.Option(help="The GPU to use, by its number in nvidia-smi. Default: the run's, else the first."),
    ] = None,
    sandbox_mode: SandboxMode = "auto",
    plain: Plain = False,
) -> None:
    """For an agent that drives by itself (see program.md): begin a run or find it again, train the baseline, and say where to edit."""
    console = Console(plain)
    stop = StopRequest(console.line)
    with open_lab(tag, sandbox_mode, console, stop) as lab, console.following(lab):
        lab.begin(keep_edit=bool(lab.ledger.champion))
        lab.use(gpu)
        keep_rule = keep_rule or lab.ledger.keep_rule or "margin"
        loop = Loop(lab, Proposing(lab, driven=True), [], rule_of(keep_rule, lab), baseline_runs)
        lab.prepare(
            lab.recorded_settings() | settings_of(profile, data),
            lab.ledger.seed if seed is None else seed,
            lambda facts: first_screen(lab, facts, {"agent": "the one that called this: it drives"}),
        )
        note_start(lab, keep_rule, driven=True)
        if lab.ledger.champion is None and not stop.level:
            loop.try_until_verdict(next(iter(lab.ledger.pending), None) or loop.next_attempt())
        if champion := lab.ledger.champion:
            for name in lab.task.editable:
                console.line(f"edit      {(lab.repo.worktree / name).relative_to(lab.root)}")
            console.line(f"champion  experiment {champion.number}, {lab.task.metric} {champion.score:.6f}")
            console.line('then      uv run loop.py try -m "what and why"')
    if stop.now():
        raise typer.Exit(130)


@app.command("try")
def try_(
    message: Annotated[str, typer.Option("--message", "-m", help="What was changed, and why.")],
    category: Annotated[str, typer.Option(help="What kind of change it is, e.g. optimizer.")] = "",
    hypothesis: Annotated[str, typer.Option(help="Why it should help.")] = "",
    predicted: Annotated[float | None, typer.Option(help="The change of the metric that is expected.")] = None,
    lesson: Annotated[str, typer.Option(help="What the last verdicts taught, for later runs.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, everything else to standard error.")
    ] = False,
    tag: Tag = None,
    sandbox_mode: SandboxMode = "auto",
    plain: Plain = False,
) -> None:
    """For an agent that drives by itself: run the edit that stands in the worktree, keep or discard it, and say so.

    Exit code 0: kept. 1: discarded. 3: it crashed. 4: it was refused, and stands where it stood. 2: bad use, or a fault that
    has to be mended first. 130: it was stopped; the same command goes on."""
    console = Console(plain, to_errors=as_json)
    stop = StopRequest(console.line)
    if not message.strip():
        raise UserError('-m needs a description: uv run loop.py try -m "what and why"')
    tag, _ = recorded_run(root_of(repository_of(Path.cwd(), RUNS)), tag, "begin one: uv run loop.py start")
    with open_lab(tag, sandbox_mode, console, stop) as lab, console.following(lab):
        if lab.ledger.champion is None:
            raise UserError(f"run {tag} has no baseline yet: uv run loop.py start")
        lab.begin(keep_edit=True)
        lab.use()
        keep_rule = lab.ledger.keep_rule or "margin"
        driver = Driver(Proposal(message, hypothesis, predicted, category, lesson))
        loop = Loop(lab, Proposing(lab, driven=True), [driver], rule_of(keep_rule, lab))
        lab.prepare(lab.recorded_settings(), lab.ledger.seed, lambda facts: None)
        note_start(lab, keep_rule, driven=True)
        attempt = loop.try_edit()
        answer = answer_of(lab, attempt, loop.proposing.stages)
    if stop.level and not (attempt and attempt.status):
        raise typer.Exit(130)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        show_answer(console, answer)
    raise typer.Exit({"keep": 0, "discard": 1, "crash": 3}.get(answer["verdict"], 4))


@app.command()
def verify(
    tag: Tag = None,
    runs: Annotated[
        int, typer.Option(min=2, help="How often each code is trained, each time with another fresh seed.")
    ] = 3,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Also leave out each kept change in turn: which of them carry the gain?")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Ablate, then write a branch without the changes that do not, and run that too."),
    ] = False,
    sandbox_mode: SandboxMode = "auto",
    plain: Plain = False,
) -> None:
    """Run baseline and champion again with fresh seeds, and say what the gain is. The same command again continues."""
    console = Console(plain)
    stop = StopRequest(console.line)
    tag, _ = recorded_run(root_of(repository_of(Path.cwd(), RUNS)), tag)
    with open_lab(tag, sandbox_mode, console, stop) as lab, console.following(lab):
        kept = lab.ledger.kept
        if len(kept) < 2:
            raise UserError(f"run {tag} has kept nothing after its baseline, so there is no gain to verify")
        lab.begin(keep_edit=True)
        lab.use()
        verification = Verification(lab, runs)
        lab.prepare(
            lab.recorded_settings(),
            lab.ledger.seed,
            lambda facts: console.first_screen(
                f"autoresearch: verify run {tag}",
                {
                    "baseline": f"{short(kept[0].commit)}, {lab.task.metric} {kept[0].score:.6f} in the run",
                    "champion": f"{short(kept[-1].commit)}, {kept[-1].score:.6f}, {count(len(kept) - 1, 'change')} kept",
                    "runs": f"{runs} of each code, with fresh seeds, in turn",
                    "sandbox": sandbox_says(lab.confined),
                    "to stop": "Ctrl-C: after the running one; twice: now. The same command continues",
                },
            ),
        )
        finished = verification(ablate, prune)
        for line, style in lines_of(verification.findings()):
            console.line(line, style)
        if not finished:
            console.line("stopped before all was run; the same command continues")
    if stop.now():
        raise typer.Exit(130)


@app.command()
def status(
    tag: Tag = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; autoresearch/status.py says what its keys mean.")
    ] = False,
    plain: Plain = False,
) -> None:
    """How a run stands: champion, what runs, the last verdicts, costs, where the time went. Of a loop in any process, and of one that has ended."""
    _, ledger = recorded_run(root_of(repository_of(Path.cwd(), RUNS)), tag)
    state = look(ledger)
    if as_json:
        print(keys.scrub(json.dumps(dataclasses.asdict(state), ensure_ascii=False)))
    else:
        Console(plain).status(state)


@app.command("stop")
def stop_(
    tag: Tag = None,
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="At once. The running experiment has no verdict, and runs again when the run is continued."
        ),
    ] = False,
) -> None:
    """Ask a running loop to stop after its experiment, as Ctrl-C does. Exit code 1: no loop is running."""
    folder = folder_of(tag)
    said = ask_to_stop(folder, folder.name, now)
    print(said or f"no loop is running on tag {folder.name}")
    if not said:
        raise typer.Exit(1)


@app.command()
def logs(
    tag: Tag = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the loop ends, or Ctrl-C.")] = False,
    trial: Annotated[
        bool, typer.Option("--trial", help="What the running trial prints instead; where none runs, the last one.")
    ] = False,
) -> None:
    """What a detached loop has printed."""
    folder = folder_of(tag)
    if not trial and not (folder / LOG).exists():
        raise UserError(
            f"run {folder.name} was not detached, so what its loop printed is in its terminal. `uv run loop.py status --tag {folder.name}` "
            f"says how it stands, `uv run loop.py logs --trial --tag {folder.name}` what its trial prints"
        )
    try:
        for line in read_along(folder, follow, trial):
            print(line, flush=True)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # its reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command()
def report(
    tag: Tag = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to. Default: report/ in the run's own folder.")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write report.pdf as well.")] = False,
) -> None:
    """Write a short paper of a run, from its record alone: what was kept, what it is worth, what did not help, what it cost."""
    repository = repository_of(Path.cwd(), RUNS)
    root = root_of(repository)
    tag, ledger = recorded_run(root, tag)
    if ledger.champion is None:
        raise UserError(f"run {tag} has no baseline yet, so there is nothing to report")
    repo, task = RunRepo(repository, tag, ledger.path.parent), task_of(ledger.run["task"])
    diffs = {attempt.number: repo.diff(attempt.parent, attempt.commit, task.editable) for attempt in ledger.kept[1:]}
    path = write_report(Run(tag, task, ledger, diffs), output or ledger.path.parent / "report", pdf)
    print(f"{path}: {count(len(ledger.finished), 'experiment')} of run {tag}")


@app.command()
def watch(
    tag: Tag = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1. Default: one that is free.")] = 0,
) -> None:
    """Show a run live in a browser: curve, table, the diff of each attempt, the running log. It only reads; Ctrl-C ends it."""
    repository = repository_of(Path.cwd(), RUNS)
    tag, ledger = recorded_run(root_of(repository), tag, "begin one: uv run loop.py")
    serve(Watch(RunRepo(repository, tag, ledger.path.parent), task_of(ledger.run["task"]), ledger), port)


@app.command()
def results(tag: Tag = None) -> None:
    """Write results.tsv again, from the journal."""
    root = root_of(repository_of(Path.cwd(), RUNS))
    tag, ledger = recorded_run(root, tag)
    file = Results(root / "results.tsv", ledger)
    file.require_ours(root / RUNS)
    file.rebuild()
    print(f"{file.path}: {len(ledger.finished)} experiments of run {tag}")


def main() -> None:
    try:
        app(arguments())
    except UserError as error:
        print(f"error: {keys.scrub(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (OSError, git.GitCommandError) as error:
        if disk_is_full(error):
            print(
                "error: the disk is full. Nothing that was recorded is lost: free some space and run the same command again",
                file=sys.stderr,
            )
        elif isinstance(error, PermissionError):
            print(
                f"error: {error.filename} cannot be written: {error.strerror}. Nothing that was recorded is lost: mend its permissions "
                "and run the same command again",
                file=sys.stderr,
            )
        elif isinstance(error, git.GitCommandError):
            print(
                f"error: git failed: {error}\nNothing that was recorded is lost: mend it and run the same command again",
                file=sys.stderr,
            )
        else:
            raise
        sys.exit(2)


if __name__ == "__main__":
    main()
