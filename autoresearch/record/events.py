"""What happens in a run: one dataclass for each kind of event. A line of the journal is one of these as JSON.

A line has `event` (the name below), `form` (the version of the format; lines of version 0.1 have none), `time` (seconds
since 1970) and the fields. Missing fields have their defaults, so that lines of older versions can be read. Lines of a
newer format are refused.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from autoresearch import UserError
from autoresearch.keys import scrubbed

FORM = 2
FAULT = "a fault: "  # start of the reason of a Stop that was caused by an error
SUSPENDED, DISTURBED, LOST, DOWN = "suspended", "disturbed", "lost", "down"  # why a trial ran again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    name: ClassVar[str]
    time: float = 0.0  # seconds since 1970; set when it is written


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Event):
    """A run began."""

    name = "run"
    tag: str
    base: str  # the commit that it starts from
    task: dict  # the fields of its Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start(Event):
    """The loop was started, for the first time or again."""

    name = "start"
    process: str = ""  # identity.identify of the loop
    code: str = ""  # hash of the loop's own code
    keep_rule: str = ""
    agenda: str = ""  # the text of program.md
    setup: float | None = None  # seconds since the program was called
    external: bool = False  # an external agent works: this is one call of many
    workers: int = 1  # trials at once
    gpus: str | None = None
    kind: str = ""  # of the devices of a cluster; empty: it runs on this machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seats(Event):
    """The seats of a cluster: as the loop began, and whenever some have come or gone."""

    name = "seats"
    seats: Sequence[dict]  # of each: number, node, kind; price in dollars an hour, where one was given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aside(Event):
    """A node of a cluster is not used any more in this run: its measurements are not comparable."""

    name = "aside"
    node: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace(Event):
    """How fast the baseline ran on a node of a cluster."""

    name = "pace"
    node: str
    kind: str
    pace: float  # seconds of its training, or the number of its steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Game(Event):
    """The game of the run: profile, device, data, time budget, as the task describes them."""

    name = "game"
    facts: dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt(Event):
    """An edit was committed. A second event with the same number replaces the first: repaired, or on a new champion."""

    name = "attempt"
    number: int
    commit: str
    parent: str
    description: str = ""
    agent: str = ""
    hypothesis: str = ""
    predicted: float | None = None
    category: str = ""
    lesson: str = ""
    ideas: Sequence[str] = ()  # those that it tests, `I3`, and new ones
    tokens: int | None = None
    dollars: float | None = None
    transcript: str = ""
    edit: str = ""  # hash of what the editable files do
    lines: int | None = None  # of code that the edit adds, net
    constants: dict | None = None  # name: [old, new value] of those that it changed; None where it did something else
    beside: str = ""  # names the code around them
    preflight: float | None = None  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moved(Event):
    """An attempt that waited was moved onto a new champion."""

    name = "moved"
    number: int
    commit: str
    parent: str
    edit: str
    was: str = ""  # its commit before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crashed(Event):
    """An attempt crashed so early that its agent is asked to repair it."""

    name = "crashed"
    number: int
    commit: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refused(Event):
    """A proposal was refused before it cost a trial, or the agent failed."""

    name = "refused"
    number: int
    reason: str
    description: str = ""
    agent: str = ""
    tokens: int | None = None
    dollars: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waited(Event):
    """The agent could not be reached, or was interrupted after spending something."""

    name = "waited"
    reason: str
    seconds: float = 0.0
    agent: str = ""
    tokens: int | None = None
    dollars: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interrupted(Event):
    """The user stopped a trial before its verdict; it runs again when the run continues."""

    name = "interrupted"
    number: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial(Event):
    """An attempt began to run. Its earlier measurements do not count."""

    name = "trial"
    number: int
    worker: int = 0
    waited: float = 0.0  # seconds before, for the machine to be free
    node: str = ""  # of a cluster, where it runs
    boot: str = ""  # identity.boot of this machine, unless it runs on a node


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rerun(Event):
    """The measurement does not count, and the trial runs again: it was suspended or disturbed, its seat was lost, the
    machine went down, or its champion was replaced.
    """

    name = "rerun"
    number: int
    reason: str
    seconds: float = 0.0
    taken: float | None = None  # share of the CPU, or of the GPU, that others used, if that is the reason
    why: str = ""  # SUSPENDED, DISTURBED, LOST or DOWN: each is counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ran(Event):
    """A run that has a score; the subclasses say what it was for."""

    number: int  # of the code that ran
    seed: int
    score: float
    seconds: dict = dataclasses.field(default_factory=dict)
    taken: float | None = None  # share of the processors, or of the GPU, that others took while it trained
    taken_by: str = ""  # that in words, where it was not other programs on the processors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured(Ran):
    """A trial has its score."""

    name = "measured"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screened(Ran):
    """With --tiers, a run on the first kind of device: of a new edit, or again of its champion. All other runs are on
    the last kind, `Start.kind`.
    """

    name = "screened"
    during: int = 0  # for a repeated run of the champion: number of the edit being screened
    kind: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promoted(Event):
    """With --tiers, an edit looked good on the first kind of device; its verdict comes from the last one."""

    name = "promoted"
    number: int
    reason: str
    seconds: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quarantine(Event):
    """A gain was implausibly large; the attempt runs again with another seed."""

    name = "quarantine"
    number: int
    gain: float
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict(Event):
    """The verdict on an attempt, and what it was based on."""

    name = "verdict"
    number: int
    status: str  # keep, discard or crash
    score: float | None  # the mean of its runs
    memory_gb: float = 0.0
    reason: str = ""
    figures: dict = dataclasses.field(default_factory=dict)
    seconds: dict = dataclasses.field(default_factory=dict)
    holdout: float | None = None  # the score there, of what was kept
    noise: float | None = None  # standard deviation of one score
    standing: float | None = None  # the champion's score
    standing_runs: int = 1  # over how many runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class InTurn(Ran):
    """A run of an edit or its champion in turn, before a gain that noise could explain is kept; or a run of the
    champion alone, so that one lucky score does not last forever.
    """

    name = "in turn"
    edit: int  # number of the edit that takes turns; 0: the champion alone
    during: int = 0  # for a run of the champion alone: number of the edit being tried


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped(Event):
    """A person dropped a keep, and everything that was kept on top of it."""

    name = "dropped"
    number: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accepted(Event):
    """A person accepted an edit that was held back; it runs again under a new number and can be kept."""

    name = "accepted"
    number: int  # the new one
    held: int  # the one that was held back


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified(Event):
    """`verify` ran a commit again."""

    name = "verified"
    code: str  # what it is: baseline, champion, without N, pruned; in the journal the field is `name`
    commit: str | None
    champion: str  # the champion's commit at that time
    seed: int | None
    score: float | None
    holdout: float | None = None
    reason: str = ""  # why there is no score
    seconds: dict = dataclasses.field(default_factory=dict)
    taken: float | None = None  # share of the processors that others took while it trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message(Event):
    """A message from a person to the run, see inbox.py."""

    message: str = ""  # names it, so that it is taken in once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note(Message):
    """Advice that later briefs include."""

    name = "note"
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pause(Message):
    """From here on nothing new starts."""

    name = "pause"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume(Message):
    """The pause is over."""

    name = "resume"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held(Event):
    """Something waits for approval, see gate.py (--approve). Not to be confused with ledger.HELD."""

    name = "held"
    number: int
    what: str  # edit, keep or cost
    verdict: dict = dataclasses.field(default_factory=dict)  # of a keep: the fields of its Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Approved(Message):
    """A person approved what was held."""

    name = "approved"
    number: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejected(Message):
    """A person rejected what was held."""

    name = "rejected"
    number: int
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop(Event):
    """The loop ended."""

    name = "stop"
    reason: str


KINDS: dict[str, type[Event]] = {
    kind.name: kind
    for kind in (
        Run, Start, Seats, Aside, Pace, Game, Attempt, Moved, Crashed, Refused, Waited, Interrupted, Trial, Rerun,
        Measured, Screened, Promoted, Quarantine, Verdict, InTurn, Dropped, Accepted, Verified, Note, Pause, Resume,
        Held, Approved, Rejected, Stop,
    )
}  # fmt: skip
FIRST_NAMES, FIRST_FIELDS = {"void": "rerun"}, {"driven": "external"}  # in the journals of version 0.1
UNSCRUBBED = (Run, Game)  # the human's own settings, which are compared later


def to_json(event: Event) -> dict:
    """The line of an event, without keys in its texts."""
    fields = {name: getattr(event, name) for name in (field.name for field in dataclasses.fields(event))}
    if isinstance(event, Verified):
        fields["name"] = fields.pop("code")
    line = {"event": event.name, **fields, "form": FORM}
    return line if isinstance(event, UNSCRUBBED) else scrubbed(line)


def from_json(line: dict) -> Event | None:
    """The event of a line; None for an event that this version does not know. UserError for a newer form."""
    if (form := line.get("form", 1)) > FORM:
        raise UserError(
            f"this run was written by a newer version of autoresearch (form {form} of the journal; this one reads up "
            f"to {FORM}): update this one, or start another run with --tag NEW"
        )
    if form < 2:
        line = {FIRST_FIELDS.get(field, field): value for field, value in line.items()}
        line["event"] = FIRST_NAMES.get(line.get("event", ""), line.get("event"))
    kind = KINDS.get(str(line.get("event")))
    if kind is None:
        return None
    if kind is Verified:
        line = {**line, "code": line.get("name", "")}
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in line.items() if name in known})
