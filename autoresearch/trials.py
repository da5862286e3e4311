"""The trials of an experiment: the first one, and those that say what its score is worth.

A baseline runs several times, a champion again after a while, an edit in turn with its champion where scores are noisy,
and once more, with every row probed, where its gain is too good to be true. What is concluded from it all is
experiment.py's business, by the rules of judge.py.
"""

import asyncio
import collections
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
from autoresearch.record.ledger import HELD, Attempt
from autoresearch.run import Run
from autoresearch.runner import GUARD, HOLDOUT, Job, Measurement, Phase, Seat, SeatLost
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
    """What was measured does not count: the text says why. taken: the share of the processors that others took."""

    def __init__(self, why: str, taken: float | None = None) -> None:
        super().__init__(why)
        self.taken = taken


class Trials:
    """The trials of one run. rule: what is kept. baseline_runs: of the baseline; None: by what it takes."""

    def __init__(self, run: Run, rule: KeepRule, baseline_runs: int | None = 1) -> None:
        self.run, self.ledger, self.task, self.console = run, run.ledger, run.task, run.console
        self.rule, self.baseline_runs = rule, baseline_runs
        self.suspensions = collections.Counter[int]()  # by number of an attempt
        self.disturbances = collections.Counter[int]()
        self.paces = Paces(run)
        self.again = asyncio.Lock()  # held while the champion runs again

    async def first(self, attempt: Attempt, seat: Seat, view: Tell) -> Measurement:
        """Train and score an attempt with the run's seed.

        A baseline whose time is measured runs on all seats at once: it is compared with edits that share the machine.
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
        """Train and score. What has a score counts among the attempt's runs from here on."""
        measured = await self.train(attempt, name, seed, seat, tell, fresh_caches)
        await self.count(attempt, seed, measured, seat)
        return measured

    async def train(
        self, code: Attempt, name: str, seed: int, seat: Seat, tell: Tell, fresh_caches: bool = False
    ) -> Measurement:
        """Train and score the code of an attempt."""
        return await self.run.runner.run(self.run.job(code.commit, name, seed, fresh_caches), seat, tell)

    async def count(self, attempt: Attempt, seed: int, measured: Measurement, seat: Seat) -> None:
        """Into the record, as a run of the attempt, if it has a score."""
        if measured.score is not None and not measured.suspended:
            run = run_of(attempt.number, seed, measured)
            screens = self.run.screens(seat)
            await self.run.record(events.Screened(kind=seat.kind, **run) if screens else events.Measured(**run))

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

    def judge(self, attempt: Attempt, scores: list[float]) -> Verdict:
        """The judge's word on scores of an attempt, against those of the champion that it was built on."""
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
        """Train the baseline again, with other seeds, to know the noise. Why it does not stand, or None.

        seconds: that it took.
        """
        times = self.baseline_runs or (BASELINES if seconds < SHORT and not self.task.referee else 2)
        first = len(attempt.own) + 1
        while first <= times:
            if first > 2 and not self.baseline_runs and len({score for _, score in attempt.own}) == 1:
                break  # it has no noise
            seats = self.seats_from(seat)
            numbers = range(first, min(first + len(seats), times + 1) if self.baseline_runs else first + len(seats))
            first = numbers.stop
            for number, measured in zip(numbers, await self.baseline(attempt, numbers, seats), strict=True):
                self.require_undisturbed(attempt, measured)
                if measured.score is None:
                    return Verdict("crash", f"in its run {number}: {measured.reason}")
        if self.task.is_timed and (noise := noise_of_turns([score for _, score in attempt.own], [])) > BUSY:
            seen = ENOUGH * noise / MOST_TURNS**0.5
            self.console.line(
                f"  one run differs from the next by {noise:.0%}, so gains below {seen:.0%} will hardly be seen: "
                "a quieter machine, longer work or `repeats` in program.md would help",
                "yellow",
            )
        return None

    async def baseline(self, attempt: Attempt, numbers: Sequence[int], seats: list[Seat]) -> list[Measurement]:
        """Train the baseline on several seats at once. numbers: of its runs; the first has the run's seed."""
        runs = []
        for number, seat in zip(numbers, seats, strict=False):
            name = f"{attempt.number}-{number}" if number > 1 else str(attempt.number)
            seed = self.run.seed + number - 1
            view = self.console.trial(attempt, again=f"run {number} of the baseline, seed {seed}", seat=seat.number)
            runs.append((name, seed, seat, asyncio.create_task(self.train(attempt, name, seed, seat, view))))
        tasks = [task for *_, task in runs]
        try:
            results = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise
        await self.paces.compare([seat for *_, seat, _ in runs], results)
        if seats[0].node in self.ledger.aside:
            raise SeatLost(f"{seats[0].node} is put aside")  # what it measured before does not count either
        for (name, seed, seat, _), measured in zip(runs, results, strict=True):
            if seat.node not in self.ledger.aside:
                await self.count(attempt, seed, measured, seat)
            if name != str(attempt.number):
                self.run.runner.tidy(name, keep_weights=False)
        return results

    async def look_at(self, attempt: Attempt, seat: Seat) -> None:
        """Before a seat on a node that joined later runs an attempt: see whether the baseline is as fast there as
        elsewhere. Raises Disturbed where it is not.
        """
        if attempt.is_baseline or not self.paces.is_new(seat):
            return
        baseline, name = self.ledger.kept[0], f"{attempt.number}-look-{seat.number}"
        again = f"the baseline, to see whether {seat.node} is as fast as the others"
        view = self.console.trial(baseline, again=again, seat=seat.number)
        try:
            measured = await self.train(baseline, name, self.run.seed, seat, view)
            self.run.runner.tidy(name, keep_weights=False)
        finally:
            view.close()
        if measured.score is None:
            await self.paces.put_aside(seat.node, f"failed: {measured.reason}")
        elif not measured.suspended:
            await self.paces.compare([seat], [measured])
        if seat.node in self.ledger.aside:
            raise Disturbed(f"{seat.node} is put aside: it runs elsewhere")

    def seats_from(self, seat: Seat) -> list[Seat]:
        """All seats of its kind, that one first."""
        others = (other for other in self.run.runner.seats if other is not seat and other.kind == seat.kind)
        return [seat, *(other for other in others if other.node not in self.ledger.aside)]

    # -- in turn with the champion

    def is_for_turns(self, attempt: Attempt, standing: list[float]) -> bool:
        """Whether an edit is judged by runs in turn alone: where a time is measured, unless the difference is clear."""
        if not standing or not self.task.is_timed or not self.repeats_runs or not (noise := self.ledger.noise()):
            return False
        return could_be_noise(abs(mean(standing) - mean(attempt.runs)), noise, attempt.runs, standing)

    async def time_in_turn(self, attempt: Attempt, seat: Seat) -> Verdict:
        """Run edit and champion in turn, beginning with the run that the edit has had, until it is clear which is
        faster: the speed of a machine drifts.
        """
        champion, lower = self.ledger.champion, self.task.lower_is_better
        assert champion
        first = events.InTurn(number=attempt.number, edit=attempt.number, seed=self.run.seed, score=attempt.runs[0])
        await self.run.record(first)
        turn, verdict = 1, None
        while not verdict:
            seed = self.run.seed + (FIRST_TURN + turn) * (turn > 1)
            for code in (attempt, champion):
                if (turn > 1 or code is champion) and (crash := await self.turn(code, attempt, turn, seed, seat)):
                    return crash
            gains = gains_of(*self.ledger.turns(attempt.number), lower)
            turn, verdict = turn + 1, judge_turns(gains, self.ledger.noise_of_turns())
        return verdict

    async def in_turn(self, attempt: Attempt, seat: Seat) -> Verdict | None:
        """Where scores are noisy, run champion and edit in turn before a gain that noise could explain is kept.

        A machine that is busy for a while is so for both. Why it is not kept, or None.
        """
        champion, standing, noise = self.ledger.champion, self.ledger.standing(attempt), self.ledger.noise()
        assert champion
        gain = (mean(standing) - mean(attempt.runs)) * (1 if self.task.lower_is_better else -1)
        _, timed = self.ledger.turns(attempt.number)
        if timed or not self.repeats_runs or not could_be_noise(gain, noise, attempt.runs, standing):
            return None
        said = f"noise could explain a gain of {digits(gain)}: it runs {TURNS} times in turn with its champion"
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
        """Run an edit or its champion in turn. Why the edit is not kept, or None."""
        name = f"{attempt.number}-turn-{turn}-{code.number}"
        view = self.console.trial(attempt, again=f"turn {turn}, experiment {code.number}", seat=seat.number)
        measured = await self.train(code, name, seed, seat, view)
        self.run.runner.tidy(name, keep_weights=False)
        self.require_undisturbed(attempt, measured)
        if measured.score is None:
            whose = "" if code is attempt else "the champion, "
            return Verdict("crash", f"{whose}in turn {turn}: {measured.reason}")
        await self.run.record(events.InTurn(edit=attempt.number, **run_of(code.number, seed, measured)))
        return None

    @property
    def repeats_runs(self) -> bool:
        """Whether code runs again to know its score better. Not in this project's own game, whose trials are long and
        go by the margin alone; and `strict` keeps any gain.
        """
        return bool(self.rule.margin) and not self.task.referee

    async def champion_again(self, attempt: Attempt, seat: Seat) -> None:
        """Measure the champion again where its score says too little about an attempt that has just run: others took
        clearly more of the one than of the other, or scores are noisy and many went by: a lucky one does not stand for
        ever, nor does one from an hour in which the machine was less busy. Raises Disturbed where the two still do not
        compare.
        """
        async with self.again:  # of several workers one at a time: the next may find its run good enough
            await self.champion_again_now(attempt, seat)

    async def champion_again_now(self, attempt: Attempt, seat: Seat) -> None:
        """The same, when no other worker does it."""
        champion = self.ledger.champion
        if champion is None or attempt.parent != champion.commit:
            return
        screened = attempt.is_screened
        beside = len(champion.screened_again if screened else self.ledger.in_turn.get((champion.number, 0), ()))
        unlike = beside < BESIDE and self.is_unlike(attempt, champion)
        stale = self.repeats_runs and self.ledger.stale[screened] >= STALE and self.ledger.noise(screened)
        if not (unlike or stale):
            return
        self.ledger.stale[screened] = 0  # only one of several workers does it
        name, seed = f"{champion.number}-alone-{beside + 1}", self.run.seed + FIRST_ALONE + beside + 1
        why = "now that others take more or less of the machine" if unlike else "its score may have been luck"
        view = self.console.trial(champion, again=f"the champion again: {why}", seat=seat.number)
        try:
            measured = await self.train(champion, name, seed, seat, view)
            self.run.runner.tidy(name, keep_weights=False)
        finally:
            view.close()
        if measured.score is not None and not measured.suspended:  # a failure is not the next edit's fault
            run, during = run_of(champion.number, seed, measured), attempt.number
            again = events.InTurn(edit=0, during=during, **run)
            if screened:
                again = events.Screened(kind=seat.kind, during=during, **run)
            await self.run.record(again)
            if unlike and self.is_unlike(attempt, champion):
                self.disturbed(attempt, attempt.last_taken or 0.0, "and no run of its champion compares")

    def is_unlike(self, attempt: Attempt, champion: Attempt) -> bool:
        """Whether no run of the champion had about as much of the machine as an attempt had."""
        taken, most = attempt.last_taken, self.ledger.most_taken
        runs = self.ledger.runs_of(champion, attempt.is_screened)
        if taken is None or most is None or alike(runs, taken, most):
            return False
        return taken > most or any(other is not None for other, _ in runs)

    # -- quarantine

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
            step, steps = step_of(standing, score, lower, bounds), self.ledger.steps(lower, bounds)
            doubted = not self.task.referee and is_far_outside(step, steps)
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
            f"  {digits(score)} is {digits(gain)} better: too good to be believed once; it runs again with another "
            "seed",
            "yellow",
        )
        name, seed = f"{attempt.number}-again", self.run.seed + 1
        view = self.console.trial(attempt, again=f"again, seed {seed}", seat=seat.number)
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
                    f"{HELD}: it gains {digits(gain)}, by far the largest step of this run towards the best there can "
                    f"be; see what it changes, `git show {ref}`, and if that is sound `{to_type(accept)}`",
                )
            return Verdict("discard", f"in quarantine, with another seed: {objection}") if objection else None
        finally:
            self.run.runner.tidy(name, keep_weights=False)

    # -- suspended, or beside the work of others

    def require_undisturbed(self, attempt: Attempt, measured: Measurement) -> None:
        """Raise Disturbed for a trial that was suspended, or of which others took clearly more than of its champion:
        the whole attempt runs again. Not too often, though.
        """
        if measured.suspended:
            self.suspensions[attempt.number] += 1
            if self.suspensions[attempt.number] <= SUSPENSIONS:
                raise Disturbed(in_words(measured))
        elif (taken := measured.taken) is not None and self.is_disturbed(attempt, taken):
            self.disturbed(attempt, taken, "so that it came less far")

    def disturbed(self, attempt: Attempt, taken: float, why: str) -> None:
        """Raise Disturbed, if an attempt was not yet too often."""
        self.disturbances[attempt.number] += 1
        if self.disturbances[attempt.number] <= DISTURBANCES:
            raise Disturbed(f"{taken_in_words(taken)}, {why}: it runs again", taken)

    def is_disturbed(self, attempt: Attempt, taken: float) -> bool:
        """Whether others took clearly more of an attempt's trial than ever of its champion's."""
        return self.ledger.most_taken is not None and taken > self.most_before(attempt) + self.ledger.most_taken

    def most_before(self, attempt: Attempt) -> float:
        """The largest share that others took of a run of the champion that an attempt was built on."""
        base = self.ledger.base_of(attempt)
        runs = self.ledger.runs_of(base, attempt.is_screened) if base else ()
        return max((taken or 0.0 for taken, _ in runs), default=0.0)

    def note(self, attempt: Attempt) -> str:
        """What a verdict says of the machine; empty where others left it alone."""
        taken, most = attempt.last_taken, self.ledger.most_taken
        if taken is None or most is None or taken <= most:
            return ""
        base = self.ledger.base_of(attempt)
        unlike = base and not alike(self.ledger.runs_of(base), taken, most)
        return taken_in_words(taken) + (", clearly more than of its champion" if unlike else "")

    async def wait_for_quiet(self, attempt: Attempt, seat: Seat) -> None:
        """Before an attempt that was disturbed runs again, wait for the others to be done: as long as it trains. Raises
        Stopped when the user asks to stop meanwhile.
        """
        if self.disturbances[attempt.number]:
            limit = self.run.facts.time_budget or 0.0
            self.console.line(f"  waiting until the machine is free, {duration(limit)} at most", "yellow")
            most = self.most_before(attempt) + (self.ledger.most_taken or 0.0)
            await self.run.stop.unless_asked(self.run.runner.quiet(seat, most, limit))


def run_of(number: int, seed: int, measured: Measurement) -> dict[str, Any]:
    """What the record holds of a run of the code of that number, which has a score."""
    fields = {"seed": seed, "score": measured.score, "seconds": dict(measured.seconds), "taken": measured.taken}
    return {"number": number, **fields}


def without_score(measured: Measurement) -> Verdict:
    """The verdict on a trial without a score."""
    if measured.suspended:
        return Verdict("crash", f"{in_words(measured)}, as {SUSPENSIONS} times before")
    return Verdict("crash", measured.reason)


def in_words(measured: Measurement) -> str:
    return f"it was suspended for {measured.suspended:.0f} s"


def taken_in_words(taken: float) -> str:
    return f"other programs took {taken:.0%} of the processors while it trained"
