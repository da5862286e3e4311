"""Propose: from the record to an edit that stands in the worktree and can be run.

An agent is told (brief.py), edits, and is told again when its edit is refused; it is waited for when it cannot be reached.
"""

import time

import git

from autoresearch import UserError, keys
from autoresearch.agents import Agent, AgentFailed, AgentUnavailable, Proposal
from autoresearch.brief import BUDGET, DATA_LIMIT, Brief, page
from autoresearch.console import duration
from autoresearch.lab import LEFT, RUNS, Lab
from autoresearch.ledger import Attempt, one_line
from autoresearch.lessons import Lessons
from autoresearch.limits import Interrupted
from autoresearch.task import read_agenda, read_stages
from autoresearch.trial import read_tail

MENDS = 3  # times that a refused edit goes back to the agent
PATIENCE = 2.0, 300.0  # seconds to the first next call of an agent that cannot be reached, and to the last


class Proposing:
    """Agents at work on one run.

    web_search: whether agents may look outside. brief_tokens: how much they are told. driven: the edit in the worktree is that of an agent that
    drives; it goes back to no one, and whatever happens it stays where it is until it has a verdict.
    """

    def __init__(self, lab: Lab, web_search: bool = False, brief_tokens: int = BUDGET, driven: bool = False) -> None:
        self.lab, self.ledger, self.repo, self.task, self.console, self.stop = (
            lab,
            lab.ledger,
            lab.repo,
            lab.task,
            lab.console,
            lab.stop,
        )
        self.web_search, self.brief_tokens, self.driven = web_search, brief_tokens, driven
        self.lessons = Lessons(lab.root / RUNS / "lessons.md")
        self.stages = read_stages(lab.root / "program.md")
        self.pages = lab.folder / "attempts"
        self.written = 0  # of the finished attempts, those that have their page
        self.patience: dict[str, float] = {}  # by agent that could not be reached: seconds until it is called again
        self.call_again: dict[str, float] = {}  # and when that is
        self.rehearsed: float | None = None  # seconds that the last rehearsal took
        self.remade: int | None = None  # number of an attempt that is made anew without having run: it may be as it was
        self.base: Attempt | None = None  # the champion that the worktree was given to the agent with

    def away(self, agent: Agent) -> bool:
        """Whether an agent could not be reached and is not to be called yet."""
        return time.monotonic() < self.call_again.get(agent.name, 0.0)

    def ask(
        self, number: int, agent: Agent, crashed: Attempt | None = None, crash: str = "", refusal: str | None = None
    ) -> Proposal | None:
        """An edit that stands in the worktree, on top of `base`, and can be run; None if the agent failed.

        A refused one goes back to it, with the reason. crashed, crash: the attempt that is to be mended, and why. refusal: why an edit
        that it made before is refused.
        """
        self.base = self.ledger.champion
        self.remade = number if refusal and not crashed else None
        for _ in range(1 if self.driven else 1 + MENDS):
            said, failed = Proposal(), False
            self.console.proposing(number, agent.name)
            try:
                brief = self.brief(number, refusal, crashed, crash)
                with self.lab.unlocked(), self.stop.interrupts():
                    said = agent.propose(brief, self.repo.worktree)
                refusal = self.refusal() or self.rehearsal(number)
                if refusal and self.stop.now():
                    raise Interrupted
            except AgentUnavailable:
                raise
            except Interrupted as stop:
                if tokens := getattr(stop, "tokens", said.tokens):
                    self.ledger.append(
                        "waited",
                        reason="interrupted",
                        seconds=0.0,
                        agent=agent.name,
                        tokens=tokens,
                        dollars=getattr(stop, "dollars", said.dollars),
                    )
                raise
            except AgentFailed as failure:
                refusal, said, failed = str(failure), Proposal(tokens=failure.tokens, dollars=failure.dollars), True
            except git.GitError as failure:  # an agent can leave git in disorder
                refusal = str(failure)
                self.lab.require_space()
                if not self.driven:
                    self.repo.reset(self.repo.worktree, self.base.commit)
            finally:
                self.console.stop_bar()
            if refusal is None:
                return said
            refusal = keys.scrub(refusal)
            self.ledger.append(
                "refused",
                number=number,
                reason=refusal,
                description=said.description,
                agent=agent.name,
                tokens=said.tokens,
                dollars=said.dollars,
            )
            self.console.line(f"experiment {number}: refused: {one_line(refusal)}", "yellow")
            if failed or self.stop.level:
                return None
            if not self.driven:
                self.repo.restore_all_but(self.task.editable) if agent.mends else self.repo.reset(
                    self.repo.worktree, self.base.commit
                )
        return None

    def settle(self) -> None:
        """The worktree to the champion, unless somebody works in it."""
        if not self.driven:
            self.lab.settle()

    def learn(self, lesson: str, number: int) -> None:
        game = self.ledger.game
        self.lessons.learn(lesson, game.get("profile") or "", game.get("device") or "", self.repo.tag, number)

    def refusal(self) -> str | None:
        """Why the edit in the worktree cannot be run, or None."""
        changed = self.repo.changed(self.base.commit)
        if refusal := self.task.refusal(self.repo.worktree, changed, self.lab.originals):
            return refusal
        for name in self.task.editable:
            text = (self.repo.worktree / name).read_text(errors="replace")
            before = self.repo.read(self.base.commit, name).decode(errors="replace")
            if keys.found(text) > keys.found(before):
                return f"{name} holds something that looks like a key; it must not be in git"
        edit = self.lab.edit()
        earlier = self.ledger.mended.get(edit) or next(
            (
                attempt
                for attempt in self.ledger.attempts
                if attempt.edit == edit and attempt.reason != LEFT and attempt.number != self.remade
            ),
            None,
        )
        if earlier and earlier.commit == self.base.commit:
            return "only comments or layout changed, so it would score as the champion does"
        return (
            earlier
            and f"the same edit was tried before, as experiment {earlier.number} ({earlier.status or 'it crashed'})"
        )

    def rehearsal(self, number: int) -> str | None:
        """Why the edit in the worktree cannot work, found without a trial, or None."""
        if not self.task.preflight:
            return None
        trial = self.lab.trial(self.lab.folder / "trials" / str(number), where=self.repo.worktree)
        with self.lab.unlocked():
            reason = trial.rehearse()
        self.rehearsed = trial.seconds.get("preflight")
        self.lab.require_space()
        return reason

    def check(self, number: int) -> str | None:
        """The same for an agent that is at work: why its edit cannot be run, or None."""
        with self.stop.deferred(), self.lab.house:
            return self.refusal() or self.rehearsal(number)

    def brief(self, number: int, refusal: str | None = None, crashed: Attempt | None = None, crash: str = "") -> Brief:
        """Told anew for each proposal: a program.md edited in the night counts from the next one on."""
        ledger, lab, champion = self.ledger, self.lab, self.base
        try:
            self.stages = read_stages(lab.root / "program.md")
        except UserError as error:  # edited in the night: not worth stopping for
            self.console.line(f"{error}; the stages stay as they were", "yellow")
        for attempt in ledger.finished[self.written :]:
            self.write_page(attempt)
        self.written = len(ledger.finished)
        taken = {path.name for path in (lab.folder / "proposals").glob(f"{number}*")}
        desk = next(
            name for name in (str(number), *(f"{number}-{again}" for again in range(2, 1000))) if name not in taken
        )
        (lab.folder / "proposals" / desk).mkdir(parents=True)
        return Brief(
            number,
            self.task,
            read_agenda(lab.root / "program.md"),
            ledger.game,
            champion,
            sources={
                name: self.repo.read(champion.commit, name).decode(errors="replace") for name in self.task.editable
            },
            attempts=ledger.finished,
            in_flight=[attempt for attempt in ledger.pending if attempt.number != number],
            noise=ledger.noise(),
            stages=self.stages,
            lessons=self.lessons.for_profile(ledger.game.get("profile") or ""),
            refused=[event for event in ledger.refused if event["number"] == number],
            refusal=refusal,
            remade=self.remade == number and not self.repo.changed(champion.commit),
            crash=crash or None,
            crash_log=self.lab.log_tail(crashed) if crashed else "",
            web_search=self.web_search,
            budget=self.brief_tokens,
            desk=lab.folder / "proposals" / desk,
            pages=self.pages,
            look=lambda wanted: read_tail(self.pages / f"{wanted}.md") or f"there is no experiment {wanted}",
            check=lambda: self.check(number),
        )

    def write_page(self, attempt: Attempt) -> None:
        """What can be known of an attempt, for agents and people to read."""
        path = self.pages / f"{attempt.number}.md"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            log = read_tail(self.lab.trial_folder(attempt) / "train.log", DATA_LIMIT)
            part = path.with_suffix(".part")
            part.write_text(
                keys.scrub(
                    page(attempt, self.task, self.repo.diff(attempt.parent, attempt.commit, self.task.editable), log)
                )
            )
            part.replace(path)

    def reached(self, agent: Agent) -> None:
        self.patience.pop(agent.name, None)

    def wait_for(self, agent: Agent, failure: AgentUnavailable, instead: str | None) -> None:
        """Until it is worth calling an agent again that could not be reached; not at all where another one, `instead`, goes on."""
        wait = self.patience.get(agent.name, PATIENCE[0])
        self.console.unreachable(agent.name, str(failure), again=agent.name in self.patience)
        self.patience[agent.name] = min(2 * wait, PATIENCE[1])
        self.call_again[agent.name] = time.monotonic() + wait
        self.console.line(
            f"{agent.name} cannot be reached: {one_line(keys.scrub(str(failure)), 200)}; "
            + (f"{instead} fills in" if instead else f"next call in {duration(wait)}"),
            "yellow",
        )
        self.ledger.append(
            "waited",
            reason=str(failure),
            seconds=0.0 if instead else wait,
            agent=agent.name,
            tokens=failure.tokens,
            dollars=failure.dollars,
        )
        try:
            with self.lab.unlocked(), self.stop.interrupts():
                time.sleep(0 if instead else wait)
        except Interrupted:
            pass
