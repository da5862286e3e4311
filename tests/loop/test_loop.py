"""The loop's mechanics, on the toy task: keep, reset, record, continue, stop."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, git, solver, step, wait_for


def checkout_bytes(folder) -> dict[str, bytes]:
    """Every file of the checkout but the loop's own two places, and git's index and HEAD."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not {".git", ".autoresearch", "results.tsv"} & set(path.relative_to(folder).parts)
    }
    return {**files, "HEAD": (folder / ".git/HEAD").read_bytes(), "index": (folder / ".git/index").read_bytes()}


def test_improves_another_repository_with_a_guard(toy):
    toy.plan_steps(e2=[step(5)], e3=[step(30)], e4=[step(4)], e5=[step(9, "nine\tis\nmore")])
    before = checkout_bytes(toy.folder)
    toy.run_agent(5)
    assert [(row[1], row[3], row[4]) for row in toy.rows()] == [
        ("1.000000", "keep", "baseline"),
        ("5.000000", "keep", "set it to 5"),
        ("30.000000", "discard", "set it to 30"),  # better, but the guard failed
        ("4.000000", "discard", "set it to 4"),
        ("9.000000", "keep", "more"),
    ]
    assert "30 is forbidden" in toy.journal("verdict")[2]["reason"]
    assert git(toy.folder, "show", f"{toy.tip()}:solver.py") == solver(9).strip()
    assert git(toy.folder, "show", "refs/autoresearch/night/3:solver.py") == solver(30).strip()
    assert checkout_bytes(toy.folder) == before
    baseline, five, *others = toy.references()  # each edit starts from the champion
    parents = git(toy.folder, "rev-parse", f"{five}^", *(f"{other}^" for other in others)).split()
    assert parents == [baseline, five, five, five]
    assert [row[0] for row in toy.rows()] == [commit[:7] for commit in (baseline, five, *others)]
    toy.require_whole()


@pytest.mark.slow
def test_the_same_command_continues_and_a_new_tag_starts_another(toy):
    toy.plan_steps(otherwise=[step(5)], e3=[step(6)])
    toy.run_agent(2)
    assert "continued after 2 experiments" in toy.run_agent(3)
    assert toy.statuses() == ["keep", "keep", "keep"]
    assert "the run has its 3 experiments" in toy.run_agent(3)
    toy.require_whole()
    text = (toy.folder / "results.tsv").read_text()
    toy.run(*toy.agent, "--experiments", "1", "--tag", "other")
    assert len(toy.rows()) == 1  # results.tsv shows the run that is on
    toy.run("results")
    assert (toy.folder / "results.tsv").read_text() == text  # and the other is not lost


def test_without_a_tag_the_last_run_goes_on(toy):
    toy.plan_steps(otherwise=[step(5)])
    toy.run_agent(1)
    output = subprocess.run(
        [sys.executable, str(ROOT / "loop.py"), *toy.agent, "--experiments", "2"],
        cwd=toy.folder,
        env=toy.environment,
        capture_output=True,
        text=True,
    ).stdout
    assert "run night, continued after 1 experiment" in output and "2 experiments: 2 keep" in output


def test_a_refused_edit_goes_back_with_the_reason_and_costs_no_trial(toy):
    other = {"files": {"check.py": "pass\n"}, "say": "no more guard"}
    broken = {"files": {"solver.py": "VALUE = (\n"}, "say": "broken"}
    toy.plan_steps(e2=[other, step(7)], e3=[broken, step(8)], e4=[step(7), step(9)])
    output = toy.run_agent(4)
    assert toy.statuses() == ["keep", "keep", "keep", "keep"]
    assert "only solver.py may change, but the edit also touches check.py" in output
    assert "solver.py does not parse" in output
    assert "the same edit was tried before, as experiment 2 (keep)" in output
    assert git(toy.folder, "diff", "--name-only", "main", toy.tip()) == "solver.py"
    toy.require_whole()


@pytest.mark.parametrize(
    "mischief",
    [
        "git commit -qam mine",  # a commit of its own
        # the first touches another file
        "test -e ../once || { touch ../once; echo pass > check.py; git commit -qam mine; }",
        "git switch -q autoresearch/night 2>/dev/null || git checkout -q -B autoresearch/night; git commit -qam mine",
    ],
)
def test_an_agent_that_commits_by_itself(toy, mischief):
    """What is judged and kept is one commit on top of the champion, and only the edited file differs."""
    script = toy.folder.parent / "agent.sh"
    script.write_text(f"sed -i 's/VALUE = 1/VALUE = 5/' solver.py\n{mischief}\necho five\n")
    process = toy.start("--agent", "command", "--agent-command", f"sh {script}", "--experiments", "2")
    output, _ = process.communicate(timeout=120)
    if "once" in mischief:
        assert "only solver.py may change, but the edit also touches check.py" in output
    assert toy.statuses() == ["keep", "keep"], output
    assert git(toy.folder, "rev-parse", f"{toy.tip()}^") == git(toy.folder, "rev-parse", "main")
    assert git(toy.folder, "diff", "--name-only", "main", toy.tip()) == "solver.py"
    toy.require_whole()


def test_edits_that_cannot_be_tried(toy):
    """Each is refused with its reason; the agent begins anew and does the next thing, in the end a true edit."""
    mischief = {
        "rm solver.py": "solver.py is missing or not a plain file",
        "mv solver.py other.py; ln -s other.py solver.py": "also touches other.py",
        "chmod +x solver.py": "only comments or layout changed",
        "true": "nothing changed in solver.py",
    }
    count = toy.folder.parent / "count"
    count.write_text("0")
    cases = "".join(f"{number}) {command};;\n" for number, command in enumerate(mischief, 1))
    script = toy.folder.parent / "agent.sh"
    script.write_text(
        f"n=$(($(cat {count}) + 1))\necho $n > {count}\ngit checkout -q solver.py\nrm -f other.py\n"
        f"case $n in\n{cases}*) sed -i 's/VALUE = 1/VALUE = 5/' solver.py;;\nesac\n"
    )
    toy.run("--agent", "command", "--agent-command", f"sh {script}", "--experiments", "2")
    reasons = [entry["reason"] for entry in toy.journal("refused")]
    for message, reason in zip(mischief.values(), reasons, strict=True):
        assert message in reason
    assert toy.statuses() == ["keep", "keep"]
    toy.require_whole()


@pytest.mark.slow
def test_an_agent_that_never_corrects_its_edit_is_given_up(toy):
    toy.plan_steps(otherwise=[{"files": {}, "say": "nothing at all"}])
    output = toy.run_agent(2, expect=2)
    assert "nothing changed in solver.py" in output
    assert len(toy.journal("refused")) == 5 * (1 + 3)  # five proposals, each sent back three times
    toy.require_whole()


@pytest.mark.slow
def test_an_agent_that_fails_is_asked_again(toy):
    toy.plan_steps(e2=[step(5, "half an edit", exit=3), step(6)])
    output = toy.run_agent(2)
    assert "exit code 3: half an edit" in output
    assert toy.rows()[1][1:] == ["6.000000", toy.rows()[1][2], "keep", "set it to 6"]
    toy.require_whole()


def test_a_crash_is_a_row_and_the_night_goes_on(toy):
    reasons = {
        "raise ValueError('boom')\n": "training: ValueError: boom",
        "import atexit\natexit.register(print, 'last words')\n1 / 0\n": "training: ZeroDivisionError: division by zero",
        "raise SystemExit('the loss is not a finite number')\n": "training: the loss is not a finite number",
        "print('no memory')\nraise SystemExit(3)\n": "training: exit code 3: no memory",
        "import os\nos.kill(os.getpid(), 9)\n": "training: killed by SIGKILL",
        "import os\nos.kill(os.getpid(), 40)\n": "training: killed by signal 40",  # which has no name
        "VALUE = float('nan')\nprint('score:', VALUE)\n": "score is nan, not a finite number",
        "VALUE = 1.7e308\nprint('score:', VALUE)\n": "score is 1.7e+308, too large to compare",
        "print('nothing')\n": "train.log holds no line `score: NUMBER`",
    }
    plan = {f"e{n}": [{"files": {"solver.py": code}, "say": "crash it"}] for n, code in enumerate(reasons, 2)}
    toy.plan_steps(**plan, otherwise=[step(2)])
    toy.run_agent(len(reasons) + 2)
    assert [row[1:] for row in toy.rows()[1:-1]] == [["0.000000", "0.0", "crash", "crash it"]] * len(reasons)
    assert toy.statuses() == ["keep", *["crash"] * len(reasons), "keep"]
    assert [entry["reason"] for entry in toy.journal("verdict")[1:-1]] == [*reasons.values()]
    toy.require_whole()


LATE_LOOP = ROOT / "tests/loop/late_loop.py"
LATE = "import os, pathlib\npathlib.Path(os.environ['AUTORESEARCH_RUN_DIR'], 'late').touch()\n"  # its time is over


def test_a_trial_over_its_time_limit_is_ended_whole(toy):
    child = "import subprocess, time\np = subprocess.Popen(['sleep', '600'])\nprint(p.pid, flush=True)\n"
    child += f"{LATE}time.sleep(600)\n"
    toy.plan_steps(e2=[{"files": {"solver.py": child}, "say": "sleep"}])
    toy.run_agent(2, loop=LATE_LOOP, LATE=str(toy.runs / "trials/2/run/late"))
    assert toy.statuses() == ["keep", "crash"]
    assert "time limit of 200 s" in toy.journal("verdict")[1]["reason"]
    pid = int(toy.journal("verdict")[1]["reason"].rpartition(": ")[2])
    wait_for(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_trial_sees_no_keys(toy):
    spy = "import json, os\nprint('seen', json.dumps(dict(os.environ)))\n" + solver(2)
    toy.plan_steps(e2=[{"files": {"solver.py": spy}, "say": "look around"}])
    toy.run_agent(2, ANTHROPIC_API_KEY="sk-1", HF_TOKEN="hf-2", MY_SETTING="3", OMP_NUM_THREADS="2")
    seen = json.loads((toy.runs / "trials/2/train.log").read_text().splitlines()[0].removeprefix("seen "))
    assert not {"ANTHROPIC_API_KEY", "HF_TOKEN", "MY_SETTING"} & set(seen)
    assert seen["OMP_NUM_THREADS"] == "2"
    assert seen["AUTORESEARCH_SEED"] == "42"


# -- stopping. The trial waits for a file, so that the test decides what happens in its middle.

WAITING = """import os, pathlib, time
run = pathlib.Path(os.environ['AUTORESEARCH_RUN_DIR'])
(run / 'started').write_text(str(os.getpid()))
while not (run / 'release').exists():
    time.sleep(0.01)
"""


@pytest.fixture
def waiting(toy):
    """A loop that stands in the middle of its second trial, and the folder of that trial."""
    toy.plan_steps(e2=[{"files": {"solver.py": solver(2, before=WAITING)}, "say": "wait, then two"}], e3=[step(3)])
    process = toy.start(*toy.agent, "--experiments", "3")
    folder = toy.runs / "trials/2/run"
    wait_for(lambda: (folder / "started").exists() and (folder / "started").read_text())
    yield process, folder
    process.kill()
    process.wait()
    process.stdout.close()


def test_one_interrupt_finishes_the_running_trial(toy, waiting):
    process, folder = waiting
    process.send_signal(signal.SIGINT)
    assert "stopping after the running experiment" in read_until(process, "stopping")
    (folder / "release").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "you asked it to stop" in output
    assert toy.statuses() == ["keep", "keep"]
    toy.require_whole()
    toy.run_agent(3)
    assert toy.statuses() == ["keep", "keep", "keep"]


def read_until(process, word: str) -> str:
    text = ""
    while word not in text:
        line = process.stdout.readline()
        assert line, f"{word!r} never came:\n{text}"
        text += line
    return text


def continue_and_release(toy, folder) -> None:
    """Run the same command again; the trial that waits is let go once it has started anew."""
    before = (folder / "started").read_text()
    again = toy.start(*toy.agent, "--experiments", "3")
    wait_for(lambda: (folder / "started").exists() and (folder / "started").read_text() not in ("", before))
    (folder / "release").touch()
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output


@pytest.mark.slow
def test_two_interrupts_stop_now_and_the_trial_runs_again(toy, waiting):
    process, folder = waiting
    trial = int((folder / "started").read_text())
    process.send_signal(signal.SIGINT)
    read_until(process, "stopping")
    time.sleep(0.35)  # closer together they count as one
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not alive(trial)
    assert toy.statuses() == ["keep"]
    assert [entry["number"] for entry in toy.journal("interrupted")] == [2]
    continue_and_release(toy, folder)
    assert toy.statuses() == ["keep", "keep", "keep"]
    assert len(toy.references()) == 3
    toy.require_whole()


def test_an_interrupt_while_the_agent_thinks_ends_the_agent(toy):
    thinking = toy.folder.parent / "thinking"
    process = toy.start("--agent", "command", "--agent-command", f"echo $$ > {thinking}; sleep 600")
    wait_for(lambda: thinking.exists() and thinking.read_text())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped: you asked it to stop" in output
    assert not alive(int(thinking.read_text()))
    assert toy.statuses() == ["keep"] and toy.journal("refused") == []
    toy.require_whole()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_system_going_down_stops_now(toy, waiting, number):
    process, _ = waiting
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(toy.journal("interrupted")) == 1


@pytest.mark.slow
def test_killed_in_the_middle_of_a_trial_nothing_is_lost(toy, waiting):
    process, folder = waiting
    trial = int((folder / "started").read_text())
    process.kill()
    process.communicate()
    continue_and_release(toy, folder)
    assert not alive(trial)  # its keeper ended it, or the loop that goes on
    assert toy.statuses() == ["keep", "keep", "keep"]
    toy.require_whole()


def test_hours_end_the_night(toy):
    toy.plan_steps(otherwise=[step(2)])
    output = toy.run(*toy.agent, "--hours", "0")
    assert "the time limit of 0 hours is reached" in output
    assert toy.journal("attempt") == []


def test_a_line_cut_off_by_a_power_failure_is_dropped(toy):
    toy.plan_steps(e2=[step(0)], e3=[step(6)])
    toy.run_agent(2)
    journal = toy.runs / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    verdict = next(i for i in reversed(range(len(lines))) if b'"verdict"' in lines[i])
    journal.write_bytes(b"".join(lines[:verdict]) + lines[verdict][:40])
    results = toy.folder / "results.tsv"  # its line comes after the journal's, so it was not written either
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:-1]))
    toy.run_agent(3)
    assert toy.statuses() == ["keep", "discard", "keep"]
    assert len(toy.journal("attempt")) == 3
    toy.require_whole()


def test_hooks_and_signing_of_the_user_do_not_run(toy):
    hook = toy.folder / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    git(toy.folder, "config", "commit.gpgsign", "true")
    toy.plan_steps(e2=[step(5)])
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "keep"]


def test_notes_in_program_md_reach_the_agent_and_the_rules_stay(toy):
    """A later commit of the user's does not change them: trials run from the commit that the run began with."""
    toy.plan_steps(e2=[step(5)], e3=[step(30)])
    toy.run_agent(2)
    toy.write("program.md", (toy.folder / "program.md").read_text() + "Try even numbers.\n")
    toy.write("check.py", "")
    git(toy.folder, "commit", "-qm", "no rules", "check.py")
    toy.run_agent(3)
    assert toy.statuses() == ["keep", "keep", "discard"]  # 30 is forbidden
    assert "Try even numbers." not in (toy.runs / "proposals/2/brief.md").read_text()
    told = (toy.runs / "proposals/3/brief.md").read_text()
    assert "Try even numbers." in told and "set it to 5" in told and "higher is better" in told


# -- what has to be right about a trial before its number counts


def test_the_holdout_is_measured_of_what_is_kept_and_decides_nothing(toy):
    """Its number is recorded however bad it is; its failing takes the score away."""
    program = (toy.folder / "program.md").read_text()
    toy.write("program.md", program.replace("guard:", "holdout: python holdout.py\n  guard:"))
    toy.write(
        "holdout.py",
        "import solver\nassert solver.VALUE != 5, 'no holdout for five'\nprint('holdout_score:', -solver.VALUE)\n",
    )
    toy.commit()
    toy.plan_steps(e2=[step(3)], e3=[step(2)], e4=[step(5)])
    toy.run_agent(4)
    assert toy.statuses() == ["keep", "keep", "discard", "crash"]
    assert [entry["holdout"] for entry in toy.journal("verdict")] == [-1, -3, None, None]
    assert toy.journal("verdict")[3]["reason"] == "on the holdout: AssertionError: no holdout for five"
    assert toy.rows()[3][1] == "0.000000"
    toy.require_whole()


LUCK = "import os\nVALUE = {value} if os.environ['AUTORESEARCH_SEED'] == '42' else {other}\nprint('score:', VALUE)\n"


@pytest.mark.slow
def test_a_gain_too_good_to_be_true_is_believed_twice_or_not_at_all(toy):
    suspects = (
        ("1 / 0", "crash", "in quarantine: training: ZeroDivisionError"),
        (1, "discard", "in quarantine, with another seed: 1 equals"),
        (60, "keep", "55 is 54"),
    )
    toy.write("facts.py", "print('{\"implausible_gain\": 5}')")
    toy.write(
        "program.md",
        (toy.folder / "program.md").read_text().replace("time_limit", "describe: python facts.py\n  time_limit"),
    )
    toy.write("check.py", "")
    toy.commit()
    luck = [{"files": {"solver.py": LUCK.format(value=50, other=other)}, "say": "fifty"} for other, *_ in suspects]
    worse = {f"e{number}": [step(1 - number)] for number in range(2, 6)}
    toy.plan_steps(**worse, e6=[luck[0]], e7=[luck[1]], e8=[luck[2]], e9=[step(0.5)])
    output = toy.run_agent(9)
    for verdict, (_, status, reason) in zip(toy.journal("verdict")[5:8], suspects, strict=True):
        assert verdict["status"] == status and verdict["reason"].startswith(reason)
    assert output.count("which is suspiciously good") == 3 and toy.statuses()[8] == "discard"
    assert [(entry["number"], entry["gain"]) for entry in toy.journal("quarantine")] == [(6, 49), (7, 49), (8, 49)]
    toy.require_whole()


def test_a_trial_that_changes_what_it_is_scored_with_is_void(toy):
    """Unconfined, it can; it is seen all the same. The next trial has the right files again."""
    toy.plan_steps(
        e2=[
            {
                "files": {"solver.py": "open('check.py', 'w').close()\nopen('new.py', 'w').close()\n" + solver(30)},
                "say": "cheat",
            }
        ],
        e3=[step(30)],
        e4=[step(4)],
    )
    toy.run_agent(4, "--sandbox", "off")
    assert toy.statuses() == ["keep", "crash", "discard", "keep"]
    assert toy.journal("verdict")[1]["reason"] == "void: check.py, new.py changed while the trial ran"
    assert "30 is forbidden" in toy.journal("verdict")[2]["reason"]


def test_what_git_ignores_or_converts_is_no_change(toy):
    """Unconfined, a trial may leave what git ignores; and files in the user's line ends are as they were committed."""
    (toy.folder / "notes.txt").write_bytes(b"one\r\ntwo\r\n")
    toy.commit()
    toy.write(".gitattributes", "* text=auto\n")
    toy.commit()
    leaves = "import os\nos.makedirs('__pycache__', exist_ok=True)\nopen('__pycache__/x', 'w').close()\n"
    hides = (
        "open('.gitignore', 'a').write('*\\n')\nos.makedirs('a')\n"
        "open('a/.gitignore', 'w').write('*')\nopen('a/b', 'w').close()\n"
    )
    toy.plan_steps(
        e2=[{"files": {"solver.py": leaves + solver(2)}, "say": "leave"}],
        e3=[{"files": {"solver.py": leaves + hides.partition("\n")[2] + solver(3)}, "say": "hide"}],
    )
    toy.run_agent(3, "--sandbox", "off")
    assert toy.statuses() == ["keep", "keep", "crash"]
    assert toy.journal("verdict")[2]["reason"] == "void: a/.gitignore changed while the trial ran"


@pytest.mark.slow
def test_an_agent_that_leaves_disorder(toy):
    disorder = (
        ({".git": ""}, ""),  # the worktree is none any more
        ({".gitmodules": "", "\udcff\n": "x"}, "also touches"),
        ({"solver.py": "x = " + "(" * 5000 + ")" * 5000}, "does not parse"),
        ({"solver.py": "x = " + "+".join(["1"] * 100000)}, ""),
    )
    plan = {
        f"e{number}": [{"files": {"solver.py": solver(99), **files}, "say": "disorder"}, step(number)]
        for number, (files, _) in enumerate(disorder, 2)
    }
    toy.plan_steps(**plan, otherwise=[step(9)])
    toy.run_agent(len(disorder) + 2)
    assert toy.statuses() == ["keep"] * (len(disorder) + 2)
    refused = toy.journal("refused")
    assert len(refused) == len(disorder)
    assert all(reason in entry["reason"] for (_, reason), entry in zip(disorder, refused, strict=True))
    toy.require_whole()


@pytest.mark.slow
def test_disorder_between_two_calls(toy):
    """Locks that a git which was killed has left, and worktrees that somebody deleted or broke."""
    toy.plan_steps(**{f"e{number}": [step(number)] for number in range(2, 6)})
    toy.run_agent(2)
    for folder in (toy.folder / ".git/worktrees/worktree", toy.runs / "stage.git"):
        (folder / "index.lock").touch()
    (toy.runs / "stage/solver.py").unlink()  # which git has to put back
    toy.run_agent(3)
    shutil.rmtree(toy.runs / "stage")
    (toy.runs / "worktree/.git").unlink()
    toy.run_agent(4)
    shutil.rmtree(toy.runs / "worktree")
    toy.run_agent(5)
    assert toy.statuses() == ["keep"] * 5
    toy.require_whole()


def test_a_repository_that_is_edited_whole(toy):
    """Nothing is tracked but what may change: nothing to take back either."""
    program = (toy.folder / "program.md").read_text().replace("  guard: python check.py\n", "")
    for name in ("check.py", ".gitignore"):
        (toy.folder / name).unlink()
    toy.write("program.md", program.replace("[solver.py]", "[solver.py, program.md]"))
    toy.commit()
    toy.plan_steps(e2=[{"files": {"solver.py": "x ="}, "say": "broken"}, step(2)])
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "keep"]


def test_a_loop_whose_own_code_changes_stops(toy):
    own = toy.folder.parent / "own"
    for path in (ROOT / "loop.py", *ROOT.glob("autoresearch/**/*.py")):
        (own / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (own / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    tamper = f"open({str(own / 'autoresearch/judge.py')!r}, 'a').write('\\n')\n"
    toy.plan_steps(e2=[{"files": {"solver.py": tamper + solver(2)}, "say": "tamper"}], e3=[step(3)])

    def run() -> tuple[int, str]:
        process = toy.start(*toy.agent, "--experiments", "3", "--sandbox", "off", loop=own / "loop.py")
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    code, output = run()
    assert code == 2 and "the loop's own code changed while it ran" in output
    assert len(toy.rows()) == 2
    assert run()[0] == 0 and toy.statuses() == ["keep", "keep", "keep"]
    codes = [entry["code"] for entry in toy.journal("start")]
    assert len(codes) == len(set(codes)) == 2


# -- what is kept


@pytest.mark.slow
def test_lines_have_a_price_and_removing_them_is_worth_an_equal_score(toy):
    toy.write(
        "program.md",
        (toy.folder / "program.md").read_text().replace("---\nRaise", "simplicity: {gain: 1, lines: 2}\n---\nRaise"),
    )
    toy.commit()
    longer, shorter = "A = 1\nB = 2\nC = 3\n", "# nothing\n\n"
    toy.plan_steps(
        e2=[{"files": {"solver.py": solver(2, longer)}, "say": "three lines for 1"}],
        e3=[{"files": {"solver.py": solver(3, longer)}, "say": "three lines for 2"}],
        e4=[{"files": {"solver.py": solver(3, longer.replace("1", "7") + "# why\n")}, "say": "another number"}],
        e5=[{"files": {"solver.py": solver(3, shorter)}, "say": "without them"}],
        e6=[{"files": {"solver.py": "print('score: 3')\nVALUE = 2.9\n"}, "say": "shorter still"}],
    )
    toy.run_agent(6)
    assert toy.statuses() == ["keep", "discard", "keep", "discard", "keep", "keep"]
    reasons = [entry["reason"] for entry in toy.journal("verdict")]
    assert reasons[1] == "gain 1 is not above the 1.500000 required for 3 added lines"
    assert reasons[3] == "3 equals the champion's"
    assert reasons[4] == "3 is as good as the champion's 3, with 3 lines removed"
    assert [entry["lines"] for entry in toy.journal("attempt")] == [0, 3, 3, 0, -3, -1]
    toy.require_whole()


SHAKY = "import os\nVALUE = {value}\nprint('score:', VALUE + (1 if os.environ['AUTORESEARCH_SEED'] == '43' else 0))\n"


@pytest.mark.parametrize(
    ("rule", "statuses"), [("margin", ["keep", "discard", "keep"]), ("strict", ["keep", "keep", "keep"])]
)
def test_a_gain_within_the_noise_of_the_baseline(toy, rule, statuses):
    """The baseline scores 1 and 2, so its mean is 1.5 and its noise 0.71.

    Half a standard error of a single run against that is 0.43.
    """
    toy.write("solver.py", SHAKY.format(value=1))
    toy.commit()
    toy.plan_steps(
        e2=[{"files": {"solver.py": SHAKY.format(value=1.9)}, "say": "a little"}],
        e3=[{"files": {"solver.py": SHAKY.format(value=2.0)}, "say": "more"}],
    )
    toy.run_agent(3, "--keep-rule", rule, "--baseline-runs", "2")
    assert toy.statuses() == statuses
    assert toy.rows()[0][1] == "1.500000"
    assert [(entry["number"], entry["seed"], entry["score"]) for entry in toy.journal("measured")][:2] == [
        (1, 42, 1),
        (1, 43, 2),
    ]
    assert toy.journal("verdict")[0]["noise"] == pytest.approx(0.5**0.5)
    if rule == "margin":
        assert toy.journal("verdict")[1]["reason"] == "gain 0.400000 is not above the noise margin of 0.433013"
    toy.require_whole()


@pytest.mark.slow
def test_a_suspect_does_not_set_the_noise_that_it_is_judged_by(toy):
    """Its two scores lie far apart.

    Were that taken for noise, one line less would excuse the second, and later true gains would be refused.
    """
    toy.write("facts.py", 'print(\'{"implausible_gain": 5, "noise": 0.01}\')')
    toy.write(
        "program.md",
        (toy.folder / "program.md").read_text().replace("time_limit", "describe: python facts.py\n  time_limit"),
    )
    toy.write("check.py", "")
    toy.write("solver.py", solver(1, "A = 1\n"))
    toy.commit()
    lucky = {"files": {"solver.py": LUCK.format(value=50, other=0.5)}, "say": "fifty"}
    longer = [{"files": {"solver.py": solver(-number, "A = 1\n")}, "say": f"minus {number}"} for number in range(4)]
    toy.plan_steps(
        e2=[longer[0]],
        e3=[longer[1]],
        e4=[longer[2]],
        e5=[longer[3]],
        e6=[lucky],
        e7=[{"files": {"solver.py": solver(1.1, "A = 1\n")}, "say": "a true gain"}],
    )
    toy.run_agent(7)
    assert toy.statuses()[-2:] == ["discard", "keep"]
    assert (
        toy.journal("verdict")[5]["reason"]
        == "in quarantine, with another seed: 0.500000 is 0.500000 worse than the champion's 1"
    )


def test_an_edit_too_deep_to_be_counted(toy):
    """It parses and runs, but its lines cannot be laid out: the night goes on."""
    toy.plan_steps(e2=[{"files": {"solver.py": solver("+".join(["1"] * 900))}, "say": "a long sum"}], e3=[step(1000)])
    toy.run_agent(3)
    assert toy.statuses() == ["keep"] * 3


def test_a_run_of_version_0_1_goes_on(toy):
    """Its journal has other names for some things, and no form. What was measured stands, and the run ends whole."""
    toy.plan_steps(e2=[step(2)], e3=[step(0)], e4=[step(3)])
    toy.run_agent(3)
    journal = toy.runs / "journal.jsonl"
    first = {"external": "driven"}
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    old = [{first.get(name, name): value for name, value in line.items() if name != "form"} for line in lines]
    journal.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert "continued after 3 experiments" in toy.run_agent(4)
    assert toy.statuses() == ["keep", "keep", "discard", "keep"]
    toy.require_whole()


def test_a_journal_of_a_newer_version_is_refused(toy):
    toy.plan_steps(e2=[step(2)])
    toy.run_agent(1)
    with open(toy.runs / "journal.jsonl", "a") as journal:
        journal.write(json.dumps({"event": "stop", "form": 99, "time": 0, "reason": ""}) + "\n")
    assert "was written by a newer version" in toy.run("status", expect=2)
