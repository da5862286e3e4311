"""From the record to an edit: choose an agent, brief it, check its edit, commit it.

An edit that is refused goes back to its agent with the reason. An agent that cannot be reached is waited for: all
waiting is here. One that only a person can help is left out, where there are others.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import time

import git

from autoresearch import BRIEF_TOKENS, UserError, keys
from autoresearch.agents import (
    Agent,
    AgentBlocked,
    AgentFailed,
    AgentStopped,
    AgentUnavailable,
    NothingLeft,
    Proposal,
)
from autoresearch.agents.bandit import choose
from autoresearch.agents.external import External
from autoresearch.brief import Brief, change_of
from autoresearch.constants import Value, as_it_counts, change, read_code
from autoresearch.editable import in_folder
from autoresearch.experiment import Returned
from autoresearch.ideas import Ideas
from autoresearch.judge import RULES, KeepRule, margin
from autoresearch.lessons import Lessons
from autoresearch.limits import Limits
from autoresearch.offered import offered
from autoresearch.pages import Pages
from autoresearch.program import read_agenda, read_stages
from autoresearch.record import events
from autoresearch.record.ledger import ABANDONED, Attempt, is_a_miss
from autoresearch.record.runs import RUNS
from autoresearch.run import Run
from autoresearch.runner import PREFLIGHT, Job
from autoresearch.runner.logs import read_tail
from autoresearch.text import duration, one_line, short, signed

RETRIES = 3  # times that a refused edit goes back to its agent
FAILURES = 5  # failed proposals in a row, before the loop gives up
PATIENCE = 2.0, 300.0  # seconds to the first next call of an agent that cannot be reached, and to the last
PASSING, UNKNOWN = 2, 8  # times that the wait is longer after each failure: of one that will pass, and of any other
LONGEST_WAIT = 86_400.0  # seconds, whatever a service says
CLEAR = 2 * 2**0.5  # standard deviations of one score: a difference of two that is no chance


class Proposer:
    """Lets agents propose, one at a time.

    agents: of several the bandit chooses one for each experiment. limits: what they may take. fill: who proposes while
    none can be reached.
    web_search: whether agents may look outside. brief_tokens: how much they are told. rule: by which their edits are
    judged. external: the edit in the worktree is that of an external agent; it goes back to no one, and stays where it
    is until its verdict.
    """

    def __init__(
        self,
        run: Run,
        pages: Pages,
        agents: list[Agent],
        limits: Limits | None = None,
        fill: Agent | None = None,
        web_search: bool = False,
        brief_tokens: int = BRIEF_TOKENS,
        rule: KeepRule = RULES["margin"],
        external: bool = False,
    ) -> None:
        self.run, self.ledger, self.repo, self.task, self.console = run, run.ledger, run.repo, run.task, run.console
        self.pages, self.agents, self.fill, self.external = pages, agents, fill, external
        self.limits, self.web_search, self.brief_tokens = limits or Limits(), web_search, brief_tokens
        self.rule = rule
        self.lessons, self.ideas = Lessons(run.root / RUNS / "lessons.md"), Ideas(run.root / RUNS)
        self.ideas.catch_up()
        self.stages = read_stages(run.program)
        self.nothing_left = ""  # why no agent has a proposal, until the next verdict
        self.exhausted: dict[str, str] = {}  # by name of an agent: the champion from which it has nothing left
        self.failures = 0  # in a row
        self.patience: dict[str, float] = {}  # by agent that could not be reached: seconds of the wait after the next
        self.call_again: dict[str, float] = {}  # and when that is
        self.preflight_seconds: float | None = None  # that the last one took
        self.base: Attempt | None = None  # the champion that the worktree was given to the agent with
        self.redone: int | None = None  # an attempt whose edit goes back without having run: it may be as it was

    def wanted(self, waiting: int, idle: int, lookahead: int) -> bool:
        """Whether there should be one more attempt: for a seat that is idle, or to have one when a trial is over.

        waiting: attempts that can run next. idle: seats without a trial. lookahead: attempts to have ready.
        """
        if self.ledger.champion is None:
            return not self.ledger.pending
        return not self.nothing_left and waiting < max(idle, lookahead) and self.limits.room(self.ledger)

    def interrupted_edits(self) -> list[Attempt]:
        """Attempts of an external agent that were interrupted."""
        return [attempt for attempt in self.ledger.pending if attempt.agent in External.names]

    def agent_of(self, attempt: Attempt) -> Agent | None:
        """The agent of an attempt, if it can make it anew."""
        return next((agent for agent in self.agents if agent.name == attempt.agent and agent.retries), None)

    # -- a new attempt

    async def next_attempt(self) -> Attempt | None:
        """The baseline first; then what an agent proposes. None when it proposed nothing that can run.

        Raises UserError when agents have failed too often.
        """
        number = len(self.ledger.attempts) + 1
        if self.ledger.champion is None:
            base = self.ledger.base
            return await self.commit_as(number, base, base, Proposal("baseline", tokens=0, dollars=0.0), "loop")
        await asyncio.sleep(self.seconds_to_wait())
        self.reset()
        ready = self.ready()
        agent = choose(ready or self.agents, self.ledger, self.task.lower_is_better)
        if self.fill and not ready:
            agent = self.fill
        proposal, failure = None, None
        try:
            proposal = await self.ask(number, agent)
            self.patience.pop(agent.name, None)
        except AgentUnavailable as away:
            self.reset()
            self.put_off(agent, away)
            return None
        except AgentBlocked as blocked:
            self.reset()
            self.leave_out(agent, blocked)
            return None
        except NothingLeft as nothing:
            self.without(agent, str(nothing))
            return None
        except AgentFailed as failed:
            failure = failed
        if proposal:
            self.failures = 0
            return await self.commit(number, proposal, agent.name)
        self.reset()
        if self.limits.reached(self.ledger):  # which ended it
            return None
        self.failures += 1
        if self.failures >= FAILURES:
            raise UserError(
                f"{agent.name} failed {FAILURES} times in a row, the last time: {self.ledger.refused[-1].reason}. "
                "What was measured is kept; see to the agent and run the same command again"
            )
        if failure:
            self.put_off(agent, failure)
        return None

    def without(self, agent: Agent, reason: str) -> None:
        """An agent has proposed all that it can from this champion."""
        if agent is self.fill:
            self.fill = None
            self.ledger.append(events.Waited(reason=reason, seconds=self.seconds_to_wait(), agent=self.agents[0].name))
        else:
            self.exhausted[agent.name] = self.ledger.champion_commit
            if others := ", ".join(other.name for other in self.agents if not self.is_exhausted(other)):
                self.console.line(
                    f"{agent.name}: {one_line(reason)}; {others} goes on until something is kept", "yellow"
                )
            else:
                self.nothing_left = reason

    async def commit(self, number: int, proposal: Proposal, agent: str) -> Attempt:
        assert self.base is not None
        description = proposal.description or f"edit of {', '.join(self.task.editable)} without a description"
        proposal = dataclasses.replace(proposal, description=description)
        commit = await self.run.with_room(lambda: self.repo.commit(self.task.editable, description))
        attempt = await self.commit_as(number, commit, self.base.commit, proposal, agent)
        profile, device = self.run.facts.profile or "", self.run.facts.device or ""
        learn = (proposal.lesson, profile, device, self.repo.tag, number)
        await self.run.with_room(lambda: self.lessons.learn(*learn))
        await self.run.with_room(lambda: self.ideas.follow(attempt, self.repo.tag))
        where = f"{agent}, run {self.repo.tag}, experiment {number}"
        await self.run.with_room(lambda: self.ideas.hear(attempt.ideas, where))
        return attempt

    async def commit_as(self, number: int, commit: str, parent: str, proposal: Proposal, agent: str) -> Attempt:
        """Record a commit as an attempt."""
        made, beside = self.changed_constants(parent, commit)
        attempt = events.Attempt(
            number=number,
            commit=commit,
            parent=parent,
            **dataclasses.asdict(proposal),
            agent=agent,
            edit=self.run.edit(),
            lines=self.run.lines(commit) - self.run.lines(parent),
            constants=made,
            beside=beside,
            preflight=self.preflight_seconds,
        )
        await self.run.record(attempt)
        await self.run.with_room(lambda: self.repo.remember(number, commit))
        return self.ledger.attempts[number - 1]

    def changed_constants(self, parent: str, commit: str) -> tuple[dict[str, list] | None, str]:
        """What an edit did to the constants, if nothing else, and a name for the code around them; as recorded."""
        before, after = (read_code(self.run.files(one), self.run.facts.gpu) for one in (parent, commit))
        made = change(before, after)
        return (as_recorded(made), before.rest) if made else (None, "")

    # -- an edit that its agent redoes

    async def retry(self, back: Returned) -> bool:
        """Let an agent redo the edit of an attempt, under the same number. False if it made none that can be run."""
        attempt, agent = back.attempt, self.agent_of(back.attempt)
        if agent is None:
            return False
        self.console.line(
            f"experiment {attempt.number} "
            + (
                f"crashed early: {one_line(back.reason, 200)}; {agent.name} may repair it"
                if back.crashed
                else f"goes back to {agent.name}: {back.reason}"
            ),
            "yellow",
        )
        proposal, others = None, self.fill or len(self.agents) > 1
        while agent in self.ready() or not others:
            await asyncio.sleep(self.seconds_to_wait())
            self.reset()
            try:
                proposal = await self.ask_to_redo(back, agent)
                break
            except AgentUnavailable as failure:
                self.put_off(agent, failure, "its verdict is final, and another" if others else None)
            except AgentBlocked as blocked:
                self.leave_out(agent, blocked)
                break
            except (AgentStopped, asyncio.CancelledError):
                if back.crashed:
                    self.ledger.append(events.Interrupted(number=attempt.number))
                    again = f"experiment {attempt.number} runs again when the run goes on"
                    self.console.line(f"  interrupted: {again}", "yellow")
                raise
            except AgentFailed:
                break
        if proposal is None:
            self.reset()
            return False
        times = f"-{attempt.repairs + 1}" if attempt.repairs else ""
        name = f"{attempt.number}-crashed{times}" if back.crashed else f"{attempt.number}-on-{short(attempt.parent)}"
        await self.run.with_room(lambda: self.repo.remember(name, attempt.commit))
        self.patience.pop(agent.name, None)
        kept = {name: getattr(proposal, name) or getattr(attempt, name) for name in ("description", "ideas")}
        await self.commit(attempt.number, dataclasses.replace(proposal, **kept), agent.name)
        return True

    async def ask_to_redo(self, back: Returned, agent: Agent) -> Proposal | None:
        attempt, commit = back.attempt, back.attempt.commit
        if back.crashed:
            if attempt.parent != self.ledger.champion_commit:  # another was kept meanwhile
                commit = self.run.on_champion(attempt)
            if commit:
                self.repo.take_up(commit, self.task.editable)
                return await self.ask(attempt.number, agent, attempt, back.reason)
        advice = f"{back.reason}. Make it again, on top of the champion. It was:\n\n{self.run.diff(attempt)}"
        return await self.ask(attempt.number, agent, refusal=advice)

    # -- asking

    async def ask(
        self, number: int, agent: Agent, crashed: Attempt | None = None, crash: str = "", refusal: str | None = None
    ) -> Proposal | None:
        """An edit that stands in the worktree, on top of `base`, and can be run; None if each was refused.

        A refused one goes back to it, with the reason. crashed, crash: the attempt that is to be repaired, and why.
        refusal: why an edit that it made before is refused. Raises AgentFailed, NothingLeft, UserError.
        """
        self.base = self.ledger.champion
        assert self.base is not None
        self.redone = number if refusal and not crashed else None
        for _ in range(1 if self.external else 1 + RETRIES):
            said, failed = Proposal(), None
            self.console.proposing(number, agent.name)
            try:
                said = await agent.propose(self.brief(number, refusal, crashed, crash), self.repo.worktree)
                refusal = await self.refusal(number)
            except AgentUnavailable:
                raise
            except AgentStopped as stopped:
                self.note_spent(agent, stopped.tokens, stopped.dollars)
                raise asyncio.CancelledError from None
            except asyncio.CancelledError:
                self.note_spent(agent, said.tokens, said.dollars)
                raise
            except AgentFailed as failure:
                refusal, failed = str(failure), failure
                said = Proposal(tokens=failure.tokens, dollars=failure.dollars)
            except git.GitError as failure:  # an agent can leave git in disorder
                refusal = str(failure)
                self.run.require_room()
                if not self.external:
                    self.repo.reset(self.repo.worktree, self.base.commit)
            finally:
                self.console.proposed()
            if refusal is None:
                return said
            refusal = keys.scrub(refusal)
            self.ledger.append(
                events.Refused(
                    number=number, reason=refusal, description=said.description, agent=agent.name, tokens=said.tokens,
                    dollars=said.dollars,
                )
            )  # fmt: skip
            self.console.line(f"experiment {number}: refused: {one_line(refusal)}", "yellow")
            if failed:
                raise failed
            if self.run.stop.level or self.limits.reached(self.ledger):
                return None
            if not self.external and agent.retries:
                self.repo.restore_all_but(self.task.editable)
            elif not self.external:
                self.repo.reset(self.repo.worktree, self.base.commit)
        return None

    def note_spent(self, agent: Agent, tokens: int | None, dollars: float | None) -> None:
        """What a proposal took that was interrupted."""
        if tokens:
            self.ledger.append(events.Waited(reason="interrupted", agent=agent.name, tokens=tokens, dollars=dollars))

    async def refusal(self, number: int) -> str | None:
        """Why the edit in the worktree cannot be run, or None: rules first, then a short rehearsal of the model."""
        assert self.base is not None
        changed = self.repo.changed(self.base.commit)
        if objection := self.task.objection(self.repo.worktree, changed, self.run.originals):
            return objection
        names = in_folder(self.task.editable, self.repo.worktree)
        files, champion = (
            {name: (self.repo.worktree / name).read_bytes() for name in names},
            self.run.files(self.base.commit),
        )
        for name, content in files.items():
            before = champion.get(name, b"").decode(errors="replace")
            if keys.found(content.decode(errors="replace")) > keys.found(before):
                return f"{name} holds something that looks like a key; it must not be in git"
        if earlier := self.tried_before(self.run.edit()):
            if earlier.commit == self.base.commit:
                return "only comments or layout changed, so it would score as the champion does"
            return f"the same edit was tried before, as experiment {earlier.number} ({earlier.status or 'it crashed'})"
        if refusal := self.refusal_of_constants(champion, files):
            return refusal
        if not self.task.preflight:
            return None
        job = Job(str(number), files, self.run.seed, (PREFLIGHT,))
        measured = await self.run.runner.run(job, self.run.runner.seats[0], lambda phase: None)
        self.preflight_seconds = measured.seconds.get(PREFLIGHT)
        self.run.require_room()
        return measured.reason or None

    def refusal_of_constants(self, champion: dict[str, bytes], files: dict[str, bytes]) -> str | None:
        """Why an edit tells nothing new: of what does not count here, or of constants, as one that clearly lost."""
        gpu = self.run.facts.gpu
        known = self.task.referee and self.run.facts.profile in ("gpu", "cpu")  # `test` runs on either
        if known and as_it_counts(champion, gpu) == as_it_counts(files, gpu):
            where, has = ("without", "one") if gpu else ("with", "none")
            return f"the edit changes only what counts {where} a GPU (`a if GPU else b`), and this run has {has}"
        before = read_code(champion, gpu)
        made = as_recorded(change(before, read_code(files, gpu)))
        least = CLEAR * self.ledger.noise()
        for attempt in reversed(self.ledger.finished if made else []):
            same = attempt.beside == before.rest and attempt.constants == made
            if not same or not is_a_miss(attempt) or attempt.number == self.redone:
                continue
            moved = change_of(attempt)
            if moved is not None and (moved if self.task.lower_is_better else -moved) > least:
                earlier = f"experiment {attempt.number}, and clearly lost: {signed(moved)} {self.task.metric}"
                return f"the same change of constants was tried before, as {earlier}"
        return None

    def tried_before(self, edit: str) -> Attempt | None:
        """The earlier attempt that did the same."""
        for attempt in self.ledger.attempts:
            if attempt.edit == edit and attempt.reason not in ABANDONED and attempt.number != self.redone:
                return attempt
        return self.ledger.repaired.get(edit)

    def brief(self, number: int, refusal: str | None = None, crashed: Attempt | None = None, crash: str = "") -> Brief:
        """Told anew for each proposal: a program.md edited in the night counts from the next one on."""
        run, ledger, champion = self.run, self.ledger, self.base
        assert champion is not None
        try:
            self.stages = read_stages(run.program)
        except UserError as error:  # edited in the night: not worth stopping for
            self.console.line(f"{error}; the stages stay as they were", "yellow")
        self.pages.catch_up()
        proposals = run.folder / "proposals"
        names = itertools.chain([str(number)], (f"{number}-{again}" for again in itertools.count(2)))
        folder = next(folder for name in names if not (folder := proposals / name).exists())
        folder.mkdir(parents=True)
        unfinished = (attempt for attempt in ledger.pending if attempt.number != number)
        files = run.files(champion.commit)
        return Brief(
            number,
            self.task,
            read_agenda(run.program),
            run.facts,
            champion,
            sources={name: content.decode(errors="replace") for name, content in files.items()},
            context={name: content.decode(errors="replace") for name, content in run.context().items()},
            api=self.api(),
            gained=run.repo.diff(ledger.base, champion.commit, self.task.editable),
            attempts=list(ledger.finished),
            in_flight=list(unfinished),
            noise=ledger.noise(),
            margin=margin(self.rule, ledger.noise(), [0.0], ledger.scores(champion)),
            line_price=self.rule.line_price,
            stages=self.stages,
            lessons=self.lessons.for_profile(run.facts.profile or ""),
            ideas=self.ideas.to_offer(ledger.pending),
            notes=list(ledger.notes),
            refused=[event for event in ledger.refused if event.number == number],
            refusal=refusal,
            remade=self.redone == number and not self.repo.changed(champion.commit),
            crash=crash or None,
            crash_log=run.runner.log(str(crashed.number)) if crashed else "",
            web_search=self.web_search,
            budget=self.brief_tokens,
            transcript=folder,
            pages=self.pages.folder,
            look=lambda wanted: read_tail(self.pages.path(wanted)) or f"there is no experiment {wanted}",
            check=lambda: self.refusal(number),
            redone=crashed is not None or self.redone == number,
            dollars=self.limits.dollars_left(ledger),
            must_end=lambda tokens, dollars: self.limits.reached(ledger, tokens=tokens, dollars=dollars),
        )

    def api(self) -> str:
        """What prepare.py offers, in this project's own game."""
        if not self.task.referee:
            return ""
        with contextlib.suppress(KeyError):  # there is none
            return offered(self.repo.read(self.ledger.base, "prepare.py"), self.run.facts)
        return ""

    def reset(self) -> None:
        """The worktree to the champion, unless somebody works in it."""
        if not self.external:
            self.run.reset()

    # -- agents that cannot be asked now

    def ready(self) -> list[Agent]:
        """The agents that may be called now."""
        now = time.monotonic()
        return [a for a in self.agents if now >= self.call_again.get(a.name, 0.0) and not self.is_exhausted(a)]

    def is_exhausted(self, agent: Agent) -> bool:
        """Whether an agent has said that nothing is left to be tried from this champion."""
        return self.exhausted.get(agent.name) == self.ledger.champion_commit

    def seconds_to_wait(self) -> float:
        """Until the first agent may be called; 0 where one may be now, or another fills in."""
        if self.fill:
            return 0.0
        asked = [agent for agent in self.agents if not self.is_exhausted(agent)] or self.agents
        return max(0.0, min(self.call_again.get(agent.name, 0.0) for agent in asked) - time.monotonic())

    def put_off(self, agent: Agent, failure: AgentFailed, instead: str | None = None) -> None:
        """An agent is called again later: when its service said, else after a wait that is longer each time.

        instead: who or what goes on meanwhile, in words. Default: another agent that is ready, or the filler.
        """
        passes = isinstance(failure, AgentUnavailable)
        usual, named = self.patience.get(agent.name, PATIENCE[0]), (failure.again or 0.0) if passes else 0.0
        if passes:
            self.console.unreachable(agent.name, str(failure), again=agent.name in self.patience)
        self.patience[agent.name] = min((PASSING if passes else UNKNOWN) * usual, PATIENCE[1])
        self.call_again[agent.name] = time.monotonic() + min(max(usual, named), LONGEST_WAIT)
        instead = instead or next((other.name for other in (*self.ready(), self.fill) if other), None)
        wait = self.seconds_to_wait() if not instead else 0.0
        at = time.strftime("at %H:%M, in ", time.localtime(time.time() + wait)) if wait > 600 else "in "
        then = f"{instead} fills in" if instead else f"next call {at}{duration(wait)}"
        reason = keys.scrub(str(failure))
        self.console.line(
            f"{agent.name} " + (f"cannot be reached: {one_line(reason, 200)}" if passes else "failed") + f"; {then}",
            "yellow",
        )
        took = (failure.tokens, failure.dollars) if passes else (None, None)  # the record has that of other failures
        self.ledger.append(
            events.Waited(reason=reason, seconds=wait, agent=agent.name, tokens=took[0], dollars=took[1])
        )

    def leave_out(self, agent: Agent, blocked: AgentBlocked) -> None:
        """Go on with the others without an agent that only a person can help. Raises `blocked` where it is the last."""
        reason = keys.scrub(str(blocked))
        self.ledger.append(
            events.Waited(reason=reason, agent=agent.name, tokens=blocked.tokens, dollars=blocked.dollars)
        )
        others = [other for other in self.agents if other is not agent] or ([self.fill] if self.fill else [])
        if not others:
            raise blocked
        self.agents = others
        self.console.tell("fault", reason=one_line(f"{agent.name} is left out: {reason}", 500))
        names = ", ".join(other.name for other in others)
        self.console.line(f"{agent.name} is left out, and {names} goes on: {one_line(reason, 300)}", "yellow")


def as_recorded(made: dict[str, tuple[Value, Value]] | None) -> dict[str, list] | None:
    """What became of constants, in the form that it has in the journal."""
    return None if made is None else {name: list(values) for name, values in made.items()}
