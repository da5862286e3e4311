"""The `sweep` agent: seeded local search over the constants of the editable files.

It changes one constant at a time, by a step that fits its kind, and never makes the same edit twice. It needs no model
and no key: it is the control that any language model has to beat.
"""

import ast
import dataclasses
import json
import random
import re
from pathlib import Path

from autoresearch.agents import NothingLeft, Proposal
from autoresearch.brief import Brief
from autoresearch.record.ledger import Attempt
from autoresearch.task import edit_hash

SECTION = ("# Hyperparameters", "# End of hyperparameters")  # comments around the constants to vary; without them, all
Value = bool | int | float | str
# `#define NAME 1`, `static const int NAME = 1;`, `const NAME: usize = 1;`, `NAME = 1`, at the beginning of a line.
OTHER_LANGUAGES = re.compile(
    rb"^[ \t]*(?:#[ \t]*define[ \t]+(?P<defined>[A-Z][A-Z0-9_]+)[ \t]+|"
    rb"(?:[\w:<>*&\[\]]+[ \t]+)*(?P<assigned>[A-Z][A-Z0-9_]+)[ \t]*(?::[ \t]*\w+[ \t]*)?:?=[ \t]*)"
    rb"(?P<value>-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE]-?\d+)?)(?=[uUlLfF]*[ \t]*(?:[;,]|//|/\*|#|\r?$))",
    re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A literal that is given to an upper-case name, in Python at the top level: bytes `start` to `end` of a file."""

    file: str
    name: str
    value: Value
    text: str
    start: int
    end: int

    def change(self, new: Value) -> str:
        """The edit in words, the same for the same edit."""
        return f"{self.name}: {self.text} -> {literal(new, self.text)}"


class Sweep:
    name, retries = "sweep", False

    def __init__(self, seed: int) -> None:
        self.seed = seed

    async def propose(self, brief: Brief, folder: Path) -> Proposal:
        """Draw a constant and a step. A direction that was just kept is followed first."""
        draw = random.Random(f"{self.seed} {brief.number} {brief.champion.commit}")
        known = [*(attempt for attempt in brief.attempts if not attempt.was_outrun), *brief.in_flight]
        tried = {*(attempt.description for attempt in known), *(event.description for event in brief.refused)}
        contents = {attempt.edit for attempt in known}
        sources = {name: (folder / name).read_bytes() for name in brief.sources}
        moves = [
            (constant, new)
            for name, source in sources.items()
            for constant in constants(name, source, gpu=brief.facts.profile == "gpu")
            for new in steps(constant.value)
        ]
        draw.shuffle(moves)
        moves.sort(key=lambda move: not continues(move, brief.attempts))
        for constant, new in moves:
            description = constant.change(new)
            source = sources[constant.file]
            edited = source[: constant.start] + literal(new, constant.text).encode() + source[constant.end :]
            after = {**sources, constant.file: edited}
            if description not in tried and edit_hash(after) not in contents:
                (folder / constant.file).write_bytes(edited)
                return Proposal(description, category=constant.name, tokens=0, dollars=0.0)
        if not moves:
            raise NothingLeft(
                "sweep found no constant to vary: it takes upper-case names that are given a number, such as "
                "`#define BLOCK 64`, `const BLOCK = 64;` or, in Python at the top level, `BLOCK = 64`"
            )
        raise NothingLeft("every step from here has been tried")


def continues(move: tuple[Constant, Value], attempts: list[Attempt]) -> bool:
    """Whether a move goes further in the direction of the last attempt, which was kept and moved the same constant."""
    constant, new = move
    last = attempts[-1] if attempts else None
    if last is None or last.status != "keep" or not last.description.startswith(f"{constant.name}: "):
        return False
    old = evaluate_text(last.description.partition(": ")[2].partition(" -> ")[0])
    now = constant.value
    if not (isinstance(old, int | float) and isinstance(now, int | float) and isinstance(new, int | float)):
        return False
    return (new > now) == (now > old)


def constants(file: str, source: bytes, gpu: bool) -> list[Constant]:
    """The literals that can be varied. Of `a if GPU else b`, the one that is used on this machine."""
    if not file.endswith(".py"):
        found = OTHER_LANGUAGES.finditer(source)
        named = ((match["defined"] or match["assigned"], match["value"], match.span("value")) for match in found)
        return [Constant(file, name.decode(), number_of(value), value.decode(), *at) for name, value, at in named]
    lines = source.split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    first, last = 0, len(lines)
    for number, line in enumerate(lines, start=1):
        if line.decode(errors="replace").startswith(SECTION[0]):
            first = number
        elif line.decode(errors="replace").startswith(SECTION[1]):
            last = number
    found = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not first < node.lineno < last:
            continue
        target, value = node.targets[0], node.value
        if len(node.targets) != 1 or not isinstance(target, ast.Name) or not target.id.isupper():
            continue
        if isinstance(value, ast.IfExp) and isinstance(value.test, ast.Name) and value.test.id == "GPU":
            value = value.body if gpu else value.orelse
        literal_value = evaluate(value)
        if literal_value is not None:
            start = starts[value.lineno - 1] + value.col_offset
            assert value.end_lineno is not None and value.end_col_offset is not None  # as always after ast.parse
            end = starts[value.end_lineno - 1] + value.end_col_offset
            found.append(Constant(file, target.id, literal_value, source[start:end].decode(), start, end))
    return found


def number_of(text: bytes) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def evaluate(node: ast.expr) -> Value | None:
    """The value of a literal: a number (also a power or negative), a bool or a string; None for all else."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.BinOp(op=ast.Pow(), left=ast.Constant(value=int() as base), right=ast.Constant(value=int() as power)):
            return base**power if abs(power) < 64 else None
    return None


def evaluate_text(text: str) -> Value | None:
    try:
        return evaluate(ast.parse(text, mode="eval").body)
    except SyntaxError:
        return None


def literal(value: Value, like: str) -> str:
    """`value` as source text; written as a power of two where the text that it replaces was one."""
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and like.startswith("2**")
        and value > 1
        and value & (value - 1) == 0
    ):
        return f"2**{value.bit_length() - 1}"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def steps(value: Value) -> list:
    """Neighbouring values that fit a constant's kind."""
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
