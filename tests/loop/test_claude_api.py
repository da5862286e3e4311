"""The claude-api agent: the real SDK, a scripted model behind real HTTP, the toy task."""

import json
import socket

import pytest
from conftest import git, solver, wait_for
from models import CUT, SLOW, Asked, Fault, Models, Say, Use

EDITOR = "str_replace_based_edit_tool"
KEY = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789"


def edit(old: object, new: object) -> Use:
    return Use(
        EDITOR,
        {"command": "str_replace", "path": "solver.py", "old_str": f"VALUE = {old}", "new_str": f"VALUE = {new}"},
    )


def submit(description: str = "a larger value", **more) -> Use:
    return Use(
        "submit",
        {
            "description": description,
            "category": "optimizer",
            "hypothesis": "larger is better",
            "predicted": 1.0,
            **more,
        },
    )


def steps(*by_experiment: list):
    """A model that for experiment 2, 3, ... answers with these turns, one after the other."""

    def answer(asked: Asked):
        turns = by_experiment[asked.experiment - 2]
        return turns[min(len(asked.results), len(turns) - 1)]

    return answer


def run(toy, models: Models, experiments: int, *arguments: str, **more) -> str:
    return toy.run(
        "--agent",
        "claude-api",
        "--base-url",
        models.url,
        "--baseline-runs",
        "1",
        "--lookahead",
        "0",
        "--experiments",
        str(experiments),
        *arguments,
        **{"ANTHROPIC_API_KEY": KEY, **more},
    )


def test_views_edits_looks_checks_and_submits(toy):
    script = steps(
        [
            [Say("Let me see."), Use(EDITOR, {"command": "view", "path": "solver.py"})],
            [edit(1, 5)],
            [Use("check", {})],
            [submit()],
        ],
        [
            [Use("look", {"number": 2})],
            [edit(5, 6)],
            [submit("a larger one still", lesson="larger values score better")],
        ],
        [[edit(6, 4)], [submit("smaller", lesson="L1")]],
    )
    with Models(script) as models:
        output = run(toy, models, 4)
    assert toy.statuses() == ["keep", "keep", "keep", "discard"]
    first, second, third = toy.journal("attempt")[1:]
    assert (first["description"], first["category"], first["hypothesis"], first["predicted"]) == (
        "a larger value",
        "optimizer",
        "larger is better",
        1.0,
    )
    assert first["tokens"] == 4 * 1110 and first["dollars"] is None  # of a server of one's own nobody knows the price
    by_experiment = {number: [asked for asked in models.asked if asked.experiment == number] for number in (2, 3, 4)}
    assert "1\\tVALUE = 1" in by_experiment[2][1].results[0]
    assert by_experiment[2][3].results[2] == '"the edit can be run"'
    assert "+VALUE = 5" in by_experiment[3][1].results[0] and "larger is better" in by_experiment[3][1].results[0]
    told = by_experiment[4][0].text
    assert "predicted +1.000000, measured +4.000000" in told and "L1 (confirmed 0): larger values score better" in told
    assert "optimizer: 2 tried, 2 kept, best change +4.000000" in told
    assert "confirmed 1" in (toy.folder / ".autoresearch/lessons.md").read_text()
    assert "and an unknown cost" in output
    request = by_experiment[2][1].body
    assert request["system"][-1]["cache_control"] and request["messages"][-1]["content"][-1]["cache_control"]
    assert sum(json.dumps(part).count("cache_control") for part in (request["system"], request["messages"])) <= 4
    assert request["stream"] and [tool["name"] for tool in request["tools"]] == [EDITOR, "look", "check", "submit"]
    assert by_experiment[2][0].headers["authorization"] == f"Bearer {KEY}"
    toy.require_whole()


def test_an_edit_that_does_not_apply_or_of_another_file_and_a_false_submission(toy):
    script = steps(
        [
            [edit(77, 5)],  # is not there
            [Use(EDITOR, {"command": "create", "path": "check.py", "file_text": ""})],
            [Use(EDITOR, {"command": "create", "path": "../../../solver.py", "file_text": ""})],
            [Use("shell", {"command": "rm -rf ."})],
            [submit()],  # nothing changed yet
            [Use(EDITOR, {"command": "create", "path": "solver.py", "file_text": "VALUE ="})],
            [submit()],  # does not parse
            [Use(EDITOR, {"command": "create", "path": "solver.py", "file_text": solver(5)})],
            [submit("tabs\tand\nlines \x1b[31mred\x1b[0m \U0001f600 " + "long " * 3000)],
        ]
    )
    with Models(script) as models:
        run(toy, models, 2)
    results = models.asked[-1].results
    for expected, result in zip(
        [
            "stands 0 times",
            "only solver.py can be",
            "only solver.py can be",
            "there is no tool shell",
            "nothing changed",
            "written",
            "does not parse",
            "written",
        ],
        results,
        strict=True,
    ):
        assert expected in result
    assert toy.statuses() == ["keep", "keep"]
    description = toy.rows()[1][4]
    assert description.startswith("tabs and lines red \U0001f600 long long") and len(description) <= 300
    assert git(toy.folder, "log", "-1", "--format=%s", toy.tip()) == description
    toy.require_whole()


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([[Say("I would raise the value.")]], "the model ended without an edit"),
        ([[]], "the model ended without an edit"),
        ([CUT], "cannot be reached: the answer was cut off 3 times"),
    ],
)
def test_an_answer_without_an_edit(toy, turns, reason):
    """Prose, nothing at all, or a stream that breaks off: asked again, and then said to be a failure of this proposal."""
    answers = []

    def script(asked: Asked):
        answers.append(asked)
        if len(answers) <= 6:
            return turns[0]
        return [edit(1, 5)] if not asked.results else [submit()]

    with Models(script) as models:
        output = run(toy, models, 2)
    assert reason in output and toy.statuses() == ["keep", "keep"]


def test_a_model_that_cannot_submit_may_say_what_it_did(toy):
    said = "Done.\n\n**description:** raise it\ncategory: optimizer\npredicted: about +3\n"
    with Models(lambda asked: [Say(said)] if asked.results else [edit(1, 5)]) as models:
        run(toy, models, 2)
    entry = toy.journal("attempt")[1]
    assert (entry["description"], entry["category"], entry["predicted"]) == ("raise it", "optimizer", 3.0)


def test_a_storm_passes(toy):
    """429 and 529 by the dozen: the SDK tries again, then the loop waits, and nothing is lost or counted as a failure."""
    count = iter(range(100))

    def script(asked: Asked):
        turn = next(count)
        if turn < 6:
            return (
                Fault(429, "rate_limit_error", "slow down")
                if turn % 2
                else Fault(529, "overloaded_error", "Overloaded")
            )
        return [edit(1, 5)] if not asked.results else [submit()]

    with Models(script) as models:
        output = run(toy, models, 2)
    assert toy.statuses() == ["keep", "keep"] and "next call in 2 s" in output
    assert [entry["agent"] for entry in toy.journal("waited")] == ["claude-api"]
    assert not toy.journal("refused")


def test_an_agent_that_is_away_does_not_hold_up_another(toy):
    toy.plan_steps(**{f"e{number}": [{"files": {"solver.py": solver(number)}, "say": "up"}] for number in range(2, 5)})
    output = toy.run(
        "--agent",
        "claude-api,command",
        "--base-url",
        f"http://127.0.0.1:{free_port()}",
        *toy.agent[2:],
        "--baseline-runs",
        "1",
        "--lookahead",
        "0",
        "--experiments",
        "4",
        ANTHROPIC_API_KEY=KEY,
    )
    assert toy.statuses() == ["keep"] * 4 and "command fills in" in output


def test_a_filler_that_has_nothing_left_does_not_end_the_night(toy):
    toy.write(
        "solver.py", "FLAG = True\nVALUE = ''\nif __name__ == '__main__':\n    print('score: 1')\n"
    )  # one step there is, and no more
    toy.commit()
    answers = iter(range(100))

    def script(asked: Asked):
        whole = Use(EDITOR, {"command": "create", "path": "solver.py", "file_text": solver(5)})
        return (
            Fault(529, "overloaded_error", "Overloaded")
            if next(answers) < 8
            else [submit()]
            if asked.results
            else [whole]
        )

    with Models(script) as models:
        run(toy, models, 3, "--fill", "sweep")
    assert [entry["agent"] for entry in toy.journal("attempt")] == ["loop", "sweep", "claude-api"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event.pop("usage", None),
        lambda event: event.get("content_block", {}).pop("input", None),
        lambda event: event.get("delta", {}).update(text="\ud800") if event.get("delta", {}).get("text") else None,
        lambda event: event.pop("type"),
    ],
)
def test_a_server_that_only_nearly_speaks_the_language(toy, spoil, monkeypatch):
    """No traceback and nothing lost: at worst the proposal came to nothing."""
    monkeypatch.setattr("models.SPOIL", spoil)
    with Models(steps([[Say("so"), edit(1, 5)], [Say("there"), submit()]])) as models:
        process = toy.start(
            "--agent",
            "claude-api",
            "--base-url",
            models.url,
            "--baseline-runs",
            "1",
            "--lookahead",
            "0",
            "--experiments",
            "2",
            ANTHROPIC_API_KEY=KEY,
        )
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "next call" in line:
                process.send_signal(2)
        process.wait(60)
    output = "".join(lines)
    assert "Traceback" not in output and process.returncode in (0, 2), output
    toy.require_whole()


def test_the_limit_of_a_proposal_holds_within_an_answer(toy):
    def script(asked: Asked):
        return SLOW

    with Models(script) as models:
        toy.run_until(
            "the model did not submit within 1 s",
            "--agent",
            "claude-api",
            "--base-url",
            models.url,
            "--baseline-runs",
            "1",
            "--lookahead",
            "0",
            "--agent-limit",
            "1",
            ANTHROPIC_API_KEY=KEY,
        )
    assert toy.statuses() == ["keep"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_without_network_sweep_fills_in_until_the_agent_is_back(toy):
    port, models = free_port(), None
    arguments = [
        "--agent",
        "claude-api",
        "--base-url",
        f"http://127.0.0.1:{port}",
        "--baseline-runs",
        "1",
        "--lookahead",
        "0",
        "--fill",
        "sweep",
        "--hours",
        "1",
    ]
    process = toy.start(*arguments, ANTHROPIC_API_KEY=KEY)
    try:
        wait_for(lambda: len(toy.journal("verdict")) > 3, 60)
        models = Models(
            steps(
                *[
                    [
                        [Use(EDITOR, {"command": "create", "path": "solver.py", "file_text": solver(90 + number)})],
                        [submit("back")],
                    ]
                    for number in range(1000)
                ]
            ),
            port,
        )
        wait_for(lambda: any(entry["description"] == "back" for entry in toy.journal("attempt")), 60)
        process.send_signal(2)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        if models:
            models.__exit__()
    agents = [entry["agent"] for entry in toy.journal("attempt")]
    assert agents[:3] == ["loop", "sweep", "sweep"] and "claude-api" in agents
    assert "sweep fills in" in output and process.returncode == 0
    toy.require_whole()


def test_without_network_the_loop_waits_and_stops_when_told(toy):
    output = toy.run_until(
        "next call in 2 s",
        "--agent",
        "claude-api",
        "--base-url",
        f"http://127.0.0.1:{free_port()}",
        "--baseline-runs",
        "1",
        "--lookahead",
        "0",
    )
    assert "stopped: you asked it to stop" in output
    assert toy.statuses() == ["keep"]
    toy.require_whole()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(401, "authentication_error", "invalid x-api-key"), "Set a valid one, `export ANTHROPIC_API_KEY=...`"),
        (Fault(404, "not_found_error", "model: x"), "choose one with --model"),
        (Fault(400, "invalid_request_error", "Your credit balance is too low"), "asks for payment"),
    ],
)
def test_what_only_a_person_can_mend_stops_the_run(toy, fault, message):
    with Models(lambda asked: fault) as models:
        output = run(toy, models, 2, expect=2)
        assert message in output and KEY not in output and "Traceback" not in output
        models.answer = steps([[edit(1, 5)], [submit()]])
        run(toy, models, 2)
    assert toy.statuses() == ["keep", "keep"]


def test_no_key_says_what_to_set(toy):
    assert "export ANTHROPIC_API_KEY=" in toy.run("--agent", "claude-api", expect=2, ANTHROPIC_API_KEY="")


def test_a_key_is_never_written(toy):
    """Not the user's own, nor another that an answer, a tool's argument or an error holds; and none gets into git."""
    other = "ghp_" + "a1B2" * 9
    script = steps(
        [[Say(f"Your key is {KEY}, mine {other}.")], [edit(1, 5)], [submit(f"set with {KEY}", hypothesis=other)]],
        [
            [Use(EDITOR, {"command": "create", "path": "solver.py", "file_text": solver(8, f"KEY = '{other}'\n")})],
            [submit()],
            [Use(EDITOR, {"command": "create", "path": "solver.py", "file_text": solver(8)})],
            [submit()],
        ],
        [Fault(400, "invalid_request_error", f"odd request with {KEY}")],
    )

    def answer(asked: Asked):
        return (
            [edit(1, 5)]
            if asked.experiment == 2 and "Nothing is submitted" in asked.text and not asked.results
            else script(asked)
        )

    with Models(answer) as models:
        output = run(toy, models, 4, expect=2)
    assert toy.statuses() == ["keep", "keep", "keep"] and "looks like a key" in models.asked[
        -6
    ].text + output + "".join(a.text for a in models.asked)
    found = [
        path
        for path in toy.folder.rglob("*")
        if path.is_file() and any(key.encode() in path.read_bytes() for key in (KEY, other))
    ]
    assert not found and KEY not in output and other not in output
    assert "[key removed]" in toy.rows()[1][4]
    assert not git(toy.folder, "log", "--all", "--format=%H", "-G", "ghp_")


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        ("high", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
        ("4096", {"thinking": {"type": "enabled", "budget_tokens": 4096}}),
    ],
)
def test_thinking_and_model(toy, thinking, expected):
    with Models(steps([[edit(1, 5)], [submit()]])) as models:
        run(toy, models, 2, "--thinking", thinking, "--model", "my-model")
    body = models.asked[0].body
    assert body["model"] == "my-model" and {name: body.get(name) for name in expected} == expected
    assert "--thinking takes low" in toy.run(
        "--agent", "claude-api", "--base-url", "http://127.0.0.1:9", "--thinking", "deep", expect=2
    )


def test_web_search_comes_when_nothing_helps(toy):
    front = (
        (toy.folder / "program.md")
        .read_text()
        .replace("---\nRaise", "stages: {refine: 1, pivot: 1, outside: 1}\n---\nRaise")
    )
    toy.write("program.md", front)
    toy.commit()
    with Models(steps([[edit(1, 0)], [submit()]], [[edit(1, -1)], [submit()]], [[edit(1, -2)], [submit()]])) as models:
        run(toy, models, 4, "--web-search")
    offered = {
        asked.experiment: "web_search" in [tool["name"] for tool in asked.body["tools"]] for asked in models.asked
    }
    assert offered == {2: False, 3: False, 4: True}
    assert (
        "## Stage: look outside" in models.asked[-1].text
        and "## Stage: pivot" in next(a for a in models.asked if a.experiment == 3).text
    )
