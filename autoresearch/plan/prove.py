"""Check a task: run every command once, run the baseline five times, and break each editable file once.

It uses the loop's own runner and sandbox, and a worktree in .autoresearch/.check/ that is removed at the end. It leaves
no run, tag or branch behind.
"""

import contextlib
import dataclasses
import posixpath
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path

import git

from autoresearch import UserError
from autoresearch.editable import among, inside, is_in, may_edit, words_in
from autoresearch.files import remove
from autoresearch.plan.draft import UNKNOWN, as_yaml
from autoresearch.plan.survey import language_of
from autoresearch.record.journal import take
from autoresearch.record.runs import RUNS, make_folder
from autoresearch.repo import RunRepo
from autoresearch.runner import GUARD, HOLDOUT, SCORE, TRAIN, Job, Measurement
from autoresearch.runner.denied import REFUSED
from autoresearch.runner.local import Local, seats_of
from autoresearch.runner.logs import read_figures, read_tail
from autoresearch.task import NOTHING, Task
from autoresearch.text import clean, count, duration, one_line

FOLDER = ".check"  # below RUNS; no tag begins with a dot
BASELINES = 5
NIGHT = 8 * 3600.0  # seconds
SEED = 42
BREAKING = 300.0  # seconds that trials of broken files, or without some, may take; there is at least one
# A syntax error in every language and data format.
BROKEN = b"]})> broken on purpose by autoresearch, to see who notices <({[\n"
# How test runners report the number of tests: cargo, unittest, pytest, node, mocha, Maven; go, ctest, PHPUnit.
TESTS = re.compile(
    r"\b(?:ran|running) (\d+) tests?\b|\b(\d+) (?:passed|passing)\b|\btests (\d+)\b|\btests run: (\d+)", re.IGNORECASE
)
NO_TESTS = re.compile(r"\bno (?:tests? (?:were )?(?:ran|run|found|files|executed)|tests to run)\b", re.IGNORECASE)
PASSED = re.compile(r"^ok\s(?!.*\[no test)", re.MULTILINE)  # go, and the Test Anything Protocol
REPEATS = ((5, 0.03), (3, 0.015))  # runs per trial, and the noise (as a share of the score) above which they pay off
MOST_TRIED = 4  # names of data without which `train` is tried
NOISY = 0.1  # noise, as a share of the score, above which a night finds little

Say = Callable[[str, str], None]  # a line, and its style


@dataclasses.dataclass
class Once:
    """The result of running every command once."""

    measured: Measurement
    checked: Measurement  # guard and holdout
    figures: Mapping[str, float]  # all that the score command printed
    output: str = ""  # SHA-256 of the output of the scorer's workload


@dataclasses.dataclass
class Proof:
    """The result of the check. Without faults the task is usable."""

    faults: list[str] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)  # of the baseline
    noise: float = 0.0  # their standard deviation
    seconds: float = 0.0  # of the slowest whole trial
    hidden: list[str] = dataclasses.field(default_factory=list)  # what `score` reads and `train` can do without
    unused: list[str] = dataclasses.field(default_factory=list)  # editable files that nobody named and nothing uses

    def has(self, score: float) -> bool:
        """Whether a score could be the baseline's."""
        center = statistics.fmean(self.scores)
        return abs(score - center) <= max(4 * self.noise, 1e-9 * abs(center))


class Workbench:
    """Where a task is checked, in the user's repository. say: prints a line."""

    def __init__(self, repository: git.Repo, root: Path, confined: bool, output, say: Say) -> None:
        self.root, self.confined, self.output, self.say = root, confined, output, say
        self.folder = root / RUNS / FOLDER
        self.repo = RunRepo(repository, "check", self.folder)
        self.number = 0  # of the last trial

    @contextlib.contextmanager
    def opened(self) -> Iterator["Workbench"]:
        """A context with the workbench; afterwards it is removed. Raises UserError if another one is open."""
        make_folder(self.folder.parent)
        with open(self.folder.with_name("check.lock"), "a") as lock:
            try:
                take(lock)
            except BlockingIOError:
                raise UserError("another `plan` or `check` is running in this repository; wait until it ends") from None
            self.close()  # remove what a killed one left behind
            self.folder.mkdir()
            try:
                yield self
            finally:
                self.close()

    def close(self) -> None:
        remove(self.folder)
        with contextlib.suppress(git.GitError):
            self.repo.repository.git.worktree("prune")

    async def open(self, task: Task, base: str) -> Local:
        """A runner for the task on a commit, with its set-up done. Raises UserError."""
        settings = {"AUTORESEARCH_SEED": str(SEED)}
        seats = seats_of(None, 1)
        runner = Local(task, self.repo, base, self.folder, seats, settings, self.confined, self.output)
        if task.setup:
            self.say(f"setup     {task.setup}", "")
        await runner.open(lambda facts: None, lambda facts: None)
        return runner

    async def trial(self, runner: Local, files: Mapping[str, bytes], seed: int = SEED) -> tuple[str, Measurement]:
        """(Name, measurement) of training and scoring with these files in place of the committed ones."""
        self.number += 1
        job = Job(str(self.number), files, seed)
        return job.name, await runner.run(job, runner.seats[0])

    # -- every command once

    async def once(self, runner: Local, again: bool = False) -> Once:
        """Run every command, and print for each what it was, how long it took and what it found.

        again: print only failures, since the rest was printed before.
        """
        task = runner.task
        name, measured = await self.trial(runner, {})
        phases = [phase for phase in (TRAIN, SCORE) if getattr(task, phase) and phase in measured.seconds]
        figures = read_figures(runner.log_path(name).with_name(f"{SCORE if task.score else TRAIN}.log"))
        for phase in phases:
            failed = measured.reason if measured.failed == phase else ""
            if not failed and (again or task.train == NOTHING == getattr(task, phase)):
                continue
            scores = phase == (SCORE if task.score else TRAIN)
            found = f"{task.metric}: {measured.score:g}" if scores and measured.score is not None else "ok"
            if scores and task.metric == UNKNOWN and figures:
                failed, found = "", ", ".join(f"{name}: {number:g}" for name, number in figures.items())
            self.tell(runner, name, phase, measured.seconds[phase], failed, found)
        checked = Measurement()
        if measured.score is not None:
            checked = await runner.run(Job(name, {}, SEED, (GUARD, HOLDOUT)), runner.seats[0])
            for phase in (phase for phase in (GUARD, HOLDOUT) if phase in checked.seconds):
                failed = checked.reason if checked.failed == phase else ""
                if failed or not again:
                    self.tell(runner, name, phase, checked.seconds[phase], failed, "ok")
        printed = re.search(r"^output_sha256 ([0-9a-f]{64})$", runner.log(name, phases=(SCORE,)), re.MULTILINE)
        return Once(measured, checked, figures, printed[1] if printed else "")

    def tell(self, runner: Local, name: str, phase: str, seconds: float, failed: str, found: str) -> None:
        """Print the result of one command."""
        command = getattr(runner.task, phase)
        self.say(f"{phase:<10}{one_line(command, 200)}", "")
        self.say(f"{'':<10}{runner.program_of(command)}, {seconds:.1f} s: {failed or found}", "red" if failed else "")
        text = clean(read_tail(runner.log_path(name).with_name(f"{phase}.log"), 1 << 16))
        refused = dict.fromkeys(one_line(line, 160) for line in text.splitlines() if REFUSED.search(line))
        if phase == GUARD and not failed and ran_no_test(text):
            self.say(f"{'':<10}it ran no tests, so it guards little: name a command that does, with --guard", "yellow")
        if not failed:  # else the reason says so
            for line in list(refused)[:3]:
                self.say(f"{'':<10}perhaps the sandbox denied this: {line}", "yellow")
        if failed:
            for line in text.strip().splitlines()[-8:]:
                self.say(f"{'':<10}| {one_line(line, 160)}", "")

    # -- the noise

    async def baselines(self, runner: Local, first: Measurement, proof: Proof) -> bool:
        """Run the baseline BASELINES times, or until two scores are equal, and print what gain can be detected.

        Returns False if a run failed.
        """
        assert first.score is not None
        proof.scores, times = [first.score], [sum(first.seconds.values())]
        self.say(f"baseline  up to {BASELINES - 1} more times, about {duration((BASELINES - 1) * times[0])}", "")
        while len(proof.scores) < BASELINES and (len(proof.scores) != 2 or len(set(proof.scores)) == 2):
            _, measured = await self.trial(runner, {}, SEED + len(proof.scores))
            if measured.score is None:
                proof.faults.append(f"run {len(proof.scores) + 1} of the unchanged code failed: {measured.reason}")
                return False
            proof.scores.append(measured.score)
            times.append(sum(measured.seconds.values()))
        proof.noise, proof.seconds = statistics.stdev(proof.scores), max(times)
        self.say(f"{'':<10}{', '.join(f'{score:g}' for score in proof.scores)}", "")
        for line in noise_report(runner.task, proof):
            self.say(f"{'':<10}{line}", "")
        return True

    # -- does the score depend on the editable files?

    async def break_each(self, runner: Local, files: Mapping[str, bytes], named: Set[str], proof: Proof) -> None:
        """Break each editable file once: score or guard must notice.

        files: as committed. named: those of them that the owner named, and not only a pattern or the draft.
        """
        left, unnoticed = BREAKING, []
        for number, (path, content) in enumerate(files.items()):
            if left <= 0:
                names = list(files)[number:]
                self.say(f"breaking  {count(len(names), 'more file')} not tried: it would take too long", "yellow")
                files = {name: files[name] for name in list(files)[:number]}
                break
            broken = await self.break_file(runner, path, BROKEN + content, proof)
            left -= broken.seconds
            if broken.scored:  # PHP prints text that is no code, and a size grows
                emptied = await self.break_file(runner, path, b"", proof)
                left -= emptied.seconds
                broken = dataclasses.replace(emptied, noticed=emptied.noticed or broken.noticed)
            self.say(f"breaking  {path}: {broken.noticed or 'NOT NOTICED'}", "" if broken.noticed else "red")
            if broken.wins:
                proof.faults.append(
                    f"an empty {path} has a better score, and no guard fails: any deletion would be kept. Name a "
                    "command that needs this file, with `guard` in program.md or --guard COMMAND"
                )
            elif not broken.noticed:
                unnoticed.append(path)
        unused = [path for path in unnoticed if path not in named]
        if unused and len(unused) < len(files):
            self.say(f"{'':<10}no command uses {', '.join(unused)}: an edit there cannot change the score", "yellow")
            unnoticed = [path for path in unnoticed if path in named]
            proof.unused = unused
        for path in unnoticed:
            proof.faults.append(
                f"{path} can be broken, and neither score nor guard notices: the score does not depend on that file. "
                "Perhaps no command uses it, or they use another copy (an installed package, or an editable install of "
                "your checkout). Run the code from the worktree, which is the current folder of every command, or "
                "choose another file"
            )

    async def break_file(self, runner: Local, path: str, content: bytes, proof: Proof) -> "Broken":
        """Run with this content of a file."""
        task = runner.task
        name, measured = await self.trial(runner, {path: content})
        took = sum(measured.seconds.values())
        if measured.score is None:
            void = measured.reason.startswith("void")  # files were written that the baseline does not write
            return Broken("" if void else f"noticed by {'score' if measured.failed == SCORE else 'train'}", took)
        if task.guard:
            checked = await runner.run(Job(name, {}, SEED, (GUARD,)), runner.seats[0])
            took += sum(checked.seconds.values())
            if checked.reason:
                return Broken("noticed by the guard", took)
        gain = (statistics.fmean(proof.scores) - measured.score) * (1 if task.lower_is_better else -1)
        moved = not proof.has(measured.score)
        return Broken(f"noticed by the score, {measured.score:g}" * moved, took, True, moved and gain > 0)

    # -- can the edited code read what it is compared with?

    async def spare(self, runner: Local, base: str, proof: Proof) -> None:
        """Find out which data of the score command `train` does not need, and say what an edit could read."""
        task, committed = runner.task, self.repo.committed(base)
        named = compared(task, committed, lambda path: self.repo.read(base, [path])[path].decode(errors="replace"))
        unneeded, most = [], max(1, min(MOST_TRIED, int(BREAKING / max(proof.seconds, 1.0))))
        tried = named[:most] if task.train != NOTHING else []
        if tried:
            self.say(f"hidden    does `train` need what `score` names? {count(len(tried), 'trial')} without it", "")
        for name in tried:
            runner.task = dataclasses.replace(task, hidden=(*task.hidden, *unneeded, name))
            _, measured = await self.trial(runner, {})
            if measured.score is not None and proof.has(measured.score):
                unneeded.append(name)
        runner.task = task
        proof.hidden = [posixpath.relpath(name, task.folder or ".") for name in unneeded]
        if proof.hidden:
            listed = ", ".join(proof.hidden)
            self.say(f"hidden    {listed}: `score` names it, and `train` does not need it", "")
            self.say(f"{'':<10}`hidden: {as_yaml(proof.hidden)}` keeps an edit from reading it", "")
        if others := [posixpath.relpath(name, task.folder or ".") for name in named if name not in unneeded]:
            where = "score" if task.train == NOTHING else "train"
            self.say(
                f"hidden    nothing of {', '.join(others[:MOST_TRIED])}, which edited code in `{where}` can read",
                "yellow",
            )
            self.say(
                f"{'':<10}if it holds answers, let `train` write results without it, and `score` compare", "yellow"
            )


@dataclasses.dataclass(frozen=True)
class Broken:
    """The result of breaking a file."""

    noticed: str  # what noticed it; empty: nothing
    seconds: float
    scored: bool = False  # there is a score, and the guard passes
    wins: bool = False  # and the score is better than the baseline's


def compared(task: Task, committed: Set[str], read: Callable[[str], str]) -> list[str]:
    """Data that the score command names, or a script that it runs: files, folders and globs without code in them.

    What a score compares results with may be among it. committed: files of the repository. read: the text of one.
    """
    names = [inside(task.folder, word) for word in words_in(task.score)]
    for script in [path for path in names if path in committed and language_of(path)]:
        for literal in re.findall(r"[\"'`]([^\"'`\n]+)[\"'`]", read(script)):
            names += [inside(folder, literal) for folder in (task.folder, posixpath.dirname(script))]

    def is_data(name: str) -> bool:
        files = [path for path in committed if is_in([name], path)]
        code = any(language_of(path) or may_edit(task.editable, path) or task.hides(path) for path in files)
        return bool(files) and not code

    return [name for name in dict.fromkeys(names) if name not in task.hidden and is_data(name)]


def ran_no_test(printed: str) -> bool:
    """Whether a test runner reported that it ran no tests; False if it reported no number."""
    counts = [int(number) for groups in TESTS.findall(printed) for number in groups if number]
    return not any(counts) and not PASSED.search(printed) and bool(counts or NO_TESTS.search(printed))


def repeats_for(proof: Proof) -> int:
    """How often a trial should measure a time, given the baseline's noise (bench/in_turn.py)."""
    center = abs(statistics.fmean(proof.scores)) if proof.scores else 0.0
    return next((runs for runs, least in REPEATS if center and proof.noise > least * center), 1)


def noise_report(task: Task, proof: Proof) -> Sequence[str]:
    """What the noise of a baseline means for a night."""
    center = abs(statistics.fmean(proof.scores))
    trials = max(1, int(NIGHT / max(proof.seconds, 0.5)))
    night = f"a trial takes {duration(proof.seconds)}: at most {trials:,} in a night of 8 hours, plus the agent's time"
    if not proof.noise:
        return ["the same each time: any gain can be detected", night]
    visible = 2 * proof.noise * (1 + 1 / BASELINES) ** 0.5  # one run against the mean of the baseline's runs
    share = f" ({visible / center:.1%})" if center else ""
    deviation = f"noise {proof.noise:.2g} (standard deviation)"
    lines = [f"{deviation}: one run detects a gain above {visible:.2g}{share}", night]
    if center and proof.noise > NOISY * center:
        lines.append("this is noisy: let the score command measure longer or more often, on a quieter machine")
    return lines


async def prove(
    bench: Workbench, task: Task, base: str, runner: Local, once: Once, proposed: Set[str] = frozenset()
) -> Proof:
    """Check a task whose commands were run once. proposed: editable files that its owner did not name."""
    proof = Proof()
    if once.measured.score is None:
        proof.faults.append(f"the unchanged code has no score: {once.measured.reason}")
        return proof
    if once.checked.reason:
        proof.faults.append(f"the {once.checked.failed} fails on the unchanged code: {once.checked.reason}")
    if await bench.baselines(runner, once.measured, proof):
        names = among(task.editable, bench.repo.committed(base))
        await bench.break_each(runner, bench.repo.read(base, names), {*task.editable} - proposed, proof)
        await bench.spare(runner, base, proof)
    return proof
