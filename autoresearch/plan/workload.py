"""Let an agent draft the workload to be timed, and reword the goal. A person approves both before they are used."""

import dataclasses
from pathlib import Path

from autoresearch import UserError
from autoresearch.agents import Agent, AgentFailed, NothingLeft
from autoresearch.brief import Brief
from autoresearch.markdown import block
from autoresearch.plan.survey import Survey, files_for
from autoresearch.record.ledger import Attempt
from autoresearch.task import Facts, Task
from autoresearch.text import clean, one_line
from autoresearch.tried import Tried

ENDINGS = {"Python": ("py", "python", "#"), "JavaScript": ("js", "node", "//")}  # of a file, its program, a comment
SHELL = ("sh", "sh", "#")
MOST_SOURCES = 4  # that it is shown
MOST_WORDS = 600  # characters of its wording of the goal
ASKED = """Write {name} in the current folder, a program whose running time will be measured, again and again, while
others try to make the code of this repository faster. The goal, in the words of its owner: {goal}

- `{command}` runs it in the current folder, the root of the repository, once everything is built. It uses the code that
  lies there, as a user of it would, and does as much as possible of the work that the goal speaks of, and little else.
- It makes its own inputs: several kinds, ordinary ones and awkward ones, large enough that a run takes about a second.
- It prints the same each time: a line for each kind of input that depends on all of its results (a hash of them will
  do), so that code which is fast and wrong is found out. No clock, no random numbers without a seed, no network, no
  files outside the current folder.
- Change no other file.

Describe what you did, where you are asked to, by the goal in other words, for those who will work on it: one or two
sentences on which work of this code is to become faster, and what must stay as it is."""


@dataclasses.dataclass(frozen=True)
class WorkloadBrief(Brief):
    """What an agent is told that drafts a workload, in place of what one is told that proposes an edit."""

    command: str = ""
    goal: str = ""

    def lasting(self) -> list[str]:
        return [ASKED.format(name=self.task.editable[0], command=self.command, goal=self.goal)]

    def source_parts(self) -> list[str]:
        shown = list(self.sources.items())[1:]  # the first is the workload itself
        return [part for name, source in shown for part in (f"## {name}", block(source[: self.share(8)]))]

    def news(self, sources: list[str]) -> list[str]:
        return [f"{self.task.editable[0]} is there, with one line: replace it. Its running time is `seconds`."]


def workload_of(found: Survey) -> tuple[str, str]:
    """(The file of a workload in a repository of this language, the command that runs it.)"""
    ending, program, _ = ENDINGS.get(found.language, SHELL)
    name = f"autoresearch_workload.{ending}"
    return name, f"{program} {name}"


async def draft_workload(agent: Agent, found: Survey, goal: str, folder: Path, transcript: Path) -> tuple[str, str]:
    """(The text of a workload for a goal, the goal as the agent words it.) folder: a worktree, in which it works.

    Raises UserError.
    """
    name, command = workload_of(found)
    stub = f"{ENDINGS.get(found.language, SHELL)[2]} The workload.\n"
    (folder / name).write_text(stub)
    shown = [*files_for(goal, found.sources), *found.sources][:MOST_SOURCES]
    sources = {path: (folder / path).read_text(errors="replace") for path in dict.fromkeys([name, *shown])}
    transcript.mkdir(parents=True, exist_ok=True)

    async def objection() -> str | None:
        text = (folder / name).read_text(errors="replace")
        return f"{name} was not changed" if text == stub or not text.strip() else None

    brief = WorkloadBrief(
        number=0,
        task=Task(editable=(name,), train="", metric="seconds"),
        agenda="",
        facts=Facts(),
        champion=Attempt(0, "", "", "", ""),
        sources=sources,
        tried=Tried(lower_is_better=True),
        transcript=transcript,
        pages=transcript / "pages",
        check=objection,
        command=command,
        goal=goal,
    )
    try:
        proposal = await agent.propose(brief, folder)
    except (AgentFailed, NothingLeft) as error:
        raise UserError(f"{agent.name} drafted no workload: {error}; name one with --time COMMAND") from None
    if said := await objection():
        raise UserError(f"{agent.name} drafted no workload: {said}; name one with --time COMMAND")
    return (folder / name).read_text(errors="replace"), one_line(clean(proposal.description), MOST_WORDS)
