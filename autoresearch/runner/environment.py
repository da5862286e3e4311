"""What the commands of a trial see of the user's environment.

In this project's own game, and for its model processes: what Python, torch and a compiler need. In other repositories:
the programs that the user's shell would start there, and what these need to read.
"""

import fnmatch
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the processes that run a model import this, and must start quickly
    from autoresearch.task import Task

HARMLESS = (
    *("PATH", "LANG", "LC_*", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_*", "NVIDIA_*", "PYTORCH_*", "TORCH_*"),
    *("OMP_*", "MKL_*", "OPENBLAS_*", "CC", "CXX"),
)
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")  # name folders of compiled kernels
# Where other languages' tools and their settings are.
TOOLS = (
    *("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH", "LIBRARY_PATH", "PKG_CONFIG_PATH", "MAKEFLAGS", "TERM"),
    *("CONDA_*", "PYENV_*", "NVM_*", "NODE_PATH", "JAVA_HOME", "GOPATH", "GOROOT", "GOFLAGS", "GOTOOLCHAIN"),
    *("CARGO_HOME", "RUSTUP_*", "RUSTFLAGS", "RBENV_*", "GEM_*", "DOTNET_ROOT"),
)
# What toolchains keep in the user's home: programs and downloaded packages. No settings, which may hold keys.
TOOLS_AT_HOME = (
    *(".pyenv", ".nvm", ".volta", ".asdf", ".rbenv", ".rustup", ".bun/bin", ".deno/bin", ".ghcup/bin"),
    *(".cargo/bin", ".cargo/registry", ".cargo/git", ".cargo/config.toml", "go/pkg/mod", ".m2/repository"),
    *(".sdkman/candidates", ".juliaup", ".local/share/uv/python", ".local/share/mise/installs", ".local/lib"),
)
# Variables by which they find that, since a command's own home is empty.
FINDS_ITS_HOME = {"PYENV_ROOT": ".pyenv", "RUSTUP_HOME": ".rustup", "CARGO_HOME": ".cargo", "NVM_DIR": ".nvm"}
FINDS_ITS_HOME |= {"GOPATH": "go", "PYTHONUSERBASE": ".local", "RBENV_ROOT": ".rbenv", "ASDF_DATA_DIR": ".asdf"}
VIRTUAL = (".venv", "venv")  # environments of a repository's own


def matching(environment: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """The variables whose names match one of the patterns."""
    patterns = list(patterns)
    return {
        name: value
        for name, value in environment.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


# ----------------------------------------------------------------------------------------------
# Other repositories


def own_programs() -> str:
    """The folder of the Python that runs this program."""
    return str(Path(sys.prefix) / "bin")


def is_borrowed(folder: str) -> bool:
    """Whether a folder is on PATH only because `uv run --project` started this program."""
    return os.path.realpath(folder) == os.path.realpath(own_programs()) and (
        Path(sys.prefix).is_relative_to(Path(__file__).resolve().parents[2])
    )


def of_the_shell(environment: Mapping[str, str], places: Iterable[Path]) -> dict[str, str]:
    """PATH and VIRTUAL_ENV as in the user's own shell: with a virtual environment that is active or lies in one of the
    places, the first one found, and with the programs of node_modules. Last comes this program's own Python."""
    paths = [path for path in environment.get("PATH", os.defpath).split(os.pathsep) if path and not is_borrowed(path)]
    active = environment.get("VIRTUAL_ENV", "")
    if active and is_borrowed(f"{active}/bin"):
        active = ""
    places = list(places)
    found = [place / name for place in places for name in VIRTUAL if (place / name / "bin/python").exists()]
    # The set-up's own goes first.
    nearest = found[0] if found and (not active or found[0].parent == places[0]) else None
    ahead = [f"{nearest}/bin"] if nearest else []
    ahead += [str(place / "node_modules/.bin") for place in places if (place / "node_modules/.bin").is_dir()]
    said = {"PATH": os.pathsep.join(dict.fromkeys([*ahead, *paths, own_programs()]))}
    if nearest or active:
        said["VIRTUAL_ENV"] = str(nearest or active)
    return said


def passed_on(task: "Task", environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a task names: `NAME`, as the user has it, or `NAME=value`."""
    pairs = [entry.partition("=") for entry in task.env]
    return {name: value if given else environment[name] for name, given, value in pairs if given or name in environment}


def commands_environment(task: "Task", environment: Mapping[str, str], places: Iterable[Path]) -> dict[str, str]:
    """What another repository's commands see of the user's environment, but for what the loop adds.

    places: the folder in which they run, then the user's checkout.
    """
    home = Path(environment.get("HOME") or "/")
    kept = matching(environment, TOOLS)
    kept |= {name: str(home / at) for name, at in FINDS_ITS_HOME.items() if name not in kept and (home / at).is_dir()}
    return {**kept, **of_the_shell(environment, places), **passed_on(task, environment)}


def programs_of(task: "Task") -> set[str]:
    """Words of a task's commands that may be programs."""
    commands = filter(None, (task.train, task.score, task.guard, task.holdout, task.setup))
    words = {word for command in commands for word in re.findall(r"[\w./+-]+", command)}
    return words | {"python", "python3", "node", "sh", "bash"}


def toolchains(task: "Task", environment: Mapping[str, str], places: Iterable[Path]) -> list[str]:
    """Paths that the programs of the user's shell need, besides the system's: themselves and what belongs to them."""
    home = Path(os.path.realpath(environment.get("HOME") or "/"))
    closed = {home, *home.parents, home / "go"}
    paths = environment["PATH"].split(os.pathsep)
    programs = filter(None, (shutil.which(name, path=environment["PATH"]) for name in programs_of(task)))
    folders = [*map(os.path.realpath, paths), *(os.path.dirname(os.path.realpath(program)) for program in programs)]
    found: dict[str, None] = {}
    for folder in map(Path, folders):
        above = folder.parent if folder.name in ("bin", "sbin", "shims", "scripts") else folder
        found[str(folder if above in closed or above.name in (".local", ".cargo") else above)] = None
    found |= dict.fromkeys(str(home / name) for name in TOOLS_AT_HOME if (home / name).exists())
    for place in places:
        for name in (*VIRTUAL, "node_modules"):
            found[str(place / name)] = None
    if virtual := environment.get("VIRTUAL_ENV"):
        found[virtual] = None
    for name in [*found]:
        with_home = Path(name, "pyvenv.cfg")
        if with_home.is_file() and (base := re.search(r"^home\s*=\s*(.+?)\s*$", with_home.read_text(), re.MULTILINE)):
            found[os.path.realpath(Path(base[1]).parent)] = None  # the Python that the environment was made from
    return [path for path in found if Path(path) not in closed and os.path.exists(path)]


# ----------------------------------------------------------------------------------------------
# Commands

QUOTED = r"""'[^']*'|"(?:[^"\\$`]|\\.)*"|\\."""  # which a shell takes as it is
SHELL = re.compile(r"[\n;&|<>()$`*?\[\]{}~#]|^\s*\w+=")


def their_words(command: str) -> list[str]:
    """The words of another repository's command. One that is more than a list of words is passed to a shell."""
    if not SHELL.search(re.sub(QUOTED, "", command.strip())):
        return shlex.split(command)
    if shell := shutil.which("bash"):
        return [shell, "-e", "-o", "pipefail", "-c", command]
    return [shutil.which("sh") or "/bin/sh", "-e", "-c", command]
