"""Proposals in the making: their numbers, when to begin one, what they may cost, and who is asked."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from autoresearch.agents import CATEGORIES, AgentBlocked, AgentUnavailable
from autoresearch.brief import COMBINE
from autoresearch.drafts import Drafts, focus_of
from autoresearch.limits import Limits
from autoresearch.propose import Proposer
from autoresearch.record import events
from autoresearch.record.ledger import Attempt, Ledger
from autoresearch.roster import Roster

QUIET = SimpleNamespace(
    line=lambda *said: None, unreachable=lambda *said, **more: None, tell=lambda *said, **more: None
)


class Worktrees:
    def agents_worktree(self, place: int) -> SimpleNamespace:
        return SimpleNamespace(folder=Path(f"worktree-{place}"))


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    found = Ledger(tmp_path)
    found.append(events.Run(tag="t", base="old", task={"editable": ["x"], "train": "true", "metric": "score"}))
    return found


@pytest.fixture
def drafts(ledger) -> Drafts:
    return Drafts(ledger, Worktrees())


def committed(ledger: Ledger, number: int, agent: str = "loop", dollars: float = 0.0, tokens: int = 0) -> None:
    ledger.append(
        events.Attempt(number=number, commit=f"c{number}", parent="c1", agent=agent, dollars=dollars, tokens=tokens)
    )


def ended(ledger: Ledger, number: int, seconds: float) -> None:
    ledger.append(events.Verdict(number=number, status="discard", score=1.0, seconds={"train": seconds, "wall": 999}))


def test_numbers_have_no_gaps_whichever_is_committed_first(ledger, drafts):
    """The last one begun is committed first and takes the lowest number, which its owner exchanges; one fails."""
    committed(ledger, 1)
    first, second, third = (drafts.begin() for _ in range(3))
    assert [draft.number for draft in drafts] == [2, 3, 4] and [draft.place for draft in drafts] == [0, 1, 2]
    number = drafts.number(third)
    committed(ledger, number)
    drafts.committed(third, number)
    assert (third.number, second.number, first.number) == (2, 3, 4)
    drafts.end(third)
    drafts.end(second)  # nothing came of it
    fourth = drafts.begin()
    assert (fourth.number, fourth.place) == (3, 1)
    assert drafts.number(first) == 3
    committed(ledger, 3)
    drafts.committed(first, 3)
    assert (first.number, fourth.number) == (3, 4)


def test_a_proposal_is_begun_so_early_that_it_is_ready_when_a_trial_ends(ledger, drafts, monkeypatch):
    committed(ledger, 1)
    now = 5000.0
    monkeypatch.setattr("autoresearch.drafts.time", SimpleNamespace(monotonic=lambda: now))
    assert drafts.due([now - 299]) == (0, None)  # nobody knows yet how long anything takes
    ended(ledger, 1, 300)
    assert drafts.due([now - 299]) == (0, None)
    drafts.took += [50, 60, 600]
    due, later = drafts.due([now - 299, now - 250, now - 239, now - 100, now])
    assert due == 2 and later == 1


def proposer(ledger: Ledger, drafts: Drafts, **limits) -> Proposer:
    """As far as it is asked for room."""
    made = Proposer.__new__(Proposer)
    made.ledger, made.drafts, made.limits = ledger, drafts, Limits(**limits)
    return made


def test_limits_count_what_is_in_the_making(ledger, drafts):
    """Of experiments each; of dollars what the agent's proposals usually take, so that none is begun to be cut off."""
    committed(ledger, 1)
    few, cheap = proposer(ledger, drafts, experiments=3), proposer(ledger, drafts, dollars=1.0)
    drafts.begin()
    assert few.has_room() and not cheap.has_room()  # nobody knows yet what one costs
    committed(ledger, 2, "model", dollars=0.3)
    drafts.begin().agent = "model"
    assert not few.has_room() and cheap.has_room()  # 0.3 spent and 0.6 on the way
    assert cheap.dollars_left(list(drafts)) == pytest.approx(0.1)
    drafts.begin().agent = "model"
    assert not cheap.has_room()


def test_proposals_in_the_making_reach_a_limit_together(ledger, drafts):
    spending = proposer(ledger, drafts, dollars=1.0)
    one, other = drafts.begin(), drafts.begin()
    assert spending.must_end(one, 100, 0.6) is None
    assert "$1.10 of $1 are used up" in spending.must_end(other, 100, 0.5)


def test_near_a_limit_one_request_is_made_at_a_time(ledger, drafts):
    """So that no more than one passes the limit: of three proposals, each of whose requests takes 1,000 tokens."""
    spending, used, at_once = proposer(ledger, drafts, tokens=9500), {}, []

    async def proposal(draft) -> None:
        def spent() -> tuple[int, float]:
            return used.get(draft, 0), 0.0

        while True:
            async with drafts.request(draft, spent, spending.reached_with):
                if spending.must_end(draft, *spent()):
                    return
                at_once.append(drafts.requests)
                await asyncio.sleep(0)
                used[draft] = used.get(draft, 0) + 1000

    async def night() -> None:
        await asyncio.gather(*(proposal(drafts.begin()) for _ in range(3)))

    asyncio.run(night())
    assert sum(used.values()) == 10_000 and max(at_once) == 3, "without it a third one passes the limit"


def attempt(number: int, category: str, status: str | None = None) -> Attempt:
    return Attempt(number, "c", "p", "x", "a", status=status, category=category)


def test_each_of_several_begins_with_another_kind_of_change(drafts):
    """Of those that nobody works on, with the one that failed least; of four at once one combines near misses."""
    failed = [attempt(number, name, "discard") for number, name in enumerate(CATEGORIES) if name != "batch"]
    assert focus_of(CATEGORIES, 5, failed, [], []) == ""  # it is alone
    found = []
    for _ in range(6):
        drafts.begin().focus = focus_of(CATEGORIES, 5, failed, [attempt(9, "architecture")], list(drafts))
        found.append(drafts.all[-1].focus)
    assert found[:4] == ["", "batch", "attention", COMBINE] and len(set(found)) == 6
    assert "architecture" not in found and "other" not in found


def test_of_proposals_that_fail_together_one_counts_and_one_asks_again(ledger, drafts, monkeypatch):
    """Fails where an outage that three proposals meet is taken for three, or all three call again at once."""
    now = [5000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time, strftime=time.strftime, localtime=time.localtime)
    monkeypatch.setattr("autoresearch.roster.time", clock)
    agent = SimpleNamespace(name="model")
    roster = Roster([agent], None, ledger, QUIET)
    for _ in range(3):
        roster.put_off(agent, AgentUnavailable("503", tokens=7))
        now[0] += 0.5
    assert roster.seconds_to_wait() == 0.5 and not roster.ready()
    assert ledger.spent_by["model"].tokens == 21
    now[0] += 0.5  # the wait is over
    asking = drafts.begin()
    assert roster.ready() == [agent] and not roster.ready([asking])
    asking.agent = "model"
    assert not roster.ready([asking])
    roster.answered(agent)
    assert roster.ready([asking]) == [agent]


def test_what_a_failed_call_cost_counts_where_its_tokens_are_not_known(ledger):
    """Some programs say what a call cost, and nothing else."""
    agent = SimpleNamespace(name="model")
    roster = Roster([agent, SimpleNamespace(name="other")], None, ledger, QUIET)
    roster.put_off(agent, AgentUnavailable("503", dollars=0.25))
    roster.put_off(agent, AgentUnavailable("503", dollars=0.25))  # of a proposal beside it
    spent = ledger.spent_by["model"]
    assert (spent.dollars, spent.proposals, spent.unknown_tokens) == (0.5, 2, 2)
    roster.put_off(SimpleNamespace(name="other"), AgentUnavailable("503"))
    assert "other" not in ledger.spent_by  # nobody answered


def test_an_agent_that_was_waited_for_is_not_asked_in_a_pause(ledger, drafts):
    """It may have been away for hours. Until the pause is over nothing new begins."""
    ledger.append(events.Attempt(number=1, commit="c1", parent="c1", agent="loop"))
    ledger.append(events.Verdict(number=1, status="keep", score=1.0))

    async def proposal() -> object:
        made, agent = Proposer.__new__(Proposer), SimpleNamespace(name="model")
        made.ledger, made.drafts, made.roster = ledger, drafts, Roster([agent], None, ledger, QUIET)
        made.roster._call_again["model"] = time.monotonic() + 0.05
        asking = asyncio.create_task(made.next_attempt(drafts.begin()))
        await asyncio.sleep(0)
        ledger.append(events.Pause())
        return await asking

    assert asyncio.run(proposal()) is None


def test_an_agent_that_is_blocked_twice_at_once_is_left_out_once(ledger):
    blocked, other = SimpleNamespace(name="blocked"), SimpleNamespace(name="other")
    roster = Roster([blocked, other], None, ledger, QUIET)
    for _ in range(2):
        roster.leave_out(blocked, AgentBlocked("signed out"))
    assert roster.agents == [other] and roster.ready() == [other]
    with pytest.raises(AgentBlocked):
        roster.leave_out(other, AgentBlocked("signed out"))


def test_an_agent_with_nothing_left_on_an_old_champion_is_asked_on_the_new_one(ledger):
    agent = SimpleNamespace(name="sweep")
    roster = Roster([agent], None, ledger, QUIET)
    assert not roster.exhaust(agent, "all was tried", "an older one") and roster.ready() == [agent]
    assert roster.exhaust(agent, "all was tried", "old") and not roster.ready()
