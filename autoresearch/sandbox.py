"""Confine: what a trial's process may read, write and reach; and end all that it started.

A trial's command runs below a keeper, a small process that outlives it by a moment: when the command
ends, or the keeper is told to end, everything that the command started is killed, even what has made
itself a session of its own. The command itself is confined before it starts, by what the machine has:

- Landlock, the kernel's own way for a process to give up rights: no root, no package, works in
  containers. It keeps reading the interpreter, the system's libraries and what the rules name, writing
  where the rules say, and devices. It loses all other files, and (kernel 6.12 and later) signals to
  processes outside.
- else bubblewrap, where it is installed and may make namespaces: the same files, no others to be seen.

With either, a system call filter takes away IP sockets, connecting to any other, tracing, and changing modes.

As a program of its own, which imports nothing of the loop; a name like $TMPDIR in a path is looked up
in the environment that the command gets:

    python sandbox.py '{"by": "Landlock", "read": ["/data"], "write": ["/out"], "hidden": ["/data/secret"]}' command argument ...
"""

import ctypes
import functools
import json
import os
import platform
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/opt", "/etc", "/sys", "/run/nvidia-persistenced",
          "/run/opengl-driver", "/nix/store")
# Of /proc the process itself and what belongs to nobody. The rest holds other processes' environments,
# which a root process could read in spite of Landlock's ban on tracing.
PROC = ("self", "cpuinfo", "devices", "driver", "filesystems", "loadavg", "meminfo", "modules", "stat", "sys", "uptime",
        "version", "vmstat")
DEVICES, SHARED_MEMORY = "/dev", ("/dev/shm", "/dev/mqueue")    # null, urandom, the GPU's; not what other processes read
GRACE_SECONDS = 4.0                 # between SIGTERM and SIGKILL

# sys/prctl.h
PARENT_DEATH_SIGNAL, SECCOMP, CHILD_SUBREAPER, NO_NEW_PRIVILEGES = 1, 22, 36, 38


# ----------------------------------------------------------------------------------------------
# Landlock (linux/landlock.h)

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


def restrict(read: list[str], write: list[str], hidden: list[str]) -> None:
    """Confine this process for good, and all that it starts. Paths that do not exist are passed over.

    read, write: files or folders, with all below them; what may be written may be read. hidden: what
    is taken out of them again, except that the folders above it can still be listed.
    """
    known = version()
    handled = FILE_RIGHTS_OF_VERSION[max(v for v in FILE_RIGHTS_OF_VERSION if v <= known)]
    network = BOTH_TCP_RIGHTS if known >= 4 else 0
    scoped = BOTH_SCOPES if known >= 6 else 0
    attributes = struct.pack("=QQQ", handled, network, scoped)[: 8 * (1 + (known >= 4) + (known >= 6))]
    rules = system_call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    hidden = [os.path.realpath(path) for path in (*hidden, *SHARED_MEMORY)]
    rights: dict[str, int] = {}
    for paths, allowed in (((*SYSTEM, *read), READ), ((DEVICES, *write), handled)):
        for path in paths:
            rights |= dict.fromkeys(visible(os.path.realpath(path), hidden, rights), allowed)
    rights |= dict.fromkeys((f"/proc/{name}" for name in PROC), READ)
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


def visible(path: str, hidden: list[str], rights: dict[str, int]) -> list[str]:
    """`path`; or, when something hidden lies in it, what else is in it. Landlock only allows, it cannot take out again.

    Folders that are opened up in this way get the right to be listed, in `rights`.
    """
    if path in hidden:
        return []
    if not any(other.startswith(path.rstrip("/") + "/") for other in hidden) or not os.path.isdir(path):
        return [path]
    rights[path] = READ_DIR
    return [found for entry in os.scandir(path) if not entry.is_symlink() for found in visible(entry.path, hidden, rights)]


# ----------------------------------------------------------------------------------------------
# bubblewrap


@functools.cache
def bubblewrap() -> str | None:
    """The path of a bubblewrap that can make namespaces here, or None."""
    path = shutil.which("bwrap")
    works = path and subprocess.run([path, "--ro-bind", "/", "/", "--unshare-net", "--unshare-pid", "true"],
                                    capture_output=True).returncode == 0
    return path if works else None


def wrapped(read: list[str], write: list[str], hidden: list[str], folder: str) -> list[str]:
    """The bubblewrap command that a command is appended to; it runs in `folder`."""
    words = [bubblewrap(), "--die-with-parent", "--unshare-net", "--unshare-pid", "--proc", "/proc"]
    if program := filter_program():
        handle = os.memfd_create("filter", 0)
        os.write(handle, program)
        os.lseek(handle, 0, os.SEEK_SET)
        words += ["--seccomp", str(handle)]
    for path in (*SYSTEM, *read):
        words += ["--ro-bind-try", path, path]
    words += ["--dev-bind", DEVICES, DEVICES]
    for path in write:
        words += ["--bind-try", path, path]
    for path in (*hidden, *SHARED_MEMORY):
        if os.path.isdir(path):
            words += ["--tmpfs", path]
        elif os.path.exists(path):
            words += ["--ro-bind", "/dev/null", path]
    return [*words, "--remount-ro", "/", "--chdir", folder, "--"]


# ----------------------------------------------------------------------------------------------
# The system call filter (linux/seccomp.h, linux/filter.h)

# machine: audit number, and its numbers of the system calls: socket; those that fail (connect, ptrace, process_vm_readv,
# process_vm_writev, truncate); those that do nothing (chmod, fchmod, chown, fchown, lchown, fchownat, fchmodat).
MACHINES = {
    "x86_64": (0xC000003E, 41, (42, 101, 310, 311, 76), (90, 91, 92, 93, 94, 260, 268)),
    "aarch64": (0xC00000B7, 198, (203, 117, 270, 271, 45), (52, 53, 54, 55)),
}
IO_URING_SETUP, PIDFD_GETFD, FCHMODAT2 = 425, 438, 452      # the same on every architecture
UNIX_SOCKET, PERMISSION_DENIED = 1, 13


def filter_program() -> bytes:
    """Takes away what Landlock leaves: sockets of every family but the local one and connecting with those; other
    processes' memory; truncating by path (old kernels); changing modes and owners, which linkers do: that seems to succeed.

    Empty for a machine that is not known.
    """
    if platform.machine() not in MACHINES:
        return b""
    machine, socket, denied, idle = MACHINES[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, machine), "deny", (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), "deny"]
    for numbers, what in (((*denied, IO_URING_SETUP, PIDFD_GETFD), "deny"), ((*idle, FCHMODAT2), "nothing")):
        for number in numbers:
            program += [(equal, 0, 1, number), what]
    program += [(equal, 1, 0, socket), "allow", (load, 0, 0, 16), (equal, 1, 0, UNIX_SOCKET), "deny", "allow"]
    answers = {"allow": (answer, 0, 0, 0x7FFF0000), "deny": (answer, 0, 0, 0x00050000 | PERMISSION_DENIED), "nothing": (answer, 0, 0, 0x00050000)}
    # Each step: operation, steps to skip if true, if false, value.
    return b"".join(struct.pack("=HBBI", *answers.get(step, step)) for step in program)


def cut_off() -> None:
    """Put this process and all that it starts behind the filter, for good."""
    if program := filter_program():
        code = ctypes.create_string_buffer(program)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        libc.prctl(SECCOMP, 2, struct.pack("@HP", len(program) // 8, ctypes.addressof(code)), 0, 0)


# ----------------------------------------------------------------------------------------------
# The keeper


def run(rules: dict | None, command: Callable[[], None]) -> NoReturn:
    """Call `command`, which does not return, in a child that is confined; then kill all that it left, and end as it did."""
    libc = ctypes.CDLL(None)
    libc.prctl(CHILD_SUBREAPER, 1, 0, 0, 0)         # what loses its parent becomes ours
    libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    awaited = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    if (child := os.fork()) == 0:
        try:
            libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if rules and rules["by"] == "Landlock":
                restrict(*paths_of(rules))
                cut_off()
            command()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = keep(child, awaited)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def keep(command: int, awaited: set[signal.Signals]) -> int:
    """Wait for a child or for SIGTERM, then kill all descendants. Returns the child's wait status."""
    status, deadline = None, None
    while status is None and (deadline is None or time.monotonic() < deadline):
        received = signal.sigtimedwait(awaited, 0.1 if deadline else 3600.0)
        if received and received.si_signo == signal.SIGTERM and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
            os.kill(command, signal.SIGTERM)
        while (ended := next_ended()) is not None:
            if ended[0] == command:
                status = ended[1]
    while True:
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        try:
            pid, ended = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == command:
            status = ended


def next_ended() -> tuple[int, int] | None:
    """(pid, status) of a child that has ended, if there is one."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def children() -> list[int]:
    """The children of this process, those that have ended included."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid():
            found.append(int(name))
    return found


# ----------------------------------------------------------------------------------------------


def method() -> str:
    """What confines a trial here: `Landlock`, `bubblewrap`, or nothing."""
    return "Landlock" if version() else "bubblewrap" if bubblewrap() else ""


def launcher(rules: dict[str, list[str]] | None) -> list[str]:
    """The words that go before a command to run it below a keeper and, with rules, confined.

    rules: paths to `read` and to `write`, and what is `hidden` in them. This interpreter and its
    packages can always be read.
    """
    if rules is not None:
        rules = {"by": method(), **rules, "read": [sys.prefix, sys.base_prefix, *rules.get("read", [])]}
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), json.dumps(rules)]


def paths_of(rules: dict) -> list[list[str]]:
    return [[os.path.expandvars(path) for path in rules.get(name, [])] for name in ("read", "write", "hidden")]


def main() -> None:
    rules, words = json.loads(sys.argv[1]), sys.argv[2:]
    if rules and rules["by"] == "bubblewrap":
        words = [*wrapped(*paths_of(rules), os.getcwd()), *words]

    def command() -> None:
        try:
            os.execvp(words[0], words)
        except OSError as error:
            os.write(2, f"{words[0]}: {error.strerror}\n".encode())
            os._exit(127)

    run(rules, command)


if __name__ == "__main__":
    main()
