"""What many seats gain in a night against one after the other, and what tiers save. Simulated, with the loop's judge.

    uv run bench/waves.py                       # both tables of RESULTS.md: 200 nights a cell, seed 1
    uv run bench/waves.py --nights 50 --seed 2

Edits, lines, noise (0.0007) and judge are those of keep_rule.py. Time is counted in trials: a night has 100. Each seat
takes the next edit as soon as it is free, on the champion of that moment; a trial takes 0.95 to 1.05. An edit is judged
against the champion that it started from. If it wins and another was kept meanwhile, it is moved onto that one and
runs again, as the loop does. The k-th new idea is the same for any number of seats: nights are paired by seed.

What keep_rule.py does not say has a size that is varied:

- `helps`: the share of the edits that gain.
- `dry`: gains fall to a third after so many ideas. Without that a night of 64 seats gains more than there can be.
- `pool`: agents that are asked at once know the same. Each of the others in flight makes it by a chance of one in
  `pool` that an idea repeats one of theirs: it gains as much as that, and nothing on top of it. Nobody has measured it.
- `together`: what the loop does not do. Of the winners that have to run again one trial at a time runs all that wait;
  where they lose together, each half of them runs by itself.

Not in it: what an agent learns from verdicts that are still to come, edits that git cannot move, and edits that do less
together than each alone.

Tiers: an edit runs on the cheap kind first. There it gains something else than on the dear one: each edit has its own
deviation, normal, drawn once. What beats the champion's score there runs on the dear kind, and only that score makes a
keep. All nights cost as much as 100 trials of the dear kind.
"""

import argparse
import dataclasses
import heapq
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from autoresearch.judge import KeepRule, judge, mean
from bench.keep_rule import HELPS, PRICE, PRIOR, SLOTS, Code, Night

RULE = KeepRule(line_price=PRICE)
SEATS = 1, 4, 16, 64
TRIALS = 400  # of the comparison at equal trials
HOPELESS = 1.0  # noises that an edit is worse by: no rule here keeps that, whatever its lines


@dataclasses.dataclass(frozen=True)
class World:
    helps: float = HELPS
    dry: float = math.inf
    pool: float = math.inf
    together: bool = False


WORLDS = {
    "20% help, as in keep_rule.py": World(),
    "5% help": World(helps=0.05),
    "20% help, dry after 300": World(dry=300),
    "the same, pool of 50": World(dry=300, pool=50),
}
TOGETHER = "20% help, as in keep_rule.py", "20% help, dry after 300"  # worlds in which that is tried


@dataclasses.dataclass(frozen=True)
class Idea:
    number: int
    effect: float
    lines: int


@dataclasses.dataclass(eq=False)
class Edit(Code):
    """A champion, or an edit of `base`. has: numbers of all ideas that are in it, where ideas repeat."""

    base: "Edit | None" = None
    ideas: Sequence[Idea] = ()
    has: frozenset[int] = frozenset()
    again: bool = False


class Seats(Night):
    """A night of so many seats.

    gained: (time, trials that are over, true gain of the champion) at each keep. counts: of the trials that are over in
    time, all, those kept, those that run again.
    """

    def __init__(self, seed: int, seats: int, world: World) -> None:
        super().__init__(seed, PRIOR, helps=world.helps)
        self.seats, self.world = seats, world
        self.chances, self.lengths = (np.random.default_rng([seed, stream]) for stream in (2, 3))
        self.fresh, self.over, self.counts = 0, 0, [0, 0, 0]
        self.champion = Edit(0.0, 0, [])
        for _ in range(2):  # the baseline runs twice, before the night
            self.run(self.champion)
        self.groups.append(self.champion.scores)
        self.noise_known, self.best = self.scale(), mean(self.champion.scores)
        self.gained = [(0.0, 0, 0.0)]
        self.running: list[tuple[float, int, Edit]] = []
        self.winners: list[Sequence[Idea]] = []  # that run again, each in a trial of its own

    def start(self, ideas: Sequence[Idea], again: bool) -> Edit:
        """An edit of the champion, which has run once; its verdict comes when that run is over."""
        base, lines = self.champion, sum(idea.lines for idea in ideas)
        effect = sum(idea.effect for idea in ideas if idea.number not in base.has)
        has = base.has.union(idea.number for idea in ideas) if math.isfinite(self.world.pool) else base.has
        edit = Edit(base.value + effect, lines, [], base, ideas, has, again)
        self.run(edit)
        return edit

    def next(self) -> Edit:
        """What a seat that is free runs."""
        if not self.winners or (self.world.together and any(edit.again for *_, edit in self.running)):
            return self.start([self.idea()], False)
        return self.start(self.winners.pop(0), True)

    def idea(self) -> Idea:
        if self.running and math.isfinite(self.world.pool):
            again, which = self.chances.random(2).tolist()
            if again > (1 - 1 / self.world.pool) ** len(self.running):
                return self.running[int(which * len(self.running))][-1].ideas[0]
        effect, lines = self.draw()
        number, self.fresh = self.fresh, self.fresh + 1
        return Idea(number, effect * math.exp(-number / self.world.dry) if effect > 0 else effect, lines)

    def play(self, trials: int) -> "Seats":
        """So many trials, whose verdicts come in the order in which they end."""
        begun, now = 0, 0.0
        while begun < trials or self.running:
            while begun < trials and len(self.running) < self.seats:
                heapq.heappush(self.running, (now + 0.95 + 0.1 * self.lengths.random(), begun, self.next()))
                begun += 1
            now, _, edit = heapq.heappop(self.running)
            assert edit.base
            on_champion = edit.base is self.champion
            won = wins(edit, edit.base, self.noise_known, self.best if on_champion else math.inf)
            self.over += 1
            if now <= SLOTS:
                self.counts[0] += 1
                self.counts[1] += won and on_champion
                self.counts[2] += won and not on_champion
            if won and on_champion:
                self.champion, self.best, edit.base = edit, min(self.best, mean(edit.scores)), None
                self.gained.append((now, self.over, edit.value))
            elif won and self.world.together and self.winners:
                self.winners[-1] = [*self.winners[-1], *edit.ideas]
            elif won:
                self.winners.append(edit.ideas)
            elif (half := len(edit.ideas) // 2) > 0:
                self.winners[:0] = [edit.ideas[:half], edit.ideas[half:]]
        return self

    def gain(self, hours: float = math.inf, trials: float = math.inf) -> float:
        """The true gain after so much time, or so many trials."""
        return next(value for at, done, value in reversed(self.gained) if at <= hours and done <= trials)

    def reached(self, value: float) -> float:
        """When the champion was as good as that."""
        return next((at for at, _, gain in self.gained if gain >= value), math.inf)


def wins(edit: Code, base: Code, noise: float, best: float = math.inf, rule: KeepRule = RULE) -> bool:
    if edit.scores[0] - max(base.scores) > HOPELESS * noise:  # the judge need not be asked, who writes a reason
        return False
    return judge(edit.scores, base.scores, noise, edit.lines, rule, best=best).status == "keep"


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of their mean."""
    return 1.96 * statistics.stdev(values) / math.sqrt(len(values))


def table_of_seats(count: int, seed: int) -> Iterator[str]:
    yield (
        f"| world | seats | a night of 100 trials' time: gain, and more than one seat's | sooner than one seat | kept, "
        f"and ran again | {TRIALS} trials: gain, and more than one seat's |"
    )
    yield "|---|---|---|---|---|---|"
    for name, world in WORLDS.items():
        seeds = range(seed * 1_000_000, seed * 1_000_000 + count)
        cells = [(seats, world) for seats in SEATS]
        cells += [(seats, dataclasses.replace(world, together=True)) for seats in SEATS[-2:] if name in TOGETHER]
        nights = [[Seats(one, seats, each).play(max(TRIALS, seats * SLOTS)) for one in seeds] for seats, each in cells]
        alone = [night.gain(hours=SLOTS) for night in nights[0]]
        for (seats, each), played in zip(cells, nights, strict=True):
            hours = [night.gain(hours=SLOTS) for night in played]
            equal = [night.gain(trials=TRIALS) for night in played]
            both = [pair for pair in zip(nights[0], played, alone, strict=True) if pair[2] > 0]
            sooner = statistics.median(first.reached(value) / other.reached(value) for first, other, value in both)
            done, kept, again = (sum(column) for column in zip(*(night.counts for night in played), strict=True))
            row = [f"{statistics.mean(hours):.4f}", f"{sooner:.1f}x", f"{kept / done:.1%}, {again / done:.1%}"]
            row.append(f"{statistics.mean(equal):.4f}")
            if seats > 1:
                row[0] += f", {against(hours, alone)}"
                row[3] += f", {against(equal, [night.gain(trials=TRIALS) for night in nights[0]])}"
            yield f"| {name} | {seats}{', together' * each.together} | {' | '.join(row)} |"


def against(mine: Sequence[float], theirs: Sequence[float]) -> str:
    """What one gains more than the other, paired, with its 95% interval."""
    more = [a - b for a, b in zip(mine, theirs, strict=True)]
    return f"{statistics.mean(more):+.4f} ± {interval(more):.4f}"


# ----------------------------------------------------------------------------------------------
# Tiers


@dataclasses.dataclass(eq=False)
class Pair:
    """The same code on both kinds."""

    dear: Code
    cheap: Code


SCREENS = {"by the judge": RULE, "any gain": KeepRule(margin=0.0, slack=0.0)}
DEVIATIONS, RATIOS = (0.0003, 0.0007, 0.002), (2, 4)


def tiers(seed: int, ratio: float | None, deviation: float = 0.0, screen: KeepRule = RULE) -> tuple[float, int, int]:
    """(True gain on the dear kind, trials there, trials on the cheap kind) of a night. ratio: None: no cheap kind."""
    night, other = Night(seed, PRIOR), np.random.default_rng([seed, 4])
    champion = Pair(Code(0.0, 0, []), Code(0.0, 0, []))
    for code in (champion.dear, champion.dear, champion.cheap, champion.cheap):
        night.run(code)
    night.groups.append(champion.dear.scores)
    noise, best, left, there, here = night.scale(), mean(champion.dear.scores), float(SLOTS), 0, 0
    while left >= 1:
        effect, lines = night.draw()
        cheap = Code(champion.cheap.value + effect + deviation * other.standard_normal(), lines, [])
        if ratio:
            night.run(cheap)
            left, here = left - 1 / ratio, here + 1
            if left < 1 or not wins(cheap, champion.cheap, noise, rule=screen):
                continue
        dear = Code(champion.dear.value + effect, lines, [])
        night.run(dear)
        left, there = left - 1, there + 1
        if wins(dear, champion.dear, noise, best):
            champion, best = Pair(dear, cheap), min(best, mean(dear.scores))
    return champion.dear.value, there, here


def table_of_tiers(count: int, seed: int) -> Iterator[str]:
    yield (
        "| a trial of the dear kind costs | an edit's deviation on the cheap kind | screened | gain, and more than "
        "without tiers | trials, dear and cheap |"
    )
    yield "|---|---|---|---|---|"
    seeds = range(seed * 1_000_000, seed * 1_000_000 + count)
    alone = [tiers(one, None)[0] for one in seeds]
    yield f"| | | without tiers | {statistics.mean(alone):.4f} ± {interval(alone):.4f} | {SLOTS}, 0 |"
    for ratio in RATIOS:
        for deviation in DEVIATIONS:
            for name, screen in SCREENS.items():
                played = [tiers(one, ratio, deviation, screen) for one in seeds]
                gains = [gain for gain, _, _ in played]
                there, here = (statistics.mean(night[place] for night in played) for place in (1, 2))
                yield (
                    f"| {ratio} cheap ones | {deviation:g} | {name} | {statistics.mean(gains):.4f}, "
                    f"{against(gains, alone)} | {there:.0f}, {here:.0f} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nights", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for table in (table_of_seats, table_of_tiers):
        for line in table(arguments.nights, arguments.seed):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
