"""The probes: does what the model says about a token follow from the tokens before it, and from nothing else?"""

import math

import numpy as np

from prepare import Game, NoScore, ScoredModel, losses_of

MOVED = 1e-4  # nats: less is the noise of float32
LEAK_LIMIT = 0.25  # nats that rounding has never moved the loss of a single token by
STATE_LIMIT = 0.01  # nats a token on average; atomic sums on a GPU move bf16 models by less


def probe_count(game: Game) -> int:
    """Rows that are scored again with their end replaced, where not all are."""
    return 512 if game.profile.name == "gpu" else 128


def probe(model: ScoredModel, rows: np.ndarray, losses, count: int) -> None:
    """Raise NoScore unless what the model says about a token follows from the tokens before it, and from nothing else.

    Rows are scored again, by a process that has seen none of them, beside other rows than before: first some
    that were scored late, as they are; then `count` of all, cut at a random place, what follows replaced by text
    from another row. Over all of an untouched row, and up to the cut, the losses must be those of the first
    scoring, `losses` (rows, MAX_SEQ_LEN), but for noise of the arithmetic.
    """
    import torch

    random = np.random.default_rng()  # never seeded: who trains must not know the cuts
    altered, cuts = np.resize(random.permutation(len(rows)), count), spread(count, rows.shape[1] - 1, random)
    donors = (altered + random.integers(1, max(2, len(rows)), count)) % len(rows)
    untouched = np.resize(len(rows) // 2 + random.permutation(len(rows) - len(rows) // 2), (count + 3) // 4)
    first = len(untouched)
    again = rows[np.concatenate([untouched, altered])]
    originals = again.copy()
    for row, donor, cut in zip(again[first:], donors, cuts, strict=True):
        end = rows[donor, cut:]
        if end[0] == row[cut]:  # the first token after the cut must be another one
            end = np.roll(end, -int(np.argmax(end != row[cut])))
        row[cut:] = end
    moved = losses_of(model, again, originals[:, 1:]) - losses[np.concatenate([untouched, altered])]
    moved = moved.nan_to_num(math.inf)
    if reason := depends_on_company(moved[:first]) or looks_ahead(moved[first:], torch.from_numpy(cuts), moved[:first]):
        raise NoScore(reason)


def depends_on_company(moved) -> str | None:
    """Whether rows that were scored again as they were have other losses: moved (rows, MAX_SEQ_LEN), in nats."""
    mean = moved.abs().mean().item()
    if mean > STATE_LIMIT or rises(moved):
        return (
            "a row's score depends on what was scored with it or before it: the same rows, scored again by a fresh "
            f"process in other batches, moved by {mean:.3g} nats a token"
        )
    return None


def looks_ahead(moved, cuts, untouched) -> str | None:
    """Whether replacing the text from a cut on has moved losses before it: moved (probes, MAX_SEQ_LEN), cuts (probes,).

    Three signs, any of which is enough; honest noise (rounding that depends on the other tokens) has none:
    a single loss moves by more than noise can; losses next to the cut move more often than those farther
    away, by six standard errors; or losses before the cut rise together when the true text behind it is gone.
    """
    import torch

    position = torch.arange(moved.shape[1])
    before = position < cuts[:, None]
    size = moved.abs() * before
    last = size[torch.arange(len(cuts)), cuts - 1] > MOVED
    share = ((size > MOVED).sum() - last.sum()).item() / max(1, before.sum().item() - len(cuts))
    expected = share * len(cuts)
    too_large = size.max() > max(LEAK_LIMIT, 4 * untouched.abs().max().item())
    at_the_cut = last.sum() > 1 + expected + 6 * (expected * (1 - share)) ** 0.5
    if too_large or at_the_cut or rises(moved * before):
        worst = size.amax(1).argmax()
        token = size[worst].argmax()
        return (
            f"the model looks ahead: the loss of token {token + 1} moved by {size[worst, token]:.3g} nats when only "
            f"tokens from {cuts[worst]} on were replaced; {((size > MOVED).any(1)).sum()} of {len(cuts)} probes moved "
            "something"
        )
    return None


def rises(moved) -> bool:
    """Whether the losses of rows (rows, MAX_SEQ_LEN) have risen by five standard errors, and by enough to matter."""
    sums = moved.double().sum(1)
    mean, error = sums.mean().item(), (sums.std() / len(sums) ** 0.5).item()
    return mean > max(5 * error, 1e-4)


def spread(count: int, length: int, random: np.random.Generator) -> np.ndarray:
    """`count` random cuts, 1 to length - 1, one from each equal part of a row of `length` tokens, in random order."""
    return random.permutation(1 + ((np.arange(count) + random.random(count)) * (length - 1) / count).astype(np.int64))
