"""Ideas: what could be tried next, kept for all runs in .autoresearch/ideas.md. People, agents and searches add to it.

- I3 (discarded, run night, experiment 7): use one matrix for input and output embeddings
  expected: half the parameters, -0.002
  source: Using the Output Embedding to Improve Language Models, 2017, https://arxiv.org/abs/1608.05859
  outcome: 1.002000 is 0.002000 worse than the champion's 1.000000

Edit it freely: any line that begins with `- ` is an idea, and gets its number when the file is read next. An edit may
name the ideas that it tests; their state follows from its attempt.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from autoresearch import UserError
from autoresearch.record.ledger import ABANDONED, Attempt, Ledger
from autoresearch.shared_lines import SharedLines, core, named
from autoresearch.text import clean, one_line

FILE = "ideas.md"  # in the folder of all runs
FIRST = re.compile(r"[-*] +(?:I(\d{1,9})(?: \(([^()]*)\))?: *)?(.*)")  # line of an idea
FIELD = re.compile(r"\s+(expected|source|outcome): *(.*)", re.IGNORECASE)
TRIAL = re.compile(r"(.+), run ([\w.-]+), experiment (\d{1,9})")  # the state of an idea that was tested
OPEN, IN_TRIAL, AGENT = "open", "in trial", "agent "
LIMITS = {"text": 500, "expected": 200, "source": 400, "outcome": 300}  # characters
MOST_AT_ONCE = 3  # new ones with an edit
MOST_OF_AGENTS = 30  # that wait to be tested
WANTS = {  # what an edit that crashed had too little of, by its reason
    "memory": re.compile("out of ?memory|MemoryError|bad_alloc|of host memory|next to no memory", re.IGNORECASE),
    "time": re.compile(r"its time limit|in its first \d|its first batch after|process went on for"),
}
STARVED = "for want of "  # so begins the outcome of such a one


@dataclasses.dataclass
class Idea:
    number: int  # 0: it has none yet
    text: str
    expected: str = ""  # what it should change
    source: str = ""  # who had it; for a publication title, year and link
    state: str = OPEN  # or in trial, kept, discarded, each with run and experiment; dropped; or a person's own word
    outcome: str = ""  # why it was discarded

    @property
    def is_open(self) -> bool:
        return self.state.casefold() == OPEN

    @property
    def trial(self) -> tuple[str, int] | None:
        """(Run, number of the experiment) that tests it now."""
        found = TRIAL.fullmatch(self.state)
        return (found[2], int(found[3])) if found and found[1] == IN_TRIAL else None

    @property
    def starved(self) -> bool:
        """Whether it crashed for want of memory or time."""
        return self.outcome.startswith(STARVED)

    def __str__(self) -> str:
        more = [f"  {name}: {said}" for name in ("expected", "source", "outcome") if (said := getattr(self, name))]
        return "\n".join([f"- I{self.number} ({self.state}): {self.text}", *more])


class Ideas(SharedLines):
    """The ideas of a repository. runs: the folder of all its runs."""

    HEADING = f"""# Ideas

What could be tried. A line that begins with `- ` is an idea: add, change, move or delete freely. Agents are offered
those that are {OPEN}, from the top, yours before those of agents.

"""

    def __init__(self, runs: Path) -> None:
        super().__init__(runs / FILE)

    def read(self) -> list[Idea]:
        if not self.path.exists():
            return []
        with self.parts_to_edit() as parts:
            return [idea for part in parts if (idea := parse(part))]

    def to_offer(self, pending: Sequence[Attempt] = ()) -> list[Idea]:
        """Those that an agent is told: first what is open and in no pending attempt, then what was starved."""
        ideas, busy = self.read(), {number for attempt in pending for number in tested(attempt.ideas)}
        waiting = [idea for idea in ideas if idea.is_open and idea.number not in busy]
        waiting.sort(key=lambda idea: idea.source.startswith(AGENT))
        return waiting + [idea for idea in ideas if idea.starved and not idea.is_open]

    def add(self, text: str, expected: str = "", source: str = "") -> tuple[Idea, bool]:
        """(The idea, whether it is new): one that says the same is not added again. Raises UserError for no words."""
        said = {"text": text, "expected": expected, "source": source}
        new = Idea(0, **{name: one_line(clean(words), LIMITS[name]) for name, words in said.items()})
        if not core(new.text):
            raise UserError('there is no idea in this; put it in quotes, e.g. "try smaller batches"')
        with self.parts_to_edit() as parts:
            ideas = [idea for part in parts if (idea := parse(part))]
            if same := next((idea for idea in ideas if core(idea.text) == core(new.text)), None):
                return same, False
            new.number = 1 + max((idea.number for idea in ideas), default=0)
            parts.append(str(new).split("\n"))
        return new, True

    def hear(self, said: Sequence[str], agent: str) -> None:
        """Add what an agent said beside an edit, each as `WHAT | EXPECTED EFFECT | SOURCE`."""
        new = [[*map(str.strip, text.split("|", 2)), "", ""] for text in said if not tested([text])]
        new = [words for words in new if len(core(words[0]).split()) > 1][:MOST_AT_ONCE]  # `none` is no idea
        waiting = sum(idea.is_open and idea.source.startswith(AGENT) for idea in self.read()) if new else 0
        for what, expected, source, *_ in new[: max(0, MOST_OF_AGENTS - waiting)]:
            self.add(what, expected, AGENT + agent + (f": {source}" if source else ""))

    def follow(self, attempt: Attempt, run: str) -> None:
        """Give the ideas that an attempt tests the state that follows from it; what it no longer tests is open."""
        if not self.path.exists():
            return
        with self.parts_to_edit() as parts:
            for part in parts:
                if (idea := parse(part)) and idea.number in tested(attempt.ideas):
                    put(part, *state_of(attempt, run))
                elif idea and idea.trial == (run, attempt.number):
                    put(part, OPEN)

    def drop(self, number: int) -> Idea:
        """A person does not want it. Raises UserError where there is none of this number."""
        with self.parts_to_edit() as parts:
            for part in parts:
                if (idea := parse(part)) and idea.number == number:
                    put(part, "dropped")
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
    def parts_to_edit(self) -> Iterator[list[list[str]]]:
        """The lines of each idea together, every other line by itself. Each idea has a number."""
        with self.lines_to_edit() as lines:
            parts: list[list[str]] = []
            for line in lines:
                belongs = parts and FIRST.fullmatch(parts[-1][0]) and line[:1].isspace() and line.strip()
                parts[-1].append(line) if belongs else parts.append([line])
            ideas = [idea for part in parts if (idea := parse(part))]
            last = max((idea.number for idea in ideas), default=0)
            for part in parts:
                if (idea := parse(part)) and not idea.number:
                    last += 1
                    part[0] = f"- I{last} ({OPEN}): {first(part)[2]}"
            yield parts
            lines[:] = [line for part in parts for line in part]


def parse(part: Sequence[str]) -> Idea | None:
    """The idea in these lines; None where they hold none."""
    if not FIRST.fullmatch(part[0]):
        return None
    number, state, text = first(part)
    said, field = {"text": [text]}, "text"
    for line in part[1:]:
        if found := FIELD.fullmatch(line):
            field, line = found[1].lower(), found[2]
        said.setdefault(field, []).append(line)
    fields = {name: one_line(" ".join(lines), LIMITS[name]) for name, lines in said.items()}
    idea = Idea(int(number or 0), **fields, state=one_line(state or OPEN) or OPEN)
    return idea if core(idea.text) else None


def first(part: Sequence[str]) -> tuple[str | None, str | None, str]:
    """(Number, state, text) in the first line of an idea."""
    found = FIRST.fullmatch(part[0])
    assert found
    return found[1], found[2], found[3]


def put(part: list[str], state: str, outcome: str = "") -> None:
    """Write another state into the lines of an idea. All else stays as somebody wrote it."""
    number, _, text = first(part)
    kept = [line for line in part[1:] if not ((found := FIELD.fullmatch(line)) and found[1].lower() == "outcome")]
    part[:] = [f"- I{number} ({state}): {text}", *kept]
    part += [f"  outcome: {one_line(clean(outcome), LIMITS['outcome'])}"] if outcome else []


def tested(said: Sequence[str]) -> set[int]:
    """The numbers of the ideas that an edit names as those that it tests."""
    return {number for text in said if (number := named("I", text.split("|")[0])) is not None}


def state_of(attempt: Attempt, run: str) -> tuple[str, str]:
    """(State, outcome) of an idea that an attempt tests."""
    where, reason = f"run {run}, experiment {attempt.number}", attempt.reason
    if attempt.status is None:
        return f"{IN_TRIAL}, {where}", ""
    if attempt.was_outrun or reason in ABANDONED:  # which tells nothing of it
        return OPEN, ""
    if attempt.status == "keep":
        return f"kept, {where}", ""
    want = next((what for what, words in WANTS.items() if words.search(reason)), "")
    crashed = attempt.status == "crash" and want
    return f"discarded, {where}", f"{STARVED}{want}: {reason}" if crashed else reason
