"""From the record to an edit: choose an agent, brief it, check its edit, commit it.

An edit that is refused goes back to its agent with the reason. Which agents may be asked now is known to roster.py.
"""

import asyncio
import contextlib
import dataclasses
import itertools

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
from autoresearch.roster import Roster
from autoresearch.run import Run
from autoresearch.runner import PREFLIGHT, Job, Seat
from autoresearch.runner.logs import read_tail
from autoresearch.text import one_line, short, signed

RETRIES = 3  # times that a refused edit goes back to its agent
FAILURES = 5  # failed proposals in a row, before the loop gives up
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
        self.pages, self.external = pages, external
        self.roster = Roster(agents, fill, run.ledger, run.console)
        self.limits, self.web_search, self.brief_tokens = limits or Limits(), web_search, brief_tokens
        self.rule = rule
        self.lessons, self.ideas = Lessons(run.root / RUNS / "lessons.md"), Ideas(run.root / RUNS)
        self.ideas.catch_up()
        self.stages = read_stages(run.program)
        self.nothing_left = ""  # why no agent has a proposal, until the next verdict
        self.failures = 0  # in a row
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
        return next((agent for agent in self.roster.agents if agent.name == attempt.agent and agent.retries), None)

    # -- a new attempt

    async def next_attempt(self) -> Attempt | None:
        """The baseline first; then what an agent proposes. None when it proposed nothing that can run.

        Raises UserError when agents have failed too often.
        """
        number = len(self.ledger.attempts) + 1
        if self.ledger.champion is None:
            base = self.ledger.base
            return await self.commit_as(number, base, base, Proposal("baseline", tokens=0, dollars=0.0), "loop")
        roster = self.roster
        await asyncio.sleep(roster.seconds_to_wait())
        self.reset()
        ready = roster.ready()
        agent = choose(ready or roster.agents, self.ledger, self.task.lower_is_better)
        if roster.fill and not ready:
            agent = roster.fill
        proposal, failure = None, None
        try:
            proposal = await self.ask(number, agent)
            roster.answered(agent)
        except AgentUnavailable as away:
            self.reset()
            roster.put_off(agent, away)
            return None
        except AgentBlocked as blocked:
            self.reset()
            roster.leave_out(agent, blocked)
            return None
        except NothingLeft as nothing:
            if roster.exhaust(agent, str(nothing)):
                self.nothing_left = str(nothing)
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
            roster.put_off(agent, failure)
        return None

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
        proposal, others = None, self.roster.fill or len(self.roster.agents) > 1
        while agent in self.roster.ready() or not others:
            await asyncio.sleep(self.roster.seconds_to_wait())
            self.reset()
            try:
                proposal = await self.ask_to_redo(back, agent)
                break
            except AgentUnavailable as failure:
                self.roster.put_off(agent, failure, "its verdict is final, and another" if others else None)
            except AgentBlocked as blocked:
                self.roster.leave_out(agent, blocked)
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
        self.roster.answered(agent)
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
        seat = next(iter(self.run.runner.seats), Seat(0))  # a cluster may have none just now
        measured = await self.run.runner.run(job, seat, lambda phase: None)
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


def as_recorded(made: dict[str, tuple[Value, Value]] | None) -> dict[str, list] | None:
    """What became of constants, in the form that it has in the journal."""
    return None if made is None else {name: list(values) for name, values in made.items()}
