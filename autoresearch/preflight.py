"""Refuse an edit of train.py that cannot count, before it costs a trial. Seconds, and no GPU time.

Two checks. `violation` reads the source: what it imports and reaches for. That is for honest agents, who learn at once
what the rules are; what really stops a file are the sandbox and the referee, which see what it does and not how it is
written. Run as a program of its own, confined like a trial, this file also imports train.py, builds the model and runs
it forward and backward at its real size: where there is a GPU on fake tensors, which have shapes and no contents.

    python preflight.py train.py        # exit code 1, and why in the last line, when the model cannot work
"""

import ast
import collections
import contextlib
import importlib
import math
import os
import sys
import traceback
import zlib
from collections.abc import Iterator, Set
from pathlib import Path

MODULES = {
    *("torch", "numpy", "triton", "math", "cmath", "random", "time", "re", "gc", "atexit", "functools", "itertools"),
    *("collections", "dataclasses", "typing", "types", "abc", "enum", "contextlib", "copy", "operator", "bisect"),
    *("heapq", "statistics", "string", "fractions", "numbers", "warnings", "__future__", "prepare"),
}
FROM_PREPARE = {"MAX_SEQ_LEN", "PROFILE", "SEED", "TIME_BUDGET", "VOCAB_SIZE", "TrainBatches", "finish", "warmup_batch"}
BUILTINS = {"open", "exec", "eval", "compile", "__import__", "__builtins__", "globals", "locals", "vars", "breakpoint"}
# Attributes through which files, processes, sockets and the environment are within reach of what may be imported.
ATTRIBUTES = {
    *("os", "sys", "io", "subprocess", "socket", "shutil", "ctypes", "importlib", "builtins", "multiprocessing"),
    *("pathlib", "tempfile", "pickle", "threading", "inspect", "environ", "cpp_extension", "hub", "distributed"),
    *("load_library", "from_file", "ctypeslib", "memmap", "fromfile", "tofile", "savez", "savez_compressed"),
    *("savetxt", "loadtxt", "genfromtxt"),
}
FILES = {("torch", "load"), ("torch", "save"), ("np", "load"), ("np", "save"), ("numpy", "load"), ("numpy", "save")}
DUNDERS = {"__init__", "__name__", "__doc__", "__call__", "__post_init__", "__version__", "__class__", "__len__"}
CLOCK = {"_game", "_start", "_source", "_full", "_free", "_last_step"}  # TrainBatches keeps the time with these
SETTINGS = {"backends", "_dynamo", "_inductor", "_functorch"}  # parts of torch that are there to be set
LITERALS = (ast.Constant, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.BinOp, ast.UnaryOp, ast.Starred)
OPERATORS = (ast.operator, ast.unaryop, ast.expr_context)
LARGEST_FILE, LARGEST_LITERAL = 256, 4  # KB; what literals together may add: twice the latter
MOST_NESTED = 1000  # expressions and blocks in one another
RUN, RUNS = 32, 512  # characters: of text without a space that counts as a run, and of all runs of a file together
LONG, PACKED = 200, 5.6  # characters of a text that is looked at; bits a character: prose has 4.2, code 5.1, base64 6
SEEDING = {"manual_seed", "manual_seed_all", "seed", "default_rng", "RandomState", "SeedSequence", "Random"}


# ----------------------------------------------------------------------------------------------
# Reading the source


def violation(
    tree: ast.Module,
    trusted: ast.Module | None = None,
    imports: Set[str] = frozenset(),
    largest_literal: float = LARGEST_LITERAL,
) -> str | None:
    """Why a parsed train.py breaks the rules, with its line, or None.

    What `trusted`, the human's file, does is no objection. imports: modules that are allowed besides MODULES.
    largest_literal: KB.
    """
    if not any(
        isinstance(node, ast.FunctionDef) and node.name == "build_model" and not required_arguments(node)
        for node in tree.body
    ):
        return "it must define build_model() at its top level, a function without arguments"

    if nested_deeper(tree, MOST_NESTED):
        return f"it is nested more than {MOST_NESTED} deep"
    together = together_of(largest_literal) + (sum(map(size_of, literals(trusted))) if trusted else 0)

    def all_objections(source: ast.Module) -> list[tuple[int, str]]:
        return [*objections(source, imports), *objections_to_data(source, largest_literal, together)]

    known = {text for _, text in all_objections(trusted)} if trusted else set()
    return next((f"line {line}: {text}" for line, text in all_objections(tree) if text not in known), None)


def together_of(largest_literal: float) -> int:
    """Bytes by which all literals of a file together may exceed the human's: twice what one may have, `size`, KB.

    They could hold scored text: 32 KB of it, in words that look like none, took a score on `test` from 2.33 to 1.62.
    """
    return int(2 * 1024 * largest_literal)


def nested_deeper(tree: ast.AST, most: int) -> bool:
    level = [tree]
    for _ in range(most):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return bool(level)


def brought_along(source: bytes, trusted: bytes, largest_literal: float = LARGEST_LITERAL) -> str | None:
    """Why a file holds too much besides code that could have been thought of: in comments and names, too; or None.

    What counts is its size when compressed, against that of the human's file.
    """
    size = len(zlib.compress(source, 9)) - len(zlib.compress(trusted, 9))
    if size <= (allowed := together_of(largest_literal)):
        return None
    return (
        f"compressed it is {size / 1024:.0f} KB larger than the file that the run began with; {allowed / 1024:.0f} KB "
        "are allowed: data is no part of an edit (`size` in the front matter of program.md can allow more)"
    )


def required_arguments(function: ast.FunctionDef) -> int:
    arguments = function.args
    return (
        len(arguments.posonlyargs + arguments.args)
        - len(arguments.defaults)
        + sum(d is None for d in arguments.kw_defaults)
    )


def objections(tree: ast.Module, imports: Set[str] = frozenset()) -> Iterator[tuple[int, str]]:
    """(line, objection) of everything in the source that reaches out of the game."""
    imported, bound = {}, set()  # name: what it was imported as; names that the file itself gives a meaning
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                imported |= {
                    alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else "" for alias in names
                }
            case ast.ImportFrom(module=module, names=names):
                imported |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in names}
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                bound.add(name)
    for node in ast.walk(tree):
        for text in objections_to(node, imported, bound, MODULES | imports):
            yield getattr(node, "lineno", 1), text


def objections_to(node: ast.AST, imported: dict[str, str], bound: set[str], modules: Set[str]) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield from objections_to_module(alias.name, modules)
                if alias.name == "prepare":
                    yield f"names are imported from prepare, not the module: {', '.join(sorted(FROM_PREPARE))}"
        case ast.ImportFrom(module=module, names=names):
            yield from objections_to_module(module or ".", modules)
            for alias in names:
                if module == "prepare" and alias.name not in FROM_PREPARE:
                    yield f"`{alias.name}` is not for train.py; prepare offers {', '.join(sorted(FROM_PREPARE))}"
                elif alias.name in ATTRIBUTES or (module, alias.name) in FILES:
                    yield f"`{module}.{alias.name}` is out of bounds: no files, processes, sockets or environment"
        case ast.Name(id=name) if name in BUILTINS - bound:
            yield f"`{name}` is out of bounds: no files, no code made at run time"
        case ast.Attribute(value=value, attr=name, ctx=context):
            if name in ATTRIBUTES or (isinstance(value, ast.Name) and (value.id, name) in FILES):
                yield f"`{ast.unparse(node)}` is out of bounds: no files, processes, sockets or environment"
            if (
                name.startswith("__")
                and name not in DUNDERS
                and not (isinstance(value, ast.Call) and root_of(value.func) == "super")
            ):
                yield f"`{name}` is out of bounds: Python's own machinery is not part of the game"
            if name in CLOCK and root_of(node) != "self":
                yield f"`{ast.unparse(node)}` belongs to the clock"
            if (
                not isinstance(context, ast.Load)
                and (root := root_of(node)) in imported
                and not SETTINGS & {*imported[root].split("."), *ast.unparse(node).split(".")}
            ):
                yield f"`{ast.unparse(node)}` is written to: what is imported stays as it is"
        case ast.Call(
            func=ast.Name(id="getattr" | "setattr" | "delattr" | "hasattr" as function), args=[target, *rest]
        ):
            literal = rest[0].value if rest and isinstance(rest[0], ast.Constant) else None
            if root_of(target) in imported and (function in ("setattr", "delattr") or literal is None):
                yield f"`{function}` on what is imported, by a name made at run time or to change it, is out of bounds"
            elif literal in ATTRIBUTES or str(literal).startswith("__"):
                yield f"`{literal}` is out of bounds: no files, processes, sockets or environment"
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=arguments, keywords=keywords) if (
            name in SEEDING
        ):
            given = [*arguments, *(keyword.value for keyword in keywords)]
            if not given or any(not (isinstance(value, ast.Name) and value.id == "SEED") for value in given):
                yield f"`{name}` takes prepare's SEED and nothing else: picking seeds is not research"


def objections_to_module(name: str, modules: Set[str]) -> Iterator[str]:
    top, *below = name.split(".")
    if top not in modules:
        yield f"`import {name}` is out of bounds; train.py may import {', '.join(sorted(modules - {'__future__'}))}"
    elif ATTRIBUTES & set(below):
        yield f"`import {name}` is out of bounds: no files, processes, sockets or environment"


def root_of(node: ast.AST) -> str | None:
    """The name that a chain of attributes, subscripts and calls begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


# ----------------------------------------------------------------------------------------------
# Data in the source: rows or weights that an edit brings along


def objections_to_data(tree: ast.Module, largest: float, together: float) -> Iterator[tuple[int, str]]:
    """(line, objection) of literals that look like packed data, or are too large: one (KB), or all of them (bytes)."""
    allowed = "`size` in the front matter of program.md can allow more"
    total, runs = 0, 0
    for node in literals(tree):
        size = size_of(node)
        total += size
        if size > 1024 * largest:
            yield node.lineno, f"a literal of {size / 1024:.1f} KB; {largest:g} KB are allowed ({allowed})"
        for value in constants_in(node):
            text = value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
            words = text.split()
            runs += sum(len(word) for word in words if len(word) >= RUN)
            if bits_of("".join(words)) > PACKED or (isinstance(value, int) and bytes_of(value) > LONG):
                yield node.lineno, "a literal looks like packed data: data is no part of an edit"
        if runs > RUNS:
            yield node.lineno, f"more than {RUNS} characters of text without spaces look like packed data"
            runs = -(1 << 60)  # once is enough
    if total > together:
        yield 1, f"literals of {total / 1024:.1f} KB together; {together / 1024:.0f} KB are allowed ({allowed})"


def literals(tree: ast.AST) -> Iterator[ast.expr]:
    """The largest expressions that hold constants alone: texts, numbers, and lists, sums and such of them."""
    constant: set[ast.AST] = set()
    for node in reversed(list(ast.walk(tree))):  # the parts of an expression before itself
        parts = (part for part in ast.iter_child_nodes(node) if not isinstance(part, OPERATORS))
        if isinstance(node, LITERALS) and all(part in constant for part in parts):
            constant.add(node)
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.expr) and node in constant:
            yield node
        else:
            left += ast.iter_child_nodes(node)


def constants_in(node: ast.AST) -> list:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]


def size_of(node: ast.AST) -> int:
    """Bytes of the constants in an expression."""
    return sum(map(bytes_of, constants_in(node)))


def bytes_of(value: object) -> int:
    """Bytes that a constant takes in the source, more or less."""
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass"))
    if isinstance(value, int) and not isinstance(value, bool):
        return 2 + value.bit_length() * 3 // 10  # digits, and a comma
    return len(value) if isinstance(value, bytes) else len(repr(value))


def bits_of(text: str) -> float:
    """Bits a character, by how often each occurs; 0 for what is too short to say."""
    counts = collections.Counter(text).values() if len(text) >= LONG else ()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


# ----------------------------------------------------------------------------------------------
# Rehearsing the model


def rehearse(path: Path, fake: bool | None = None) -> str | None:
    """Why the model cannot work, or None: also when fake tensors cannot tell, since then only a trial can.

    fake: take fake tensors, two rows of them; default: where there is a GPU. On a CPU a single real row is
    quicker and knows everything.
    """
    import torch

    sys.path.insert(0, str(path.parent))
    fake = torch.cuda.is_available() if fake is None else fake
    if fake:
        setattr(torch, "compile", uncompiled)  # noqa: B010
    try:
        train = importlib.import_module(path.stem)
        if fake:
            rehearse_on_fake_tensors(torch, train)
        else:
            forward_and_backward(torch, train.build_model(), rows=1)
    except Refused as error:
        return str(error)
    except SystemExit as error:
        return f"{path.name} ends by itself when it is imported or built: {error}"
    except BaseException as error:
        if fake and "out of memory" in str(error):  # of the GPU, which a trial has filled: these tensors take none
            return None
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).name == path.name
        ]
        where = f" line {lines[-1]}" if lines else ""
        return f"{path.name}{where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def uncompiled(function=None, **options):
    """In place of torch.compile: shapes need no compiler, which would take longer than all the rest."""
    if function is None:
        return uncompiled
    with contextlib.suppress(AttributeError, TypeError):
        object.__setattr__(function, "_orig_mod", function)  # as a compiled module has one; this is no submodule
    return function


def rehearse_on_fake_tensors(torch, train) -> None:
    from torch._subclasses import fake_tensor

    undecided = (
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
        NotImplementedError,
        fake_tensor.UnsupportedFakeTensorException,
        fake_tensor.UnsupportedOperatorException,
    )
    try:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            forward_and_backward(torch, train.build_model(), rows=2)
    except undecided:
        pass
    except Exception as error:
        said = f"{type(error).__name__} {error}".lower()
        if not any(word in said for word in ("fake", "subclass")):  # else it is about the means, not the model
            raise


class Refused(Exception):
    """A model that works but does not keep the contract."""


def forward_and_backward(torch, model, rows: int) -> None:
    from prepare import MAX_SEQ_LEN, VOCAB_SIZE

    if not isinstance(model, torch.nn.Module):
        raise Refused(f"build_model() must return a torch.nn.Module, not {type(model).__name__}")
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    logits = model(torch.zeros(rows, MAX_SEQ_LEN, dtype=torch.int64, device=device))
    expected = (rows, MAX_SEQ_LEN, VOCAB_SIZE)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected or not logits.is_floating_point():
        form = f"{tuple(logits.shape)} {logits.dtype}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise Refused(f"model(idx) must give logits {expected} in floating point, not {form}")
    if logits.requires_grad:
        targets = torch.zeros(rows * MAX_SEQ_LEN, dtype=torch.int64, device=logits.device)
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets).backward()


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose names are not train.py's
    reason = rehearse(Path(sys.argv[1]).absolute())
    if reason:
        print(f"\n{reason}", flush=True)
    os._exit(1 if reason else 0)
