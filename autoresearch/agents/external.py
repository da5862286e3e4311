"""The external agent: it has edited the worktree already, and said on the command line what it did (`loop.py try`)."""

from pathlib import Path

from autoresearch.agents import Proposal
from autoresearch.brief import Brief


class External:
    name, retries = "external", True
    names = (name, "driver")  # the second one in runs of version 0.1

    def __init__(self, proposal: Proposal) -> None:
        self.proposal = proposal

    async def propose(self, brief: Brief, folder: Path) -> Proposal:
        return self.proposal
