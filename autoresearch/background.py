"""Background: start a loop that outlives its terminal, ask a running loop to stop, and read its logs."""

import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

from autoresearch import UserError, keys
from autoresearch.files import open_plain, read_json
from autoresearch.record.journal import holder
from autoresearch.record.runs import make_folder
from autoresearch.runner.identity import identify
from autoresearch.text import clean
from autoresearch.views.now import Now, read_now

LOG = "loop.log"  # what a detached loop printed
TAIL = 1 << 16  # bytes of a log that are looked at first
LINES = 50  # of these, at most
LONGEST = 4000  # characters of a line
POLL = 0.1  # seconds between two looks


def detach(words: list[str], folder: Path) -> tuple[int | None, str]:
    """Start a loop in its own session, and wait for its first screen.

    words: the command. folder: of its run. Returns its process id, or None if it has ended without an error, and what
    it printed. Raises UserError with its error message if it failed.
    """
    with open_log(folder) as log:
        began = log.tell()
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    process = identify(child.pid)
    try:
        while child.poll() is None and read_json(folder / "now.json").get("process") != process:
            time.sleep(POLL)
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        raise
    with open(folder / LOG, "rb") as log:
        log.seek(began)
        said = keys.scrub(log.read(TAIL).decode(errors="replace")).strip()
    if child.returncode:
        nothing = f"the loop ended with exit code {child.returncode} and printed nothing"
        raise UserError(said.rpartition("error: ")[2] or nothing)
    return (child.pid if child.returncode is None else None), said


def open_log(folder: Path) -> BinaryIO:
    """Open the log of a run's background processes, and write a line for the new one."""
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    log = open(folder / LOG, "ab")  # noqa: SIM115
    log.write(f"--- {datetime.datetime.now():%Y-%m-%d %H:%M:%S}\n".encode())
    log.flush()
    return log


def ask_to_stop(folder: Path, tag: str, now: bool) -> str | None:
    """Send a signal to the process that holds the run's lock, and to no other.

    Returns what will happen, or None if no loop is running. Raises UserError if the holder is unknown.
    """
    if (process := holder(folder)) is None:
        return None
    try:
        handle = os.pidfd_open(process) if process else None
    except ProcessLookupError:
        handle = None
    if handle is None or not has_open(process, folder / "lock"):
        raise UserError(
            f"the lock of run {tag} is held by process {process or 'unknown'}, which is not a process of yours on this "
            "machine: stop the loop on the machine, and as the user, that runs it"
        )
    found = read_now(folder, process)
    asked = bool(found and found.stopping)
    try:
        if now or not asked:  # a second SIGINT would mean: stop now
            signal.pidfd_send_signal(handle, signal.SIGTERM if now else signal.SIGINT)
    except ProcessLookupError:
        return None
    finally:
        os.close(handle)
    return f"process {process} " + what_follows(found, asked, now)


def what_follows(found: Now | None, asked: bool, now: bool) -> str:
    """What happens after a request to stop. asked: there had been one before."""
    if now:
        return "stops now; a running experiment gets no verdict and runs again when the run is continued"
    if found and not found.trials:
        return "stops: no experiment is running"
    what = "experiments" if found and len(found.trials) > 1 else "experiment"
    return ("was asked before: it " if asked else "") + f"stops after the running {what}; --now stops it at once"


def has_open(process: int, path: Path) -> bool:
    """Whether a process has a file open: another process that was given the same id does not."""
    try:
        return any(os.path.samefile(file.path, path) for file in psutil.Process(process).open_files())
    except (psutil.Error, OSError):
        return False


# ----------------------------------------------------------------------------------------------
# Logs


class Reader:
    """Reads new complete lines of a growing log, cleaned for a terminal and without keys.

    tail: of the existing log, read only the end. start: the byte to begin with.
    """

    def __init__(self, path: Path, tail: bool = True, start: int | None = None) -> None:
        self.path, self._offset, self._secret = path, start or 0, False
        self._skip = False
        if tail and start is None and path.exists():
            self._offset = max(0, path.stat().st_size - TAIL)
            self._skip = self._offset > 0  # it begins within a line

    def lines(self, rest: bool = False) -> list[str]:
        """rest: also return a last line that is not complete."""
        try:
            with open_plain(self.path) as file:
                if os.fstat(file.fileno()).st_size < self._offset:  # the log was rewritten
                    self._offset = 0
                file.seek(self._offset)
                raw = file.read(1 << 20)
        except OSError:
            return []
        whole = len(raw) if rest or len(raw) == 1 << 20 else raw.rfind(b"\n") + 1
        self._offset += whole
        lines = raw[:whole].decode(errors="replace").split("\n")
        if whole and not lines[-1]:
            lines.pop()
        if self._skip and whole:
            self._skip, lines = False, lines[1:]
        shown = [line for raw_line in lines if whole and (line := self._without_key(raw_line)) is not None]
        return [line[:LONGEST] for line in clean("\n".join(shown)).split("\n")] if shown else []

    def _without_key(self, line: str) -> str | None:
        """The line. Of a private key, which spans several lines: a placeholder for the first, None for the rest."""
        begins = not self._secret and "-----BEGIN" in line and "PRIVATE KEY" in line
        if not begins and not self._secret:
            return line
        self._secret = "-----END" not in line
        return keys.PLACE if begins else None


def read_along(folder: Path, follow: bool, trial: bool) -> Iterator[str]:
    """Lines of the loop's log, or of the running trial's, newest last. With `follow`, until the loop ends."""
    path = trial_log(folder) if trial else folder / LOG
    if trial and path:
        yield f"==> {path} <=="
    reader = Reader(path) if path else None
    yield from reader.lines(rest=not follow)[-LINES:] if reader else ()
    while follow:
        ended = holder(folder) is None  # checked before the last read, so that nothing is missed
        if reader:
            yield from reader.lines(rest=ended)
        if ended:
            return
        if trial and (latest := trial_log(folder)) and latest != path:
            if reader:
                yield from reader.lines(rest=True)
            path, reader = latest, Reader(latest, tail=False)
            yield f"==> {path} <=="
        time.sleep(POLL)


def trial_log(folder: Path) -> Path | None:
    """The log of the running trial, or the one written last if no trial is running."""
    process = holder(folder)
    if (now := read_now(folder, process) if process else None) and now.trials:
        return now.trials[0].log
    logs = [path for path in folder.glob("trials/*/*.log") if path.is_file() and not path.is_symlink()]
    return max(logs, key=lambda path: path.stat().st_mtime, default=None)


def loop_command(arguments: list[str], tag: str) -> list[str]:
    """The command of this process without --detach, with the tag that was chosen."""
    words = [word for word in arguments if word != "--detach"]
    return [sys.executable, os.path.abspath(sys.argv[0]), *words, *(() if "--tag" in words else ("--tag", tag))]
