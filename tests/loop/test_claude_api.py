"""Nights with the claude-api agent: the real SDK, a scripted model behind real HTTP, the toy task.

unit/test_model_calls.py tests single calls of it.
"""

import random
import re
import socket
from pathlib import Path

import pytest
from conftest import git, solver, wait_for
from models import CUT, EDITOR, KEY, PINGS, SILENT, Asked, Fault, Models, Say, Use, create, edit, steps, submit

USUAL = ("--agent", "claude-api", "--baseline-runs", "1", "--lookahead", "0")
OVERLOADED = Fault(529, "overloaded_error", "Overloaded")
HURRIED = Path(__file__).with_name("hurried_loop.py")


def run(toy, models: Models, experiments: int, *arguments: str, **more) -> str:
    arguments = (*USUAL, "--base-url", models.url, "--experiments", str(experiments), *arguments)
    return toy.run(*arguments, **{"ANTHROPIC_API_KEY": KEY, **more})


@pytest.mark.slow
def test_views_edits_looks_checks_submits_and_learns(toy):
    """What it is told of earlier experiments, also when nothing helps any more, and what of its words is kept."""
    program = (toy.folder / "program.md").read_text()
    toy.write("program.md", program.replace("---\nRaise", "stages: {refine: 1, pivot: 1, outside: 1}\n---\nRaise"))
    toy.commit()
    long = "tabs\tand\nlines \x1b[31mred\x1b[0m \U0001f600 " + "long " * 3000
    script = steps(
        [[Use(EDITOR, {"command": "view", "path": "solver.py"})], [edit(1, 5)], [Use("check", {})], [submit()]],
        [[Use("look", {"number": 2})], [edit(5, 6)], [submit(long, lesson="larger values score better")]],
        [[submit()], [edit(6, 7)], [submit("larger again", lesson="L1")]],
        [[edit(7, 3)], [submit("smaller", lesson="L1")]],
        [[edit(7, 2)], [submit("smaller", lesson="L1: again")]],
        [[edit(7, 1.5)], [submit("smaller")]],
    )
    with Models(script) as models:
        output = run(toy, models, 7, "--thinking", "4096", "--model", "my-model", "--web-search")
    assert toy.statuses() == ["keep"] * 4 + ["discard"] * 3
    first, second, *_ = toy.journal("attempt")[1:]
    assert (first["description"], first["category"], first["hypothesis"], first["predicted"]) == (
        "a larger value",
        "optimizer",
        "larger is better",
        1.0,
    )
    assert first["tokens"] == 4 * 1110 and first["dollars"] is None and "and an unknown cost" in output
    description = toy.rows()[2][4]
    assert description.startswith("tabs and lines red \U0001f600 long long") and len(description) <= 300
    assert git(toy.folder, "log", "-1", "--format=%s", second["commit"]) == description
    asked = {number: [asked for asked in models.asked if asked.experiment == number] for number in range(2, 8)}
    assert "1\\tVALUE = 1" in asked[2][1].results[0] and asked[2][3].results[2] == '"the edit can be run"'
    assert "+VALUE = 5" in asked[3][1].results[0] and "larger is better" in asked[3][1].results[0]
    assert "not submitted: nothing changed in solver.py" in asked[4][1].results[0]
    told = asked[4][0].text
    assert "predicted +1, measured +4" in told and "L1 (confirmed 0): larger values score better" in told
    assert "optimizer: 2 tried, 2 kept, best change +4" in told
    lessons = (toy.folder / ".autoresearch/lessons.md").read_text()
    assert "L1 (confirmed 1)" in lessons and "L2" not in lessons  # by the keep, not by the two discards
    body = models.asked[0].body
    assert body["model"] == "my-model" and body["thinking"] == {"type": "enabled", "budget_tokens": 4096}
    offered = {number: "web_search" in [tool["name"] for tool in asked[number][0].body["tools"]] for number in asked}
    assert [number for number in offered if offered[number]] == [7]
    assert "## Stage: pivot" in asked[6][0].text and "## Stage: look outside" in asked[7][0].text
    toy.require_whole()


@pytest.mark.slow
def test_a_storm_passes(toy):
    """A proposal without an edit, then more outages in a row than failures are allowed, then answers that break off.

    The first counts as a failure and is followed by another call; for the others the loop waits, and nothing is lost:
    what had been said before the outage in the middle is not said again.
    """
    storm = [OVERLOADED, Fault(429, "rate_limit_error", "slow down"), Fault(500), Fault(502), Fault(503), Fault(408)]
    turns = iter(
        [[Say("I would raise the value.")]] * 3 + storm + [CUT, CUT, [edit(1, 5)], *storm, [submit()], [edit(5, 6)]]
        + [[submit()]]
    )  # fmt: skip
    with Models(lambda asked: next(turns)) as models:
        output = run(toy, models, 3, loop=HURRIED)
    assert toy.statuses() == ["keep", "keep", "keep"] and "claude-api failed; next call in" in output
    assert len(toy.journal("waited")) == 1 + 2 * len(storm) and not next(turns, None)
    assert [entry["reason"] for entry in toy.journal("refused")] == ["the model ended without an edit"]
    paid = [entry["tokens"] or 0 for kind in ("refused", "waited", "attempt") for entry in toy.journal(kind)]
    assert sum(paid) == 1110 * (3 + 2 + 4)
    toy.require_whole()


@pytest.mark.slow
def test_a_model_that_fails_in_every_way_in_random_order(toy):
    """Half of its answers are faults. The record is whole, nothing that was sent is missing in it, and limits hold."""
    draw, sent = random.Random(18), []
    odd = Fault(400, "invalid_request_error", "odd")
    limit = Fault(429, "rate_limit_error", "limit reached; resets in 0s")
    faults = [
        CUT,
        SILENT,
        PINGS,
        OVERLOADED,
        limit,
        Fault(500),
        Fault(502),
        Fault(408),
        odd,
        [Say("I would raise it.")],
    ]

    def answer(asked: Asked):
        whole = [submit()] if asked.results else [create("solver.py", solver(asked.experiment, f"# {len(sent)}\n"))]
        sent.append(draw.choice(faults) if draw.random() < 0.5 else whole)
        return sent[-1]

    with Models(answer) as models:
        output = run(toy, models, 100, "--max-tokens", "40000", loop=HURRIED)
    paid = [entry["tokens"] or 0 for kind in ("refused", "waited", "attempt") for entry in toy.journal(kind)]
    assert sum(paid) == 1110 * sum(not isinstance(one, Fault) for one in sent) and 40_000 <= sum(paid) < 41_110
    assert "of 40,000 tokens are used up" in output and len(toy.statuses()) > 5 and "crash" not in toy.statuses()
    assert len({str(one) for one in sent if isinstance(one, Fault | str)}) > 6 and not toy.journal("interrupted")
    toy.require_whole()


@pytest.mark.slow
def test_a_limit_that_names_its_end_is_waited_for_in_sight(toy):
    """For two hours by the service's word; the loop stops at once when it is told to."""
    limit = Fault(429, "rate_limit_error", "slow down", wait=7200)
    with Models(lambda asked: limit) as models:
        process = toy.start(*USUAL, "--base-url", models.url, ANTHROPIC_API_KEY=KEY)
        wait_for(lambda: toy.journal("waited"))
        assert re.search(r"claude-api cannot be reached; next call in (2 h 0|1 h 5\d) min", toy.run("status"))
        process.send_signal(2)
        output, _ = process.communicate(timeout=120)
        assert len(models.asked) == 1 and "slow down; next call at " in output and ", in 2 h 0 min" in output
        assert process.returncode == 0 and toy.journal("waited")[0]["seconds"] == pytest.approx(7200, abs=5)
        toy.write("solver.py", "FLAG = True\nVALUE = 1\nif __name__ == '__main__':\n    print(f'score: {VALUE}')\n")
        toy.commit()
        output = run(toy, models, 3, "--tag", "filled", "--fill", "sweep")  # and --fill steps in meanwhile
        assert "slow down; sweep fills in" in output and len(models.asked) == 2


@pytest.mark.slow
def test_of_several_that_are_away_the_first_to_be_back_is_called(toy):
    """One has reached its limit for two hours, the other is overloaded for a moment."""
    turns = iter([OVERLOADED, [edit(1, 5)], OVERLOADED, [submit()]])

    def answer(asked: Asked):
        if asked.body["model"] == "a":
            return Fault(429, "rate_limit_error", "limit reached", wait=7200)
        return next(turns)

    with Models(answer) as models:
        output = run(toy, models, 2, "--agent", "claude-api:a,claude-api:b", loop=HURRIED)
    assert [entry["agent"] for entry in toy.journal("attempt")] == ["loop", "claude-api:b"]
    assert [asked.body["model"] for asked in models.asked] == ["a", *"bbbb"] and "claude-api:b fills in" in output
    assert all(entry["seconds"] < 1 for entry in toy.journal("waited"))


@pytest.mark.slow
def test_the_hours_of_a_night_end_a_proposal(toy):
    """Of which nothing more comes. What it took is in the record."""
    with Models(lambda asked: SILENT) as models:
        process = toy.start(*USUAL, "--base-url", models.url, "--hours", "0.002", ANTHROPIC_API_KEY=KEY)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "stopped: the time limit of 0.002 hours is reached" in output
    assert [entry["tokens"] for entry in toy.journal("waited")] == [1110] * len(models.asked)


@pytest.mark.slow
def test_an_agent_that_only_a_person_can_help_is_left_out_and_named(toy):
    toy.plan_steps(**{f"e{number}": [{"files": {"solver.py": solver(number)}, "say": "up"}] for number in range(2, 4)})
    with Models(lambda asked: Fault(401, "authentication_error", "invalid x-api-key")) as models:
        output = run(toy, models, 3, "--agent", "claude-api,command", *toy.agent[2:])
    assert toy.statuses() == ["keep"] * 3 and len(models.asked) == 1
    assert "claude-api is left out; continuing with command: " in output and "refused the key" in output


@pytest.mark.slow
def test_a_cost_limit_holds_at_a_server_with_a_price(toy):
    """It is overshot by one turn at most."""
    price = ("--price", "1000,1000", "--max-cost", "3")  # a turn costs 1.11 dollars
    with Models(lambda asked: [Use("look", {"number": 1})]) as models:
        output = run(toy, models, 2, *price)
    assert len(models.asked) == 3 and "stopped: $3.33 of $3 are used up" in output
    toy.require_whole()


@pytest.mark.slow
def test_a_file_of_two_megabytes_is_refused(toy):
    large = create("solver.py", solver(5, "# x\n" * (512 << 10)))
    with Models(steps([[large], [submit()], [create("solver.py", solver(6))], [submit()]])) as models:
        run(toy, models, 2)
    assert toy.statuses() == ["keep", "keep"]
    assert "solver.py has 2048 KB; 256 KB are allowed" in models.asked[2].results[1]


@pytest.mark.slow
def test_an_agent_that_is_away_does_not_hold_up_another(toy):
    toy.plan_steps(**{f"e{number}": [{"files": {"solver.py": solver(number)}, "say": "up"}] for number in range(2, 5)})
    with Models(lambda asked: OVERLOADED) as models:
        output = run(toy, models, 4, "--agent", "claude-api,command", *toy.agent[2:])
    assert toy.statuses() == ["keep"] * 4 and "command fills in" in output


@pytest.mark.slow
def test_a_filler_that_has_nothing_left_does_not_end_the_night(toy):
    toy.write("solver.py", "FLAG = True\nVALUE = ''\nif __name__ == '__main__':\n    print('score: 1')\n")
    toy.commit()  # one step there is, and no more
    answers = iter(range(100))

    def script(asked: Asked):
        if next(answers) < 2:
            return OVERLOADED
        return [submit()] if asked.results else [create("solver.py", solver(5))]

    with Models(script) as models:
        run(toy, models, 3, "--fill", "sweep")
    assert [entry["agent"] for entry in toy.journal("attempt")] == ["loop", "sweep", "claude-api"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_without_network_sweep_fills_in_until_the_agent_is_back(toy):
    port, models = free_port(), None
    arguments = [*USUAL, "--base-url", f"http://127.0.0.1:{port}", "--fill", "sweep", "--hours", "1"]
    process = toy.start(*arguments, ANTHROPIC_API_KEY=KEY)
    try:
        wait_for(lambda: len(toy.journal("verdict")) > 3)
        models = Models(
            lambda asked: [submit("back")] if asked.results else [create("solver.py", solver(90 + asked.experiment))],
            port,
        )
        wait_for(lambda: any(entry["description"] == "back" for entry in toy.journal("attempt")))
        process.send_signal(2)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        if models:
            models.__exit__()
    agents = [entry["agent"] for entry in toy.journal("attempt")]
    assert agents[:3] == ["loop", "sweep", "sweep"] and "claude-api" in agents
    assert "sweep fills in" in output and process.returncode == 0
    toy.require_whole()


@pytest.mark.slow
def test_while_its_agent_is_away_the_loop_waits_and_stops_when_told(toy):
    with Models(lambda asked: OVERLOADED) as models:
        output = toy.run_until("next call in 2 s", *USUAL, "--base-url", models.url, ANTHROPIC_API_KEY=KEY)
    assert "stopped: you asked it to stop" in output
    assert toy.statuses() == ["keep"]
    toy.require_whole()


@pytest.mark.slow
def test_what_only_a_person_can_fix_stops_the_run(toy):
    with Models(lambda asked: Fault(401, "authentication_error", "invalid x-api-key")) as models:
        output = run(toy, models, 2, expect=2)
        assert "Set a valid one, `export ANTHROPIC_API_KEY=...`" in output
        assert KEY not in output and "Traceback" not in output
        models.answer = steps([[edit(1, 5)], [submit()]])
        run(toy, models, 2)
    assert toy.statuses() == ["keep", "keep"]


def test_a_bad_setting_is_refused_before_anything_runs(toy, refused):
    assert "export ANTHROPIC_API_KEY=" in refused("--agent", "claude-api", ANTHROPIC_API_KEY="")
    more = ("--base-url", "http://127.0.0.1:9", "--thinking", "deep")
    assert "--thinking takes low" in refused("--agent", "claude-api", *more)
    assert not toy.runs.exists()


@pytest.mark.slow
def test_a_key_is_never_written(toy):
    """Not the user's own, nor another that an answer, a tool's argument or an error holds; and none gets into git."""
    other = "ghp_" + "a1B2" * 9
    script = steps(
        [[Say(f"Your key is {KEY}, mine {other}.")], [edit(1, 5)], [submit(f"set with {KEY}", hypothesis=other)]],
        [
            [create("solver.py", solver(8, f"KEY = '{other}'\n"))],
            [submit()],
            [create("solver.py", solver(8))],
            [submit()],
        ],
        [Fault(400, "invalid_request_error", f"odd request with {KEY}")],
    )

    def answer(asked: Asked):
        reminded = asked.experiment == 2 and "Nothing is submitted" in asked.text and not asked.results
        return [edit(1, 5)] if reminded else script(asked)

    with Models(answer) as models:
        output = run(toy, models, 4, expect=2, loop=HURRIED)
    assert toy.statuses() == ["keep", "keep", "keep"]
    unknown = [event for event in toy.journal("waited") if "answered 400" in event["reason"]]
    assert "failed 5 times in a row" in output and len(unknown) == 4  # what is unknown backs off, too
    assert any("looks like a key" in result for asked in models.asked for result in asked.results)
    found = [
        path
        for path in toy.folder.rglob("*")
        if path.is_file() and any(key.encode() in path.read_bytes() for key in (KEY, other))
    ]
    assert not found and KEY not in output and other not in output
    assert "[key removed]" in toy.rows()[1][4]
    assert not git(toy.folder, "log", "--all", "--format=%H", "-G", "ghp_")
