"""What prepare.py offers to train.py, for the brief: values, signatures and docstrings, without the code."""

import ast
import inspect
from collections.abc import Iterator

from autoresearch.preflight import FROM_PREPARE
from autoresearch.task import Facts


def offered(source: bytes, facts: Facts) -> str:
    """The public part of prepare.py for the game of these facts. Empty where it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    profile = profile_of(tree, facts.profile or "")
    parts = ("\n".join(outline(node, profile, facts.seed)) for node in tree.body)
    return "\n\n".join(filter(None, parts))


def profile_of(tree: ast.Module, name: str) -> dict[str, str]:
    """The sizes of a profile, as they stand in the file: `Profile("gpu", 300.0, ...)`. Empty where it is not found."""
    fields: list[str] = []
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name="Profile", body=body):
                fields = [ast.unparse(part.target) for part in body if isinstance(part, ast.AnnAssign)]
            case ast.Call(func=ast.Name(id="Profile"), args=[ast.Constant(value=value), *_]) if value == name:
                found = dict(zip(fields, map(ast.unparse, node.args), strict=False))
    return found


def outline(node: ast.stmt, profile: dict[str, str], seed: int | None) -> Iterator[str]:
    match node:
        case ast.Assign(targets=[ast.Name(id="PROFILE")]) if profile:
            yield f"PROFILE = Profile({', '.join(f'{name}={value}' for name, value in profile.items())})"
        case ast.Assign(targets=[ast.Name(id="SEED")]):
            yield f"SEED: int{'' if seed is None else f' = {seed}'}"
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Attribute(attr=field)) if name in FROM_PREPARE:
            yield f"{name} = {profile.get(field, f'PROFILE.{field}')}"
        case ast.FunctionDef(name=name) if name in FROM_PREPARE:
            yield from signature(node, "")
        case ast.ClassDef(name=name) if name in FROM_PREPARE:
            yield f"class {name}:"
            yield from docstring(node, "    ")
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and (part.name == "__init__" or not part.name.startswith("_")):
                    yield from signature(part, "    ")


def signature(node: ast.FunctionDef, indent: str) -> Iterator[str]:
    yield from (f"{indent}@{ast.unparse(decorator)}" for decorator in node.decorator_list)
    given = node.args
    if given.args and given.args[-1].arg == "game":  # for tests: train.py plays the one there is
        given.args.pop()
        given.defaults.pop()
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    yield f"{indent}def {node.name}({ast.unparse(given)}){returns}:"
    yield from docstring(node, indent + "    ")


def docstring(node: ast.FunctionDef | ast.ClassDef, indent: str) -> Iterator[str]:
    said = inspect.cleandoc(ast.get_docstring(node) or "...")
    quoted = f'"""{said}"""' if said != "..." else said
    yield from (f"{indent}{line}".rstrip() for line in quoted.splitlines())
