"""program.md: where it is, its agenda, and the settings in its front matter.

Without a `task:` in it the game is this project's own: train.py, prepare.py, val_bpb.
Any other repository with a number to improve has, in YAML between two lines of dashes:

    ---
    task:
      editable: [solver.py]           # the files an experiment may change; also globs: src/**/*.py
      context: [score.py]             # other files that agents are shown
      train: python solver.py         # the command of one trial; its log is kept
      score: python score.py          # optional: the command that prints the metric; else `train` prints it
      metric: accuracy                # the last line `accuracy: 0.93` is the score
      direction: maximize             # or minimize (default)
      repeats: 5                      # optional: runs of the command that prints the metric; the median counts
      guard: python -m pytest -q      # optional: must succeed before anything is kept
      time_limit: 60                  # seconds for `train`
      readable: [/data/numbers]       # files outside the repository that the commands may read (they run in a sandbox)
      setup: npm ci                   # runs once in the worktree, with your permissions; its files stay
      env: [LANG, LEVEL=3]            # environment variables that the commands see
      link: [.venv, data/]            # untracked paths, linked into the worktree for reading
      network: loopback               # the commands may start servers on this machine
    simplicity: {gain: 0.01, lines: 10}             # optional: ten added lines must bring a gain of 0.01
    stages: {refine: 3, pivot: 5, outside: 2}       # optional: verdicts without a keep before the approach changes
    imports: [scipy]                                # optional: train.py of this project's game may import these too
    size: {file: 256, literal: 4}                   # optional: KB of an editable file, and of a literal in train.py
    ---
"""

import dataclasses
import difflib
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from autoresearch import UserError
from autoresearch.editable import inside
from autoresearch.task import COMMANDS, MOST_REPEATS, NOTHING, OWN_GAME, Stages, Task
from autoresearch.text import METRIC, to_type

SETTINGS = ("task", "simplicity", "stages", "imports", "size")  # of the front matter
DRIVING = "Running the experiments yourself"  # chapter of program.md that is for external agents only
UNITS = {"time_limit": "seconds", "score_limit": "seconds", "memory_limit": "GiB", "disk_limit": "GiB"}
UNITS |= {"largest_file": "KB", "largest_literal": "KB"}


def program_of(root: Path, folder: Path) -> Path:
    """The program.md for a folder of the checkout: the nearest one at or above it; if there is none, where it would be.

    Inside a run's worktree it is the one in the user's checkout.
    """
    inside = folder.resolve().relative_to(root)
    if inside.parts[:1] == (".autoresearch",):
        inside = Path(*inside.parts[3:])
    places = [root / inside, *(root / above for above in inside.parents)]
    return next((place / "program.md" for place in places if (place / "program.md").exists()), root / "program.md")


def is_own_game(root: Path) -> bool:
    """Whether a repository contains this project's own game."""
    return (root / "prepare.py").is_file() and (root / "autoresearch/referee").is_dir()


def read_agenda(path: Path) -> str:
    """The text of program.md below its front matter, without the chapter for external agents; empty without a file."""
    text = split_front_matter(read_text(path))[1]
    return re.sub(rf"^# {DRIVING}.*?(?=^# |\Z)", "", text, flags=re.MULTILINE | re.DOTALL).strip()


def read_task(path: Path, root: Path | None = None) -> Task:
    """The task of a program.md. Without a file, or without a `task:` in it, this project's own game.

    root: of the repository. In another repository it raises UserError instead.
    """
    settings = read_front_matter(path)
    inside = path.parent.relative_to(root or path.parent).as_posix()
    folder = "" if inside == "." else inside
    more: dict[str, Any] = {}
    if settings.get("simplicity") is not None:
        more["line_price"] = check_price(settings["simplicity"], path)
    if settings.get("imports") is not None:
        more["imports"] = check_names("imports", settings["imports"], path)
    if settings.get("size") is not None:
        more |= check_sizes(settings["size"], path)
    if settings.get("task") is not None:
        task = check_task(settings["task"], path, folder)
    elif root is None or is_own_game(root):
        task = OWN_GAME
    else:
        raise UserError(no_task(path))
    return dataclasses.replace(task, **more)


def no_task(path: Path) -> str:
    """The message if program.md is missing, or does not say what to improve."""
    if not path.exists():
        what = f"there is no program.md in {path.parent}; it says what to improve and how to measure it"
    elif re.search(r"^\ufeff?task:", read_text(path), re.MULTILINE):
        what = f"the `task:` of {path} is not in its front matter: put it at the top, between two lines of ---"
    else:
        what = f"{path} has no `task:` in its front matter; it says what to edit, run and measure"
    return f'{what}; to have one made, type: {to_type("plan")} "what to improve, e.g. make parsing faster"'


def read_stages(path: Path) -> Stages:
    """The stages of a program.md."""
    settings = read_front_matter(path).get("stages") or {}
    known = [field.name for field in dataclasses.fields(Stages)]
    if (
        not isinstance(settings, dict)
        or settings.keys() - set(known)
        or not all(type(n) is int and n > 0 for n in settings.values())
    ):
        raise UserError(f"`stages` in {path} must hold whole numbers above zero for {', '.join(known)}")
    stages = Stages(**settings)
    if stages.refine > stages.pivot:
        raise UserError(f"`stages` in {path}: `refine` must not come after `pivot`")
    return stages


def read_front_matter(path: Path) -> dict:
    """The settings between two lines of dashes at the top of a program.md. Raises UserError."""
    import yaml

    text = read_text(path)
    front, _ = split_front_matter(text)
    if front is None:
        if re.match(r"\s*---[ \t]*\n", text):
            raise UserError(
                f"the front matter of {path} is not closed: it opens with --- and needs another line of --- below its "
                "settings"
            )
        return {}
    try:
        settings = yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + text[: text.index(front)].count(chr(10)) + 1}" if mark else ""
        raise UserError(f"the front matter of {path} is not YAML{where}: {getattr(error, 'problem', error)}") from None
    except ValueError as error:  # a date that is none
        raise UserError(f"the front matter of {path} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(
            f"the front matter of {path} must be `key: value` lines, e.g. `task:` with its settings below it"
        )
    if unknown := sorted(str(name) for name in settings.keys() - set(SETTINGS)):
        inside = [name for name in unknown if name in known_settings()]
        also = f". Put {', '.join(inside)} below `task:`, with two blanks before it" if inside else ""
        raise UserError(f"the front matter of {path} has unknown settings {near(unknown, SETTINGS)}{also}")
    return settings


def near(unknown: Sequence[str], known: Iterable[str]) -> str:
    """A list of unknown names, with suggestions, and all known names."""
    known = list(known)
    meant = {name: difflib.get_close_matches(name, known, 1, 0.7) for name in unknown}
    words = ", ".join(name + (f" (did you mean {meant[name][0]}?)" if meant[name] else "") for name in unknown)
    return f"{words}; known are {', '.join(known)}"


def check_sizes(settings: object, path: Path) -> dict[str, Any]:
    """The size limits of an edit, from `size: {file: 256, literal: 4}`, in KB; either may be missing."""
    if not isinstance(settings, dict) or settings.keys() - {"file", "literal"}:
        raise UserError(f"`size` in {path} must hold `file`, `literal` or both, in KB, e.g. {{file: 256, literal: 4}}")
    if not all(type(size) in (int, float) and 0 < size < float("inf") for size in settings.values()):
        raise UserError(f"`size` in {path} must hold numbers of KB above zero")
    return {f"largest_{name}": size for name, size in settings.items()}


def check_price(settings: object, path: Path) -> float:
    """The gain that an added line must bring, from `simplicity: {gain: 0.001, lines: 20}`."""
    if (
        not isinstance(settings, dict)
        or settings.keys() != {"gain", "lines"}
        or not all(type(n) in (int, float) for n in settings.values())
    ):
        raise UserError(f"`simplicity` in {path} must hold two numbers: the `gain` required for so many added `lines`")
    if not (0 <= settings["gain"] < float("inf") and 0 < settings["lines"] < float("inf")):
        raise UserError(f"`simplicity` in {path}: `gain` must be 0 or more and `lines` above 0")
    return settings["gain"] / settings["lines"]


def read_text(path: Path) -> str:
    """A program.md as text, without a byte order mark; empty without a file. Raises UserError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is saved as UTF-16; save it as UTF-8")
    return raw.decode("utf-8-sig", "replace").replace("\r\n", "\n")


def split_front_matter(text: str) -> tuple[str | None, str]:
    """(What stands between two leading lines of dashes, None without them; the rest.)"""
    found = re.match(r"\s*---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return (found[1], text[found.end() :]) if found else (None, text)


def check_names(name: str, value: object, path: Path) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(item, str) and item.strip() for item in listed):
        raise UserError(f"`{name}` in {path} must be a list of names, such as [a, b], not {listed!r}")
    return tuple(listed)


def check_also(settings: object, path: Path) -> dict[str, dict]:
    """Other figures and their limits, from `{bytes: {max: +5%}, peak_mb: {direction: minimize}}` or a list of names."""
    if isinstance(settings, list) and all(isinstance(name, str) for name in settings):
        settings = {name: {} for name in settings}
    if not isinstance(settings, dict) or not all(isinstance(limits, dict | None) for limits in settings.values()):
        raise UserError(f"`also` in {path} must hold names of figures, each with its limits: {{bytes: {{max: +5%}}}}")
    for name, limits in settings.items():
        for key, value in (limits or {}).items():
            if key == "direction" and value in ("minimize", "maximize"):
                continue
            percent = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d+)?\s*%", value)
            if key not in ("max", "min") or not (percent or type(value) in (int, float)):
                raise UserError(
                    f"`also` in {path}: {name} takes `max` and `min`, each a number or a percentage of the baseline's "
                    f"such as +5%, and `direction`, minimize or maximize; not {key}: {value!r}"
                )
    return {str(name): dict(limits or {}) for name, limits in settings.items()}


def check_surroundings(values: dict[str, Any], path: Path, folder: str) -> None:
    """Raises UserError for invalid settings of the commands' environment. folder: of program.md, from the root."""
    for entry in values.get("env", ()):
        if not re.fullmatch(r"[A-Za-z_]\w*(=.*)?", entry, re.DOTALL):
            raise UserError(f"`env` in {path} takes NAME or NAME=value, not {entry!r}")
    if "link" in values:
        values["link"] = tuple(check_path("link", link, path, folder) for link in values["link"])
    if "also" in values:
        values["also"] = check_also(values["also"], path)
    if "range" in values:
        bounds = values["range"] if isinstance(values["range"], list) else []
        if len(bounds) != 2 or not all(type(end) in (int, float) for end in bounds) or not bounds[0] < bounds[1]:
            raise UserError(
                f"`range` in {path} must hold the least and the largest score, such as [0, 1], not {values['range']!r}"
            )
        values["range"] = tuple(bounds)
    if values.get("network", "") not in ("", "loopback"):
        raise UserError(
            f"`network` in {path} can be loopback, not {values['network']!r}: trials reach no other machine. Let "
            "`setup` download what they need"
        )


def check_path(name: str, value: str, path: Path, folder: str) -> str:
    """A path of the repository, from its root. folder: that of program.md, which it is relative to."""
    found = inside(folder, value)
    if value.startswith("/") or found.startswith(".."):
        raise UserError(f"`{name}` in {path}: {value} lies outside the repository; give a path from {path.parent}")
    return found


def known_settings() -> list[str]:
    return [field.name for field in dataclasses.fields(Task) if field.name != "folder"]


def check_task(settings: object, path: Path, folder: str = "") -> Task:
    """The Task that the settings describe. Raises UserError if invalid. folder: of program.md, from the root."""
    known = known_settings()
    if not isinstance(settings, dict):
        raise UserError(f"`task` in {path} must have settings below it, one per line: {', '.join(known)}")
    if unknown := sorted(str(name) for name in settings if name not in known):
        raise UserError(f"`task` in {path} has unknown settings {near(unknown, known)}")
    hints = get_type_hints(Task)
    values: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    for name, value in values.items():
        if hints[name] == tuple[str, ...]:
            values[name] = check_names(name, value, path)
        elif hints[name] is bool and not isinstance(value, bool):
            raise UserError(f"`{name}` in {path} must be true or false, not {value!r}")
        elif name in UNITS and not (type(value) in (int, float) and 0 < value < math.inf):
            raise UserError(f"`{name}` in {path} must be a number of {UNITS[name]} above zero, not {value!r}")
        elif name == "line_price" and type(value) not in (int, float):
            raise UserError(f"`{name}` in {path} must be a number, not {value!r}")
        elif hints[name] in (str, str | None) and not (isinstance(value, str) and "\0" not in value):
            quoted = str(value).lower() if isinstance(value, bool) else value
            raise UserError(
                f"`{name}` in {path} must be a shell command, not {value!r}"
                if name in COMMANDS and not isinstance(value, bool)
                else f'`{name}` in {path} must be a text, not {value!r}; put it in quotes: {name}: "{quoted}"'
            )
    for name in COMMANDS:
        try:
            if name in values and not values[name].strip():
                del values[name]
            elif name in values and "\n" not in values[name].strip():  # a script is left to the shell
                shlex.split(values[name])
        except ValueError as error:
            text = values[name]
            raise UserError(f"`{name}` in {path} must be a shell command, not {text!r}: {error}") from None
    check_surroundings(values, path, folder)
    if type(repeats := values.get("repeats", 1)) is not int or not 1 <= repeats <= MOST_REPEATS:
        raise UserError(f"`repeats` in {path} must be a whole number from 1 to {MOST_REPEATS}, not {repeats!r}")
    if "score" in values:
        values.setdefault("train", NOTHING)
    if missing := [name for name in ("editable", "train", "metric") if not values.get(name)]:
        raise UserError(f"`task` in {path} lacks {', '.join(missing)}")
    if not re.fullmatch(METRIC, values["metric"]):
        raise UserError(
            f"`metric` in {path} must be a name of letters, digits and _ . - / as a command prints it, not "
            f"{values['metric']!r}"
        )
    if (direction := values.get("direction", "minimize")) not in ("minimize", "maximize"):
        meant = {"min": "minimize", "low": "minimize", "dow": "minimize"}.get(direction[:3].lower(), "maximize")
        raise UserError(f"`direction` in {path} must be minimize or maximize, not {direction!r}; did you mean {meant}?")
    if values.get("hidden") and "score" not in values:
        raise UserError(f"`hidden` in {path} needs a `score` command, which prints the metric and can read these files")
    for name in ("editable", "context", "hidden"):
        values[name] = tuple(check_path(name, value, path, folder) for value in values.get(name, ()))
    return Task(**values, folder=folder)
