"""The `command` agent: any program that edits the files in its working folder.

It reads the brief on its standard input, or from the file that AUTORESEARCH_BRIEF names. AUTORESEARCH_PAGES is a folder
with a page on each earlier attempt; AUTORESEARCH_TRANSCRIPT is one where it may leave files. Its last lines say what it
did, in the format of agents/__init__.py; a single last line is the description. It runs with the user's environment,
including keys, since it is the user's program, unlike the code that it writes. Keys are removed from its output.
"""

import os
from collections.abc import Callable
from pathlib import Path

from autoresearch import keys
from autoresearch.agents import AgentFailed, Proposal, how_to_reply, read_reply
from autoresearch.brief import Brief
from autoresearch.runner.logs import last_line, read_tail
from autoresearch.runner.process import Ended, Process


class CommandAgent:
    name, retries, paid = "command", True, False

    def __init__(self, command: str, limit: float) -> None:
        self.command, self.limit = command, limit

    async def propose(self, brief: Brief, folder: Path) -> Proposal:
        ended, log = await run_told(self.command, brief, brief.text(), folder, self.limit)
        if ended.reason:
            said = last_line(log)
            raise AgentFailed(f"`{self.command}`: {ended.reason}" + (f": {said}" if said else ""))
        return read_reply(read_tail(log), transcript=str(log.parent))


async def run_told(
    command: str,
    brief: Brief,
    text: str,
    folder: Path,
    limit: float,
    excess: Callable[[], str | None] = lambda: None,
    **more: str,
) -> tuple[Ended, Path]:
    """Run a shell command with `text` on its standard input. Returns (how it ended, the log of its output).

    excess: called twice a second; returns a reason to end it, or None. more: environment variables. Leaves no process
    behind.
    """
    told, log = brief.transcript / "brief.md", brief.transcript / "agent.log"
    told.write_text(keys.scrub(f"{text}\n{how_to_reply(brief)}"), encoding="utf-8")
    environment = {
        **os.environ,
        "AUTORESEARCH_BRIEF": str(told),
        "AUTORESEARCH_PAGES": str(brief.pages),
        "AUTORESEARCH_TRANSCRIPT": str(brief.transcript),
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }
    script = ["/bin/sh", "-c", f'exec < "$AUTORESEARCH_BRIEF"; {command}']
    try:
        async with Process(script, folder, environment, log, clean=keys.scrub) as process:
            return await process.wait(limit, excess), log
    finally:
        keys.scrub_file(log)  # a key that spans several lines
