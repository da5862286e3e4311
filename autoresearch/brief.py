"""What an agent is told before each proposal, rebuilt from the record every time."""

import dataclasses

from autoresearch.ledger import Attempt
from autoresearch.repo import short
from autoresearch.task import Task


@dataclasses.dataclass(frozen=True)
class Brief:
    """All that a proposal may be based on."""

    number: int                     # of the experiment that is wanted
    task: Task
    agenda: str                     # the text of program.md
    facts: dict                     # profile, device, data, time_budget
    champion: Attempt
    attempts: list[Attempt]         # all with a verdict, in order
    refusal: str | None = None      # why the last edit for this number was turned down

    def text(self) -> str:
        """The brief as Markdown, for agents that read."""
        better = "lower" if self.task.lower_is_better else "higher"
        parts = [
            f"# Experiment {self.number}",
            f"Make one change to {', '.join(self.task.editable)} in the current folder that improves "
            f"`{self.task.metric}` ({better} is better). Change no other file. Do not run the training: it is run for you. When you are done, end with one line that says "
            "what you changed and why.",
            f"The champion is {short(self.champion.commit)} with {self.task.metric} {self.champion.score:.6f}.",
        ]
        if self.refusal:
            parts += ["## Your last edit was refused", f"{self.refusal}. Mend it."]
        if self.agenda:
            parts += ["## Agenda", self.agenda]
        if self.attempts:
            rows = [f"{a.number}. {a.status} {a.score if a.score is not None else 'crash'}: {a.description} ({a.reason})"
                    for a in self.attempts[-30:]]
            parts += ["## What was tried, newest last", "\n".join(rows)]
        return "\n\n".join(parts) + "\n"
