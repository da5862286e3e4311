"""The text editor of the claude-api agent: the same tool as Anthropic's built-in one. It reaches the editable files."""

import os
from pathlib import Path

from autoresearch import disk_is_full
from autoresearch.editable import may_edit

EDITOR = "str_replace_based_edit_tool"
# For servers that do not have it built in.
PLAIN_EDITOR = {
    "name": EDITOR,
    "description": "View or edit a file. `view`: the file with line numbers, or only the lines of view_range. "
    "`str_replace`: replace old_str, which must occur exactly once, by new_str. `insert`: insert insert_text after "
    "line insert_line. `create`: replace the whole file by file_text.",
    "input_schema": {
        "type": "object",
        "required": ["command", "path"],
        "properties": {
            "command": {"type": "string", "enum": ["view", "str_replace", "insert", "create"]},
            "path": {"type": "string"},
            "view_range": {"type": "array", "items": {"type": "integer"}},
            "old_str": {"type": "string"},
            "new_str": {"type": "string"},
            "insert_line": {"type": "integer"},
            "insert_text": {"type": "string"},
            "file_text": {"type": "string"},
        },
    },
}


class ToolError(Exception):
    """A tool call that cannot be carried out. The text tells the model why."""


class Editor:
    def __init__(self, folder: Path, editable: tuple[str, ...]) -> None:
        self.folder, self.editable = folder, editable

    def edit(self, given: dict) -> str:
        """What a call of the tool answers. Raises ToolError, and OSError if the disk is full."""
        try:
            return self.carry_out(given)
        except (OSError, ValueError) as error:  # no file can have this name: too long, below another file, not text
            if disk_is_full(error):
                raise
            raise ToolError(f"there can be no such file: {getattr(error, 'strerror', None) or error}") from None

    def carry_out(self, given: dict) -> str:
        """Do what the call says. Line ends, and what is no UTF-8, stay as they are."""
        path = self.path_of(given)
        command = given.get("command")
        raw = path.read_bytes() if path.exists() else b""
        ends = "\r\n" if 0 < raw.count(b"\n") == raw.count(b"\r\n") else "\n"
        source = raw.decode(errors="surrogateescape").replace(ends, "\n")
        match command:
            case "create":
                source = text_of(given, "file_text")
            case "view":
                shown = source.encode(errors="surrogateescape").decode(errors="replace")
                return view(shown, given.get("view_range"))
            case "str_replace":
                old = text_of(given, "old_str")
                found = source.count(old) if old else 0
                if found != 1:
                    raise ToolError(f"`old_str` occurs {found} times in {path.name}; it must occur exactly once")
                source = source.replace(old, text_of(given, "new_str", ""))
            case "insert":
                lines, after = source.splitlines(keepends=True), given.get("insert_line")
                if not isinstance(after, int) or not 0 <= after <= len(lines):
                    raise ToolError(f"`insert_line` must be from 0 to {len(lines)}")
                text = text_of(given, "insert_text")
                lines[after:after] = [text if text.endswith("\n") else text + "\n"]
                source = "".join(lines)
            case _:
                raise ToolError(f"there is no command {command!r}: view, str_replace, insert, create")
        path.write_bytes(source.replace("\n", ends).encode(errors="surrogateescape"))
        return "written" if command == "create" else "edited"

    def path_of(self, given: dict) -> Path:
        """The file that a tool call names: by its whole path or from the folder, which some models call /repo."""
        said, editable = str(given.get("path") or ""), self.editable
        relative = os.path.normpath(os.path.join(self.folder, said.removeprefix("/repo/").lstrip("/")))
        for path in map(Path, (relative, os.path.normpath(said))):
            name = str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else ""
            new = given.get("command") == "create" and not os.path.lexists(path) and path.resolve() == path
            if may_edit(editable, name) and (new or (path.is_file() and not path.is_symlink())):
                path.parent.mkdir(parents=True, exist_ok=True)
                return path
        raise ToolError(f"only {', '.join(editable)} can be viewed and edited, not {given.get('path')!r}")


def text_of(given: dict, name: str, default: str | None = None) -> str:
    text = given.get(name, default)
    if not isinstance(text, str):
        raise ToolError(f"`{name}` must be a string")
    return text.encode(errors="replace").decode().replace("\r\n", "\n")


def view(source: str, lines: object) -> str:
    """A file with line numbers, or a range [first, last] of it, last -1 for the end."""
    numbered = [f"{number}\t{line}" for number, line in enumerate(source.splitlines(), 1)]
    if lines is None:
        return "\n".join(numbered)
    if not (
        isinstance(lines, list)
        and len(lines) == 2
        and all(isinstance(n, int) for n in lines)
        and 1 <= lines[0] <= len(numbered)
    ):
        raise ToolError(f"`view_range` must be [first, last] between 1 and {len(numbered)}")
    return "\n".join(numbered[lines[0] - 1 : None if lines[1] == -1 else lines[1]])
