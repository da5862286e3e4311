"""Shared by all modules: the exceptions with messages for people, and how to recognise a full disk."""

import errno
import os
import sys

BRIEF_TOKENS = 30_000  # how much an agent is told


def disk_is_full(error: Exception) -> bool:
    """Whether this, or a git that says so, failed for want of room."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full)


def require_linux() -> None:
    """Raises UserError on any other system, and on one that is too old."""
    if sys.platform != "linux":
        name, instead = {
            "darwin": ("macOS", "Use a machine with Linux, or a virtual machine with it on this one"),
            "win32": (
                "Windows",
                "Use WSL2: type `wsl --install` in a terminal, then start again inside that Linux",
            ),
        }.get(sys.platform, (sys.platform, "Use a machine with Linux"))
        raise UserError(f"autoresearch runs on Linux, and this is {name}. {instead}")
    try:
        os.close(os.pidfd_open(os.getpid()))  # by which the end of every command is awaited
    except OSError:
        raise UserError(
            f"autoresearch needs Linux 5.3 or later (RHEL 9, Debian 11, Ubuntu 20.04), not {os.uname().release}; "
            "in a container it is the host's, and its rules may hide what a newer one has"
        ) from None


class Stopped(Exception):
    """The user asked to stop before this was done."""


class UserError(Exception):
    """A mistake or an error that a person can fix. The text says what is wrong and what to do next.

    The command line prints it and ends with exit code 2; nothing is lost.
    """
