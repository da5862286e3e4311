"""The command by which bubblewrap shows a command its files, and no others."""

import os
import shutil
from collections.abc import Set

from . import paths
from .privileges import SHARED_MEMORY, SHARED_MEMORY_OF_BUILDS, needs_override, wants_shared_memory
from .system_calls import filter_program


def wrapped(rules: dict, folder: str) -> list[str]:
    """The bubblewrap command that a command is appended to; it runs in `folder`."""
    read, write, hidden, shown = paths.paths_of(rules)
    words = [
        shutil.which("bwrap") or "bwrap",
        "--die-with-parent",
        "--unshare-net",
        "--unshare-pid",
        "--unshare-ipc",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]
    if os.geteuid() == 0:
        words += ["--cap-drop", "ALL"]
        if needs_override((*read, *write)):
            words += ["--cap-add", "CAP_DAC_OVERRIDE"]
    changes = "allow" if rules.get("builds") else "nothing"  # what is bound for reading stays as it is
    if program := filter_program(rules, changes):
        handle = os.memfd_create("filter", 0)
        os.write(handle, program)
        os.lseek(handle, 0, os.SEEK_SET)
        words += ["--seccomp", str(handle)]
    mounts = [(path, ["--ro-bind-try", path, path]) for path in (*paths.SYSTEM, *paths.ETC_FILES, *read, *shown)]
    gpu = paths.gpu_devices() if rules["gpu"] else ()
    mounts += [(path, ["--dev-bind-try", path, path]) for path in gpu]
    mounts += [(path, ["--bind-try", path, path]) for path in write]
    given = {os.path.realpath(path) for path in (*read, *write)}
    hidden = [path for path in hidden if os.path.exists(path) and not is_gone(path, set(hidden), given)]
    mounts += [
        (path, ["--tmpfs", path] if os.path.isdir(path) else ["--ro-bind", "/dev/null", path]) for path in hidden
    ]
    for _, mount in sorted(mounts, key=lambda mount: mount[0].count("/")):  # a folder before what lies in it
        words += mount
    if wants_shared_memory(rules):
        words += ["--size", str(SHARED_MEMORY), "--tmpfs", "/dev/shm"]
    if rules.get("builds"):
        words += ["--size", str(SHARED_MEMORY_OF_BUILDS), "--tmpfs", "/dev/shm"]
    for path in ("/", "/dev", *filter(os.path.isdir, hidden)):
        words += ["--remount-ro", path]
    return [*words, "--chdir", folder, "--"]


def is_gone(path: str, hidden: Set[str], given: Set[str]) -> bool:
    """Whether a path is not there because a folder above it is hidden, and none below that is given again."""
    while path not in given and path != "/":
        path = os.path.dirname(path)
        if path in hidden:
            return path not in given
    return False
