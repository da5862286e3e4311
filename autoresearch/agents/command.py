"""The `command` agent: any program that edits the files in its working folder.

The brief is on its standard input (and in the file that AUTORESEARCH_BRIEF names); the last line
that it prints is the description, and may begin with a category: `[optimizer] a slower warm-down`. It runs with the user's own environment, keys included: it is the
user's program, unlike what it writes.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from autoresearch.agents import AgentFailed, Proposal
from autoresearch.brief import Brief
from autoresearch.process import Process
from autoresearch.trial import last_line

TIME_LIMIT = 1800.0                 # seconds for one proposal


class CommandAgent:
    name = "command"

    def __init__(self, command: str, stopped: Callable[[], bool]) -> None:
        self.command, self.stopped = command, stopped

    def propose(self, brief: Brief, folder: Path) -> Proposal:
        logs = folder.parent / "proposals" / str(brief.number)
        logs.mkdir(parents=True, exist_ok=True)
        told = logs / "brief.md"
        told.write_text(brief.text(), encoding="utf-8")
        environment = {**os.environ, "AUTORESEARCH_BRIEF": str(told), "PYTHONDONTWRITEBYTECODE": "1"}
        script = ["/bin/sh", "-c", f'exec < "$AUTORESEARCH_BRIEF"; {self.command}']
        ended = Process(script, folder, environment, logs / "agent.log").wait(TIME_LIMIT, self.stopped)
        said = last_line(logs / "agent.log")
        if ended.reason:
            raise AgentFailed(f"`{self.command}`: {ended.reason}" + (f": {said}" if said else ""))
        category, description = re.fullmatch(r"(?:\[([\w -]+)\])?\s*(.*)", said).groups()
        return Proposal(description or f"edit of {', '.join(brief.task.editable)} without a description", category or "")
