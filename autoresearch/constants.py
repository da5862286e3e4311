"""The constants of the editable files: literals that are given to upper-case names. What an edit changed of them."""

import ast
import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping

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


@dataclasses.dataclass(frozen=True)
class Code:
    """What the editable files say, with their constants apart."""

    constants: Mapping[tuple[str, str], Value]  # by file and name, those that count on this machine
    rest: str  # names all the rest


@dataclasses.dataclass(frozen=True)
class Change:
    """What an edit did to the constants."""

    constants: Mapping[str, tuple[Value, Value]]  # by name: what it was, what it became
    alone: bool  # whether nothing else changed


def read_code(files: Mapping[str, bytes], gpu: bool) -> Code:
    """The files as Code; without constants where one does not parse."""
    found = all_constants(files, gpu)
    plain = dict(files)
    for constant in sorted(found, key=lambda constant: -constant.start):
        source = plain[constant.file]
        plain[constant.file] = source[: constant.start] + b"0" + source[constant.end :]
    return Code({(constant.file, constant.name): constant.value for constant in found}, edit_hash(plain))


def change(before: Code, after: Code) -> Change:
    pairs = {key: (old, after.constants[key]) for key, old in before.constants.items() if key in after.constants}
    moved = {name: (old, new) for (_, name), (old, new) in pairs.items() if (old, type(old)) != (new, type(new))}
    return Change(moved, bool(moved) and before.rest == after.rest)


def all_constants(files: Mapping[str, bytes], gpu: bool) -> list[Constant]:
    try:
        return [constant for name, source in files.items() for constant in constants(name, source, gpu)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


class Decided(ast.NodeTransformer):
    """Leaves of `a if GPU else b`, and of `if GPU:`, what counts on this machine."""

    def __init__(self, gpu: bool) -> None:
        self.gpu = gpu

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return (node.body if self.gpu else node.orelse) if is_gpu(node.test) else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return ((node.body if self.gpu else node.orelse) or ast.Pass()) if is_gpu(node.test) else node


def is_gpu(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "GPU"


def as_it_counts(files: Mapping[str, bytes], gpu: bool) -> str:
    """Names what the files do on this machine: edit_hash, without what is only for a GPU, or only for a CPU."""
    decided = {}
    for name, source in files.items():
        decided[name] = source
        if name.endswith(".py"):
            with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
                tree = ast.fix_missing_locations(Decided(gpu).visit(ast.parse(source)))
                decided[name] = ast.unparse(tree).encode(errors="surrogateescape")
    return edit_hash(decided)


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
