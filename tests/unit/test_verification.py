"""How verify uses a runner: what it asks for, what it records, when it runs a code again, and how it ends."""

import asyncio
import types

import pytest

from autoresearch.record import events
from autoresearch.record.ledger import Ledger
from autoresearch.runner import HOLDOUT, SCORE, TRAIN, Job, Measurement, Phase, Seat
from autoresearch.task import OWN_GAME
from autoresearch.verify import Verification
from autoresearch.views.console import Console

BASE, BEST = "1" * 40, "2" * 40


class Played:
    """A runner that gives the measurements that it was made with; for None it runs until it is cancelled."""

    def __init__(self, *measured: Measurement | None) -> None:
        self.measured = list(measured)
        self.seats = [Seat(0)]
        self.jobs: list[Job] = []
        self.tidied: list[str] = []

    async def run(self, job: Job, seat: Seat, tell) -> Measurement:
        tell(Phase(job.phases[0], "nowhere"))
        self.jobs.append(job)
        if (found := self.measured.pop(0)) is None:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return found

    def tidy(self, name: str, keep_weights: bool) -> None:
        assert not keep_weights
        self.tidied.append(name)


@pytest.fixture
def run(tmp_path):
    """As much of a run as verify needs: a baseline and one kept change."""
    ledger = Ledger(tmp_path)
    ledger.append(events.Run(tag="night", base=BASE, task=vars(OWN_GAME)))
    for number, (commit, score) in enumerate([(BASE, 1.0), (BEST, 0.9)], 1):
        ledger.append(events.Attempt(number=number, commit=commit, parent=BASE))
        ledger.append(events.Verdict(number=number, status="keep", score=score, seconds={"wall": 60}))
    return types.SimpleNamespace(
        ledger=ledger,
        task=OWN_GAME,
        stop=types.SimpleNamespace(level=0),
        seed=42,
        job=lambda commit, name, seed, **more: Job(name, {"train.py": commit.encode()}, seed, **more),
        require_own_code=lambda: None,
        disk=types.SimpleNamespace(require_room=lambda: None),
    )


def scored(score: float) -> list[Measurement]:
    """A run with a score, and its check on the holdout."""
    return [
        Measurement(score, seconds={"train": 50.0}),
        Measurement(figures={"holdout_bpb": score + 1}, seconds={"holdout": 9.0}),
    ]


async def verify(run, *measured: Measurement | None) -> bool:
    run.runner, run.console = Played(*measured), Console(plain=True)
    return await Verification(run, 1)(ablate=False, prune=False)


def test_each_code_runs_with_its_files_and_is_checked_on_the_holdout(run, capsys):
    assert asyncio.run(verify(run, *scored(1.0), *scored(0.9)))
    assert [(job.name, job.files["train.py"], job.seed, job.phases) for job in run.runner.jobs] == [
        ("verify/baseline-1042", BASE.encode(), 1042, (TRAIN, SCORE)),
        ("verify/baseline-1042", BASE.encode(), 1042, (HOLDOUT,)),
        ("verify/champion-1042", BEST.encode(), 1042, (TRAIN, SCORE)),
        ("verify/champion-1042", BEST.encode(), 1042, (HOLDOUT,)),
    ]
    assert all(job.fresh_caches for job in run.runner.jobs), "a trial could have left weights in the run's"
    found = [(event.code, event.commit, event.champion, event.score, event.holdout) for event in run.ledger.verified]
    assert found == [("baseline", BASE, BEST, 1.0, 2.0), ("champion", BEST, BEST, 0.9, 1.9)]
    assert run.ledger.verified[0].seconds.keys() == {"train", "holdout", "wall"}
    assert run.runner.tidied == ["verify/baseline-1042", "verify/champion-1042"]
    assert capsys.readouterr().out.splitlines()[0] == "run 1 of 2: baseline, seed 1042; 2 min left"
    assert asyncio.run(verify(run)) and len(run.ledger.verified) == 2  # all was done


def test_what_was_suspended_runs_again(run, capsys):
    suspended = Measurement(None, "suspended", suspended=7.0)
    check = Measurement(None, "suspended", suspended=5.0)
    measured = [suspended, *scored(1.0), scored(0.8)[0], check, *scored(0.9)]
    assert asyncio.run(verify(run, *measured))
    assert [(event.code, event.score) for event in run.ledger.verified] == [("baseline", 1.0), ("champion", 0.9)]
    output = capsys.readouterr().out
    assert "it was suspended for 7 s: it runs again" in output and "it was suspended for 5 s" in output


def test_a_run_that_fails_is_recorded_with_its_reason(run):
    assert asyncio.run(verify(run, Measurement(None, "training: it broke"), scored(0.9)[0], Measurement(reason="leak")))
    assert [(event.score, event.holdout, event.reason) for event in run.ledger.verified] == [
        (None, None, "training: it broke"),
        (None, None, "leak"),
    ]
    assert asyncio.run(verify(run, *scored(1.0), *scored(0.9)))  # what failed is run once more
    assert [event.score for event in run.ledger.verified[2:]] == [1.0, 0.9]


def test_asked_to_stop_it_ends_after_the_running_one(run):
    async def night() -> bool:
        verifying = asyncio.create_task(verify(run, *scored(1.0)))
        await asyncio.sleep(0)  # it begins
        run.stop.level = 1
        return await verifying

    assert asyncio.run(night()) is False and len(run.ledger.verified) == 1


def test_cancelled_it_ends_at_once(run):
    async def night() -> None:
        verifying = asyncio.create_task(verify(run, None))
        await asyncio.sleep(0)  # it begins
        verifying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await verifying

    asyncio.run(night())
    assert run.ledger.verified == [] and run.runner.tidied == ["verify/baseline-1042"]
