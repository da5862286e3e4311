"""The `optimize` agent: a model of what each constant does to the score, learned from all attempts of the run.

The score is taken as a sum over the constants, quadratic in each one's logarithm, with noise; whole numbers, which are
sizes, may matter more than others. Bayesian linear regression says what is known of it after the attempts so far, and a
proposal follows one draw from that (Thompson 1933, "On the Likelihood that One Unknown Probability Exceeds Another"):
what is uncertain is tried as long as it may be good. A proposal moves up to MOVES constants, by the steps that `sweep`
would take. Several at once are as many draws, which spread as far as the knowledge leaves open (Kandasamy et al. 2018,
"Parallelised Bayesian Optimisation via Thompson Sampling"); none is an edit that waits for its verdict, or is proposed
beside it.

It needs numpy, but no model and no key. Everything it knows is in the record, so a kill changes nothing.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoresearch import UserError
from autoresearch.agents import NothingLeft, Proposal
from autoresearch.agents.sweep import steps
from autoresearch.brief import Brief
from autoresearch.constants import Constant, Value, all_constants, literal, name_among, once, with_texts
from autoresearch.markdown import fence, first
from autoresearch.record.ledger import Attempt
from autoresearch.task import edit_hash
from autoresearch.text import digits, signed

if TYPE_CHECKING:
    import numpy as np

MOVES = 2  # constants that one proposal changes at most
CANDIDATES = 3  # that a model beside it is told
DRAWS = 20  # that are made to find an edit which was not tried yet
EFFECT = 2.0  # standard deviations of one score that doubling a constant changes it by, before anything is known
SIZE = 8.0  # times that for a whole number: depth, width or batch also decide how many steps a fixed time has
CURVE = 1.0  # of EFFECT is what it costs besides, to leave the place where somebody has put it
CODE = 10.0  # times that is what an edit of code may do


@dataclasses.dataclass(frozen=True)
class Move:
    constant: Constant
    value: Value  # that it gets


class Optimize:
    name, retries, paid = "optimize", False, False

    def __init__(self, seed: int) -> None:
        self.seed = seed
        try:
            import numpy  # noqa: F401
        except ImportError:
            raise UserError(
                "--agent optimize needs numpy: install again with it, `uv tool install --with numpy PATH_OR_URL`, from "
                "where you installed this before, or use --agent sweep"
            ) from None

    async def propose(self, brief: Brief, folder: Path) -> Proposal:
        """Draw what may be the best step from the champion. The same record gives the same proposal."""
        sources = {name: (folder / name).read_bytes() for name in brief.sources}
        moves = moves_of(brief, sources)
        if not moves:
            raise NothingLeft("optimize found no constant to vary: upper-case names that are given a number")
        known = [*(attempt for attempt in brief.attempts if not attempt.was_outrun), *brief.in_flight]
        contents = {one.edit for one in (*known, *brief.beside)}
        refused = {event.description for event in brief.refused}
        model = Model(brief, sources)
        draws = self.draws(model, moves, brief.number)
        single = sorted(([move] for move in moves), key=model.expected)  # when all that looks good has been tried
        for chosen in itertools.chain(draws, single):
            after = with_texts(sources, [(move.constant, literal(move.value, move.constant.text)) for move in chosen])
            description = described(chosen)
            if edit_hash(after) in contents or description in refused:
                continue
            for name, source in after.items():
                if source != sources[name]:
                    (folder / name).write_bytes(source)
            return Proposal(
                description,
                hypothesis=f"a model of {model.seen} attempts expects it, or knows too little of it",
                predicted=round(model.sign * model.expected(chosen), 6),
                category=" ".join(sorted(move.constant.name for move in chosen)),
                tokens=0,
                dollars=0.0,
            )
        raise NothingLeft("every step from here has been tried")

    def draws(self, model: "Model", moves: Sequence[Move], number: int) -> Iterator[list[Move]]:
        """What may be the best step from the champion, by draws that follow from the experiment's number."""
        import numpy as np

        return (model.best(moves, np.random.default_rng([self.seed, number, draw])) for draw in range(DRAWS))

    def state(self, brief: Brief) -> str:
        """What it knows, for an agent that changes code beside it, as Markdown."""
        sources = {name: source.encode(errors="surrogateescape") for name, source in brief.sources.items()}
        moves, metric = moves_of(brief, sources), brief.task.metric
        if not moves:
            return ""
        model = Model(brief, sources)
        said = {}
        for chosen in self.draws(model, moves, brief.number):
            said.setdefault(described(chosen), chosen)
        candidates = [
            f"{text}: {model.effect_of(chosen)}" for text, chosen in itertools.islice(said.items(), CANDIDATES)
        ]
        tried = {move.constant: [] for move in moves if name_among(sources, move.constant) in model.names}
        for move in moves:
            tried.get(move.constant, []).append(move)
        best = sorted(
            (min(steps, key=lambda move: model.expected([move])) for steps in tried.values()),
            key=lambda move: model.expected([move]),
        )
        known = [f"{described([move])}: {model.effect_of([move])}" for move in best]
        parts = [
            "Another agent varies the constants, from a regression over all attempts, and has most of the trials. Your "
            "part is what constants cannot say: change the code. It goes on from the constants that your code has, so "
            "give what you add a constant where its size is a guess.",
            f"What it would try next, with the change of {metric} that it expects:\n\n" + fence("\n".join(candidates)),
        ]
        if known:
            parts.append("The best step of each constant that was tried, best first:\n\n" + fence(first(known, 2000)))
        return "\n\n".join(parts)


class Model:
    """What is known of the constants' effects, as a normal distribution over the weights of features.

    A feature is a number that says where a constant stands, its square, or whether an edit of code is in. Weights are
    in units of the metric, lower is better.
    """

    def __init__(self, brief: Brief, sources: Mapping[str, bytes]) -> None:
        import numpy as np

        self.files = sources
        constants = all_constants(sources, brief.facts.gpu)
        self.sizes = {name_among(sources, one) for one in constants if type(one.value) is int}
        self.sign = brief.sign
        self.places = places_of(brief.attempts)
        self.now = self.places.get(brief.champion.commit, {})
        seen = [attempt for attempt in brief.attempts if attempt.commit in self.places]
        known = losses_of(seen, self.sign)
        scored = list(known.values())
        self.seen = len(seen)
        worst = max(scored)
        losses = np.array([known.get(attempt.commit, worst) for attempt in seen])
        self.effect, self.noise = EFFECT * brief.noise, brief.noise
        if not brief.noise:  # or it is not known: then what edits did so far is the only measure
            self.effect = float(np.median(abs(losses - losses[0]))) or 0.01 * abs(scored[0]) or 1.0
            self.noise = 0.1 * self.effect
        rows = [features(self.places[attempt.commit]) for attempt in seen]
        self.names = sorted({name for row in rows for name in row})
        x = np.array([[row.get(name, 0.0) for name in self.names] for row in rows]).reshape(len(rows), len(self.names))
        mean, deviation = np.array([self.prior(name) for name in self.names]).reshape(-1, 2).T
        centred = x - x.mean(0)  # the constant term is not known at all
        rest = losses - losses.mean() - centred @ mean
        precision = np.diag(deviation**-2.0) + centred.T @ centred / self.noise**2
        self.root = np.linalg.inv(np.linalg.cholesky(precision)).T  # of the covariance
        self.mean = mean + self.root @ (self.root.T @ (centred.T @ rest)) / self.noise**2

    def prior(self, name: str) -> tuple[float, float]:
        """(Mean, standard deviation) of a weight before anything is known."""
        if name.startswith("code "):
            return 0.0, CODE * self.effect
        if name.endswith(" squared"):
            return CURVE * self.effect, self.effect
        return 0.0, (SIZE if name in self.sizes else 1.0) * self.effect

    def best(self, moves: Sequence[Move], random: "np.random.Generator") -> list[Move]:
        """The moves that are best by one draw of the weights, of different constants. The best one, good or not."""
        weights = self.mean + self.root @ random.standard_normal(len(self.names))
        drawn = dict(zip(self.names, weights, strict=True))

        def weight(name: str) -> float:
            if name not in drawn:
                drawn[name] = random.normal(*self.prior(name))
            return drawn[name]

        gains: dict[tuple[str, str], tuple[float, Move]] = {}
        for move in moves:
            change = sum(weight(name) * step for name, step in self.differences(move).items())
            key = move.constant.file, move.constant.name
            if key not in gains or change < gains[key][0]:
                gains[key] = change, move
        order = sorted(gains.values(), key=lambda gain: gain[0])
        return [move for number, (change, move) in enumerate(order[:MOVES]) if change < 0 or not number]

    def expected(self, moves: Sequence[Move]) -> float:
        """The change of the loss that is expected of moves of different constants."""
        known = dict(zip(self.names, self.mean, strict=True))
        return sum(known.get(name, self.prior(name)[0]) * step for name, step in self.steps(moves))

    def deviation(self, moves: Sequence[Move]) -> float:
        """The standard deviation of what is expected."""
        import numpy as np

        places, row, unknown = {name: place for place, name in enumerate(self.names)}, np.zeros(len(self.names)), 0.0
        for name, step in self.steps(moves):
            if name in places:
                row[places[name]] += step
            else:
                unknown += (self.prior(name)[1] * step) ** 2
        return math.sqrt(float(((self.root.T @ row) ** 2).sum()) + unknown)

    def effect_of(self, moves: Sequence[Move]) -> str:
        """`-0.001200 ± 0.003000`: the change of the metric that is expected, and its standard deviation."""
        return f"{signed(self.sign * self.expected(moves))} ± {digits(self.deviation(moves))}"

    def steps(self, moves: Sequence[Move]) -> Iterator[tuple[str, float]]:
        """(Name, change) of the features of the champion that moves change."""
        return itertools.chain.from_iterable(self.differences(move).items() for move in moves)

    def differences(self, move: Move) -> dict[str, float]:
        """What a move changes in the features of the champion."""
        name = name_among(self.files, move.constant)
        place = {**self.now, name: self.now.get(name, 0.0) + distance(float(move.constant.value), float(move.value))}
        before, after = features(self.now), features(place)
        return {name: after.get(name, 0.0) - before.get(name, 0.0) for name in {**before, **after}}


def described(moves: Sequence[Move]) -> str:
    """`RATE: 0.02 -> 0.04, WIDTH: 128 -> 64`."""
    return ", ".join(move.constant.change(move.value) for move in moves)


def moves_of(brief: Brief, sources: Mapping[str, bytes]) -> list[Move]:
    """All single steps of constants from the champion."""
    found = once(all_constants(sources, brief.facts.gpu))
    numbers = (constant for constant in found if not isinstance(constant.value, str))
    return [Move(constant, value) for constant in numbers for value in steps(constant.value)]


def places_of(attempts: Sequence[Attempt]) -> dict[str, dict[str, float]]:
    """By commit, where its constants stand in relation to the baseline's; of those that are known.

    An edit of code keeps the constants where they are, and is a place of its own.
    """
    places: dict[str, dict[str, float]] = {}
    for attempt in attempts:
        if attempt.is_baseline:
            places[attempt.commit] = {}
        elif attempt.parent in places and attempt.constants is not None:
            place = dict(places[attempt.parent])
            for name, (old, new) in attempt.constants.items():
                if not isinstance(old, str):
                    place[name] = place.get(name, 0.0) + distance(old, new)
            places[attempt.commit] = place
        elif attempt.parent in places and attempt.status == "keep":
            places[attempt.commit] = {**places[attempt.parent], f"code {attempt.number}": 1.0}
    return places


def losses_of(attempts: Sequence[Attempt], sign: int) -> dict[str, float]:
    """By commit, the loss of those that have a score: the champion's of its time, and what it changed by.

    So what the machine did to both is not taken for the edit's effect.
    """
    losses: dict[str, float] = {}
    for attempt in attempts:
        if attempt.score is not None:
            base = losses.get(attempt.parent) if attempt.parent != attempt.commit else None
            changed = None if attempt.standing is None else sign * (attempt.score - attempt.standing)
            known = base is not None and changed is not None
            losses[attempt.commit] = base + changed if known else sign * attempt.score
    return losses


def features(place: Mapping[str, float]) -> dict[str, float]:
    """The numbers that the model sums over."""
    squares = {f"{name} squared": at * at for name, at in place.items() if not name.startswith("code ")}
    return {**place, **squares}


def distance(old: float, new: float) -> float:
    """How far a constant moved, in doublings; of a share between a half and one, in those of what is left to one."""
    if 0.5 < old < 1 and 0.5 < new < 1:
        return math.log2((1 - new) / (1 - old))
    if old * new > 0:
        return math.log2(new / old)
    return float(new > old) - float(new < old)
