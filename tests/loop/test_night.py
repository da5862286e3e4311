"""A night that never idles: proposals ahead, several trials at once, trials that were suspended."""

import json
import os
import re
import signal
import textwrap
import time
from pathlib import Path

import pytest
from conftest import Toy, git, wait_for

# Two constants far apart, so that an edit of one goes onto an edit of the other. It waits for what `before` says.
SOLVER = """A = {a}
# between them
# stand lines
# that nobody
# changes
B = {b}
if __name__ == '__main__':
{before}
    print(f'score: {{A + B}}')
"""
UNTIL = """import pathlib, time
journal = pathlib.Path({journal!r})
while not all(word in journal.read_text() for word in {words!r}):
    time.sleep(0.02)
"""


@pytest.fixture
def two(toy) -> Toy:
    toy.write("solver.py", SOLVER.format(a=1, b=1, before=""))
    toy.write("check.py", "")
    toy.commit()
    return toy


def edit(toy, a, b, *words: str, between: bool = False) -> dict:
    """An edit whose trial waits until the journal holds all of the words. between: it says so between the constants."""
    until = UNTIL.format(journal=str(toy.runs / "journal.jsonl"), words=words) if words else ""
    text = SOLVER.format(a=a, b=b, before="" if between else textwrap.indent(until, "    "))
    return {"files": {"solver.py": text.replace("# stand lines\n", until) if between else text}, "say": f"A {a}, B {b}"}


def run(toy, experiments: int, *arguments: str) -> str:
    return toy.run(
        *toy.agent,
        "--experiments",
        str(experiments),
        "--baseline-runs",
        "1",
        "--repairs",
        "0",
        "--sandbox",
        "off",
        *arguments,
        seconds=240,
    )


def seen(toy, number: int) -> str:
    """What the agent was told for an experiment last."""
    return max((toy.runs / "proposals").glob(f"{number}*/brief.md"), key=lambda path: path.stat().st_mtime).read_text()


def source(toy, reference: str) -> str:
    return git(toy.folder, "show", f"{reference}:solver.py")


def constants(toy, reference: str) -> list[str]:
    return re.findall(r"^[AB] = (\d+)", source(toy, reference), re.MULTILINE)


def test_the_agent_works_while_a_trial_trains(two):
    """The second trial ends only when the third edit is there, which is then moved onto what the second one won."""
    two.plan_steps(e2=[edit(two, 2, 1, '"number": 3, "commit"')], e3=[edit(two, 1, 2)], e4=[edit(two, 0, 0)])
    run(two, 3, "--lookahead", "1")
    assert [float(row[1]) for row in two.rows()] == [2.0, 3.0, 4.0] and two.statuses() == ["keep"] * 3
    baseline, second, third = (two.journal("attempt")[number]["commit"] for number in range(3))
    assert two.journal("attempt")[2]["parent"] == baseline  # as it was proposed
    moved = two.journal("moved")[0]
    assert (moved["number"], moved["was"], moved["parent"]) == (3, third, second) and two.tip() == moved["commit"]
    assert git(
        two.folder,
        "rev-parse",
        f"{two.tip()}^",
        "refs/autoresearch/night/3",
        f"refs/autoresearch/night/3-on-{baseline[:7]}",
    ).split() == [second, two.tip(), third]  # nothing is lost
    assert constants(two, two.tip()) == ["2", "2"]
    assert two.journal("verdict")[2]["standing"] == 3.0  # compared with the champion that it ran on
    told = seen(two, 3)
    assert "In flight" in told and "A 2, B 1" in told.partition("In flight")[2]


def test_without_lookahead_one_comes_after_the_other(two):
    two.plan_steps(e2=[edit(two, 2, 1)], e3=[edit(two, 2, 2)])
    run(two, 3, "--lookahead", "0")
    names = [entry["event"] for entry in two.journal() if entry["event"] in ("attempt", "trial", "verdict")]
    assert names == ["attempt", "trial", "verdict"] * 3
    two.require_whole()


def test_an_edit_that_does_not_go_onto_the_champion_goes_back_to_its_agent(two):
    two.plan_steps(e2=[edit(two, 2, 1, '"number": 3, "commit"')], e3=[edit(two, 5, 1), edit(two, 6, 1)])
    output = run(two, 3, "--lookahead", "1")
    assert "experiment 3 goes back to command: experiment 2 was kept while this edit waited" in output
    assert [float(row[1]) for row in two.rows()] == [2.0, 3.0, 7.0]
    first, second = (entry for entry in two.journal("attempt") if entry["number"] == 3)
    assert second["parent"] == two.journal("attempt")[1]["commit"] and two.tip() == second["commit"]
    assert len([entry for entry in two.journal("trial") if entry["number"] == 3]) == 1  # it never ran on the old one
    assert git(two.folder, "rev-parse", f"refs/autoresearch/night/3-on-{first['parent'][:7]}") == first["commit"]
    assert "+A = 5" in seen(two, 3)  # the agent is shown what it had


def test_two_workers(two):
    """The third beat the baseline that it was built on, but the second was kept meanwhile: the third runs again."""
    two.plan_steps(
        e2=[edit(two, 2, 1, '"trial", "time"', '"number": 3, "worker"')],
        e3=[edit(two, 1, 3, '"number": 2, "status": "keep"', between=True)],
    )
    run(two, 3, "--workers", "2")
    assert two.statuses() == ["keep"] * 3 and [float(row[1]) for row in two.rows()] == [2.0, 3.0, 5.0]
    assert {entry["worker"] for entry in two.journal("trial")} == {0, 1}
    assert [entry["number"] for entry in two.journal("trial")] == [1, 2, 3, 3]
    assert "testing it on top of that" in two.journal("rerun")[0]["reason"]
    assert constants(two, two.tip()) == ["2", "3"] and two.journal("start")[0]["workers"] == 2
    text = (two.folder / "results.tsv").read_text()
    two.run("results")
    assert (two.folder / "results.tsv").read_text() == text


def test_what_lost_to_its_own_base_is_not_run_again(two):
    two.plan_steps(e2=[edit(two, 2, 1, '"number": 3, "worker"')], e3=[edit(two, 1, 0, '"number": 2, "status": "keep"')])
    run(two, 3, "--workers", "2")
    assert sorted(two.statuses()) == ["discard", "keep", "keep"] and not two.journal("rerun")
    assert "worse than the champion's 2" in two.journal("verdict")[2]["reason"]


@pytest.mark.slow
def test_verdicts_out_of_order_are_rebuilt_in_order(two):
    two.plan_steps(e2=[edit(two, 1, 0, '"number": 3, "status": "discard"')], e3=[edit(two, 0, 1)])
    run(two, 3, "--workers", "2")
    assert [entry["number"] for entry in two.journal("verdict")] == [1, 3, 2]
    text = (two.folder / "results.tsv").read_text()
    two.run("results")
    assert (two.folder / "results.tsv").read_text() == text
    run(two, 3, "--workers", "2")  # and the run is continued, not refused


def test_an_interrupt_while_one_trains_and_the_agent_thinks(two):
    """The agent is ended; the trial comes to its verdict."""
    two.plan_steps(e2=[edit(two, 2, 1, '"go on"')])
    thinks = two.folder.parent / "thinks.py"
    thinks.write_text(
        f"import os, re, runpy, sys, time\n"
        f"brief = open(os.environ['AUTORESEARCH_BRIEF']).read()\n"
        f"number = re.match(r'# Experiment (\\d+)', brief).group(1)\n"
        f"if number == '3':\n    open({str(two.folder.parent / 'thinking')!r}, 'w').close()\n    time.sleep(60)\n"
        f"sys.argv = ['agent.py', {str(two.plan)!r}]\nrunpy.run_path({str(two.folder.parent / 'agent.py')!r})\n"
    )
    arguments = [*two.agent, "--experiments", "5", "--baseline-runs", "1", "--sandbox", "off", "--lookahead", "1"]
    arguments[3] = arguments[3].split()[0] + f" {thinks}"
    process = two.start(*arguments)
    wait_for((two.folder.parent / "thinking").exists)
    process.send_signal(signal.SIGINT)
    line = next(line for line in process.stdout if "stopping after the running experiment" in line)
    assert line
    with open(two.runs / "journal.jsonl", "a") as journal:
        journal.write('{"event": "go on", "time": 0}\n')
    process.communicate(timeout=60)
    assert process.returncode == 0 and two.statuses() == ["keep", "keep"]
    assert len(two.journal("attempt")) == 2


def test_another_number_of_workers_is_another_game(two, refused):
    two.plan_steps(otherwise=[edit(two, 1, 1)])
    run(two, 1, "--workers", "2")
    output = refused(*two.agent, "--experiments", "2", "--workers", "1")
    assert "has 2 workers" in output and "--workers 2" in output
    assert two.run(*two.agent, "--experiments", "1")  # without saying so it goes on as it was


CARDS = {"0": "card A", "1": "card A", "2": "card B"}


@pytest.fixture
def cards(two) -> Toy:
    """A game that says which device it would use, and a trial that writes down which one it got."""
    two.write(
        "program.md",
        (two.folder / "program.md").read_text().replace("  train:", "  describe: python describe.py\n  train:"),
    )
    two.write(
        "describe.py",
        f"import json, os\nprint(json.dumps({{'device': {CARDS}[os.environ['CUDA_VISIBLE_DEVICES']]}}))\n",
    )
    two.write(
        "solver.py",
        SOLVER.format(
            a=1,
            b=1,
            before="    from os import environ\n"
            "    print('on', environ['CUDA_VISIBLE_DEVICES'], environ['CUDA_DEVICE_ORDER'])",
        ),
    )
    two.commit()
    return two


def test_gpus(cards):
    def on(a, b, *words):
        text = edit(cards, a, b, *words)
        before = "    import os\n    print('on', os.environ['CUDA_VISIBLE_DEVICES'])\n    if __name__"
        text["files"]["solver.py"] = (
            text["files"]["solver.py"]
            .replace("    if __name__", before)
            .replace(
                "    print(f'score",
                "    import os\n    print('on', os.environ['CUDA_VISIBLE_DEVICES'])\n    print(f'score",
            )
        )
        return text

    cards.plan_steps(e2=[on(0, 1, '"number": 3, "worker"')], e3=[on(1, 0, '"number": 2, "status"')])
    run(cards, 3, "--gpus", "1,0")
    logs = {number: (cards.runs / f"trials/{number}/train.log").read_text() for number in (1, 2, 3)}
    assert "on 1 PCI_BUS_ID" in logs[1] and sorted(re.search(r"on (\d)", logs[number])[1] for number in (2, 3)) == [
        "0",
        "1",
    ]
    assert cards.journal("start")[0]["gpus"] == "1,0"


@pytest.mark.parametrize(
    "gpus, message",
    [
        ("0,2", "GPU 2 is a card B, the first one a card A"),
        ("zero", "--gpus takes nvidia-smi numbers"),
        ("0,0", "--gpus takes nvidia-smi numbers"),
    ],
)
def test_gpus_that_do_not_go_together(cards, refused, gpus, message):
    assert message in refused(*cards.agent, "--experiments", "1", "--gpus", gpus)


def plan_a_slow_edit(two) -> tuple[Path, Path]:
    """An edit each of whose runs writes its process to the first file, then waits until there is the second."""
    started, release = two.folder.parent / "started", two.folder.parent / "release"
    slow = edit(two, 2, 1)
    slow["files"]["solver.py"] = slow["files"]["solver.py"].replace(
        "    print(f'score",
        f"""    import os, pathlib, time
    with open({str(started)!r}, 'a') as file:
        print(os.getpid(), file=file)
    while not pathlib.Path({str(release)!r}).exists():
        time.sleep(0.02)
    print(f'score""",
    )
    two.plan_steps(e2=[slow])
    return started, release


def suspend(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)  # what is tested: that this time passes
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("who", [pytest.param("loop", marks=pytest.mark.slow), "trial"])
def test_a_trial_that_was_suspended_runs_again(two, who):
    """The loop stopped with SIGSTOP, as on a suspended machine. A trial that is stopped may have done that itself."""
    started, release = plan_a_slow_edit(two)
    process = two.start(*two.agent, "--experiments", "2", "--baseline-runs", "1", "--sandbox", "off")
    wait_for(lambda: started.exists() and started.read_text().endswith("\n"))
    stopped = process.pid if who == "loop" else int(started.read_text().split()[-1])
    suspend(stopped, 6 if who == "loop" else 1.5)
    release.touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and ("experiment 2: it was suspended for" in output) == (who == "loop")
    runs = [1, 2, 2] if who == "loop" else [1, 2]
    assert [entry["number"] for entry in two.journal("trial")] == runs and len(two.journal("rerun")) == len(runs) - 2
    assert two.statuses() == ["keep", "keep"]
    two.require_whole()


def test_the_time_is_accounted_for(two):
    two.plan_steps(e2=[edit(two, 2, 1)], e3=[edit(two, 2, 2)])
    run(two, 3)
    state = json.loads(two.run("status", "--json"))
    assert sum(state["seconds"].values()) == pytest.approx(state["wall"] * state["workers"], abs=0.01)
    assert state["seconds"]["training"] > 0 and state["seconds"]["agent"] > 0 and state["seconds"]["stopped"] == 0


def test_a_crash_is_repaired_on_top_of_what_was_kept_meanwhile(two):
    """The third crashes while the second, beside it, still runs.

    When the agent is asked to repair it the second has been kept.
    """
    broken = edit(two, 1, 3, '"number": 2, "status": "keep"', between=True)
    broken["files"]["solver.py"] = broken["files"]["solver.py"].replace("B = 3", "B = 1 / 0")
    two.plan_steps(e2=[edit(two, 2, 1, '"number": 3, "worker"')], e3=[broken, {"files": {}, "say": "nothing"}])
    agent, does = two.folder.parent / "agent.py", 'for name, text in step["files"].items():'
    repairs = (
        'if "in trial" in brief or "crashed" in brief and number == "3":\n'
        '    text = open("solver.py").read()\n'
        '    if "1 / 0" in text:\n'
        '        step = {"files": {"solver.py": text.replace("1 / 0", "3")}, "say": "repaired"}\n'
    )
    agent.write_text(agent.read_text().replace(does, repairs + does))
    two.run(
        *two.agent,
        "--experiments",
        "3",
        "--baseline-runs",
        "1",
        "--repairs",
        "1",
        "--sandbox",
        "off",
        "--workers",
        "2",
        seconds=240,
    )
    assert two.statuses() == ["keep"] * 3 and constants(two, two.tip()) == ["2", "3"]
    assert [float(row[1]) for row in two.rows()] == [2.0, 3.0, 5.0]


def test_a_simplification_is_compared_with_its_own_base(two):
    """Two lines less at an equal score are kept, whatever was kept beside it; then they have to hold on top of that."""
    shorter = edit(two, 1, 1, '"number": 2, "status": "keep"')
    shorter["files"]["solver.py"] = shorter["files"]["solver.py"].replace("# that nobody\n# changes\n", "")
    two.plan_steps(e2=[edit(two, 2, 1, '"number": 3, "worker"')], e3=[shorter])
    run(two, 3, "--workers", "2")
    assert two.journal("verdict")[1]["status"] == "keep"


@pytest.mark.slow
def test_the_first_of_several_runs_of_a_trial_was_suspended(two):
    """`repeats: 2`: what comes after it in the same trial does not make up for it."""
    started, release = plan_a_slow_edit(two)
    program = (two.folder / "program.md").read_text()
    two.write("program.md", program.replace("  metric:", "  repeats: 2\n  metric:"))
    two.commit()
    process = two.start(*two.agent, "--experiments", "2", "--baseline-runs", "1", "--sandbox", "off")
    wait_for(lambda: started.exists() and started.read_text().endswith("\n"))
    suspend(process.pid, 6)
    release.touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "experiment 2: it was suspended for" in output
    assert len(two.journal("rerun")) == 1 and two.statuses() == ["keep", "keep"]
    assert started.read_text().count("\n") == 3, "the suspended trial's second run was not needed"


@pytest.mark.slow
def test_a_baseline_that_was_suspended_in_its_second_run_runs_again(two):
    started, release = two.folder.parent / "started", two.folder.parent / "release"
    waits_the_second_time = f"""    import os, pathlib, time
    with open({str(started)!r}, 'a') as file:
        print(os.getpid(), file=file)
    second = pathlib.Path({str(started)!r}).read_text().count('\\n') == 2
    while second and not pathlib.Path({str(release)!r}).exists():
        time.sleep(0.02)"""
    two.write("solver.py", SOLVER.format(a=1, b=1, before=waits_the_second_time))
    two.commit()
    process = two.start(*two.agent, "--experiments", "1", "--baseline-runs", "2", "--sandbox", "off")
    wait_for(lambda: started.exists() and started.read_text().count("\n") == 2)
    suspend(process.pid, 6)
    release.touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "experiment 1: it was suspended for" in output
    assert two.statuses() == ["keep"] and len(two.journal("rerun")) == 1
