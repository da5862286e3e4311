"""The runner of a cluster, through Ray: one trial at a time on each GPU of its nodes, or on a number of their cores.

Each seat is a Ray actor on its node. Behind it, a process of ours (node.py) has a clone of the repository and the
runner of one machine. Jobs are sent there unchanged; measurements, logs and progress come back into the run's folder.
Only the commit, the task and the settings of the game leave this machine: no keys, and nothing of the record.

If a node is lost, its trial raises SeatLost and runs again elsewhere. The runner keeps looking for nodes; one that
joins becomes a seat. All of this is awaited in the event loop of the one thread.
"""

import asyncio
import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autoresearch import UserError
from autoresearch.files import remove, write_whole
from autoresearch.runner import LOG_END, PREFLIGHT, SCORE, TRAIN, Job, Measurement, Phase, Seat, SeatLost
from autoresearch.runner.checkout import links_of, submodules_of
from autoresearch.runner.fleet import LOOK, Fleet
from autoresearch.runner.local import Local
from autoresearch.runner.node import Actor, Assignment, Fingerprint, News, Outcome, fingerprint
from autoresearch.runner.places import Place
from autoresearch.runner.sent import bundles_of
from autoresearch.task import Facts
from autoresearch.text import one_line

AGAIN = 10.0  # seconds until a seat that was lost or could not be set up is tried again
LATE = 30.0  # seconds that the run waits for the other seats once it has its first
NO_SEAT = 120.0  # seconds to wait for a first seat at the start; after that, all are assumed to be taken
ENDING = 20.0  # seconds within which a cancelled trial must have ended on its node


class Worker:
    """The actor on a place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.actor: Any = None  # until it is made
        self.seat: Seat | None = None  # None: not ready
        self.jobs = 0  # number of jobs that it was given

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of node.Node. Awaiting the result raises ray.exceptions.RayError if the node is gone."""
        return self.actor.call.remote(name, *arguments)


class Cluster:
    """Runs the jobs of one run on the seats of a fleet. home: the runner of this machine, which has the run's folder
    and rehearses edits, but runs no trials.
    """

    def __init__(self, fleet: Fleet, home: Local) -> None:
        self.fleet, self.home, fleet.closes = fleet, home, self.close
        self.task, self.repo, self.base, self.folder = home.task, home.repo, home.base, home.folder
        self.settings, self.confined = home.settings, home.confined
        self.home.share = 1
        self.seats: Sequence[Seat] = []  # replaced by a new list on each change, so that waiters notice
        self.marks: dict[str, Fingerprint] = {}  # by kind: of the first node
        self.facts_of: dict[str, Facts] = {}  # by kind: of the first seat
        self._workers: dict[int, Worker] = {}  # by number of the seat
        self._opening: dict[tuple[str, int], asyncio.Task] = {}  # by place
        self._aside: dict[tuple[str, int], tuple[str, float]] = {}  # why a place is not used, and until when
        self._trained: dict[str, Worker] = {}  # by name of the trial: what its training saved is there
        self._bringing: set[asyncio.Task] = set()
        self._giving_back: set[asyncio.Task] = set()
        self._changed = asyncio.Event()
        self._described: dict[str, Facts] = {}  # by kind, before anything that takes long
        self._opened = False
        self._watching: asyncio.Task | None = None

    # -- seats

    async def open(self, show: Callable[[Facts], None], require: Callable[[Facts], None]) -> Facts:
        """See Runner. Waits for the first seat, and a little for the others."""
        import ray

        self._links = links_of(self.repo.root, self.task.link)
        self._modules = submodules_of(self.repo, self.base)
        self.mark, kinds = fingerprint(), self.fleet.kinds
        self._bundles = await self.fleet.ask(lambda: ray.put(bundles_of(self.repo.root, self.base, self._modules)))
        self._watching = asyncio.create_task(self._watch())
        await self._until(lambda: len(self._described) == len(kinds), NO_SEAT)
        require(self._described[kinds[-1]])
        show(self._described[kinds[-1]])
        await self._until(lambda: not self._lacking(), None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._until(lambda: not self._opening, None), LATE)
        facts = self.facts_of[kinds[-1]]
        require(facts)
        self.home.facts, self._opened = facts, True
        return facts

    def _lacking(self) -> list[str]:
        """The kinds without a seat."""
        there = {seat.kind for seat in self.seats}
        return [kind for kind in self.fleet.kinds if kind not in there]

    async def _until(self, true: Callable[[], bool], seconds: float | None) -> None:
        """Wait for something, and give up if it can no longer lead to a seat. Raises UserError."""
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    if not self._opening and self._aside and (lacking := self._lacking()):
                        why = "\n".join(f"  {text}" for text in sorted({text for text, _ in self._aside.values()}))
                        raise UserError(f"no seat of {' or '.join(lacking)} can be used:\n{why}")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise UserError(
                f"no seat of {' or '.join(self._lacking())} could be had within {seconds:.0f} s: other work may have "
                "them. See what does: `uv run --group cluster ray status`"
            ) from None

    async def _watch(self) -> None:
        """Watch for nodes that join or leave."""
        import ray

        while True:
            with contextlib.suppress(ray.exceptions.RayError):  # it does not answer just now
                await self.fleet.look()
                self._look({place.key: place for place in self.fleet.places() if place.kind in self.fleet.kinds})
            await asyncio.sleep(LOOK)

    def _look(self, places: dict[tuple[str, int], Place]) -> None:
        """Drop seats whose places are gone, and open new places as seats."""
        for worker in [worker for worker in self._workers.values() if worker.place.key not in places]:
            self._lose(worker, self.fleet.aside.get(worker.place.node, "the node is gone"))
        known = {*self._opening, *(worker.place.key for worker in self._workers.values())}
        now, demand = asyncio.get_running_loop().time(), self.fleet.demand
        most = self.fleet.most if demand is None or demand.wanted else 0
        for key, place in places.items():
            if len(self._workers) + len(self._opening) >= most:
                return
            if key not in known and self._aside.get(key, ("", 0.0))[1] <= now:
                self._opening[key] = asyncio.create_task(self._open(place))

    async def _open(self, place: Place) -> None:
        """Open a place as a seat."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        pinned = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
        needs = {"num_cpus": place.cores} if place.cores else {"num_cpus": 0, "num_gpus": 1}
        made = ray.remote(Actor).options(scheduling_strategy=pinned, max_concurrency=100, **needs)
        worker = Worker(place)
        try:
            worker.actor = await self.fleet.ask(made.remote)
            why = await self._set_up(worker)
            if not why:
                number = next(number for number in range(len(self._workers) + 1) if number not in self._workers)
                worker.seat = seat = Seat(number, node=place.node, kind=place.kind)
                self._workers[number] = worker
                self.seats = [*self.seats, seat]
                self._aside.pop(place.key, None)
                if self._opened:
                    self.fleet.say(f"{place.node} has joined: seat {number}")
        except ray.exceptions.RayError as error:
            why = one_line(str(error).strip().splitlines()[-1], 300)
        finally:
            self._opening.pop(place.key, None)
            self._changed.set()
        if why:
            self._put_aside(worker, why)

    async def _set_up(self, worker: Worker) -> str:
        """Set up a place. Returns why it cannot be a seat; empty if it can."""
        place = worker.place
        mark = await worker.call("fingerprint")
        if why := objection(mark, self.mark, self.marks.get(place.kind), self.confined):
            return why
        device = {"OMP_NUM_THREADS": str(place.cores)} if place.cores else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        run = f"{self.repo.tag}-{hashlib.sha256(f'{self.base} {self.folder}'.encode()).hexdigest()[:12]}"
        assignment = Assignment(
            run, self.repo.tag, self.base, self.task, self.settings, device, self.confined, place.share, place.number,
            place.cores, self._links, self._modules,
        )  # fmt: skip
        opening = asyncio.ensure_future(worker.call("open", assignment, self._bundles))
        described: Outcome = await worker.call("describe")
        if described.fault:
            return described.fault
        self._described.setdefault(place.kind, described.result)
        self._changed.set()
        opened: Outcome = await opening
        if opened.fault:
            return opened.fault
        facts: Facts = opened.result
        for kind, first in self.facts_of.items():
            if unlike := first.unlike(facts, but=() if kind == place.kind else ("device",)):
                name, ours, theirs = unlike
                return f"it has {name} {theirs}, the run {ours}"
        self.facts_of.setdefault(place.kind, facts)
        self.marks.setdefault(place.kind, mark)
        return ""

    def _put_aside(self, worker: Worker, why: str) -> None:
        """Do without a place for a while, and print why."""
        import ray

        until = asyncio.get_running_loop().time() + AGAIN
        text, before = f"{worker.place.node}: {why}", self._aside.get(worker.place.key, ("",))[0]
        self._aside[worker.place.key] = text, until
        if worker.actor:
            self.fleet.send(ray.kill, worker.actor)
        if text != before and worker.place.node not in self.fleet.aside:  # then it has been said
            self.fleet.say(f"a seat is not used: {text}", "yellow")
        self._changed.set()

    def _lose(self, worker: Worker, why: str) -> None:
        """Handle the loss of a seat."""
        if worker.seat is None or self._workers.get(worker.seat.number) is not worker:
            return
        self._remove(worker.seat)
        self._put_aside(worker, why)
        if (kind := worker.place.kind) in self._lacking():
            self.fleet.say(f"no seat of {kind} is left: waiting until a node joins; Ctrl-C ends the loop", "yellow")

    def _remove(self, seat: Seat) -> None:
        del self._workers[seat.number]
        self.seats = [other for other in self.seats if other.number != seat.number]

    # -- growing and shrinking

    @property
    def room(self) -> int:
        """See Runner. At most as many as there are: nodes take minutes to join, and waiting edits are soon stale."""
        demand = self.fleet.demand
        return min(demand.most - len(self.seats), max(1, len(self.seats))) if demand else 0

    def want(self, trials: int, busy: Sequence[Seat]) -> None:
        """See Runner."""
        if self.fleet.demand is None:
            return
        self.fleet.demand.want(trials)
        for worker in [] if trials else list(self._workers.values()):
            if worker.seat and worker.seat not in busy:
                self._remove(worker.seat)
                task = asyncio.create_task(self._give_back(worker))
                self._giving_back.add(task)
                task.add_done_callback(self._giving_back.discard)

    async def _give_back(self, worker: Worker) -> None:
        """End an actor once its files are copied: its node is then idle, and the autoscaler removes it."""
        import ray

        if self._bringing:
            await asyncio.wait(self._bringing, timeout=ENDING)
        self.fleet.send(ray.kill, worker.actor)

    # -- jobs

    async def run(self, job: Job, seat: Seat, tell: Callable[[Phase], None] = lambda phase: None) -> Measurement:
        """See Runner. Raises SeatLost if the node is gone."""
        import ray

        if PREFLIGHT in job.phases:
            return await self.home.run(job, Seat(seat.number), tell)
        worker, folder = self._worker_of(seat), self.home.folder_of(job.name)
        if TRAIN in job.phases and worker:
            self._trained[job.name] = worker
            remove(folder)
        if worker is None or self._trained.get(job.name) is not worker:
            raise SeatLost(f"the seat on {seat.node} was lost, and what the trial had saved there with it")
        worker.jobs = number = worker.jobs + 1
        running = asyncio.ensure_future(worker.call("run", job, number))
        following = asyncio.create_task(self._follow(worker, job, number, folder, tell))
        try:
            outcome: Outcome = await running
        except ray.exceptions.RayError:
            self._lose(worker, "its node, or the actor on it, is gone")
            raise SeatLost(f"the seat on {seat.node} was lost in the middle of it") from None
        except asyncio.CancelledError:
            await asyncio.wait({asyncio.ensure_future(worker.call("end", number))}, timeout=ENDING)
            raise
        finally:
            following.cancel()
        if outcome.fault:
            self._lose(worker, outcome.fault)
            raise SeatLost(f"on {seat.node}: {outcome.fault}")
        put(folder, outcome.files)
        return outcome.result

    def _worker_of(self, seat: Seat) -> Worker | None:
        """None if the seat was lost; another one may have its number by now."""
        worker = self._workers.get(seat.number)
        return worker if worker and worker.seat is seat else None

    async def _follow(self, worker: Worker, job: Job, number: int, folder: Path, tell: Callable[[Phase], None]) -> None:
        """Copy the progress and logs of a running job into the run's folder."""
        import ray

        said = functools.partial(Phase, folder=str(folder), node=worker.place.node)
        phase = job.phases[0]
        tell(said(phase))
        with contextlib.suppress(ray.exceptions.RayError):  # `run` hears of it as well
            while True:
                news: News = await worker.call("news", number)
                put(folder, news.files)
                if news.phase and news.phase != phase:
                    phase = news.phase
                    tell(said(phase))
                if news.over:
                    return

    async def quiet(self, seat: Seat, most: float, limit: float) -> bool:
        """See Runner. If the seat is lost, `run` reports it."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            if worker := self._worker_of(seat):
                return await worker.call("quiet", most, limit)
        return False

    # -- what is left of trials

    def tidy(self, name: str, keep_weights: bool) -> None:
        """See Runner. If the loop was killed, it is not known which seat has the trial, so all are asked."""
        self.home.tidy(name, keep_weights)
        has_it = self._trained.pop(name, None)
        for worker in [worker for worker in self._workers.values() if has_it in (None, worker)]:
            task = asyncio.create_task(self._bring(worker, name, keep_weights))
            self._bringing.add(task)
            task.add_done_callback(self._bringing.discard)

    async def _bring(self, worker: Worker, name: str, keep_weights: bool) -> None:
        """Remove a trial on its node; bring home what is to be kept of it."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError, OSError):  # it has its verdict
            files = await worker.call("tidy", name, keep_weights)
            if put(self.home.folder_of(name) / "run", files):
                await worker.call("forget", name)

    def log(self, name: str, limit: int = LOG_END, phases: Sequence[str] = (TRAIN, SCORE)) -> str:
        return self.home.log(name, limit, phases)

    def log_path(self, name: str) -> Path:
        return self.home.log_path(name)

    async def close(self) -> None:
        """Wait for what comes home, and look for nodes no more."""
        if self._bringing:
            await asyncio.wait(self._bringing, timeout=ENDING)
        tasks = [task for task in (self._watching, *self._opening.values()) if task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def objection(mark: Fingerprint, home: Fingerprint, first: Fingerprint | None, confined: bool) -> str:
    """Why a node's trials could not run, or would not be comparable; empty if there is no objection. home: this
    machine. first: the first node of its kind.
    """
    if mark.code != home.code:
        return "its loop code differs from this machine's: bring its checkout to the same state (git pull)"
    if mark.python != home.python:
        return f"it has Python {mark.python}, this machine {home.python}"
    if home.torch and mark.torch.partition("+")[0] != home.torch.partition("+")[0]:
        return f"it has torch {mark.torch or 'not at all'}, this machine {home.torch}: `uv sync` in its checkout"
    if confined and not mark.sandbox:
        return "trials cannot be confined there, and are here: it has neither Landlock nor bubblewrap"
    for name in ("torch", "driver") if first and first.driver else ("torch", "processor"):
        if first and (theirs := getattr(mark, name)) != (ours := getattr(first, name)):
            return f"it has the {name} {theirs or 'unknown'}, the first node {ours or 'unknown'}"
    return ""


def put(folder: Path, files: Any) -> bool:
    """Write files that came from a node, each whole or not at all. Returns whether all are written: a full disk is no
    reason to end a night.
    """
    written = 0
    for name, content in files.items():
        with contextlib.suppress(OSError):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content, lasting=False)
            written += 1
    return written == len(files)
