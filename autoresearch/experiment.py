"""One experiment, from its commit to its verdict: train and score, judge, guard and holdout, confirm, record.

An experiment is a coroutine. What takes long, a job of the runner, is awaited; between two awaits nothing else happens.
Cancelled, it leaves an attempt without a verdict, which runs again when the run goes on.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autoresearch import UserError, disk_is_full
from autoresearch.gate import Gate
from autoresearch.judge import (
    STALE,
    TURN_MARGIN,
    TURNS,
    KeepRule,
    Verdict,
    could_be_noise,
    gains_of,
    is_far_outside,
    judge,
    judge_turns,
    mean,
)
from autoresearch.lessons import Lessons
from autoresearch.pages import Pages
from autoresearch.record import events
from autoresearch.record.ledger import ABANDONED, HELD, OUTRUN, Attempt
from autoresearch.record.runs import RUNS
from autoresearch.run import Run
from autoresearch.runner import GUARD, HOLDOUT, TRAIN, Job, Measurement, Phase, Seat
from autoresearch.text import to_type

EARLY = 60.0  # seconds: a trial that crashed before may be repaired and run again
SUSPENSIONS = 3  # times that a trial which was suspended is run again
PROBED = ("holdout_gap", "holdout_error")  # figures of a holdout command that the record keeps besides its score
BASELINES, SHORT = 5, 60.0  # runs of a baseline that takes less than so many seconds, in other repositories
FIRST_TURN, FIRST_ALONE = 100, 200  # the seeds of runs in turn, and of the champion alone, are the run's plus these
SETTLED = 5  # verdicts that are needed before a gain can be too large to be believed once

Tell = Callable[[Phase], None]


@dataclasses.dataclass
class Returned:
    """An attempt whose agent is asked to redo the edit, under the same number."""

    attempt: Attempt
    reason: str
    crashed: bool  # early in its trial; else its edit does not apply to the new champion
    verdict: events.Verdict  # recorded if the agent does not


class Experiments:
    """The experiments of one run.

    rule: what is kept. baseline_runs: how often the baseline is trained; None: by what it takes. repairs: how often an
    edit that crashed early goes back to its agent. can_retry: whether the agent of an attempt can make it anew. gate:
    what waits for a word.
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
    ) -> None:
        self.run, self.ledger, self.task, self.console = run, run.ledger, run.task, run.console
        self.rule, self.pages, self.baseline_runs, self.repairs = rule, pages, baseline_runs, repairs
        self.gate = gate or Gate()
        self.can_retry, self.lessons = can_retry, Lessons(run.root / RUNS / "lessons.md")
        self.suspensions: dict[int, int] = {}  # by number of an attempt

    async def stands_on_champion(self, attempt: Attempt) -> bool | Returned:
        """Put an attempt that waited onto the champion, if it is not there yet.

        True: it can be run. Returned: git cannot apply it there, and its agent is to redo the edit. False: nor can its
        agent; it has its verdict.
        """
        if attempt.parent == self.ledger.champion_commit or await self.run.with_room(lambda: self.run.move(attempt)):
            return True
        champion = self.ledger.champion
        number = champion.number if champion else 0
        reason = f"experiment {number} was kept while this edit waited, and changed the same lines, so {OUTRUN[0]}"
        verdict = self.verdict_event(attempt, Verdict("crash", reason))
        if self.can_retry(attempt):
            return Returned(attempt, reason, False, verdict)
        await self.conclude(verdict)
        return False

    async def try_out(self, attempt: Attempt, seat: Seat) -> Returned | None:
        """Run an attempt to its verdict. It may have none: it goes back to its agent, or waits to be run again.

        Raises UserError when the baseline crashed.
        """
        if attempt.status:  # a full disk came after the verdict
            return None
        await self.console.before_trial(attempt, seat.number)
        began = time.monotonic()
        self.run.require_own_code()
        self.ledger.append(events.Trial(number=attempt.number, worker=seat.number))
        view = self.console.trial(attempt, seat=seat.number)
        try:
            await self.run_champion_again(seat)
            measured = await self.first_trial(attempt, seat, view)
            if rerun := self.suspended(attempt, measured):
                return self.run_again(attempt, rerun, began)
            verdict, checked = await self.decide(attempt, measured, seat, view)
        except Suspended as suspended:
            return self.run_again(attempt, str(suspended), began)
        except asyncio.CancelledError:
            self.ledger.append(events.Interrupted(number=attempt.number))
            self.console.line(f"  interrupted: experiment {attempt.number} runs again when the run goes on", "yellow")
            raise
        finally:
            view.close()
        if verdict.status == "crash":
            self.run.require_room()
        event = self.verdict_event(attempt, verdict, measured, checked, time.monotonic() - began)
        early = verdict.status == "crash" and measured.score is None and time.monotonic() - began < EARLY
        if early and attempt.repairs < self.repairs and not self.run.stop.level and self.can_retry(attempt):
            crash = events.Crashed(number=attempt.number, commit=attempt.commit, reason=verdict.reason)
            self.ledger.append(crash)
            return Returned(attempt, verdict.reason, True, event)
        if attempt.parent == self.ledger.champion_commit and self.gate.holds_keep(self.ledger, event):
            held = events.Held(number=attempt.number, what="keep", verdict=dataclasses.asdict(event))
            await self.run.with_room(lambda: self.run.hold(held))
            return None
        if not await self.conclude(event):
            number = self.ledger.champion.number if self.ledger.champion else 0
            why = f"it beat the champion that it was built on, but experiment {number} was kept meanwhile: it is tested"
            return self.run_again(attempt, f"{why} on top of that", began)
        if self.ledger.champion is None:
            raise UserError(
                f"the baseline crashed: {verdict.reason}\nIts log is {self.log_of(attempt, measured, checked)}. "
                f"Correct {', '.join(self.task.editable)} and commit it, or program.md, and run the same command "
                f"again. Where neither is to blame: `{to_type('doctor')}` checks this machine"
            )
        return None

    async def settle(self, waiting: list[Attempt], proposing: bool) -> None:
        """Act on what people said of what was held, and hold what has to be.

        waiting: attempts that could run next. proposing: whether an agent is at work.
        """
        edits = [attempt.number for attempt in waiting if self.gate.holds_edit(self.ledger, attempt)]
        held = [events.Held(number=number, what="edit") for number in edits]
        if not proposing and self.gate.holds_cost(self.ledger):
            held.append(events.Held(number=len(self.ledger.attempts) + 1, what="cost"))
        for event in held:
            await self.run.with_room(lambda event=event: self.run.hold(event))
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
                why = "another experiment was kept while it waited for a word: it is tested on top of that"
                self.run_again(attempt, why, began)

    def log_of(self, attempt: Attempt, *measured: Measurement) -> Path:
        """The log of the command that failed."""
        failed = next((part.failed for part in measured if part.failed), TRAIN)
        return self.run.runner.log_path(str(attempt.number)).with_name(f"{failed}.log")

    async def abandon(self, attempt: Attempt) -> None:
        """The verdict on an attempt that was interrupted and is not wanted any more."""
        await self.conclude(self.verdict_event(attempt, Verdict("crash", ABANDONED[0])))

    # -- run

    async def first_trial(self, attempt: Attempt, seat: Seat, view: Tell) -> Measurement:
        """Train and score an attempt with the run's seed.

        A baseline whose time is measured runs on all seats at once: it is compared with edits that share the machine.
        """
        seats, once = self.seats_from(seat), self.baseline_runs == 1
        if self.ledger.champion or not self.task.is_timed or len(seats) == 1 or once:
            return await self.measure(attempt, str(attempt.number), self.run.seed, seat, view)
        results = await self.run_baseline(attempt, range(1, len(seats) + 1), seats)
        return next((measured for measured in results if measured.score is None or measured.suspended), results[0])

    async def measure(
        self, attempt: Attempt, name: str, seed: int, seat: Seat, tell: Tell, fresh_caches: bool = False
    ) -> Measurement:
        """Train and score. What has a score counts among the attempt's runs from here on."""
        measured = await self.train(attempt, name, seed, seat, tell, fresh_caches)
        await self.count(attempt, seed, measured)
        return measured

    async def train(
        self, code: Attempt, name: str, seed: int, seat: Seat, tell: Tell, fresh_caches: bool = False
    ) -> Measurement:
        """Train and score the code of an attempt."""
        files, gone = self.run.files(code.commit), self.run.gone(code.commit)
        return await self.run.runner.run(Job(name, files, seed, fresh_caches=fresh_caches, gone=gone), seat, tell)

    async def count(self, attempt: Attempt, seed: int, measured: Measurement) -> None:
        """Into the record, as a run of the attempt, if it has a score."""
        if measured.score is not None and not measured.suspended:
            seconds, score = dict(measured.seconds), measured.score
            await self.run.record(events.Measured(number=attempt.number, seed=seed, score=score, seconds=seconds))

    async def check(self, name: str, seed: int, seat: Seat, tell: Tell, fresh_caches: bool = False) -> Measurement:
        """Guard and holdout of a trial that has its score. A guard that fails runs once more: some fail by chance."""
        job = Job(name, {}, seed, (GUARD, HOLDOUT), fresh_caches)
        measured = await self.run.runner.run(job, seat, tell)
        if measured.failed != GUARD or measured.suspended:
            return measured
        again = await self.run.runner.run(job, seat, tell)
        if again.failed != GUARD:
            self.console.line(f"  the guard failed, and did not when it ran again: {measured.reason}", "yellow")
        return again

    def suspended(self, attempt: Attempt, measured: Measurement) -> str:
        """Why a trial that was suspended runs again; empty if it was not, or has been too often."""
        if not measured.suspended:
            return ""
        self.suspensions[attempt.number] = self.suspensions.get(attempt.number, 0) + 1
        return in_words(measured) if self.suspensions[attempt.number] <= SUSPENSIONS else ""

    def run_again(self, attempt: Attempt, reason: str, began: float) -> None:
        """What was measured does not count, and the attempt waits to be run again."""
        seconds = round(time.monotonic() - began, 3)
        self.ledger.append(events.Rerun(number=attempt.number, reason=reason, seconds=seconds))
        self.console.line(f"  experiment {attempt.number}: {reason}", "yellow")

    # -- judge

    def judge(self, attempt: Attempt, scores: list[float]) -> Verdict:
        """The judge's word on scores of an attempt, against those of the champion that it was built on."""
        sign = 1 if self.task.lower_is_better else -1
        standing = self.ledger.standing(attempt)
        bases = itertools.takewhile(lambda kept: kept.commit != attempt.parent, self.ledger.kept)
        groups = (standing, *map(self.ledger.scores, bases))
        best = min((mean(group) for group in groups if group), key=lambda score: sign * score, default=None)
        lines = attempt.lines or 0
        return judge(scores, standing, self.ledger.noise(), lines, self.rule, self.task.lower_is_better, best)

    async def decide(
        self, attempt: Attempt, measured: Measurement, seat: Seat, tell: Tell
    ) -> tuple[Verdict, Measurement]:
        """(The verdict on a trial, what its checks measured.) This is where it is decided that an edit is kept.

        Better than the champion by more than noise (judge.py), the guard and the holdout passed, and a gain that is too
        large to be believed repeated with another seed; in other repositories a person looks at it then. Raises
        Suspended.
        """
        nothing = Measurement()
        if measured.score is None:
            again = f", as {SUSPENSIONS} times before" if measured.suspended else ""
            return Verdict("crash", in_words(measured) + again if again else measured.reason), nothing
        standing = self.ledger.standing(attempt)
        on_champion = attempt.parent == self.ledger.champion_commit  # else it runs again, on top of that
        if on_champion and self.is_for_turns(attempt, standing):
            verdict = await self.time_in_turn(attempt, seat)
        else:
            verdict = self.judge(attempt, attempt.runs)
        baseline = self.ledger.kept[0].figures if self.ledger.kept else measured.figures
        if others := self.task.others(measured.figures, baseline):
            verdict = dataclasses.replace(verdict, reason=f"{verdict.reason}; {others}")
        if verdict.status != "keep" or not on_champion:
            return verdict, nothing
        if beyond := self.task.beyond(measured.figures, baseline):
            return Verdict("discard" if standing else "crash", beyond), nothing
        checked = await self.check(str(attempt.number), self.run.seed, seat, tell)
        if checked.failed == GUARD:
            return Verdict("discard", f"the guard failed: {checked.reason}"), checked
        if checked.failed == HOLDOUT:
            return Verdict("crash", f"on the holdout: {checked.reason}"), checked
        if not standing:
            objection = await self.run_baseline_again(attempt, seat, sum(measured.seconds.values()))
        else:
            objection = await self.confirm(attempt, measured.score, abs(measured.score - mean(standing)), seat)
            objection = objection or await self.run_in_turn(attempt, seat)
        if objection:
            return objection, checked
        if len(attempt.runs) > 1:
            last = self.judge(attempt, attempt.runs)
            verdict = dataclasses.replace(last, reason=f"{last.reason}; {others}") if others else last
        return verdict, checked

    async def run_baseline_again(self, attempt: Attempt, seat: Seat, seconds: float) -> Verdict | None:
        """Train the baseline again, with other seeds, to know the noise. Why it does not stand, or None.

        seconds: that it took.
        """
        times = self.baseline_runs or (BASELINES if seconds < SHORT and not self.task.referee else 2)
        seats = self.seats_from(seat)
        for first in range(len(attempt.runs) + 1, times + 1, len(seats)):
            if first > 2 and not self.baseline_runs and len(set(attempt.runs)) == 1:
                break  # it has no noise
            numbers = range(first, min(first + len(seats), times + 1) if self.baseline_runs else first + len(seats))
            for number, measured in zip(numbers, await self.run_baseline(attempt, numbers, seats), strict=True):
                self.require_unsuspended(attempt, measured)
                if measured.score is None:
                    return Verdict("crash", f"in its run {number}: {measured.reason}")
        return None

    async def run_baseline(self, attempt: Attempt, numbers: Sequence[int], seats: list[Seat]) -> list[Measurement]:
        """Train the baseline on several seats at once. numbers: of its runs; the first has the run's seed."""
        runs = []
        for number, seat in zip(numbers, seats, strict=False):
            name = f"{attempt.number}-{number}" if number > 1 else str(attempt.number)
            seed = self.run.seed + number - 1
            view = self.console.trial(attempt, again=f"run {number} of the baseline, seed {seed}", seat=seat.number)
            runs.append((name, seed, asyncio.create_task(self.train(attempt, name, seed, seat, view))))
        tasks = [task for _, _, task in runs]
        try:
            results = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise
        for (name, seed, _), measured in zip(runs, results, strict=True):
            await self.count(attempt, seed, measured)
            if name != str(attempt.number):
                self.run.runner.tidy(name, keep_weights=False)
        return results

    def seats_from(self, seat: Seat) -> list[Seat]:
        """All seats, that one first."""
        return [seat, *(other for other in self.run.runner.seats if other is not seat)]

    async def run_in_turn(self, attempt: Attempt, seat: Seat) -> Verdict | None:
        """Where scores are noisy, run champion and edit in turn before a gain that noise could explain is kept.

        A machine that is busy for a while is so for both. Why it is not kept, or None.
        """
        champion, standing, (_, timed) = (
            self.ledger.champion,
            self.ledger.standing(attempt),
            self.ledger.turns(attempt.number),
        )
        gain = (mean(standing) - mean(attempt.runs)) * (1 if self.task.lower_is_better else -1)
        noise = self.ledger.noise()
        if timed or not self.repeats_runs or not could_be_noise(gain, noise, attempt.runs, standing):
            return None
        assert champion
        said = f"noise could explain a gain of {gain:.6f}: it runs {TURNS} times in turn with its champion"
        self.console.line(f"  {said}", "yellow")
        for turn in range(1, TURNS + 1):
            for code in (champion, attempt):
                if crash := await self.run_turn(code, attempt, turn, self.run.seed + FIRST_TURN + turn, seat):
                    return crash
        theirs, fresh = self.ledger.turns(attempt.number)
        rule = dataclasses.replace(self.rule, margin=TURN_MARGIN, slack=0.0)
        last = judge(fresh, theirs, self.ledger.noise(), attempt.lines or 0, rule, self.task.lower_is_better)
        return None if last.status == "keep" else Verdict("discard", f"in turn with its champion: {last.reason}")

    def is_for_turns(self, attempt: Attempt, standing: list[float]) -> bool:
        """Whether an edit is judged by runs in turn alone: where a time is measured, unless the difference is clear."""
        if not standing or not self.task.is_timed or not self.repeats_runs or not (noise := self.ledger.noise()):
            return False
        return could_be_noise(abs(mean(standing) - mean(attempt.runs)), noise, attempt.runs, standing)

    async def time_in_turn(self, attempt: Attempt, seat: Seat) -> Verdict:
        """Run edit and champion in turn, beginning with the run that the edit has had, until it is clear which is
        faster: the speed of a machine drifts.
        """
        champion, sign = self.ledger.champion, self.task.lower_is_better
        assert champion
        first = events.InTurn(number=attempt.number, edit=attempt.number, seed=self.run.seed, score=attempt.runs[0])
        await self.run.record(first)
        turn, verdict = 1, None
        while not verdict:
            seed = self.run.seed + (FIRST_TURN + turn) * (turn > 1)
            for code in (attempt, champion):
                if (turn > 1 or code is champion) and (crash := await self.run_turn(code, attempt, turn, seed, seat)):
                    return crash
            gains = gains_of(*self.ledger.turns(attempt.number), sign)
            turn, verdict = turn + 1, judge_turns(gains, self.ledger.noise_of_turns())
        return verdict

    async def run_turn(self, code: Attempt, attempt: Attempt, turn: int, seed: int, seat: Seat) -> Verdict | None:
        """Run an edit or its champion in turn. Why the edit is not kept, or None."""
        name = f"{attempt.number}-turn-{turn}-{code.number}"
        view = self.console.trial(attempt, again=f"turn {turn}, experiment {code.number}", seat=seat.number)
        measured = await self.train(code, name, seed, seat, view)
        self.run.runner.tidy(name, keep_weights=False)
        self.require_unsuspended(attempt, measured)
        if measured.score is None:
            whose = "" if code is attempt else "the champion, "
            return Verdict("crash", f"{whose}in turn {turn}: {measured.reason}")
        await self.run.record(events.InTurn(number=code.number, edit=attempt.number, seed=seed, score=measured.score))
        return None

    @property
    def repeats_runs(self) -> bool:
        """Whether code runs again to know its score better. Not in this project's own game, whose trials are long and
        go by the margin alone; and `strict` keeps any gain.
        """
        return bool(self.rule.margin) and not self.task.referee

    async def run_champion_again(self, seat: Seat) -> None:
        """Where scores are noisy, measure the champion again now and then: a lucky score does not stand for ever, nor
        does one from an hour in which the machine was less busy.
        """
        champion = self.ledger.champion
        if champion is None or not self.repeats_runs or self.ledger.stale < STALE or not self.ledger.noise():
            return
        self.ledger.stale = 0  # only one of several workers does it
        number = len(self.ledger.in_turn.get((champion.number, 0), ())) + 1
        name, seed = f"{champion.number}-alone-{number}", self.run.seed + FIRST_ALONE + number
        view = self.console.trial(champion, again="the champion again: its score may have been luck", seat=seat.number)
        try:
            measured = await self.train(champion, name, seed, seat, view)
            self.run.runner.tidy(name, keep_weights=False)
        finally:
            view.close()
        if measured.score is not None and not measured.suspended:  # a failure is not the next edit's fault
            await self.run.record(events.InTurn(number=champion.number, edit=0, seed=seed, score=measured.score))

    async def confirm(self, attempt: Attempt, score: float, gain: float, seat: Seat) -> Verdict | None:
        """Quarantine: a gain larger than any honest step is believed only twice. Why it is not kept, or None.

        The second trial has another seed, no compile cache of the run's, and every row of both splits probed. Where the
        task does not say what is too large, judge.py does; a score that nobody guards is then held back for a person.
        """
        largest, bounds, lower = self.run.facts.implausible_gain, self.task.range, self.task.lower_is_better
        standing = mean(self.ledger.standing(attempt))
        seen = [other for other in self.ledger.finished if largest is not None or other.score is not None]
        settled = len(seen) >= SETTLED and attempt.number not in self.ledger.accepted
        if largest is None:
            doubted = not self.task.referee and is_far_outside(gain, standing, self.ledger.gains(), lower, bounds)
            if doubted and not settled:
                ref, drop = f"refs/autoresearch/{self.run.repo.tag}/{attempt.number}", f"drop {attempt.number}"
                said = f"a large gain: see what it changes, `git show {ref}`; `{to_type(drop)}` takes it back"
                self.console.line(f"  {said}", "yellow")
        else:
            doubted = gain > largest
        if not (doubted and settled):
            return None
        self.ledger.append(events.Quarantine(number=attempt.number, gain=gain, score=score))
        self.console.line(
            f"  {score:.6f} is {gain:.6f} better: too good to be believed once; it runs again with another seed",
            "yellow",
        )
        name, seed = f"{attempt.number}-again", self.run.seed + 1
        view = self.console.trial(attempt, again=f"again, seed {seed}", seat=seat.number)
        try:
            measured = await self.measure(attempt, name, seed, seat, view, fresh_caches=True)
            self.require_unsuspended(attempt, measured)
            if measured.score is None:
                return Verdict("crash", f"in quarantine: {measured.reason}")
            second, objection = self.judge(attempt, [measured.score]), ""
            if second.status != "keep":
                objection = second.reason
            elif (checked := await self.check(name, seed, seat, view, fresh_caches=True)).reason:
                objection = f"the guard failed: {checked.reason}" if checked.failed == GUARD else checked.reason
            if not objection and largest is None:
                ref, accept = f"refs/autoresearch/{self.run.repo.tag}/{attempt.number}", f"accept {attempt.number}"
                return Verdict(
                    "discard",
                    f"{HELD}: it gains {gain:.6f}, more than half of what can be gained and far more than all before; "
                    f"see what it changes, `git show {ref}`, and if that is sound `{to_type(accept)}`",
                )
            return Verdict("discard", f"in quarantine, with another seed: {objection}") if objection else None
        finally:
            self.run.runner.tidy(name, keep_weights=False)

    def require_unsuspended(self, attempt: Attempt, measured: Measurement) -> None:
        """Raise Suspended for a repetition that was: then the whole attempt runs again."""
        if reason := self.suspended(attempt, measured):
            raise Suspended(reason)

    # -- record, keep or reset

    def verdict_event(
        self,
        attempt: Attempt,
        verdict: Verdict,
        measured: Measurement | None = None,
        checked: Measurement | None = None,
        wall: float = 0.0,
    ) -> events.Verdict:
        """The last word on an attempt, as the record holds it. Without a measurement it never ran."""
        crashed, (theirs, own) = verdict.status == "crash", self.ledger.turns(attempt.number)
        standing = theirs or self.ledger.standing(attempt)
        measured, checked = measured or Measurement(), checked or Measurement()
        holdout = checked.figures.get(self.task.holdout_metric)
        return events.Verdict(
            number=attempt.number,
            status=verdict.status,
            reason=verdict.reason,
            score=None if crashed else mean(own or attempt.runs),
            memory_gb=0.0 if crashed else measured.memory_gb,
            figures={**measured.figures, **{name: checked.figures[name] for name in PROBED if name in checked.figures}},
            holdout=holdout if verdict.status == "keep" else None,
            noise=self.ledger.noise(),
            standing=mean(standing) if standing else None,
            standing_runs=len(standing),
            seconds={**measured.seconds, **checked.seconds, "wall": round(wall, 3)},
        )

    async def conclude(self, verdict: events.Verdict) -> bool:
        """Into the journal, into results.tsv, and the branch to the champion.

        False, and nothing is done, for what beat a champion that has been replaced meanwhile.
        """
        attempt = self.ledger.attempts[verdict.number - 1]
        if not await self.run.with_room(lambda: self.record_unless_outrun(attempt, verdict)):
            return False
        await self.run.with_room(lambda: self.add_row(attempt))
        await self.run.with_room(self.run.advance)
        with contextlib.suppress(OSError):  # it has its verdict, whatever is left lying about
            self.run.runner.tidy(str(attempt.number), keep_weights=attempt.status == "keep")
        await self.run.with_room(lambda: self.pages.write(attempt))
        if attempt.status == "keep":
            await self.run.with_room(lambda: self.lessons.confirm(attempt.lesson))
        self.console.verdict(attempt, verdict.seconds["wall"])
        return True

    def record_unless_outrun(self, attempt: Attempt, verdict: events.Verdict) -> bool:
        """Looks at the champion and writes in one step: others may have been kept while this waited for room."""
        if verdict.status == "keep" and attempt.parent != self.ledger.champion_commit:
            return False
        self.ledger.append(verdict)
        return True

    def add_row(self, attempt: Attempt) -> None:
        """Into results.tsv. A file that cannot be written does not end a night: the journal has it all."""
        behind = self.run.results.behind
        try:
            self.run.results.add(attempt)
        except OSError as error:
            if disk_is_full(error):
                raise
            if not behind:
                self.console.line(
                    f"results.tsv cannot be written: {error.strerror}. Its rows are in the journal; correct that, and "
                    f"it is written with the next verdict, or by `{to_type('results')}`",
                    "yellow",
                )


class Suspended(Exception):
    """A repetition of a trial was suspended; the text says for how long."""


def in_words(measured: Measurement) -> str:
    return f"it was suspended for {measured.suspended:.0f} s"
