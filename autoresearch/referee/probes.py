"""The probes: does what the model says about a token follow from the tokens before it, and from nothing else?

Two processes run the model, one after the other. Each scores one half of the rows, and among them, in one random order,
it is given rows of the other half as they are, rows of the other half whose end is another text's (they are altered),
and altered rows that are not scored and that no other process sees (they are spare). So there is no process and no
time at which it is safe to cheat. Before something is kept every row of the holdout is probed, twice: one process is
given all of them altered, before another one scores them.

Two questions are asked. The same token, with the same text before it, must have the same loss in both processes
(`looks_ahead`, `depends_on_company`, `learns`): noise of the arithmetic is forgiven, up to constants that were measured
on honest models (bench/probes.py), whatever a model shows itself. And tokens that no process could have seen must be as
easy as those that it could (`excess`): this needs no secret, since there is nobody to ask about them.
"""

import dataclasses
import math

import numpy as np

from prepare import Game

# In nats; measured on honest models, twice to five times what the worst of them shows. See bench/RESULTS.md.
MOVED = (1e-4, 1e-3, 1e-2, 1e-1)  # sizes of moves that are counted; less is the noise of float32
LARGEST_MOVE = 0.25  # of the loss of one token, but for one in 10,000, of which no loss may move four times as much
MEAN_MOVE = 0.04  # a token, over rows as they are and over altered ones before the cut
RISE_AT_CUT = 0.02  # on average, of the loss of the token just before the cut; of the last k together, times sqrt(k)
LAST = (1, 2, 4, 8, 16)  # such k
LARGEST_ERROR = 0.02  # of the mean of a row's moves, as far as noise may explain them
# A token's loss less the baseline's, and without a baseline its loss alone: what is cut off, the largest deviation.
WITH_REFERENCE, WITHOUT_REFERENCE = (4.0, 1.3), (12.0, 3.2)
STANDARD_ERRORS = 4.0  # by which unseen tokens may be harder than the scored rows predict


def probe_counts(game: Game) -> tuple[int, int]:
    """(Rows of those scored that are altered, spare rows that are altered), where not all are; at most."""
    return (512, 4096) if game.profile.name == "gpu" else (128, 160)


@dataclasses.dataclass(frozen=True)
class Stream:
    """What one process is given, in this order. A row's number is its place in the text: scored rows, then spare."""

    rows: np.ndarray  # (n, T + 1) uint16, as they are shown
    targets: np.ndarray  # (n, T), the true next tokens
    number: np.ndarray  # (n,)
    cut: np.ndarray  # (n,) the tokens from there on are another text's; T for rows as they are
    counts: np.ndarray  # (n,) whether its loss here is the score's


def stream(
    text: np.ndarray,
    scored: np.ndarray,
    again: np.ndarray,
    altered: np.ndarray,
    donors: np.ndarray,
    random: np.random.Generator,
) -> Stream:
    """One process's stream: rows to score, rows as they are that the other one scores, rows to alter (all by number).

    donors: (d, T + 1), the text whose ends are put in, each once while it lasts.
    """
    length = text.shape[1] - 1
    number = np.concatenate([scored, again, altered])
    cut = np.full(len(number), length)
    cut[len(number) - len(altered) :] = spread(len(altered), length, random)
    order = random.permutation(len(number))
    counts = (np.arange(len(number)) < len(scored))[order]
    number, cut = number[order], cut[order]
    cut[np.lexsort((np.arange(len(cut)), number))] = cut[np.lexsort((cut, number))]  # of a row twice the shorter first
    rows = text[number]
    places = np.flatnonzero(cut < length)
    for place, donor in zip(places, np.resize(random.permutation(len(donors)), len(places)), strict=True):
        row, end = rows[place], donors[donor, cut[place] :]
        if end[0] == row[cut[place]]:  # the first token after the cut must be another one
            end = np.roll(end, -int(np.argmax(end != row[cut[place]])))
        row[cut[place] :] = end
    return Stream(rows, text[number][:, 1:], number, cut, counts)


def plan(text: np.ndarray, scored: int, counts: tuple[int, int], random: np.random.Generator) -> list[Stream]:
    """The two streams that score and probe the first `scored` rows of the text; the others are spare.

    No process is given a row twice, nor text from behind a cut: the ends come from rows that it has no other use for.
    """
    halves = np.array_split(random.permutation(scored), 2)
    spare = scored + random.permutation(len(text) - scored)
    unseen, left = np.split(spare, [min(counts[1], len(spare) * 3 // 4)])
    streams = []
    for mine, others, new in zip(halves, halves[::-1], np.array_split(unseen, 2), strict=True):
        untouched = min(counts[0] // 16, len(others) // 8)
        again, altered, rest = np.split(others, [untouched, untouched + counts[0] // 2])
        donors = np.concatenate([rest, left])
        donors = donors if len(donors) else np.arange(len(text))  # of a text that is hardly one
        streams.append(stream(text, mine, again, np.concatenate([altered, new]), text[donors], random))
    return streams


def plan_all(text: np.ndarray, donors: np.ndarray, random: np.random.Generator) -> list[Stream]:
    """Two streams: every row of the text altered, twice, with ends from the donors; then every row as it is, scored.

    Of a row that is given twice the longer part comes second, so that what is asked is unseen both times.
    """
    every, none = np.arange(len(text)), np.arange(0)
    twice = np.concatenate([every, every])
    return [stream(text, none, none, twice, donors, random), stream(text, every, none, none, donors, random)]


def spread(count: int, length: int, random: np.random.Generator) -> np.ndarray:
    """`count` random cuts, 1 to length - 1, one from each equal part of a row of `length` tokens, in random order."""
    parts = (np.arange(count) + random.random(count)) * (length - 1) / max(1, count)
    return random.permutation(1 + parts.astype(np.int64))


@dataclasses.dataclass
class Answers:
    """What the two processes said of a text: the losses of the score, and those that it is compared with."""

    losses: np.ndarray  # (scored, T) nats
    again: np.ndarray  # (a, T) how rows as they are moved, against the score's losses
    altered: np.ndarray  # (m, T) how altered rows moved
    cuts: np.ndarray  # (m,) and where they were cut
    learned: np.ndarray  # (a + m,) mean move of each up to its cut, the other way round where it was scored earlier
    unseen: np.ndarray  # (u,) losses of tokens just before a cut, which no process had seen
    unseen_at: tuple[np.ndarray, np.ndarray]  # their rows' numbers, their positions


def answers(streams: list[Stream], losses: list[np.ndarray], scored: int) -> Answers:
    """Sort what the processes said, losses (n, T) for each stream, by what it was asked for."""
    length = losses[0].shape[1]
    score, place = np.empty((scored, length), np.float32), np.empty(scored)
    for one, said in zip(streams, losses, strict=True):
        score[one.number[one.counts]] = said[one.counts]
        place[one.number[one.counts]] = np.flatnonzero(one.counts) / len(one.number)
    again, altered, cuts, learned, unseen, rows, positions = ([] for _ in range(7))
    for turn, (one, said) in enumerate(zip(streams, losses, strict=True)):
        cut, spare = one.cut < length, one.number >= scored
        repeated, probed = ~cut & ~one.counts, cut & ~spare
        for kind, moved in ((repeated, again), (probed, altered)):
            moved.append(said[kind] - score[one.number[kind]])
            means = np.where(np.arange(length) < one.cut[kind][:, None], moved[-1], 0).sum(1) / one.cut[kind]
            learned.append(means * np.sign(place[one.number[kind]] - np.flatnonzero(kind) / len(one.number)))
        cuts.append(one.cut[probed])
        new = np.flatnonzero(spare | (probed & (turn == 0)))  # the first process has nobody to ask
        unseen.append(said[new, one.cut[new] - 1])
        rows.append(one.number[new])
        positions.append(one.cut[new] - 1)
    join = np.concatenate
    return Answers(
        score, join(again), join(altered), join(cuts), join(learned), join(unseen), (join(rows), join(positions))
    )


# ----------------------------------------------------------------------------------------------
# The same token, the same text before it


COMPANY = "a row's score depends on what was scored with it or before it: "


def depends_on_company(moved: np.ndarray) -> str | None:
    """Whether rows as they are have other losses in another process: moved (rows, T)."""
    mean = np.abs(np.nan_to_num(moved, nan=math.inf)).mean() if len(moved) else 0.0
    if mean > MEAN_MOVE:
        again = f"scored again by a fresh process in other batches, moved by {mean:.2g} nats a token"
        return f"{COMPANY}the same rows, {again}"
    return None


def learns(learned: np.ndarray) -> str | None:
    """Whether losses are lower the later in its stream a process is asked: learned (rows,), see Answers."""
    if len(learned) and rises(np.nan_to_num(learned, nan=math.inf)):
        return f"{COMPANY}the later they were scored the lower were their losses, by {learned.mean():.2g} nats a token"
    return None


def looks_ahead(moved: np.ndarray, cuts: np.ndarray) -> str | None:
    """Whether replacing the text from a cut on has moved losses before it: moved (probes, T), cuts (probes,).

    Any of these signs is enough; rounding that depends on the other tokens has none of them: a loss moves by more than
    rounding moves it; losses just before the cut rise, or move more often than those farther away, by six standard
    errors; the losses at one position do; or all losses before the cut rise together, or move.
    """
    if not len(moved):
        return None
    position = np.arange(moved.shape[1])
    before = position < cuts[:, None]
    moved = np.where(before, np.nan_to_num(moved, nan=math.inf), 0)
    size = np.abs(moved)
    at_cut = np.arange(len(cuts)), cuts - 1
    farther = before.copy()
    farther[at_cut] = False
    signs = (
        size.max() > 4 * LARGEST_MOVE
        or (size > LARGEST_MOVE).sum() > 1e-4 * before.sum()
        or size[before].mean() > MEAN_MOVE
        or any(np.where(position >= cuts[:, None] - k, moved, 0).sum(1).mean() > RISE_AT_CUT * k**0.5 for k in LAST)
        or any(moves_at_cut(size > limit, at_cut, farther) for limit in MOVED)
        or any(moves_at_a_position(size > limit, farther) for limit in MOVED)
        or rises(moved.sum(1) / before.sum(1))
    )
    if not signs:
        return None
    worst = size.max(1).argmax()
    token = size[worst].argmax()
    return (
        f"the model looks ahead: the loss of token {token + 1} moved by {size[worst, token]:.2g} nats when only "
        f"tokens from {cuts[worst]} on were replaced; {(size > MOVED[0]).any(1).sum()} of {len(cuts)} probes moved "
        "something"
    )


def moves_at_cut(moved: np.ndarray, at_cut: tuple[np.ndarray, np.ndarray], farther: np.ndarray) -> bool:
    """Whether tokens just before the cut moved more often than those farther away: moved, farther (probes, T) bool."""
    share = moved[farther].mean() if farther.any() else 0.0
    expected = share * len(moved)
    return bool(moved[at_cut].sum() > 1 + expected + 6 * (expected * (1 - share)) ** 0.5)


def moves_at_a_position(moved: np.ndarray, farther: np.ndarray) -> bool:
    """Whether one position moves in most probes, and the others hardly ever."""
    asked, count = farther.sum(0), (moved & farther).sum(0)
    worst = np.argmax(count / np.maximum(asked, 1))
    others = (count.sum() - count[worst]) / max(1, asked.sum() - asked[worst])
    return bool(asked[worst] >= 8 and count[worst] > asked[worst] / 2 and count[worst] > 20 * others * asked[worst])


def rises(means: np.ndarray) -> bool:
    """Whether rows' mean moves (rows,) are above zero by six standard errors, and by enough to matter."""
    error = min(means.std(), LARGEST_ERROR) / len(means) ** 0.5
    return bool(means.mean() > max(6 * error, 2e-6))


# ----------------------------------------------------------------------------------------------
# Tokens that nobody has seen


@dataclasses.dataclass(frozen=True)
class Excess:
    """By how much tokens that no process had seen are harder than the scored rows predict, in nats a token."""

    gap: float
    error: float  # one standard error

    def reason(self) -> str | None:
        if self.gap <= STANDARD_ERRORS * self.error:
            return None
        return (
            f"the score is too good: tokens that the model's processes could not have seen are {self.gap:.2g} nats "
            f"harder than the scored rows predict; chance explains {STANDARD_ERRORS * self.error:.2g}"
        )


def excess(given: Answers, reference: tuple[np.ndarray, np.ndarray] | None, counted: np.ndarray) -> Excess:
    """What the scored rows predict for the unseen tokens, and how these came out.

    reference: the baseline's losses, (scored, T) and (spare, T), which are taken off; None where there are none.
    counted: (rows, T) bool, which targets stand for text. A standard deviation is believed up to a constant: a model
    could make its own as large as it likes.
    """
    cut_off, largest = WITH_REFERENCE if reference else WITHOUT_REFERENCE
    known = np.concatenate(reference) if reference else np.zeros(counted.shape, np.float32)
    scored = len(given.losses)
    predicted = (given.losses - known[:scored])[:, :-1].clip(-cut_off, cut_off)[counted[:scored, :-1]]
    found = (given.unseen - known[given.unseen_at]).clip(-cut_off, cut_off)[counted[given.unseen_at]]
    if not len(found) or not len(predicted):
        return Excess(0.0, math.inf)
    variances = (min(values.std(), largest) ** 2 / len(values) for values in (predicted, found))
    return Excess(float(found.mean() - predicted.mean()), float(sum(variances)) ** 0.5)
