"""Which of several agents proposes next, by what each has gained and cost so far. (For `optimize+NAME`: by fixed
shares.)

The rule is UCB1 (Auer, Cesa-Bianchi, Fischer 2002, "Finite-time Analysis of the Multiarmed Bandit Problem"): the mean
reward, as a share of the best agent's, plus a bonus for agents that had few turns. The reward is the gain of kept edits
per dollar if the cost of every agent is known, else per turn.
"""

import math
from collections.abc import Sequence

from autoresearch.agents import Agent
from autoresearch.agents.hybrid import SHARE, Informed
from autoresearch.record.ledger import Ledger, Spent

LATEST = 9  # the latest trials of a pair, from which its shares are computed


def choose(agents: Sequence[Agent], ledger: Ledger, lower_is_better: bool, at_work: Sequence[str] = ()) -> Agent:
    """The agent of the next experiment; on a tie, the first. The same record always gives the same choice.

    at_work: the names of agents with a proposal in progress; each counts as a turn that has gained nothing yet.
    """
    if len(agents) == 1:
        return agents[0]
    for agent in agents:
        if isinstance(agent, Informed):
            other = next(other for other in agents if other is not agent)
            had = (*(attempt.agent for attempt in ledger.attempts), *at_work)
            theirs = [name for name in had if name in (agent.name, other.name)]
            behind = theirs[-LATEST:].count(agent.name) < SHARE * (len(theirs[-LATEST:]) + 1)
            refused = any(event.agent == agent.name for event in ledger.refused)  # of this experiment
            return agent if behind and not refused else other
    turns = {agent.name: turns_of(ledger, agent.name) + at_work.count(agent.name) for agent in agents}
    if min(turns.values()) == 0:
        return min(agents, key=lambda agent: turns[agent.name])
    gains = {agent.name: gain_of(ledger, agent.name, lower_is_better) for agent in agents}
    worth = {name: gain / cost for (name, gain), cost in zip(gains.items(), costs(agents, ledger, turns), strict=True)}
    best = max(worth.values())
    total = sum(turns.values())
    return max(
        agents,
        key=lambda agent: (
            (worth[agent.name] / best if best > 0 else 0.0) + math.sqrt(2 * math.log(total) / turns[agent.name])
        ),
    )


def turns_of(ledger: Ledger, name: str) -> int:
    """How often an agent has proposed, including refused proposals."""
    return ledger.spent_by[name].proposals if name in ledger.spent_by else 0


def gain_of(ledger: Ledger, name: str, lower_is_better: bool) -> float:
    """The total gain of an agent's kept edits, as judged at the time."""
    sign = 1 if lower_is_better else -1
    return math.fsum(
        max(0.0, sign * (attempt.standing - attempt.score))
        for attempt in ledger.kept
        if attempt.agent == name and attempt.standing is not None and attempt.score is not None
    )


def costs(agents: Sequence[Agent], ledger: Ledger, turns: dict[str, int]) -> list[float]:
    """The cost of each agent: in dollars if all costs are known and above zero, else in turns."""
    spent = [ledger.spent_by.get(agent.name, Spent()) for agent in agents]
    if all(one.dollars > 0 and not one.unknown_dollars for one in spent):
        return [one.dollars for one in spent]
    return [float(turns[agent.name]) for agent in agents]
