"""The task: which files may be edited, what is run, and what is scored. program.py reads it from program.md."""

import ast
import dataclasses
import difflib
import hashlib
import os
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

from autoresearch import preflight
from autoresearch.editable import among, inside, is_glob, is_in, may_edit, words_in
from autoresearch.preflight import LARGEST_FILE, LARGEST_LITERAL

NOTHING = "true"  # the `train` command of a task that neither trains nor builds
COMMANDS = ("train", "score", "guard", "holdout", "setup", "describe")
# Parts of a metric's name that mean that it is a time or a speed, so that other work on the machine affects it.
TIMES = re.compile(
    r"(?:^|[^a-z])(?:s|ms|us|ns|secs?|seconds?|times?|latency|runtime|duration|speed|throughput|[fqr]ps|ops)(?:[^a-z]|$)"
)
MOST_REPEATS = 100


@dataclasses.dataclass(frozen=True)
class Task:
    """What a trial runs. Commands are split as a shell splits words and run in the worktree."""

    editable: tuple[str, ...]  # paths from the repository's root
    train: str
    metric: str
    direction: str = "minimize"
    score: str | None = None  # prints the metric; without it `train` does
    referee: bool = False  # `score` is trusted and starts beside `train`, joined to it by a socket (trial.py)
    guard: str | None = None  # must end with exit code 0 before a keep
    holdout: str | None = None  # the same, and what it measures is recorded; no decision reads it
    setup: str | None = None  # run once, before the first trial
    describe: str | None = None  # prints what the run would use, as a JSON object: see Facts
    line_price: float = 0.0  # gain that each added line of code must bring
    preflight: bool = False  # edits keep this project's own contract (preflight.py)
    imports: tuple[str, ...] = ()  # and may import these modules besides
    largest_file: float = LARGEST_FILE  # KB of an editable file; or as long as the human's
    largest_literal: float = LARGEST_LITERAL  # KB of a literal, where `preflight` is on
    readable: tuple[str, ...] = ()  # files and folders outside the worktree that the commands need
    writable: tuple[str, ...] = ()  # and those that they write to, besides their own output folder
    time_limit: float = 600.0  # seconds for `train`; counted on top of time_budget where there is one
    score_limit: float = 600.0  # seconds for `score`, and for `guard` and `holdout`
    memory_limit: float | None = None  # GiB of host memory for each command; default: nine tenths of what is free
    disk_limit: float = 20.0  # GiB that a trial may leave in its folder
    context: tuple[str, ...] = ()  # files, folders and globs that agents are shown, and may not edit
    hidden: tuple[str, ...] = ()  # files, folders and globs that are not there while `train` runs
    env: tuple[str, ...] = ()  # variables that the commands see: NAME, as the user has it, or NAME=value
    link: tuple[str, ...] = ()  # untracked paths of the user's checkout that are linked into the worktree, to be read
    also: dict = dataclasses.field(default_factory=dict)  # other figures that are shown, by name: {max, min, direction}
    range: tuple[float, ...] | None = None  # the least and the largest score that there can be
    repeats: int = 1  # how often the command that prints the metric runs; the score is the median
    network: str = ""  # loopback: servers on this machine that the commands start themselves
    folder: str = ""  # of program.md, from the repository's root: commands run there

    @property
    def lower_is_better(self) -> bool:
        return self.direction == "minimize"

    @property
    def is_timed(self) -> bool:
        """Whether the metric is a time or a speed, judging by its name."""
        return not self.referee and bool(TIMES.search(self.metric.lower()))

    @property
    def holdout_metric(self) -> str:
        """What `holdout` prints the score as."""
        return f"holdout_{self.metric.removeprefix('val_')}"

    def hides(self, path: str) -> bool:
        """Whether a file is one of `hidden`."""
        return "." in self.hidden or is_in(self.hidden, path)

    def absent(self, committed: Set[str], new: Set[str], root: Path) -> str | None:
        """What is wrong with the files that the task names, or None. Trials see only what is committed.

        committed, new: files of the repository, and those in the checkout that git neither has nor ignores. root: the
        checkout.
        """
        for name in self.editable:
            if name in committed:
                continue
            if is_glob(name):
                if any(may_edit([name], path) for path in committed):
                    continue
                return f"`editable` in program.md: {name} fits no committed file"
            if (root / name).is_dir():
                return f"`editable` in program.md names the folder {name}; name its files, or write {name}/**/*.py"
            if (root / name).exists():
                return f"`editable` in program.md names {name}, which is not committed; {how_to_commit(name)}"
            alike = [path for path in committed if path.endswith(f"/{posixpath.basename(name)}")]
            alike = alike or difflib.get_close_matches(name, committed, 1)
            meant = f"; did you mean {min(alike, key=len)}?" if alike else ""
            return f"`editable` in program.md names {name}, and there is no such file in {root}{meant}"
        if both := [path for path in among(self.editable, committed) if self.hides(path)]:
            return f"`hidden` in program.md names {both[0]}, which `editable` names: no file can be both"
        for command in COMMANDS:
            for word in words_in(getattr(self, command)):
                if (path := inside(self.folder, word)) in new - committed:
                    return f"`{command}` in program.md names {word}, which is not committed; {how_to_commit(path)}"
        return None

    def beyond(self, figures: Mapping[str, float], baseline: Mapping[str, float]) -> str | None:
        """Which limit of `also` figures are beyond, or None. baseline: its figures, which percentages refer to."""
        for name, limits in self.also.items():
            if (value := figures.get(name)) is None:
                return f"no figure {name} was printed, which `also` in program.md names"
            for end, sign in (("max", 1), ("min", -1)):
                limit = limits.get(end)
                if isinstance(limit, str):
                    limit = baseline.get(name, value) * (1 + float(limit.strip(" %")) / 100)
                if limit is not None and sign * (value - limit) > 1e-9 * abs(limit):
                    return f"{name} is {value:g}, and {'at most' if sign > 0 else 'at least'} {limit:g} is allowed"
        return None

    def others(self, figures: Mapping[str, float], baseline: Mapping[str, float]) -> str:
        """The figures of `also` in words, each beside the baseline's."""
        known = {name: figures[name] for name in self.also if name in figures}
        parts = [
            f"{name} {value:g}" + (f" ({value / before - 1:+.1%})" if (before := baseline.get(name)) else "")
            for name, value in known.items()
        ]
        return ", ".join(parts)

    def objection(self, folder: Path, changed: list[str], originals: dict[str, bytes]) -> str | None:
        """Why an edit cannot be run, or None. Costs no trial: nothing of the edit is executed.

        folder: the worktree with the edit in it. changed: paths that differ from the champion. originals:
        the editable files as the human wrote them.
        """
        others = [path for path in changed if not may_edit(self.editable, path)]
        if others:
            return f"only {', '.join(self.editable)} may change, but the edit also touches {', '.join(others[:5])}"
        if hidden := [path for path in changed if self.hides(path)]:
            return f"`hidden` in program.md names {hidden[0]}: no edit can be there"
        if not changed:
            return f"nothing changed in {', '.join(self.editable)}"
        return self.fault(folder, originals, changed)

    def fault(self, folder: Path, originals: dict[str, bytes], changed: Sequence[str] = ()) -> str | None:
        """What is wrong with the editable files as they stand, or None. changed: files that may be new."""
        for name in among(self.editable, [*originals, *changed]):
            path = folder / name
            if name not in self.editable and not os.path.lexists(path):  # one of many may go
                continue
            if not path.is_file() or path.is_symlink():
                return f"{name} is missing or not a plain file"
            size, allowed = path.stat().st_size, max(1024 * self.largest_file, len(originals.get(name, b"")))
            if size > allowed:
                return (
                    f"{name} has {size / 1024:.0f} KB; {allowed / 1024:.0f} KB are allowed: data is no part of an edit "
                    "(`size` in the front matter of program.md can allow more)"
                )
            if path.suffix != ".py":
                continue
            try:
                source = path.read_bytes()
                tree = ast.parse(source, filename=name)
                if not self.preflight:
                    continue
                rules = (ast.parse(originals[name]), set(self.imports), self.largest_literal)
                if violation := preflight.violation(tree, *rules):
                    return f"{name}: {violation}"
                if too_much := preflight.brought_along(source, originals[name], self.largest_literal):
                    return f"{name}: {too_much}"
            except (SyntaxError, ValueError) as error:
                line = getattr(error, "lineno", None)
                where = f" (line {line})" if line else ""
                return f"{name} does not parse: {getattr(error, 'msg', error)}{where}"
            except (RecursionError, MemoryError):
                return f"{name} is nested too deeply to be read"
        return None


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a task's `describe` says of the game on this machine. All of it is optional."""

    profile: str | None = None
    device: str | None = None
    data: str | None = None
    note: str | None = None  # for the first screen
    machine: dict = dataclasses.field(default_factory=dict)  # name: what a reader of the results should know
    time_budget: float | None = None  # seconds of training
    seed: int | None = None
    game: str | None = None  # a hash of the prepared data; None before it is there
    noise: float | None = None  # the usual standard deviation of scores of identical code
    implausible_gain: float | None = None  # a larger one is believed only twice
    most_taken: float | None = None  # share of the machine that others may take of a trial more than of its champion
    readable: tuple[str, ...] = ()  # paths that trials need, besides the task's own
    hidden: tuple[str, ...] = ()  # paths that trials must not read

    def unlike(self, other: "Facts", but: Sequence[str] = ()) -> tuple[str, object, object] | None:
        """(Name, value here, value there) of the first fact by which scores do not compare with those of another game;
        None where they do. but: facts that may differ.
        """
        for name in ("profile", "data", "seed", "device", "time_budget", "game"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs and name not in but and (name, theirs) != ("game", None):  # data that are not there yet
                return name, ours, theirs
        return None

    @property
    def gpu(self) -> bool:
        """Whether the game is the one that needs a GPU."""
        return self.profile == "gpu"

    @classmethod
    def of(cls, said: object) -> "Facts":
        """The facts in a JSON object; what is not known is passed over. Raises ValueError for what has another form."""
        if not isinstance(said, dict):
            raise ValueError("not a JSON object")
        kinds = {"machine": dict, "noise": float, "implausible_gain": float, "time_budget": float, "seed": int}
        kinds |= {"most_taken": float, "readable": list, "hidden": list}
        facts: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if (value := said.get(field.name)) is None:
                continue
            kind = kinds.get(field.name, object)
            if not isinstance(value, int | float if kind is float else kind):
                raise ValueError(f"`{field.name}` is {value!r}")
            facts[field.name] = tuple(value) if isinstance(value, list) and kind is list else value
        return cls(**facts)


OWN_GAME = Task(
    editable=("train.py",),
    train="python train.py",
    metric="val_bpb",
    score="python -m autoresearch.referee score --wait --train train.py",
    referee=True,
    holdout="python -m autoresearch.referee score --split holdout --probe-all --train train.py",
    setup="python prepare.py",
    describe="python -m autoresearch.referee describe",
    line_price=0.001 / 20,
    preflight=True,
    time_limit=360.0,  # start-up, compiling and saving, on top of the budget
    score_limit=900.0,  # half a minute on an H100; a laptop's GPU takes minutes, and logits may travel through the host
)


class Judged(Protocol):
    """Whatever has a verdict."""

    @property
    def status(self) -> str | None: ...


@dataclasses.dataclass(frozen=True)
class Stages:
    """After how many verdicts without a keep an agent is told to change its ways; a keep begins anew."""

    refine: int = 3  # vary what nearly worked
    pivot: int = 5  # take another kind of change
    outside: int = 2  # pivots, after which to look outside

    def barren(self, attempts: Sequence[Judged]) -> int:
        """Verdicts since the last keep."""
        newest = enumerate(reversed(attempts))
        return next((number for number, attempt in newest if attempt.status == "keep"), len(attempts))

    def of(self, attempts: Sequence[Judged]) -> str:
        """The stage after these attempts: explore, refine, pivot or look outside."""
        barren = self.barren(attempts)
        if barren >= self.pivot + self.outside:
            return "look outside"
        return "pivot" if barren >= self.pivot else "refine" if barren >= self.refine else "explore"


def how_to_commit(path: str) -> str:
    path = shlex.quote(path)
    return f"trials see only committed files: `git add -f {path} && git commit -m 'Add {posixpath.basename(path)}'`"


def task_of(recorded: dict) -> Task:
    """The task that a journal holds."""
    known = {field.name for field in dataclasses.fields(Task)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items()}
    return Task(**{name: value for name, value in values.items() if name in known})


def edit_hash(sources: dict[str, bytes]) -> str:
    """Names an edit by what the files do: equal for edits that differ in comments, docstrings and layout alone."""
    return contents_hash(
        {name: as_plain(name, source).encode(errors="surrogateescape") for name, source in sources.items()}
    )


def contents_hash(sources: dict[str, bytes]) -> str:
    """Names the contents of files, byte by byte."""
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(f"{name} {len(sources[name])}\n".encode() + sources[name])
    return digest.hexdigest()[:16]


def code_lines(sources: dict[str, bytes]) -> int:
    """Lines of code in files. Of Python: without comments, docstrings and blank lines, one statement a line."""
    return sum(bool(line.strip()) for name, source in sources.items() for line in as_plain(name, source).splitlines())


def as_plain(name: str, source: bytes) -> str:
    """A file for comparison: of Python the plain code, of all else, and of what does not parse, the text itself."""
    try:
        python = name.endswith(".py") and len(source) <= 1024 * LARGEST_FILE  # more would take minutes
        return plain_code(source) if python else source.decode(errors="surrogateescape")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source.decode(errors="surrogateescape")


def plain_code(source: bytes) -> str:
    """Python without comments and docstrings, laid out in one way."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [
                item for item in body if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
            ]
            if not body and not isinstance(node, ast.Module):
                body.append(ast.Pass())
    return ast.unparse(tree)
