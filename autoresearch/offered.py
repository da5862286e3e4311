"""What prepare.py offers to train.py, as an agent is told: values, signatures and docstrings, without the code."""

import ast
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path

from autoresearch.preflight import FROM_PREPARE


def offered(path: Path, names: Iterable[str] = frozenset(FROM_PREPARE)) -> str:
    """The public part of prepare.py, of these names. Empty where there is none, or one that does not parse."""
    try:
        source = path.read_text()
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return ""
    parts = ("\n".join(outline(node, source, set(names))) for node in tree.body)
    return "\n\n".join(filter(None, parts))


def outline(node: ast.stmt, source: str, names: set[str]) -> Iterator[str]:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)) if name in names:
            yield source.splitlines()[node.lineno - 1]
        case ast.FunctionDef(name=name) if name in names:
            yield from signature(node, "")
        case ast.ClassDef(name=name) if name in names:
            yield f"class {name}:"
            yield from docstring(node, "    ")
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and (part.name == "__init__" or not part.name.startswith("_")):
                    yield from signature(part, "    ")


def signature(node: ast.FunctionDef, indent: str) -> Iterator[str]:
    yield from (f"{indent}@{ast.unparse(decorator)}" for decorator in node.decorator_list)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    yield f"{indent}def {node.name}({ast.unparse(node.args)}){returns}:"
    yield from docstring(node, indent + "    ")


def docstring(node: ast.FunctionDef | ast.ClassDef, indent: str) -> Iterator[str]:
    said = inspect.cleandoc(ast.get_docstring(node) or "...")
    quoted = f'"""{said}"""' if said != "..." else said
    yield from (f"{indent}{line}".rstrip() for line in quoted.splitlines())
