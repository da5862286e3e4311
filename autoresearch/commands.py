"""The commands that run trials: each builds the parts, hands them to the loop, and returns its exit code.

They are coroutines of the one thread that decides everything. `loop` is the class Loop of loop.py (see cli.main).
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
from autoresearch.constants import FORMS, constants
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
    """Open a run and lock it against other loops. Its events go to the console, the listeners and the hooks.

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
    """Run the loop until it ends. loop: the class Loop of loop.py."""
    console = Console(options.plain)
    stop = StopRequest(console.line)
    limits = Limits(options.experiments, options.hours, options.max_cost, options.max_tokens)
    gate = gate_of(options.approve)
    require_cluster(options)
    agents, agents_described, filler = agents_of(options)
    say = partial(console.line, style="yellow")
    listeners: list[Listener] = [Notifier(options.notify, say)] if options.notify else []
    listeners += [Tracking(options.track, root_of(Path.cwd()) / RUNS, say)] if options.track else []
    async with (
        opened(options.tag, options, console, stop, limits, listeners) as run,
        contextlib.AsyncExitStack() as at_end,
    ):
        run.begin()
        if options.experiments != 1 and not run.ledger.attempts:
            require_constants(run, agents)
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
            run, rule, pages, baseline_runs, repairs, lambda attempt: proposer.agent_of(attempt) is not None, gate,
            options.compile_ahead,
        )  # fmt: skip
        lookahead = options.lookahead
        if lookahead is None:
            lookahead = int(any(agent.retries for agent in agents) and not run.task.is_timed)
        spends = bool(run.prices) or any(agent.paid for agent in agents)
        shown = {
            "agent": agents_described,
            "cluster": fleet.describe() if fleet else "",
            "parallel": count(len(seats), "trial") if len(seats) > 1 else "",
            "timing": timing(run.task, lookahead, len(seats)),
            "hooks": ", ".join(hooks_of(run.root)),
            "until": str(limits),
            "approve": f"waits for your approval: {gate}" if str(gate) else "",
            "seats": seat_prices(run),
            "cost": "no limit; set one with --max-cost USD" if spends and options.max_cost is None else "",
        }
        settings = options.settings()
        make = partial(on_cluster, fleet) if fleet else Local
        await run.open(seats, settings, options.seed, lambda facts: first_screen(run, facts, shown), make)
        run.note_start(options.keep_rule)
        experiments.tidy()
        try:
            waves = options.lookahead is None and not run.task.is_timed and (fleet is not None or len(seats) > 1)
            reason = await loop(run, proposer, experiments, limits, lookahead, waves).night()
        except Exception as error:
            with contextlib.suppress(OSError):  # the disk may be what failed
                run.ledger.append(events.Stop(reason=events.FAULT + one_line(str(error))))
            raise
        run.ledger.append(events.Stop(reason=reason))
        console.ended("stop", reason)
        show_end(run, reason)
    return 130 if stop.now() else 0


def require_constants(run: Run, agents: Sequence[Agent]) -> None:
    """UserError before the baseline runs, if all agents vary constants, and there are none."""
    names = sorted({agent.name for agent in agents})
    if not {"sweep", "optimize"}.issuperset(names):
        return
    with contextlib.suppress(SyntaxError, ValueError):  # of a file that does not parse: its trial says so
        if not any(constants(name, source, gpu=False) for name, source in run.originals.items()):
            raise UserError(
                f"{' and '.join(names)} would find nothing to vary in {', '.join(run.originals)}: {FORMS}. Choose "
                f"another with --agent, or let a coding agent drive: {to_type('start')}"
            )


def require_cluster(options: Research) -> None:
    """UserError for options that need a cluster, and for options that exclude each other."""
    if options.cluster and options.compile_ahead:
        raise UserError("--compile-ahead fills the caches of this machine's seats; omit it with --cluster")
    if options.cluster and options.max_seats and options.tiers is not None:
        raise UserError("--max-seats requests seats of one kind; omit it, or --tiers")
    kinds = "is about the devices of a cluster"
    for option, said, why in (
        ("--tiers", options.tiers is not None, kinds), ("--seat-price", options.seat_price, kinds),
        ("--max-seats", options.max_seats, "asks a cluster for nodes"),
    ):  # fmt: skip
        if said and not options.cluster:
            raise UserError(f"{option} {why}: use it with --cluster auto|HOST:PORT")


async def join(run: Run, options: Research, at_end: contextlib.AsyncExitStack) -> "Fleet":
    """Connect to the cluster of --cluster until the end of the night. Raises UserError."""
    if options.gpus is not None or options.workers is not None:
        raise UserError("--cluster uses all seats of the cluster; omit --gpus and --workers")
    prices = prices_of(options.seat_price)
    kinds = run.choose_kinds(() if options.tiers is None else tiers_of(options.tiers))
    fleet = await connect(run, options, kinds, at_end, options.max_seats, grows=True)
    require_known(prices, fleet.places())
    run.prices = {kind: price for kind, price in prices.items() if kind in fleet.kinds}
    run.kind, run.tiers = fleet.kinds[-1], fleet.kinds if fleet.kinds[1:] else ()
    return fleet


async def one_seat(run: Run, options: Verify, at_end: contextlib.AsyncExitStack) -> "Fleet":
    """Connect to the cluster of --cluster for one seat of the kind that decided in the run. Raises UserError."""
    kinds = run.choose_kinds(())[-1:]
    fleet = await connect(run, options, kinds, at_end, most=1)
    run.kind = kinds[-1]
    return fleet


async def connect(
    run: Run,
    options: Research | Verify,
    kinds: tuple[str, ...],
    at_end: contextlib.AsyncExitStack,
    most: int | None,
    grows: bool = False,
) -> "Fleet":
    """Connect to the cluster of --cluster. most, grows: see fleet.join. Raises UserError."""
    from autoresearch.runner import fleet as cluster  # needs Ray

    assert options.cluster
    say, aside = run.console.line, run.ledger.aside
    joining = cluster.join(options.cluster, options.seat_cpus, kinds, say, aside, most, grows=grows)
    fleet = await run.stop.unless_asked(joining)
    at_end.push_async_callback(fleet.close)
    return fleet


def on_cluster(fleet: "Fleet", *arguments: Any) -> Runner:
    """The runner of a cluster, with the arguments of Local."""
    from autoresearch.runner.cluster import Cluster

    return Cluster(fleet, Local(*arguments))


def seat_prices(run: Run) -> str:
    """The line of the first screen about the price of seats."""
    kinds = run.tiers or (run.kind,)
    priced = [f"${run.prices[kind]:g} per hour for each {kind}" for kind in kinds if kind in run.prices]
    free = [f"{kind} has no price" for kind in kinds if kind not in run.prices]
    return ", ".join(priced + free) if priced else ""


def timing(task: Task, lookahead: int, seats: int) -> str:
    """The line of the first screen about a game whose metric is a time."""
    if not task.is_timed:
        return ""
    if lookahead or seats > 1:
        return f"work in parallel disturbs {task.metric}; --lookahead 0 and --workers 1 avoid that"
    return f"nothing runs in parallel, to keep {task.metric} accurate; --lookahead 1 lets an agent think ahead"


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
        shown = {"agent": "external: the one that called this command"}
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
    """The work of `try`, in its own process. calls.py starts and follows it, then reports from the record."""
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
    """A recorded run, locked against loops, for a person's decision on one of its experiments. Raises UserError."""
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
            raise UserError(f"experiment {options.number} is not a keep that can be dropped; those that can: {known}")
        with_it = numbers[numbers.index(options.number) + 1 :]
        run.ledger.append(events.Dropped(number=options.number))
        run.reset()
        run.results.rebuild()
        for number in (options.number, *with_it):
            Pages(run).path(number).unlink(missing_ok=True)  # written again when the run continues
            Ideas(run.root / RUNS).follow(run.ledger.attempts[number - 1], run.repo.tag)
        champion = run.ledger.champion
        assert champion is not None
        also = f", and so are those built on top of it: {', '.join(map(str, with_it))}" if with_it else ""
        console.line(f"experiment {options.number} is dropped{also}")
        said = f"experiment {champion.number}, {run.task.metric} {digits(champion.score)}, {short(champion.commit)}"
        console.line(f"the champion is {said} on {run.repo.branch}; the run continues from there")
    return 0


async def accept(options: Numbered) -> int:
    with opened_by_hand(options) as run:
        console, tag = run.console, run.repo.tag
        held = [attempt for attempt in run.ledger.finished if attempt.reason.startswith(HELD)]
        attempt = next((attempt for attempt in held if attempt.number == options.number), None)
        if attempt is None:
            known = ", ".join(str(other.number) for other in held) or "none"
            raise UserError(f"experiment {options.number} is not held back; held back: {known}")
        champion, number = run.ledger.champion_commit, len(run.ledger.attempts) + 1
        commit = attempt.commit if attempt.parent == champion else run.on_champion(attempt)
        if commit is None:
            raise UserError(
                f"the edit of experiment {options.number} does not apply to the current champion; to make it by hand, "
                f"look at it: `git show refs/autoresearch/{tag}/{options.number}`"
            )
        edit, lines = edit_hash(run.files(commit)), run.lines(commit) - run.lines(champion)
        run.ledger.append(
            events.Attempt(
                number=number, commit=commit, parent=champion, description=attempt.description, agent=attempt.agent,
                category=attempt.category, hypothesis=attempt.hypothesis, predicted=attempt.predicted, edit=edit,
                ideas=attempt.ideas, lines=lines, constants=attempt.constants, tokens=0, dollars=0.0,
            )
        )  # fmt: skip
        run.ledger.append(events.Accepted(number=number, held=options.number))  # not before: else another edit could be
        run.repo.remember(number, commit)
        Ideas(run.root / RUNS).follow(run.ledger.attempts[-1], tag)
        console.line(f"experiment {options.number} runs again as experiment {number}, first when the run continues")
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
            "runs": f"{options.runs} of each version, with fresh seeds, in turn",
            **({"cluster": f"one seat of {run.kind}"} if fleet else {}),
            "sandbox": sandbox_in_words(run.confined),
            "to stop": "Ctrl-C: after the current run; twice: now. Run the same command again to continue",
        }
        title = f"autoresearch: verify run {tag}"
        seats, settings = [] if fleet else run.choose_seats(), run.recorded_settings()
        make = partial(on_cluster, fleet) if fleet else Local
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
            console.line("stopped before all runs were done; run the same command again to continue")
    return 130 if stop.now() else 0


def agents_of(options: Research) -> tuple[list[Agent], str, Agent | None]:
    """(The agents, their description for the first screen, the agent of --fill). Raises UserError."""
    said = AgentOptions(
        options.agent, options.model, options.base_url, options.thinking, options.agent_command, options.agent_limit,
        options.web_search, options.seed, options.price,
    )  # fmt: skip
    agents, description = make_agents(said)
    if options.fill not in (None, "sweep"):
        raise UserError(f"--fill takes sweep, not {options.fill!r}")
    filler = make_agents(AgentOptions(options.fill, seed=options.seed))[0][0] if options.fill else None
    return agents, description, filler
