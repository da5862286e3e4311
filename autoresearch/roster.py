"""The agents of a run, and which of them may be asked now.

All waiting for agents happens here. An agent that cannot be reached is asked again later and, until it answers, for one
proposal at a time. One with a problem that only a person can fix is left out, if there are others. One that has nothing
left to try is asked again when the champion has changed.
"""

import time
from collections.abc import Iterable, Sequence

from autoresearch import keys
from autoresearch.agents import Agent, AgentBlocked, AgentFailed, AgentUnavailable
from autoresearch.drafts import Draft
from autoresearch.record import events
from autoresearch.record.ledger import Ledger
from autoresearch.text import duration, one_line
from autoresearch.views.console import Console

PATIENCE = 2.0, 300.0  # seconds: the first wait for an agent that cannot be reached, and the longest
PASSING, UNKNOWN = 2, 8  # factor by which the wait grows after a temporary failure, and after any other
LONGEST_WAIT = 86_400.0  # seconds, whatever a service asks for


class Roster:
    """agents: those that propose. fill: the agent that proposes while none of them can be reached."""

    def __init__(self, agents: Sequence[Agent], fill: Agent | None, ledger: Ledger, console: Console) -> None:
        self.agents, self.fill, self.ledger, self.console = list(agents), fill, ledger, console
        self._patience: dict[str, float] = {}  # by agent that could not be reached: the following wait, in seconds
        self._call_again: dict[str, float] = {}  # by agent: when it may be called again
        self._exhausted: dict[str, str] = {}  # by agent: the champion for which it has no ideas left

    def ready(self, drafts: Iterable[Draft] = ()) -> list[Agent]:
        """The agents that may be called now. drafts: the proposals in progress."""
        now, at_work = time.monotonic(), {draft.agent for draft in drafts}
        waited = (a for a in self.agents if now >= self._call_again.get(a.name, 0.0) and not self.is_exhausted(a))
        return [a for a in waited if a.name not in self._patience or not at_work & {a.name, ""}]

    def is_exhausted(self, agent: Agent) -> bool:
        """Whether an agent has said that it has nothing left to try on this champion."""
        return self._exhausted.get(agent.name) == self.ledger.champion_commit

    def seconds_to_wait(self) -> float:
        """Seconds until an agent may be called; 0 if one may be called now, or a filler can propose."""
        if self.fill:
            return 0.0
        asked = [agent for agent in self.agents if not self.is_exhausted(agent)] or self.agents
        return max(0.0, min(self._call_again.get(agent.name, 0.0) for agent in asked) - time.monotonic())

    def answered(self, agent: Agent) -> None:
        """Note that an agent has proposed something."""
        self._patience.pop(agent.name, None)
        self._call_again.pop(agent.name, None)

    def put_off(self, agent: Agent, failure: AgentFailed, instead: str | None = None) -> None:
        """Call an agent again later: when its service said, else after a wait that grows with each failure.

        instead: who proposes meanwhile, as text. Default: another agent that is ready, or the filler. If several
        proposals fail together, only the first counts.
        """
        passes = isinstance(failure, AgentUnavailable)
        if time.monotonic() < self._call_again.get(agent.name, 0.0):
            if isinstance(failure, AgentUnavailable):
                self.note_spent(agent, failure)
            return
        usual, named = self._patience.get(agent.name, PATIENCE[0]), (failure.again or 0.0) if passes else 0.0
        if passes:
            self.console.unreachable(agent.name, str(failure), again=agent.name in self._patience)
        self._patience[agent.name] = min((PASSING if passes else UNKNOWN) * usual, PATIENCE[1])
        self._call_again[agent.name] = time.monotonic() + min(max(usual, named), LONGEST_WAIT)
        instead = instead or next((other.name for other in (*self.ready(), self.fill) if other), None)
        wait = self.seconds_to_wait() if not instead else 0.0
        at = time.strftime("at %H:%M, in ", time.localtime(time.time() + wait)) if wait > 600 else "in "
        then = f"{instead} fills in" if instead else f"next call {at}{duration(wait)}"
        reason = keys.scrub(str(failure))
        self.console.line(
            f"{agent.name} " + (f"cannot be reached: {one_line(reason, 200)}" if passes else "failed") + f"; {then}",
            "yellow",
        )
        took = (failure.tokens, failure.dollars) if passes else (None, None)  # for others it is recorded already
        self.ledger.append(
            events.Waited(reason=reason, seconds=wait, agent=agent.name, tokens=took[0], dollars=took[1])
        )

    def leave_out(self, agent: Agent, blocked: AgentBlocked) -> None:
        """Continue without an agent that only a person can fix. Raises `blocked` if it is the last one."""
        if agent not in self.agents:  # left out already, because of another of its proposals
            self.note_spent(agent, blocked)
            return
        reason = keys.scrub(str(blocked))
        self.ledger.append(
            events.Waited(reason=reason, agent=agent.name, tokens=blocked.tokens, dollars=blocked.dollars)
        )
        others = [other for other in self.agents if other is not agent] or ([self.fill] if self.fill else [])
        if not others:
            raise blocked
        self.agents = others
        self.console.tell("fault", reason=one_line(f"{agent.name} is left out: {reason}", 500))
        names = ", ".join(other.name for other in others)
        self.console.line(f"{agent.name} is left out; continuing with {names}: {one_line(reason, 300)}", "yellow")

    def note_spent(self, agent: Agent, failure: AgentUnavailable | AgentBlocked) -> None:
        """Record what a failed call has used, if its failure itself is recorded already."""
        if failure.tokens or failure.dollars:
            reason, taken = keys.scrub(str(failure)), {"tokens": failure.tokens, "dollars": failure.dollars}
            self.ledger.append(events.Waited(reason=reason, agent=agent.name, **taken))

    def exhaust(self, agent: Agent, reason: str, champion: str) -> bool:
        """Note that an agent has nothing left to propose on a champion. Returns whether that is true of all agents."""
        if agent is self.fill:
            self.fill = None
            self.ledger.append(events.Waited(reason=reason, seconds=self.seconds_to_wait(), agent=self.agents[0].name))
            return False
        if champion != self.ledger.champion_commit or agent not in self.agents:  # changed while it was thinking
            return False
        self._exhausted[agent.name] = champion
        if others := ", ".join(other.name for other in self.agents if not self.is_exhausted(other)):
            self.console.line(f"{agent.name}: {one_line(reason)}; {others} continues until an edit is kept", "yellow")
        return not others
