"""The decision: keep or discard. Pure functions on numbers; nothing is read or written here.

The rule is the strict one: what scores better than the champion is kept.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Verdict:
    status: str                     # keep, discard or crash
    reason: str                     # in words and numbers


def judge(score: float, champion: float | None, lower_is_better: bool = True) -> Verdict:
    """Compare a finite score with the champion's; without a champion it becomes the champion."""
    if champion is None:
        return Verdict("keep", f"baseline {score:.6f}")
    gain = champion - score if lower_is_better else score - champion
    if gain > 0:
        return Verdict("keep", f"{score:.6f} is {gain:.6f} better than the champion's {champion:.6f}")
    if gain == 0:
        return Verdict("discard", f"{score:.6f} equals the champion's")
    return Verdict("discard", f"{score:.6f} is {-gain:.6f} worse than the champion's {champion:.6f}")
