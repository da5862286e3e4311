"""The agents of a run, and which of them may be asked now.

One that cannot be reached is asked again later: all waiting for agents is here. Until it answers it is asked for one
proposal at a time. One that only a person can help is left out, where there are others. One that has nothing left to
try is asked again when the champion is another.
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

PATIENCE = 2.0, 300.0  # seconds to the first next call of an agent that cannot be reached, and to the last
PASSING, UNKNOWN = 2, 8  # times that the wait is longer after each failure: of one that will pass, and of any other
LONGEST_WAIT = 86_400.0  # seconds, whatever a service says


class Roster:
    """agents: who proposes. fill: who does while none of them can be reached."""

    def __init__(self, agents: Sequence[Agent], fill: Agent | None, ledger: Ledger, console: Console) -> None:
        self.agents, self.fill, self.ledger, self.console = list(agents), fill, ledger, console
        self._patience: dict[str, float] = {}  # by agent that could not be reached: seconds of the wait after the next
        self._call_again: dict[str, float] = {}  # and when that is
        self._exhausted: dict[str, str] = {}  # by agent: the champion from which it has nothing left

    def ready(self, drafts: Iterable[Draft] = ()) -> list[Agent]:
        """The agents that may be called now. drafts: what is in the making."""
        now, at_work = time.monotonic(), {draft.agent for draft in drafts}
        waited = (a for a in self.agents if now >= self._call_again.get(a.name, 0.0) and not self.is_exhausted(a))
        return [a for a in waited if a.name not in self._patience or not at_work & {a.name, ""}]

    def is_exhausted(self, agent: Agent) -> bool:
        """Whether an agent has said that nothing is left to be tried from this champion."""
        return self._exhausted.get(agent.name) == self.ledger.champion_commit

    def seconds_to_wait(self) -> float:
        """Until the first agent may be called; 0 where one may be now, or another fills in."""
        if self.fill:
            return 0.0
        asked = [agent for agent in self.agents if not self.is_exhausted(agent)] or self.agents
        return max(0.0, min(self._call_again.get(agent.name, 0.0) for agent in asked) - time.monotonic())

    def answered(self, agent: Agent) -> None:
        """An agent has proposed something."""
        self._patience.pop(agent.name, None)
        self._call_again.pop(agent.name, None)

    def put_off(self, agent: Agent, failure: AgentFailed, instead: str | None = None) -> None:
        """An agent is called again later: when its service said, else after a wait that is longer each time.

        instead: who or what goes on meanwhile, in words. Default: another agent that is ready, or the filler. Where
        several proposals fail together the first one counts.
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
        took = (failure.tokens, failure.dollars) if passes else (None, None)  # the record has that of other failures
        self.ledger.append(
            events.Waited(reason=reason, seconds=wait, agent=agent.name, tokens=took[0], dollars=took[1])
        )

    def leave_out(self, agent: Agent, blocked: AgentBlocked) -> None:
        """Go on with the others without an agent that only a person can help. Raises `blocked` where it is the last."""
        if agent not in self.agents:  # another proposal of it came first
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
        self.console.line(f"{agent.name} is left out, and {names} goes on: {one_line(reason, 300)}", "yellow")

    def note_spent(self, agent: Agent, failure: AgentUnavailable | AgentBlocked) -> None:
        """Record what a call took that failed like one before it."""
        if failure.tokens:
            reason, taken = keys.scrub(str(failure)), {"tokens": failure.tokens, "dollars": failure.dollars}
            self.ledger.append(events.Waited(reason=reason, agent=agent.name, **taken))

    def exhaust(self, agent: Agent, reason: str, champion: str) -> bool:
        """An agent has proposed all that it can from a champion. Whether none of the agents has anything left."""
        if agent is self.fill:
            self.fill = None
            self.ledger.append(events.Waited(reason=reason, seconds=self.seconds_to_wait(), agent=self.agents[0].name))
            return False
        if champion != self.ledger.champion_commit or agent not in self.agents:  # others were in the making beside it
            return False
        self._exhausted[agent.name] = champion
        if others := ", ".join(other.name for other in self.agents if not self.is_exhausted(other)):
            self.console.line(f"{agent.name}: {one_line(reason)}; {others} goes on until something is kept", "yellow")
        return not others
