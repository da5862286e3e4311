"""The commands that run trials: each puts the parts together, hands them to the loop, and returns its exit code.

They run on the one thread that decides. `loop` is the class Loop of loop.py, which the command line hands down.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoresearch import Stopped, UserError
from autoresearch.agents import Agent, Proposal
from autoresearch.agents.choice import AgentOptions, make_agents
from autoresearch.agents.external import External
from autoresearch.experiment import Experiments
from autoresearch.gate import gate_of
from autoresearch.ideas import Ideas
from autoresearch.judge import rule_of
from autoresearch.limits import Limits, StopRequest
from autoresearch.options import Numbered, Research, Start, Trials, Try, Verify
from autoresearch.pages import Pages
from autoresearch.propose import Proposer
from autoresearch.record import events
from autoresearch.record.findings import doubt
from autoresearch.record.ledger import HELD
from autoresearch.record.runs import RUNS, recorded_run, root_of
from autoresearch.run import Run, open_run
from autoresearch.runner import Runner
from autoresearch.runner.local import Local, sandbox_in_words
from autoresearch.runner.places import prices_of, require_known, tiers_of
from autoresearch.task import Task, edit_hash
from autoresearch.text import count, digits, one_line, short, to_type
from autoresearch.verify import Verification, lines_of
from autoresearch.views.console import Console
from autoresearch.views.notify import Hooks, Listener, Notifier, hooks_of
from autoresearch.views.show import first_screen, show_end
from autoresearch.views.track import Tracking

if TYPE_CHECKING:
    from autoresearch.runner.fleet import Fleet


@contextlib.asynccontextmanager
async def opened(
    tag: str | None,
    options: Trials,
    console: Console,
    stop: StopRequest,
    limits: Limits | None = None,
    listeners: Sequence[Listener] = (),
    external: bool = False,
) -> AsyncIterator[Run]:
    """A run, locked against other loops; inside, what goes on in it is shown, and told to listeners and hooks.

    Raises UserError.
    """
    listeners = [Hooks(root_of(Path.cwd()), partial(console.line, style="yellow")), *listeners]
    try:
        with open_run(tag, options.sandbox, console, stop) as run:
            async with console.follow(run.ledger, run.folder, stop, limits, listeners, external):
                yield run
    finally:
        await asyncio.gather(*(listener.close() for listener in listeners))


async def night(loop: type, options: Research) -> int:
    """The loop, until it ends. loop: the class Loop of loop.py."""
    console = Console(options.plain)
    stop = StopRequest(console.line)
    limits = Limits(options.experiments, options.hours, options.max_cost, options.max_tokens)
    gate = gate_of(options.approve)
    require_cluster(options)
    agents, agents_in_words, filler = agents_of(options)
    say = partial(console.line, style="yellow")
    listeners: list[Listener] = [Notifier(options.notify, say)] if options.notify else []
    listeners += [Tracking(options.track, root_of(Path.cwd()) / RUNS, say)] if options.track else []
    async with (
        opened(options.tag, options, console, stop, limits, listeners) as run,
        contextlib.AsyncExitStack() as at_end,
    ):
        run.begin()
        fleet = await join(run, options, at_end) if options.cluster else None
        seats = [] if fleet else run.choose_seats(options.gpus, options.workers)
        pages = Pages(run)
        rule = rule_of(options.keep_rule, run.task.line_price)
        proposer = Proposer(
            run, pages, agents, limits, filler, options.web_search, options.brief_tokens, rule,
            at_once=options.proposers,
        )  # fmt: skip
        baseline_runs, repairs = options.baseline_runs, options.repairs
        experiments = Experiments(
            run, rule, pages, baseline_runs, repairs, lambda attempt: proposer.agent_of(attempt) is not None, gate
        )
        ahead = options.lookahead
        if ahead is None:
            ahead = int(any(agent.retries for agent in agents) and not run.task.is_timed)
        spends = bool(run.prices) or any(hasattr(agent, "model") for agent in agents)
        shown = {
            "agent": agents_in_words,
            "cluster": fleet.in_words() if fleet else "",
            "at once": count(len(seats), "trial") if len(seats) > 1 else "",
            "timing": timing(run.task, ahead, len(seats)),
            "hooks": ", ".join(hooks_of(run.root)),
            "until": str(limits),
            "waits": f"for your word: {gate}" if str(gate) else "",
            "seats": seat_prices(run),
            "cost": "not limited: --max-cost USD would" if spends and options.max_cost is None else "",
        }
        settings = options.settings()
        make = partial(on, fleet) if fleet else Local
        await run.open(seats, settings, options.seed, lambda facts: first_screen(run, facts, shown), make)
        run.note_start(options.keep_rule)
        experiments.tidy()
        try:
            waves = options.lookahead is None and not run.task.is_timed and (fleet is not None or len(seats) > 1)
            reason = await loop(run, proposer, experiments, limits, ahead, waves).night()
        except Exception as error:
            with contextlib.suppress(OSError):  # the disk may be what failed
                run.ledger.append(events.Stop(reason=events.FAULT + one_line(str(error))))
            raise
        run.ledger.append(events.Stop(reason=reason))
        console.ended("stop", reason)
        show_end(run, reason)
    return 130 if stop.now() else 0


def require_cluster(options: Research) -> None:
    """UserError for options that only a cluster can follow, and for those that do not go together."""
    if options.cluster and options.max_seats and options.tiers is not None:
        raise UserError("--max-seats lets seats of one kind grow; leave it out, or --tiers")
    names = "names kinds of devices of a cluster"
    for option, said, why in (
        ("--tiers", options.tiers is not None, names), ("--seat-price", options.seat_price, names),
        ("--max-seats", options.max_seats, "asks a cluster for nodes"),
    ):  # fmt: skip
        if said and not options.cluster:
            raise UserError(f"{option} {why}: it goes with --cluster auto|HOST:PORT")


async def join(run: Run, options: Research, at_end: contextlib.AsyncExitStack) -> "Fleet":
    """Connect to the cluster of --cluster, until the end of the night. Raises UserError."""
    from autoresearch.runner import fleet as cluster  # which needs Ray

    if options.gpus is not None or options.workers is not None:
        raise UserError("--cluster takes the seats that the cluster has; leave --gpus and --workers out")
    assert options.cluster
    prices = prices_of(options.seat_price)
    kinds = run.choose_kinds(() if options.tiers is None else tiers_of(options.tiers))
    say, aside = run.console.line, run.ledger.aside
    joining = cluster.join(options.cluster, options.seat_cpus, kinds, say, aside, options.max_seats, grows=True)
    fleet = await run.stop.unless_asked(joining)
    at_end.push_async_callback(fleet.close)
    require_known(prices, fleet.places())
    run.prices = {kind: price for kind, price in prices.items() if kind in fleet.kinds}
    run.kind, run.tiers = fleet.kinds[-1], fleet.kinds if fleet.kinds[1:] else ()
    return fleet


async def one_seat(run: Run, options: Verify, at_end: contextlib.AsyncExitStack) -> "Fleet":
    """Connect to the cluster of --cluster for one seat, of the kind that decided in the run. Raises UserError."""
    from autoresearch.runner import fleet as cluster

    kinds, say = run.choose_kinds(())[-1:], run.console.line
    assert options.cluster
    joining = cluster.join(options.cluster, options.seat_cpus, kinds, say, run.ledger.aside, most=1)
    fleet = await run.stop.unless_asked(joining)
    at_end.push_async_callback(fleet.close)
    run.kind = kinds[-1]
    return fleet


def on(fleet: "Fleet", *arguments: Any) -> Runner:
    """The runner of a cluster; arguments as of Local."""
    from autoresearch.runner.cluster import Cluster

    return Cluster(fleet, Local(*arguments))


def seat_prices(run: Run) -> str:
    """What the first screen says of what seats cost."""
    kinds = run.tiers or (run.kind,)
    priced = [f"${run.prices[kind]:g} an hour for each of {kind}" for kind in kinds if kind in run.prices]
    free = [f"{kind} has no price" for kind in kinds if kind not in run.prices]
    return ", ".join(priced + free) if priced else ""


def timing(task: Task, ahead: int, seats: int) -> str:
    """What the first screen says of a game that measures time."""
    if not task.is_timed:
        return ""
    if ahead or seats > 1:
        return f"what runs beside a trial disturbs {task.metric}; with --lookahead 0 and --workers 1 nothing does"
    return f"nothing runs beside a trial, for {task.metric}'s sake; --lookahead 1 would let an agent think ahead"


async def begin(loop: type, options: Start) -> int:
    console = Console(options.plain)
    stop = StopRequest(console.line)
    async with opened(options.tag, options, console, stop, external=True) as run:
        run.begin(keep_edit=bool(run.ledger.champion))
        seats = run.choose_seats(options.gpu)
        keep_rule = options.keep_rule or run.ledger.started.keep_rule or "margin"
        pages = Pages(run)
        baseline_runs = options.baseline_runs or (1 if run.task.referee else None)
        experiments = Experiments(run, rule_of(keep_rule, run.task.line_price), pages, baseline_runs)
        proposer = Proposer(run, pages, [], external=True)
        seed = run.ledger.seed if options.seed is None else options.seed
        shown = {"agent": "the one that called this: an external agent"}
        settings = run.recorded_settings() | options.settings()
        await run.open(seats, settings, seed, lambda facts: first_screen(run, facts, shown))
        run.note_start(keep_rule, external=True)
        if run.ledger.champion is None and not stop.level:
            baseline = next(iter(run.ledger.pending), None) or await proposer.next_attempt(proposer.drafts.begin())
            await loop(run, proposer, experiments, Limits()).until_verdict(baseline)
        if champion := run.ledger.champion:
            for name in run.task.editable:
                console.line(f"edit      {(run.repo.worktree / name).relative_to(run.root)}")
            console.line(f"champion  experiment {champion.number}, {run.task.metric} {digits(champion.score)}")
            console.line(f'then      {to_type("try")} -m "what and why"')
    return 130 if stop.now() else 0


async def try_edit(loop: type, options: Try) -> int:
    """What `try` does, in a process of its own: calls.py follows it, and says what the record has of it then."""
    console = Console(options.plain)
    stop = StopRequest(console.line)
    async with opened(options.tag, options, console, stop, external=True) as run:
        run.begin(keep_edit=True)
        keep_rule, pages = run.ledger.started.keep_rule or "margin", Pages(run)
        said = (
            options.message, options.hypothesis, options.predicted, options.category, options.lesson, options.idea,
        )  # fmt: skip
        proposer = Proposer(run, pages, [External(Proposal(*said))], external=True)
        experiments = Experiments(run, rule_of(keep_rule, run.task.line_price), pages)
        await run.open(run.choose_seats(), run.recorded_settings(), run.ledger.seed, lambda facts: None)
        run.note_start(keep_rule, external=True)
        with contextlib.suppress(Stopped):
            await loop(run, proposer, experiments, Limits()).try_edit()
    return 0


@contextlib.contextmanager
def opened_by_hand(options: Numbered) -> Iterator[Run]:
    """A recorded run, locked against loops, for a person's word on one of its experiments. Raises UserError."""
    console = Console(options.plain)
    with open_run(recorded_run(options.tag).tag, options.sandbox, console, StopRequest(console.line)) as run:
        run.begin(keep_edit=True)
        yield run


async def drop(options: Numbered) -> int:
    with opened_by_hand(options) as run:
        console = run.console
        numbers = [attempt.number for attempt in run.ledger.kept]
        if options.number not in numbers[1:]:
            known = ", ".join(map(str, numbers[1:])) or "none"
            raise UserError(f"experiment {options.number} is no keep that could be taken back; there are: {known}")
        with_it = numbers[numbers.index(options.number) + 1 :]
        run.ledger.append(events.Dropped(number=options.number))
        run.reset()
        run.results.rebuild()
        for number in (options.number, *with_it):
            Pages(run).path(number).unlink(missing_ok=True)  # it is written anew when the run goes on
            Ideas(run.root / RUNS).follow(run.ledger.attempts[number - 1], run.repo.tag)
        champion = run.ledger.champion
        assert champion is not None
        also = f", and {', '.join(map(str, with_it))} with it, built on top" if with_it else ""
        console.line(f"experiment {options.number} is taken back{also}")
        said = f"experiment {champion.number}, {run.task.metric} {digits(champion.score)}, {short(champion.commit)}"
        console.line(f"the champion is {said} on {run.repo.branch}; the run goes on from there")
    return 0


async def accept(options: Numbered) -> int:
    with opened_by_hand(options) as run:
        console, tag = run.console, run.repo.tag
        held = [attempt for attempt in run.ledger.finished if attempt.reason.startswith(HELD)]
        attempt = next((attempt for attempt in held if attempt.number == options.number), None)
        if attempt is None:
            known = ", ".join(str(other.number) for other in held) or "none"
            raise UserError(f"experiment {options.number} is not held back; those that are: {known}")
        champion, number = run.ledger.champion_commit, len(run.ledger.attempts) + 1
        commit = attempt.commit if attempt.parent == champion else run.on_champion(attempt)
        if commit is None:
            raise UserError(
                f"the edit of experiment {options.number} does not apply to the present champion; `git show "
                f"refs/autoresearch/{tag}/{options.number}` shows it, for an edit of your own"
            )
        edit, lines = edit_hash(run.files(commit)), run.lines(commit) - run.lines(champion)
        run.ledger.append(events.Accepted(number=number, held=options.number))
        run.ledger.append(
            events.Attempt(
                number=number, commit=commit, parent=champion, description=attempt.description, agent=attempt.agent,
                category=attempt.category, hypothesis=attempt.hypothesis, predicted=attempt.predicted, edit=edit,
                ideas=attempt.ideas, lines=lines, constants=attempt.constants, tokens=0, dollars=0.0,
            )
        )  # fmt: skip
        run.repo.remember(number, commit)
        Ideas(run.root / RUNS).follow(run.ledger.attempts[-1], tag)
        console.line(
            f"experiment {options.number} runs again as experiment {number}, the next one when the run goes on"
        )
    return 0


async def run_verify(options: Verify) -> int:
    console = Console(options.plain)
    stop = StopRequest(console.line)
    tag = recorded_run(options.tag).tag
    async with opened(tag, options, console, stop) as run, contextlib.AsyncExitStack() as at_end:
        kept = run.ledger.kept
        if len(kept) < 2:
            raise UserError(f"run {tag} has kept nothing after its baseline, so there is no gain to verify")
        run.begin(keep_edit=True)
        fleet = await one_seat(run, options, at_end) if options.cluster else None
        verification = Verification(run, options.runs)
        shown = {
            "baseline": f"{short(kept[0].commit)}, {run.task.metric} {digits(kept[0].score)} in the run",
            "champion": f"{short(kept[-1].commit)}, {digits(kept[-1].score)}, {count(len(kept) - 1, 'change')} kept",
            "runs": f"{options.runs} of each code, with fresh seeds, in turn",
            **({"cluster": f"one seat of {run.kind}"} if fleet else {}),
            "sandbox": sandbox_in_words(run.confined),
            "to stop": "Ctrl-C: after the running one; twice: now. The same command continues",
        }
        title = f"autoresearch: verify run {tag}"
        seats, settings = [] if fleet else run.choose_seats(), run.recorded_settings()
        make = partial(on, fleet) if fleet else Local
        await run.open(seats, settings, run.ledger.seed, lambda facts: console.first_screen(title, shown), make)
        try:
            finished = await stop.unless_asked(verification(options.ablate, options.prune), level=2)
        except Stopped:
            finished = False
        for line, style in lines_of(verification.findings()):
            console.line(line, style)
        if said := doubt(run.ledger.kept):
            console.line(said, "red")
        if not finished:
            console.line("stopped before all was run; the same command continues")
    return 130 if stop.now() else 0


def agents_of(options: Research) -> tuple[list[Agent], str, Agent | None]:
    """(The agents, what the first screen says of them, the one of --fill). Raises UserError."""
    said = AgentOptions(
        options.agent, options.model, options.base_url, options.thinking, options.agent_command, options.agent_limit,
        options.web_search, options.seed, options.price,
    )  # fmt: skip
    agents, in_words = make_agents(said)
    if options.fill not in (None, "sweep"):
        raise UserError(f"--fill takes sweep, not {options.fill!r}")
    filler = make_agents(AgentOptions(options.fill, seed=options.seed))[0][0] if options.fill else None
    return agents, in_words, filler
