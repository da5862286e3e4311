"""Draft a task from a repository and the wishes of its owner: the front matter, the agenda, and a scorer.

The scorer is a file in the repository that no experiment may edit. It runs the workload in a separate process, so that
nothing the edited code prints can be taken for the score.
"""

import dataclasses
import json
import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autoresearch import UserError
from autoresearch.plan.survey import Survey, files_for, kind_of
from autoresearch.program import check_task
from autoresearch.task import Task

SCORER = "autoresearch_score.py"
UNKNOWN = "unknown_metric"  # before the score command has run
FIRST_RUNS = "\nRUNS = 2\n"  # of the scorer, before it is known how long one takes
GOAL = "What is to be improved? (a sentence, such as: make parsing faster)"
MOST_FILES = 3  # that are proposed as editable without being asked for
FALLING = re.compile(r"second|time|_m?s$|latency|bytes|size|memory|_[kmg]b$|loss|err|rmse|mae|mse|perplexity|bpb|lines")
RISING = re.compile(r"accuracy|score|f1|auc|recall|precision|throughput|per_sec|ops|rate|coverage|r2|reward|speed")

TIME = '''"""The score: seconds of processor time that the command below takes, the least of several runs.

Made by `autoresearch plan`; yours to change, until the first experiment. Experiments cannot.
"""

import ctypes
import hashlib
import os
import resource
import subprocess
import sys
import time

COMMAND = {command}
RUNS = 2
GRACE = 30  # seconds in which what the command has left running must end
EXPECTED = None  # SHA-256 of what the command prints; None: not compared
PYTHON = os.path.dirname(sys.executable)  # `python` is this one, without the detour that a version manager takes
ENVIRONMENT = {{**os.environ, "PATH": os.pathsep.join((PYTHON, os.environ.get("PATH", os.defpath)))}}
if sys.platform == "linux":  # what the command leaves becomes a child of this process: else its time would not count
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def run():
    """(Seconds of processor time, seconds on the clock, a hash of the output) of one run."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    answer = subprocess.run(COMMAND, shell=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True)
    wall = time.perf_counter() - began
    wait_for_the_rest()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if answer.returncode:
        sys.stderr.buffer.write((answer.stdout + answer.stderr)[-4000:])
        sys.exit(f"exit code {{answer.returncode}} of: {{COMMAND}}")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, wall, hashlib.sha256(answer.stdout).hexdigest()


def wait_for_the_rest():
    """Wait for what the command has left running: the kernel counts the time of those that were waited for."""
    ends = time.monotonic() + GRACE
    try:
        while time.monotonic() < ends:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.01)
    except ChildProcessError:
        return
    sys.exit(f"it left a process running, whose time cannot be counted: {{COMMAND}}")


runs = [run() for _ in range(RUNS)]
printed = {{output for _, _, output in runs}}
if EXPECTED and printed != {{EXPECTED}}:
    sys.exit(f"the output is not what it was: {{COMMAND}}")
if len(printed) == 1:
    print("output_sha256", *printed)
print(f"wall_seconds: {{min(wall for _, wall, _ in runs):.6f}}")
print(f"seconds: {{min(seconds for seconds, _, _ in runs):.6f}}")
'''

SIZE = '''"""The score: bytes of what the build makes. Made by `autoresearch plan`; yours to change, until the first
experiment. Experiments cannot.
"""

import glob
import os
import sys

PATTERN = {pattern}

files = [path for path in glob.glob(PATTERN, recursive=True) if os.path.isfile(path)]
if not files:
    sys.exit(f"there is no {{PATTERN}}")
print("bytes:", sum(os.path.getsize(path) for path in files))
'''


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the owner wants; None: not specified."""

    goal: str = ""
    edit: Sequence[str] = ()
    setup: str | None = None
    train: str | None = None
    score: str | None = None  # a command that prints the metric
    time: str | None = None  # a command whose time is the score
    size: str | None = None  # a file, or a pattern, whose size is the score
    metric: str | None = None
    direction: str | None = None
    guard: str | None = None  # empty: none
    time_limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Draft:
    """A task that is to be checked, and the additional files that it needs."""

    goal: str
    settings: Mapping[str, object]  # of `task`
    files: Mapping[str, str]  # text by path, from the folder of program.md
    notes: Sequence[str] = ()  # what was chosen by default

    def task(self, path: Path, folder: str) -> Task:
        """The task, as the loop reads it. path: of program.md. Raises UserError."""
        return check_task(dict(self.settings), path, folder)

    def without(self, name: str, note: str) -> "Draft":
        """The same without a setting."""
        kept = {key: value for key, value in self.settings.items() if key != name}
        return dataclasses.replace(self, settings=kept, notes=[*self.notes, note])

    def changed(self, **settings: object) -> "Draft":
        return dataclasses.replace(self, settings={**self.settings, **settings})

    def tuned(self, runs: int, output: str) -> "Draft":
        """The same, with a scorer of so many runs that requires this output of the workload. output: its SHA-256; empty
        if the output was not the same each time."""
        text = self.files[SCORER].replace(FIRST_RUNS, f"\nRUNS = {runs}\n")
        if output:
            text = text.replace("\nEXPECTED = None ", f"\nEXPECTED = {output!r} ")
        return dataclasses.replace(self, files={**self.files, SCORER: text})

    @property
    def is_tuned(self) -> bool:
        return FIRST_RUNS not in self.files.get(SCORER, "")

    def program(self) -> str:
        """The text of program.md."""
        rows = "\n".join(f"  {name}: {as_yaml(value)}" for name, value in self.settings.items())
        metric, direction = self.settings["metric"], self.settings.get("direction", "minimize")
        better = "Lower" if direction == "minimize" else "Higher"
        goal = self.goal.strip().rstrip(".") or f"Improve {metric}"
        guard = self.settings.get("guard")
        guarded = f"\n- `{guard}` must succeed, or nothing is kept." if guard else ""
        behaviour = "- Behaviour stays: what callers get is what they got before."
        if SCORER not in self.files:
            behaviour = "- But for what the goal asks for, what callers get is what they got before."
        scorer = f" ({SCORER} is the scorer: read what it runs)" if SCORER in self.files else ""
        return f"""---
task:
{rows}
---
# Agenda

{goal[0].upper()}{goal[1:]}. {better} `{metric}` is better, and nothing else counts{scorer}.

## What holds for every edit

- One idea an experiment, so that its score says something about the idea.
{behaviour}{guarded}
- The gain must be real for any input: nothing that knows the benchmark, no results kept from one run to the next.
- Simpler is better: deleting code at an equal score is welcome.

## Where to look first

Measure before you guess: where does the time, the size or the error come from? Begin with the largest part.
"""


def as_yaml(value: object) -> str:
    """A value of the front matter. JSON is YAML; plain words need no quotes."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_yaml, value))}]"
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")  # which are no text in YAML
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z./][\w ./=+-]*\w", value) and value.lower() not in words
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


Ask = Callable[[str, str | None, Sequence[str]], str]  # question, what is proposed, choices: the answer


def draft(found: Survey, taken: set[str], wishes: Wishes, ask: Ask) -> Draft:
    """Make a task of what is known, and ask for what is not. Raises UserError.

    found: of the folder that program.md will stand in. taken: names that no file may be given.
    """
    notes: list[str] = []
    goal = wishes.goal or ask(GOAL, None, ())
    made, scored = scoring(found, wishes, goal, ask, notes)
    editable = list(wishes.edit) or editable_of(found, goal, ask, notes)
    settings: dict[str, object] = {"editable": editable}
    if setup := wishes.setup if wishes.setup is not None else found.setup:
        settings["setup"] = setup
    build = wishes.train if wishes.train is not None else scored.get("train", found.build)
    if build:
        settings["train"] = build
    settings |= {name: scored[name] for name in ("score", "metric", "direction") if name in scored}
    guard = wishes.guard if wishes.guard is not None else found.tests
    if guard:
        settings["guard"] = guard
    if wishes.time_limit:
        settings |= {"time_limit": wishes.time_limit, "score_limit": wishes.time_limit}
    if clash := sorted(set(made) & taken):
        raise UserError(f"{clash[0]} exists already; remove it, or use --score with a command that prints the number")
    return Draft(goal, settings, made, notes)


def scoring(
    found: Survey, wishes: Wishes, goal: str, ask: Ask, notes: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """(Files to write, settings of the score) for what is to be measured."""
    kind = "score" if wishes.score else "time" if wishes.time else "size" if wishes.size else kind_of(goal)
    if kind is None:
        kind = ask("What is measured? (--time, --size or --score)", None, ("time", "size", "score"))
    if kind == "score":
        command = wishes.score or ask("Which command prints the number, as `name: number`? (--score COMMAND)", None, ())
        metric = wishes.metric or UNKNOWN  # found when it has run
        return {}, {"score": command, "metric": metric} | direction_of(wishes, metric)
    if kind == "size":
        pattern = wishes.size or ask(
            "Whose bytes are counted? (a file, or a pattern such as dist/*.js: --size FILE)", None, ()
        )
        return {SCORER: SIZE.format(pattern=repr(pattern))}, scored_by(wishes, "bytes")
    command = wishes.time
    if command is None:
        known = [*found.benchmarks, *([found.tests] if found.tests else [])]
        proposed = known[0] if known else None
        command = ask(
            "Which command is timed? (it should do the work that should become faster: --time COMMAND)", proposed, known
        )
        if command == found.tests:
            notes.append("the tests are timed: a workload of your own would be better (--time COMMAND)")
        elif command in known:
            notes.append(f"timed: {command}; it must do a fixed amount of work, not repeat it until a time is up")
    if wishes.train is None and (program := next((key for key, by in found.programs.items() if by == command), None)):
        raise UserError(f"`{command}` only builds {program}, so its time says nothing about the code: --time {program}")
    built = found.programs.get(command.partition(" ")[0])
    if found.search and found.search.partition("=")[0] not in command:
        command = f"{found.search} {command}"
    made = {SCORER: TIME.format(command=repr(command))}
    return made, scored_by(wishes, "seconds") | ({"train": built} if built else {})


def scored_by(wishes: Wishes, metric: str) -> dict[str, str]:
    return {"score": f"python {SCORER}", "metric": metric} | direction_of(wishes, metric)


def direction_of(wishes: Wishes, metric: str) -> dict[str, str]:
    if wishes.direction:
        return {"direction": wishes.direction}
    if RISING.search(metric.lower()):
        return {"direction": "maximize"}
    return {"direction": "minimize"} if FALLING.search(metric.lower()) else {}


def editable_of(found: Survey, goal: str, ask: Ask, notes: list[str]) -> list[str]:
    """Which files may change: those that the goal names, else the largest."""
    named = files_for(goal, found.sources)[:MOST_FILES]
    proposed = named or list(found.sources[:1])
    listed = list(dict.fromkeys([*proposed, *found.sources]))[:12]
    question = "Which files may an experiment change? (paths, separated by spaces: --edit PATH)"
    answer = ask(question, " ".join(proposed) or None, listed)
    chosen = [posixpath.normpath(path) for path in shlex.split(answer)]
    if chosen == proposed:
        why = "the goal names them" if named else "the largest source file"
        notes.append(f"editable: {', '.join(chosen)} ({why}; choose others with --edit PATH)")
    return chosen
