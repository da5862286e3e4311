"""The sandbox of a trial: the command prefix that starts it, and what this machine supports.

The prefix starts a keeper (keeper/, a separate program), which puts the command into the sandbox and ends everything
that it has started.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from autoresearch.runner.keeper.landlock import version

START = "import sys; sys.path.append(sys.argv.pop(1)); from keeper.main import main; main()"


def method() -> str:
    """The sandbox of this machine: `Landlock`, `bubblewrap`, or none (empty).

    Landlock needs version 2: version 1 does not allow moving files.
    """
    return "Landlock" if version() >= 2 else "bubblewrap" if bubblewrap() else ""


def launcher(rules: dict | None) -> list[str]:
    """The words that go before a command to run it below a keeper and, with rules, confined.

    rules: paths to `read` and to `write`, and what is `hidden` in them. This interpreter and its packages can always be
    read. `strict`: no symbolic links or pipes, no text among the system's files and packages, no packages that this
    interpreter does not use, but where that can be a /dev/shm of its own (64 MB); `imports` names packages that it sees
    all the same. `alone`, of a model's process: not that either, no hard links and no locks. `builds`, of another
    repository's commands: modes and times of files that they may write can be set, and they have shared memory and
    pseudo-terminals of their own, where the machine can. `network`: a loopback of their own, too. `gpu`, unless
    False: the device files of GPUs.
    """
    if rules is None:
        return keeper(None)
    packages = sysconfig.get_path("purelib")
    links = [entry.path for entry in os.scandir(packages) if entry.is_symlink()]  # an installer's choice
    library = sysconfig.get_path("stdlib")
    others = sysconfig.get_path("purelib", vars={"base": sys.base_prefix})  # of the Python below this environment
    unused = [] if others in (packages, *sys.path) else [others]
    read = [sys.prefix, sys.base_prefix, *links, *rules.get("read", [])]
    known = {"packages": packages, "unused": unused, "library": library}
    return keeper({"gpu": True, **rules, "by": method(), "read": read, **known})


def keeper(rules: dict | None) -> list[str]:
    """Without site and the user's settings: every process of a trial waits for it."""
    return [sys.executable, "-I", "-S", "-c", START, str(Path(__file__).resolve().parent), json.dumps(rules)]


@functools.cache
def bubblewrap() -> bool:
    """Whether there is a bubblewrap that can create namespaces here."""
    probe = [*keeper({"by": "bubblewrap", "gpu": True}), "true"]
    return bool(shutil.which("bwrap")) and subprocess.run(probe, cwd="/", capture_output=True).returncode == 0
