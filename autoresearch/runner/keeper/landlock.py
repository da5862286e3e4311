"""Landlock (linux/landlock.h): the rights to files that a process gives up for good, and all that it starts."""

import ctypes
import os
import struct
import sys
from collections.abc import Sequence, Set

from . import paths
from .kernel import NO_NEW_PRIVILEGES, libc, system_call

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
VERSION_FLAG = 1
PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE  # those that make sense for a single file
DEVICE_RIGHTS = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEVICE
FILE_RIGHTS_OF_VERSION = {2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
BOTH_TCP_RIGHTS = 0b11  # bind and connect, from version 4
BOTH_SCOPES, SIGNALS = 0b11, 0b10  # abstract sockets and signals, from version 6


def version() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    try:
        return system_call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG))
    except OSError:
        return 0


def restrict(
    read: list[str],
    write: list[str],
    hidden: list[str],
    shown: list[str],
    own: Sequence[str] = (),
    loopback: bool = False,
    gpu: bool = True,
) -> None:
    """Confine this process for good, and all that it starts. Paths that do not exist are passed over.

    read, write: files or folders, with all below them; what may be written may be read. hidden: what
    is taken out of them again, except that the folders above it can still be listed. shown: read in spite of it. own:
    devices that nobody else sees. loopback: there is a network that is nobody else's. gpu: it may be used.
    """
    known = version()
    handled = FILE_RIGHTS_OF_VERSION[max(v for v in FILE_RIGHTS_OF_VERSION if v <= known)]
    network = BOTH_TCP_RIGHTS if known >= 4 and not loopback else 0
    rules = ruleset(handled, network=network, scoped=BOTH_SCOPES if known >= 6 else 0)
    above = {path[:end] or "/" for path in hidden for end, letter in enumerate(path) if letter == "/"}
    rights: dict[str, int] = {}
    for listed, allowed in (((*paths.SYSTEM, *paths.ETC_FILES, *read), READ), (write, handled)):
        for path in listed:
            rights |= dict.fromkeys(visible(os.path.realpath(path), set(hidden), above, rights), allowed)
    rights |= dict.fromkeys((*shown, *(f"/proc/{name}" for name in paths.PROC)), READ)
    rights |= {"/dev": READ_DIR} | dict.fromkeys((*paths.devices(gpu), *own), DEVICE_RIGHTS)
    if paths.has_cuda(gpu):  # cuInit names its threads, as fopen(.., "w") does; only the command's own process can
        rights["/proc/self/task"] = READ | WRITE_FILE | TRUNCATE
    for path, allowed in rights.items():
        allow(rules, path, allowed & handled)
    enforce(rules)


def allow(rules: int, path: str, rights: int) -> None:
    """Add to a ruleset that a path may be used in these ways. Nothing where there is no such path."""
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):
        rights &= FILE_RIGHTS
    rule = struct.pack("=Qi", rights, handle)
    if rights:
        system_call(ADD_RULE, ctypes.c_int(rules), ctypes.c_int(PATH_BENEATH), rule, ctypes.c_uint32(0))
    os.close(handle)


def ruleset(handled: int = 0, network: int = 0, scoped: int = 0) -> int:
    """A handle for rules that take away the given rights, where no rule allows them."""
    attributes = struct.pack("=QQQ", handled, network, scoped)[: 24 if scoped else 16 if network else 8]
    return system_call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))


def enforce(rules: int) -> None:
    libc().prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    system_call(RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    os.close(rules)


def set_apart() -> bool:
    """Give up signalling whatever this process has not started. True where the kernel can do it."""
    if version() < 6:
        return False
    rules = ruleset(REFER, scoped=SIGNALS)
    allow(rules, "/", REFER)  # a ruleset that does not mention it lets no file move to another folder
    enforce(rules)
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return True
    return False


def visible(path: str, hidden: Set[str], above: Set[str], rights: dict[str, int]) -> list[str]:
    """`path`; or, when something hidden lies in it, what else is in it. Landlock only allows, it cannot take out again.

    above: the folders that something hidden lies in. Those that are opened up get the right to be listed, in `rights`.
    """
    if path in hidden:
        return []
    if path not in above or not os.path.isdir(path):
        return [path]
    rights[path] = READ_DIR
    return [
        found
        for entry in os.scandir(path)
        if not entry.is_symlink()
        for found in visible(entry.path, hidden, above, rights)
    ]
