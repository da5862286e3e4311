"""When a night ends: the limits that the user set, and Ctrl-C."""

import asyncio
import collections
import dataclasses
import math
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from autoresearch import Stopped, UserError
from autoresearch.record.ledger import Ledger
from autoresearch.text import count

WARN = 0.8  # share of a limit at which the user is warned
Result = TypeVar("Result")


class StopRequest:
    """Counts Ctrl-C: the first asks to stop after the running trials, the second to stop now. `level` is 0, 1 or 2.

    SIGTERM and a closed terminal (SIGHUP) mean now. Two SIGINTs within 0.3 s count once: the terminal also sends Ctrl-C
    to `uv`, which forwards it. The signal handler only notes the time; the event loop then changes `level`. Nothing is
    raised. Create it inside the running event loop.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.level, self.trials = 0, 0  # trials: how many are running
        self._last, self._say, self._change = 0.0, say, asyncio.Event()
        self._arrived: collections.deque[float] = collections.deque()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._count, number)
            signal.signal(number, lambda *_: self._arrived.append(time.monotonic()))  # the event loop may be busy
        loop.add_signal_handler(
            signal.SIGTSTP, say, "experiments are timed, so Ctrl-Z does not suspend the loop; Ctrl-C stops it"
        )

    def _count(self, number: int) -> None:
        previous, self._last = self._last, self._arrived.popleft() if self._arrived else time.monotonic()
        if number != signal.SIGINT:
            self.level = 2
        elif self._last - previous > 0.3:
            self.level = min(2, self.level + 1)
            if self.level == 1 and self.trials:
                self._say("stopping after the running experiment; press Ctrl-C again to stop now")
        self._change.set()
        self._change = asyncio.Event()

    def now(self) -> bool:
        return self.level >= 2

    async def reaches(self, level: int) -> None:
        """Wait until `level` is at least this."""
        while self.level < level:
            await self._change.wait()

    async def unless_asked(self, work: Awaitable[Result], level: int = 1) -> Result:
        """Await some work and return its result. If the user asks to stop, cancel it and raise Stopped."""
        task, asked = asyncio.ensure_future(work), asyncio.ensure_future(self.reaches(level))
        try:
            await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (task, asked):
                one.cancel()
            await asyncio.wait({task, asked})
        if task.cancelled():
            raise Stopped
        return task.result()


@dataclasses.dataclass
class Limits:
    """The limits of a night. None: no limit."""

    experiments: int | None = None  # of the whole run, including the baseline
    hours: float | None = None  # of this call
    dollars: float | None = None  # of the whole run, as far as known: proposals, and seats that have a price
    tokens: int | None = None  # of the whole run, as far as known
    began: float = dataclasses.field(default_factory=time.monotonic)
    warned: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        for option, most in (("--hours", self.hours), ("--max-cost", self.dollars)):
            if most is not None and not math.isfinite(most):
                raise UserError(f"{option} takes a number, not {most}; omit it for no limit")

    def used(self, ledger: Ledger, tokens: float = 0, dollars: float = 0.0) -> dict[str, tuple[float, float, str]]:
        """By option: (used, limit, both as text). tokens, dollars: spending that is not in the record yet."""
        tokens += ledger.spent.tokens
        dollars += ledger.spent.dollars + ledger.account.dollars(time.time())
        hours = (time.monotonic() - self.began) / 3600
        budgets = {
            "--experiments": (
                len(ledger.finished),
                self.experiments,
                f"{len(ledger.finished)} of {self.experiments} experiments",
            ),
            "--hours": (hours, self.hours, f"{hours:.1f} of {self.hours or 0:g} hours"),
            "--max-cost": (dollars, self.dollars, f"${dollars:.2f} of ${self.dollars or 0:g}"),
            "--max-tokens": (tokens, self.tokens, f"{tokens:,} of {self.tokens or 0:,} tokens"),
        }
        return {option: (used, most, words) for option, (used, most, words) in budgets.items() if most is not None}

    def room(self, ledger: Ledger, in_the_making: int = 0) -> bool:
        """Whether the run may have one more experiment, besides those begun and those being proposed."""
        return self.experiments is None or len(ledger.attempts) + in_the_making < self.experiments

    def seconds_left(self, ledger: Ledger) -> float | None:
        """Seconds until the time limit, or until the present seats have used up the cost limit; at least 0. None if
        neither is limited.
        """
        left = [] if self.hours is None else [max(0.0, self.began + 3600 * self.hours - time.monotonic())]
        dollars, rate = self.dollars_left(ledger), ledger.account.dollars_an_hour
        return min(left + ([3600 * dollars / rate] if dollars is not None and rate else []), default=None)

    def dollars_left(self, ledger: Ledger) -> float | None:
        spent = ledger.spent.dollars + ledger.account.dollars(time.time())
        return None if self.dollars is None else max(0.0, self.dollars - spent)

    def reached(
        self, ledger: Ledger, spending: bool = True, tokens: float | None = 0, dollars: float | None = 0.0
    ) -> str | None:
        """Why the night ends now, or None.

        spending: whether the next step costs money; a trial does not, except for its seat. tokens, dollars: what the
        proposals in progress have used so far, or will use.
        """
        free = () if spending else ("--max-tokens", *(() if ledger.account.dollars_an_hour else ("--max-cost",)))
        for option, (used, allowed, words) in self.used(ledger, tokens or 0, dollars or 0.0).items():
            if option in free:
                continue
            if used >= allowed and option == "--experiments":
                has = count(int(allowed), "experiment")
                return f"the run has its {has}; continue with a larger --experiments, or start another with --tag NEW"
            if used >= allowed and option == "--hours":
                return f"the time limit of {allowed:g} hours is reached"
            if used >= allowed:
                return f"{words} are used up; continue with a larger {option}"
        return None

    def warnings(self, ledger: Ledger) -> list[str]:
        """Warnings, each given once: four fifths of a limit are used, or a limit cannot be enforced."""
        budgets = self.used(ledger)
        found = {
            option: f"{words} ({option})"
            for option, (used, allowed, words) in budgets.items()
            if allowed * WARN <= used < allowed
        }
        for option, unknown, noun in (
            ("--max-cost", ledger.spent.unknown_dollars, "cost"),
            ("--max-tokens", ledger.spent.unknown_tokens, "tokens"),
        ):
            if option in budgets and unknown:
                found[option + " unknown"] = (
                    f"{option} cannot be enforced: the agent did not report the {noun} of "
                    f"{count(unknown, 'proposal')}; use --experiments or --hours"
                )
        new = [text for name, text in found.items() if name not in self.warned]
        self.warned |= found.keys()
        return new

    def __str__(self) -> str:
        parts = [count(self.experiments, "experiment")] if self.experiments is not None else []
        parts += [f"{self.hours:g} hours"] if self.hours is not None else []
        parts += [f"${self.dollars:g}"] if self.dollars is not None else []
        parts += [f"{self.tokens:,} tokens"] if self.tokens is not None else []
        return " or ".join(parts) or "you stop it"
