"""Which runs are comparable if the training time is fixed: those during which other programs used a similar CPU share.

A run is (the CPU share that other programs used, or None if unknown; its score). most: by how much the shares of two
comparable runs may differ (Facts.most_taken); None: it does not matter.
"""

from collections.abc import Iterable, Sequence

Run = tuple[float | None, float]


def alike(runs: Iterable[Run], taken: float | None, most: float | None) -> list[float]:
    """The scores of the runs during which other programs used about the share `taken`."""
    if taken is None or most is None:
        return []
    return [score for other, score in runs if other is not None and abs(other - taken) <= most]


def if_comparable(runs: Sequence[Run], taken: float | None, most: float | None) -> list[float]:
    """The scores of the runs under like conditions; of all runs if the conditions are known for none."""
    known = most is not None and any(other is not None for other, _ in runs)
    return alike(runs, taken or 0.0, most) if known else [score for _, score in runs]


def comparable(runs: Sequence[Run], taken: float | None, most: float | None, lower_is_better: bool) -> list[float]:
    """The scores of a champion's runs with which to compare a run during which other programs used the share `taken`.

    Those under like conditions. If there are none: the nearest of those that were less disturbed, else the best one, so
    that a run does not look good because its champion was disturbed. A run whose conditions are unknown counts as
    undisturbed.
    """
    if scores := if_comparable(runs, taken, most):
        return scores
    known, taken = [(other, score) for other, score in runs if other is not None], taken or 0.0
    if less := [other for other, _ in known if other < taken]:
        return alike(known, max(less), most)
    scores = [score for _, score in known]
    return scores and [min(scores) if lower_is_better else max(scores)]


def by_conditions(runs: Iterable[Run], most: float | None) -> list[list[float]]:
    """The scores of identical code, in groups of runs under like conditions."""
    groups: list[tuple[float, list[float]]] = []
    for taken, score in sorted(runs, key=lambda run: run[0] or 0.0):
        if not groups or (most is not None and (taken or 0.0) > groups[-1][0] + most):
            groups.append((taken or 0.0, []))
        groups[-1][1].append(score)
    return [scores for _, scores in groups]
