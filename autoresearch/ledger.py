"""The record. The journal is the truth; attempts, champion and results.tsv are views of it.

.autoresearch/<tag>/journal.jsonl holds one JSON object an event, each flushed and synced before
anything else happens:

    run         a run began: tag, base commit, task
    start       the loop was started: hash of its own code, keep rule, agenda (the text of program.md), setup (seconds since it was called),
                driven (an agent drives: this is one call of many), workers (trials at once), gpus
    game        what it runs on: profile, device, data, time budget
    attempt     an edit was committed: number, commit, parent, what its agent said (agents.Proposal), agent, edit, lines that it adds,
                seconds of its preflight; a second one of the same number is the first, made anew: mended, or on top of a new champion
    moved       an attempt that waited was moved onto a new champion: number, commit, parent, edit, was (its commit before)
    crashed     an attempt crashed so early that its agent was asked to mend it: number, commit, reason
    refused     a proposal was turned down before it cost a trial, or there was none: number, description, reason, agent, tokens, dollars
    waited      the agent could not be reached: reason, seconds
    interrupted the user stopped an attempt before its verdict; it is run again
    trial       an attempt began to run; what was measured of it before does not count: number, worker
    void        what was measured in a trial does not count, and it runs again: number, reason, seconds
    measured    an attempt ran to its score: number, seed, score, seconds
    quarantine  an attempt was too good to be true: number, gain, score; it is run again with another seed
    verdict     number, status, score (the mean of its runs), memory_gb, reason, figures, seconds, holdout (what was kept scores there);
                what the judge went by: noise (the standard deviation of one score), standing (the champion's score), standing_runs
    verified    `verify` ran a commit again: name, commit, champion at that time, seed, score, holdout, reason (why there is none), seconds
    stop        the loop ended: reason

results.tsv has the five columns of the public project: commit val_bpb memory_gb status description.
"""

import dataclasses
import fcntl
import json
import os
import re
import time
from pathlib import Path
from typing import TextIO

from autoresearch import UserError, count, keys
from autoresearch.accounting import Account
from autoresearch.judge import noise_scale
from autoresearch.repo import short

OUTRUN = "it does not go onto the champion any more"  # in the reason of an attempt that never ran
HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"


@dataclasses.dataclass
class Spent:
    """What proposals took, whatever became of them."""

    proposals: int = 0
    tokens: int = 0  # as far as they are known
    dollars: float = 0.0
    unknown_tokens: int = 0  # proposals of which nobody knows
    unknown_dollars: int = 0

    def add(self, tokens: int | None, dollars: float | None) -> None:
        self.proposals += 1
        self.tokens += tokens or 0
        self.dollars += dollars or 0.0
        self.unknown_tokens += tokens is None
        self.unknown_dollars += dollars is None

    def words(self) -> str:
        """`12,345 tokens and $0.67`; what nobody knows is said."""
        tokens = f"{self.tokens:,} tokens" if self.tokens or not self.unknown_tokens else "an unknown number of tokens"
        dollars = f"${self.dollars:.2f}" if self.dollars or not self.unknown_dollars else "an unknown cost"
        unknown = (
            self.unknown_dollars
            and self.dollars
            and f" (the cost of {count(self.unknown_dollars, 'proposal')} is not known)"
        )
        return f"{tokens} and {dollars}{unknown or ''}"


@dataclasses.dataclass
class Attempt:
    """One experiment. `status` is None until there is a verdict."""

    number: int
    commit: str
    parent: str
    description: str
    agent: str
    edit: str = ""  # hash of the editable files: equal for equal edits
    status: str | None = None  # keep, discard or crash
    score: float | None = None
    memory_gb: float = 0.0
    reason: str = ""
    figures: dict = dataclasses.field(default_factory=dict)
    seconds: dict = dataclasses.field(default_factory=dict)
    holdout: float | None = None  # the score on rows that no decision reads, of what was kept
    noise: float | None = None  # what the judge took for the standard deviation of one score
    standing: float | None = None  # the champion's score as the judge saw it
    standing_runs: int = 1  # and over how many runs
    lines: int | None = None  # of code that the edit adds, net
    category: str = ""  # what kind of change it is
    hypothesis: str = ""  # why it should help, as its agent saw it
    predicted: float | None = None  # change of the metric that its agent expected
    tokens: int | None = None  # that the agent took for it, and what they cost; None: not known
    dollars: float | None = None
    transcript: str = ""  # folder of what the agent was told and what it said
    repairs: int = 0  # times that it was mended after an early crash
    time: float = 0.0  # when it was committed
    runs: list[float] = dataclasses.field(
        default_factory=list
    )  # scores of identical code, the first with the run's seed

    def row(self) -> str:
        """The attempt's line of results.tsv."""
        score = 0.0 if self.score is None else self.score
        return f"{short(self.commit)}\t{score:.6f}\t{self.memory_gb:.1f}\t{self.status}\t{one_line(self.description)}\n"


def one_line(text: str, limit: int = 300) -> str:
    """Text fit for a column: one line, no tabs, no control characters, at most `limit` characters."""
    if len(text) <= limit and text.isprintable() and "  " not in text and text == text.strip():
        return text  # as most are: a brief has thousands
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)  # terminal colours
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


class Lock:
    """At most one loop a tag. Held until it is released, or the process ends."""

    def __init__(self, folder: Path, tag: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "lock", "a+")
        try:
            take(self._file)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            raise UserError(
                f"a loop is already running on tag {tag} (process {holder}); stop it first with "
                f"`uv run loop.py stop --tag {tag}`, or start another run with --tag NEW"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def take(file: TextIO) -> None:
    """Lock a file, or BlockingIOError. Tries twice: `status` may hold it for a moment, to see whether anybody does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.1)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Ledger:
    """The journal of one run, and what follows from it.

    repair: remove a last line that was cut off by a power failure from the file. Beside a loop that may be writing that line it must not be.
    """

    def __init__(self, folder: Path, repair: bool = True) -> None:
        self.path = folder / "journal.jsonl"
        self.run: dict | None = None
        self.game: dict | None = None
        self.attempts: list[Attempt] = []  # by number
        self.finished: list[Attempt] = []  # those that have a verdict, in the order of the verdicts
        self.kept: list[Attempt] = []  # the baseline, and what was kept after it
        self.verified: list[dict] = []
        self.refused: list[dict] = []  # since the last attempt
        self.mended: dict[str, Attempt] = {}  # by edit: attempts that crashed and were mended
        self._crashed: set[str] = set()  # commits
        self.spent_by: dict[str, Spent] = {}  # by agent
        self.agenda = ""
        self.first_seed: int | None = None
        self.keep_rule = ""
        self.workers, self.gpus = 1, None  # trials at once, and on which devices, as the loop was started last
        self.account = Account()  # where the time went
        self.size = 0  # bytes of the journal that were taken in
        if self.path.exists():
            self.catch_up()
            if repair and self.path.stat().st_size > self.size:
                os.truncate(self.path, self.size)

    def catch_up(self) -> None:
        """Take in the whole lines that another process has added."""
        events, self.size = read_journal(self.path, self.size)
        for event in events:
            self._apply(event)

    @property
    def tried(self) -> list[Attempt]:
        """What has a verdict and came after the baseline."""
        return self.finished[self.finished.index(self.kept[0]) + 1 :] if self.kept else []

    @property
    def champion(self) -> Attempt | None:
        """The attempt kept last."""
        return self.kept[-1] if self.kept else None

    @property
    def seed(self) -> int:
        """The seed of the run's trials."""
        known = (self.game or {}).get("seed")
        return self.first_seed if self.first_seed is not None else 42 if known is None else known

    def scores(self, attempt: Attempt) -> list[float]:
        """All scores of an attempt's code: its runs, and those of `verify`."""
        again = [
            event["score"]
            for event in self.verified
            if event["commit"] == attempt.commit and event["score"] is not None
        ]
        return [*(attempt.runs or [attempt.score]), *again]

    def standing(self, attempt: Attempt) -> list[float]:
        """The scores of what an attempt is compared with: the champion that it was built on. None for the baseline."""
        base = next(
            (kept for kept in reversed(self.kept) if kept.commit == attempt.parent and kept is not attempt), None
        )
        return self.scores(base) if base else []

    def replicates(self) -> list[list[float]]:
        """Scores of identical code, where there are several. Not of what is under suspicion, nor chosen scores beside fresh ones."""
        groups = [
            attempt.runs for attempt in self.attempts if attempt.status == "keep" or attempt.commit == attempt.parent
        ]
        fresh = {}
        for event in self.verified:
            if event["score"] is not None:
                fresh.setdefault(event["commit"], []).append(event["score"])
        return [scores for scores in (*groups, *fresh.values()) if len(scores) > 1]

    def noise(self) -> float:
        """The standard deviation of scores of identical code, as far as this run knows it; 0 if it does not."""
        return noise_scale(self.replicates(), (self.game or {}).get("noise"))

    @property
    def pending(self) -> list[Attempt]:
        """Attempts that were committed and have no verdict yet, in order. They are among the newest."""
        found, missing = [], len(self.attempts) - len(self.finished)
        for attempt in reversed(self.attempts):
            if len(found) == missing:
                break
            if attempt.status is None:
                found.insert(0, attempt)
        return found

    def append(self, event: str, **fields) -> None:
        """Write an event and wait until it is on the disk. On a full disk the journal is left as it was."""
        entry = {"event": event, "time": round(time.time(), 3), **fields}
        if event not in ("run", "game"):  # which are the human's own settings, and compared later
            entry = scrubbed(entry)
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(handle).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(handle, line[written:])
            os.fsync(handle)
        except OSError:
            if written:
                os.ftruncate(handle, size)
            raise
        finally:
            os.close(handle)
        self.size = size + len(line)
        self._apply(entry)

    def _apply(self, event: dict) -> None:
        self.account.add(event)
        match event["event"]:
            case "run":
                self.run = event
            case "game":
                self.game = event["facts"]
            case "attempt":
                known = {field.name for field in dataclasses.fields(Attempt)}
                attempt = Attempt(**{name: value for name, value in event.items() if name in known})
                if attempt.number <= len(self.attempts):  # made anew
                    first = self.attempts[attempt.number - 1]
                    attempt.repairs = first.repairs
                    if first.commit in self._crashed:
                        self.mended[first.edit] = first
                        attempt.repairs += 1
                    attempt.tokens, attempt.dollars = (
                        plus(first.tokens, attempt.tokens),
                        plus(first.dollars, attempt.dollars),
                    )
                    self.attempts[attempt.number - 1] = attempt
                else:
                    self.attempts.append(attempt)
                self.refused.clear()
                self._spend(event)
            case "refused":
                self.refused.append(event)
                self._spend(event)
            case "waited" if event.get("tokens"):
                self._spend(event)
            case "crashed":
                self._crashed.add(event["commit"])
            case "trial":
                self.attempts[event["number"] - 1].runs.clear()
            case "moved":
                attempt = self.attempts[event["number"] - 1]
                attempt.commit, attempt.parent, attempt.edit = event["commit"], event["parent"], event["edit"]
            case "measured":
                self.attempts[event["number"] - 1].runs.append(event["score"])
                self.first_seed = event["seed"] if self.first_seed is None else self.first_seed
            case "start":
                self.agenda, self.keep_rule = event.get("agenda", ""), event.get("keep_rule", "")
                self.workers, self.gpus = event.get("workers") or 1, event.get("gpus")
            case "verified":
                self.verified.append(event)
            case "verdict":
                attempt = self.attempts[event["number"] - 1]
                for field in (
                    "status",
                    "score",
                    "memory_gb",
                    "reason",
                    "figures",
                    "seconds",
                    "holdout",
                    "noise",
                    "standing",
                ):
                    setattr(attempt, field, event.get(field))
                attempt.standing_runs = event.get("standing_runs") or 1
                self.finished.append(attempt)
                if attempt.status == "keep":
                    self.kept.append(attempt)

    def _spend(self, event: dict) -> None:
        if agent := event.get("agent"):
            self.spent_by.setdefault(agent, Spent()).add(event.get("tokens"), event.get("dollars"))

    @property
    def spent(self) -> Spent:
        """What all agents took."""
        total = Spent()
        for spent in list(self.spent_by.values()):  # the console asks from another thread
            for field in dataclasses.fields(Spent):
                setattr(total, field.name, getattr(total, field.name) + getattr(spent, field.name))
        return total

    def results(self) -> str:
        """The whole of results.tsv."""
        return HEADER + "".join(attempt.row() for attempt in self.finished)


def plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def scrubbed(value: object) -> object:
    """A value for the journal, without keys in its texts."""
    match value:
        case str():
            return keys.scrub(value)
        case dict():
            return {name: scrubbed(inner) for name, inner in value.items()}
        case list() | tuple():
            return [scrubbed(inner) for inner in value]
    return value


def read_journal(path: Path, start: int = 0) -> tuple[list[dict], int]:
    """(The events of a journal from a byte on, the byte behind them.) A last line that is cut off is none: it stays in the file."""
    events, end = [], start
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                events.append(json.loads(line))
            except ValueError:
                if file.read(1):
                    file.seek(0)
                    number = file.read(end).count(b"\n") + 1
                    raise UserError(
                        f"{path} is damaged in line {number}, before its end; restore it from a "
                        "backup, or start another run with --tag NEW"
                    ) from None
                break
            end += len(line)
    return events, end


class Results:
    """results.tsv in the user's checkout: rebuilt from the journal at the start, then one line a verdict."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path, self.ledger = path, ledger
        self.behind = False  # rows are missing

    def require_ours(self, runs: Path) -> None:
        """Refuse to replace a results.tsv that follows from no journal below `runs`."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        journals = [self.ledger, *(Ledger(path.parent, repair=False) for path in sorted(runs.glob("*/journal.jsonl")))]
        if text and not any(ledger.results().startswith(text) for ledger in journals):
            raise UserError(
                f"{self.path} was not written by this loop, so it is left alone; move it away: "
                f"`mv {self.path.name} results-old.tsv`"
            )

    def rebuild(self) -> None:
        """Write the whole file, or leave it if it says the same already."""
        text = self.ledger.results()
        if not self.path.exists() or self.path.read_text(encoding="utf-8", errors="replace") != text:
            temporary = self.path.with_name(".results.tsv.part")
            try:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)

    def add(self, attempt: Attempt) -> None:
        if self.behind or not self.path.exists():
            self.rebuild()
            self.behind = False
            return
        self.behind = True
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(attempt.row())
        self.behind = False
