"""Verify: train a run's baseline and champion again with fresh seeds, and optionally the champion without its parts.

record/findings.py draws the conclusions from these runs.
"""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoresearch.record.events import Verified
from autoresearch.record.findings import BASELINE, CHAMPION, PRUNED, Findings, findings, without
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.runner import HOLDOUT, Measurement, SeatLost
from autoresearch.text import count, digits, one_line, short

if TYPE_CHECKING:
    from autoresearch.run import Run

LOOK = 1.0  # seconds between two checks for a seat of a cluster
FRESH = 1000  # the seeds of `verify` are the run's seed plus this, and on


@dataclasses.dataclass(frozen=True)
class Code:
    """A commit that runs again, and its name in the record."""

    name: str  # baseline, champion, without N, pruned
    commit: str


def plan(codes: Sequence[Code], seed: int, runs: int) -> list[tuple[Code, int]]:
    """What to run, with which seed: all codes in turn, so that a drift of the machine's speed affects them all."""
    return [(code, seed + FRESH + number) for number in range(runs) for code in codes]


def is_done(ledger: Ledger, code: Code, seed: int) -> bool:
    """Whether this code has a score with this seed since the current champion. What failed runs once more."""
    wanted = code.commit, ledger.champion_commit, seed
    return any((run.commit, run.champion, run.seed) == wanted and run.score is not None for run in ledger.verified)


class Verification:
    """Runs codes again, each so many times, and records each result as it ends. If cancelled, it ends what runs."""

    def __init__(self, run: "Run", runs: int) -> None:
        self.run, self.runs = run, runs

    async def __call__(self, ablate: bool, prune: bool) -> bool:
        """Run baseline and champion; the champion without each kept change; and without all that contribute nothing.

        Returns False if the user stopped it.
        """
        kept = self.run.ledger.kept
        codes = [Code(BASELINE, kept[0].commit), Code(CHAMPION, kept[-1].commit)]
        if ablate or prune:
            codes += self.ablations()
        finished = await self.run_again(codes)
        found = self.findings()
        removable = [part.attempt for part in found.parts if part.removable] if found else []
        return await self.prune(removable) if finished and prune and removable else finished

    def findings(self) -> Findings | None:
        return findings(self.run.ledger, self.run.task.lower_is_better, self.run.task.line_price)

    def ablations(self) -> list[Code]:
        """The champion without each kept change that can be left out. The others are noted in the record."""
        run, codes = self.run, []
        ledger, champion = run.ledger, run.ledger.champion_commit
        kept = ledger.kept[1:]
        for attempt in kept if len(kept) > 1 else ():  # without a single one the baseline is left
            name = without(attempt.number)
            message = f"Without experiment {attempt.number}: {one_line(attempt.description)}"
            commit, stuck = run.repo.without(champion, [attempt.commit], message)
            if commit and not stuck:
                run.repo.remember(f"without-{attempt.number}", commit)
                codes.append(Code(name, commit))
                continue
            reason = "later keeps build on its lines" if stuck else "nothing of it is left in the champion"
            if not any(event.code == name and event.champion == champion for event in ledger.verified):
                ledger.append(Verified(code=name, commit=None, champion=champion, seed=None, score=None, reason=reason))
        return codes

    async def prune(self, removable: list[Attempt]) -> bool:
        """Run the champion without the changes that contribute nothing, and make a branch of it. False if stopped."""
        run = self.run
        names = ", ".join(str(attempt.number) for attempt in removable)
        commits = [attempt.commit for attempt in reversed(removable)]
        commit, stuck = run.repo.without(run.ledger.champion_commit, commits, f"Without experiments {names}")
        for attempt in removable:
            if attempt.commit in stuck:
                run.console.line(f"experiment {attempt.number} stays: what is left of the others builds on its lines")
        if commit is None:
            return True
        run.repo.remember("pruned", commit)
        if not await self.run_again([Code(PRUNED, commit)]):
            return False
        branch = f"{run.repo.branch}-pruned"
        ours = [event.commit for event in run.ledger.verified if event.code == PRUNED and event.commit]
        run.repo.name_branch(branch, commit, ours)
        left_out = count(len(removable) - len(stuck), "experiment")
        run.console.line(f"branch {branch}: {short(commit)}, {left_out} left out")
        return True

    async def run_again(self, codes: list[Code]) -> bool:
        """Run codes with fresh seeds, as far as they have not run yet. False if the user stopped it."""
        run, champion = self.run, self.run.ledger.champion
        assert champion is not None
        planned = plan(codes, run.seed, self.runs)
        missing = [(code, seed) for code, seed in planned if not is_done(run.ledger, code, seed)]
        typical = champion.seconds.get("wall", 0.0)  # seconds of one run
        for number, (code, seed) in enumerate(missing, 1):
            while True:
                if run.stop.level:
                    return False
                left = typical * (len(missing) - number + 1)
                place = f"{code.name}, seed {seed}", number, len(missing), left
                began = time.monotonic()
                if not run.runner.seats:
                    await asyncio.sleep(LOOK)
                    continue
                try:
                    measured, check = await self.measure(code, seed, place)
                except SeatLost as lost:
                    run.console.line(f"  {lost}: it runs again", "yellow")
                    continue
                if not (suspended := measured.suspended + check.suspended):
                    break
                run.console.line(f"  it was suspended for {suspended:.0f} s: it runs again", "yellow")
            typical = time.monotonic() - began
            reason = measured.reason or check.reason
            if reason:
                run.disk.require_room()
            event = Verified(
                code=code.name,
                commit=code.commit,
                champion=champion.commit,
                seed=seed,
                score=None if reason else measured.score,
                holdout=None if reason else check.figures.get(run.task.holdout_metric),
                reason=reason,
                seconds={**measured.seconds, **check.seconds, "wall": round(typical, 3)},
                taken=measured.taken,
            )
            run.ledger.append(event)
            run.console.line(f"  no score: {reason}" if event.score is None else f"  {digits(event.score)}")
        return True

    async def measure(
        self, code: Code, seed: int, place: tuple[str, int, int, float]
    ) -> tuple[Measurement, Measurement]:
        """(One run of a code, its check on the holdout). place: its position among all runs, for Console.verifying."""
        run = self.run
        run.require_own_code()
        name = f"verify/{code.name.replace(' ', '-')}-{seed}"
        job = run.job(code.commit, name, seed, fresh_caches=run.task.referee)  # nor what a trial has left in them
        seat, check = run.runner.seats[0], Measurement()
        run.stop.trials = 1
        try:
            with run.console.verifying(*place) as view:
                measured = await run.runner.run(job, seat, view)
                if measured.score is not None and run.task.holdout:
                    check = await run.runner.run(dataclasses.replace(job, phases=(HOLDOUT,)), seat, view)
            return measured, check
        finally:
            run.stop.trials = 0
            run.runner.tidy(job.name, keep_weights=False)


def lines_of(found: Findings | None) -> list[tuple[str, str]]:
    """The findings, as (line, colour)."""
    if found is None or found.gain is None:
        failed = [(f"  {line}", "yellow") for line in found.failed] if found else []
        return [("not enough scores yet to say anything", "yellow"), *failed]
    gain, before, after = found.gain, *found.gain.runs
    shown = "" if gain.low > 0 else ": no gain shown" if gain.high > 0 else ": the champion is worse"
    title = f"gain of the champion over the baseline, {after} fresh runs against {before}, with its 95% interval:"
    lines = [(title, ""), (f"  val      {gain}{shown}", "yellow" if shown else "green")]
    if found.holdout:
        lines.append((f"  holdout  {found.holdout}", ""))
    for part in found.parts:
        worth = f"{part.worth}: " if part.worth else ""
        what = f"{part.says} ({one_line(part.attempt.description, 60)})"
        lines.append((f"  without experiment {part.attempt.number}: the champion loses {worth}{what}", ""))
    if found.pruned:
        worse = ": what can go one by one cannot go together" if found.pruned.high < 0 else ""
        lines.append((f"  pruned   {found.pruned} over the champion{worse}", "yellow" if worse else ""))
    return lines + [(f"  {line}", "yellow") for line in found.failed]
