"""From brief to attempt: repairs, budgets, edits tried before, lessons. On the toy task; the agent is a program."""

import json
import signal

import pytest
from conftest import git, solver, step, wait_for

# The agent of these tests: for experiment N it does what plan.json says for its first, second, ... call.
AGENT = """import json, os, re, sys
brief = sys.stdin.read()
number = re.match(r"# Experiment (\\d+)", brief).group(1)
calls = json.load(open(sys.argv[1]))[number]
desk = os.environ["AUTORESEARCH_TRANSCRIPT"]
call = int(desk.partition("-")[2].rpartition("-")[2] or 1) if "-" in os.path.basename(desk) else 1
step = calls[min(call, len(calls)) - 1]
for name, text in step["files"].items():
    open(name, "w").write(text)
print(step["say"])
sys.exit(step.get("exit", 0))
"""


def steps(toy, **plan) -> None:
    """steps(toy, e2=[first call, second call])."""
    (toy.folder.parent / "agent.py").write_text(AGENT)
    toy.plan_steps(**plan)


def brief_of(toy, desk: str) -> str:
    return (toy.runs / f"proposals/{desk}/brief.md").read_text()


def test_an_early_crash_is_repaired_once_under_its_number(toy):
    steps(
        toy,
        e2=[step("1 / 0", "description: divide\nhypothesis: why not"), step(5, "description: divide by one")],
        e3=[step("2 / 0", "crash"), step("[][7]", "crash again"), step(9, "never asked for")],
    )
    output = toy.run_agent(3, "--repairs", "1")
    assert toy.statuses() == ["keep", "keep", "crash"] and len(toy.rows()) == 3
    told = brief_of(toy, "2-2")
    assert "## Your edit crashed" in told and "ZeroDivisionError" in told and "Traceback" in told
    assert "crashed early" in output
    assert [(entry["number"], "ZeroDivisionError" in entry["reason"]) for entry in toy.journal("crashed")] == [
        (2, True),
        (3, True),
    ]
    assert [entry["description"] for entry in toy.journal("attempt")] == [
        "baseline",
        "divide",
        "divide by one",
        "crash",
        "crash again",
    ]
    assert "IndexError" in toy.journal("verdict")[2]["reason"]
    first = toy.journal("attempt")[1]["commit"]
    assert git(toy.folder, "rev-parse", "refs/autoresearch/night/2-crashed") == first  # code is never lost
    assert git(toy.folder, "show", "refs/autoresearch/night/2:solver.py") == solver(5).strip()
    assert git(toy.folder, "rev-parse", "refs/autoresearch/night/2^") == toy.journal("attempt")[0]["commit"]
    assert not (toy.runs / "proposals/3-3").exists()
    assert toy.tip() == git(toy.folder, "rev-parse", "refs/autoresearch/night/2")


@pytest.mark.slow
def test_a_crash_is_final_without_repairs_and_when_the_agent_has_no_better_idea(toy):
    steps(toy, e2=[step("1 / 0", "crash")], e3=[step("2 / 0", "crash"), step(5, "repaired")])
    toy.run_agent(2, "--repairs", "1")  # who gives the same edit again
    assert (
        toy.statuses() == ["keep", "crash"]
        and "tried before, as experiment 2 (it crashed)" in toy.journal("refused")[0]["reason"]
    )
    toy.run_agent(3, "--repairs", "0")
    assert toy.statuses() == ["keep", "crash", "crash"]
    toy.require_whole()


@pytest.mark.slow
def test_killed_while_a_crash_is_being_repaired(toy):
    hang = {**step(5, "repaired"), "files": {}}
    steps(toy, e2=[step("1 / 0", "crash"), hang])
    agent = toy.folder.parent / "agent.py"
    agent.write_text(
        agent.read_text().replace("for name, text", "import time\nif call == 2: time.sleep(60)\nfor name, text")
    )
    process = toy.start(*toy.agent, "--baseline-runs", "1", "--experiments", "2", "--repairs", "1")
    wait_for(lambda: (toy.runs / "proposals/2-2").exists())
    process.kill()
    process.communicate()
    steps(toy, e2=[step("1 / 0", "crash"), hang, step(5, "repaired")])
    toy.run_agent(2, "--repairs", "1")
    assert toy.statuses() == ["keep", "keep"]


@pytest.mark.slow
def test_the_same_edit_in_another_form_is_refused(toy):
    forms = [solver(5, "# a comment\n"), solver("5   "), '"""A docstring."""\n' + solver(5)]
    steps(
        toy,
        e2=[step(0, "lower")],
        e3=[step(5, "raise")],
        e4=[*({"files": {"solver.py": form}, "say": "the same"} for form in forms), step(6, "higher")],
        e5=[step(0, "lower again"), step(7, "higher")],
    )
    toy.run_agent(5)
    reasons = [entry["reason"] for entry in toy.journal("refused")]
    assert reasons == [
        *["only comments or layout changed, so it would score as the champion does"] * 3,
        "the same edit was tried before, as experiment 2 (discard)",
    ]
    assert toy.statuses() == ["keep", "discard", "keep", "keep", "keep"]


def test_the_same_change_on_a_new_champion_is_refused_with_its_result(toy):
    def edit(size: int, value: str) -> dict:
        source = f"SIZE = {size}\nVALUE = {value}\nif __name__ == '__main__':\n    print(f'score: {{VALUE - SIZE}}')\n"
        return {"files": {"solver.py": source}, "say": f"size {size}, value {value}"}

    steps(toy, e2=[edit(1, "10")], e3=[edit(2, "10")], e4=[edit(1, "12")], e5=[edit(2, "12"), edit(0, "12")])
    toy.run_agent(5)
    assert toy.statuses() == ["keep", "keep", "discard", "keep", "keep"]
    (refused,) = toy.journal("refused")
    assert (
        refused["reason"]
        == "the same change of constants was tried before, as experiment 3, and clearly lost: -1 score"
    )


@pytest.mark.slow
def test_budgets_of_experiments_and_hours_warn_at_four_fifths(toy):
    steps(toy, **{f"e{number}": [step(number)] for number in range(2, 6)})
    output = toy.run_agent(5)
    assert "4 of 5 experiments (--experiments)" in output and output.count("(--experiments)") == 1


@pytest.mark.slow
def test_lessons_reach_the_next_run(toy):
    steps(
        toy,
        e2=[step(5, "description: raise\nlesson: larger is better")],
        e3=[step(6, "description: raise\nlesson: L1")],
    )
    toy.run_agent(3)
    assert "L1 (confirmed 0): larger is better" in brief_of(toy, "3")
    steps(toy, e2=[step(7)])
    toy.run_agent(2, "--tag", "second")
    assert (
        "L1 (confirmed 1): larger is better" in (toy.folder / ".autoresearch/second/proposals/2/brief.md").read_text()
    )
    assert "run night, experiment 2]" in (toy.folder / ".autoresearch/lessons.md").read_text()


def test_a_page_for_each_attempt(toy):
    steps(toy, e2=[step(5, "description: raise\nhypothesis: more is more\npredicted: 4")], e3=[step("1 / 0", "crash")])
    toy.run_agent(3)
    page = (toy.runs / "attempts/2.md").read_text()
    assert (
        "+VALUE = 5" in page and "Hypothesis: more is more" in page and "+4" in page and "keep: 5 is 4 better" in page
    )
    assert "ZeroDivisionError" in (toy.runs / "attempts/3.md").read_text()


@pytest.mark.slow
def test_stages_of_program_md_and_a_slip_in_them(toy, refused):
    program = (toy.folder / "program.md").read_text()
    toy.write("program.md", program.replace("---\nRaise", "stages: {refine: 1, pivot: 2, outside: 1}\n---\nRaise"))
    toy.commit()
    steps(toy, **{f"e{number}": [step(-number, f"[kind {number}] lower")] for number in range(2, 7)})
    toy.run_agent(5)
    assert [
        ("## Stage: " + stage in brief_of(toy, str(number)))
        for number, stage in ((3, "refine"), (4, "pivot"), (5, "look outside"))
    ] == [True] * 3
    assert "## Stage" not in brief_of(toy, "2")
    toy.write("program.md", program.replace("---\nRaise", "stages: {refine: many}\n---\nRaise"))
    assert "`stages` in" in refused(*toy.agent, "--experiments", "6")


def test_the_environment_s_keys_do_not_reach_the_agent_s_log(toy):
    (toy.folder.parent / "agent.py").write_text(
        "import os\nprint(os.environ['MY_API_KEY'])\nopen('solver.py', 'a').write('X = 1\\n')\n"
        "print('done with ' + os.environ['MY_API_KEY'])\n"
    )
    output = toy.run_agent(2, MY_API_KEY="correct-horse-battery-staple")
    assert not [
        path for path in toy.folder.rglob("*") if path.is_file() and b"correct-horse-battery" in path.read_bytes()
    ]
    assert "correct-horse" not in output and "[key removed]" in (toy.runs / "proposals/2/agent.log").read_text()
    assert json.dumps(toy.journal()).count("[key removed]") == 1


@pytest.mark.slow
def test_ctrl_c_while_a_crash_is_being_repaired_leaves_it_to_be_repaired(toy):
    steps(toy, e2=[step("1 / 0", "crash"), step(5, "repaired")])
    agent = toy.folder.parent / "agent.py"
    agent.write_text(
        agent.read_text().replace("for name, text", "import time\nif call == 2: time.sleep(60)\nfor name, text")
    )
    process = toy.start(*toy.agent, "--baseline-runs", "1", "--experiments", "2", "--repairs", "1")
    wait_for(lambda: (toy.runs / "proposals/2-2").exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert toy.statuses() == ["keep"]
    steps(toy, e2=[step("1 / 0", "crash"), step(5, "repaired"), step(5, "repaired")])
    toy.run_agent(2, "--repairs", "1")
    assert toy.statuses() == ["keep", "keep"]


@pytest.mark.slow
def test_what_a_crash_was_repaired_from_is_not_tried_again(toy):
    steps(toy, e2=[step("1 / 0", "crash"), step(5, "repaired")], e3=[step("1 / 0", "the same crash"), step(6, "more")])
    toy.run_agent(3, "--repairs", "1")
    assert "the same edit was tried before, as experiment 2" in toy.journal("refused")[0][
        "reason"
    ] and toy.statuses() == ["keep", "keep", "keep"]


@pytest.mark.slow
def test_settings_that_look_like_keys_do_not_stop_a_run(toy):
    toy.write(
        "program.md",
        (toy.folder / "program.md")
        .read_text()
        .replace("python solver.py", "python solver.py --api-key=0123456789abcdef01234"),
    )
    toy.commit()
    steps(toy, e2=[step(5)], e3=[step(6)])
    toy.run_agent(2)
    toy.run_agent(3)
    assert toy.statuses() == ["keep", "keep", "keep"]


def test_an_edit_with_a_key_is_refused_also_where_one_was_removed_before(toy):
    key = "ghp_" + "a1B2" * 9
    steps(
        toy,
        e2=[
            {"files": {"solver.py": solver(5, f"# [key removed]\nTOKEN = '{key}'\n")}, "say": "key"},
            step(5, "without"),
        ],
    )
    toy.run_agent(2)
    assert "looks like a key" in toy.journal("refused")[0]["reason"]
    assert not git(toy.folder, "log", "--all", "--format=%H", "-G", "ghp_")


PAIR = """VALUE = {value}
RATE = 0.5
{more}if __name__ == '__main__':
    print(f'score: {{VALUE - abs(RATE - 0.3){bonus}}}')
"""


def test_an_optimizer_and_a_model_share_the_trials(toy):
    """The model has three of ten and changes code, knowing what the optimizer knows; that goes on from its code."""
    toy.write("solver.py", PAIR.format(value=1, more="", bonus=""))
    toy.commit()
    code = {"files": {"solver.py": PAIR.format(value=1, more="BONUS = 8\n", bonus=" + BONUS")}, "say": "a bonus"}
    steps(toy, e2=[code], e5=[step(-1, "worse")], e8=[step(-2, "worse, too")])
    agent = [word if word != "command" else "optimize+command" for word in toy.agent]
    output = toy.run(*agent, "--experiments", "8", "--baseline-runs", "1")
    assert "optimize varies constants; command changes code, in 30% of the trials" in output
    attempts = toy.journal("attempt")[1:]
    assert [attempt["agent"] for attempt in attempts] == ["command", *["optimize"] * 2] * 2 + ["command"]
    moved = [attempt["constants"] for attempt in attempts]
    assert [bool(constants) for constants in moved] == [False, True, True, False, True, True, False]
    assert toy.statuses()[1] == "keep" and any("BONUS" in constants for constants in moved if constants)
    first, second = brief_of(toy, "2"), brief_of(toy, "5")
    assert "## What the optimizer knows" in first and "The best step of each constant" not in first
    assert "The best step of each constant that was tried, best first:" in second


@pytest.mark.slow
def test_the_optimizer_goes_on_while_the_model_cannot_be_reached(toy):
    """In what it says, a service's own words: its turns go to the optimizer, and nothing ends."""
    toy.write("solver.py", PAIR.format(value=1, more="", bonus=""))
    toy.commit()
    away = {"files": {}, "say": "You've hit your usage limit. Try again in 3 hours.", "exit": 1}
    steps(toy, **{f"e{number}": [away] for number in range(2, 9)})
    agent = [word if word != "command" else "optimize+command" for word in toy.agent]
    toy.run(*agent, "--experiments", "4", "--baseline-runs", "1")
    assert [attempt["agent"] for attempt in toy.journal("attempt")[1:]] == ["optimize"] * 3


@pytest.mark.parametrize("agent", ["sweep", "optimize"])
def test_nothing_to_vary_is_said_before_the_baseline_runs(toy, refused, agent):
    toy.write("solver.py", "print('score: 1')\n")
    toy.commit()
    said = refused("--agent", agent, "--experiments", "2")
    assert f"{agent} would find nothing to vary in solver.py: it takes upper-case names" in said
    assert toy.journal("trial") == []


@pytest.mark.slow
def test_an_optimizer_with_nothing_left_is_asked_again_when_something_is_kept(toy):
    """Here it has no constants at first; the model's second edit brings some. Meanwhile the model has every turn."""
    plain = "if __name__ == '__main__':\n    print('score: {}')\n"
    toy.write("solver.py", plain.format(1))
    toy.write("check.py", "pass\n")
    toy.commit()
    worse = {"files": {"solver.py": plain.format(0)}, "say": "worse"}
    better = {"files": {"solver.py": PAIR.format(value=3, more="", bonus="")}, "say": "with constants"}
    steps(toy, e2=[worse], e3=[better])
    agent = [word if word != "command" else "optimize+command" for word in toy.agent]
    output = toy.run(*agent, "--experiments", "5", "--baseline-runs", "1")
    assert "optimize: optimize found no constant to vary" in output
    assert "; command continues until an edit is kept" in output
    assert [attempt["agent"] for attempt in toy.journal("attempt")[1:]] == [
        "command",
        "command",
        "optimize",
        "optimize",
    ]


@pytest.mark.slow
def test_a_model_whose_edits_are_refused_leaves_the_trial_to_the_optimizer(toy):
    toy.write("solver.py", PAIR.format(value=1, more="", bonus=""))
    toy.commit()
    steps(toy, **{f"e{number}": [step("1 +", "it does not parse")] for number in range(2, 7)})
    agent = [word if word != "command" else "optimize+command" for word in toy.agent]
    toy.run(*agent, "--experiments", "4", "--baseline-runs", "1")
    assert [attempt["agent"] for attempt in toy.journal("attempt")[1:]] == ["optimize"] * 3
    assert {entry["agent"] for entry in toy.journal("refused")} == {"command"}
