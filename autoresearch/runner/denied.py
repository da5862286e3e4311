"""What the sandbox denied a command, and how to allow it, guessed from its log: the kernel does not report it."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from autoresearch.runner.keeper.paths import ETC_FILES, PROC, SYSTEM

REFUSED = re.compile(r"permission denied|read-only file system|operation not permitted|\bE(?:ACCES|PERM|ROFS)\b", re.I)
MISSING = re.compile(r"no such file|\bENOENT\b|cannot (?:open|find|access)|not found|does not exist", re.I)
PATH = re.compile(r"(?<![\w./:-])/[^\s'\"`,;:()\[\]<>]+")
WRITES = re.compile(r"mkdir|creat|writ|unlink|remov|renam|touch|read-only", re.I)
NETWORK = re.compile(
    r"getaddrinfo|name resolution|could not resolve|\bENOTFOUND|\bEAI_AGAIN|\bENETUNREACH|"
    r"network is (?:unreachable|down)|"
    r"(?:socket|listen|connect|bind)\b.*(?:permission denied|operation not permitted|EACCES|EPERM)",
    re.I,
)
IN_A_SOCKET = re.compile(r"socket\.py\"|_socket|\bsocket\.(?:socket|create_\w+)\(")
SEMAPHORE = re.compile(r"SemLock|sem_open|synchronize\.py|shared_memory\.py|/dev/shm")
CUDA = re.compile(r"CUDA_ERROR_OPERATING_SYSTEM|\bError 304\b|OS call failed or operation not supported on this OS")
LONGEST_LINE = 4000  # characters; the time that these patterns take grows with the square of it
TERMINAL = re.compile(r"out of pty devices|openpty|posix_openpt|/dev/ptmx|forkpty")


def denied(log: str, rules: Mapping, root: Path) -> str:
    """What the sandbox denied, with the setting of `task` that allows it; empty if the log does not show any.

    rules: those of the command (sandbox.launcher). root: the user's checkout.
    """
    lines = [line[:LONGEST_LINE] for line in log.splitlines()[-200:]]
    refused = any(map(REFUSED.search, lines))
    if any(map(SEMAPHORE.search, lines)) and refused:
        return "the sandbox denied /dev/shm, which other programs share here: allow it with `writable: [/dev/shm]`"
    if any(map(CUDA.search, lines)):
        return (
            "the sandbox lets only the command itself start CUDA, not what it starts: name the program, `python "
            "train.py`, without a shell, make or `uv run` before it; or --sandbox off if you trust the agent's code"
        )
    if any(map(TERMINAL.search, lines)):
        return "the sandbox denied pseudo-terminals: allow them with `writable: [/dev/ptmx, /dev/pts]`"
    for line in reversed(lines):
        if REFUSED.search(line) or MISSING.search(line):
            for path in PATH.findall(line):
                if said := of_path(path.rstrip("."), line, rules, root):
                    return said
    if any(map(NETWORK.search, lines)) or (refused and any(map(IN_A_SOCKET.search, lines))):
        if rules.get("network"):
            return "the sandbox denied the network: it has only a loopback. Let `setup` download what is needed"
        return (
            "the sandbox denied the network: `network: loopback` allows servers on this machine; let `setup` download "
            "what comes from elsewhere"
        )
    return ""


def of_path(path: str, line: str, rules: Mapping, root: Path) -> str:
    """The same of a path that a line of the log names."""
    real = Path(os.path.realpath(path))
    if not (real.exists() or REFUSED.search(line)) or within(real, ["/proc", "/dev/null"]):
        return ""
    if within(real, rules["write"]):
        return ""
    if not within(real, rules["hidden"]) and within(
        real, [*rules["read"], *SYSTEM, *ETC_FILES, *(f"/proc/{name}" for name in PROC)]
    ):
        if not (REFUSED.search(line) and WRITES.search(line)):
            return ""
        folder = real if real.is_dir() else real.parent
        return f"the sandbox denied writing to {real}: allow it with `writable: [{folder}]`"
    if within(real, [root / ".git", root / ".autoresearch"]):
        return f"the sandbox denied {real}, which belongs to git or to the loop"
    if real.is_relative_to(root) and real != root:
        inside = real.relative_to(root)
        return f"the sandbox denied {real}: bring it into the worktree with `link: [{inside.parts[0]}]`"
    setting = "writable" if WRITES.search(line) else "readable"
    return f"the sandbox denied {real}: allow it with `{setting}: [{real}]`"


def within(path: Path, folders: Iterable[str | Path]) -> bool:
    return any(path.is_relative_to(os.path.realpath(folder)) for folder in folders)
