"""Modes and times of a build's files: what the filter asks the keeper about (linux/seccomp.h)."""

import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterable

from .kernel import AT_CWD, system_call
from .system_calls import MODES_AND_TIMES, numbers_of

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
