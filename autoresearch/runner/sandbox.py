"""Confine: what a trial's process may read, write and reach; and end all that it started.

A trial's command runs below a keeper, a small process that outlives it by a moment: when the command
ends, or the keeper is told to end, everything that the command started is killed, even what has made
itself a session of its own. The command itself is confined before it starts, by what the machine has:

- Landlock, the kernel's own way for a process to give up rights: no root, no package, works in
  containers. It keeps reading the interpreter, the system's libraries and what the rules name, writing
  where the rules say, and the devices of the GPU. It loses all other files, and (kernel 6.12 and later)
  signals to processes outside.
- else bubblewrap, where it is installed and may make namespaces: the same files, no others to be seen.

With either, root's privileges go, and a system call filter takes away IP sockets, connecting to any other, tracing,
setting the clock, and every way to leave a note for another process that is not a file.

As a program of its own, which imports nothing of the loop; a name like $TMPDIR in a path is looked up
in the environment that the command gets:

    python sandbox.py '{"by": "Landlock", "read": ["/data"], "write": ["/out"], "hidden": ["/data/secret"]}' command ...
"""

import contextlib
import ctypes
import functools
import glob
import json
import os
import platform
import resource
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

SYSTEM = (
    "/usr",
    "/lib",
    "/lib64",
    "/lib32",
    "/bin",
    "/sbin",
    "/opt",
    "/etc",
    "/sys",
    "/run/nvidia-persistenced",
    "/run/opengl-driver",
    "/nix/store",
)
# Of /proc the process itself and what belongs to nobody. The rest holds other processes' environments,
# which a root process could read in spite of Landlock's ban on tracing.
PROC = (
    "self",
    "cpuinfo",
    "devices",
    "driver",
    "filesystems",
    "loadavg",
    "meminfo",
    "modules",
    "stat",
    "sys",
    "uptime",
    "version",
    "vmstat",
)
DEVICES = ("null", "zero", "full", "random", "urandom")
GPU_DEVICES = ("nvidia*", "nvhost*", "nvmap", "nvgpu", "dri", "kfd", "dxg")
DAC_OVERRIDE = 1  # the one privilege that root keeps: files whose mode does not name it
PARENT = "AUTORESEARCH_PARENT"  # environment variable: the process that started the keeper, and must not have ended
GRACE_SECONDS = 4.0  # between SIGTERM and SIGKILL

# sys/prctl.h
PARENT_DEATH_SIGNAL, SECCOMP, DROP_PRIVILEGE, CHILD_SUBREAPER, NO_NEW_PRIVILEGES = 1, 22, 24, 36, 38


# ----------------------------------------------------------------------------------------------
# Landlock (linux/landlock.h)

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
    rules = ruleset(handled, network=BOTH_TCP_RIGHTS if known >= 4 else 0, scoped=BOTH_SCOPES if known >= 6 else 0)
    hidden = [os.path.realpath(path) for path in hidden]
    rights: dict[str, int] = {}
    for paths, allowed in (((*SYSTEM, *read), READ), (write, handled)):
        for path in paths:
            rights |= dict.fromkeys(visible(os.path.realpath(path), hidden, rights), allowed)
    rights |= dict.fromkeys((f"/proc/{name}" for name in PROC), READ)
    rights |= {"/dev": READ_DIR} | dict.fromkeys(devices(), DEVICE_RIGHTS)
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
    enforce(rules)


def ruleset(handled: int = 0, network: int = 0, scoped: int = 0) -> int:
    """A handle for rules that take away the given rights, where no rule allows them."""
    attributes = struct.pack("=QQQ", handled, network, scoped)[: 24 if scoped else 16 if network else 8]
    return system_call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))


def enforce(rules: int) -> None:
    ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    system_call(RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    os.close(rules)


def devices() -> list[str]:
    """The device files that training needs."""
    return [
        *(f"/dev/{name}" for name in DEVICES),
        *(path for name in GPU_DEVICES for path in sorted(glob.glob(f"/dev/{name}"))),
    ]


def visible(path: str, hidden: list[str], rights: dict[str, int]) -> list[str]:
    """`path`; or, when something hidden lies in it, what else is in it. Landlock only allows, it cannot take out again.

    Folders that are opened up in this way get the right to be listed, in `rights`.
    """
    if path in hidden:
        return []
    if not any(other.startswith(path.rstrip("/") + "/") for other in hidden) or not os.path.isdir(path):
        return [path]
    rights[path] = READ_DIR
    return [
        found for entry in os.scandir(path) if not entry.is_symlink() for found in visible(entry.path, hidden, rights)
    ]


# ----------------------------------------------------------------------------------------------
# bubblewrap


@functools.cache
def bubblewrap() -> bool:
    """Whether there is a bubblewrap that can make namespaces here."""
    works = (
        shutil.which("bwrap")
        and subprocess.run([*keeper({"by": "bubblewrap"}), "true"], cwd="/", capture_output=True).returncode == 0
    )
    return bool(works)


def wrapped(read: list[str], write: list[str], hidden: list[str], folder: str) -> list[str]:
    """The bubblewrap command that a command is appended to; it runs in `folder`."""
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
        words += ["--cap-drop", "ALL", "--cap-add", "CAP_DAC_OVERRIDE"]
    if program := filter_program():
        handle = os.memfd_create("filter", 0)
        os.write(handle, program)
        os.lseek(handle, 0, os.SEEK_SET)
        words += ["--seccomp", str(handle)]
    mounts = [(path, ["--ro-bind-try", path, path]) for path in (*SYSTEM, *read)]
    mounts += [(path, ["--dev-bind-try", path, path]) for path in devices() if os.path.basename(path) not in DEVICES]
    mounts += [(path, ["--bind-try", path, path]) for path in write]
    mounts += [
        (path, ["--tmpfs", path] if os.path.isdir(path) else ["--ro-bind", "/dev/null", path])
        for path in hidden
        if os.path.exists(path)
    ]
    for _, mount in sorted(mounts, key=lambda mount: mount[0].count("/")):  # a folder before what lies in it
        words += mount
    for path in ("/", *filter(os.path.isdir, hidden)):
        words += ["--remount-ro", path]
    return [*words, "--chdir", folder, "--"]


# ----------------------------------------------------------------------------------------------
# The system call filter (linux/seccomp.h, linux/filter.h)

# machine: audit number, its number of socket(), numbers of what fails, of what does nothing and seems to succeed.
MACHINES = {
    "x86_64": (
        0xC000003E,
        41,
        (
            42,
            101,
            310,
            311,
            76,  # connect, ptrace, process_vm_readv and writev, truncate
            29,
            30,
            31,
            64,
            65,
            66,
            68,
            69,
            70,
            71,
            220,  # System V's shared memory, semaphores, messages
            240,
            241,
            248,
            249,
            250,  # mq_open, mq_unlink; add_key, request_key, keyctl
            188,
            189,
            190,
            197,
            198,
            199,  # setxattr, removexattr and their kin
            159,
            164,
            227,
            305,  # adjtimex, settimeofday, clock_settime, clock_adjtime
        ),
        (
            90,
            91,
            92,
            93,
            94,
            260,
            268,  # chmod, fchmod, chown, fchown, lchown, fchownat, fchmodat
            132,
            235,
            261,
            280,  # utime, utimes, futimesat, utimensat
        ),
    ),
    "aarch64": (
        0xC00000B7,
        198,
        (
            203,
            117,
            270,
            271,
            45,
            194,
            195,
            196,
            190,
            191,
            192,
            193,
            186,
            187,
            188,
            189,
            180,
            181,
            217,
            218,
            219,
            5,
            6,
            7,
            14,
            15,
            16,
            171,
            170,
            112,
            266,
        ),
        (
            52,
            53,
            54,
            55,
            88,
        ),
    ),
}
# The same on every architecture: io_uring_setup, pidfd_getfd, setxattrat, removexattrat; fchmodat2.
YOUNG_DENIED, YOUNG_IDLE = (425, 438, 463, 466), (452,)
UNIX_SOCKET, PERMISSION_DENIED = 1, 13


def filter_program() -> bytes:
    """Takes away what Landlock leaves: sockets of every family but the local one and connecting with those; other
    processes' memory; setting the clock; memory, messages, keys and attributes that outlive their process; truncating
    by path (old kernels). Changing modes, owners and times of files, which compilers and linkers do, seems to succeed.

    Empty for a machine that is not known.
    """
    if platform.machine() not in MACHINES:
        return b""
    machine, socket, denied, idle = MACHINES[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, machine), "deny", (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), "deny"]
    for numbers, what in (((*denied, *YOUNG_DENIED), "deny"), ((*idle, *YOUNG_IDLE), "nothing")):
        for number in numbers:
            program += [(equal, 0, 1, number), what]
    program += [(equal, 1, 0, socket), "allow", (load, 0, 0, 16), (equal, 1, 0, UNIX_SOCKET), "deny", "allow"]
    answers = {
        "allow": (answer, 0, 0, 0x7FFF0000),
        "deny": (answer, 0, 0, 0x00050000 | PERMISSION_DENIED),
        "nothing": (answer, 0, 0, 0x00050000),
    }
    # Each step: operation, steps to skip if true, if false, value.
    steps = (answers[step] if isinstance(step, str) else step for step in program)
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def cut_off() -> None:
    """Put this process and all that it starts behind the filter, for good."""
    if program := filter_program():
        code = ctypes.create_string_buffer(program)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        libc.prctl(SECCOMP, 2, struct.pack("@HP", len(program) // 8, ctypes.addressof(code)), 0, 0)


def drop_privileges() -> None:
    """Of a process of root's: everything that goes beyond its own files, for good."""
    libc = ctypes.CDLL(None)
    for privilege in set(range(64)) - {DAC_OVERRIDE}:
        libc.prctl(DROP_PRIVILEGE, privilege, 0, 0, 0)  # fails, harmlessly, where there is nothing to lose
    header = struct.pack("=Ii", 0x20080522, 0)  # linux/capability.h: its third version, this process
    held = os.geteuid() == 0 and 1 << DAC_OVERRIDE  # effective, permitted, inheritable; low halves, then high ones
    libc.capset(header, struct.pack("=6I", held, held, 0, 0, 0, 0))


# ----------------------------------------------------------------------------------------------
# The keeper


def run(rules: dict | None, command: Callable[[], None], parent: int | None = None) -> NoReturn:
    """Call `command`, which does not return, in a confined child; then kill all that it left, and end as it did.

    parent: the process that started this one. When it has ended, so does this one, and nothing is started.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(CHILD_SUBREAPER, 1, 0, 0, 0)  # what loses its parent becomes ours
    libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if parent and os.getppid() != parent:  # it was killed before it could be watched
        os._exit(1)
    apart = bool(rules) and rules["by"] == "Landlock" and set_apart()
    awaited = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    if (child := os.fork()) == 0:
        try:
            libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if rules:
                with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
                    score.write("1000")  # when memory runs out, this goes first
            if rules and rules["by"] == "Landlock":
                restrict(*paths_of(rules))
                drop_privileges()
                cut_off()
            command()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = keep(child, awaited, apart)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def set_apart() -> bool:
    """Give up signalling whatever this process has not started. True where the kernel can do it."""
    if version() < 6:
        return False
    enforce(ruleset(scoped=SIGNALS))
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return True
    return False


def keep(command: int, awaited: set[signal.Signals], apart: bool) -> int:
    """Wait for a child or for SIGTERM, then kill all descendants. Returns the child's wait status.

    apart: nothing else can be signalled, so one signal to everybody ends them all, however fast they fork.
    """
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
        for pid in [-1] if apart else children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            pid, ended = os.waitpid(-1, 0)
            while pid:
                if pid == command:
                    status = ended
                pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return signal.SIGKILL if status is None else status


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
    """What confines a trial here: `Landlock`, `bubblewrap`, or nothing (empty).

    Landlock from its version 2 on: the first one lets nobody move a file.
    """
    return "Landlock" if version() >= 2 else "bubblewrap" if bubblewrap() else ""


def launcher(rules: dict[str, list[str]] | None) -> list[str]:
    """The words that go before a command to run it below a keeper and, with rules, confined.

    rules: paths to `read` and to `write`, and what is `hidden` in them. This interpreter and its
    packages can always be read.
    """
    if rules is not None:
        links = [entry.path for entry in os.scandir(sysconfig.get_path("purelib")) if entry.is_symlink()]
        read = [sys.prefix, sys.base_prefix, *links, *rules.get("read", [])]  # links: an installer's choice
        return keeper({**rules, "by": method(), "read": read})
    return keeper(None)


def keeper(rules: dict | None) -> list[str]:
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), json.dumps(rules)]


def paths_of(rules: dict) -> tuple[list[str], list[str], list[str]]:
    """What may be read, what may be written, what is hidden."""
    read, write, hidden = (
        [os.path.expandvars(path) for path in rules.get(name, [])] for name in ("read", "write", "hidden")
    )
    return read, write, hidden


def main() -> None:
    rules, words = json.loads(sys.argv[1]), sys.argv[2:]
    parent = os.environ.pop(PARENT, None)
    if rules and rules["by"] == "bubblewrap":
        words = [*wrapped(*paths_of(rules), os.getcwd()), *words]

    def command() -> None:
        try:
            os.execvp(words[0], words)
        except OSError as error:
            os.write(2, f"{words[0]}: {error.strerror}\n".encode())
            os._exit(127)

    run(rules, command, int(parent) if parent else None)


if __name__ == "__main__":
    main()
