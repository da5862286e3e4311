"""What the commands of a trial use of the machine, memory, processes and disk, and why one that uses too much ends."""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from autoresearch.files import remove
from autoresearch.runner.machine import MOST_HANDLES, NEARLY_NOTHING, disk_usage, free_memory
from autoresearch.runner.process import Process
from autoresearch.task import Task

MOST_TASKS = 4096  # limit for the processes and threads of a command
NEARLY_NO_FILES = 10_000  # fewer free inodes than this count as none


class Usage:
    """Watches the commands of one trial. The limits are the task's, and what the machine had free before.

    stage, folder, caches: the commands' worktree, the trial's folder and its caches. share: see Trial.
    """

    def __init__(self, task: Task, stage: Path, folder: Path, caches: Sequence[Path], share: int) -> None:
        self.folder, self.disk_limit = folder, task.disk_limit
        self.overfull = False  # they filled the disk
        self.memory_free = free_memory()
        self.memory_limit = task.memory_limit * 2**30 if task.memory_limit else 0.9 * self.memory_free / share
        self.outputs = [folder / "run", folder / "tmp", folder / "home", *caches]
        worktree = [] if task.referee or folder.is_relative_to(stage) else [stage]
        self.counted = [folder, *caches, *worktree]  # folders that the commands write to
        self.disk_free, self.disk_used, self.files_free = 0, 0.0, 0  # bytes, bytes, files, when a phase began

    def begin(self) -> None:
        """Note what is used and what is free on the disk before the commands write."""
        self.disk_used = disk_usage(self.counted)
        if self.disk_used == math.inf:  # nested so deeply that nothing could be counted
            for path in self.outputs:
                if disk_usage([path]) == math.inf:
                    remove(path)
            self.disk_used = disk_usage(self.counted)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.disk_free = shutil.disk_usage(self.folder).free
        self.files_free = os.statvfs(self.folder).f_favail

    def excess(self, process: Process) -> str | None:
        """Why a command must end now: it exceeds a limit of memory, processes or disk. Or None."""
        if process.tasks() > MOST_TASKS:
            return f"ended because it had more than {MOST_TASKS} processes and threads"
        memory = process.memory()
        if memory == math.inf:
            return f"ended because it had more than {MOST_HANDLES} files open, too many to see what memory they hold"
        if memory > self.memory_limit:
            held, allowed = memory / 2**30, self.memory_limit / 2**30
            return f"ended because it held {held:.1f} GiB of host memory; {allowed:.1f} are allowed"
        if free_memory() < NEARLY_NOTHING <= self.memory_free:
            return "ended because the machine had next to no memory left"  # shortage.py looks for these words
        return self.excess_of_disk(process)

    def excess_of_disk(self, process: Process) -> str | None:
        """Why a command must end now, or does not count: it has written too much. Or None."""
        free = shutil.disk_usage(self.folder).free
        if free < NEARLY_NOTHING <= self.disk_free:
            self.overfull = True
            return "ended because the disk was nearly full"
        if os.statvfs(self.folder).f_favail < NEARLY_NO_FILES <= self.files_free:
            self.overfull = True
            return "ended because the disk had next to no room for more files"
        limit = self.disk_limit * 2**30
        if self.disk_free - free > limit:  # cheap to ask; then exactly
            used = disk_usage(self.counted) + process.unlinked() - self.disk_used
            if used > limit:
                self.overfull = True
                if used == math.inf:
                    return "ended because its folders were nested too deeply, or closed, to see how much it had written"
                return f"ended because it had written {used / 2**30:.1f} GiB; {self.disk_limit:g} are allowed"
        return None
