"""The constants of the editable files: literals assigned to upper-case names. And which of them an edit changed."""

import ast
import collections
import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from autoresearch.task import edit_hash

SECTION = ("# Hyperparameters", "# End of hyperparameters")  # comments around the constants to vary; without them, all
LARGEST_READ = 200_000  # bytes of files that are searched for constants: half a second
# Which these are, for people.
FORMS = (
    "it takes upper-case names that are given a number, such as `#define BLOCK 64`, `const BLOCK = 64;` or, in Python "
    "at the top level, `BLOCK = 64`"
)
LONGEST = 256  # bits of a whole number that is one
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

    constants: Mapping[str, Value]  # by name, with the file before it where there are several
    rest: str  # names all the rest


def read_code(files: Mapping[str, bytes], gpu: bool) -> Code:
    """The files as Code. Without constants where one does not parse, or where they are long to read; a name that a file
    gives more than one value belongs to the rest.
    """
    found = once(all_constants(files, gpu))
    plain = with_texts(files, [(constant, "0") for constant in found])
    return Code({name_among(files, constant): constant.value for constant in found}, edit_hash(plain))


def once(found: Sequence[Constant]) -> list[Constant]:
    """Those whose name is given one value in its file."""
    times = collections.Counter((constant.file, constant.name) for constant in found)
    return [constant for constant in found if times[constant.file, constant.name] == 1]


def name_among(files: Collection[str], constant: Constant) -> str:
    """The name of a constant, with its file before it where there are several."""
    return f"{constant.file} {constant.name}" if len(files) > 1 else constant.name


def with_texts(files: Mapping[str, bytes], texts: Iterable[tuple[Constant, str]]) -> dict[str, bytes]:
    """The files with other texts in place of some constants."""
    edited = dict(files)
    for constant, text in sorted(texts, key=lambda pair: -pair[0].start):  # the last first: places stay right
        source = edited[constant.file]
        edited[constant.file] = source[: constant.start] + text.encode() + source[constant.end :]
    return edited


def change(before: Code, after: Code) -> dict[str, tuple[Value, Value]] | None:
    """The constants that an edit changed, what they were and what they became; None where it did something else."""
    if before.rest != after.rest or set(before.constants) != set(after.constants):
        return None
    pairs = ((name, (old, after.constants[name])) for name, old in before.constants.items())
    return {name: (old, new) for name, (old, new) in pairs if (old, type(old)) != (new, type(new))}


def with_change(files: Mapping[str, bytes], made: Mapping[str, Sequence], gpu: bool) -> dict[str, bytes] | None:
    """The files with a change of constants made in them, as `change` has it; None where one is not as it was before."""
    found = {name_among(files, constant): constant for constant in once(all_constants(files, gpu))}
    if any(name not in found or found[name].value != old for name, (old, _) in made.items()):
        return None
    return with_texts(files, [(found[name], literal(new, found[name].text)) for name, (_, new) in made.items()])


def all_constants(files: Mapping[str, bytes], gpu: bool) -> list[Constant]:
    """The constants of all files; none where one does not parse, or where that would take long."""
    if sum(map(len, files.values())) > LARGEST_READ:
        return []
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
        return (node.body if self.gpu else node.orelse) if is_gpu(node.test) else node


def is_gpu(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "GPU"


def as_it_counts(files: Mapping[str, bytes], gpu: bool) -> str:
    """Names what the files do on this machine: edit_hash, without what is only for a GPU, or only for a CPU.

    Where GPU is what it is in the train.py that ships, and nothing else.
    """
    decided = {}
    for name, source in files.items():
        decided[name] = source
        if name.endswith(".py") and len(source) <= LARGEST_READ:
            with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
                tree = ast.parse(source)
                if means_a_gpu(tree):
                    tree = ast.fix_missing_locations(Decided(gpu).visit(tree))
                    decided[name] = ast.unparse(tree).encode(errors="surrogateescape")
    return edit_hash(decided)


def means_a_gpu(tree: ast.Module) -> bool:
    """Whether GPU is assigned once, at the top, from what torch says."""
    bound = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == "GPU" and not isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.arg) and node.arg == "GPU")
    ]
    at_the_top = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets == bound]
    return len(at_the_top) == 1 and ast.unparse(at_the_top[0]).startswith("torch.cuda.is_available()")


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
            text = source[start:end].decode(errors="replace")
            if evaluate_text(text) == literal_value:  # not so where Python counts lines or columns in another way
                found.append(Constant(file, target.id, literal_value, text, start, end))
    return found


def number_of(text: bytes) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def evaluate(node: ast.expr) -> Value | None:
    """The value of a literal: a number (also a power or negative), a bool or a string; None for all else."""
    match node:
        case ast.Constant(value=int() as value) if value.bit_length() > LONGEST:
            return None
        case ast.Constant(value=float() as value) if not math.isfinite(value):  # 1e400
            return None
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.BinOp(op=ast.Pow(), left=ast.Constant(value=int() as base), right=ast.Constant(value=int() as power)):
            return base**power if abs(power) < 64 and abs(power) * base.bit_length() <= LONGEST else None
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
