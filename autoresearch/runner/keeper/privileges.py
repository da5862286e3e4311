"""Privileges that a command of root's loses, and the namespaces that a command gets."""

import contextlib
import ctypes
import fcntl
import os
import struct
from collections.abc import Iterable

from .kernel import AT_CWD, DROP_PRIVILEGE, libc, system_call

DAC_OVERRIDE, SYS_ADMIN = 1, 21  # privileges: to open files whose mode does not say so, to mount (linux/capability.h)
# linux/sched.h, linux/mount.h
NEW_MOUNTS, NEW_IPC, NEW_USERS, NEW_NETWORK = 0x00020000, 0x08000000, 0x10000000, 0x40000000
BIND = 1 << 12
PRIVATE_MOUNTS = 1 << 18 | 1 << 14  # recursively
MOUNT_SETATTR, RECURSIVE = 442, 0x8000
NO_ACCESS_TIME, ACCESS_TIME_SETTINGS = 0x10, 0x70
SHARED_MEMORY = 64 << 20  # bytes of a trial's own /dev/shm
SHARED_MEMORY_OF_BUILDS = 1 << 30
TERMINALS = ("/dev/ptmx", "/dev/pts")


def drop_privileges(keep_override: bool) -> None:
    """Of a process of root's: everything that goes beyond its own files, for good."""
    kept = {DAC_OVERRIDE} if keep_override and os.geteuid() == 0 else set()
    for privilege in set(range(64)) - kept:
        libc().prctl(DROP_PRIVILEGE, privilege, 0, 0, 0)  # fails, harmlessly, where there is nothing to lose
    header = struct.pack("=Ii", 0x20080522, 0)  # linux/capability.h: its third version, this process
    held = sum(1 << privilege for privilege in kept)  # effective, permitted, inheritable; low halves, then high ones
    libc().capset(header, struct.pack("=6I", held, held, 0, 0, 0, 0))


def needs_override(paths: Iterable[str]) -> bool:
    """Whether root reaches one of these paths only by its privilege: somebody else's folder on the way is closed."""
    for path in map(os.path.realpath, paths):
        while path != "/":
            path = os.path.dirname(path)
            with contextlib.suppress(OSError):
                status = os.stat(path)
                if status.st_uid != os.geteuid() and not status.st_mode & 0o001:
                    return True
    return False


def enter_namespaces(shared_memory: bool, size: int = SHARED_MEMORY) -> bool:
    """Where the kernel lets it: a network and System V names of its own, and no access times, which would be notes.

    shared_memory: also a /dev/shm of its own, of so many bytes. Whether there is one now.
    """
    if (
        not may_mount()
        or libc().unshare(NEW_MOUNTS | NEW_IPC | NEW_NETWORK)
        or libc().mount(None, b"/", None, PRIVATE_MOUNTS, None)
    ):
        return False
    attributes = struct.pack("=4Q", NO_ACCESS_TIME, ACCESS_TIME_SETTINGS, 0, 0)
    arguments = ctypes.c_int(AT_CWD), b"/", ctypes.c_uint(RECURSIVE), attributes, ctypes.c_size_t(len(attributes))
    with contextlib.suppress(OSError):
        system_call(MOUNT_SETATTR, *arguments)
    return shared_memory and not libc().mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=%d" % size)


def may_mount() -> bool:
    """Whether this process has the privilege for namespaces: root's, or in one of users, where anybody may make one."""
    with open("/proc/self/status") as status:
        held = int(next(line for line in status if line.startswith("CapEff")).split()[1], 16)
    if held >> SYS_ADMIN & 1:
        return True
    user, group = os.geteuid(), os.getegid()
    if user == 0 or libc().unshare(NEW_USERS):  # root without privileges may not be anybody in one
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def enter_own_rooms() -> list[str]:
    """For builds: shared memory, pseudo-terminals and a loopback that nobody else sees. The devices that there are now;
    none where it cannot be done.
    """
    import socket

    if not enter_namespaces(True, SHARED_MEMORY_OF_BUILDS):
        return []
    with contextlib.suppress(OSError), socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    own = libc().mount(b"devpts", b"/dev/pts", b"devpts", 0, b"newinstance,ptmxmode=0666,mode=0620")
    own = own or libc().mount(b"/dev/pts/ptmx", b"/dev/ptmx", None, BIND, None)
    return ["/dev/shm", *(() if own else TERMINALS)]


def wants_shared_memory(rules: dict) -> bool:
    return bool(rules.get("strict")) and not rules.get("alone")
