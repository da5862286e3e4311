"""The command line. options.py defines the options of each command; commands.py runs the commands that need trials.

Exit codes: 0, or what a command documents; 2 for wrong usage and for errors that only a person can fix; 130 for
stopped at once. Each command imports what only it needs, so that the first screen appears quickly.
"""

import dataclasses
import errno
import importlib.util
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from autoresearch import Stopped, UserError, disk_is_full, keys, require_linux
from autoresearch.options import (
    AddIdea,
    Approve,
    Called,
    Check,
    Clean,
    Doctor,
    DropIdea,
    Ideas,
    Logs,
    Note,
    Numbered,
    Plan,
    Reject,
    Report,
    Research,
    Start,
    Status,
    Stop,
    Tagged,
    Track,
    Try,
    Verify,
    Wait,
    Watch,
)
from autoresearch.record.runs import RUNS, Recorded, folder_of, recorded_run, root_of
from autoresearch.text import clean as clean_text
from autoresearch.text import count, to_type

if TYPE_CHECKING:
    from autoresearch.ideas import Ideas as KnownIdeas
    from autoresearch.record.events import Approved, Rejected

# Environment variables that git sets for hooks and aliases. They would redirect work in a worktree to the user's
# checkout, or change the meaning of paths.
GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
GIT_PATHS = tuple(f"GIT_{kind}_PATHSPECS" for kind in ("LITERAL", "GLOB", "NOGLOB", "ICASE"))
DRAWING = {"plotly": "plotly", "matplotlib": "matplotlib", "fpdf": "fpdf2"}  # packages of watch and report, by module


def group() -> typer.Typer:
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app, ideas = group(), group()
app.add_typer(ideas, name="ideas")


def taking(kind: type) -> Callable[[Callable], Callable]:
    """Turn a function of (context, options) into a typer command with a keyword for each field of the dataclass."""

    def decorate(function: Callable) -> Callable:
        def call(context: typer.Context, **values):
            return function(context, kind(**values))

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
        for field in dataclasses.fields(kind):
            option = field.metadata["option"]
            parameters.append(inspect.Parameter(field.name, keyword, default=option, annotation=field.type))
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        call.__name__, call.__doc__ = function.__name__, function.__doc__
        return call

    return decorate


# ----------------------------------------------------------------------------------------------
# Commands that run trials


@app.callback(invoke_without_command=True)
@taking(Research)
def research(context: typer.Context, options: Research) -> None:
    """Let an agent do language-model research: it edits train.py; each edit is trained for a fixed time, scored, and
    kept or discarded. Run the same command again to continue the run."""
    if context.invoked_subcommand:
        return
    if options.detach:
        return run_detached(options.tag)
    from autoresearch import commands

    run_to_end(commands.night(context.obj, options))


@app.command()
@taking(Plan)
def plan(context: typer.Context, options: Plan) -> None:
    """Set up another repository: inspect it, propose what to edit, run and measure, check that this works, and write
    program.md. Exit code 1: the check failed, and nothing was written."""
    from autoresearch.plan.command import run_plan

    run_to_end(run_plan(options))


@app.command()
@taking(Check)
def check(context: typer.Context, options: Check) -> None:
    """Check a program.md: run each of its commands, run the baseline five times, and break each editable file once.
    Exit code 1: the check failed."""
    from autoresearch.plan.command import run_check

    run_to_end(run_check(options))


@app.command()
@taking(Start)
def start(context: typer.Context, options: Start) -> None:
    """For an external agent (see program.md): begin or continue a run, train the baseline, say which file to edit."""
    require_this_machine("start", options)
    if options.apart:
        from autoresearch import commands

        return run_to_end(commands.begin(context.obj, options))
    from autoresearch import calls

    end_with(calls.start(program_of(context.obj), arguments(), options))


@app.command("try")
@taking(Try)
def try_(context: typer.Context, options: Try) -> None:
    """For an external agent: run the edit in the worktree, keep or discard it, and report the verdict.

    Exit code 0: kept. 1: discarded. 3: crashed. 4: refused; the edit stays in the worktree. 2: wrong usage, or a fault
    to fix first. 130: stopped; run the same command again to continue. With --background, 0: the trial is running."""
    require_this_machine("try", options)
    if not options.message.strip():
        raise UserError(f'-m needs a description: {to_type("try")} -m "what and why"')
    if options.apart:
        from autoresearch import commands

        return run_to_end(commands.try_edit(context.obj, options))
    from autoresearch import calls

    end_with(calls.try_edit(program_of(context.obj), arguments(), options))


def require_this_machine(command: str, options: Called) -> None:
    if options.cluster:
        raise UserError(
            f"`{command}` runs its trial only on this machine: omit --cluster. `{to_type()} --cluster "
            f"{options.cluster}` and `verify` run on a cluster"
        )


@app.command()
@taking(Wait)
def wait(context: typer.Context, options: Wait) -> None:
    """For an external agent: wait for the verdict on its edit and report it as `try` does, with the same exit codes.
    5: no verdict yet."""
    from autoresearch import calls

    try:
        end_with(calls.wait(options))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
@taking(Verify)
def verify(context: typer.Context, options: Verify) -> None:
    """Run baseline and champion again with fresh seeds and report the gain. Run it again to continue."""
    from autoresearch import commands

    run_to_end(commands.run_verify(options))


@app.command()
@taking(Numbered)
def drop(context: typer.Context, options: Numbered) -> None:
    """Drop a keep, and everything that was kept on top of it. The run continues from the champion before it."""
    from autoresearch import commands

    run_to_end(commands.drop(options))


@app.command()
@taking(Numbered)
def accept(context: typer.Context, options: Numbered) -> None:
    """Accept an edit that was held back for its large gain, after you have looked at it. It runs again as the next
    experiment and can then be kept."""
    from autoresearch import commands

    run_to_end(commands.accept(options))


@app.command()
@taking(Clean)
def clean(context: typer.Context, options: Clean) -> None:
    """Remove worktrees, caches and the git refs of attempts, of all runs but the last or of one run, after asking.
    Journals, logs and branches stay."""
    from autoresearch.tidy_up import clean as clean_up

    def agreed(question: str) -> bool:
        if options.yes:
            return True
        if not sys.stdin.isatty():
            raise UserError(f"this is no terminal, so nobody can be asked; {to_type('clean --yes')} removes them")
        return typer.confirm(question)

    clean_up(root_of(Path.cwd()), options.tag, agreed, print)


def run_detached(tag: str | None) -> None:
    from autoresearch.background import LOG, detach, loop_command

    folder = folder_of(tag)
    process, said = detach(loop_command(arguments(), folder.name), folder)
    print(said)
    if process:
        print(f"\nIt runs in the background as process {process} and prints to {folder / LOG}.")
        for command, words in (
            ("status", "shows its state"),
            ("logs -f", "shows what it prints"),
            ("stop", "stops it after the running experiment"),
        ):
            print(f"  {to_type(f'{command} --tag {folder.name}'):<50} {words}")


# ----------------------------------------------------------------------------------------------
# Ideas: what could be tried


@ideas.callback(invoke_without_command=True)
@taking(Ideas)
def ideas_(context: typer.Context, options: Ideas) -> None:
    """Ideas for the agents of all runs: list them, add one, or let an agent search for more. They are kept in
    .autoresearch/ideas.md, which you may edit. Exit code 1: a search found nothing new."""
    if context.invoked_subcommand:
        return
    if options.search is None:
        return list_ideas(context)
    from autoresearch.literature import search

    run_to_end(search(options))


@ideas.command("list")
def list_ideas(context: typer.Context) -> None:
    """List all ideas, with source, expected effect and state."""
    known = known_ideas()
    known.catch_up()
    print(clean_text("\n".join(map(str, known.read()))) or f"no ideas yet; add one: {to_type('ideas add')} TEXT")


@ideas.command("add")
@taking(AddIdea)
def add_idea(context: typer.Context, options: AddIdea) -> None:
    """Add an idea. Agents are offered your ideas before those of other agents."""
    idea, is_new = known_ideas().add(options.text, options.expect, options.source)
    print(f"I{idea.number}: agents see it from the next brief on" if is_new else f"this idea is already known:\n{idea}")


@ideas.command("drop")
@taking(DropIdea)
def drop_idea(context: typer.Context, options: DropIdea) -> None:
    """Stop offering an idea to agents."""
    from autoresearch.shared_lines import named

    if not (number := named("I", options.idea) or named("I", f"I{options.idea}")):
        raise UserError(f"{options.idea!r} is not the number of an idea; give a number such as I3")
    print(f"dropped: {known_ideas().drop(number).text}")


def known_ideas() -> "KnownIdeas":
    from autoresearch.ideas import Ideas as KnownIdeas

    return KnownIdeas(root_of(Path.cwd()) / RUNS)


# ----------------------------------------------------------------------------------------------
# Commands that run no trials


@app.command()
@taking(Status)
def status(context: typer.Context, options: Status) -> None:
    """Show the state of a run: champion, what is running, the last verdicts, costs, where the time went. Works for a
    loop in any process, and for a run that has ended."""
    from autoresearch.views.panel import print_state
    from autoresearch.views.state import look

    state = look(recorded_run(options.tag).ledger)
    if options.as_json:
        print(keys.scrub(json.dumps(state.as_json(), ensure_ascii=False)))
    else:
        print_state(state, options.plain)


@app.command("stop")
@taking(Stop)
def stop_(context: typer.Context, options: Stop) -> None:
    """Stop a running loop after the current experiment, as Ctrl-C does. Exit code 1: no loop is running."""
    from autoresearch.background import ask_to_stop

    folder = folder_of(options.tag)
    said = ask_to_stop(folder, folder.name, options.now)
    print(said or f"no loop is running on tag {folder.name}")
    if not said:
        raise typer.Exit(1)


@app.command()
@taking(Note)
def note(context: typer.Context, options: Note) -> None:
    """Tell the agent something, even while a loop runs: the note is in all later briefs, and in the journal."""
    from autoresearch.inbox import leave, text_of
    from autoresearch.record.events import Note as Message

    recorded = recorded_run(options.tag)
    leave(recorded.ledger.path.parent, Message(text=text_of(options.text)))
    print(f"run {recorded.tag}: the note is in the next brief")


@app.command()
@taking(Tagged)
def pause(context: typer.Context, options: Tagged) -> None:
    """Pause a run: running trials finish, and the loop starts nothing new until `resume`."""
    from autoresearch.inbox import leave
    from autoresearch.record.events import Pause

    recorded = recorded_run(options.tag)
    leave(recorded.ledger.path.parent, Pause())
    print(f"run {recorded.tag} pauses when its trials are done; to resume: {to_type('resume')} --tag {recorded.tag}")


@app.command()
@taking(Tagged)
def resume(context: typer.Context, options: Tagged) -> None:
    """Resume a paused run."""
    from autoresearch.inbox import leave
    from autoresearch.record.events import Resume

    recorded = recorded_run(options.tag)
    leave(recorded.ledger.path.parent, Resume())
    print(f"run {recorded.tag} resumes" + ("" if is_at_work(recorded) else f" when you start the loop: {to_type()}"))


@app.command()
@taking(Approve)
def approve(context: typer.Context, options: Approve) -> None:
    """Approve what waits for your decision (--approve): an edit, a keep, or more cost."""
    from autoresearch.record.events import Approved

    answer_held(options, Approved(number=options.number), "approved")


@app.command()
@taking(Reject)
def reject(context: typer.Context, options: Reject) -> None:
    """Reject what waits for your decision. The agent is told why."""
    from autoresearch.inbox import text_of
    from autoresearch.record.events import Rejected

    if not options.message.strip():
        raise UserError(f'-m needs a reason for the agent: {to_type("reject")} {options.number} -m "why"')
    answer_held(options, Rejected(number=options.number, reason=text_of(options.message)), "rejected")


def answer_held(options: Approve, word: "Approved | Rejected", said: str) -> None:
    from autoresearch.gate import require_held
    from autoresearch.inbox import leave

    recorded = recorded_run(options.tag)
    require_held(recorded.ledger, options.number)
    leave(recorded.ledger.path.parent, word)
    print(f"experiment {options.number} is {said}" + ("" if is_at_work(recorded) else f"; to continue: {to_type()}"))


def is_at_work(recorded: Recorded) -> bool:
    from autoresearch.record.journal import holder

    return holder(recorded.ledger.path.parent) is not None


@app.command()
@taking(Logs)
def logs(context: typer.Context, options: Logs) -> None:
    """Show what a detached loop has printed."""
    from autoresearch.background import LOG, read_along

    folder = folder_of(options.tag)
    if not options.trial and not (folder / LOG).exists():
        raise UserError(
            f"run {folder.name} was not detached, so its output is in its terminal. `{to_type('status')} "
            f"--tag {folder.name}` shows its state, `{to_type('logs')} --trial --tag {folder.name}` the output of its "
            "trial"
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
    """Write a short report of a run from its journal: what was kept, what it is worth, what did not help, the cost."""
    from autoresearch.repo import RunRepo, open_repository
    from autoresearch.views.report import write_report
    from autoresearch.views.state import look

    recorded = recorded_run(options.tag)
    ledger, folder = recorded.ledger, recorded.ledger.path.parent
    if ledger.champion is None:
        raise UserError(f"run {recorded.tag} has no baseline yet, so there is nothing to report")
    repo = RunRepo(open_repository(recorded.root), recorded.tag, folder)
    diffs = {kept.number: repo.diff(kept.parent, kept.commit, recorded.task.editable) for kept in ledger.kept[1:]}
    path = write_report(look(ledger), diffs, options.output or folder / "report", options.pdf)
    print(f"{path}: {count(len(ledger.finished), 'experiment')} of run {recorded.tag}")


@app.command()
@taking(Tagged)
def digest(context: typer.Context, options: Tagged) -> None:
    """Sum up a run in ten lines: the best score and whether it is verified, what worked, what did not, the cost, and
    what to look at next."""
    from autoresearch.views.digest import digest
    from autoresearch.views.state import look

    print(keys.scrub("\n".join(digest(look(recorded_run(options.tag).ledger)))))


@app.command()
@taking(Track)
def track(context: typer.Context, options: Track) -> None:
    """Send a run to an experiment tracker: all experiments it lacks and, while a loop runs, each new one."""
    from autoresearch.repo import RunRepo, open_repository
    from autoresearch.views.track import require_tracker, track

    name = require_tracker(options.tracker)
    recorded = recorded_run(options.tag)
    repo = RunRepo(open_repository(recorded.root), recorded.tag, recorded.ledger.path.parent)
    sent = track(name, recorded.ledger, repo)
    print(f"{name} has {count(sent, 'experiment')} of run {recorded.tag}")


@app.command()
def mcp(context: typer.Context) -> None:
    """Start a Model Context Protocol server on standard input and output, with tools to run the experiments."""
    if importlib.util.find_spec("mcp") is None:
        raise UserError("the package mcp is not installed: `uv tool install --with mcp PATH_OR_URL` installs it")
    from autoresearch.mcp_server import serve

    serve(inspect.getfile(context.obj))


@app.command()
@taking(Watch)
def watch(context: typer.Context, options: Watch) -> None:
    """Show a run live in a browser: curve, table, the diff of each attempt, the running log. Read-only without
    --writable. Ctrl-C ends it."""
    if importlib.util.find_spec("plotly") is None:  # which the browser asks for later
        raise ModuleNotFoundError(name="plotly")
    from autoresearch.repo import RunRepo, open_repository
    from autoresearch.views import watch as page

    recorded = recorded_run(options.tag, f"begin one: {to_type()}")
    repo = RunRepo(open_repository(recorded.root), recorded.tag, recorded.ledger.path.parent)
    page.serve(page.Watch(repo, recorded.ledger, options.writable), options.port)


@app.command()
@taking(Tagged)
def results(context: typer.Context, options: Tagged) -> None:
    """Rewrite results.tsv from the journal."""
    from autoresearch.record.results import Results

    recorded = recorded_run(options.tag)
    file = Results(recorded.root / "results.tsv", recorded.ledger)
    file.require_ours(recorded.root / RUNS)
    file.rebuild()
    print(f"{file.path}: {len(recorded.ledger.finished)} experiments of run {recorded.tag}")


@app.command()
@taking(Doctor)
def doctor(context: typer.Context, options: Doctor) -> None:
    """Check whether this machine has what a run needs, and show how to fix what is missing. Takes seconds. Exit code 1:
    something is missing."""
    from autoresearch.doctor import main

    if code := main(options.settings(), options.as_json, options.plain):
        raise typer.Exit(code)


# ----------------------------------------------------------------------------------------------


def run_to_end(work: Coroutine[Any, Any, int]) -> None:
    """Run a command in asyncio's event loop, and end with its exit code."""
    import asyncio

    from autoresearch import suspension

    try:
        with asyncio.Runner(loop_factory=suspension.event_loop) as runner:
            code = runner.run(work)
    except Stopped:
        print("stopped before the first experiment; run the same command again to continue", file=sys.stderr)
        code = 130
    end_with(code)


def end_with(code: int) -> None:
    if code:
        raise typer.Exit(code)


def program_of(loop: type) -> str:
    """The path that starts this program again: loop.py, or the installed command."""
    called = os.path.abspath(sys.argv[0])
    return inspect.getfile(loop) if os.path.basename(called) == "loop.py" else called


def arguments() -> list[str]:
    """The arguments of this program, without an optional leading `run`."""
    return sys.argv[2:] if sys.argv[1:2] == ["run"] else sys.argv[1:]


def main(loop: type) -> None:
    """Entry point. loop: the class Loop of loop.py (passed in because loop.py imports this module)."""
    try:
        require_linux()
        for name in GIT_PLACES + GIT_PATHS:
            os.environ.pop(name, None)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that cannot print … must not end a run
        app(arguments(), obj=loop)
    except UserError as error:
        print(f"error: {keys.scrub(str(error))}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not (said := explain(error)):
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)


def explain(error: Exception) -> str:
    """The message for an error of the machine; empty for an error that nobody expected."""
    if isinstance(error, ModuleNotFoundError) and error.name in DRAWING:
        with_them = " ".join(f"--with {package}" for package in DRAWING.values())
        return (
            f"this needs {DRAWING[error.name]}, which the light installation does not include. Install again with "
            f"the drawing packages: `uv tool install {with_them} PATH_OR_URL`, from where you installed it before"
        )
    if isinstance(error, ImportError) and "git executable" in str(error):
        return "git is not installed: `apt install git`, or what your system offers"
    lost = "Nothing that was recorded is lost"
    if disk_is_full(error):
        return f"the disk is full. {lost}: free some space and run the same command again"
    if isinstance(error, PermissionError):
        return (
            f"{error.filename} cannot be written: {error.strerror}. {lost}: correct its permissions and run the same "
            "command again"
        )
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.ENOLCK, errno.EIO, errno.ESTALE):
        return (
            f"{error.filename or 'a file'} cannot be used: {error.strerror}. {lost}: use a disk that can be written to"
        )
    if type(error).__name__ == "GitCommandError":  # by name: importing git for this would take long
        if "promisor remote" in str(error):
            then = "connect to the network, or fetch everything: `git fetch --refetch --no-filter`"
            return f"this is a partial clone, and git could not fetch what is missing. {lost}: {then}"
        return f"git failed: {error}\n{lost}: fix that and run the same command again"
    return ""
