"""The system call filter (linux/seccomp.h, linux/filter.h)."""

import ctypes
import os
import resource
import signal
import struct

from . import paths
from .kernel import NO_NEW_PRIVILEGES, SECCOMP, SET_DUMPABLE, libc, system_call
from .landlock import version

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
clone3 435 435; setrlimit 160 164; close_range 436 436; futex 202 98; rt_sigaction 13 134
"""
MACHINE = os.uname().machine
NEW_LISTENER = 1 << 3  # flag of seccomp
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
    known = {name: x86 if MACHINE == "x86_64" else arm for name, x86, arm in rows}
    return {name: int(number) for name, number in known.items() if number != "-"}


def filter_program(rules: dict, changes: str = "nothing") -> bytes:
    """Takes away what Landlock leaves: sockets that reach another process or hold an address; other processes' memory;
    setting the clock; what tells which files others have read; what outlives its process and is no file. Changing
    modes, owners and times of files seems to succeed.

    rules: `strict`, `alone`, `builds`, `network`, `gpu` as `launcher` says; for `strict` locks of files seem to
    succeed. changes: what becomes of modes and times. Empty for a machine that is not known.
    """
    if MACHINE not in AUDIT:
        return b""
    builds, loopback = bool(rules.get("builds")), bool(rules.get("network"))
    strict, cuda = bool(rules.get("strict")), paths.has_cuda(rules["gpu"])
    denied, idle = [OTHER_PROCESSES, WHAT_OTHERS_READ, NOTES, CLOCK, NAMESPACES], [OWNERS]
    for tables, table, applies in (
        (denied, REACH_OUT, not loopback),
        (denied, NAMES, strict),
        (denied, DRIVER_SOCKETS, not cuda and not loopback),
        (denied, HARD_LINKS, rules.get("alone")),
        (denied, SEND_MESSAGES, not builds),
        (denied, TRUNCATE_BY_NAME, not builds or (rules["by"] == "Landlock" and version() < 3)),
        (idle, LOCKS, strict),
        (denied if strict else idle, WHAT_IS_READ_AHEAD, True),
    ):
        if applies:
            tables.append(table)
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, AUDIT[MACHINE]), "deny", (LOAD, 0, 0, 0)]
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
    cuda = paths.has_cuda(rules["gpu"])
    own = "nothing" if strict else "allow"  # what is done to the calling thread itself
    families = (*INTERNET, UNIX) if rules.get("by") == "bubblewrap" else INTERNET  # which shows no sockets of others

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
    sockets = unix_of_type(SEQPACKET) if cuda else ["deny"]
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
        "futex": wakes if alone and not cuda else ["allow"],  # as process pools, and perhaps the driver, need
        "clone": [  # a thread with open files of its own would hide what they hold
            *(argument(0), (HAS_BITS, 0, 1, NEW_NAMESPACES), "deny"),
            *((HAS_BITS, 0, 2, THREAD), (HAS_BITS, 1, 0, SAME_FILES), "deny", "allow"),
        ],
        "close_range": [argument(2), (HAS_BITS, 0, 1, OWN_FILES), "unknown", "allow"],  # the same
        # Of children whose end is ignored the kernel gives the seconds to nobody. The loop would take them for those of
        # other programs, and a trial that saw it had no luck would run again. To ask what is done is allowed.
        "rt_sigaction": [
            *(argument(0), (EQUAL, 1, 0, signal.SIGCHLD), "allow", argument(1), (EQUAL, 1, 0, 0), "nothing"),
            *(argument(1, upper=True), *one_of((0,), "allow", "nothing")),
        ]
        if strict
        else ["allow"],  # make and shells need it
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
    number = 317 if MACHINE == "x86_64" else 277  # seccomp
    return system_call(number, ctypes.c_uint(1), ctypes.c_uint(NEW_LISTENER), filter_)
