"""The trials of an experiment: the first one, and further ones that show how reliable its score is.

A baseline runs several times; a champion runs again after a while; if scores are noisy, an edit takes turns with its
champion; and if its gain is too good to be true, it runs once more with every row probed. experiment.py draws the
conclusions, by the rules of judge.py.
"""

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from autoresearch.judge import (
    ENOUGH,
    MOST_TURNS,
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
    noise_of_turns,
    step_of,
)
from autoresearch.paces import Paces
from autoresearch.record import events
from autoresearch.record.conditions import alike, if_comparable
from autoresearch.record.events import DISTURBED, SUSPENDED
from autoresearch.record.ledger import HELD, Attempt
from autoresearch.run import Run
from autoresearch.runner import GUARD, HOLDOUT, Job, Measurement, Phase, Seat, SeatLost
from autoresearch.tasks import cancel
from autoresearch.text import digits, duration, to_type

SUSPENSIONS = 3  # times that a trial which was suspended is run again
DISTURBANCES = 2  # times that one of which others took processors is, before it counts all the same
BESIDE = 5  # times that a champion runs again because others take more or less than before
BASELINES, SHORT = 5, 60.0  # runs of a baseline that takes less than so many seconds, in other repositories
FIRST_TURN, FIRST_ALONE = 100, 200  # the seeds of runs in turn, and of the champion alone, are the run's plus these
BUSY = 0.05  # of a time, from one run to the next: above it a person is told
SETTLED = 5  # verdicts that are needed before a gain can be too large to be believed once

Tell = Callable[[Phase], None]


class Disturbed(Exception):
    """What was measured does not count; the text says why. why: SUSPENDED or DISTURBED, which are counted; empty for
    other reasons. taken: share of the machine that others used.
    """

    def __init__(self, text: str, why: str = "", taken: float | None = None) -> None:
        super().__init__(text)
        self.why, self.taken = why, taken


class Trials:
    """The trials of one run. rule: when an edit is kept. baseline_runs: None: depends on how long one takes."""

    def __init__(self, run: Run, rule: KeepRule, baseline_runs: int | None = 1) -> None:
        self.run, self.ledger, self.task, self.console = run, run.ledger, run.task, run.console
        self.rule, self.baseline_runs = rule, baseline_runs
        self.paces = Paces(run)
        self.again = asyncio.Lock()  # held while the champion runs again

    async def first(self, attempt: Attempt, seat: Seat, view: Tell) -> Measurement:
        """Train and score an attempt with the run's seed.

        If the metric is a time, the baseline runs on all seats at once, because later edits will share the machine too.
        """
        seats, once = self.seats_from(seat), self.baseline_runs == 1
        if self.ledger.champion or not self.task.is_timed or len(seats) == 1 or once:
            measured = await self.measure(attempt, str(attempt.number), self.run.seed, seat, view)
            if attempt.is_baseline:
                await self.paces.compare([seat], [measured])
            return measured
        results = await self.baseline(attempt, range(1, len(seats) + 1), seats)
        return next((measured for measured in results if measured.score is None or measured.suspended), results[0])

    async def measure(
        self, attempt: Attempt, name: str, seed: int, seat: Seat, tell: Tell, fresh_caches: bool = False
    ) -> Measurement:
        """Train and score, and record the score as a run of the attempt."""
        measured = await self.train(attempt, name, seed, seat, tell, fresh_caches)
        await self.count(attempt, seed, measured, seat)
        return measured

    async def train(
        self, code: Attempt, name: str, seed: int, seat: Seat, tell: Tell, fresh_caches: bool = False
    ) -> Measurement:
        """Train and score the code of an attempt."""
        return await self.run.runner.run(self.run.job(code.commit, name, seed, fresh_caches), seat, tell)

    async def train_again(
        self, code: Attempt, name: str, seed: int, seat: Seat, why: str, during: Attempt | None = None
    ) -> Measurement:
        """Train and score code in a further trial. why: as people are told. during: the attempt that needs it, unless
        it is that of the code itself.
        """
        with self.console.trial(during or code, again=why, seat=seat.number) as view:
            return await self.train(code, name, seed, seat, view)

    async def count(self, attempt: Attempt, seed: int, measured: Measurement, seat: Seat) -> None:
        """Record a measurement as a run of the attempt, if it has a score."""
        if measured.score is not None and not measured.suspended:
            run = run_of(attempt.number, seed, measured)
            screens = self.run.screens(seat)
            await self.run.record(events.Screened(kind=seat.kind, **run) if screens else events.Measured(**run))

    async def check(self, name: str, seed: int, seat: Seat, tell: Tell, fresh_caches: bool = False) -> Measurement:
        """Run guard and holdout after a trial. A guard that fails runs once more: some fail by chance."""
        job = Job(name, {}, seed, (GUARD, HOLDOUT), fresh_caches)
        measured = await self.run.runner.run(job, seat, tell)
        if measured.failed != GUARD or measured.suspended:
            return measured
        again = await self.run.runner.run(job, seat, tell)
        if again.failed != GUARD:
            self.console.line(f"  the guard failed, but passed when it ran again: {measured.reason}", "yellow")
        return again

    def judge(self, attempt: Attempt, scores: list[float]) -> Verdict:
        """Judge the scores of an attempt against those of the champion that it was built on."""
        sign = 1 if self.task.lower_is_better else -1
        standing = self.ledger.standing(attempt)
        bases = itertools.takewhile(lambda kept: kept.commit != attempt.parent, self.ledger.kept)
        taken, most = attempt.last_taken, self.ledger.most_taken
        screened = attempt.is_screened
        groups = (standing, *(if_comparable(self.ledger.runs_of(base, screened), taken, most) for base in bases))
        best = min((mean(group) for group in groups if group), key=lambda score: sign * score, default=None)
        lines = attempt.lines or 0
        return judge(scores, standing, self.ledger.noise(screened), lines, self.rule, self.task.lower_is_better, best)

    # -- the baseline

    async def baseline_again(self, attempt: Attempt, seat: Seat, seconds: float) -> Verdict | None:
        """Train the baseline again, with other seeds, to estimate the noise. Returns why it is rejected, or None.

        seconds: how long one run took.
        """
        times = self.baseline_runs or (BASELINES if seconds < SHORT and not self.task.referee else 2)
        first = len(attempt.own) + 1
        while first <= times:
            if first > 2 and not self.baseline_runs and len({score for _, score in attempt.own}) == 1:
                break  # there is no noise
            seats = self.seats_from(seat)
            numbers = range(first, min(first + len(seats), times + 1) if self.baseline_runs else first + len(seats))
            first = numbers.stop
            for number, measured in zip(numbers, await self.baseline(attempt, numbers, seats), strict=True):
                self.require_undisturbed(attempt, measured)
                if measured.score is None:
                    return Verdict("crash", f"in run {number}: {measured.reason}")
        if self.task.is_timed and (noise := noise_of_turns([score for _, score in attempt.own], [])) > BUSY:
            seen = ENOUGH * noise / MOST_TURNS**0.5
            self.console.line(
                f"  one run differs from the next by {noise:.0%}, so gains below {seen:.0%} will rarely be detected: "
                "use a quieter machine, a longer workload, or `repeats` in program.md",
                "yellow",
            )
        return None

    async def baseline(self, attempt: Attempt, numbers: Sequence[int], seats: list[Seat]) -> list[Measurement]:
        """Train the baseline on several seats at once. numbers: of these runs; number 1 has the run's seed."""
        runs = []
        for number, seat in zip(numbers, seats, strict=False):
            name = f"{attempt.number}-{number}" if number > 1 else str(attempt.number)
            seed = self.run.seed + number - 1
            work = self.train_again(attempt, name, seed, seat, f"run {number} of the baseline, seed {seed}")
            runs.append((name, seed, seat, asyncio.create_task(work)))
        tasks = [task for *_, task in runs]
        try:
            results = await asyncio.gather(*tasks)
        except BaseException:
            cancel(*tasks)
            await asyncio.wait(tasks)
            raise
        await self.paces.compare([seat for *_, seat, _ in runs], results)
        if seats[0].node in self.ledger.aside:
            raise SeatLost(f"{seats[0].node} is not used any more")  # its earlier measurements do not count either
        for (name, seed, seat, _), measured in zip(runs, results, strict=True):
            if seat.node not in self.ledger.aside:
                await self.count(attempt, seed, measured, seat)
            if name != str(attempt.number):
                self.run.runner.tidy(name, keep_weights=False)
        return results

    async def look_at(self, attempt: Attempt, seat: Seat) -> None:
        """Before a seat on a node that joined later runs an attempt: check whether the baseline is as fast there as
        elsewhere. Raises Disturbed if it is not.
        """
        if attempt.is_baseline or not self.paces.is_new(seat):
            return
        baseline, name = self.ledger.kept[0], f"{attempt.number}-look-{seat.number}"
        why = f"the baseline, to see whether {seat.node} is as fast as the others"
        measured = await self.train_again(baseline, name, self.run.seed, seat, why)
        self.run.runner.tidy(name, keep_weights=False)
        if measured.score is None:
            await self.paces.exclude(seat.node, f"failed: {measured.reason}")
        elif not measured.suspended:
            await self.paces.compare([seat], [measured])
        if seat.node in self.ledger.aside:
            raise Disturbed(f"{seat.node} is not used any more: it runs elsewhere")

    def seats_from(self, seat: Seat) -> list[Seat]:
        """All seats of the same kind, the given one first."""
        others = (other for other in self.run.runner.seats if other is not seat and other.kind == seat.kind)
        return [seat, *(other for other in others if other.node not in self.ledger.aside)]

    # -- taking turns with the champion

    def is_for_turns(self, attempt: Attempt, standing: list[float]) -> bool:
        """Whether an edit is judged only by taking turns: if the metric is a time and the difference is not clear."""
        if not standing or not self.task.is_timed or not self.repeats_runs or not (noise := self.ledger.noise()):
            return False
        return could_be_noise(abs(mean(standing) - mean(attempt.runs)), noise, attempt.runs, standing)

    async def time_in_turn(self, attempt: Attempt, seat: Seat) -> Verdict:
        """Run edit and champion in turn until it is clear which is faster: the speed of a machine drifts. The edit's
        first run is its first turn.
        """
        champion, lower = self.ledger.champion, self.task.lower_is_better
        assert champion
        first = events.InTurn(number=attempt.number, edit=attempt.number, seed=self.run.seed, score=attempt.runs[0])
        await self.run.record(first)
        turn, verdict = 1, None
        while not verdict:
            seed = self.run.seed + (FIRST_TURN + turn if turn > 1 else 0)
            for code in (attempt, champion):
                if (turn > 1 or code is champion) and (crash := await self.turn(code, attempt, turn, seed, seat)):
                    return crash
            gains = gains_of(*self.ledger.turns(attempt.number), lower)
            turn, verdict = turn + 1, judge_turns(gains, self.ledger.noise_of_turns())
        return verdict

    async def in_turn(self, attempt: Attempt, seat: Seat) -> Verdict | None:
        """If noise could explain a gain, run champion and edit in turn before it is kept.

        A machine that is busy for a while then affects both. Returns why the edit is not kept, or None.
        """
        champion, standing, noise = self.ledger.champion, self.ledger.standing(attempt), self.ledger.noise()
        assert champion
        gain = (mean(standing) - mean(attempt.runs)) * (1 if self.task.lower_is_better else -1)
        _, timed = self.ledger.turns(attempt.number)
        if timed or not self.repeats_runs or not could_be_noise(gain, noise, attempt.runs, standing):
            return None
        said = f"noise could explain a gain of {digits(gain)}: edit and champion run {TURNS} times in turn"
        self.console.line(f"  {said}", "yellow")
        for turn in range(1, TURNS + 1):
            for code in (champion, attempt):
                if crash := await self.turn(code, attempt, turn, self.run.seed + FIRST_TURN + turn, seat):
                    return crash
        theirs, fresh = self.ledger.turns(attempt.number)
        rule = dataclasses.replace(self.rule, margin=TURN_MARGIN, slack=0.0)
        last = judge(fresh, theirs, self.ledger.noise(), attempt.lines or 0, rule, self.task.lower_is_better)
        return None if last.status == "keep" else Verdict("discard", f"in turn with its champion: {last.reason}")

    async def turn(self, code: Attempt, attempt: Attempt, turn: int, seed: int, seat: Seat) -> Verdict | None:
        """Run one turn of an edit or its champion. Returns why the edit is not kept, or None."""
        name = f"{attempt.number}-turn-{turn}-{code.number}"
        measured = await self.train_again(code, name, seed, seat, f"turn {turn}, experiment {code.number}", attempt)
        self.run.runner.tidy(name, keep_weights=False)
        self.require_undisturbed(attempt, measured)
        if measured.score is None:
            whose = "" if code is attempt else "the champion, "
            return Verdict("crash", f"{whose}in turn {turn}: {measured.reason}")
        await self.run.record(events.InTurn(edit=attempt.number, **run_of(code.number, seed, measured)))
        return None

    @property
    def repeats_runs(self) -> bool:
        """Whether code runs again to measure its score better. Not in this project's own game, where trials are long
        and only the margin counts; and not with `strict`, which keeps any gain.
        """
        return bool(self.rule.margin) and not self.task.referee

    async def champion_again(self, attempt: Attempt, seat: Seat) -> None:
        """Measure the champion again if its score is no fair comparison for an attempt that has just run: because the
        machine was clearly more or less busy then, or because scores are noisy and the champion's is old, so that one
        lucky score does not last forever. Raises Disturbed if the two are still not comparable.
        """
        async with self.again:  # one worker at a time: the next may be able to use the same run
            await self.champion_again_now(attempt, seat)

    async def champion_again_now(self, attempt: Attempt, seat: Seat) -> None:
        """The same, while holding the lock."""
        champion = self.ledger.champion
        if champion is None or attempt.parent != champion.commit:
            return
        screened = attempt.is_screened
        beside = len(champion.screened_again if screened else self.ledger.in_turn.get(0, {}).get(champion.number, ()))
        unlike = beside < BESIDE and self.is_unlike(attempt, champion)
        stale = self.repeats_runs and self.ledger.stale[screened] >= STALE and self.ledger.noise(screened)
        if not (unlike or stale):
            return
        self.ledger.stale[screened] = 0  # also if the run fails: the next verdicts are not all to try it
        name, seed = f"{champion.number}-alone-{beside + 1}", self.run.seed + FIRST_ALONE + beside + 1
        why = "the machine is more or less busy now" if unlike else "its score may have been luck"
        measured = await self.train_again(champion, name, seed, seat, f"the champion again: {why}")
        self.run.runner.tidy(name, keep_weights=False)
        if measured.score is not None and not measured.suspended:  # a failure is not the next edit's fault
            run, during = run_of(champion.number, seed, measured), attempt.number
            again = events.InTurn(edit=0, during=during, **run)
            if screened:
                again = events.Screened(kind=seat.kind, during=during, **run)
            await self.run.record(again)
            if unlike and self.is_unlike(attempt, champion):
                said = taken_in_words(attempt.last_taken or 0.0, attempt.taken_by)
                self.disturbed(attempt, attempt.last_taken or 0.0, f"{said}, and no run of its champion is comparable")

    def is_unlike(self, attempt: Attempt, champion: Attempt) -> bool:
        """Whether the machine was clearly more or less busy during an attempt than during all runs of the champion."""
        taken, most = attempt.last_taken, self.ledger.most_taken
        runs = self.ledger.runs_of(champion, attempt.is_screened)
        if taken is None or most is None or alike(runs, taken, most):
            return False
        return taken > most or any(other is not None for other, _ in runs)

    # -- quarantine

    async def confirm(self, attempt: Attempt, score: float, gain: float, seat: Seat) -> Verdict | None:
        """Quarantine: an implausibly large gain has to repeat in a second trial. Returns why it is not kept, or None.

        The second trial has another seed, does not share the run's compile cache, and probes every row of both splits.
        If the task does not say what is implausible, judge.py does; a person then has to accept the edit.
        """
        largest, bounds, lower = self.run.facts.implausible_gain, self.task.range, self.task.lower_is_better
        standing = mean(self.ledger.standing(attempt))
        seen = [other for other in self.ledger.finished if largest is not None or other.score is not None]
        settled = len(seen) >= SETTLED and attempt.number not in self.ledger.accepted
        if largest is None:
            step, steps = step_of(standing, score, lower, bounds), self.ledger.steps(lower, bounds)
            doubted = not self.task.referee and is_far_outside(step, steps)
            if doubted and not settled:
                ref, drop = f"refs/autoresearch/{self.run.repo.tag}/{attempt.number}", f"drop {attempt.number}"
                said = f"a large gain: look at what it changes, `git show {ref}`; `{to_type(drop)}` drops it"
                self.console.line(f"  {said}", "yellow")
        else:
            doubted = gain > largest
        if not (doubted and settled):
            return None
        self.ledger.append(events.Quarantine(number=attempt.number, gain=gain, score=score))
        self.console.line(
            f"  {digits(score)} is {digits(gain)} better, which is suspiciously good: it runs again with another seed",
            "yellow",
        )
        name, seed = f"{attempt.number}-again", self.run.seed + 1
        with self.console.trial(attempt, again=f"again, seed {seed}", seat=seat.number) as view:
            try:
                measured = await self.measure(attempt, name, seed, seat, view, fresh_caches=True)
                self.require_undisturbed(attempt, measured)
                await self.champion_again(attempt, seat)
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
                        f"{HELD}: it gains {digits(gain)}, by far the largest step of this run towards the best "
                        f"possible score; look at what it changes, `git show {ref}`, and if that is sound, "
                        f"`{to_type(accept)}`",
                    )
                return Verdict("discard", f"in quarantine, with another seed: {objection}") if objection else None
            finally:
                self.run.runner.tidy(name, keep_weights=False)

    # -- suspended, or disturbed by other programs

    def require_undisturbed(self, attempt: Attempt, measured: Measurement) -> None:
        """Raise Disturbed if a trial was suspended, or if other programs used clearly more of the CPU than during its
        champion's trials: the whole attempt then runs again, a limited number of times.
        """
        if measured.suspended:
            if attempt.reruns[SUSPENDED] < SUSPENSIONS:
                raise Disturbed(suspension_of(measured), SUSPENDED)
        elif (taken := measured.taken) is not None and self.is_disturbed(attempt, taken):
            said = taken_in_words(taken, measured.taken_by)
            self.disturbed(attempt, taken, f"{said}, so it made less progress")

    def disturbed(self, attempt: Attempt, taken: float, why: str) -> None:
        """Raise Disturbed, unless the attempt has been disturbed too often already."""
        if attempt.reruns[DISTURBED] < DISTURBANCES:
            raise Disturbed(f"{why}: it runs again", DISTURBED, taken)

    def is_disturbed(self, attempt: Attempt, taken: float) -> bool:
        """Whether other programs used clearly more during an attempt's trial than during any of its champion's."""
        return self.ledger.most_taken is not None and taken > self.most_before(attempt) + self.ledger.most_taken

    def most_before(self, attempt: Attempt) -> float:
        """The largest share that other programs used during a run of the champion that an attempt was built on."""
        base = self.ledger.base_of(attempt)
        runs = self.ledger.runs_of(base, attempt.is_screened) if base else ()
        return max((taken or 0.0 for taken, _ in runs), default=0.0)

    def note(self, attempt: Attempt) -> str:
        """A note for the verdict that the machine was busy; empty if it was not."""
        taken, most = attempt.last_taken, self.ledger.most_taken
        if taken is None or most is None or taken <= most:
            return ""
        base = self.ledger.base_of(attempt)
        unlike = base and not alike(self.ledger.runs_of(base), taken, most)
        return taken_in_words(taken, attempt.taken_by) + (", clearly more than for its champion" if unlike else "")

    async def wait_for_quiet(self, attempt: Attempt, seat: Seat) -> None:
        """Before a disturbed attempt runs again, wait until the machine is free, at most as long as a training takes.
        Raises Stopped when the user asks to stop meanwhile.
        """
        if attempt.reruns[DISTURBED]:
            limit = self.run.facts.time_budget or 0.0
            self.console.line(f"  waiting until the machine is free, at most {duration(limit)}", "yellow")
            most = self.most_before(attempt) + (self.ledger.most_taken or 0.0)
            await self.run.stop.unless_asked(self.run.runner.quiet(seat, most, limit))


def run_of(number: int, seed: int, measured: Measurement) -> dict[str, Any]:
    """The event fields of a run that has a score. number: whose code it ran."""
    fields = {"seed": seed, "score": measured.score, "seconds": dict(measured.seconds)}
    return {"number": number, **fields, "taken": measured.taken, "taken_by": measured.taken_by}


def without_score(measured: Measurement) -> Verdict:
    """The verdict on a trial without a score."""
    if measured.suspended:
        return Verdict("crash", f"{suspension_of(measured)}, after {SUSPENSIONS} earlier suspensions")
    return Verdict("crash", measured.reason)


def suspension_of(measured: Measurement) -> str:
    return f"it was suspended for {measured.suspended:.0f} s"


def taken_in_words(taken: float, by: str) -> str:
    return by or f"other programs used {taken:.0%} of the CPU while it trained"
