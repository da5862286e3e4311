"""Calls of the kernel that Python does not offer."""

import ctypes
import functools
import os

# sys/prctl.h
PARENT_DEATH_SIGNAL, SET_DUMPABLE, SECCOMP, DROP_PRIVILEGE, CHILD_SUBREAPER, NO_NEW_PRIVILEGES = 1, 4, 22, 24, 36, 38

AT_CWD = -100  # linux/fcntl.h: instead of a folder that is open


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
