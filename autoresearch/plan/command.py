"""`plan` and `check`: set up a task in the repository around the current folder, or check the existing one."""

import dataclasses
import hashlib
import math
import os
import posixpath
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from autoresearch import Stopped, UserError
from autoresearch.agents.choice import AgentOptions, make_agents
from autoresearch.limits import StopRequest
from autoresearch.options import Check, Plan
from autoresearch.plan.draft import GOAL, SCORER, UNKNOWN, Draft, Wishes, direction_of, draft
from autoresearch.plan.prove import Once, Proof, Workbench, prove, repeats_for
from autoresearch.plan.survey import Survey, survey
from autoresearch.plan.workload import draft_workload, workload_of
from autoresearch.program import is_own_game, program_of, read_task
from autoresearch.record.runs import root_of
from autoresearch.repo import open_repository
from autoresearch.runner import GUARD, SCORE, TRAIN, Measurement
from autoresearch.runner.local import choose_confinement, sandbox_in_words
from autoresearch.task import how_to_commit
from autoresearch.text import clean, duration, to_type
from autoresearch.views.console import Console

SHARE = re.compile("accuracy|precision|recall|f1|auc|coverage|rate")  # figures that are often shares of one
RUNS = ((5, 2.0), (3, 10.0), (1, math.inf))  # of the scorer, for a workload of less than so many seconds
NOTHING_PRINTED = hashlib.sha256(b"").hexdigest()
START = 0.2  # seconds that many programs take to start
SHORTEST_LIMIT = 60  # seconds that a command may take, whatever it took when it was proved
ROOM = 10  # times longer than then


async def run_check(options: Check) -> int:
    """Check the task of program.md. Exit code 1: it failed."""
    console = Console(options.plain)
    root = root_of(Path.cwd())
    repository = open_repository(root)
    program = program_of(root, Path.cwd())
    task = read_task(program, root)
    bench = Workbench(repository, root, choose_confinement(options.sandbox, root), console.output, console.line)
    base = bench.repo.head()
    if fault := task.absent(bench.repo.committed(base), bench.repo.new(), root):
        raise UserError(fault)
    console.line(f"{program}, on {base[:7]}; {sandbox_in_words(bench.confined)}")
    if edited := bench.repo.uncommitted(task.editable):
        console.line(f"{', '.join(edited)} has uncommitted changes, which are ignored here", "yellow")

    async def work() -> Proof:
        runner = await bench.open(task, base)
        return await prove(bench, task, base, runner, await bench.once(runner))

    with bench.opened():
        proof = await StopRequest(console.line).unless_asked(work())
    say_faults(console, proof)
    if not proof.faults:
        console.line(f"it works. Start with: {to_type()}", "green")
    return 1 if proof.faults else 0


async def run_plan(options: Plan) -> int:
    """Write a program.md that passed its check. Exit code 1: there is none."""
    console = Console(options.plain)
    root = root_of(Path.cwd())
    repository = open_repository(root)
    folder = Path.cwd().resolve().relative_to(root).as_posix()
    folder = "" if folder == "." else folder
    program = Path.cwd() / "program.md"
    if is_own_game(root):
        raise UserError(f"this repository has its own game and needs no plan. Start with: {to_type()}")
    if program.exists() and not options.force:
        raise UserError(
            f"there is a program.md here; `{to_type('check')}` checks it, `{to_type('plan --force')}` replaces it"
        )
    bench = Workbench(repository, root, choose_confinement(options.sandbox, root), console.output, console.line)
    inside = f"{folder}/" if folder else ""
    committed = bench.repo.committed(bench.repo.head())
    files = {path.removeprefix(inside) for path in committed if path.startswith(inside)}
    sizes = {path: (Path.cwd() / path).stat().st_size for path in files if (Path.cwd() / path).is_file()}
    found = survey(sizes, lambda path: read(Path.cwd() / path) if path in sizes else "")
    for name, text in found.lines().items():
        console.line(f"{name:<11}{text}")
    wishes = Wishes(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Wishes)})
    ask = Asker(options.yes)
    drafted: dict[str, str] = {}
    if options.agent and not (wishes.time or wishes.size or wishes.score):
        goal = wishes.goal or ask(GOAL, None)
        drafted, wording = await workload_by(options, bench, found, goal, folder, console)
        if ask("Is this the work that should become faster?", "yes", ("yes", "no")) != "yes":
            raise UserError("the workload was rejected: name one with --time COMMAND")
        if (
            wording
            and ask("Does this say what you want? (if not, only your own words are used)", "yes", ("yes", "no"))
            == "yes"
        ):
            goal = f"{goal.strip().rstrip('.')}. {wording}"
        wishes = dataclasses.replace(wishes, goal=goal, time=workload_of(found)[1])
    taken = files - {SCORER} if options.force else {name for name in {*files, SCORER} if os.path.lexists(name)}
    sketch = draft(found, taken, wishes, ask)
    sketch = dataclasses.replace(sketch, files={**sketch.files, **drafted})
    for note in sketch.notes:
        console.line(f"note       {note}", "yellow")
    if edited := bench.repo.uncommitted(sketch.task(program, folder).editable):
        console.line(f"note       {', '.join(edited)} has uncommitted changes, which are ignored here", "yellow")
    console.line(f"sandbox    {sandbox_in_words(bench.confined)}")

    async def work() -> tuple[Draft, Proof]:
        return await proved(bench, sketch, program, folder, wishes, ask)

    with bench.opened():
        sketch, proof = await StopRequest(console.line).unless_asked(work())
    if proof.faults:
        console.line("\n" + sketch.program().partition("\n# ")[0])
        say_faults(console, proof)
        chosen = "" if wishes.time or wishes.score or wishes.size else "time another command with --time COMMAND, or "
        console.line(f"nothing was written. To change the plan: {chosen}see {to_type('plan --help')}", "red")
        return 1
    program.write_text(sketch.program())
    for name, text in sketch.files.items():
        (Path.cwd() / name).write_text(text)
    console.line(f"\n{sketch.program()}")
    written = " ".join(["program.md", *sketch.files])
    console.line(f"it works, and is written to {written}. Read it, then type:", "green")
    console.line(f"  git add -f {written} && git commit -m 'Set up autoresearch' && {to_type()}")
    return 0


async def workload_by(
    options: Plan, bench: Workbench, found: Survey, goal: str, folder: str, console: Console
) -> tuple[dict[str, str], str]:
    """Let an agent draft a workload, and show it. Returns ({its path: its text}, the agent's wording of the goal).

    Raises UserError.
    """
    name, _ = workload_of(found)
    if os.path.lexists(name) and not options.force:
        raise UserError(f"{name} exists already; remove it, or use --time COMMAND")
    said = AgentOptions(options.agent or "", options.model, options.base_url, command=options.agent_command)
    (agent, *_), description = make_agents(said)
    console.line(f"workload   drafted by {description}")
    with bench.opened():
        bench.repo.reset(bench.repo.scratch, bench.repo.head())
        work = draft_workload(agent, found, goal, bench.repo.scratch / folder, bench.folder / "agent")
        text, wording = await StopRequest(console.line).unless_asked(work)
    console.line(f"\n--- {name}\n{clean(text)}\n---\n")
    console.line(f"goal       {wording}\n" if wording else "")
    return {name: text}, wording


async def proved(
    bench: Workbench, sketch: Draft, program: Path, folder: str, wishes: Wishes, ask: "Asker"
) -> tuple[Draft, Proof]:
    """Check a draft and complete it with what is learned: the metric, the output, whether the guard works."""
    once = None
    while True:
        base = bench.repo.snapshot({os.path.join(folder, name): text for name, text in sketch.files.items()})
        task = sketch.task(program, folder)
        if fault := task.absent(bench.repo.committed(base), bench.repo.new(), bench.root):
            raise UserError(fault)
        for word in (wishes.time or "").split():
            if os.path.join(folder, word) in bench.repo.new():
                raise UserError(f"{word} is not committed; {how_to_commit(word)}")
        runner = await bench.open(task, base)
        once = await bench.once(runner, again=bool(once and once.measured.score is not None))
        if task.metric == UNKNOWN and once.figures:
            sketch = with_metric(sketch, once, wishes, ask)
        elif once.measured.failed == TRAIN and wishes.train is None and "score" in sketch.settings:
            sketch = sketch.without("train", "")
            bench.say("note      the build fails, so it is left out (name another with --train COMMAND)", "yellow")
        elif once.measured.score is not None and not sketch.is_tuned:
            took = once.figures.get("wall_seconds", 0.0)
            sketch = sketch.tuned(next(runs for runs, longest in RUNS if took < longest), once.output)
            if not once.output:
                continue
            bench.say("note      it printed the same each time: the scorer now requires this output of every edit", "")
        else:
            break
    if task.metric == UNKNOWN and "holds no line" in once.measured.reason:
        nothing = "the score command printed no figure, such as `accuracy: 0.93`; to time a command, use --time COMMAND"
        once = dataclasses.replace(once, measured=dataclasses.replace(once.measured, reason=nothing))
    if once.checked.failed == GUARD and wishes.guard is None:
        sketch = sketch.without("guard", "")
        bench.say(
            "note      the guard fails on the unchanged code, so it is left out (name another with --guard COMMAND)",
            "yellow",
        )
        runner.task = task = sketch.task(program, folder)
        once = dataclasses.replace(once, checked=Measurement())
    proposed = frozenset() if wishes.edit else frozenset(task.editable)
    proof = await prove(bench, task, base, runner, once, proposed)
    if unused := [path for path in proof.unused if path in proposed]:
        used = [posixpath.relpath(path, task.folder or ".") for path in task.editable if path not in unused]
        sketch = sketch.changed(editable=used)
        bench.say(f"note      {', '.join(unused)} cannot be edited, since nothing uses it", "yellow")
    if proof.hidden:
        sketch = sketch.changed(hidden=proof.hidden)
    if task.is_timed and (repeats := repeats_for(proof)) > 1:
        sketch = sketch.changed(repeats=repeats)
        again = (repeats - 1) * once.measured.seconds[SCORE if task.score else TRAIN]
        longer = f"a trial measures {repeats} times, in about {duration(proof.seconds + again)}; the median counts"
        bench.say(f"note      it is noisy: {longer} (`repeats`); edit and champion take turns", "")
    if not wishes.time_limit:
        slowest = max((*once.measured.seconds.values(), *once.checked.seconds.values()), default=0.0)
        limit = max(SHORTEST_LIMIT, math.ceil(ROOM * slowest / 10) * 10)
        if SCORER in sketch.files and task.metric == "seconds" and proof.scores and min(proof.scores) < START:
            short = "this is hardly more than the start-up of a program: time one with more work"
            if once.output == NOTHING_PRINTED:
                proof.faults.append(f"{short}, which prints something that depends on the work: --time COMMAND")
            else:
                bench.say(f"note      {short}", "yellow")
        sketch = sketch.changed(time_limit=limit, score_limit=limit)
    return sketch, proof


def with_metric(sketch: Draft, once: Once, wishes: Wishes, ask: "Asker") -> Draft:
    """The draft with the metric that its score command prints. Raises UserError if that is not clear."""
    names = list(once.figures)
    metric = names[0] if len(names) == 1 else ask("Which of these is the metric? (--metric)", None, names)
    rising = direction_of(wishes, metric).get("direction")
    direction = rising or ask("Is a lower or a higher number better? (--direction)", None, ("minimize", "maximize"))
    sketch = sketch.changed(metric=metric, direction=direction)
    is_share = SHARE.search(metric.lower()) and 0 <= once.figures[metric] <= 1
    return sketch.changed(range=[0, 1]) if is_share else sketch


def say_faults(console: Console, proof: Proof) -> None:
    for fault in proof.faults:
        console.line(f"fault     {fault}", "red")


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


class Asker:
    """Asks the person at the terminal. yes: accept what is proposed without asking."""

    def __init__(self, yes: bool) -> None:
        self.yes = yes
        self.answers = sys.stdin.isatty() and sys.stdout.isatty()

    def __call__(self, question: str, proposed: str | None, choices: Sequence[str] = ()) -> str:
        """Ask and return the answer. proposed: the answer of Enter. Raises UserError if nobody can be asked."""
        if self.yes and proposed is not None:
            return proposed
        if self.yes or not self.answers:
            among = f" Choices: {', '.join(choices)}." if choices else ""
            accept = "" if self.yes or proposed is None else f"; --yes accepts what is proposed, `{proposed}`"
            how = f"Answer with an option, see `{to_type('plan --help')}`{accept}"
            raise UserError(f"nobody can answer here: {question}{among} {how}")
        print(question)
        for number, choice in enumerate(choices, 1):
            print(f"  {number}  {choice}")
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's would wait for the answer
        try:
            answer = ""
            while not answer:
                answer = input(f"[{proposed}] > " if proposed else "> ").strip() or proposed or ""
        except (KeyboardInterrupt, EOFError):
            print()
            raise Stopped from None
        finally:
            signal.signal(signal.SIGINT, before)
        numbers = {str(number): choice for number, choice in enumerate(choices, 1)}
        words = answer.split()
        return " ".join(numbers[word] for word in words) if set(words) <= numbers.keys() else answer
