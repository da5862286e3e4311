"""One call of an agent that is a program; which agent has its turn; which agents a run has."""

import dataclasses
import os
from pathlib import Path

import pytest
from calls import Call, fake_claude, prints, running
from clocks import set_forward
from conftest import solver

from autoresearch import UserError
from autoresearch.agents import AgentBlocked, AgentFailed, AgentUnavailable, Proposal, price
from autoresearch.agents.bandit import choose
from autoresearch.agents.choice import AgentOptions, make_agents
from autoresearch.agents.clients import CLIENTS
from autoresearch.agents.command import CommandAgent
from autoresearch.agents.external import External
from autoresearch.record.events import Attempt, Verdict
from autoresearch.record.ledger import Ledger
from autoresearch.runner import process

EDIT = f"open('solver.py', 'w').write({solver(5)!r})\n"
USAGE = {
    "modelUsage": {"a": {"inputTokens": 10, "outputTokens": 5}, "b": {"cacheReadInputTokens": 100}},
    "total_cost_usd": 0.25,
}


@pytest.fixture
def call(tmp_path, monkeypatch) -> Call:
    return Call(tmp_path, monkeypatch)


@pytest.fixture
def claude(tmp_path, monkeypatch):
    """claude(what the stand-in does, ...): the agent, and its call."""

    def make(does: str) -> tuple[Call, object]:
        path = fake_claude(tmp_path / "bin")
        call = Call(tmp_path, monkeypatch, PATH=path, ANTHROPIC_API_KEY="x", FAKE_DOES=does)
        (agent,), _ = make_agents(AgentOptions("claude-code", limit=60))
        return call, agent

    return make


# -- a command of the user's


def test_a_command_is_told_edits_and_says_what_it_did(call):
    command = (
        "grep -c '^# Experiment 2' > told; test -d $AUTORESEARCH_TRANSCRIPT; test -n $AUTORESEARCH_PAGES; "
        "cat $AUTORESEARCH_BRIEF > whole; echo VALUE = 7 > solver.py; echo 'thinking about it'; "
        "printf 'description: raise it\\ncategory: optimizer\\npredicted: +6\\n'"
    )
    said = call.propose(CommandAgent(command, 60))
    assert (said.description, said.category, said.predicted, said.tokens) == ("raise it", "optimizer", 6.0, None)
    assert call.text() == "VALUE = 7\n" and (call.folder / "told").read_text() == "1\n"
    whole = (call.folder / "whole").read_text()
    assert (
        "VALUE = 1" in whole and "predicted: the change of score that you expect, as a number such as +0.002" in whole
    )
    assert said.transcript == str(call.transcript)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo no luck; exit 3", "exit code 3: no luck"),
        ("kill -9 $$", "killed by SIGKILL"),
    ],
)
def test_a_command_that_fails(call, command, message):
    with pytest.raises(AgentFailed) as raised:
        call.propose(CommandAgent(command, 60))
    assert type(raised.value) is AgentFailed and message in str(raised.value)


def test_a_command_that_takes_too_long_has_failed(call):
    with pytest.raises(AgentFailed, match="ended after its time limit of 1 s"):
        call.propose(CommandAgent("sleep 1000", 1))


def test_a_command_that_is_cancelled_leaves_no_process(call):
    """Nor what it started, nor what has left its session."""
    name = f"1000.{os.getpid()}"
    command = f"sleep {name} & setsid sleep {name} & wait"
    assert call.cancel(CommandAgent(command, 60), lambda: len(running(name)) == 2) is None
    assert not running(name)


def test_what_a_command_prints_is_kept_without_keys(call, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    said = call.propose(CommandAgent("echo $MY_API_KEY; echo description: with $MY_API_KEY", 60))
    assert said.description == "with [key removed]"
    assert "correct-horse" not in (call.transcript / "agent.log").read_text()


def test_the_external_agent_says_what_it_was_told(call):
    assert call.propose(External(Proposal("raised it", tokens=5))) == Proposal("raised it", tokens=5)


# -- programs of others


def test_text_tokens_and_cost_are_taken_from_among_other_output(claude):
    answer = prints("Done.\ndescription: up\nlesson: up is better", **USAGE)
    call, agent = claude("print('a warning')\n" + EDIT + answer + "print('{not json', file=sys.stderr)")
    said = call.propose(agent)
    assert (said.description, said.lesson, said.tokens, said.dollars) == ("up", "up is better", 115, 0.25)
    assert call.text() == solver(5)
    told = Path(said.transcript, "brief.md").read_text()
    assert told.startswith("# Experiment 2") and "VALUE = 1" not in told  # it reads the files itself


@pytest.mark.parametrize(
    ("does", "kind", "message"),
    [
        ("sys.exit(1)", AgentFailed, "claude: exit code 1: it printed no result"),
        ("print('{\"type\": ')", AgentFailed, "it failed: it printed no result"),
        ("print('x' * 2_000_000)", AgentFailed, "it printed no result"),
        (prints("", subtype="error_max_turns") + "sys.exit(1)", AgentFailed, "exit code 1"),
        (prints("Overloaded", is_error=True, api_error_status=529), AgentUnavailable, "it failed: 529 Overloaded"),
        (prints("no", is_error=True, api_error_status=500) + "sys.exit(1)", AgentUnavailable, "exit code 1: 500 no"),
        (prints("Request timed out", is_error=True), AgentUnavailable, "it failed: Request timed out"),
        (prints("Session limit hit; resets 3am", is_error=True), AgentUnavailable, "resets 3am"),
        (prints("Invalid API key", is_error=True, api_error_status=401), AgentBlocked, "claude is not signed in"),
        (prints("Credit balance is too low", is_error=True), AgentBlocked, "claude asks for payment"),
        (prints("Done.", modelUsage=["none"]), AgentFailed, "an answer that makes no sense: AttributeError"),
        ("print('{\"a\": ' + '[' * 9999)", AgentFailed, "it printed no result"),
    ],
)
def test_an_answer_that_cannot_be_used(claude, does, kind, message):
    call, agent = claude(does)
    with pytest.raises(kind) as raised:
        call.propose(agent)
    assert type(raised.value) is kind and message in str(raised.value) and len(str(raised.value)) < 600


@pytest.mark.parametrize("cost", ["0.25", float("nan"), float("inf"), -1.0, [1]])
def test_a_cost_that_is_no_amount_is_not_known(claude, cost):
    """In the record it would keep the run from ever being opened again."""
    call, agent = claude("from math import nan, inf\n" + EDIT + prints("description: up", total_cost_usd=cost))
    assert call.propose(agent).dollars is None and call.text() == solver(5)


def test_amounts_that_cannot_be_have_no_price():
    assert price("gpt-5.5", "openai", taken=10, made=5, cached=20) is None


@pytest.mark.parametrize("text", ["I would raise it.", ""])
def test_words_alone_are_a_proposal_that_the_loop_will_refuse(claude, text):
    call, agent = claude(prints(text, **USAGE))
    assert (call.propose(agent).description, call.text()) == (text, solver(1))


HANGS = "import subprocess\nsubprocess.Popen(['sleep', '1001.{pid}'])\nopen('here', 'w')\ntime.sleep(1000)"


def test_a_program_that_hangs_is_ended_with_all_that_it_started(claude, monkeypatch):
    call, agent = claude(HANGS.format(pid=os.getpid()))
    monkeypatch.setattr(process, "time", set_forward((call.folder / "here").exists))
    with pytest.raises(AgentUnavailable, match="claude: ended after its time limit of 60 s"):
        call.propose(agent)
    assert not running(f"1001.{os.getpid()}")


def test_a_program_that_is_cancelled_is_ended_with_all_that_it_started(claude):
    call, agent = claude(HANGS.format(pid=os.getpid()))
    assert call.cancel(agent, lambda: running(f"1001.{os.getpid()}")) is None
    assert not running(f"1001.{os.getpid()}")


def test_a_program_that_repeats_itself_without_end_is_ended(claude):
    call, agent = claude("while True: print('again', flush=True); time.sleep(0.01)")
    agent.program = dataclasses.replace(agent.program, stuck="again")
    with pytest.raises(AgentUnavailable, match="its answers break off again and again"):
        call.propose(agent)


LINE = "print(json.dumps({'type': 'assistant', 'message': {'id': %r, 'usage': {'input_tokens': 60}}}), flush=True)\n"


def test_a_program_is_ended_when_a_limit_of_the_run_is_reached(claude):
    """Claude Code says with each message what it took, though not yet what it cost: that it limits by itself."""
    does = f"open('words', 'w').write(' '.join(sys.argv))\n{LINE % 'a'}{LINE % 'a'}{LINE % 'b'}time.sleep(1000)"
    call, agent = claude(does)
    with pytest.raises(AgentFailed, match="ended before it was done: 120 tokens") as raised:
        call.propose(agent, dollars=0.5, must_end=lambda tokens, dollars: f"{tokens} tokens" if tokens == 120 else None)
    assert type(raised.value) is AgentFailed and raised.value.tokens == 120
    assert "--max-budget-usd 0.50" in (call.folder / "words").read_text()


@pytest.mark.parametrize(
    ("name", "output", "part"),
    [
        ("codex", '{{"type": "item.completed", "item": {{"type": "agent_message", "text": "up"}}}}\n' * 2
         + '{{"type": "turn.completed", "usage": {{"input_tokens": {taken}, "output_tokens": 10}}}}', 1),
        ("gemini", '{{"response": "up", "stats": {{"models": {{"gemini-2.5-pro": {{"api": {{"totalRequests": 2}}, '
         '"tokens": {{"prompt": {taken}, "candidates": 10, "total": {taken}}}}}}}}}}}', 1),
    ],
)  # fmt: skip
def test_a_token_costs_the_same_in_two_requests_as_in_one(name, output, part):
    """Long requests have a higher price, and programs tell the sum of a conversation."""
    short, long = (
        CLIENTS[name].read(output.format(taken=taken), "gpt-5.5").dollars for taken in (150_000, 300_000)
    )  # fmt: skip
    assert short and long == pytest.approx(2 * short, rel=0.01)


def test_who_is_not_signed_in_is_found_without_asking_a_service(tmp_path, monkeypatch):
    Call(tmp_path, monkeypatch, PATH=fake_claude(tmp_path / "bin"))
    with pytest.raises(UserError, match="claude is not signed in: start `claude` once and sign in, or set ANTHROPIC"):
        make_agents(AgentOptions("claude-code"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/settings.json").write_text('{"apiKeyHelper": "pass show key"}')
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "elsewhere"))
    assert make_agents(AgentOptions("claude-code", "sonnet"))[1] == "claude-code (sonnet, version 2.1.197)"


def test_a_program_that_is_missing_or_too_old(claude, monkeypatch):
    monkeypatch.setenv("FAKE_VERSION", "1.0.3")
    with pytest.raises(UserError, match=r"claude says that it is version '1\.0\.3'"):
        claude("")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(UserError, match="no program opencode; install it, `npm install -g opencode-ai`"):
        make_agents(AgentOptions("opencode"))


# -- which agents a run has


def test_auto_takes_what_is_ready_and_says_so(tmp_path, monkeypatch):
    Call(tmp_path, monkeypatch, PATH=fake_claude(tmp_path / "bin"))
    agents, said = make_agents(AgentOptions())
    assert [agent.name for agent in agents] == ["sweep"]
    assert "sweep (no model: seeded local search over the constants; --agent auto: no ANTHROPIC_API_KEY is set" in said
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "x")
    _, said = make_agents(AgentOptions())
    assert said == (
        "claude-code (version 2.1.197) (--agent auto: claude is installed and signed in; "
        "choose another with --agent NAME)"
    )
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    _, said = make_agents(AgentOptions())
    assert said.startswith("claude-api (claude-sonnet-5-5) (--agent auto: its key is set")
    _, said = make_agents(AgentOptions(command="true"))
    assert said.startswith("command (--agent auto: --agent-command is given")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent": "nobody"}, "there is no agent 'nobody'; choose one of auto, claude-api, claude-code"),
        ({"agent": "sweep,sweep"}, "several different ones with commas"),
        ({"agent": "sweep:big"}, "sweep takes no model"),
        ({"agent": "sweep+claude-api"}, "--agent optimize+NAME takes one agent with a model"),
        ({"agent": "optimize+auto"}, "--agent optimize+NAME takes one agent with a model"),
        ({"agent": "optimize+codex,gemini"}, "--agent optimize+NAME takes one agent with a model"),
        ({"agent": "optimize+codex+gemini"}, "--agent optimize+NAME takes one agent with a model"),
        ({"agent": "optimize+command"}, "--agent-command 'PROGRAM ARGUMENTS'"),
        ({"agent": "command"}, "--agent-command 'PROGRAM ARGUMENTS'"),
        ({"agent": "sweep", "command": "true"}, "--agent-command is for --agent command, not for --agent sweep"),
        ({"agent": "sweep", "price": "3,15"}, "--price is for --agent claude-api, not for --agent sweep"),
        (
            {"agent": "claude-api", "base_url": "http://127.0.0.1:1", "price": "3"},
            "--price takes dollars per million",
        ),
        ({"agent": "sweep", "thinking": "high"}, "--thinking is for --agent claude-api, not for --agent sweep"),
    ],
)
def test_agents_that_cannot_be_had(options, message):
    with pytest.raises(UserError) as raised:
        make_agents(AgentOptions(**options))
    assert message in str(raised.value)


# -- which agent has its turn


@dataclasses.dataclass
class Named:
    name: str


def turns(folder: Path, agents: list[str], trials: int, dollars: dict[str, float | None]) -> list[str]:
    """Who was chosen, where what `a` does is kept, each time one better, and what others do is not."""
    ledger, chosen = Ledger(folder), []
    ledger.append(Attempt(number=1, commit="1", parent="1", agent="loop"))
    ledger.append(Verdict(number=1, status="keep", score=1.0))
    for number in range(2, 2 + trials):
        name = choose([Named(name) for name in agents], ledger, lower_is_better=False).name
        best = ledger.champion
        commit = str(number)
        ledger.append(
            Attempt(number=number, commit=commit, parent=best.commit, agent=name, tokens=9, dollars=dollars[name])
        )
        status, score = ("keep", best.score + 1) if name == "a" else ("discard", best.score - 1)
        ledger.append(Verdict(number=number, status=status, score=score, standing=best.score))
        chosen.append(name)
    return chosen


@pytest.mark.parametrize("dollars", [{"a": 0.1, "b": 0.1}, {"a": 0.1, "b": None}])
def test_several_agents_by_what_they_earn(tmp_path, dollars):
    """Each has its turns, first of all one each; the one whose edits are kept has more of them."""
    chosen = turns(tmp_path, ["b", "a"], 12, dollars)
    assert chosen[:2] == ["b", "a"] and chosen.count("a") > chosen.count("b") >= 2


def test_an_agent_alone_has_every_turn(tmp_path):
    assert turns(tmp_path, ["b"], 3, {"b": None}) == ["b"] * 3


def test_what_is_in_the_making_counts_as_a_turn(tmp_path):
    """Else all seats that are idle at once would go to the same agent."""
    ledger, agents, at_work = Ledger(tmp_path), [Named("a"), Named("b")], []
    ledger.append(Attempt(number=1, commit="1", parent="1", agent="loop"))
    ledger.append(Verdict(number=1, status="keep", score=1.0))
    for _ in range(4):
        at_work.append(choose(agents, ledger, False, at_work).name)
    assert at_work == ["a", "b", "a", "b"]
