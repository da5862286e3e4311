"""The MCP server: any agent that supports the Model Context Protocol can run the experiments of a run.

`loop.py mcp` uses standard input and output. Tools that change something start the same commands that a person types,
as processes, so preflight, sandbox and judge cannot be bypassed. Tools that only read look at the record.

The SDK is loaded only here: it takes a second, and is not installed by default.
"""

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field

from autoresearch import UserError, keys
from autoresearch.agents import AN_IDEA
from autoresearch.brief import Brief
from autoresearch.calls import RUNNING
from autoresearch.ideas import AGENT, Ideas
from autoresearch.judge import margin, rule_of
from autoresearch.lessons import Lessons
from autoresearch.program import program_of, read_stages
from autoresearch.record.ledger import Ledger
from autoresearch.record.runs import RUNS, Recorded, recorded_run
from autoresearch.task import Facts
from autoresearch.text import clean, digits, short
from autoresearch.tried import Tried, change_of
from autoresearch.views.digest import digest
from autoresearch.views.state import look
from autoresearch.views.verdicts import Record, Row

PROGRESS = 1.0  # seconds between two notifications
SHOWN = 20  # attempts
# Clients show a model the structured answer, some of them nothing else: so it holds all that counts, and no more.
OF_A_RUN = (
    "tag", "running", "stopping", "metric", "direction", "baseline", "champion", "gain", "doubt", "tokens", "dollars",
)  # fmt: skip
OF_A_ROW = ("number", "status", "score", "gain", "description", "reason", "category", "predicted", "lines", "commit")
INSTRUCTIONS = """Research by experiments. Read program.md in the repository first: the agenda and the rules.
Call start once. Then, forever: edit the file that it names, with your own edit tool; call try; call wait until there
is a verdict. The file then contains the champion again. Never stop by yourself, and do not ask whether to continue."""

Tag = Annotated[str | None, Field(description="Name of the run. Default: the last one.")]
Number = Annotated[int | None, Field(description="The experiment. Default: the last one.", ge=1)]
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
ACTS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)


class Server:
    """The tools. program: loop.py, or the installed command, which is called with a command."""

    def __init__(self, program: str) -> None:
        self.program = program

    # -- what changes something

    async def start(self, tag: Tag = None) -> CallToolResult:
        """Begin or continue a run, and train the baseline in the background. Returns which file to edit. While the
        baseline trains, call wait."""
        await self.call("start", "--background", "--plain", *named(tag))
        return self.stands(recorded(tag))

    async def try_(
        self,
        message: Annotated[str, Field(description="What was changed, and why.", min_length=1)],
        category: Annotated[str, Field(description="What kind of change it is, e.g. optimizer.")] = "",
        hypothesis: Annotated[str, Field(description="Why it should help.")] = "",
        predicted: Annotated[float | None, Field(description="The change of the metric that is expected.")] = None,
        lesson: Annotated[str, Field(description="What the last verdicts taught, for later runs.")] = "",
        ideas: Annotated[list[str], Field(description=f"`I3` if this tests idea I3; for others: {AN_IDEA}")] = [],  # noqa: B006
        tag: Tag = None,
    ) -> CallToolResult:
        """Run the edit in the worktree: it is checked, committed, trained and scored. Returns once its trial runs, or
        with the reason why it was refused; then call wait."""
        said = {"message": message, "category": category, "hypothesis": hypothesis, "lesson": lesson}
        words = [f"--{name}={text}" for name, text in said.items() if text]
        words += [] if predicted is None else [f"--predicted={predicted}"]
        words += [f"--idea={idea}" for idea in ideas]
        return result(json.loads(await self.call("try", "--background", "--json", *words, *named(tag))))

    async def wait(
        self,
        context: Context,
        number: Number = None,
        seconds: Annotated[float, Field(description="How long at most.", ge=0, le=600)] = 100,
        tag: Tag = None,
    ) -> CallToolResult:
        """Wait for the verdict on an experiment. `running`: it has none yet, so call this again."""
        which = [] if number is None else [str(number)]
        following = asyncio.create_task(follow(context, recorded(tag).ledger))
        try:
            printed = await self.call("wait", *which, "--json", f"--for={seconds}", *named(tag))
        finally:
            following.cancel()
        return result(json.loads(printed))

    async def stop(
        self,
        now: Annotated[bool, Field(description="At once: the running experiment then has no verdict.")] = False,
        tag: Tag = None,
    ) -> CallToolResult:
        """Stop after the running experiment. For a human who wants the night to end."""
        return text(await self.call("stop", *(["--now"] if now else []), *named(tag)))

    async def note(
        self,
        words: Annotated[str, Field(description='What it is to know, e.g. "try smaller batches".', min_length=1)],
        tag: Tag = None,
    ) -> CallToolResult:
        """Tell the agent of a running loop something: the note is in all its later briefs, and in the record."""
        return text(await self.call("note", *named(tag), "--", words))

    async def add_idea(
        self,
        words: Annotated[str, Field(description="What could be tried.", min_length=1)],
        expected: Annotated[str, Field(description="The effect that it should have.")] = "",
        source: Annotated[str, Field(description="Where it is from: of a publication title, year and link.")] = "",
    ) -> CallToolResult:
        """Add an idea for later edits, in all runs. `ideas` shows the open ones."""
        by = f"--source={AGENT}over MCP" + (f": {source}" if source else "")
        return text(await self.call("ideas", "add", by, f"--expect={expected}", "--", words))

    async def call(self, command: str, *words: str) -> str:
        """What a command of loop.py prints on standard output. ToolError for exit code 2, and where it was stopped."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, self.program, command, *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        try:
            output, errors = await process.communicate()
        finally:
            if process.returncode is None:  # the client does not want to know any more
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        printed = output.decode(errors="replace")
        if process.returncode in (2, 130) or (not printed and process.returncode != RUNNING):
            raise ToolError(clean(errors.decode(errors="replace")).strip() or "it was stopped")
        return printed

    # -- what reads

    def status(self, tag: Tag = None) -> CallToolResult:
        """The state of a run: champion, what is running, counts, costs, and a digest in ten lines."""
        return self.stands(recorded(tag))

    def attempts(
        self,
        last: Annotated[int, Field(description="How many, the newest.", ge=1, le=500)] = SHOWN,
        tag: Tag = None,
    ) -> CallToolResult:
        """What was tried: number, status, score, gain, description and reason of each."""
        record = Record(recorded(tag).ledger)
        rows = [record.row(attempt) for attempt in record.ledger.attempts[-last:]]
        lines = [
            f"{row.number} {row.status} {'' if row.score is None else row.score} {row.description}" for row in rows
        ]
        return text("\n".join(lines) or "nothing yet", {"attempts": list(map(fields, rows))})

    def attempt(self, number: Annotated[int, Field(ge=1)], tag: Tag = None) -> CallToolResult:
        """Everything about one attempt: its diff, figures and the end of its log."""
        run = recorded(tag)
        ledger, page = run.ledger, run.ledger.path.parent / "attempts" / f"{number}.md"
        if number > len(ledger.attempts):
            raise ToolError(f"run {run.tag} has no attempt {number}; its last is {len(ledger.attempts)}")
        row = Record(ledger).row(ledger.attempts[number - 1])
        said = page.read_text(encoding="utf-8") if page.exists() else f"Attempt {number} has no verdict yet."
        return text(said, {**fields(row), "page": said})

    def ideas(self, tag: Tag = None) -> CallToolResult:
        """Where to continue: what an edit must gain, the stage of the run, notes from the human, near misses, open
        ideas, lessons from this and earlier runs, how often each kind of change was tried and kept. The loop tells its
        own agents the same.
        """
        run = recorded(tag)
        ledger, champion = run.ledger, run.ledger.champion
        if not champion:
            return text("nothing yet: the baseline has no verdict", {"stage": "explore"})
        facts, rule = ledger.facts or Facts(), rule_of(ledger.started.keep_rule or "margin", run.task.line_price)
        owed = margin(rule, ledger.noise(), [0.0], ledger.scores(champion))
        ideas = Ideas(run.root / RUNS).to_offer(ledger.pending)
        lessons = Lessons(run.root / RUNS / "lessons.md").for_profile(facts.profile or "")
        brief = Brief(
            len(ledger.attempts) + 1,
            run.task,
            "",
            facts,
            champion,
            {},
            Tried(run.task.lower_is_better, ledger.finished),
            noise=ledger.noise(),
            margin=owed,
            line_price=rule.line_price,
            stages=read_stages(program_of(run.root, Path.cwd())),
            lessons=lessons,
            ideas=ideas,
            notes=list(ledger.notes),
        )
        near = [
            {**fields(Record(ledger).row(attempt)), "change": change_of(attempt)} for attempt in brief.tried.near_misses
        ]
        more = {"stage": brief.stage, "near_misses": near, "lessons": [f"L{one.number}: {one.text}" for one in lessons]}
        more["ideas"] = [f"I{idea.number}: {idea.text}" for idea in ideas if idea.is_open]
        return text("\n\n".join(brief.news([])), {**more, "notes": [said for _, said in ledger.notes]})

    def stands(self, run: Recorded) -> CallToolResult:
        state = look(run.ledger)
        files = [f"{RUNS}/{run.tag}/worktree/{name}" for name in run.task.editable]
        lines = [*digest(state), f"edit: {', '.join(files)}"]
        lines += [f"now: {trial.label}, {trial.doing}" for trial in state.trials]
        known = state.as_json()
        trials = [
            {name: trial[name] for name in ("number", "phase", "left", "loss", "step")} for trial in known["trials"]
        ]
        more = {"experiments": state.experiments, "trials": trials, "edit": files, "digest": digest(state)}
        return text("\n".join(lines), {**{name: known[name] for name in OF_A_RUN}, **more})


def serve(program: str) -> None:
    """Answer until standard input ends."""
    tools, server = Server(program), MCPServer("autoresearch", instructions=INSTRUCTIONS, log_level="WARNING")
    for name, tool, kind in (
        ("start", tools.start, ACTS),
        ("try", tools.try_, ACTS),
        ("wait", tools.wait, READS),
        ("status", tools.status, READS),
        ("attempts", tools.attempts, READS),
        ("attempt", tools.attempt, READS),
        ("ideas", tools.ideas, READS),
        ("add_idea", tools.add_idea, ACTS),
        ("note", tools.note, ACTS),
        ("stop", tools.stop, ACTS),
    ):
        server.tool(name, annotations=kind)(tool)
    server.run("stdio")


def recorded(tag: str | None) -> Recorded:
    try:
        return recorded_run(tag, "begin one with start")
    except UserError as error:
        raise ToolError(str(error)) from None


def named(tag: str | None) -> list[str]:
    """The option; in one word, so that no value can be taken for another option."""
    return [] if tag is None else [f"--tag={tag}"]


def fields(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in OF_A_ROW}


async def follow(context: Context, ledger: Ledger) -> None:
    """Tell the client how far the running trial is."""
    while True:
        await asyncio.sleep(PROGRESS)
        ledger.catch_up()
        for trial in look(ledger).trials[:1]:
            done = time.time() - trial.began
            left = "" if trial.left is None else f", {trial.left:.0f} s to go"
            total = None if trial.left is None else done + trial.left
            await context.report_progress(done, total, f"experiment {trial.number}: {trial.doing}{left}")


def result(answer: dict[str, Any]) -> CallToolResult:
    """What `try` and `wait` answer, as they print it with --json."""
    verdict, number = answer["verdict"], answer.get("number")
    name = f"experiment {number}: " if number else ""
    if verdict == "running":
        left = "" if answer["seconds_left"] is None else f", {answer['seconds_left']} s to go"
        return text(f"{name}still {answer['doing']}{left}; call wait", answer)
    lines = [f"{name}{verdict}: {answer['reason']}"]
    if answer["champion_commit"]:
        lines.append(f"champion: {answer['metric']} {digits(answer['champion'])}, {short(answer['champion_commit'])}")
    lines += [f"{key}: {answer[key]}" for key in ("stage", "log_tail") if answer.get(key)]
    return text("\n".join([*lines, f"edit next: {', '.join(answer['edit'])}"]), answer)


def text(said: str, structured: dict[str, Any] | None = None) -> CallToolResult:
    said = keys.scrub(said)
    content = keys.scrubbed(structured) if structured else {"said": said}
    return CallToolResult(content=[TextContent(type="text", text=said)], structured_content=content)
