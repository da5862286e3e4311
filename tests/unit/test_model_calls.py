"""One call of the claude-api agent: the real SDK, and a scripted model behind real HTTP."""

import asyncio
import dataclasses
import json
import socket
import threading

import pytest
from calls import TASK, Call, connections, discarded
from conftest import HANGS, solver
from models import (
    CUT,
    EDITOR,
    KEY,
    MESSAGES,
    PINGS,
    SILENT,
    SLOW,
    Asked,
    Fault,
    Models,
    Say,
    Use,
    create,
    edit,
    steps,
    submit,
)  # fmt: skip

from autoresearch import UserError
from autoresearch.agents import (
    AgentBlocked,
    AgentFailed,
    AgentStopped,
    AgentUnavailable,
    Proposal,
    claude_api,
    conversation,
    price,
)
from autoresearch.agents.claude_api import ClaudeAPI
from autoresearch.agents.editor import Editor, ToolError
from autoresearch.brief import no_objection
from autoresearch.task import Stages


@pytest.fixture
def call(tmp_path, monkeypatch) -> Call:
    return Call(tmp_path, monkeypatch, ANTHROPIC_API_KEY=KEY)


def agent(models: Models | None, limit: float = 60, web_search: bool = False, **more) -> ClaudeAPI:
    usual = {"model": None, "base_url": models.url if models else f"http://127.0.0.1:{free_port()}", "thinking": None}
    return ClaudeAPI(**{**usual, **more}, limit=limit, web_search=web_search)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_edits_and_submits_and_keeps_the_conversation(call):
    view = Use(EDITOR, {"command": "view", "path": "solver.py"})
    with Models(steps([[Say("Let me see."), view], [edit(1, 5)], [Use("check", {})], [submit()]])) as models:
        said = call.propose(agent(models))
    assert call.text() == solver(5)
    assert (said.description, said.category, said.hypothesis, said.predicted) == (
        "a larger value",
        "optimizer",
        "larger is better",
        1.0,
    )
    assert said.tokens == 4 * 1110 and said.dollars is None  # nobody knows the price of a server of one's own
    assert "1\\tVALUE = 1" in models.asked[1].results[0] and models.asked[3].results[2] == '"the edit can be run"'
    request = models.asked[1].body
    assert request["system"][-1]["cache_control"] and request["messages"][-1]["content"][-1]["cache_control"]
    assert sum(json.dumps(part).count("cache_control") for part in (request["system"], request["messages"])) <= 4
    assert request["stream"] and [tool["name"] for tool in request["tools"]] == [EDITOR, "look", "check", "submit"]
    assert models.asked[0].headers["authorization"] == f"Bearer {KEY}"
    lines = [json.loads(line) for line in (call.transcript / "transcript.jsonl").read_text().splitlines()]
    assert [line["role"] for line in lines] == ["user", "assistant"] * 4 + ["user"] and said.transcript
    assert not connections(models.url)


@pytest.mark.parametrize(
    ("ideas", "expected"),
    [(["I1", "x | y", {}], ("I1", "x | y", "{}")), ("I1", ("I1",)), (None, ()), (5, ("5",)), (["a"] * 99, ("a",) * 8)],
)
def test_ideas_in_whatever_form(call, ideas, expected):
    with Models(steps([[edit(1, 5)], [submit(ideas=ideas)]])) as models:
        assert call.propose(agent(models)).ideas == expected


def test_an_edit_that_does_not_apply_or_of_another_file_and_a_false_submission(call):
    (call.folder.parent / "solver.py").write_text("")
    script = steps(
        [
            [edit(77, 5)],  # is not there
            [create("check.py", "")],
            [create("../solver.py", "")],
            [Use("shell", {"command": "rm -rf ."})],
            [submit()],  # nothing changed yet
            [create("solver.py", "VALUE =")],
            [submit()],  # does not parse
            [create("solver.py", solver(5))],
            [submit("tabs\tand\nlines \x1b[31mred\x1b[0m \U0001f600 " + "long " * 3000)],
        ]
    )
    with Models(script) as models:
        said = call.propose(agent(models))
    for expected, result in zip(
        [
            "occurs 0 times",
            "only solver.py can be",
            "only solver.py can be",
            "there is no tool shell",
            "nothing changed",
            "written",
            "does not parse",
            "written",
        ],
        models.asked[-1].results,
        strict=True,
    ):
        assert expected in result
    assert said.description.startswith("tabs and lines red \U0001f600 long long") and len(said.description) <= 300


@pytest.mark.parametrize("turn", [[Say("I would raise the value.")], []])
def test_an_answer_without_an_edit(call, turn):
    """Prose, or nothing at all: the model is reminded twice, then its proposal has failed."""
    with Models(lambda asked: turn) as models, pytest.raises(AgentFailed, match="ended without an edit") as raised:
        call.propose(agent(models))
    assert len(models.asked) == 3 and "Nothing is submitted yet" in models.asked[-1].text
    assert raised.value.tokens == 3 * 1110


def test_a_stream_that_breaks_off_is_asked_for_again(call):
    """Three times in a row the server counts as away. What the broken answers took is known from their beginning."""
    with Models(lambda asked: CUT) as models, pytest.raises(AgentUnavailable, match="cut off 3 times") as raised:
        call.propose(agent(models))
    assert raised.value.tokens == 3 * 1110 and not connections(models.url)
    turns = iter([CUT, CUT, [edit(1, 5)], CUT, [submit()]])
    with Models(lambda asked: next(turns)) as models:
        assert call.propose(agent(models)).tokens == 5 * 1110


def test_of_an_answer_that_breaks_off_what_came_counts(call, monkeypatch):
    """The server says how much it made only at the end."""
    monkeypatch.setattr(conversation, "CHARACTERS_A_TOKEN", 1)
    with Models(lambda asked: CUT) as models, pytest.raises(AgentUnavailable) as raised:
        call.propose(agent(models))
    assert raised.value.tokens == 3 * (1100 + len("Let me think about"))


OF_A_REQUEST, OF_SILENCE = (conversation, "REQUEST"), (claude_api, "SILENCE")


@pytest.mark.parametrize(
    ("answer", "limit", "other"),
    [(PINGS, OF_A_REQUEST, OF_SILENCE), (SLOW, OF_A_REQUEST, OF_SILENCE), (SILENT, OF_SILENCE, OF_A_REQUEST)],
)
def test_a_request_has_its_own_limit_whatever_trickles_in(call, monkeypatch, answer, limit, other):
    """It passes, and costs one time-out, not one for each of several tries."""
    monkeypatch.setattr(*other, 1e5)
    with Models(lambda asked: answer) as models, pytest.raises(AgentUnavailable) as raised:
        call.propose(agent(models, limit=1e5), late=(getattr(*limit), lambda: models.sent >= MESSAGES.cut))
    assert len(models.asked) == 1 and raised.value.tokens >= 1110 and not connections(models.url)


def test_it_leaves_the_waiting_to_the_loop_and_tells_it_how_long(call):
    fault = Fault(429, "rate_limit_error", "slow down", wait=7200)
    with Models(lambda asked: fault) as models, pytest.raises(AgentUnavailable) as raised:
        call.propose(agent(models))
    assert raised.value.again == 7200 and len(models.asked) == 1


@pytest.mark.parametrize("outage", [Fault(529, "overloaded_error", "Overloaded"), Fault(502, "x", "bad gateway")])
def test_an_outage_in_mid_conversation_resumes_from_the_request_that_failed(call, outage):
    """Also after the loop has put the files back, and where another edit was kept meanwhile."""
    turns = iter([[edit(1, 5)], outage, outage, [submit()], [edit(1, 5)], outage, [edit(2, 6)], [submit()]])
    with Models(lambda asked: next(turns)) as models:
        caller = agent(models)
        for tokens in (1110, 0):
            with pytest.raises(AgentUnavailable) as raised:
                call.propose(caller)
            assert raised.value.tokens == tokens
            (call.folder / "solver.py").write_bytes(call.original)
        said = call.propose(caller)
        assert (said.description, said.tokens, call.text()) == ("a larger value", 1110, solver(5))
        assert models.asked[1].body["messages"] == models.asked[2].body["messages"] == models.asked[3].body["messages"]
        (call.folder / "solver.py").write_bytes(call.original)
        with pytest.raises(AgentUnavailable):
            call.propose(caller)
        (call.folder / "solver.py").write_text(solver(2))
        call.propose(caller, sources={"solver.py": solver(2)})
    assert call.text() == solver(6) and "another edit was kept" in models.asked[6].text


def test_a_file_that_is_new_outlives_an_outage_too(call, monkeypatch):
    monkeypatch.setattr("calls.TASK", dataclasses.replace(TASK, editable=("solver.py", "*.inc")))
    turns = iter([[create("new.inc", "X = 1")], Fault(529, "overloaded_error", "Overloaded"), [submit()]])
    with Models(lambda asked: next(turns)) as models:
        caller = agent(models)
        with pytest.raises(AgentUnavailable):
            call.propose(caller)
        (call.folder / "new.inc").unlink()
        call.propose(caller)
    assert (call.folder / "new.inc").read_text() == "X = 1"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_ends_and_what_is_no_utf_8_stay_as_they_are(tmp_path, end):
    path, editor = tmp_path / "a.c", Editor(tmp_path, ("a.c",))
    path.write_bytes(end.join([b"/* \xfcber */", b"a", b"b", b""]))
    assert "\ufffdber" in editor.edit({"command": "view", "path": "a.c"})
    editor.edit({"command": "str_replace", "path": "a.c", "old_str": "a\nb", "new_str": "c\r\nd"})
    editor.edit({"command": "insert", "path": "a.c", "insert_line": 1, "insert_text": "\ud800 new"})
    assert path.read_bytes() == end.join([b"/* \xfcber */", b"? new", b"c", b"d", b""])


@pytest.mark.parametrize("name", ["src/a.py/b.py", f"src/{'n' * 300}.py", "src/\0.py", "src/\ud800.py"])
def test_a_name_that_no_file_can_have_is_an_error_of_the_call(tmp_path, name):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").touch()
    with pytest.raises(ToolError):
        Editor(tmp_path.resolve(), ("src/**",)).edit({"command": "create", "path": name, "file_text": ""})


@pytest.mark.parametrize("predicted", [10**400, "more", None, {}])
def test_a_prediction_that_is_no_number_is_none(call, predicted):
    with Models(steps([[edit(1, 5)], [submit(predicted=predicted)]])) as models:
        assert call.propose(agent(models)).predicted is None


def test_no_edit_of_a_file_of_windows_is_no_edit(call):
    call.original = call.original.replace(b"\n", b"\r\n")
    (call.folder / "solver.py").write_bytes(call.original)
    said = Say("I would raise the value.")
    with Models(lambda asked: [said]) as models, pytest.raises(AgentFailed, match="ended without an edit"):
        call.propose(agent(models))


def test_what_was_begun_for_another_attempt_is_not_gone_on_with(call):
    turns = iter([[edit(1, 5)], Fault(500, "api_error", "no"), [edit(1, 7)], [submit()]])
    with Models(lambda asked: next(turns)) as models:
        caller = agent(models)
        with pytest.raises(AgentUnavailable):
            call.propose(caller)
        (call.folder / "solver.py").write_bytes(call.original)
        call.propose(caller, redone=True)
    assert len(models.asked[2].body["messages"]) == 1 and call.text() == solver(7)


def test_limits_of_the_run_hold_between_turns(call):
    def must_end(tokens: int | None, dollars: float | None) -> str | None:
        return f"{tokens} of 2000 tokens are used up" if (tokens or 0) >= 2000 else None

    with Models(lambda asked: [Use("look", {"number": 1})]) as models, pytest.raises(AgentFailed) as raised:
        call.propose(agent(models), must_end=must_end)
    assert len(models.asked) == 2 and "2220 of 2000 tokens are used up" in str(raised.value)
    assert raised.value.tokens == 2220


def test_a_request_that_is_cut_off_is_not_made_again_beyond_a_limit(call):
    def must_end(tokens: int | None, dollars: float | None) -> str | None:
        return "used up" if tokens else None

    with Models(lambda asked: CUT) as models, pytest.raises(AgentFailed, match="used up"):
        call.propose(agent(models), must_end=must_end)
    assert len(models.asked) == 1


def test_each_request_has_its_own_price(call, monkeypatch):
    """Two requests below the size from which a token costs more, together above it."""
    large = {"input_tokens": 150_000, "output_tokens": 10, "cache_read_input_tokens": 0}
    monkeypatch.setattr("models.SPOIL", lambda event: event.get("message", {}).get("usage", {}).update(large))
    model = "claude-sonnet-4-5"
    assert price(model, "anthropic", 300_000, 20, 0) > 1.5 * price(model, "anthropic", 300_000, 20, 0, requests=2)
    with Models(steps([[edit(1, 5)], [submit()]])) as models:
        said = call.propose(agent(models, base_url=f"{models.url}/anthropic.com", model=model))
    assert said.dollars == pytest.approx(2 * price(model, "anthropic", 150_000, 10, 0))


def test_the_price_of_a_server_of_one_s_own(call):
    with Models(steps([[edit(1, 5)], [submit()]])) as models:
        said = call.propose(agent(models, prices=(3.0, 15.0)))
    assert said.dollars == pytest.approx(2 * (1100 * 3 + 10 * 15) / 1e6)


def test_a_model_that_cannot_submit_may_say_what_it_did(call):
    said = "Done.\n\n**description:** raise it\ncategory: optimizer\npredicted: about +3\n"
    with Models(lambda asked: [Say(said)] if asked.results else [edit(1, 5)]) as models:
        proposal = call.propose(agent(models))
    assert (proposal.description, proposal.category, proposal.predicted) == ("raise it", "optimizer", 3.0)
    assert proposal.transcript == str(call.transcript)


def test_a_model_that_never_submits_is_given_up(call):
    with Models(lambda asked: [Use("look", {"number": 1})]) as models, pytest.raises(AgentFailed) as raised:
        call.propose(agent(models))
    assert "did not submit within 40 answers" in str(raised.value) and raised.value.tokens == 40 * 1110


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event.pop("usage", None),
        lambda event: event.get("content_block", {}).pop("input", None),
        lambda event: event.get("delta", {}).update(text="\ud800") if event.get("delta", {}).get("text") else None,
        lambda event: event.pop("type"),
        lambda event: event.get("message", {}).pop("usage", None),
        lambda event: event.clear(),
    ],
)
def test_a_server_that_only_nearly_speaks_the_api(call, spoil, monkeypatch):
    """At worst the proposal failed: nothing but the errors that the loop expects."""
    monkeypatch.setattr("models.SPOIL", spoil)
    with Models(steps([[Say("so"), edit(1, 5)], [Say("there"), submit()]])) as models:
        try:
            assert isinstance(call.propose(agent(models)), Proposal)
        except AgentFailed as error:
            assert "makes no sense" in str(error) or "cut off" in str(error)
        assert not connections(models.url)


@pytest.mark.parametrize("answer", [SLOW, SILENT])
def test_the_limit_of_a_proposal_holds_within_an_answer(call, answer):
    """Also of one in which nothing more comes."""
    with Models(lambda asked: answer) as models, pytest.raises(AgentUnavailable) as raised:
        call.propose(agent(models, limit=500), late=(500, lambda: models.sent >= MESSAGES.cut))
    assert "the model did not submit within 500 s" in str(raised.value) and 1110 <= raised.value.tokens < 1200
    assert not connections(models.url)


@pytest.mark.parametrize(("answer", "sent"), [(SLOW, 11), (SILENT, 9)])
def test_cancelled_in_mid_answer_it_says_what_it_spent_and_leaves_no_connection(call, answer, sent):
    """The first answer is six events. Of the second the beginning, which says what it took, has come."""
    with Models(lambda asked: answer if asked.results else [edit(1, 5)]) as models:
        error = call.cancel(agent(models), lambda: models.sent >= sent)
        assert not connections(models.url)
    assert isinstance(error, AgentStopped) and error.dollars is None
    assert error.tokens == 1110 or 2220 <= error.tokens < 2300


def test_cancelled_before_anything_was_spent_it_is_simply_cancelled(call):
    """Before the first answer begins."""
    over = threading.Event()

    def answer(asked: Asked) -> list:
        over.wait(60)
        return []

    with Models(answer) as models:
        assert call.cancel(agent(models), lambda: models.asked) is None
        assert not connections(models.url)
        over.set()


def test_cancelled_during_a_check_it_ends_the_check(call):
    seen = []

    async def check() -> None:
        seen.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("ended")

    with Models(lambda asked: [submit()]) as models:
        error = call.cancel(agent(models), lambda: seen, check=check)
        assert not connections(models.url)
    assert seen == ["begun", "ended"] and isinstance(error, AgentStopped) and error.tokens == 1110


def test_a_server_that_cannot_be_reached(call):
    with pytest.raises(AgentUnavailable, match="Connect"):
        call.propose(agent(None))


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (
            Fault(401, "authentication_error", "invalid"),
            AgentBlocked,
            "Set a valid one, `export ANTHROPIC_API_KEY=...`",
        ),
        (Fault(404, "not_found_error", "model: x"), AgentBlocked, "choose one with --model"),
        (Fault(400, "invalid_request_error", "Your credit balance is too low"), AgentBlocked, "asks for payment"),
        (Fault(429, "rate_limit_error", "slow down"), AgentUnavailable, "429 rate_limit_error: slow down"),
        (Fault(529, "overloaded_error", "Overloaded"), AgentUnavailable, "529 overloaded_error: Overloaded"),
        (Fault(400, "invalid_request_error", f"odd, with {KEY}"), AgentFailed, "answered 400: odd, with [key removed]"),
    ],
)
def test_what_an_error_status_means(call, fault, kind, message):
    with Models(lambda asked: fault) as models, pytest.raises(kind) as raised:
        call.propose(agent(models))
    assert type(raised.value) is kind and message in str(raised.value) and KEY not in str(raised.value)
    assert len(models.asked) == 1 and issubclass(AgentBlocked, UserError)


def test_no_key_says_what_to_set(tmp_path, monkeypatch):
    Call(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="export ANTHROPIC_API_KEY="):
        agent(None, base_url=None)


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        ("high", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
        ("4096", {"thinking": {"type": "enabled", "budget_tokens": 4096}}),
        ("off", {"thinking": {"type": "disabled"}}),
    ],
)
def test_thinking_and_model(call, thinking, expected):
    with Models(steps([[edit(1, 5)], [submit()]])) as models:
        call.propose(agent(models, thinking=thinking, model="my-model"))
    body = models.asked[0].body
    assert body["model"] == "my-model" and {name: body.get(name) for name in expected} == expected


def test_the_service_itself_is_asked_to_think_and_to_remember_for_an_hour(call):
    """Its own service, by the name in the address. A model that cannot think is asked without, from then on."""
    medium = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "medium"}}
    unknown = Fault(400, "invalid_request_error", "adaptive thinking is not supported on this model")
    with Models(steps([[edit(1, 5)], [submit()]])) as models:
        call.propose(agent(models, base_url=f"{models.url}/anthropic.com"))
    body = models.asked[0].body
    assert {name: body[name] for name in medium} == medium
    hour = {"type": "ephemeral", "ttl": "1h"}
    assert [body["system"][-1]["cache_control"], body["messages"][0]["content"][0]["cache_control"]] == [hour, hour]
    assert body["messages"][0]["content"][-1]["cache_control"] == {"type": "ephemeral"}  # which come after the others
    (call.folder / "solver.py").write_bytes(call.original)
    turns = iter([unknown, [edit(1, 6)], [submit()]])
    with Models(lambda asked: next(turns)) as models:
        said = call.propose(agent(models, base_url=f"{models.url}/anthropic.com"))
        assert said.description and call.text() == solver(6)
        assert ["thinking" in asked.body for asked in models.asked] == [True, False, False]
    with Models(steps([unknown])) as models, pytest.raises(AgentFailed, match="not supported"):
        call.propose(agent(models, base_url=f"{models.url}/anthropic.com", thinking="high"))


def test_of_two_that_find_out_at_once_that_a_model_does_not_think_neither_has_failed(call):
    both, other = threading.Barrier(2), call.folder.with_name("other")
    other.mkdir()
    (other / "solver.py").write_bytes(call.original)

    def answer(asked: Asked):
        if "thinking" in asked.body:
            both.wait(HANGS)
            return Fault(400, "invalid_request_error", "adaptive thinking is not supported on this model")
        return [submit()] if asked.results else [edit(1, 5)]

    async def propose(caller: ClaudeAPI) -> list[Proposal]:
        brief = call.brief(check=no_objection)
        return await asyncio.gather(*(caller.propose(brief, folder) for folder in (call.folder, other)))

    with Models(answer) as models:
        said = asyncio.run(propose(agent(models, base_url=f"{models.url}/anthropic.com")))
    assert [one.description for one in said] == ["a larger value"] * 2 and len(models.asked) == 6


def test_an_unknown_setting_of_thinking_is_refused():
    with pytest.raises(UserError, match="--thinking takes low"):
        agent(None, thinking="deep")


def test_web_search_comes_when_nothing_helps(call):
    for web_search, stages in ((True, Stages()), (True, Stages(refine=1, pivot=1, outside=0)), (False, Stages())):
        (call.folder / "solver.py").write_bytes(call.original)
        with Models(steps([[edit(1, 5)], [submit()]])) as models:
            call.propose(agent(models, web_search=web_search), stages=stages, attempts=[discarded(2)])
        offered = "web_search" in [tool["name"] for tool in models.asked[0].body["tools"]]
        assert offered == (web_search and stages.outside == 0)


def test_a_key_is_never_written(call):
    """Not the user's own, nor another that an answer or a tool's argument holds."""
    other = "ghp_" + "a1B2" * 9
    script = steps(
        [
            [Say(f"Your key is {KEY}, mine {other}."), Use("look", {"number": other})],
            [edit(1, 5)],
            [submit(f"set with {KEY}", hypothesis=other, lesson=other)],
        ]
    )
    with Models(script) as models:
        said = call.propose(agent(models))
    assert said.description == "set with [key removed]" and said.hypothesis == said.lesson == "[key removed]"
    kept = (call.transcript / "transcript.jsonl").read_text()
    assert KEY not in kept and other not in kept and "[key removed]" in kept
