"""The `command` agent: any program that edits the files in its working folder.

The brief is on its standard input (and in the file that AUTORESEARCH_BRIEF names; AUTORESEARCH_PAGES is a folder with a page for each attempt). Its last lines say what it did, as
agents/__init__.py asks for; a last line without more is the description. It runs with the user's own environment, keys included:
it is the user's program, unlike what it writes. Keys are taken out of what it prints before that is kept.
"""

import os
from collections.abc import Callable
from pathlib import Path

from autoresearch import keys
from autoresearch.agents import AgentFailed, Proposal, how_to_reply, read_reply
from autoresearch.brief import Brief
from autoresearch.process import Ended, Process
from autoresearch.trial import last_line, read_tail


class CommandAgent:
    name, mends = "command", True

    def __init__(self, command: str, limit: float) -> None:
        self.command, self.limit = command, limit

    def propose(self, brief: Brief, folder: Path) -> Proposal:
        ended, log = run_told(self.command, brief, brief.text(), folder, self.limit)
        if ended.reason:
            said = last_line(log)
            raise AgentFailed(f"`{self.command}`: {ended.reason}" + (f": {said}" if said else ""))
        return read_reply(read_tail(log), transcript=str(log.parent))


def run_told(
    command: str,
    brief: Brief,
    text: str,
    folder: Path,
    limit: float,
    excess: Callable[[], str | None] = lambda: None,
    **environment: str,
) -> tuple[Ended, Path]:
    """(How a shell command ended that was told a text, the log of what it printed). It leaves no process behind.

    excess: asked now and then why it must end, or None.
    """
    told, log = brief.desk / "brief.md", brief.desk / "agent.log"
    told.write_text(keys.scrub(f"{text}\n{how_to_reply(brief)}"), encoding="utf-8")
    environment = {
        **os.environ,
        "AUTORESEARCH_BRIEF": str(told),
        "AUTORESEARCH_PAGES": str(brief.pages),
        "AUTORESEARCH_DESK": str(brief.desk),
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    script = ["/bin/sh", "-c", f'exec < "$AUTORESEARCH_BRIEF"; {command}']
    ended = Process(script, folder, environment, log, clean=keys.scrub).wait(limit, excess=excess)
    keys.scrub_file(log)  # of what is longer than a line
    return ended, log
