"""Which files an edit may change: paths from the repository's root, and globs, `src/**/*.py`, including new files."""

import functools
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

STEPS = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}


def is_glob(name: str) -> bool:
    return bool(re.search(r"[*?\[]", name))


@functools.cache
def pattern_of(glob: str) -> re.Pattern:
    """`**/` stands for any folders, `*` and `?` for what is in one name. What is no glob, `[z-a]`, fits itself."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob)
    try:
        return re.compile("".join(STEPS.get(part, part if part[:1] == "[" else re.escape(part)) for part in parts))
    except re.error:
        return re.compile(re.escape(glob))


def inside(folder: str, name: str) -> str:
    """The path from the repository's root of what a name means in a folder."""
    return posixpath.normpath(posixpath.join(folder, name))


def words_in(command: str | None) -> list[str]:
    """The words of a command that may be names of files."""
    return re.findall(r"[^\s'\";&|()<>]+", command or "")


def may_edit(editable: Sequence[str], path: str) -> bool:
    """Globs fit names that can be told: neither bytes that are no UTF-8 nor control characters."""
    globs = filter(is_glob, editable) if path.isprintable() else ()
    return path in editable or any(pattern_of(glob).fullmatch(path) for glob in globs)


def is_in(names: Sequence[str], path: str) -> bool:
    """Whether a file is one of these files, fits one of these globs, or lies in one of these folders."""
    return may_edit(names, path) or any(path.startswith(f"{name}/") for name in names)


def among(editable: Sequence[str], paths: Iterable[str]) -> list[str]:
    """The editable files among paths; those that are named in full in any case, and first."""
    named = [name for name in editable if not is_glob(name)]
    return [*named, *sorted(path for path in set(paths) - set(named) if may_edit(editable, path))]


def in_folder(editable: Sequence[str], folder: Path) -> list[str]:
    """The editable files in a worktree."""
    if not any(map(is_glob, editable)):
        return list(editable)
    found = []
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if name != ".git"]
        found += [os.path.relpath(os.path.join(place, name), folder) for name in names]
    return among(editable, found)


def pathspecs(editable: Iterable[str], *magic: str) -> list[str]:
    """The same for git."""
    specs = ((name, [*magic, "glob"] if is_glob(name) else [*magic]) for name in editable)
    return [f":({','.join(words)}){name}" if words else name for name, words in specs]
