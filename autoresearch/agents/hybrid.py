"""`--agent optimize+NAME`: the optimizer varies constants; an agent with a model changes code, and is told what the
optimizer has learned.

Ferreira et al. (2026, arXiv 2603.24647) let a model see the state of CMA-ES and override it in 30% of the trials of
this game; together they found more than either alone.
"""

import dataclasses
from pathlib import Path

from autoresearch.agents import Agent, Proposal
from autoresearch.agents.optimize import Optimize
from autoresearch.brief import Brief

SHARE = 0.3  # of the trials that are the model's


class Informed:
    """Wraps an agent and tells it the optimizer's state. It has the name and the cost of the agent."""

    def __init__(self, agent: Agent, optimizer: Optimize) -> None:
        self.agent, self.optimizer = agent, optimizer
        self.name, self.retries, self.paid = agent.name, agent.retries, agent.paid

    async def propose(self, brief: Brief, folder: Path) -> Proposal:
        return await self.agent.propose(dataclasses.replace(brief, optimizer=self.optimizer.state(brief)), folder)
