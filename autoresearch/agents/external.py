"""The external agent: it has already edited the worktree, and says what it did on the command line (`loop.py try`)."""

from pathlib import Path

from autoresearch.agents import Proposal
from autoresearch.brief import Brief


class External:
    name, retries = "external", True

    def __init__(self, proposal: Proposal) -> None:
        self.proposal = proposal

    async def propose(self, brief: Brief, folder: Path) -> Proposal:
        return self.proposal
