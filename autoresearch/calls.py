"""Calls of an external agent: `start` and `try` work in their own process, and `wait` reports the result.

A tool call of a coding agent may be cut off after two minutes, and a trial takes six. So the command line only starts a
process that holds the run's lock, follows it, and reads the verdict from the record. If the caller is killed, the
process continues, and `wait` returns the verdict.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from autoresearch import UserError, keys
from autoresearch.agents.external import External
from autoresearch.background import LOG, POLL, Reader, has_open, open_log
from autoresearch.options import Start, Try, Wait
from autoresearch.record.journal import already_running, holder
from autoresearch.record.ledger import Ledger
from autoresearch.record.runs import Recorded, folder_of, recorded_run
from autoresearch.run import edit_of
from autoresearch.text import to_type
from autoresearch.views.console import Console
from autoresearch.views.now import read_now
from autoresearch.views.show import answer_of, show_answer
from autoresearch.views.state import State, look

PATIENCE = 30.0  # seconds that `start --background` waits for the baseline to begin: preparing data may take minutes
KEPT, DISCARDED, CRASHED, REFUSED, RUNNING, STOPPED = 0, 1, 3, 4, 5, 130  # exit codes
# Starts a program in its own session and prints its process id. The program is not a child of the caller, so it does
# not end with the caller's children.
STARTER = """import subprocess, sys
words, null = sys.argv[1:], subprocess.DEVNULL
print(subprocess.Popen(words, stdin=null, stdout=sys.stderr, start_new_session=True).pid)
"""


class Call:
    """The process of a call, and its output. ledger: of its run. printed: size of the log before the call."""

    def __init__(self, ledger: Ledger, process: int, printed: int) -> None:
        self.ledger, self.process, self.printed = ledger, process, printed
        self.folder = folder = ledger.path.parent
        self.reader = Reader(folder / LOG, start=printed)
        try:
            self.handle: int | None = os.pidfd_open(process)
        except ProcessLookupError:
            self.handle = None

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether the process has ended, or ends within so many seconds."""
        return self.handle is None or bool(select.select([self.handle], [], [], seconds)[0])

    def interrupt(self) -> None:
        """Forward Ctrl-C to the process."""
        if self.handle is not None and not self.ended():
            signal.pidfd_send_signal(self.handle, signal.SIGINT)

    def number(self) -> int | None:
        """The number of the experiment that it runs; None before it has one."""
        return running_number(self.folder, self.process)

    def fault(self) -> str:
        """The error message that the process printed; empty if there is none."""
        with open(self.folder / LOG, "rb") as log:
            log.seek(self.printed)
            said = keys.scrub(log.read().decode(errors="replace"))
        found = re.search(r"^error: (.+)\Z", said, re.MULTILINE | re.DOTALL)
        return found[1].strip() if found else ""

    def follow(self, console: Console, enough: Callable[[], object] = lambda: False) -> None:
        """Print the process's output until it ends, or `enough` is true. Ctrl-C is forwarded."""
        before = signal.signal(signal.SIGINT, lambda *_: self.interrupt())
        try:
            with console.panel(self.look) as draw:
                while not (ended := self.ended(POLL)) and not enough():
                    self.print(console)
                    draw()
                self.print(console, rest=ended)
        finally:
            signal.signal(signal.SIGINT, before)
        if self.ledger.path.exists():
            self.ledger.catch_up()

    def print(self, console: Console, rest: bool = False) -> None:
        for line in self.reader.lines(rest):
            if not line.startswith("error: "):  # errors are printed at the end
                console.line(line)

    def look(self) -> State | None:
        if self.ledger.path.exists():
            self.ledger.catch_up()
        return look(self.ledger) if self.ledger.run else None


def running_number(folder: Path, process: int) -> int | None:
    now = read_now(folder, process)
    return now.trials[0].number if now and now.trials else None


def launch(program: str, arguments: list[str], folder: Path) -> Call:
    """Start this program, with these arguments, as the process of a call."""
    tag = () if "--tag" in arguments else ("--tag", folder.name)
    words = [sys.executable, program, *arguments, *tag, "--apart"]
    ledger = Ledger(folder, repair=False)
    ledger.called = None  # left from an earlier call
    with open_log(folder) as log:
        printed = log.tell()
        said = subprocess.run(
            [sys.executable, "-I", "-S", "-c", STARTER, *words], stdout=subprocess.PIPE, stderr=log, check=True
        )
    return Call(ledger, int(said.stdout), printed)


def at_work(folder: Path) -> Call | None:
    """The call that is working on a run. Raises UserError if the loop itself is working on it."""
    while (process := holder(folder)) is not None:
        now = read_now(folder, process)
        if not has_open(process, folder / "lock") or (now and not now.external):
            raise UserError(already_running(folder.name, process))
        if now:
            log = folder / LOG
            return Call(Ledger(folder, repair=False), process, log.stat().st_size if log.exists() else 0)
        time.sleep(POLL)  # it has just started
    return None


# ----------------------------------------------------------------------------------------------
# Commands


def start(program: str, arguments: list[str], options: Start) -> int:
    """`loop.py start`: returns its exit code."""
    console, folder = Console(options.plain), folder_of(options.tag)
    if call := at_work(folder):
        if options.background:
            say(console, call.look(), call.number(), options.tag)
            return 0
        call.follow(console)
    call = launch(program, arguments, folder)
    ends = time.monotonic() + PATIENCE
    call.follow(console, lambda: options.background and (call.number() or time.monotonic() > ends))
    if call.ended():
        if fault := call.fault():
            raise UserError(fault)
        return 0 if call.ledger.champion else STOPPED
    say(console, call.look(), call.number(), options.tag)
    return 0


def try_edit(program: str, arguments: list[str], options: Try) -> int:
    """`loop.py try`: returns its exit code."""
    recorded = recorded_run(options.tag, f"begin one: {to_type('start')}")
    console, folder = Console(options.plain, to_errors=options.as_json), recorded.folder
    if call := at_work(folder):
        join(call, recorded, console)
    elif recorded.ledger.paused:
        raise UserError(f"run {recorded.tag} is paused by its owner; to resume: {to_type('resume')}")
    elif recorded.ledger.champion is None:
        raise UserError(f"run {recorded.tag} has no baseline yet: {to_type('start')}")
    else:
        call = launch(program, arguments, folder)
    call.follow(console, call.number if options.background else lambda: False)
    number = call.number()
    if not call.ended() and number:
        say(console, call.look(), number, options.tag, options.as_json)
        return 0
    ledger, number = call.ledger, call.ledger.called
    if number is None or (settled(ledger, number) is None):
        if fault := call.fault():
            raise UserError(fault)
        console.line("stopped before the verdict; run the same command again to continue")
        return STOPPED
    code = answer(recorded.root, ledger, number, console, options.as_json)
    return 0 if options.background and code != REFUSED else code


def join(call: Call, recorded: Recorded, console: Console) -> None:
    """Say that this edit is already being tried. Raises UserError if another edit is, or the baseline."""
    call.follow(console, call.number)
    number = call.number() or call.ledger.called
    attempt = call.ledger.attempts[number - 1] if number and number <= len(call.ledger.attempts) else None
    worktree, tag = call.folder / "worktree", recorded.tag
    if attempt is None or attempt.agent not in External.names:
        raise UserError(f"the baseline is training on run {tag}: wait for it, `{to_type('wait')} --tag {tag}`")
    if edit_of(recorded.task, worktree) != attempt.edit and not call.ended():
        raise UserError(
            f"another edit is already being tried on tag {tag}: wait for the verdict on experiment {number} with "
            f"`{to_type('wait')} --tag {tag}`, then edit"
        )
    console.line(f"this edit is already being tried, as experiment {number}")


def wait(options: Wait) -> int:
    """`loop.py wait`: returns its exit code."""
    recorded = recorded_run(options.tag, f"begin one: {to_type('start')}")
    ledger, folder = recorded.ledger, recorded.folder
    console = Console(plain=True, to_errors=options.as_json)
    ends = None if options.seconds is None else time.monotonic() + options.seconds
    while True:
        process = holder(folder)  # checked before reading the record, so that nothing is missed
        ledger.catch_up()
        now = read_now(folder, process) if process else None
        number = options.number or (running_number(folder, process) if process else None) or ledger.called
        number = number or (len(ledger.attempts) or None)
        known = number is not None and settled(ledger, number) is not None
        # The call still has to reset the worktree to the champion, where the next edit will be made.
        done = process is None or (known and (number < len(ledger.attempts) or bool(now and not now.external)))
        if done or (ends is not None and time.monotonic() >= ends):
            break
        time.sleep(POLL)
    if known and (done or (options.number and settled(ledger, options.number) != "refused")):
        return answer(recorded.root, ledger, number, console, options.as_json)
    if not done:
        say(console, look(ledger), number, options.tag, options.as_json)
        return RUNNING
    if number is None or number > len(ledger.attempts):
        raise UserError(f"run {recorded.tag} has no experiment {number or 1}")
    console.line(
        f"experiment {number} has no verdict: its trial was interrupted. Run the command that began it again to "
        f"continue; `{to_type('logs')} --tag {recorded.tag}` says more"
    )
    return STOPPED


# ----------------------------------------------------------------------------------------------
# What these commands print


def settled(ledger: Ledger, number: int) -> str | None:
    """The verdict on an experiment, or `refused` if its edit was refused; None if there is no verdict yet.

    While a call is at work, a refusal may be that of an earlier edit: the next one has the same number.
    """
    if number <= len(ledger.attempts):
        return ledger.attempts[number - 1].status
    return "refused" if any(event.number == number for event in ledger.refused) else None


def answer(root: Path, ledger: Ledger, number: int, console: Console, as_json: bool) -> int:
    """Print the verdict on an experiment. Returns the corresponding exit code."""
    said = answer_of(root, ledger, number)
    if as_json:
        print(json.dumps(said, ensure_ascii=False))
    else:
        show_answer(console, said)
    return {"keep": KEPT, "discard": DISCARDED, "crash": CRASHED}.get(said["verdict"], REFUSED)


def say(console: Console, state: State | None, number: int | None, tag: str | None, as_json: bool = False) -> None:
    """Print the progress of an experiment that has no verdict yet."""
    trial = next((trial for trial in (state.trials if state else []) if trial.number == number), None)
    doing = trial.doing if trial else "being checked" if state and state.thinking else "being prepared"
    left = None if trial is None or trial.left is None else round(trial.left)
    if as_json:
        print(json.dumps({"number": number, "verdict": "running", "doing": doing, "seconds_left": left}))
        return
    what = f"experiment {number}: " if trial else ""
    console.line(f"{what}still {doing}" + (f", {left} s to go" if left is not None else ""))
    console.line(f"then      {to_type('wait')}{f' --tag {tag}' if tag else ''} --for 100")
