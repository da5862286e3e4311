"""From the record to an edit: choose an agent, brief it, check its edit, commit it. Several at once if seats are idle.

An edit that is refused (refusal.py) goes back to its agent with the reason. roster.py knows which agents may be asked
now; drafts.py knows the proposals in progress.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Sequence

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
    categories_of,
)
from autoresearch.agents.bandit import choose
from autoresearch.agents.external import External
from autoresearch.brief import Beside, Brief
from autoresearch.constants import change, read_code
from autoresearch.drafts import AT_ONCE, Draft, Drafts, focus_of
from autoresearch.experiment import Returned
from autoresearch.ideas import Ideas
from autoresearch.judge import RULES, KeepRule, margin
from autoresearch.lessons import Lessons
from autoresearch.limits import Limits
from autoresearch.offered import offered
from autoresearch.pages import Pages
from autoresearch.program import read_agenda, read_stages
from autoresearch.record import events
from autoresearch.record.ledger import Attempt
from autoresearch.record.runs import RUNS
from autoresearch.refusal import Refusals, as_recorded
from autoresearch.roster import Roster
from autoresearch.run import Run
from autoresearch.runner import Seat
from autoresearch.runner.logs import read_tail
from autoresearch.text import one_line, short
from autoresearch.tried import Tried
from autoresearch.views.now import Thinking

RETRIES = 3  # how often a refused edit goes back to its agent
FAILURES = 5  # failed proposals in a row before the loop gives up


class Proposer:
    """Gets edits from agents.

    agents: if there are several, the bandit chooses one for each experiment. limits: of the night. fill: the agent that
    proposes while none can be reached. web_search: whether agents may search the web. brief_tokens: size of a brief.
    rule: by which their edits are judged. external: an external agent has made the edit in the worktree; a refused edit
    goes back to no one, and the worktree stays as it is until the verdict. at_once: most proposals in progress; None:
    as many as there are seats, up to AT_ONCE.
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
        at_once: int | None = None,
    ) -> None:
        self.run, self.ledger, self.repo, self.task, self.console = run, run.ledger, run.repo, run.task, run.console
        self.disk, self.pages, self.external, self.at_once = run.disk, pages, external, at_once
        self.roster, self.drafts = Roster(agents, fill, run.ledger, run.console), Drafts(run.ledger, run.repo)
        self.refusals = Refusals(run, self.drafts)
        self.limits, self.web_search, self.brief_tokens = limits or Limits(), web_search, brief_tokens
        self.rule = rule
        self.lessons, self.ideas = Lessons(run.root / RUNS / "lessons.md"), Ideas(run.root / RUNS)
        self.ideas.catch_up()
        self.stages, self.agenda = read_stages(run.program), read_agenda(run.program)
        self.tried = Tried(run.task.lower_is_better)
        self.nothing_left = ""  # why no agent can propose anything until the next verdict
        self.failures, self.failed_at = 0, 0.0  # failures in a row, and when the last one was counted

    def has_place(self) -> bool:
        """Whether one more proposal may be in progress."""
        return len(self.drafts) < (self.at_once or max(1, min(len(self.run.runner.seats), AT_ONCE)))

    def wanted(self, waiting: int, idle: int, lookahead: int) -> bool:
        """Whether to begin a new proposal: for an idle seat, or to have an attempt ready when a trial ends.

        waiting: attempts that can run next. idle: seats without a trial. lookahead: attempts to have ready.
        """
        if self.ledger.champion is None:
            return not self.ledger.pending and not self.drafts
        coming = waiting + len(self.drafts)
        answers = not self.drafts or self.roster.fill or self.roster.ready(self.drafts)
        return bool(coming < idle + lookahead and not self.nothing_left and answers and self.has_room())

    def has_room(self) -> bool:
        """Whether the limits allow one more proposal, counting the expected cost of those in progress."""
        new = sum(draft.back is None for draft in self.drafts)
        tokens, dollars = self.drafts.expected(list(self.drafts))
        return self.limits.room(self.ledger, new) and not self.reached_with(tokens, dollars)

    def want_seats(self, busy: Sequence[Seat], over: object) -> None:
        """Tell the runner how many trials could run at once when the proposals in progress are ready: a cluster may
        grow. busy: the seats of running trials. over: why no more trials will begin, if the night is about to end.
        """
        coming = len(self.ledger.pending) + sum(draft.back is None for draft in self.drafts)
        more = coming > len(busy) or self.ledger.paused or self.ledger.champion is None or self.has_room()
        self.run.runner.want(0 if over or not more else max(1, coming), busy)

    def interrupted_edits(self) -> list[Attempt]:
        """Attempts of external agents that have no verdict: first the one whose edit is in the worktree, if any."""
        edit, pending = self.run.edit(), self.ledger.pending
        external = [attempt for attempt in pending if attempt.agent in External.names]
        return sorted(external, key=lambda attempt: attempt.edit != edit)

    def agent_of(self, attempt: Attempt) -> Agent | None:
        """The agent of an attempt, if it can redo the edit."""
        return next((agent for agent in self.roster.agents if agent.name == attempt.agent and agent.retries), None)

    # -- a new attempt

    async def next_attempt(self, draft: Draft) -> Attempt | None:
        """The baseline first, then what an agent proposes. None if the agent proposed nothing that can run.

        Raises UserError if agents have failed too often.
        """
        if self.ledger.champion is None:
            base = self.ledger.base
            return await self.commit_as(draft, base, base, Proposal("baseline", tokens=0, dollars=0.0), "loop")
        roster = self.roster
        await asyncio.sleep(roster.seconds_to_wait())
        if self.ledger.paused:  # meanwhile
            return None
        self.reset(draft)
        others = self.drafts.beside(draft)
        ready = roster.ready(others)
        agent = choose(
            ready or roster.agents, self.ledger, self.task.lower_is_better, [other.agent for other in others]
        )
        if roster.fill and not ready:
            agent = roster.fill
        draft.asked = time.monotonic()
        proposal, failure = None, None
        try:
            proposal = await self.ask(draft, agent)
            roster.answered(agent)
        except AgentUnavailable as away:
            self.reset(draft)
            roster.put_off(agent, away)
            return None
        except AgentBlocked as blocked:
            self.reset(draft)
            roster.leave_out(agent, blocked)
            return None
        except NothingLeft as nothing:
            assert draft.base
            if roster.exhaust(agent, str(nothing), draft.base.commit):
                self.nothing_left = str(nothing)
            return None
        except AgentFailed as failed:
            failure = failed
        if proposal:
            self.failures = 0
            return await self.commit(draft, proposal, agent.name)
        self.reset(draft)
        if self.limits.reached(self.ledger):  # the limit ended the proposal
            return None
        if draft.began >= self.failed_at:  # simultaneous failures count as one
            self.failures, self.failed_at = self.failures + 1, time.monotonic()
        if self.failures >= FAILURES:
            raise UserError(
                f"{agent.name} failed {FAILURES} times in a row, the last time: {draft.refused[-1].reason}. "
                "Nothing that was measured is lost; fix the agent and run the same command again"
            )
        if failure:
            roster.put_off(agent, failure)
        return None

    async def commit(self, draft: Draft, proposal: Proposal, agent: str) -> Attempt:
        assert draft.base is not None
        description = proposal.description or f"edit of {', '.join(self.task.editable)} without a description"
        proposal = dataclasses.replace(proposal, description=description)
        commit = await self.disk.with_room(lambda: draft.worktree.commit(self.task.editable, description))
        attempt = await self.commit_as(draft, commit, draft.base.commit, proposal, agent)
        profile, device = self.run.facts.profile or "", self.run.facts.device or ""
        learn = (proposal.lesson, profile, device, self.repo.tag, attempt.number)
        await self.disk.write_aside("lessons.md", lambda: self.lessons.learn(*learn))
        await self.disk.write_aside("ideas.md", lambda: self.ideas.follow(attempt, self.repo.tag))
        where = f"{agent}, run {self.repo.tag}, experiment {attempt.number}"
        await self.disk.write_aside("ideas.md", lambda: self.ideas.hear(attempt.ideas, where))
        return attempt

    async def commit_as(self, draft: Draft, commit: str, parent: str, proposal: Proposal, agent: str) -> Attempt:
        """Record a commit as an attempt. Its number is assigned without an await in between."""
        made, beside = self.changed_constants(parent, commit)
        lines, edit = self.run.lines(commit) - self.run.lines(parent), self.run.edit(draft.worktree.folder)

        def record() -> int:
            number = self.drafts.number(draft)
            self.ledger.append(
                events.Attempt(
                    number=number, commit=commit, parent=parent, **dataclasses.asdict(proposal), agent=agent, edit=edit,
                    lines=lines, constants=made, beside=beside, preflight=draft.preflight,
                )
            )  # fmt: skip
            self.drafts.committed(draft, number)
            return number

        number = await self.disk.with_room(record)
        await self.disk.with_room(lambda: self.repo.remember(number, commit))
        return self.ledger.attempts[number - 1]

    def changed_constants(self, parent: str, commit: str) -> tuple[dict[str, list] | None, str]:
        """The changed constants, if an edit changed nothing else, and a hash of the code around them; as recorded."""
        before, after = (read_code(self.run.files(one), self.run.facts.gpu) for one in (parent, commit))
        made = change(before, after)
        return (as_recorded(made), before.rest) if made else (None, "")

    # -- an edit that goes back to its agent

    async def retry(self, draft: Draft, back: Returned) -> bool:
        """Let an agent redo the edit of an attempt, under the same number. False if the result cannot be run."""
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
            self.reset(draft)
            try:
                proposal = await self.ask_to_redo(draft, back, agent)
                break
            except AgentUnavailable as failure:
                self.roster.put_off(agent, failure, "its verdict is final; another agent" if others else None)
            except AgentBlocked as blocked:
                self.roster.leave_out(agent, blocked)
                break
            except (AgentStopped, asyncio.CancelledError):
                if back.crashed:
                    self.ledger.append(events.Interrupted(number=attempt.number))
                    again = f"experiment {attempt.number} runs again when you continue"
                    self.console.line(f"  interrupted: {again}", "yellow")
                raise
            except AgentFailed:
                break
        if proposal is None:
            self.reset(draft)
            return False
        times = f"-{attempt.repairs + 1}" if attempt.repairs else ""
        name = f"{attempt.number}-crashed{times}" if back.crashed else f"{attempt.number}-on-{short(attempt.parent)}"
        await self.disk.with_room(lambda: self.repo.remember(name, attempt.commit))
        self.roster.answered(agent)
        kept = {name: getattr(proposal, name) or getattr(attempt, name) for name in ("description", "ideas")}
        await self.commit(draft, dataclasses.replace(proposal, **kept), agent.name)
        return True

    async def ask_to_redo(self, draft: Draft, back: Returned, agent: Agent) -> Proposal | None:
        attempt, commit = back.attempt, back.attempt.commit
        if back.crashed:
            if attempt.parent != self.ledger.champion_commit:  # another edit was kept meanwhile
                commit = self.run.on_champion(attempt)
            if commit:
                draft.worktree.take_up(commit, self.task.editable)
                return await self.ask(draft, agent, attempt, back.reason)
        advice = f"{back.reason}. Make it again, on top of the champion. It was:\n\n{self.run.diff(attempt)}"
        return await self.ask(draft, agent, refusal=advice)

    # -- asking

    async def ask(
        self, draft: Draft, agent: Agent, crashed: Attempt | None = None, crash: str = "", refusal: str | None = None
    ) -> Proposal | None:
        """Ask an agent until the draft's worktree has an edit of `base` that can run; None if all were refused.

        A refused edit goes back to the agent with the reason. crashed, crash: the attempt to repair, and why it
        crashed. refusal: why its earlier edit was refused. Raises AgentFailed, NothingLeft, UserError.
        """
        draft.agent, draft.base = agent.name, self.ledger.champion
        assert draft.base is not None
        draft.redone = draft.number if refusal and not crashed else None
        for _ in range(1 if self.external else 1 + RETRIES):
            draft.proposal, failed = Proposal(), None
            self.thinks(draft)
            try:
                await self.disk.write_aside("attempts/", self.pages.catch_up)
                brief = self.brief(draft, refusal, crashed, crash)
                draft.proposal = await agent.propose(brief, draft.worktree.folder)
                draft.tokens, draft.dollars = draft.proposal.tokens or 0, draft.proposal.dollars or 0.0
                refusal = await self.refusals.of(draft)
            except AgentUnavailable:
                draft.tokens, draft.dollars = 0, 0.0  # the record of the wait has them
                raise
            except AgentStopped as stopped:
                self.note_spent(agent, stopped.tokens, stopped.dollars)
                raise asyncio.CancelledError from None
            except (OSError, asyncio.CancelledError):  # of a full disk: when there is room, the agent is asked again
                spent = draft.proposal.tokens, draft.proposal.dollars
                await self.disk.with_room(lambda spent=spent: self.note_spent(agent, *spent))
                raise
            except AgentFailed as failure:
                refusal, failed = str(failure), failure
                draft.proposal = Proposal(tokens=failure.tokens, dollars=failure.dollars)
            except git.GitError as failure:  # an agent can leave git in a bad state
                refusal = str(failure)
                self.disk.require_room()
                if not self.external:
                    draft.worktree.reset(draft.base.commit)
            finally:
                self.thinks(draft, False)
            if refusal is None:
                return draft.proposal
            refusal, said = keys.scrub(refusal), draft.proposal
            await self.run.record(
                events.Refused(
                    number=draft.number, reason=refusal, description=said.description, agent=agent.name,
                    tokens=said.tokens, dollars=said.dollars,
                )
            )  # fmt: skip
            draft.refused.append(self.ledger.refused[-1])
            draft.tokens, draft.dollars = 0, 0.0
            self.console.line(f"experiment {draft.number}: refused: {one_line(refusal)}", "yellow")
            if failed:
                raise failed
            if self.run.stop.level or self.limits.reached(self.ledger):
                return None
            if not self.external and agent.retries:
                draft.worktree.restore_all_but(self.task.editable)
            elif not self.external:
                draft.worktree.reset(draft.base.commit)
        return None

    def thinks(self, draft: Draft, at_work: bool = True) -> None:
        """Show whether a draft's agent is at work."""
        draft.thinks_since = time.time() if at_work else None
        at_work_now = [one for one in self.drafts if one.thinks_since]
        self.console.thinking([Thinking(one.number, one.agent, one.thinks_since or 0.0) for one in at_work_now])

    def note_spent(self, agent: Agent, tokens: int | None, dollars: float | None) -> None:
        """Record what an interrupted proposal has used."""
        if tokens or dollars:
            self.ledger.append(events.Waited(reason="interrupted", agent=agent.name, tokens=tokens, dollars=dollars))

    def brief(self, draft: Draft, refusal: str | None = None, crashed: Attempt | None = None, crash: str = "") -> Brief:
        """Write a fresh brief for each proposal: a program.md edited during the night counts from the next one on."""
        run, ledger, champion, number = self.run, self.ledger, draft.base, draft.number
        assert champion is not None
        try:
            self.stages, self.agenda = read_stages(run.program), read_agenda(run.program)
        except UserError as error:  # edited during the night: not worth stopping for
            self.console.line(f"{error}; agenda and stages stay as before", "yellow")
        for attempt in ledger.finished[len(self.tried.attempts) :]:
            self.tried.add(attempt)
        proposals = run.folder / "proposals"
        names = itertools.chain([str(number)], (f"{number}-{again}" for again in itertools.count(2)))
        folder = next(folder for name in names if not (folder := proposals / name).exists())
        folder.mkdir(parents=True)
        unfinished = [attempt for attempt in ledger.pending if attempt.number != number]
        files, others = run.files(champion.commit), self.drafts.beside(draft)
        brief = Brief(
            number,
            self.task,
            self.agenda,
            run.facts,
            champion,
            sources={name: content.decode(errors="replace") for name, content in files.items()},
            context={name: content.decode(errors="replace") for name, content in run.context().items()},
            api=self.api(),
            gained=run.repo.diff(ledger.base, champion.commit, self.task.editable),
            tried=self.tried,
            in_flight=unfinished,
            beside=[Beside(other.number, other.focus, other.proposal.description, other.edit) for other in others],
            noise=ledger.noise(),
            margin=margin(self.rule, ledger.noise(), [0.0], ledger.scores(champion)),
            line_price=self.rule.line_price,
            stages=self.stages,
            lessons=self.lessons.for_profile(run.facts.profile or ""),
            ideas=self.ideas.to_offer(ledger.pending, first=len(others)),
            notes=list(ledger.notes),
            refused=list(draft.refused),
            refusal=refusal,
            remade=draft.redone == number and not draft.worktree.changed(champion.commit),
            crash=crash or None,
            crash_log=run.runner.log(str(crashed.number)) if crashed else "",
            web_search=self.web_search,
            budget=self.brief_tokens,
            transcript=folder,
            pages=self.pages.folder,
            look=lambda wanted: read_tail(self.pages.path(wanted)) or f"there is no experiment {wanted}",
            check=lambda: self.refusals.of(draft),
            redone=draft.back is not None,
            dollars=self.dollars_left(others),
            must_end=lambda tokens, dollars: self.must_end(draft, tokens, dollars),
            request=lambda spent: self.drafts.request(draft, spent, self.reached_with),
        )
        if not draft.back and not draft.focus:
            draft.focus = focus_of(
                categories_of(brief), len(self.tried.near_misses), ledger.finished, unfinished, others
            )
        return dataclasses.replace(brief, focus=draft.focus)

    def dollars_left(self, others: list[Draft]) -> float | None:
        """What a proposal may cost, after subtracting the expected cost of the others in progress."""
        left = self.limits.dollars_left(self.ledger)
        _, dollars = self.drafts.expected(others)
        return left if left is None or math.isinf(dollars) else max(0.0, left - dollars)

    def must_end(self, draft: Draft, tokens: int | None, dollars: float | None) -> str | None:
        """Why a proposal that has used this much must end: the limit that all proposals in progress reach together."""
        draft.tokens, draft.dollars = tokens or 0, dollars or 0.0
        return self.reached_with(*self.drafts.taken())

    def reached_with(self, tokens: float, dollars: float) -> str | None:
        """The limit that is reached with so much spending that is not in the record yet."""
        return self.limits.reached(self.ledger, tokens=tokens, dollars=dollars)

    def api(self) -> str:
        """What prepare.py offers to train.py, in this project's own game."""
        if not self.task.referee:
            return ""
        with contextlib.suppress(KeyError):  # there is no prepare.py
            return offered(self.repo.read(self.ledger.base, ["prepare.py"])["prepare.py"], self.run.facts)
        return ""

    def reset(self, draft: Draft) -> None:
        """Reset a draft's worktree to the champion, unless it is an external agent's."""
        if not self.external:
            self.run.reset(draft.place)
