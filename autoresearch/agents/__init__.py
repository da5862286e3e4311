"""Propose: an agent turns a brief into an edit of the worktree and a one-line description.

An agent is any object with a `name` and `propose(brief, folder) -> Proposal`. It edits the files in
`folder` (the run's worktree, standing at the champion) and returns what it did. To add one, write a
file here and a line in `make_agent`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from autoresearch import UserError
from autoresearch.brief import Brief


@dataclasses.dataclass(frozen=True)
class Proposal:
    description: str                # one line: what was changed, and why if there is room
    category: str = ""              # what kind of change it is
    tokens: int | None = None       # taken for it; None: not known
    dollars: float | None = None


class AgentFailed(Exception):
    """The agent could not propose anything this time. The text says why."""


class NothingLeft(Exception):
    """The agent has proposed all it ever will."""


class Agent(Protocol):
    name: str

    def propose(self, brief: Brief, folder: Path) -> Proposal:
        """Edit the task's files in `folder`. Raises AgentFailed or NothingLeft."""


AGENTS = ("sweep", "command")


def make_agent(name: str, seed: int, command: str | None, stopped: Callable[[], bool]) -> Agent:
    """The agent of that name.

    seed: for agents that draw lots. command: the program of `command`. stopped: whether the user wants it to end now.
    """
    from autoresearch.agents.command import CommandAgent
    from autoresearch.agents.sweep import Sweep

    if command and name != "command":
        raise UserError(f"--agent-command goes with --agent command, not with --agent {name}")
    if name == "sweep":
        return Sweep(seed)
    if name == "command":
        if not command:
            raise UserError("--agent command needs the program: --agent-command 'PROGRAM ARGUMENTS'")
        return CommandAgent(command, stopped)
    raise UserError(f"there is no agent {name!r}; choose one of {', '.join(AGENTS)}")
