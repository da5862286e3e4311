"""What a program that wants out tries, by kind. Run confined, and unconfined as the control; prints what came of it.

    python tests/attempts.py '{"beside": "/a/file/that/may/be/read", ...}'

Each attempt answers `done`, `no effect` where it seemed to succeed and did nothing, or the name of the exception.
"""

import ctypes
import fcntl
import json
import os
import platform
import resource
import signal
import socket
import struct
import sys
import time

TARGET = json.loads(sys.argv[1])
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
IO_SETUP = 206 if platform.machine() == "x86_64" else 0
SETRLIMIT = ctypes.c_long(160 if platform.machine() == "x86_64" else 164)


def attempt(action) -> str:
    try:
        return "no effect" if action() is False else "done"
    except OSError as error:
        return type(error).__name__


def call(name: str, *arguments) -> None:
    if (function := getattr(LIBC, name))(*arguments) < 0:
        raise OSError(ctypes.get_errno(), function.__name__)


def beside() -> int:
    return os.open(TARGET["beside"], os.O_RDONLY)


def page():
    return ctypes.c_void_p(ctypes.addressof(LIBC.printf) & ~4095)


def keep_a_lock() -> bool:
    """Whether a lock on a file that may only be read would be seen by another process."""
    fcntl.flock(beside(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        fcntl.flock(beside(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def is_told(said) -> bool:
    """Whether a child's exit code is not 0."""
    if (child := os.fork()) == 0:
        os._exit(bool(said()))
    return os.waitpid(child, 0)[1] != 0


def keep_a_record_lock() -> bool:
    """The same of a lock of a part of it."""
    handle, lock = beside(), struct.Struct("hhqqi4x")
    fcntl.fcntl(handle, fcntl.F_SETLK, lock.pack(fcntl.F_RDLCK, 0, 5, 7, 0))
    asked = lock.pack(fcntl.F_WRLCK, 0, 0, 100, 0)
    return is_told(lambda: lock.unpack(fcntl.fcntl(handle, fcntl.F_GETLK, asked))[2] == 5)


def wait_to_be_woken() -> bool:
    """Whether another process is told that this one waits at a place of a file that both may only read."""
    place = LIBC.mmap(None, ctypes.c_size_t(4096), 1, 1, beside(), ctypes.c_long(0))
    tenth = struct.pack("qq", 0, 10**8)  # of a second

    def futex(operation: int, value: int) -> int:
        number = ctypes.c_long(202 if platform.machine() == "x86_64" else 98)
        return LIBC.syscall(number, ctypes.c_void_p(place), operation, value, tenth, None, 0)

    here, there = socket.socketpair()  # by which they keep step: either may be held up
    if (child := os.fork()) == 0:
        while there.recv(1) == b"w":
            time.sleep(0.01)
            there.send(b"%d" % (futex(1, 1) > 0))
        os._exit(0)
    seen, woken = int.from_bytes(os.read(beside(), 4), sys.byteorder), False
    for _ in range(20):
        here.send(b"w")
        futex(0, seen)
        if woken := here.recv(1) == b"1":
            break
    here.send(b"e")
    os.waitpid(child, 0)
    return woken


def changes(set_it, read_it) -> bool:
    """Whether what others can read has changed."""
    before = read_it()
    set_it()
    return read_it() != before


def in_a_namespace() -> None:
    """A child that has its own users, in which it is root."""
    number = ctypes.c_long(56 if platform.machine() == "x86_64" else 220)
    if (child := LIBC.syscall(number, 0x10000000 | 17, 0, 0, 0, 0)) == 0:
        os._exit(0)
    if child < 0:
        raise OSError(ctypes.get_errno(), "clone")
    os.waitpid(child, 0)


def work_uncounted() -> bool:
    """Whether the seconds of a child are lost: the kernel gives them to a parent that waits for it, and to no other."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if (child := os.fork()) == 0:
        while time.process_time() < 0.1:
            pass
        os._exit(0)
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        return True
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return False


def datagrams(kind: int = socket.SOCK_DGRAM, family: int = socket.AF_UNIX) -> socket.socket:
    return socket.socket(family, kind)


def over_a_pair(send) -> None:
    left, right = socket.socketpair()
    with left, right:
        send(left)


def own_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


ATTEMPTS = {
    "names": {
        "a symbolic link": lambda: os.symlink("a note", "link"),
        "one with a long target": lambda: os.symlink("x" * 300, "long"),
        "one below an open folder": lambda: os.symlink("a note", "below", dir_fd=os.open(".", os.O_RDONLY)),
        "a hard link": lambda: os.link("own", "other"),
        "a pipe": lambda: os.mkfifo("pipe"),
        "a node": lambda: os.mknod("node"),
        "a socket": lambda: own_socket().bind("socket"),
        "an abstract socket": lambda: own_socket().bind(f"\0autoresearch-{os.getpid()}"),
    },
    "what others have read": {
        "mincore": lambda: call("mincore", page(), ctypes.c_size_t(1), (ctypes.c_char * 1)()),
        "fadvise": lambda: os.posix_fadvise(beside(), 0, 0, os.POSIX_FADV_DONTNEED),
        "readahead": lambda: call("readahead", beside(), ctypes.c_int64(0), ctypes.c_size_t(1)),
        "preadv2": lambda: os.preadv(beside(), [bytearray(1)], 0, os.RWF_NOWAIT),
        "io_setup": lambda: call("syscall", ctypes.c_long(IO_SETUP), 1, ctypes.byref(ctypes.c_ulong())),
        "io_uring": lambda: call("syscall", ctypes.c_long(425), 1, (ctypes.c_uint32 * 30)()),
        "inotify": lambda: call("inotify_init1", 0),
    },
    "datagrams": {
        "sendto": lambda: datagrams().sendto(b"x", TARGET["datagrams"]),
        "sendmsg": lambda: datagrams().sendmsg([b"x"], [], 0, TARGET["datagrams"]),
        "raw": lambda: datagrams(socket.SOCK_RAW).sendto(b"x", TARGET["datagrams"]),
        "of a pair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", TARGET["datagrams"]),
        "internet": lambda: datagrams(family=socket.AF_INET).sendto(b"x", ("127.0.0.1", 9)),
        "a file in a socket": lambda: over_a_pair(lambda pair: socket.send_fds(pair, [b"x"], [1])),
    },
    "notes": {
        "a flag of a file": lambda: fcntl.ioctl(beside(), 0x40086602, struct.pack("l", 0x40)),
        "a lock of a file": keep_a_lock,
        "a lock of a part of it": keep_a_record_lock,
        "to wait at a place of it": wait_to_be_woken,
        "limits of another process": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE),
        "to be unreadable for the loop": lambda: call("prctl", 4, 0, 0, 0, 0),
        "a hint about a file": lambda: changes(
            lambda: fcntl.fcntl(beside(), 1036, struct.pack("Q", 3)),
            lambda: fcntl.fcntl(beside(), 1035, bytes(8)),
        ),
        "the priority of another process": lambda: changes(
            lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 5),
            lambda: os.getpriority(os.PRIO_PROCESS, os.getppid()),
        ),
        "the processors of another process": lambda: changes(
            lambda: os.sched_setaffinity(os.getppid(), {min(os.sched_getaffinity(0))}),
            lambda: os.sched_getaffinity(os.getppid()),
        ),
        "the kernel's log": lambda: call("klogctl", 3, (ctypes.c_char * 4096)(), 4096),
        "a core dump's limit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        "that limit, the old way": lambda: call("syscall", SETRLIMIT, resource.RLIMIT_CORE, (ctypes.c_ulong * 2)()),
        "work that nobody counts": work_uncounted,
        "a thread's own files": lambda: call("close_range", 1 << 20, 1 << 20, 2),
        "secret memory": lambda: call("syscall", ctypes.c_long(447), 0),
    },
    "files": {
        "passwords": lambda: open("/etc/shadow").close(),
        "another program's settings": lambda: open(TARGET["settings"]).close(),
        "somebody else's": lambda: open(TARGET["closed"]).close(),
        "documents": lambda: open(TARGET["document"]).close(),
        "what describes a package": lambda: open(TARGET["description"]).close(),
        "the tests of Python": lambda: open(TARGET["test"]).close(),
        "packages that are not used": lambda: open(TARGET["unused"]).close(),
    },
    "allowed": {
        "rename": lambda: (os.makedirs("a/b"), os.mkdir("c"), os.rename("a/b", "c/b")),
        "time zones": lambda: open(TARGET["zone"] or os.devnull).close(),
        "user names": lambda: __import__("pwd").getpwuid(os.getuid()),
        "a pair of sockets": lambda: over_a_pair(lambda pair: pair.send(b"x")),
        "versions": lambda: __import__("importlib.metadata").metadata.version("torch"),
        "own limits": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)),
        "to know the limit of core dumps": lambda: resource.getrlimit(resource.RLIMIT_CORE),
        "memory without a file": lambda: os.close(os.memfd_create("x")),
    },
    "rename": {
        "out of the folder": lambda: os.rename("own", TARGET["outside"] + "/own"),
        "out of it, a folder": lambda: (os.mkdir("d"), os.rename("d", TARGET["outside"] + "/d")),
    },
    "privileges": {
        "of a child's namespace": in_a_namespace,
        "of a namespace": lambda: call("unshare", 0x10000000),  # the last: it loses those outside
    },
}

if __name__ == "__main__":
    open("own", "w").close()
    print(json.dumps({kind: {name: attempt(do) for name, do in all_.items()} for kind, all_ in ATTEMPTS.items()}))
