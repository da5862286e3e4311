"""The `sweep` agent: seeded local search over the constants of the editable files.

It changes one constant at a time, by a step that suits its type, and never makes the same edit twice. It needs no model
and no key: it is the control that any language model has to beat.
"""

import random
from pathlib import Path

from autoresearch.agents import NothingLeft, Proposal
from autoresearch.brief import Brief
from autoresearch.constants import FORMS, Constant, Value, constants, evaluate_text, literal, with_texts
from autoresearch.record.ledger import Attempt
from autoresearch.task import edit_hash


class Sweep:
    name, retries, paid = "sweep", False, False

    def __init__(self, seed: int) -> None:
        self.seed = seed

    async def propose(self, brief: Brief, folder: Path) -> Proposal:
        """Draw a constant and a step. A direction that was just kept is continued first."""
        draw = random.Random(f"{self.seed} {brief.number} {brief.champion.commit}")
        known = [*(attempt for attempt in brief.attempts if not attempt.was_outrun), *brief.in_flight]
        tried = {one.description for one in (*known, *brief.refused, *brief.beside)}
        contents = {one.edit for one in (*known, *brief.beside)}
        sources = {name: (folder / name).read_bytes() for name in brief.sources}
        moves = [
            (constant, new)
            for name, source in sources.items()
            for constant in constants(name, source, gpu=brief.facts.gpu)
            for new in steps(constant.value)
        ]
        draw.shuffle(moves)
        moves.sort(key=lambda move: not continues(move, brief.attempts))
        for constant, new in moves:
            description = constant.change(new)
            after = with_texts(sources, [(constant, literal(new, constant.text))])
            if description not in tried and edit_hash(after) not in contents:
                (folder / constant.file).write_bytes(after[constant.file])
                return Proposal(description, category=constant.name, tokens=0, dollars=0.0)
        if not moves:
            raise NothingLeft(f"sweep found no constant to vary: {FORMS}")
        raise NothingLeft("every step from here has been tried")


def continues(move: tuple[Constant, Value], attempts: list[Attempt]) -> bool:
    """Whether the last attempt was kept and moved the same constant in the same direction."""
    constant, new = move
    last = attempts[-1] if attempts else None
    if last is None or last.status != "keep" or not last.description.startswith(f"{constant.name}: "):
        return False
    old = evaluate_text(last.description.partition(": ")[2].partition(" -> ")[0])
    now = constant.value
    if not (isinstance(old, int | float) and isinstance(now, int | float) and isinstance(new, int | float)):
        return False
    return (new > now) == (now > old)


def steps(value: Value) -> list:
    """Neighbouring values that suit a constant's type."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return text_steps(value)
    if isinstance(value, int):
        return [step for step in int_steps(value) if step != value]
    if value == 0:
        return [0.01, 0.1]
    if 0.5 < value < 1:  # a share or a momentum: what matters is the distance to one
        return [rounded(1 - (1 - value) * factor) for factor in (0.5, 0.7, 1.4, 2.0) if (1 - value) * factor < 1]
    return [rounded(value * factor) for factor in (0.5, 0.7, 1.4, 2.0)]


def int_steps(value: int) -> list[int]:
    if value < 0:
        return [-step for step in int_steps(-value)]
    if value < 16:
        return [step for step in (value - 1, value + 1) if step > 0 or value == 0]
    grain = value & -value  # the largest power of two that divides it
    if grain * 8 >= value and grain != value:
        return [value - grain, value + grain]
    return [value // 2, value * 2]


def text_steps(value: str) -> list[str]:
    """For a short pattern of letters such as "SSSL": one letter replaced, dropped or added."""
    if not (value.isalpha() and value.isupper() and 1 < len(value) <= 16):
        return []
    letters = sorted(set(value))
    replaced = [
        value[:i] + letter + value[i + 1 :] for i in range(len(value)) for letter in letters if letter != value[i]
    ]
    return sorted({*replaced, value[1:], *(letter + value for letter in letters)} - {value})


def rounded(value: float) -> float:
    return float(f"{value:.3g}")
