"""Ideas: what could be tried next, kept for all runs in .autoresearch/ideas.md. People, agents and searches add to it.

- I3 (discarded, run night, experiment 7): use one matrix for input and output embeddings
  expected: half the parameters, -0.002
  source: Using the Output Embedding to Improve Language Models, 2017, https://arxiv.org/abs/1608.05859
  outcome: 1.002000 is 0.002000 worse than the champion's 1

Edit it freely: any line that begins with `- ` is an idea, and gets its number when the file is read next. An edit may
name the ideas that it tests; their state follows from its attempt.
"""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from autoresearch import UserError
from autoresearch.record.ledger import ABANDONED, Attempt, Ledger
from autoresearch.shared_lines import SharedLines, core, named
from autoresearch.shortage import shortage
from autoresearch.text import clean, one_line

FILE = "ideas.md"  # in the folder of all runs
FIRST = re.compile(r"[-*] +(?:I(\d{1,9})(?: \((.*?)\))?: *)?(.*)")  # line of an idea
TRIAL = re.compile(r"in trial, run ([\w.-]+), experiment (\d{1,9})")  # a state
OPEN, AGENT = "open", "agent "
LIMITS = {"text": 500, "expected": 200, "source": 400, "outcome": 300}  # characters
MOST_AT_ONCE = 3  # new ones with an edit
MOST_OF_AGENTS = 30  # that wait to be tested
STARVED = "for want of "  # so begins the outcome of such a one


@dataclasses.dataclass
class Idea:
    number: int
    text: str
    expected: str = ""  # what it should change
    source: str = ""  # who had it; for a publication title, year and link
    state: str = OPEN  # or in trial, kept, discarded, each with run and experiment; dropped; or a person's own word
    outcome: str = ""  # why it was discarded
    lines: list[str] = dataclasses.field(default_factory=list, compare=False)  # in the file, the first without its mark

    @property
    def is_open(self) -> bool:
        return self.state.casefold() == OPEN

    @property
    def trial(self) -> tuple[str, int] | None:
        """(Run, number of the experiment) that tests it now."""
        found = TRIAL.fullmatch(self.state)
        return (found[1], int(found[2])) if found else None

    @property
    def starved(self) -> bool:
        """Whether it crashed for want of memory or time."""
        return self.outcome.startswith(STARVED)

    def put(self, state: str, outcome: str = "") -> None:
        """Give it another state. What else somebody wrote of it stays."""
        self.state, self.outcome = state, one_line(clean(outcome), LIMITS["outcome"])
        self.lines[1:] = [line for line in self.lines[1:] if not line.strip().lower().startswith("outcome:")]
        self.lines += [f"  outcome: {self.outcome}"] if outcome else []

    def __str__(self) -> str:
        return "\n".join([f"- I{self.number} ({self.state}): {self.lines[0]}", *self.lines[1:]])


class Ideas(SharedLines):
    """The ideas of a repository. runs: the folder of all its runs."""

    HEADING = f"""# Ideas

What could be tried. A line that begins with `- ` is an idea: add, change, move or delete freely. Agents are offered
those that are {OPEN}, from the top, yours before those of agents.

"""

    def __init__(self, runs: Path) -> None:
        super().__init__(runs / FILE)

    def read(self) -> list[Idea]:
        """All, each with its number: lines that have none yet get it, in the file where that can be written."""
        if not self.path.exists():
            return []
        ideas = [idea for idea in map(parse, in_parts(self.lines())) if idea]
        if not all(idea.number for idea in ideas):
            with contextlib.suppress(OSError), self.to_edit() as ideas:
                return ideas
        return numbered(ideas)

    def to_offer(self, pending: Sequence[Attempt] = (), first: int = 0) -> list[Idea]:
        """Those that an agent is told: first what is open and in no pending attempt, then what was starved.

        first: the place of the one that comes first, so that of several agents asked at once each begins with another.
        """
        ideas, busy = self.read(), {number for attempt in pending for number in tested(attempt.ideas)}
        waiting = [idea for idea in ideas if idea.is_open and idea.number not in busy]
        waiting.sort(key=lambda idea: idea.source.startswith(AGENT))
        first %= max(1, len(waiting))
        return waiting[first:] + waiting[:first] + [idea for idea in ideas if idea.starved and not idea.is_open]

    def add(self, text: str, expected: str = "", source: str = "") -> tuple[Idea, bool]:
        """(The idea, whether it is new): one that says the same is not added again. Raises UserError for no words."""
        said = {"text": text, "expected": expected, "source": source}
        said = {name: one_line(clean(words), LIMITS[name]) for name, words in said.items()}
        if not core(said["text"]):
            raise UserError('the idea is empty; put it in quotes, e.g. "try smaller batches"')
        with self.to_edit() as ideas:
            if same := next((idea for idea in ideas if core(idea.text) == core(said["text"])), None):
                return same, False
            lines = [said["text"], *(f"  {name}: {said[name]}" for name in ("expected", "source") if said[name])]
            ideas.append(Idea(1 + max((idea.number for idea in ideas), default=0), **said, lines=lines))
            return ideas[-1], True

    def hear(self, said: Sequence[str], agent: str) -> None:
        """Add what an agent said beside an edit, each as `WHAT | EXPECTED EFFECT | SOURCE`."""
        new = [[*map(str.strip, text.split("|", 2)), "", ""] for text in said if not tested([text])]
        new = [words for words in new if len(core(words[0]).split()) > 1][:MOST_AT_ONCE]  # `none` is no idea
        waiting = sum(idea.is_open and idea.source.startswith(AGENT) for idea in self.read()) if new else 0
        for what, expected, source, *_ in new[: max(0, MOST_OF_AGENTS - waiting)]:
            with contextlib.suppress(UserError):  # nothing is left of it when it is cut
                self.add(what, expected, AGENT + agent + (f": {source}" if source else ""))

    def follow(self, attempt: Attempt, run: str) -> None:
        """Give the ideas that an attempt tests the state that follows from it; what it no longer tests is open."""
        if not self.path.exists():
            return
        with self.to_edit() as ideas:
            for idea in ideas:
                if idea.number in tested(attempt.ideas):
                    idea.put(*state_of(attempt, run))
                elif idea.trial == (run, attempt.number):
                    idea.put(OPEN)

    def drop(self, number: int) -> Idea:
        """Mark an idea as dropped by a person. Raises UserError if there is no idea with this number."""
        with self.to_edit() as ideas:
            for idea in ideas:
                if idea.number == number:
                    idea.put("dropped")
                    return idea
        raise UserError(f"there is no idea I{number} in {self.path}")

    def catch_up(self) -> None:
        """Settle what was in trial in a run that was killed between its verdict and this file."""
        for run, number in {idea.trial for idea in self.read() if idea.trial}:
            with contextlib.suppress(UserError):  # a record of a newer version
                ledger = Ledger(self.path.parent / run, repair=False)
                for attempt in ledger.attempts[number - 1 : number]:
                    self.follow(attempt, run)

    @contextlib.contextmanager
    def to_edit(self) -> Iterator[list[Idea]]:
        """The ideas, each with a number, which are written back afterwards, new ones at the end."""
        with self.lines_to_edit() as lines:
            parts = in_parts(lines)
            found = [parse(part) for part in parts]
            ideas = numbered([idea for idea in found if idea])
            new = len(ideas)
            yield ideas
            written = [[str(idea)] if idea else part for idea, part in zip(found, parts, strict=True)]
            lines[:] = "\n".join(line for part in [*written, map(str, ideas[new:])] for line in part).split("\n")


def numbered(ideas: list[Idea]) -> list[Idea]:
    """The same, each with a number."""
    numbers = itertools.count(1 + max((idea.number for idea in ideas), default=0))
    for idea in ideas:
        idea.number = idea.number or next(numbers)
    return ideas


def in_parts(lines: Sequence[str]) -> list[list[str]]:
    """The lines of each idea together, every other line by itself."""
    parts: list[list[str]] = []
    for line in lines:
        belongs = parts and FIRST.fullmatch(parts[-1][0]) and line[:1].isspace() and line.strip()
        parts[-1].append(line) if belongs else parts.append([line])
    return parts


def parse(part: list[str]) -> Idea | None:
    """The idea in these lines, with number 0 if it has none yet; None where they hold no idea."""
    if not (found := FIRST.fullmatch(part[0])):
        return None
    number, state, first = found.groups()
    said, field = {"text": [first]}, "text"
    for line in part[1:]:
        name, colon, rest = line.strip().partition(":")
        if colon and name.lower() in LIMITS:
            field, line = name.lower(), rest
        said.setdefault(field, []).append(line)
    fields = {name: one_line(" ".join(lines), LIMITS[name]) for name, lines in said.items()}
    idea = Idea(int(number or 0), **fields, state=one_line(state or "") or OPEN, lines=[first, *part[1:]])
    return idea if core(idea.text) else None


def tested(said: Sequence[str]) -> set[int]:
    """The numbers of the ideas that an edit names as those that it tests."""
    return {number for text in said if (number := named("I", text.split("|")[0])) is not None}


def state_of(attempt: Attempt, run: str) -> tuple[str, str]:
    """(State, outcome) of an idea that an attempt tests."""
    where, reason = f"run {run}, experiment {attempt.number}", attempt.reason
    if attempt.status is None:
        return f"in trial, {where}", ""
    if attempt.was_outrun or reason in ABANDONED:  # which tells nothing of it
        return OPEN, ""
    if attempt.status == "keep":
        return f"kept, {where}", ""
    want = shortage(reason) if attempt.status == "crash" else ""
    return f"discarded, {where}", f"{STARVED}{want}: {reason}" if want else reason
