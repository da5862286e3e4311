"""The command line: each command's options, and the parts that it puts together.

The options of a command are a dataclass; each field carries its help. Exit codes: 0, or what a command says; 2 for bad
use and for what only a person can put right; 130 for stopped at once.
"""

import asyncio
import contextlib
import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import git
import typer

from autoresearch import UserError, disk_is_full, keys
from autoresearch.agents import Agent, Proposal
from autoresearch.agents.choice import AGENTS, AgentOptions, make_agents
from autoresearch.agents.external import External
from autoresearch.background import LOG, ask_to_stop, detach, loop_command, read_along
from autoresearch.brief import BUDGET
from autoresearch.experiment import Experiments
from autoresearch.judge import RULES, KeepRule
from autoresearch.limits import Limits, Stopped, StopRequest
from autoresearch.pages import Pages
from autoresearch.propose import Proposer
from autoresearch.record import events
from autoresearch.record.results import Results
from autoresearch.repo import short
from autoresearch.run import RUNS, Run, folder_of, open_run, recorded_run
from autoresearch.runner.local import sandbox_in_words
from autoresearch.text import count, one_line
from autoresearch.views.console import Console
from autoresearch.views.notify import Notifier
from autoresearch.views.show import answer_of, first_screen, show_answer, show_end
from autoresearch.views.state import look

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def option(help: str, *names: str, default: Any = None, **more) -> Any:
    """A field of a dataclass of options. names: where the option is not called like the field."""
    return dataclasses.field(default=default, metadata={"option": typer.Option(*names, help=help, **more)})


def taking(kind: type) -> Callable[[Callable], Callable]:
    """Make a function of (context, options) one that typer reads: a keyword for each field of the dataclass `kind`."""

    def decorate(function: Callable) -> Callable:
        def call(context: typer.Context, **values):
            return function(context, kind(**values))

        hints = get_type_hints(kind)
        parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        for field in dataclasses.fields(kind):
            annotation, keyword = Annotated[hints[field.name], field.metadata["option"]], inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(field.name, keyword, default=field.default, annotation=annotation))
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        call.__name__, call.__doc__ = function.__name__, function.__doc__
        return call

    return decorate


# ----------------------------------------------------------------------------------------------
# Options


@dataclasses.dataclass
class Tagged:
    tag: str | None = option("Name of the run. Default: the last run, else today's date.")


@dataclasses.dataclass
class Trials(Tagged):
    """Of commands that run trials."""

    sandbox: str = option(
        "auto: confine trials where the kernel can. require: refuse to run where it cannot. off: trust the agent's code.",
        default="auto",
    )
    plain: bool = option("One line an event, no live view.", "--plain", default=False)


@dataclasses.dataclass
class Begins(Trials):
    """Of commands that can begin a run."""

    profile: str | None = option("gpu, cpu or test. Default: gpu where there is one, else cpu.")
    data: str | None = option("climbmix, sotu or a folder. Default: the profile's.")

    def settings(self) -> dict[str, str]:
        """Environment variables of the game. A folder's path must mean the same from the worktree."""
        data = self.data
        if data and data not in ("climbmix", "sotu"):
            data = str(Path(data).expanduser().resolve())
        return {k: v for k, v in (("AUTORESEARCH_PROFILE", self.profile), ("AUTORESEARCH_DATA", data)) if v}


KEEP_RULE = "margin: a gain must exceed half of what noise does to it, and the price of the lines that it adds. strict: any gain."


@dataclasses.dataclass
class Research(Begins):
    """Of the loop itself."""

    experiments: int | None = option("Stop when the run has this many, the baseline included.", min=1)
    hours: float | None = option("Start no experiment after this many hours.", min=0)
    max_cost: float | None = option(
        "Start no experiment when the run's proposals have cost this.", min=0, metavar="USD"
    )
    max_tokens: int | None = option("Start no experiment when they have taken this many tokens.", min=1)
    agent: str = option(
        f"Who proposes: {', '.join(AGENTS)}; auto: the first that is ready. NAME:MODEL for a certain model. A,B: both, "
        "the better one more often.",
        default="auto",
    )
    model: str | None = option("The agent's model. Default: the agent's own.")
    base_url: str | None = option("Of claude-api: any server with a Messages API.")
    thinking: str | None = option(
        "Of claude-api: low, medium, high, xhigh, max, off, or a budget in tokens for models that take one."
    )
    agent_command: str | None = option("The program of --agent command.")
    agent_limit: float = option("Seconds for one proposal.", min=1, default=1800.0)
    web_search: bool = option("Let the agent search the web when it is stuck.", "--web-search", default=False)
    fill: str | None = option("sweep: proposes while the agent cannot be reached.")
    repairs: int = option(
        "How often an edit that crashed in its first minute goes back to the agent.", min=0, default=1
    )
    lookahead: int | None = option(
        "Proposals to have ready while a trial runs. Default: 1 for agents that take time to think, else 0.", min=0
    )
    gpus: str | None = option(
        "GPUs to use, by their numbers in nvidia-smi: a trial at a time on each. Default: the first, or those of the run.",
        "--gpus",
        "--gpu",
        metavar="0,1,..",
    )
    workers: int | None = option("Trials at a time, without GPUs. Default: 1, or as the run has it.", min=1)
    brief_tokens: int = option("How much the agent is told.", min=4000, default=BUDGET)
    seed: int = option("Of every trial: picking seeds is not research.", min=0, default=42)
    keep_rule: str = option(KEEP_RULE, default="margin")
    baseline_runs: int = option("How often the baseline is trained, to know the noise.", min=1, default=2)
    notify: str | None = option(
        "Called with one JSON line on its standard input on each keep, stop and fault.", metavar="COMMAND"
    )
    detach: bool = option(
        "Go on in the background, also when the terminal is closed: see status, logs, stop.", "--detach", default=False
    )

    def agent_options(self) -> AgentOptions:
        return AgentOptions(
            self.agent, self.model, self.base_url, self.thinking, self.agent_command, self.agent_limit, self.web_search,
            self.seed,
        )  # fmt: skip

    def limits(self) -> Limits:
        return Limits(self.experiments, self.hours, self.max_cost, self.max_tokens)

    def filler(self) -> Agent | None:
        """The agent of --fill."""
        if self.fill not in (None, "sweep"):
            raise UserError(f"--fill takes sweep, not {self.fill!r}")
        return make_agents(AgentOptions(self.fill, seed=self.seed))[0][0] if self.fill else None


@dataclasses.dataclass
class Start(Begins):
    seed: int | None = option("Of every trial. Default: the run's, else 42.", min=0)
    keep_rule: str | None = option("margin or strict, as for the loop itself. Default: the run's, else margin.")
    baseline_runs: int = option("How often the baseline is trained, to know the noise.", min=1, default=1)
    gpu: str | None = option("The GPU to use, by its number in nvidia-smi. Default: the run's, else the first.")


@dataclasses.dataclass
class Try(Trials):
    message: str = option("What was changed, and why.", "--message", "-m", default="")
    category: str = option("What kind of change it is, e.g. optimizer.", default="")
    hypothesis: str = option("Why it should help.", default="")
    predicted: float | None = option("The change of the metric that is expected.")
    lesson: str = option("What the last verdicts taught, for later runs.", default="")
    as_json: bool = option("Print one JSON object, everything else to standard error.", "--json", default=False)


@dataclasses.dataclass
class Verify(Trials):
    runs: int = option("How often each code is trained, each time with another fresh seed.", min=2, default=3)
    ablate: bool = option(
        "Also leave out each kept change in turn: which of them carry the gain?", "--ablate", default=False
    )
    prune: bool = option(
        "Ablate, then write a branch without the changes that do not, and run that too.", "--prune", default=False
    )


@dataclasses.dataclass
class Status(Tagged):
    as_json: bool = option(
        "Print one JSON object; autoresearch/views/state.py says what its keys mean.", "--json", default=False
    )
    plain: bool = option("Without colours and frames.", "--plain", default=False)


@dataclasses.dataclass
class Stop(Tagged):
    now: bool = option(
        "At once. The running experiment has no verdict, and runs again when the run goes on.", "--now", default=False
    )


@dataclasses.dataclass
class Logs(Tagged):
    follow: bool = option("Go on until the loop ends, or Ctrl-C.", "--follow", "-f", default=False)
    trial: bool = option(
        "What the running trial prints instead; where none runs, the last one.", "--trial", default=False
    )


@dataclasses.dataclass
class Report(Tagged):
    output: Path | None = option("Folder to write to. Default: report/ in the run's own folder.")
    pdf: bool = option("Write report.pdf as well.", "--pdf", default=False)


@dataclasses.dataclass
class Watch(Tagged):
    port: int = option("Of 127.0.0.1. Default: one that is free.", min=0, max=65535, default=0)


# ----------------------------------------------------------------------------------------------
# Commands that run trials


@app.callback(invoke_without_command=True)
@taking(Research)
def research(context: typer.Context, options: Research) -> None:
    """Let an agent do language-model research: it edits train.py, each edit is trained for a fixed time, scored, and kept
    or thrown away. The same command again continues the run."""
    if context.invoked_subcommand:
        return
    if options.detach:
        return run_detached(options.tag)
    run_to_end(night(context.obj, options))


async def night(loop: type, options: Research) -> int:
    """The loop, until it ends. loop: the class Loop of loop.py."""
    console, limits = Console(options.plain), options.limits()
    stop = StopRequest(console.line)
    agents, agents_in_words = make_agents(options.agent_options())
    filler = options.filler()
    notifier = Notifier(options.notify, lambda fault: console.line(fault, "yellow")) if options.notify else None
    try:
        with open_run(options.tag, options.sandbox, console, stop) as run:
            async with console.follow(run.ledger, run.folder, stop, limits, notifier):
                run.begin()
                seats = run.choose_seats(options.gpus, options.workers)
                pages = Pages(run)
                proposer = Proposer(run, pages, agents, filler, options.web_search, options.brief_tokens)
                rule = rule_of(options.keep_rule, run)
                baseline_runs, repairs = options.baseline_runs, options.repairs
                experiments = Experiments(
                    run, rule, pages, baseline_runs, repairs, lambda attempt: proposer.agent_of(attempt) is not None
                )
                ahead = options.lookahead
                if ahead is None:
                    ahead = int(any(agent.retries for agent in agents))
                open_ended = options.max_cost is None and any(hasattr(agent, "model") for agent in agents)
                shown = {
                    "agent": agents_in_words,
                    "at once": count(len(seats), "trial") if len(seats) > 1 else "",
                    "until": str(limits),
                    "cost": "not limited: --max-cost USD would" if open_ended else "",
                }
                settings = options.settings()
                await run.open(seats, settings, options.seed, lambda facts: first_screen(run, facts, shown))
                run.note_start(options.keep_rule)
                try:
                    reason = await loop(run, proposer, experiments, limits, ahead).night()
                except Exception as error:
                    with contextlib.suppress(OSError):  # the disk may be what failed
                        run.ledger.append(events.Stop(reason=f"a fault: {one_line(str(error))}"))
                    raise
                run.ledger.append(events.Stop(reason=reason))
                champion, finished, kept = run.ledger.champion, len(run.ledger.finished), len(run.ledger.kept)
                score = champion.score if champion else None
                console.tell("stop", reason=reason, experiments=finished, kept=kept, score=score)
                show_end(run, reason)
    finally:
        if notifier:
            await notifier.close()
    return 130 if stop.now() else 0


@app.command()
@taking(Start)
def start(context: typer.Context, options: Start) -> None:
    """For an external agent (see program.md): begin a run or find it again, train the baseline, and say where to edit."""
    run_to_end(begin(context.obj, options))


async def begin(loop: type, options: Start) -> int:
    console = Console(options.plain)
    stop = StopRequest(console.line)
    with open_run(options.tag, options.sandbox, console, stop) as run:
        async with console.follow(run.ledger, run.folder, stop):
            run.begin(keep_edit=bool(run.ledger.champion))
            seats = run.choose_seats(options.gpu)
            keep_rule = options.keep_rule or run.ledger.started.keep_rule or "margin"
            pages = Pages(run)
            experiments = Experiments(run, rule_of(keep_rule, run), pages, options.baseline_runs)
            proposer = Proposer(run, pages, [], external=True)
            seed = run.ledger.seed if options.seed is None else options.seed
            shown = {"agent": "the one that called this: an external agent"}
            settings = run.recorded_settings() | options.settings()
            await run.open(seats, settings, seed, lambda facts: first_screen(run, facts, shown))
            run.note_start(keep_rule, external=True)
            if run.ledger.champion is None and not stop.level:
                baseline = next(iter(run.ledger.pending), None) or await proposer.next_attempt()
                await loop(run, proposer, experiments, Limits()).until_verdict(baseline)
            if champion := run.ledger.champion:
                for name in run.task.editable:
                    console.line(f"edit      {(run.repo.worktree / name).relative_to(run.root)}")
                console.line(f"champion  experiment {champion.number}, {run.task.metric} {champion.score:.6f}")
                console.line('then      uv run loop.py try -m "what and why"')
    return 130 if stop.now() else 0


@app.command("try")
@taking(Try)
def try_(context: typer.Context, options: Try) -> None:
    """For an external agent: run the edit that stands in the worktree, keep or discard it, and say so.

    Exit code 0: kept. 1: discarded. 3: it crashed. 4: it was refused, and stands where it stood. 2: bad use, or a fault
    that has to be put right first. 130: it was stopped; the same command goes on."""
    if not options.message.strip():
        raise UserError('-m needs a description: uv run loop.py try -m "what and why"')
    run_to_end(try_edit(context.obj, options))


async def try_edit(loop: type, options: Try) -> int:
    console = Console(options.plain, to_errors=options.as_json)
    stop = StopRequest(console.line)
    tag = recorded_run(options.tag, "begin one: uv run loop.py start").tag
    with open_run(tag, options.sandbox, console, stop) as run:
        async with console.follow(run.ledger, run.folder, stop):
            if run.ledger.champion is None:
                raise UserError(f"run {tag} has no baseline yet: uv run loop.py start")
            run.begin(keep_edit=True)
            keep_rule, pages = run.ledger.started.keep_rule or "margin", Pages(run)
            said = (options.message, options.hypothesis, options.predicted, options.category, options.lesson)
            proposer = Proposer(run, pages, [External(Proposal(*said))], external=True)
            experiments = Experiments(run, rule_of(keep_rule, run), pages)
            await run.open(run.choose_seats(), run.recorded_settings(), run.ledger.seed, lambda facts: None)
            run.note_start(keep_rule, external=True)
            try:
                attempt = await loop(run, proposer, experiments, Limits()).try_edit()
            except Stopped:
                return 130
            answer = answer_of(run, attempt, proposer.stages)
    if stop.level and not (attempt and attempt.status):
        return 130
    if options.as_json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        show_answer(console, answer)
    return {"keep": 0, "discard": 1, "crash": 3}.get(answer["verdict"], 4)


@app.command()
@taking(Verify)
def verify(context: typer.Context, options: Verify) -> None:
    """Run baseline and champion again with fresh seeds, and say what the gain is. The same command again continues."""
    run_to_end(run_verify(options))


async def run_verify(options: Verify) -> int:
    from autoresearch.verify import Verification, lines_of  # with scipy, which takes a second

    console = Console(options.plain)
    stop = StopRequest(console.line)
    tag = recorded_run(options.tag).tag
    with open_run(tag, options.sandbox, console, stop) as run:
        async with console.follow(run.ledger, run.folder, stop):
            kept = run.ledger.kept
            if len(kept) < 2:
                raise UserError(f"run {tag} has kept nothing after its baseline, so there is no gain to verify")
            run.begin(keep_edit=True)
            verification = Verification(run, options.runs)
            shown = {
                "baseline": f"{short(kept[0].commit)}, {run.task.metric} {kept[0].score:.6f} in the run",
                "champion": f"{short(kept[-1].commit)}, {kept[-1].score:.6f}, {count(len(kept) - 1, 'change')} kept",
                "runs": f"{options.runs} of each code, with fresh seeds, in turn",
                "sandbox": sandbox_in_words(run.confined),
                "to stop": "Ctrl-C: after the running one; twice: now. The same command continues",
            }
            title = f"autoresearch: verify run {tag}"
            seats, settings = run.choose_seats(), run.recorded_settings()
            await run.open(seats, settings, run.ledger.seed, lambda facts: console.first_screen(title, shown))
            try:
                finished = await stop.unless_asked(verification(options.ablate, options.prune), level=2)
            except Stopped:
                finished = False
            for line, style in lines_of(verification.findings()):
                console.line(line, style)
            if not finished:
                console.line("stopped before all was run; the same command continues")
    return 130 if stop.now() else 0


def rule_of(name: str, run: Run) -> KeepRule:
    if name not in RULES:
        raise UserError(f"--keep-rule takes {' or '.join(RULES)}, not {name!r}")
    return RULES[name] if name == "strict" else dataclasses.replace(RULES[name], line_price=run.task.line_price)


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


# ----------------------------------------------------------------------------------------------
# Commands that only read


@app.command()
@taking(Status)
def status(context: typer.Context, options: Status) -> None:
    """How a run stands: champion, what runs, the last verdicts, costs, where the time went. Of a loop in any process, and
    of one that has ended."""
    state = look(recorded_run(options.tag).ledger)
    if options.as_json:
        print(keys.scrub(json.dumps(state.as_json(), ensure_ascii=False)))
    else:
        Console(options.plain).status(state)


@app.command("stop")
@taking(Stop)
def stop_(context: typer.Context, options: Stop) -> None:
    """Ask a running loop to stop after its experiment, as Ctrl-C does. Exit code 1: no loop is running."""
    folder = folder_of(options.tag)
    said = ask_to_stop(folder, folder.name, options.now)
    print(said or f"no loop is running on tag {folder.name}")
    if not said:
        raise typer.Exit(1)


@app.command()
@taking(Logs)
def logs(context: typer.Context, options: Logs) -> None:
    """What a detached loop has printed."""
    folder = folder_of(options.tag)
    if not options.trial and not (folder / LOG).exists():
        raise UserError(
            f"run {folder.name} was not detached, so what its loop printed is in its terminal. `uv run loop.py status "
            f"--tag {folder.name}` says how it stands, `uv run loop.py logs --trial --tag {folder.name}` what its trial "
            "prints"
        )
    try:
        for line in read_along(folder, options.follow, options.trial):
            print(line, flush=True)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # its reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command()
@taking(Report)
def report(context: typer.Context, options: Report) -> None:
    """Write a short paper of a run, from its record alone: what was kept, what it is worth, what did not help, its cost."""
    from autoresearch.views.report import write_report  # with matplotlib

    recorded = recorded_run(options.tag)
    ledger = recorded.ledger
    if ledger.champion is None:
        raise UserError(f"run {recorded.tag} has no baseline yet, so there is nothing to report")
    diff = recorded.repo.diff
    diffs = {kept.number: diff(kept.parent, kept.commit, recorded.task.editable) for kept in ledger.kept[1:]}
    path = write_report(look(ledger), diffs, options.output or ledger.path.parent / "report", options.pdf)
    print(f"{path}: {count(len(ledger.finished), 'experiment')} of run {recorded.tag}")


@app.command()
@taking(Watch)
def watch(context: typer.Context, options: Watch) -> None:
    """Show a run live in a browser: curve, table, the diff of each attempt, the running log. It only reads; Ctrl-C ends
    it."""
    from autoresearch.views.watch import Watch as Page
    from autoresearch.views.watch import serve

    recorded = recorded_run(options.tag, "begin one: uv run loop.py")
    serve(Page(recorded.repo, recorded.ledger), options.port)


@app.command()
@taking(Tagged)
def results(context: typer.Context, options: Tagged) -> None:
    """Write results.tsv again, from the journal."""
    recorded = recorded_run(options.tag)
    file = Results(recorded.root / "results.tsv", recorded.ledger)
    file.require_ours(recorded.root / RUNS)
    file.rebuild()
    print(f"{file.path}: {len(recorded.ledger.finished)} experiments of run {recorded.tag}")


# ----------------------------------------------------------------------------------------------


def run_to_end(work: Coroutine[Any, Any, int]) -> None:
    """Run a command on the one thread that decides, and end with its exit code."""
    try:
        code = asyncio.run(work)
    except Stopped:
        code = 130
    if code:
        raise typer.Exit(code)


def arguments() -> list[str]:
    """What this program was called with. `run` may be said, and need not."""
    return sys.argv[2:] if sys.argv[1:2] == ["run"] else sys.argv[1:]


def main(loop: type) -> None:
    """The program. loop: the class Loop of loop.py, which imports this room and not the other way round."""
    try:
        app(arguments(), obj=loop)
    except UserError as error:
        print(f"error: {keys.scrub(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (OSError, git.GitCommandError) as error:
        if said := in_words(error):
            print(f"error: {said}", file=sys.stderr)
            sys.exit(2)
        raise


def in_words(error: Exception) -> str:
    """What to tell a person of a fault of the machine; empty for one that nobody expected."""
    if disk_is_full(error):
        return "the disk is full. Nothing that was recorded is lost: free some space and run the same command again"
    lost = "Nothing that was recorded is lost"
    if isinstance(error, PermissionError):
        return (
            f"{error.filename} cannot be written: {error.strerror}. {lost}: correct its permissions and run the same "
            "command again"
        )
    if isinstance(error, git.GitCommandError):
        return f"git failed: {error}\n{lost}: put that right and run the same command again"
    return ""
