"""Propose: an agent turns a brief into an edit of the worktree, and says what it did.

An agent is any object with a `name` and `propose(brief, folder) -> Proposal`. It edits the files in
`folder` (the run's worktree, standing at the champion) and returns what it did. To add one, write a
file here and its lines in choice.py; a command line of the kind of Claude Code needs a row of the table in clients.py only.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Protocol

from autoresearch import keys
from autoresearch.brief import Brief
from autoresearch.ledger import one_line

CATEGORIES = (
    "architecture",
    "attention",
    "optimizer",
    "schedule",
    "initialisation",
    "batch",
    "throughput",
    "regularisation",
    "simplification",
    "other",
)
KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")  # environment variables that hold a key for a Messages API
FIELDS = re.compile(
    r"[\W_]*(description|category|hypothesis|predicted|lesson)[\W_]*:[\s*_]*(.*?)[\s*_`]*", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What an agent says of its edit. Texts are made fit for a line when it is made."""

    description: str = ""  # what was changed, and why if there is room
    hypothesis: str = ""  # why it should help
    predicted: float | None = None  # change of the metric that it expects
    category: str = ""  # what kind of change it is
    lesson: str = ""  # what the last verdicts taught, or `L3`: that lesson 3 held again
    tokens: int | None = None  # taken for it, input and output; None: not known
    dollars: float | None = None
    transcript: str = ""  # folder of what the agent was told and what it said

    def __post_init__(self) -> None:
        for name, limit in (("description", 300), ("hypothesis", 500), ("category", 40), ("lesson", 300)):
            object.__setattr__(self, name, one_line(keys.scrub(getattr(self, name)), limit))
        object.__setattr__(self, "category", self.category.lower())
        if self.predicted is not None and not math.isfinite(self.predicted):
            object.__setattr__(self, "predicted", None)


class AgentFailed(Exception):
    """The agent could not propose anything this time. The text says why; tokens and dollars were spent all the same."""

    def __init__(self, reason: str, tokens: int | None = None, dollars: float | None = None) -> None:
        super().__init__(reason)
        self.tokens, self.dollars = tokens, dollars


class AgentUnavailable(AgentFailed):
    """The agent cannot be reached, or is overloaded. It will be, later: no failure of anybody's."""


class NothingLeft(Exception):
    """The agent has proposed all it ever will."""


class Agent(Protocol):
    name: str
    mends: bool  # whether it reads why an edit of its own was refused, or crashed

    def propose(self, brief: Brief, folder: Path) -> Proposal:
        """Edit the task's files in `folder`.

        Raises AgentFailed, AgentUnavailable, NothingLeft, and UserError for what only a person can mend: a missing key.
        May be interrupted at any point (limits.Interrupted).
        """


REPLY = """\
When the edit is done, end with these lines and nothing after them:

description: what you changed and why, in one line
category: one of {categories}
hypothesis: why it should help, in one line
predicted: the change of {metric} that you expect, as a number such as {example}
lesson: only if the last verdicts taught something that holds beyond them: one line for those who come after you (`lesson: L3` if it is what lesson L3 says)
"""


def how_to_reply(brief: Brief) -> str:
    """What an agent that answers in text is asked for."""
    return REPLY.format(
        categories=", ".join(CATEGORIES),
        metric=brief.task.metric,
        example="-0.002" if brief.task.lower_is_better else "+0.002",
    )


def read_reply(text: str, **more: object) -> Proposal:
    """The proposal in an agent's last words: the `name: value` lines at the very end; without a description there, the line before is it.

    That line may begin with a category: `[optimizer] a slower warm-down`.
    """
    said, last = {}, ""
    for line in reversed([line for line in text.splitlines() if re.search(r"\w", line)]):
        if not (field := FIELDS.fullmatch(line)):
            last = line
            break
        said.setdefault(field[1].lower(), field[2])
    if not said.get("description"):
        category, said["description"] = re.fullmatch(r"(?:\[([\w -]+)\])?\s*(.*)", one_line(last, 1000)).groups()
        said["category"] = said.get("category") or category or ""
    return Proposal(**{**said, "predicted": read_number(said.get("predicted", "")), **more})


def read_number(text: str) -> float | None:
    """The first number in a text such as `-0.002 (about)`."""
    found = re.search(r"[-+\u2212]?\d*\.?\d+(?:[eE][-+]?\d+)?", text)
    return float(found[0].replace("\u2212", "-")) if found else None


def price(model: str | None, provider: str, taken: int, made: int, cached: int, written: int = 0) -> float | None:
    """Dollars for tokens by public prices; None for a model that is not known.

    taken: input, with what was read from a cache and written to one; made: output.
    """
    from genai_prices import Usage, calc_price  # which takes a fifth of a second

    try:
        usage = Usage(input_tokens=taken, output_tokens=made, cache_read_tokens=cached, cache_write_tokens=written)
        return float(calc_price(usage, model, provider_id=provider).total_price) if model else None
    except LookupError:
        return None
