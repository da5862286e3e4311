"""Confine: what a trial's process may read, write and reach.

Landlock, the kernel's own way for a process to give up rights: no root, no package, works in
containers. The process that runs a trial's command restricts itself first and then becomes the
command, so everything it starts is confined as well. It keeps: reading the interpreter, the system's
libraries and what the rules name; writing where the rules say; devices. It loses: all other files, TCP
(kernel 6.7 and later), and signals to and the memory of processes outside (6.12 and later).

As a program of its own, which imports nothing of the loop:

    python sandbox.py '{"read": ["/data"], "write": ["/out"]}' command argument ...
"""

import ctypes
import json
import os
import struct
import sys

# linux/landlock.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446     # system calls, the same on every architecture
VERSION_FLAG = 1
PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE        # those that make sense for a single file
FILE_RIGHTS_OF_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
BOTH_TCP_RIGHTS = 0b11                                      # bind and connect, from version 4
BOTH_SCOPES = 0b11                                          # abstract sockets and signals, from version 6
NO_NEW_PRIVILEGES = 38                                      # prctl

SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/opt", "/etc", "/sys", "/run/nvidia-persistenced",
          "/run/opengl-driver", "/nix/store")
# Of /proc the process itself and what belongs to nobody. The rest holds other processes' environments,
# which a root process could read in spite of Landlock's ban on tracing.
PROC = ("self", "cpuinfo", "devices", "driver", "filesystems", "loadavg", "meminfo", "modules", "stat", "sys", "uptime",
        "version", "vmstat")
DEVICES = "/dev"                                            # null, urandom, shm, and the GPU's


def system_call(number: int, *arguments) -> int:
    """A raw system call; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def version() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    try:
        return system_call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG))
    except OSError:
        return 0


def restrict(read: list[str], write: list[str]) -> None:
    """Confine this process for good, and all that it starts. Paths that do not exist are passed over.

    read, write: files or folders, with all below them; what may be written may be read.
    """
    known = version()
    handled = FILE_RIGHTS_OF_VERSION[max(v for v in FILE_RIGHTS_OF_VERSION if v <= known)]
    network = BOTH_TCP_RIGHTS if known >= 4 else 0
    scoped = BOTH_SCOPES if known >= 6 else 0
    attributes = struct.pack("=QQQ", handled, network, scoped)[: 8 * (1 + (known >= 4) + (known >= 6))]
    rules = system_call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    rights = dict.fromkeys([*SYSTEM, *(f"/proc/{name}" for name in PROC), *read], READ)
    rights |= dict.fromkeys([DEVICES, *write], handled)
    for path, allowed in rights.items():
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):
            allowed &= FILE_RIGHTS
        rule = struct.pack("=Qi", allowed & handled, handle)
        system_call(ADD_RULE, ctypes.c_int(rules), ctypes.c_int(PATH_BENEATH), rule, ctypes.c_uint32(0))
        os.close(handle)
    ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    system_call(RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    os.close(rules)


def confined(command: list[str], read: list[str], write: list[str]) -> list[str]:
    """The command line that runs `command` confined. This interpreter and its packages can always be read."""
    read = [sys.prefix, sys.base_prefix, *read]
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), json.dumps({"read": read, "write": write}), *command]


def main() -> None:
    rules = json.loads(sys.argv[1])
    restrict(rules["read"], rules["write"])
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")


if __name__ == "__main__":
    main()
