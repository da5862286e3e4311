"""The commands that run no trials: they show a run's record, leave its loop a message, or look at the machine.

Each imports what only it needs, as in cli.py.
"""

import importlib.util
import json
import os
import sys
from typing import TYPE_CHECKING

import typer

from autoresearch import UserError, keys
from autoresearch.options import (
    Approve,
    Doctor,
    Logs,
    Note,
    Reject,
    Report,
    Status,
    Stop,
    Tagged,
    Track,
    Watch,
    taking,
)
from autoresearch.record.runs import RUNS, Recorded, folder_of, recorded_run
from autoresearch.text import count, to_type

if TYPE_CHECKING:
    from autoresearch.record.events import Approved, Message, Rejected
    from autoresearch.repo import RunRepo

app = typer.Typer()


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
    from autoresearch.inbox import text_of
    from autoresearch.record import events

    recorded = leave(options, events.Note(text=text_of(options.text)))
    print(f"run {recorded.tag}: the note is in the next brief")


@app.command()
@taking(Tagged)
def pause(context: typer.Context, options: Tagged) -> None:
    """Pause a run: running trials finish, and the loop starts nothing new until `resume`."""
    from autoresearch.record.events import Pause

    recorded = leave(options, Pause())
    print(f"run {recorded.tag} pauses when its trials are done; to resume: {to_type('resume')} --tag {recorded.tag}")


@app.command()
@taking(Tagged)
def resume(context: typer.Context, options: Tagged) -> None:
    """Resume a paused run."""
    from autoresearch.record.events import Resume

    recorded = leave(options, Resume())
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
    from autoresearch import inbox
    from autoresearch.gate import require_held

    recorded = recorded_run(options.tag)
    require_held(recorded.ledger, options.number)
    inbox.leave(recorded.folder, word)
    print(f"experiment {options.number} is {said}" + ("" if is_at_work(recorded) else f"; to continue: {to_type()}"))


def leave(options: Tagged, message: "Message") -> Recorded:
    """Leave a run a message. Returns the run. Raises UserError if there is none."""
    from autoresearch import inbox

    recorded = recorded_run(options.tag)
    inbox.leave(recorded.folder, message)
    return recorded


def is_at_work(recorded: Recorded) -> bool:
    from autoresearch.record.journal import holder

    return holder(recorded.folder) is not None


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


def repo_of(recorded: Recorded) -> "RunRepo":
    from autoresearch.repo import RunRepo, open_repository

    return RunRepo(open_repository(recorded.root), recorded.tag, recorded.folder)


@app.command()
@taking(Report)
def report(context: typer.Context, options: Report) -> None:
    """Write a short report of a run from its journal: what was kept, what it is worth, what did not help, the cost."""
    from autoresearch.views.report import write_report
    from autoresearch.views.state import look

    recorded = recorded_run(options.tag)
    ledger = recorded.ledger
    if ledger.champion is None:
        raise UserError(f"run {recorded.tag} has no baseline yet, so there is nothing to report")
    repo = repo_of(recorded)
    diffs = {kept.number: repo.diff(kept.parent, kept.commit, recorded.task.editable) for kept in ledger.kept[1:]}
    path = write_report(look(ledger), diffs, options.output or recorded.folder / "report", options.pdf)
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
    from autoresearch.views.track import require_tracker, track

    name = require_tracker(options.tracker)
    recorded = recorded_run(options.tag)
    sent = track(name, recorded.ledger, repo_of(recorded))
    print(f"{name} has {count(sent, 'experiment')} of run {recorded.tag}")


@app.command()
@taking(Watch)
def watch(context: typer.Context, options: Watch) -> None:
    """Show a run live in a browser: curve, table, the diff of each attempt, the running log. Read-only without
    --writable. Ctrl-C ends it."""
    if importlib.util.find_spec("plotly") is None:  # which the browser asks for later
        raise ModuleNotFoundError(name="plotly")
    from autoresearch.views import watch as page

    recorded = recorded_run(options.tag, f"begin one: {to_type()}")
    page.serve(page.Watch(repo_of(recorded), recorded.ledger, options.writable), options.port)


@app.command()
@taking(Tagged)
def results(context: typer.Context, options: Tagged) -> None:
    """Rewrite results.tsv from the journal."""
    from autoresearch.record.results import Results

    recorded = recorded_run(options.tag)
    file = Results(recorded.root / "results.tsv", recorded.ledger)
    file.require_ours(recorded.root / RUNS)
    file.rebuild()
    print(f"{file.path}: {count(len(recorded.ledger.finished), 'experiment')} of run {recorded.tag}")


@app.command()
@taking(Doctor)
def doctor(context: typer.Context, options: Doctor) -> None:
    """Check whether this machine has what a run needs, and show how to fix what is missing. Takes seconds. Exit code 1:
    something is missing."""
    from autoresearch.doctor import main

    if code := main(options.settings(), options.as_json, options.plain):
        raise typer.Exit(code)
