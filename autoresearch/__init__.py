"""What every module shares: the exceptions that people see, and what a full disk looks like."""

import errno

BRIEF_TOKENS = 30_000  # how much an agent is told
LARGEST_FILE = 256 << 10  # bytes of a file that an agent edits


def disk_is_full(error: Exception) -> bool:
    """Whether this, or a git that says so, failed for want of room."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


class Stopped(Exception):
    """The user asked to stop before this was done."""


class UserError(Exception):
    """A mistake or a fault that a person can put right. The text says what is wrong and what to do next.

    The command line prints it and ends with exit code 2; nothing is lost.
    """
