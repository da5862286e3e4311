"""The agent that drives: it has edited the worktree already, and said on the command line what it did (`loop.py try`)."""

from pathlib import Path

from autoresearch.agents import Proposal
from autoresearch.brief import Brief


class Driver:
    name, mends = "driver", True

    def __init__(self, proposal: Proposal) -> None:
        self.proposal = proposal

    def propose(self, brief: Brief, folder: Path) -> Proposal:
        return self.proposal
