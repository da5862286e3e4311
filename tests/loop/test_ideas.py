"""Ideas from people, agents and a search: offered, tested and settled by the real loop, on the toy task."""

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
from calls import fake_claude, prints, running
from conftest import ROOT, as_at_a_terminal, solver, step, wait_for
from models import EDITOR, KEY, Models, create, edit, steps, submit
from test_external import attempt
from test_external import edit as put
from test_loop import WAITING


def started(toy, *arguments: str, **more) -> subprocess.Popen:
    words = [sys.executable, str(ROOT / "loop.py"), "ideas", *arguments]
    more = {"env": {**toy.environment, **more}, "preexec_fn": as_at_a_terminal}
    return subprocess.Popen(words, cwd=toy.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def called(toy, *arguments: str, expect: int = 0, **more) -> str:
    """What `loop.py ideas ...` prints."""
    process = started(toy, *arguments, **more)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == expect and "Traceback" not in said, said
    return said


def listed(toy) -> dict[str, str]:
    """State and text by number."""
    lines = [line for line in called(toy).splitlines() if line.startswith("- I")]
    return {line.split()[1]: line.partition(" ")[2].partition(" ")[2] for line in lines}


def brief_of(toy, number: int) -> str:
    return (toy.runs / f"proposals/{number}/brief.md").read_text()


def test_added_and_dropped_by_hand(toy):
    assert "no ideas yet" in called(toy)
    assert "I1: agents see it" in called(toy, "add", "raise  it", "--expect", "+1", "--source", "Ada, 2020")
    assert "already known:\n- I1 (open): raise it" in called(toy, "add", "Raise it.")
    (toy.folder / ".autoresearch/ideas.md").open("a").write("- by my own hand\n")
    assert listed(toy) == {"I1": "(open): raise it", "I2": "(open): by my own hand"}
    assert called(toy, "drop", "I2") == "dropped: by my own hand\n" and "(dropped)" in called(toy, "list")
    assert "no idea I9" in called(toy, "drop", "9", expect=2) and "as I3" in called(toy, "drop", "x", expect=2)
    assert "the idea is empty" in called(toy, "add", "?!", expect=2)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=toy.folder, capture_output=True, text=True)
    assert not status.stdout  # git overlooks it, also before there is a run


@pytest.mark.slow
def test_offered_tested_and_settled_across_runs(toy):
    for words in ("raise it to five", "ask for too much memory"):
        called(toy, "add", words)
    toy.plan_steps(
        e2=[step(5, "description: raise\nidea: I1\nidea: raise it to two | +1 | folklore, 1999")],
        e3=[step(2, "description: two\nidea: I3: it is next")],
        e4=[{"files": {"solver.py": "raise MemoryError('no')\n"}, "say": "description: much\nidea: I2"}],
        e5=[step(6, "description: six\nidea: none")],
    )
    toy.run_agent(5)
    assert toy.statuses() == ["keep", "keep", "discard", "crash", "keep"]
    assert toy.journal("attempt")[1]["ideas"] == ["I1", "raise it to two | +1 | folklore, 1999"]
    first, second, _, last = (brief_of(toy, number) for number in (2, 3, 4, 5))
    assert "I1: raise it to five [source: by hand]\nI2: ask for" in first and "`idea: I3` if this edit tests" in first
    offered = "I3: raise it to two [expected: +1; source: agent command, run night, experiment 2: folklore, 1999]"
    assert offered in second and "I1:" not in second
    assert "Ideas that wait" not in last and "as they are they fail again\n\n```\nI2: ask for too much" in last
    assert listed(toy) == {
        "I1": "(kept, run night, experiment 2): raise it to five",
        "I2": "(discarded, run night, experiment 4): ask for too much memory",
        "I3": "(discarded, run night, experiment 3): raise it to two",
    }
    said = called(toy, "list")
    assert "outcome: for want of memory: training: MemoryError: no" in said and "outcome: 2 is 3 w" in said
    called(toy, "add", "for another night")
    toy.plan_steps(e2=[step(7)])
    toy.run_agent(2, "--tag", "second")
    told = (toy.folder / ".autoresearch/second/proposals/2/brief.md").read_text()
    assert "```\nI4: for another night [source: by hand]\n```" in told and "I2: ask for too much" in told
    toy.run("drop", "2")  # a keep that is taken back
    assert "(discarded, run night, experiment 2): raise it" in called(toy)
    toy.require_results()


@pytest.mark.slow
def test_in_trial_through_a_kill(toy):
    called(toy, "add", "raise it")
    waits = {"files": {"solver.py": solver(2, before=WAITING)}, "say": "description: wait\nidea: I1"}
    toy.plan_steps(e2=[waits], otherwise=[step(3)])
    night = [*toy.agent, "--experiments", "3", "--baseline-runs", "1"]
    process = toy.start(*night)
    wait_for((toy.runs / "trials/2/run/started").exists)
    assert listed(toy) == {"I1": "(in trial, run night, experiment 2): raise it"}
    process.kill()
    process.communicate()
    (toy.runs / "trials/2/run/started").unlink()
    process = toy.start(*night)
    wait_for((toy.runs / "trials/2/run/started").exists)
    (toy.runs / "trials/2/run/release").touch()
    assert process.communicate(timeout=60)[0] and toy.statuses() == ["keep"] * 3
    kept = "(kept, run night, experiment 2): raise it"
    assert listed(toy) == {"I1": kept} and "Ideas that wait" not in brief_of(toy, 3)
    file = toy.folder / ".autoresearch/ideas.md"
    file.write_text(file.read_text().replace("(kept,", "(in trial,"))  # as killed between the two
    assert listed(toy) == {"I1": kept}
    toy.require_whole()


@pytest.mark.slow
def test_an_external_agent_tests_and_adds(toy):
    called(toy, "add", "raise it")
    toy.run("start")
    put(toy, 5)
    words = ("-m", "raise", "--idea", "I1", "--idea", "lower it | -1 | a guess")
    assert attempt(toy, *words, expect=0)["verdict"] == "keep"
    assert listed(toy) == {"I1": "(kept, run night, experiment 2): raise it", "I2": "(open): lower it"}
    put(toy, 4)
    attempt(toy, "-m", "lower", "--idea", "I2", expect=1)
    assert "source: agent external, run night, experiment 2: a guess\n  outcome: 4 is 1" in called(toy)


@pytest.mark.slow
def test_a_night_of_claude_api(toy):
    called(toy, "add", "raise it")
    script = steps([[edit(1, 5)], [submit(ideas=["I1", "raise it again | +1 | a guess"])]], [[edit(5, 6)], [submit()]])
    arguments = ("--agent", "claude-api", "--baseline-runs", "1", "--lookahead", "0", "--experiments", "3")
    with Models(script) as models:
        toy.run(*arguments, "--base-url", models.url, ANTHROPIC_API_KEY=KEY)
    assert "I1: raise it [source: by hand]" in models.asked[0].text and "I2: raise it again" in models.asked[-1].text
    assert listed(toy) == {"I1": "(kept, run night, experiment 2): raise it", "I2": "(open): raise it again"}


# -- a search

FOUND = """\
Here is what I found:

- larger values | +2 on toys | Values \x1b[31mand\x1b[0m Scores | 2019 | https://example.org/values
- no source at all | +9
- no link | +1 | A Paper | 2020 | by Ada
- from the future | +1 | A Paper | 2999 | https://example.org/x
1. raise it | +1 | What Is Known | 2018 | https://example.org/known
"""


def test_a_search_takes_only_what_has_a_source(toy):
    called(toy, "add", "raise it")
    script = toy.folder.parent / "searcher.py"
    script.write_text(
        f"import sys\nopen('told', 'w').write(sys.stdin.read())\nopen('found.md', 'w').write({FOUND!r})\n"
    )
    words = ("--search", "what  raises numbers", "--agent", "command", "--agent-command", f"{sys.executable} {script}")
    said = called(toy, *words)
    assert "- I2 (open): larger values\n  expected: +2 on toys" in said and "\x1b" not in said
    assert "already known: I1\n1 idea added\n4 lines dropped: at most 10 are accepted, each with idea, " in said
    assert listed(toy) == {"I1": "(open): raise it", "I2": "(open): larger values"}
    assert "  source: Values and Scores, 2019, https://example.org/values\n" in called(toy)
    (told,) = (toy.folder / ".autoresearch/.searches").glob("*/folder/told")
    brief = told.read_text()
    for expected in (
        "on this topic: what raises numbers\n",
        "one change to solver.py that improves `score`",
        "Raise the number.",
        "```\n- raise it\n```",
        "description: what you did",
    ):
        assert expected in brief, expected
    assert "already known: I2\nalready known: I1\n0 ideas added" in called(toy, *words, expect=1)
    assert not (toy.folder / "found.md").exists() and not (toy.folder / "results.tsv").exists()


def test_a_search_that_fails(toy):
    search = ("--search", "x", "--agent")
    assert "sweep has no model and cannot search" in called(toy, *search, "sweep", expect=2)
    assert "found nothing: `false`: exit code 1" in called(
        toy, *search, "command", "--agent-command", "false", expect=2
    )
    assert "0 ideas added" in called(toy, *search, "command", "--agent-command", "true", expect=1)
    assert "needs a topic" in called(toy, "--search", " ", expect=2)
    name = f"1000.{os.getpid()}"
    process = started(toy, *search, "command", "--agent-command", f"sleep {name}")
    wait_for(lambda: running(name))
    process.send_signal(signal.SIGINT)
    assert "stopped; nothing was added" in process.communicate(timeout=60)[0] and process.returncode == 130
    assert not running(name) and not (toy.folder / ".autoresearch/ideas.md").exists()


@pytest.mark.slow
def test_a_search_of_claude_api(toy):
    """It is offered the web search of its server, and what it found without a source goes back to it."""
    fault = create("found.md", "larger values")
    turns = [[fault], [submit()], [create("found.md", FOUND)], [submit()]]
    with Models(lambda asked: turns[min(len(asked.results), 3)]) as models:
        words = ("--search", "numbers", "--agent", "claude-api", "--base-url", models.url)
        said = called(toy, *words, ANTHROPIC_API_KEY=KEY)
    assert {"web_search", EDITOR} <= models.asked[0].tools.keys() and "# A search for ideas" in models.asked[0].text
    assert "not submitted: no line of found.md is IDEA | EXPECTED EFFECT" in models.asked[2].results[1]
    assert "2 ideas added" in said and "the search took 4,440 tokens" in said


@pytest.mark.slow
def test_a_search_of_claude_code(toy, tmp_path):
    does = f"open('found.md', 'w').write({FOUND!r})\nopen('words', 'w').write(json.dumps(sys.argv))\n"
    more = {"PATH": fake_claude(tmp_path / "bin"), "ANTHROPIC_API_KEY": "x", "FAKE_DOES": does + prints("done")}
    assert "2 ideas added" in called(toy, "--search", "numbers", "--agent", "claude-code", **more)
    (words,) = (toy.folder / ".autoresearch/.searches").glob("*/folder/words")
    assert "WebSearch" in shlex.join(json.loads(words.read_text())) and os.path.isdir(words.parent / ".git")
