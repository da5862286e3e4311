"""The probes by themselves, without a model: what each process is given, and what is concluded from its answers."""

import numpy as np
import pytest

from autoresearch.referee import probes

LENGTH = 64


def text(rows: int, seed: int = 0) -> np.ndarray:
    """Rows in which every token is another one, so that where a token came from can be told."""
    return np.random.default_rng(seed).permutation(rows * (LENGTH + 1)).reshape(rows, -1).astype(np.uint32)


@pytest.mark.parametrize(("scored", "spare"), [(128, 320), (586, 218), (40, 0), (3, 0), (1, 1)])
def test_what_two_processes_are_given(scored, spare):
    rows = text(scored + spare)
    one, other = streams = probes.plan(rows, scored, (128, 160), np.random.default_rng(1))
    assert sorted(np.concatenate([stream.number[stream.counts] for stream in streams])) == list(range(scored))
    assert abs(len(one.rows) - len(other.rows)) <= 2
    for stream in streams:
        cut = stream.cut < LENGTH
        assert not (cut & stream.counts).any()
        assert len(set(stream.number)) == len(stream.number)  # no row twice
        assert (stream.targets == rows[stream.number][:, 1:]).all()
        assert (stream.rows[~cut] == rows[stream.number[~cut]]).all()
        for row, number, place in zip(stream.rows[cut], stream.number[cut], stream.cut[cut], strict=True):
            assert (row[:place] == rows[number, :place]).all() and row[place] != rows[number, place]
    if scored == 586:
        assert sum((stream.cut < LENGTH).sum() for stream in streams) == 128 + 160
        assert sum(((stream.cut == LENGTH) & ~stream.counts).sum() for stream in streams) == 16


@pytest.mark.parametrize("all_rows", [False, True])
def test_no_process_sees_what_it_is_asked_unseen(all_rows):
    """Of a token that counts as unseen no input of its process holds it, nor one of a process before it."""
    random, rows = np.random.default_rng(2), text(586 + 218)
    if all_rows:
        streams = probes.plan_all(rows[:200], rows[200:], random)
    else:
        streams = probes.plan(rows, 586, (128, 160), random)
    scored = 200 if all_rows else 586
    losses = [np.zeros((len(stream.rows), LENGTH), np.float32) for stream in streams]
    given = probes.answers(streams, losses, scored)
    asked = set(rows[given.unseen_at[0], given.unseen_at[1] + 1].tolist())
    assert len(given.unseen) == (400 if all_rows else 64 + 160)
    seen = set()
    for row, number, cut in zip(streams[0].rows, streams[0].number, streams[0].cut, strict=True):
        seen |= {int(token) for token in row[:-1]}
        assert cut == LENGTH or int(rows[number, cut]) not in seen  # so far: later a longer part of it may come
    if not all_rows:
        assert not asked & seen
    spare = given.unseen_at[0] >= scored
    second = {int(token) for token in streams[1].rows[:, :-1].flat}
    assert not set(rows[given.unseen_at[0][spare], given.unseen_at[1][spare] + 1].tolist()) & second


def test_cuts_cover_the_whole_row():
    assert set(probes.spread(500, 64, np.random.default_rng())) == set(range(1, 64))


# -- conclusions: moves of 112 rows, cut somewhere


def moves(noise: float, seed: int, share: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Rounding noise of this size in this share of the tokens."""
    random = np.random.default_rng(seed)
    moved = noise * random.standard_normal((112, LENGTH)) * (random.random((112, LENGTH)) < share)
    return moved, probes.spread(112, LENGTH, random), random


@pytest.mark.parametrize(("noise", "share"), [(0.0, 1.0), (1e-6, 1.0), (1e-3, 1.0), (0.02, 1.0), (0.04, 0.1)])
def test_rounding_is_forgiven(noise, share):
    for seed in range(100):
        moved, cuts, random = moves(noise, seed, share)
        assert probes.looks_ahead(moved, cuts) is None
        assert probes.depends_on_company(moved[:14]) is None
        assert probes.learns(moved.mean(1) * random.choice([-1, 1], 112)) is None


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.02])
def test_noise_hides_no_leak_of_a_hundredth(noise):
    """Moves at the cut, or a little before it, or everywhere, beside noise as large as honest rounding."""
    for seed in range(20):
        for back in (1, 2, 4):
            moved, cuts, random = moves(noise, seed)
            place = np.maximum(0, cuts - back)
            moved[np.arange(112), place] += random.exponential(0.05 * back**0.5, 112).clip(0, 0.24)
            assert probes.looks_ahead(moved, cuts)
        moved, cuts, _ = moves(noise, seed)
        assert probes.looks_ahead(moved + 0.02, cuts)
        moved, cuts, random = moves(noise, seed)
        moved[:, 0] += 0.3 * random.standard_normal(112)
        assert probes.looks_ahead(moved, cuts)


def test_who_learns_is_found():
    """Whose losses fall by a hundredth of a nat from the beginning of its stream to the end, beside honest rounding."""
    random, rows = np.random.default_rng(3), text(128 + 320)
    streams = probes.plan(rows, 128, (128, 160), random)
    for noise, found in ((1e-4, True), (0.0, True), (0.02, False)):
        losses = []
        for stream in streams:
            fall = 0.01 * np.arange(len(stream.rows)) / len(stream.rows)
            losses.append(3.0 - fall[:, None] + noise * random.standard_normal((len(stream.rows), LENGTH)))
        said = probes.answers(streams, losses, 128)
        assert probes.depends_on_company(said.again) is None and bool(probes.learns(said.learned)) is found


def test_a_few_large_errors_are_none_of_rounding():
    for seed in range(20):
        moved, cuts, _ = moves(1e-3, seed)
        moved[3, 0] = 0.5
        assert probes.looks_ahead(moved, cuts)
        moved, cuts, _ = moves(0.0, seed)
        moved[3, 0] = np.nan
        assert probes.looks_ahead(moved, cuts)


def given(losses: np.ndarray, unseen: np.ndarray, at: tuple[np.ndarray, np.ndarray]) -> probes.Answers:
    none = np.zeros((0, LENGTH))
    return probes.Answers(losses, none, none, np.zeros(0, int), np.zeros(0), unseen, at)


@pytest.mark.parametrize("referenced", [False, True])
def test_unseen_tokens_bound_what_any_leak_brings(referenced):
    """Honest models pass. Whoever gains more than four standard errors does not, whatever noise it adds."""
    rows, spare, passed, caught = 586, 218, 0, 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        baseline = random.gamma(1.7, 2.0, (rows + spare, LENGTH)).astype(np.float32)
        losses = (baseline - 0.05 + 0.9 * random.standard_normal(baseline.shape)).astype(np.float32)
        at = random.permutation(rows + spare)[:224], random.integers(0, LENGTH - 1, 224)
        reference = (baseline[:rows], baseline[rows:]) if referenced else None
        counted = random.random(baseline.shape) < 0.99
        honest = probes.excess(given(losses[:rows], losses[at], at), reference, counted)
        passed += honest.reason() is None
        unseen = losses[at]
        unseen[random.permutation(224)[:4]] += 50.0  # a few large errors, to be thought noisy
        gain = 0.4 if referenced else 0.95
        caught += probes.excess(given(losses[:rows] - gain, unseen, at), reference, counted).reason() is not None
        assert honest.error < (0.07 if referenced else 0.22)
    assert passed == 100 and caught >= 75


def test_without_unseen_tokens_nothing_is_known():
    losses = np.ones((3, LENGTH), np.float32)
    found = probes.excess(given(losses, np.zeros(0), (np.zeros(0, int), np.zeros(0, int))), None, losses > 0)
    assert found.reason() is None and found.error == float("inf")
