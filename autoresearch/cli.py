"""The command line. options.py defines the options of each command; commands.py runs the commands that need trials,
and record_commands.py has those that need none.

Exit codes: 0, or what a command documents; 2 for wrong usage and for errors that only a person can fix; 130 for
stopped at once. Each command imports what only it needs, so that the first screen appears quickly.
"""

import errno
import importlib.util
import inspect
import io
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from autoresearch import Stopped, UserError, disk_is_full, keys, record_commands, require_linux
from autoresearch.options import (
    AddIdea,
    Called,
    Check,
    Clean,
    DropIdea,
    Numbered,
    Plan,
    Research,
    SearchIdeas,
    Start,
    Try,
    Verify,
    Wait,
    taking,
)
from autoresearch.record.runs import RUNS, folder_of, root_of
from autoresearch.text import clean as clean_text
from autoresearch.text import to_type

if TYPE_CHECKING:
    from autoresearch.ideas import Ideas

# Environment variables that git sets for hooks and aliases. They would redirect work in a worktree to the user's
# checkout, or change the meaning of paths.
GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
GIT_PATHS = tuple(f"GIT_{kind}_PATHSPECS" for kind in ("LITERAL", "GLOB", "NOGLOB", "ICASE"))
DRAWING = {"plotly": "plotly", "matplotlib": "matplotlib", "fpdf": "fpdf2"}  # packages of watch and report, by module

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ideas = typer.Typer()
app.add_typer(record_commands.app)  # without a name: its commands are commands of this one
app.add_typer(ideas, name="ideas")


# ----------------------------------------------------------------------------------------------
# Commands that run trials


@app.callback(invoke_without_command=True)
@taking(Research)
def research(context: typer.Context, options: Research) -> None:
    """Let an agent do language-model research: it edits train.py; each edit is trained for a fixed time, scored, and
    kept or discarded. In another repository, program.md says what is edited, run and scored; `plan` writes it. Run the
    same command again to continue the run."""
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

    run_to_end(run_plan(options), "stopped; nothing was written")


@app.command()
@taking(Check)
def check(context: typer.Context, options: Check) -> None:
    """Check a program.md: run each of its commands, run the baseline five times, and break each editable file once.
    Exit code 1: the check failed."""
    from autoresearch.plan.command import run_check

    run_to_end(run_check(options), "stopped before the end of the check")


@app.command()
@taking(Start)
def start(context: typer.Context, options: Start) -> None:
    """For an external agent: begin or continue a run, train the baseline, say which file to edit. Then: `try`."""
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
def mcp(context: typer.Context) -> None:
    """Start a Model Context Protocol server on standard input and output, with tools to run the experiments."""
    if importlib.util.find_spec("mcp") is None:
        raise UserError("the package mcp is not installed: `uv tool install --with mcp PATH_OR_URL` installs it")
    from autoresearch.mcp_server import serve

    serve(program_of(context.obj))


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
@taking(SearchIdeas)
def ideas_(context: typer.Context, options: SearchIdeas) -> None:
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


def known_ideas() -> "Ideas":
    from autoresearch.ideas import Ideas

    return Ideas(root_of(Path.cwd()) / RUNS)


# ----------------------------------------------------------------------------------------------


CONTINUE = "stopped before the first experiment; run the same command again to continue"


def run_to_end(work: Coroutine[Any, Any, int], stopped: str = CONTINUE) -> None:
    """Run a command in asyncio's event loop, and end with its exit code. stopped: what to say if the user stops it."""
    import asyncio

    from autoresearch import suspension

    try:
        with asyncio.Runner(loop_factory=suspension.event_loop) as runner:
            code = runner.run(work)
    except Stopped:
        print(stopped, file=sys.stderr)
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
