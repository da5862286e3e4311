"""The gate (--approve): what has to wait for a person, who types `approve NUMBER` or `reject NUMBER -m why`.

What waits is in the journal, and so is the decision: both survive a restart. Other work continues meanwhile.
"""

import dataclasses
import re

from autoresearch import UserError, inbox
from autoresearch.record import events
from autoresearch.record.ledger import Attempt, Ledger

MOST = 5  # edits that wait for approval before no more are proposed


@dataclasses.dataclass(frozen=True)
class Gate:
    """What needs approval."""

    edits: bool = False  # each edit, before its trial
    keeps: bool = False  # each keep, before the branch moves
    dollars: float | None = None  # the next proposal, each time this much was spent since the last approval

    def holds_edit(self, ledger: Ledger, attempt: Attempt) -> bool:
        return self.edits and not attempt.is_baseline and attempt.number not in ledger.approved

    def holds_keep(self, ledger: Ledger, verdict: events.Verdict) -> bool:
        return self.keeps and verdict.status == "keep" and bool(ledger.kept)

    def holds_cost(self, ledger: Ledger) -> bool:
        spent = self.dollars is not None and ledger.spent.dollars - ledger.cleared >= self.dollars
        return spent and not any(held.what == "cost" for held in ledger.held.values())

    def holds_proposals(self, ledger: Ledger, in_the_making: int = 0) -> bool:
        """Whether to propose nothing more until a person has decided."""
        held = [held.what for held in ledger.held.values()]
        return "cost" in held or self.holds_cost(ledger) or held.count("edit") + in_the_making * self.edits >= MOST

    def __str__(self) -> str:
        cost = "" if self.dollars is None else f"each ${self.dollars:g}"
        return ", ".join(filter(None, ("edits" if self.edits else "", "keeps" if self.keeps else "", cost)))


def gate_of(words: str | None) -> Gate:
    """The gate that --approve describes: `edits`, `keeps`, `cost:5`, or several with commas. Raises UserError."""
    found: dict = {}
    for word in (words or "").replace(" ", "").split(","):
        cost = re.fullmatch(r"cost:\$?(\d*\.?\d+)", word)
        if not (cost and float(cost[1])) and word not in ("edits", "keeps", ""):  # at 0 it would wait again at once
            raise UserError(f"--approve takes edits, keeps, cost:5, or several with commas, not {word!r}")
        found |= {"dollars": float(cost[1])} if cost else {word: True} if word else {}
    return Gate(**found)


def require_held(ledger: Ledger, number: int) -> None:
    """Raises UserError if the experiment of this number does not wait for approval, or a decision on it was sent."""
    sent = [message for _, message in inbox.waiting(ledger.path.parent)]
    ledger.catch_up()  # after that: a loop writes to the journal before it empties the inbox
    if number not in ledger.held:
        known = "; ".join(map(describe_held, ledger.held.values())) or "nothing does"
        raise UserError(f"experiment {number} does not wait for your approval: {known}")
    if any(isinstance(message, events.Approved | events.Rejected) and message.number == number for message in sent):
        raise UserError(f"experiment {number} has your decision already; the loop has not read it yet")


def describe_held(held: events.Held) -> str:
    """What waits for approval, for a person to read."""
    what = {
        "edit": "its edit waits for your approval before it is tried",
        "keep": "it would be kept, and waits for your approval",
        "cost": "it waits for your approval before more is spent",
    }
    return f"experiment {held.number}: {what.get(held.what, 'it waits for your approval')}"
