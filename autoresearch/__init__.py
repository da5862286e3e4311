"""The loop's parts, one room for each verb of the loop: propose, tell, commit, run, judge, record, show."""

import errno


def count(number: int, noun: str) -> str:
    """`1 line`, `2 lines`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def disk_is_full(error: Exception) -> bool:
    """Whether this, or a git that says so, failed for want of room."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


class UserError(Exception):
    """A mistake or a fault that a person can mend. The text says what is wrong and what to do next.

    loop.py prints it and ends with exit code 2; nothing is lost.
    """
