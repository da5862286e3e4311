"""One experiment, from its commit to its verdict: train and score, judge, guard and holdout, confirm, record.

`Experiments.decide` decides whether an edit is kept. An experiment is a coroutine; it awaits the jobs that it gives to
the runner, and between two awaits no other task runs. If it is cancelled, its attempt has no verdict and runs again
when the run is continued.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection
from pathlib import Path

from autoresearch import Stopped, UserError
from autoresearch.ahead import Ahead
from autoresearch.gate import Gate
from autoresearch.ideas import Ideas
from autoresearch.judge import KeepRule, Verdict, mean
from autoresearch.lessons import Lessons
from autoresearch.pages import Pages
from autoresearch.record import events
from autoresearch.record.ledger import ABANDONED, OUTRUN, Attempt
from autoresearch.record.runs import RUNS
from autoresearch.run import Run
from autoresearch.runner import GUARD, HOLDOUT, TRAIN, Measurement, Seat, SeatLost
from autoresearch.runner.identity import boot
from autoresearch.text import to_type
from autoresearch.tiers import Tiers
from autoresearch.trials import Disturbed, Tell, Trials, without_score

LOSSES = 5  # how often a trial runs again after losing its seat: the edit itself may crash the node
DOWNS = 2  # how often the machine may go down during a trial before the edit is taken for the cause
EARLY = 60.0  # seconds: an edit that crashes earlier than this may be repaired and run again
PROBED = ("holdout_gap", "holdout_error")  # figures of a holdout command that the record keeps besides its score


@dataclasses.dataclass
class Returned:
    """An attempt that goes back to its agent, which is asked to redo the edit under the same number."""

    attempt: Attempt
    reason: str
    crashed: bool  # it crashed early in its trial; otherwise its edit does not apply to the new champion
    verdict: events.Verdict  # recorded if the agent does not redo it


class Experiments:
    """The experiments of one run.

    rule: when an edit is kept. baseline_runs: how often the baseline is trained; None: depends on how long it takes.
    repairs: how often an edit that crashed early goes back to its agent. can_retry: whether the agent of an attempt can
    redo it. gate: what needs a person's approval. compile_ahead: whether to compile for attempts that wait.
    """

    def __init__(
        self,
        run: Run,
        rule: KeepRule,
        pages: Pages,
        baseline_runs: int | None = 1,
        repairs: int = 0,
        can_retry: Callable[[Attempt], bool] = lambda attempt: False,
        gate: Gate | None = None,
        compile_ahead: bool = False,
    ) -> None:
        self.run, self.ledger, self.task, self.console = run, run.ledger, run.task, run.console
        self.trials, self.pages, self.repairs = Trials(run, rule, baseline_runs), pages, repairs
        self.gate, self.tiers, self.ahead = gate or Gate(), Tiers(run, self.trials), Ahead(run, compile_ahead)
        self.can_retry, self.lessons = can_retry, Lessons(run.root / RUNS / "lessons.md")
        self.disk, self.ideas = run.disk, Ideas(run.root / RUNS)

    async def stands_on_champion(self, attempt: Attempt) -> bool | Returned:
        """Rebase a waiting attempt onto the champion, unless it is built on it already.

        True: it can run. Returned: git cannot apply it there, and its agent is asked to redo the edit. False: its agent
        cannot redo it either; the attempt now has a verdict.
        """
        if attempt.parent == self.ledger.champion_commit or await self.disk.with_room(lambda: self.run.move(attempt)):
            return True
        champion = self.ledger.champion
        number = champion.number if champion else 0
        reason = f"experiment {number} was kept while this edit waited, and changed the same lines, so {OUTRUN[0]}"
        verdict = self.verdict_event(attempt, Verdict("crash", reason))
        if self.can_retry(attempt):
            return Returned(attempt, reason, False, verdict)
        await self.conclude(verdict)
        return False

    def suits(self, seat: Seat, attempt: Attempt, running: Collection[int]) -> bool:
        """Whether an attempt may begin on an idle seat now. One during whose trial the machine went down runs by
        itself: so no other is blamed if that happens again. running: the numbers of all running trials.
        """
        alone = any(self.ledger.attempts[number - 1].reruns[events.DOWN] for number in (attempt.number, *running))
        return not (alone and running) and self.tiers.suits(seat, attempt)

    async def try_out(self, attempt: Attempt, seat: Seat) -> Returned | None:
        """Run an attempt until it has a verdict, unless it has to go back to its agent or to run again.

        Raises UserError when the baseline crashed.
        """
        if attempt.status:  # it had its verdict already when the disk was full
            return None
        if self.ledger.went_down(attempt, boot()):
            return await self.after_going_down(attempt)
        await self.console.before_trial(attempt, seat.number)
        waited = time.monotonic()
        try:
            await self.trials.wait_for_quiet(attempt, seat)
        except Stopped:
            return None
        waited = round(time.monotonic() - waited, 1)
        began = time.monotonic()
        self.run.require_own_code()
        here = "" if seat.node else boot()
        trial = events.Trial(number=attempt.number, worker=seat.number, waited=waited, node=seat.node, boot=here)
        self.ledger.append(trial)
        again = f"it looked good on {self.run.tiers[0]}; now on {seat.kind}" if attempt.promoted else ""
        try:
            with self.console.trial(attempt, again, seat=seat.number) as view:
                await self.trials.look_at(attempt, seat)
                if self.run.screens(seat):
                    verdict, measured = await self.tiers.screen(attempt, seat, view)
                    checked = Measurement()
                    if verdict.status == "keep":
                        return await self.tiers.promote(attempt, verdict, measured, time.monotonic() - began)
                else:
                    measured = await self.trials.first(attempt, seat, view)
                    self.trials.require_undisturbed(attempt, measured)
                    if measured.score is not None:
                        await self.trials.champion_again(attempt, seat)
                    verdict, checked = await self.decide(attempt, measured, seat, view)
        except Disturbed as disturbed:
            return self.run_again(attempt, str(disturbed), began, disturbed.taken, disturbed.why)
        except SeatLost as lost:
            if attempt.reruns[events.LOST] < LOSSES:
                return self.run_again(attempt, f"{lost}: it runs again", began, why=events.LOST)
            measured = checked = Measurement()
            verdict = Verdict("crash", f"{lost}, as {LOSSES} times before")
        except asyncio.CancelledError:
            self.ledger.append(events.Interrupted(number=attempt.number))
            self.console.line(f"  interrupted: experiment {attempt.number} runs again when you continue", "yellow")
            raise
        if verdict.status == "crash":
            self.disk.require_room()
        event = self.verdict_event(attempt, verdict, measured, checked, time.monotonic() - began)
        early = verdict.status == "crash" and measured.score is None and time.monotonic() - began < EARLY
        if early and attempt.repairs < self.repairs and not self.run.stop.level and self.can_retry(attempt):
            crash = events.Crashed(number=attempt.number, commit=attempt.commit, reason=verdict.reason)
            self.ledger.append(crash)
            return Returned(attempt, verdict.reason, True, event)
        if attempt.parent == self.ledger.champion_commit and self.gate.holds_keep(self.ledger, event):
            held = events.Held(number=attempt.number, what="keep", verdict=dataclasses.asdict(event))
            await self.disk.with_room(lambda: self.run.hold(held))
            return None
        if not await self.conclude(event):
            number = self.ledger.champion.number if self.ledger.champion else 0
            why = f"it beat the champion that it was built on, but experiment {number} was kept meanwhile: testing it"
            return self.run_again(attempt, f"{why} on top of that", began)
        self.require_champion(attempt, measured, checked)
        return None

    async def after_going_down(self, attempt: Attempt) -> None:
        """The machine was restarted before an attempt's trial had ended (a panic, a power failure): it runs again, but
        not for ever, since the edit itself may be the cause, and something may start the loop after each boot.
        """
        if attempt.reruns[events.DOWN] + 1 < DOWNS:
            why = "the machine was restarted before its trial had ended"
            return self.run_again(attempt, why, time.monotonic(), why=events.DOWN)
        reason = f"the machine was restarted {DOWNS} times before its trial had ended, and nobody had stopped the loop"
        await self.conclude(self.verdict_event(attempt, Verdict("crash", reason)))
        self.require_champion(attempt)

    def require_champion(self, attempt: Attempt, *measured: Measurement) -> None:
        """Raises UserError if there is none because the baseline, which this attempt was, crashed."""
        if self.ledger.champion is None:
            raise UserError(
                f"the baseline crashed: {attempt.reason}\nIts log is {self.log_of(attempt, *measured)}. "
                f"Correct {', '.join(self.task.editable)} or program.md, commit it, and run the same command again. "
                f"If neither is to blame, `{to_type('doctor')}` checks this machine"
            )

    async def settle(self, waiting: list[Attempt], proposing: bool) -> None:
        """Hold what needs approval, and act on what people have approved or rejected.

        waiting: attempts that could run next. proposing: whether an agent is at work.
        """
        edits = [attempt.number for attempt in waiting if self.gate.holds_edit(self.ledger, attempt)]
        held = [events.Held(number=number, what="edit") for number in edits]
        if not proposing and self.gate.holds_cost(self.ledger):
            held.append(events.Held(number=len(self.ledger.attempts) + 1, what="cost"))
        for event in held:
            await self.disk.with_room(lambda event=event: self.run.hold(event))
        for number, (held, no) in list(self.ledger.words.items()):
            attempt, began = self.ledger.attempts[number - 1], time.monotonic()
            if held.what == "edit":
                reason = f"rejected before its trial: {no.reason if no else ''}"
                await self.conclude(self.verdict_event(attempt, Verdict("crash", reason)))
                continue
            verdict = events.Verdict(**held.verdict)
            if no:
                reason = f"rejected: {no.reason} ({verdict.reason})"
                verdict = dataclasses.replace(verdict, status="discard", reason=reason, holdout=None)
            if not await self.conclude(verdict):
                why = "another experiment was kept while it waited for approval: testing it on top of that"
                self.run_again(attempt, why, began)

    def tidy(self) -> None:
        """Remove what the last trials left, if the loop was killed before it did so. Weights of a keep are copied if
        they are still on a node of a cluster.
        """
        for attempt in self.ledger.finished[-max(1, len(self.run.runner.seats)) :]:
            with contextlib.suppress(OSError):
                self.run.runner.tidy(str(attempt.number), keep_weights=attempt.status == "keep")

    def log_of(self, attempt: Attempt, *measured: Measurement) -> Path:
        """The log of the command that failed."""
        failed = next((part.failed for part in measured if part.failed), TRAIN)
        return self.run.runner.log_path(str(attempt.number)).with_name(f"{failed}.log")

    async def abandon(self, attempt: Attempt) -> None:
        """Give up an interrupted attempt because its agent has gone on to another edit. One that a person accepted
        waits until no other edit is in the worktree.
        """
        if attempt.number not in self.ledger.accepted:
            await self.conclude(self.verdict_event(attempt, Verdict("crash", ABANDONED[0])))

    # -- run

    def run_again(self, attempt: Attempt, reason: str, began: float, taken: float | None = None, why: str = "") -> None:
        """Discard what was measured; the attempt waits to run again."""
        seconds = round(time.monotonic() - began, 3)
        self.ledger.append(events.Rerun(number=attempt.number, reason=reason, seconds=seconds, taken=taken, why=why))
        self.console.line(f"  experiment {attempt.number}: {reason}", "yellow")

    # -- judge

    async def decide(
        self, attempt: Attempt, measured: Measurement, seat: Seat, tell: Tell
    ) -> tuple[Verdict, Measurement]:
        """Decide whether an edit is kept. Returns (the verdict, what guard and holdout measured).

        It is kept if it beats the champion by more than noise (judge.py) and passes the guard and the holdout. An
        implausibly large gain must repeat with another seed; in other repositories a person then has to accept it.
        Raises Disturbed.
        """
        nothing = Measurement()
        if measured.score is None:
            return without_score(measured), nothing
        standing = self.ledger.standing(attempt)
        on_champion = attempt.parent == self.ledger.champion_commit  # if not, and it wins, it runs again on top of it
        if on_champion and self.trials.is_for_turns(attempt, standing):
            verdict = await self.trials.time_in_turn(attempt, seat)
        else:
            verdict = self.trials.judge(attempt, self.ledger.latest(attempt))
        baseline = self.ledger.kept[0].figures if self.ledger.kept else measured.figures
        also = "; ".join(filter(None, (self.task.others(measured.figures, baseline), self.trials.note(attempt))))
        if also:
            verdict = dataclasses.replace(verdict, reason=f"{verdict.reason}; {also}")
        if verdict.status != "keep" or not on_champion:
            return verdict, nothing
        if beyond := self.task.beyond(measured.figures, baseline):
            return Verdict("discard" if standing else "crash", beyond), nothing
        checked = await self.trials.check(str(attempt.number), self.run.seed, seat, tell)
        self.trials.require_undisturbed(attempt, checked)
        if checked.failed == GUARD:
            return Verdict("discard", f"the guard failed: {checked.reason}"), checked
        if checked.failed == HOLDOUT:
            return Verdict("crash", f"on the holdout: {checked.reason}"), checked
        if not standing:
            objection = await self.trials.baseline_again(attempt, seat, sum(measured.seconds.values()))
        else:
            objection = await self.trials.confirm(attempt, measured.score, abs(measured.score - mean(standing)), seat)
            objection = objection or await self.trials.in_turn(attempt, seat)
        if objection:
            return objection, checked
        if len(attempt.runs) > 1:
            last = self.trials.judge(attempt, self.ledger.latest(attempt))
            verdict = dataclasses.replace(last, reason=f"{last.reason}; {also}") if also else last
        return verdict, checked

    # -- record, keep or reset

    def verdict_event(
        self,
        attempt: Attempt,
        verdict: Verdict,
        measured: Measurement | None = None,
        checked: Measurement | None = None,
        wall: float = 0.0,
    ) -> events.Verdict:
        """The journal event for a verdict. Without a measurement the attempt never ran."""
        crashed, (theirs, own) = verdict.status == "crash", self.ledger.turns(attempt.number)
        standing = theirs or self.ledger.standing(attempt)
        measured, checked = measured or Measurement(), checked or Measurement()
        holdout = checked.figures.get(self.task.holdout_metric)
        return events.Verdict(
            number=attempt.number,
            status=verdict.status,
            reason=verdict.reason,
            score=None if crashed else mean(own or self.ledger.latest(attempt)),
            memory_gb=0.0 if crashed else measured.memory_gb,
            figures={**measured.figures, **{name: checked.figures[name] for name in PROBED if name in checked.figures}},
            holdout=holdout if verdict.status == "keep" else None,
            noise=self.ledger.noise(attempt.is_screened),
            standing=mean(standing) if standing else None,
            standing_runs=len(standing),
            seconds={**measured.seconds, **checked.seconds, "wall": round(wall, 3)},
        )

    async def conclude(self, verdict: events.Verdict) -> bool:
        """Write the verdict to the journal and to results.tsv, and move the branch to the champion.

        Returns False and does nothing if the verdict is keep but the champion it beat has been replaced meanwhile.
        """
        attempt = self.ledger.attempts[verdict.number - 1]
        if not await self.disk.with_room(lambda: self.record_unless_outrun(attempt, verdict)):
            return False
        advice = f"its rows are in the journal, and `{to_type('results')}` writes them"
        await self.disk.write_aside("results.tsv", lambda: self.run.results.add(attempt), advice)
        await self.disk.with_room(self.run.advance)
        with contextlib.suppress(OSError):  # a file that cannot be removed does not affect the verdict
            self.run.runner.tidy(str(attempt.number), keep_weights=attempt.status == "keep")
        await self.disk.write_aside("attempts/", lambda: self.pages.write(attempt))
        if attempt.status == "keep":
            await self.disk.write_aside("lessons.md", lambda: self.lessons.confirm(attempt.lesson))
        await self.disk.write_aside("ideas.md", lambda: self.ideas.follow(attempt, self.run.repo.tag))
        self.console.verdict(attempt, verdict.seconds["wall"])
        return True

    def record_unless_outrun(self, attempt: Attempt, verdict: events.Verdict) -> bool:
        """Compare with the champion and write, without an await: another edit may have been kept during a wait."""
        if verdict.status == "keep" and attempt.parent != self.ledger.champion_commit:
            return False
        self.ledger.append(verdict)
        return True
