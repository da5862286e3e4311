"""Agents: each turns a brief into an edit of the worktree and says what it did.

An agent is any object with the methods of `Agent` below: it edits the files in a folder (a worktree at the champion)
and returns a Proposal. To add one, write a module here, create it in choice.py (`make_agent`), and add its name to
NAMES. For a command-line program such as Claude Code, a row of the table in clients.py and its name are enough.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autoresearch import UserError, keys
from autoresearch.text import one_line

if TYPE_CHECKING:
    from autoresearch.brief import Brief

NAMES = ("auto", "claude-api", "claude-code", "codex", "gemini", "opencode", "command", "optimize", "sweep")
CATEGORIES = (
    *("architecture", "attention", "optimizer", "schedule", "initialisation", "batch", "throughput"),
    *("regularisation", "simplification", "other"),
)
CATEGORIES_ELSEWHERE = (
    *("algorithm", "data structures", "memory", "parallelism", "input and output", "parameters", "model", "features"),
    *("simplification", "other"),
)
MOST_IDEAS = 8  # in one proposal
KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")  # environment variables that hold a key for a Messages API
FIELDS = re.compile(
    r"[\W_]*(description|category|hypothesis|predicted|lesson|idea)[\W_]*:[\s*_]*(.*?)[\s*_`]*", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What an agent says about its edit. Each text is cleaned and cut to one line on creation."""

    description: str = ""  # what was changed, and why if there is room
    hypothesis: str = ""  # why it should help
    predicted: float | None = None  # expected change of the metric
    category: str = ""  # the kind of change
    lesson: str = ""  # what the last verdicts taught, or `L3` if the edit tests lesson 3
    ideas: Sequence[str] = ()  # `I3` if the edit tests idea 3, and new ideas: `WHAT | EXPECTED EFFECT | SOURCE`
    tokens: int | None = None  # input and output together; None: not known
    dollars: float | None = None
    transcript: str = ""  # folder with what the agent was told and what it answered

    def __post_init__(self) -> None:
        for name, limit in (("description", 300), ("hypothesis", 500), ("category", 40), ("lesson", 300)):
            object.__setattr__(self, name, one_line(keys.scrub(getattr(self, name)), limit))
        object.__setattr__(self, "category", self.category.lower())
        ideas = [one_line(keys.scrub(text), 800) for text in self.ideas[:MOST_IDEAS]]
        object.__setattr__(self, "ideas", tuple(filter(None, ideas)))
        if self.predicted is not None and not math.isfinite(self.predicted):
            object.__setattr__(self, "predicted", None)


class AgentFailed(Exception):
    """The agent proposed nothing this time. The text says why; the tokens and dollars count as spent."""

    def __init__(self, reason: str, tokens: int | None = None, dollars: float | None = None) -> None:
        super().__init__(reason)
        self.tokens, self.dollars = tokens, dollars


class AgentUnavailable(AgentFailed):
    """A temporary failure: a limit, an outage, a time-out. The agent is called again later; not counted as a failure.

    again: seconds until the service will answer, if it says so.
    """

    def __init__(
        self, reason: str, tokens: int | None = None, dollars: float | None = None, again: float | None = None
    ) -> None:
        super().__init__(reason, tokens, dollars)
        self.again = again


class AgentBlocked(UserError):
    """A problem that only a person can fix: signed out, out of credit, no such model. Tokens used count as spent."""

    def __init__(self, reason: str, tokens: int | None = None, dollars: float | None = None) -> None:
        super().__init__(reason)
        self.tokens, self.dollars = tokens, dollars


class AgentStopped(AgentFailed):
    """The agent was cancelled after it had spent tokens."""


class NothingLeft(Exception):
    """The agent has proposed everything that it can."""


class Agent(Protocol):
    name: str
    retries: bool  # whether it can fix an edit that was refused or crashed, when told why
    paid: bool  # whether its proposals cost money that is counted, so that --max-cost can limit it

    async def propose(self, brief: "Brief", folder: Path) -> Proposal:
        """Edit the task's files in `folder`.

        Raises AgentFailed, AgentUnavailable, AgentBlocked or NothingLeft; failures.py tells the first three apart. If
        cancelled, it ends the processes it started, then raises AgentStopped if it knows how many tokens it spent, else
        CancelledError.
        """
        ...


REPLY = """\
When the edit is done, end with these lines and nothing after them:

description: what you changed and why, in one line
category: one of {categories}
hypothesis: why it should help, in one line
predicted: the change of {metric} that you expect, as a number such as {example}
lesson: only if the last verdicts taught something of general use, one line; `lesson: L3` if this edit tests lesson L3
idea: only if there is one, a line each: `idea: I3` if this edit tests idea I3; {an_idea} for another edit, up to three
"""
REPLY_TO_OTHERS = (
    "When it is done, end with this line and nothing after it:\n\ndescription: what you did, in one line\n"
)
AN_IDEA = "`WHAT TO TRY | EXPECTED EFFECT | SOURCE`"


def categories_of(brief: "Brief") -> tuple[str, ...]:
    """The kinds of change: for this project's own game, or for another repository."""
    return CATEGORIES if brief.task.referee else CATEGORIES_ELSEWHERE


def how_to_reply(brief: "Brief") -> str:
    """How an agent that answers in text is asked to describe its edit (or, without an experiment, what it did)."""
    if not brief.number:
        return REPLY_TO_OTHERS
    return REPLY.format(
        categories=", ".join(categories_of(brief)),
        metric=brief.task.metric,
        example="-0.002" if brief.task.lower_is_better else "+0.002",
        an_idea=AN_IDEA.replace("`", "`idea: ", 1),
    )


def read_reply(text: str, **more: object) -> Proposal:
    """Read the proposal at the end of an agent's answer. more: fields of the Proposal that are not in the answer.

    It consists of `name: value` lines at the very end. If there is no description among them, the line before them is
    the description; it may begin with a category: `[optimizer] a slower warm-down`.
    """
    said: dict[str, str] = {}
    last, ideas = "", []
    for line in reversed([line for line in text.splitlines() if re.search(r"\w", line)]):
        if not (field := FIELDS.fullmatch(line)):
            last = line
            break
        said.setdefault(field[1].lower(), field[2])
        ideas = [field[2], *ideas] if field[1].lower() == "idea" else ideas
    said.pop("idea", None)
    if not said.get("description"):
        last = one_line(last, 1000)
        category = re.match(r"\[([\w -]+)\]\s*", last)
        said["description"] = last[category.end() :] if category else last
        said["category"] = said.get("category") or (category[1] if category else "")
    fields: dict[str, Any] = {**said, "predicted": read_number(said.get("predicted", "")), "ideas": ideas, **more}
    return Proposal(**fields)


def read_number(text: str) -> float | None:
    """The first number in a text such as `-0.002 (about)`."""
    found = re.search(r"[-+\u2212]?\d*\.?\d+(?:[eE][-+]?\d+)?", text)
    return float(found[0].replace("\u2212", "-")) if found else None


def price(
    model: str | None, provider: str, taken: int, made: int, cached: int, written: int = 0, requests: int = 1
) -> float | None:
    """Dollars for tokens at public prices; None for an unknown model, or for amounts that cannot be.

    taken: input tokens, including cache reads and writes; made: output tokens. requests: the number of requests. Long
    requests cost more per token, so each is priced separately; here all are assumed to be equally long.
    """
    from genai_prices import Usage, calc_price  # takes a fifth of a second

    taken, made, cached, written = (round(tokens / requests) for tokens in (taken, made, cached, written))
    try:
        usage = Usage(input_tokens=taken, output_tokens=made, cache_read_tokens=cached, cache_write_tokens=written)
        return requests * float(calc_price(usage, model, provider_id=provider).total_price) if model else None
    except (LookupError, ValueError):
        return None
