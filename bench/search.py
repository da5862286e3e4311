"""Does a search beyond greedy leave the better model after a night? Simulated nights, judged by the loop's own judge.

    uv run bench/search.py                                       # the table of docs/search.md: 2,000 nights, seed 1
    uv run bench/search.py --changed --nights 300                # its second table: changed assumptions
    uv run bench/search.py --settings --seed 2 --nights 100      # every setting, on the seeds on which they were chosen

Noise, slots, effects and lines are those of keep_rule.py, and so is the judge: with nothing else switched on, greedy
plays that script's nights to the last digit. A world adds, each with a size that is varied:

- Interactions. Two edits in the same code add a term to its true gain: normal, as large as `interaction` times the
  smaller of their two effects. `overlap` moves its mean below zero, in the same unit.
- Valleys. A share of all fresh ideas are first halves: they lose as others that lose do, but have a second half, with
  which both together gain what a gain usually is, times `prize`. It is proposed only on code that ends with its first.
- The agent. On the champion it has fresh ideas. Where code failed, which is: scored worse than its parent, it proposes
  the second half, where there is one, with chance `complete`; else, with chance `vain`, it takes back some of the loss,
  from none to all, and no more; else it has a fresh idea, worth as much there as on the champion. With chance `discern`
  it sees that there is no second half, and works on the champion. Unasked it puts the two best near misses into the
  champion (chance `combine`), or takes up, there, the best attempt that was not kept (`redo`).
- Ideas that run dry: gains fall to a third after `dry` ideas, or after `stale` edits of the same parent.

A policy chooses the parent of each attempt. An attempt runs once, whoever its parent is, and the judge compares it with
the champion, where the added lines count from the champion's. Only what it keeps becomes the champion, which is what
the branch shows. So no policy is spared noise: it picks parents, too, by scores of one run. All policies meet the same
ideas in the same order, the same noise in the same slot and the same chances. A keep is false as in keep_rule.py.
"""

import argparse
import dataclasses
import heapq
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from autoresearch.judge import RULES, KeepRule, judge, margin, mean
from bench.keep_rule import PRICE, PRIOR, SLOTS, Code, Night, gain_of, gain_of_size

RULE = KeepRule(line_price=PRICE)
REPAIR = -1  # the number of each vain repair, which interacts with nothing
NEAR = 1.0  # noises that a near miss may lose against its parent, to be combined


@dataclasses.dataclass(frozen=True)
class World:
    noise: float = PRIOR
    interaction: float = 0.0
    overlap: float = 0.0
    valleys: float = 0.0
    prize: float = 1.0
    complete: float = 0.3
    combine: float = 0.0
    redo: float = 0.0
    vain: float = 0.0
    discern: float = 0.0
    dry: float = math.inf
    stale: float = math.inf


@dataclasses.dataclass(eq=False)
class Idea:
    number: int
    effect: float
    lines: int
    second: "Idea | None" = None


@dataclasses.dataclass(eq=False)
class Attempt(Code):
    """Its lines are those that it has more than the baseline."""

    parent: "Attempt | None" = None
    ideas: tuple[Idea, ...] = ()
    kept: bool = False
    children: int = 0
    combined: bool = False
    score: float = 0.0
    cost: float = 0.0  # the score, and what its lines owe: by this a policy says which attempts are the best

    @property
    def gain(self) -> float:
        """Over its parent, by the scores."""
        return self.parent.score - self.score if self.parent else 0.0

    @property
    def failed(self) -> bool:
        return self.gain < 0 and not self.kept


@lru_cache(maxsize=1)
def terms(seed: int, overlap: float) -> list[list[float]]:
    """Between any two ideas of a night."""
    drawn = np.random.default_rng([seed, 5]).standard_normal((2 * SLOTS, 2 * SLOTS))
    return ((drawn + drawn.T) / math.sqrt(2) - overlap).tolist()


@dataclasses.dataclass
class Search(Night):
    """A night of which a policy knows attempts, champion, scores and the estimate of noise, and nothing else."""

    world: World = dataclasses.field(default_factory=World)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.halves, self.chances, self.choices = (np.random.default_rng([self.seed, stream]) for stream in (2, 3, 4))
        self.between = terms(self.seed, self.world.overlap) if self.world.interaction else []
        self.fresh = self.keeps = self.false = 0
        self.counted, self.estimate, self.rule = 0, 0.0, RULE
        self.champion = Attempt(0.0, 0, [], kept=True)
        self.attempts = [self.champion]
        for _ in range(2):  # the baseline runs twice
            self.measure(self.champion)
        self.groups.append(self.champion.scores)
        self.best = self.champion.score

    def measure(self, attempt: Attempt) -> None:
        self.run(attempt)
        attempt.score = mean(attempt.scores)
        attempt.cost = attempt.score + PRICE * attempt.lines

    def scale(self) -> float:
        if len(self.groups) != self.counted:
            self.counted, self.estimate = len(self.groups), super().scale()
        return self.estimate

    def fresh_idea(self, parent: Attempt) -> Idea:
        (effect, lines), half, size = self.draw(), self.halves.random(), self.halves.standard_normal()
        number, self.fresh = self.fresh, self.fresh + 1
        shrunk = math.exp(-number / self.world.dry - parent.children / self.world.stale)
        if effect > 0:
            return Idea(number, effect * shrunk, lines)
        idea = Idea(number, effect, lines)
        if half < self.world.valleys / 0.8:  # four in five ideas lose
            together = gain_of_size(size) * self.world.prize * shrunk
            idea.second = Idea(SLOTS + number, together - effect, 3)
        return idea

    def edit(self, parent: Attempt, ideas: list[Idea]) -> Attempt:
        edit = Attempt(parent.value, parent.lines, [], parent, parent.ideas)
        for idea in ideas:
            edit.value += idea.effect + (self.terms_of(idea, edit.ideas) if self.world.interaction else 0.0)
            edit.lines += idea.lines
            edit.ideas += (idea,)
        return edit

    def terms_of(self, idea: Idea, others: tuple[Idea, ...]) -> float:
        if idea.number == REPAIR:
            return 0.0
        row, size, total = self.between[idea.number], abs(idea.effect), 0.0
        for other in others:
            if other.second is not idea and other.number != REPAIR:
                total += row[other.number] * min(size, abs(other.effect))
        return self.world.interaction * total

    def attempt(self, parent: Attempt) -> None:
        """The agent edits the parent; the edit runs and is judged."""
        parent, ideas = self.propose_on(parent)
        edit, champion, noise = self.edit(parent, ideas), self.champion, self.scale()
        parent.children += 1
        self.measure(edit)
        self.attempts.append(edit)
        lines = edit.lines - champion.lines
        edit.kept = judge(edit.scores, champion.scores, noise, lines, self.rule, best=self.best).status == "keep"
        if edit.kept:
            if gain_of(edit, champion) > margin(self.rule, noise, edit.scores, champion.scores):
                self.keeps, self.false = self.keeps + 1, self.false + (edit.value <= champion.value)
            self.champion, self.best = edit, min(self.best, edit.score)

    def propose_on(self, parent: Attempt) -> tuple[Attempt, list[Idea]]:
        """(the code that is edited after all, what is added to it), as the head of this file says."""
        world = self.world
        combine, redo, discern, complete, vain, part = self.chances.random(6).tolist()
        if combine < world.combine and len(near := self.near_misses()) == 2:
            for attempt in near:
                attempt.combined = True
            return self.champion, [attempt.ideas[-1] for attempt in near]
        if parent is self.champion and redo < world.redo:
            parent = min((a for a in self.attempts if not (a.kept or a.children)), key=BY_COST, default=parent)
        if parent.failed and not parent.ideas[-1].second and discern < world.discern:
            parent = self.champion
        if parent.failed and parent.ideas[-1].second and complete < world.complete:
            return parent, [parent.ideas[-1].second]
        if parent.failed and parent.parent and vain < world.vain:
            return parent, [Idea(REPAIR, part * (parent.parent.value - parent.value), 0)]
        return parent, [self.fresh_idea(parent)]

    def near_misses(self) -> list[Attempt]:
        """The two that gained most over their parents, of the fresh ideas that were neither kept nor combined."""
        least, has = -NEAR * self.scale(), set(self.champion.ideas)
        near = [
            attempt
            for attempt in self.attempts[1:]
            if not (attempt.kept or attempt.combined) and attempt.gain > least
            if 0 <= attempt.ideas[-1].number < SLOTS and attempt.ideas[-1] not in has
        ]
        return heapq.nlargest(2, near, key=lambda attempt: attempt.gain)


BY_COST = attrgetter("cost")


# A policy names the parent of the next attempt; it is made anew for each night.
Policy = Callable[[Search], Attempt]


def greedy(rule: KeepRule = RULE) -> Policy:
    def choose(search: Search) -> Attempt:
        search.rule = rule
        return search.champion

    return choose


def second_step(within: float) -> Policy:
    """An edit of the champion that failed by less than `within` noises gets one edit of its own."""

    def choose(search: Search) -> Attempt:
        last, champion = search.attempts[-1], search.champion
        near = last.parent is champion and last.score - champion.score < within * search.scale()
        return last if near else champion

    return choose


def restarts(patience: int) -> Policy:
    """Greedy, but after so many failures it goes on from some earlier champion, and after as many more comes back."""
    here, failed = None, 0

    def choose(search: Search) -> Attempt:
        nonlocal here, failed
        last = search.attempts[-1]
        if here is None or last.kept or (last.parent is here and last.cost < here.cost):
            here, failed = last, 0
        elif (failed := failed + 1) == patience:
            earlier = [attempt for attempt in search.attempts if attempt.kept]
            back = here is not search.champion
            here, failed = search.champion if back else earlier[search.choices.integers(len(earlier))], 0
        return here

    return choose


def frontier(size: int, explore: float, again: bool = False) -> Policy:
    """As PUCT chooses, among the `size` best scores: by the score, in noises, and by how little it was edited so far.

    again: what failed runs a second time before it is edited.
    """

    def choose(search: Search) -> Attempt:
        among = heapq.nsmallest(size, search.attempts, key=BY_COST)
        noise, bonus = search.scale(), explore * math.sqrt(len(search.attempts))
        parent = max([search.champion, *among], key=lambda a: bonus / (1 + a.children) - a.cost / noise)
        if again and len(parent.scores) == 1 and not parent.kept:
            search.measure(parent)
            search.groups.append(parent.scores)
        return parent

    return choose


def tree(drafts: int, debug: float) -> Policy:
    """As AIDE does: so many edits of the baseline, then of the best score, and by chance of a leaf that failed."""

    def choose(search: Search) -> Attempt:
        if len(search.attempts) <= drafts:
            return search.attempts[0]
        if search.choices.random() < debug:
            leaves = [attempt for attempt in search.attempts if not attempt.kept and not attempt.children]
            if leaves:
                return leaves[search.choices.integers(len(leaves))]
        return min(search.attempts, key=BY_COST)

    return choose


SETTINGS: dict[str, Callable[[], Policy]] = {
    "greedy": greedy,
    "greedy, any gain": partial(greedy, RULES["strict"]),
    **{f"second step, {within:g}": partial(second_step, within) for within in (0.5, 1, 2, 4, 8)},
    **{f"restarts, {patience}": partial(restarts, patience) for patience in (5, 10, 20)},
    **{f"frontier, {k}, {c:g}": partial(frontier, k, c) for k in (3, 10) for c in (0.03, 0.1, 0.3, 1)},
    "frontier, 3, 0.3, again": partial(frontier, 3, 0.3, True),
    **{f"tree, {first}, {debug:g}": partial(tree, first, debug) for first in (1, 5) for debug in (0.0, 0.1, 0.3)},
}
CHOSEN = ("greedy", "tree, 1, 0", "frontier, 3, 0.3", "frontier, 10, 1", "second step, 4", "restarts, 20")
MIDDLE = World(interaction=0.3, combine=0.05)
VALLEYS = dataclasses.replace(MIDDLE, valleys=0.3, vain=0.35)
ALL = dataclasses.replace(MIDDLE, valleys=0.1, vain=0.35)
WORLDS = {
    "nothing else, as in keep_rule.py": World(),
    "interactions 0.3, combining": MIDDLE,
    "valleys 0.1, vain repairs 0.35": ALL,
    "valleys 0.3, no vain repairs": dataclasses.replace(VALLEYS, vain=0.0),
    "valleys 0.3, vain repairs 0.7": dataclasses.replace(VALLEYS, vain=0.7),
}
CHANGED = {
    "valleys 0.3, vain repairs 0.35": VALLEYS,
    "noise 0.0003": dataclasses.replace(VALLEYS, noise=0.0003),
    "noise 0.002": dataclasses.replace(VALLEYS, noise=0.002),
    "interactions 1": dataclasses.replace(VALLEYS, interaction=1.0),
    "what gains overlaps, 0.5": dataclasses.replace(VALLEYS, overlap=0.5),
    "the same without valleys": dataclasses.replace(VALLEYS, overlap=0.5, valleys=0.0),
    "the second half is always found": dataclasses.replace(VALLEYS, complete=1.0),
    "a pair gains three times as much": dataclasses.replace(VALLEYS, prize=3.0),
    "the agent takes up near misses, 0.1": dataclasses.replace(VALLEYS, redo=0.1),
    "it sees what has no second half, 0.8": dataclasses.replace(VALLEYS, discern=0.8),
    "ideas run dry, 50": dataclasses.replace(VALLEYS, dry=50),
    "ideas on one parent run dry, 10": dataclasses.replace(VALLEYS, stale=10),
}
TUNED = {  # where the settings were chosen
    name: {**WORLDS, **CHANGED}[name]
    for name in (
        "interactions 0.3, combining",
        "valleys 0.3, no vain repairs",
        "valleys 0.3, vain repairs 0.35",
        "valleys 0.3, vain repairs 0.7",
    )
}


def play(make: Callable[[], Policy], world: World, seed: int) -> Search:
    """The night as it was in the morning."""
    search, policy = Search(seed, world.noise, world=world), make()
    while search.left:
        parent = policy(search)
        if search.left:
            search.attempt(parent)
    return search


def table(worlds: dict[str, World], policies: Sequence[str], count: int, seed: int) -> Iterator[str]:
    """Lines of Markdown, a world each: greedy's true gain, then how much more each policy gains."""
    yield f"| world | greedy | {' | '.join(policies[1:])} |"
    yield f"|---|{'---|' * len(policies)}"
    for name, world in worlds.items():
        gains, lines, kept = (np.zeros((len(policies), count)) for _ in range(3))
        false = np.zeros(len(policies))
        for number in range(count):
            for place, policy in enumerate(policies):
                night = play(SETTINGS[policy], world, seed * 1_000_000 + number)
                gains[place, number], lines[place, number] = night.champion.value, night.champion.lines
                kept[place, number] = night.keeps
                false[place] += night.false
        shares = false / kept.sum(axis=1)
        cells = [f"{gains[0].mean():.4f}, {shares[0]:.0%}"]
        for place in range(1, len(policies)):
            more = gains[place] - gains[0]
            paid = more - PRICE * (lines[place] - lines[0])
            cells.append(f"{interval(more)}; {interval(paid)}; {shares[place]:.0%}")
        yield f"| {name} | {' | '.join(cells)} |"


def interval(differences: np.ndarray) -> str:
    """Mean and 95% interval, in ten-thousandths."""
    error = 1.96 * differences.std(ddof=1) / math.sqrt(len(differences))
    return f"{1e4 * differences.mean():+.1f} ± {1e4 * error:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nights", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--changed", action="store_true", help="other worlds: what else could be assumed")
    parser.add_argument("--settings", action="store_true", help="all settings, in four of the worlds")
    options = parser.parse_args()
    worlds = TUNED if options.settings else CHANGED if options.changed else WORLDS
    for line in table(worlds, list(SETTINGS) if options.settings else CHOSEN, options.nights, options.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
