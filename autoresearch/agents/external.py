"""The external agent (`loop.py try`): it has already edited the worktree, and the command line says what it did."""

from pathlib import Path

from autoresearch.agents import Proposal
from autoresearch.brief import Brief


class External:
    name, retries, paid = "external", True, False
    names = (name, "driver")  # the second is its name in runs of version 0.1

    def __init__(self, proposal: Proposal) -> None:
        self.proposal = proposal

    async def propose(self, brief: Brief, folder: Path) -> Proposal:
        return self.proposal
