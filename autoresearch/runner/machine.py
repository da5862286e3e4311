"""Host memory and disk: what is free, what a command uses, and removing the files that it left."""

import contextlib
import itertools
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

from autoresearch.files import remove

CONTROL_GROUPS = (  # version 2 and 1: folder, controller, and the files and the prefix that say what is used
    (Path("/sys/fs/cgroup"), "", ("memory.max", "memory.current", "")),
    (Path("/sys/fs/cgroup/memory"), "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")),
)
NEARLY_NOTHING = 256 << 20  # bytes of memory, or of the disk: what uses them up ends before the machine suffers
MOST_HANDLES = 10_000  # open files of one command that are looked at, in some 50 ms


def free_memory() -> int:
    """Bytes of host memory that can be had: the machine's, or the container's or batch job's where that is less."""
    free = psutil.virtual_memory().available
    for folder, (limit_file, used_file, prefix) in own_groups():
        try:
            limit, used = (int((folder / name).read_text()) for name in (limit_file, used_file))
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(int(counts[prefix + name]) for name in ("inactive_file", "active_file"))
            free = min(free, limit - used + cached)  # which is given up when needed
        except (OSError, ValueError, KeyError):
            pass  # no limit, or not of this kind
    return free


def own_groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The control groups that this process is in, and those above them: the limit of each holds."""
    with contextlib.suppress(OSError):
        places = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        for top, controller, files in CONTROL_GROUPS:
            path = next((path for _, names, path in places if controller in names.split(",")), "/")
            folder = Path(os.path.normpath(f"{top}/{path}"))  # seen from inside a container, it may lie above the top
            for group in (folder, *folder.parents) if folder.is_relative_to(top) else (top,):
                if group.is_relative_to(top):
                    yield group, files


# ----------------------------------------------------------------------------------------------
# The memory of one command


class MemoryGroup:
    """A control group, in which the kernel counts all memory of a command: shared, in sockets, mapped or not."""

    _numbers = itertools.count()

    def __init__(self, parent: Path) -> None:
        for left_over in parent.glob("autoresearch-[0-9]*-*"):
            if not psutil.pid_exists(int(left_over.name.split("-")[1])):  # else its command may be about to enter it
                with contextlib.suppress(OSError):
                    left_over.rmdir()
        self.folder = parent / f"autoresearch-{os.getpid()}-{next(self._numbers)}"
        self.folder.mkdir()
        self.used_file = "memory.current" if (self.folder / "memory.current").exists() else "memory.usage_in_bytes"
        try:
            self.used()
        except OSError:  # it counts no memory
            self.remove()
            raise

    @classmethod
    def make(cls) -> "MemoryGroup | None":
        """A new one, None where this process may not make any. A user's own session is a place where it may."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = Path("/proc/self/cgroup").read_text().splitlines()
            places = {name: path for _, name, path in (line.split(":", 2) for line in lines)}
            if "memory" in places:  # version 1
                return cls(Path("/sys/fs/cgroup/memory", places["memory"].lstrip("/")))
            return cls(Path("/sys/fs/cgroup", places[""].lstrip("/")).parent)  # in which processes are, has no groups
        return None

    def used(self) -> int:
        """Bytes, without the files' pages, which are given up when needed. Raises OSError."""
        lines = (self.folder / "memory.stat").read_text().splitlines()
        counts = {name.removeprefix("total_"): int(count) for name, count in map(str.split, lines)}
        files = counts["file"] if "file" in counts else counts["cache"]
        return int((self.folder / self.used_file).read_text()) - files + counts["shmem"]

    def tasks(self) -> int | None:
        """Processes and threads in it; None where that is not counted here."""
        with contextlib.suppress(OSError):
            return len((self.folder / "cgroup.threads").read_text().split())
        with contextlib.suppress(OSError):  # version 1
            return len((self.folder / "tasks").read_text().split())
        return None

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def tasks_of(pids: Iterable[int]) -> int:
    """How many threads processes have."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def memory_of(pids: Iterable[int]) -> float:
    """Bytes of host memory that processes hold for themselves, as far as /proc tells: their own, and what they share,
    once, also where it is not mapped (memfd_create) or not by those that wrote to it. Infinite where they have more
    than MOST_HANDLES files open: a memfd among so many would take too long to find.
    """
    own, shared, left = 0, {}, MOST_HANDLES
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):  # names hold any byte but a line's end, which is escaped
            lines = Path(f"/proc/{pid}/status").read_bytes().split(b"\n")
            fields = {name: value for name, _, value in (line.partition(b":") for line in lines)}
            own += sum(int(fields.get(name, b"0").split()[0]) for name in (b"RssAnon", b"VmSwap", b"VmPTE")) * 1024
        with contextlib.suppress(OSError, ValueError):
            for line in filter(None, Path(f"/proc/{pid}/maps").read_bytes().split(b"\n")):
                span, modes, _, device, inode, *name = line.split(maxsplit=5)
                # One page of a memfd, mapped in whatever way, keeps all of it.
                kinds = (b"/memfd:", b"/dev/shm/") + (b"/dev/zero", b"/SYSV") * modes.endswith(b"s")
                if name and name[0].startswith(kinds):
                    start, end = (int(word, 16) for word in span.split(b"-"))
                    key = device.decode(), inode.decode()
                    size = size_of(f"/proc/{pid}/map_files/{span.decode()}", end - start)
                    shared[key] = max(shared.get(key, 0), size)
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    return math.inf
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path).startswith(("/memfd:", "/dev/shm/")):
                        status = os.stat(entry.path)
                        key = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", str(status.st_ino)
                        shared[key] = status.st_blocks * 512
    return own + sum(shared.values())


def size_of(path: str, unknown: int) -> int:
    """Bytes that a file in memory takes; `unknown` where this process may not ask."""
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return unknown


# ----------------------------------------------------------------------------------------------
# The disk


def disk_usage(folders: Iterable[Path]) -> float:
    """Bytes on the disk below the folders; infinite where nobody can tell: nested too deeply, or closed."""
    total, left = 0, [str(folder) for folder in folders]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            left.append(entry.path)
        except FileNotFoundError:
            pass
        except OSError:
            return math.inf
    return total


def unlinked_by(pids: Iterable[int]) -> int:
    """Bytes on the disk of files that have no name any more, of those that processes have open or, as far as this
    process may ask, mapped.
    """
    found = {}
    for path in (f"/proc/{pid}/{name}" for pid in pids for name in ("fd", "map_files")):
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in itertools.islice(entries, MOST_HANDLES):
                with contextlib.suppress(OSError):
                    status = os.stat(entry.path)
                    plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 0
                    if plain and not os.readlink(entry.path).startswith(("/memfd:", "/dev/", "/SYSV")):
                        found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def clear(path: Path, stays: Callable[[os.DirEntry], bool]) -> None:
    """Remove what is in a folder, but for the entries that stay; those keep no more of the disk than they hold."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(path)):
            with contextlib.suppress(OSError):
                if stays(entry):
                    cut_at_end(Path(entry.path))
                else:
                    remove(Path(entry.path))


def cut_at_end(path: Path) -> None:
    """Give back what is reserved on the disk beyond the end of a plain file (fallocate)."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            os.truncate(path, status.st_size)
