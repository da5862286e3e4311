"""`plan` and `check` on small repositories: what they prove, what they refuse, and that they leave nothing behind."""

import os
import subprocess
import sys

import pytest
from conftest import PROGRAM, ROOT, Toy, git, solver, step
from test_console import Terminal

from autoresearch.plan import draft

PARSER = """def parse(text):
    found = []
    for word in text.split():
        found = found + [word]
    return found
"""
FILES = {
    "pkg/__init__.py": "",
    "pkg/parser.py": PARSER,
    "work.py": "from pkg.parser import parse\nprint(len(parse('word ' * 100)))\n",
    "tests/test_parser.py": "import unittest\nfrom pkg.parser import parse\n\n\nclass TestParser(unittest.TestCase):\n"
    "    def test_words(self):\n        self.assertEqual(parse('a b'), ['a', 'b'])\n",
}

DRAFTER = """import sys
brief = sys.stdin.read()
assert "make parsing faster" in brief and "found = found + [word]" in brief
text = "from pkg.parser import parse\\nprint(len(parse('a ' * 999)))\\n"
open("autoresearch_workload.py", "w").write(text)
print("Parsing texts of many short words is to take less time; what is found must stay the same")
"""
# Its work is done by a process that is not its child.
LEFT_RUNNING = """import os, time
result, say = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        while time.process_time() < 0.2:
            pass
        os.write(say, b"7")
        {then}
    os._exit(0)
os.wait()
print(os.read(result, 1))
"""


@pytest.fixture
def library(tmp_path, environment) -> Toy:
    """A small Python library with tests, and without a program.md."""
    toy = Toy(tmp_path / "library", environment)
    for name in ("program.md", "solver.py", "check.py"):
        (toy.folder / name).unlink()
    for name, text in FILES.items():
        (toy.folder / name).parent.mkdir(exist_ok=True)
        toy.write(name, text)
    toy.commit()
    return toy


def called(toy: Toy, *arguments: str, expect: int = 0) -> str:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "loop.py"), *arguments], cwd=toy.folder, env=toy.environment, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    said = answer.stdout + answer.stderr
    assert answer.returncode == expect and "Traceback" not in said, said
    left = git(toy.folder, "branch", "--list", "autoresearch/*") + git(toy.folder, "for-each-ref", "refs/autoresearch")
    assert not left and not (toy.folder / ".autoresearch/.check").exists()
    assert len(git(toy.folder, "worktree", "list").splitlines()) == 1
    return said


def test_from_a_sentence_to_a_run(library):
    said = called(library, "plan", "make parsing faster", "--yes", "--time", "python work.py")
    program = (library.folder / "program.md").read_text()
    assert "editable: [pkg/parser.py]" in program and "guard: env PYTHONPATH=. python -m unittest" in program
    assert "Make parsing faster." in program and "metric: seconds" in program
    for text in (
        "the scorer now requires this output",
        "noise ",
        "in a night of 8 hours",
        "breaking  pkg/parser.py: noticed by",
    ):
        assert text in said
    assert "/python, " in said  # the interpreter
    assert "git add -f program.md autoresearch_score.py && git commit" in said
    assert git(library.folder, "status", "--porcelain") == "?? autoresearch_score.py\n?? program.md"
    assert "is not committed; trials see only committed files" in called(library, "check", expect=2)
    library.commit()
    faster = {"files": {"pkg/parser.py": "def parse(text):\n    return text.split()\n"}, "say": "split"}
    wrong = {"files": {"pkg/parser.py": "def parse(text):\n    return []\n"}, "say": "nothing"}
    library.plan_steps(e2=[wrong], e3=[faster])
    library.run_agent(3, "--keep-rule", "strict")
    assert library.statuses()[:2] == ["keep", "crash"]
    assert "the output is not what it was" in library.journal("verdict")[1]["reason"]
    assert library.statuses()[2] in ("keep", "discard")


@pytest.mark.parametrize(
    ("then", "said"),
    [("", "seconds: "), ("time.sleep(60)", "it left a process running, whose time cannot be counted: ")],
)
def test_work_that_is_done_by_a_process_that_nobody_waits_for(tmp_path, then, said):
    """The scorer waits for it, so that its time counts, but not for long."""
    (tmp_path / "bench.py").write_text(LEFT_RUNNING.format(then=then))
    scorer = draft.TIME.format(command=repr(f"{sys.executable} bench.py")).replace("GRACE = 30", "GRACE = 1")
    (tmp_path / "score.py").write_text(scorer if then else scorer.replace("GRACE = 1", "GRACE = 300"))
    ended = subprocess.run([sys.executable, "score.py"], cwd=tmp_path, capture_output=True, text=True)
    last = (ended.stdout + ended.stderr).strip().splitlines()[-1]
    assert last.startswith(said), last
    assert then or float(last.split()[1]) >= 0.2


@pytest.mark.slow
def test_plan_where_it_cannot_go_on(library, toy):
    assert "--yes accepts what is proposed" in called(library, "plan", "make parsing faster", expect=2)
    said = called(library, "plan", "x", "--yes", "--time", "python later.py", "--edit", "pkg/parser.py", expect=1)
    assert "the unchanged code has no score" in said and "nothing was written" in said and "later.py" in said
    assert not (library.folder / "program.md").exists()
    library.write("later.py", "")
    words = ("plan", "x", "--yes", "--edit", "pkg/parser.py")
    assert "later.py is not committed" in called(library, *words, "--time", "python later.py", expect=2)
    assert "there is no program.md" in called(library, "check", expect=2)
    assert "there is a program.md here" in called(toy, "plan", "x", expect=2)
    assert "the score command printed no figure" in called(library, *words, "--score", "python -c 'print(1)'", expect=1)


@pytest.mark.slow
def test_what_is_edited_is_not_what_is_measured(library):
    """The trap of an editable install: the command imports the checkout's copy, wherever it runs."""
    work = f"import sys\nsys.path.insert(0, {str(library.folder)!r})\n{FILES['work.py']}print('value: 3')\n"
    library.write("work.py", work)
    library.commit()
    words = ("plan", "better", "--yes", "--score", "PYTHONPATH= python work.py", "--edit", "pkg/parser.py",
             "--guard", "", "--sandbox", "off")  # fmt: skip
    assert "Is a lower or a higher number better? (--direction)" in called(library, *words, expect=2)  # nobody guesses
    said = called(library, *words, "--direction", "maximize", expect=1)
    assert "breaking  pkg/parser.py: NOT NOTICED" in said and "an editable install" in said
    assert not (library.folder / "program.md").exists()


@pytest.mark.slow
def test_deleting_is_no_gain(library):
    """A size says nothing of whether the code still works: without a check of that an empty file would win."""
    words = ("plan", "smaller", "--yes", "--size", "pkg/*.py", "--edit", "pkg/parser.py", "--guard")
    said = called(library, *words, "", expect=1)
    assert "an empty pkg/parser.py has a better score, and no guard fails" in said
    assert "breaking  pkg/parser.py: noticed by the guard" in called(library, *words, "python work.py")


@pytest.mark.slow
def test_tools_that_look_for_settings_upwards(library):
    """As cargo and pytest do, out of the worktree into the checkout: what is committed there can be read, no more."""
    work = "import pathlib\nfor above in pathlib.Path.cwd().parents:\n    for name in ('settings.toml', 'mine.toml'):\n"
    work += "        if (above / name).exists():\n            print((above / name).read_text())\n"
    library.write("settings.toml", "x = 1\n")
    library.write("pkg/parser.py", work)
    library.commit()
    words = ("plan", "faster", "--yes", "--time", "python -m pkg.parser", "--edit", "pkg/parser.py", "--guard", "")
    called(library, *words)
    library.write("mine.toml", "y = 2\n")
    assert "PermissionError" in called(library, *words, "--force", expect=1)


@pytest.mark.slow
def test_the_metric_that_a_command_prints(library):
    library.write("score.py", "import pkg.parser\nprint('accuracy = 0.93')\n")
    library.commit()
    words = ("plan", "parse more", "--yes", "--edit", "pkg/p*.py", "--score", "python score.py")
    said = called(library, *words)
    assert "the same each time: any gain" in said and "breaking  pkg/__init__.py" not in said
    program = (library.folder / "program.md").read_text()
    assert 'editable: ["pkg/p*.py"]' in program and "breaking  pkg/parser.py: noticed by" in said
    assert "metric: accuracy" in program and "direction: maximize" in program and "range: [0, 1]" in program


@pytest.mark.slow
def test_what_train_need_not_read(library):
    """`plan` hides what the score command names and `train` can do without; what edited code reads is said."""
    guess = "from pkg.parser import parse\nopen('out.tmp', 'w').write(' '.join(parse(open('data/in.txt').read())))\n"
    score = "import pathlib\nhere = pathlib.Path(__file__).parent\ntruth = (here / 'truth.txt').read_text().split()\n"
    score += "open('data/in.txt'), list(here.glob('*.csv'))\nwords = open('out.tmp').read().split()\n"
    score += "print('accuracy:', sum(a == b for a, b in zip(words, truth)) / 4)\n"
    (library.folder / "data").mkdir()
    (library.folder / "eval").mkdir()
    for name, text in {"guess.py": guess, "eval/score.py": score, "eval/truth.txt": "a b c\n", "eval/more.csv": "1\n",
                       "data/in.txt": "a b c d"}.items():  # fmt: skip
        library.write(name, text)
    library.commit()
    words = ("plan", "parse more", "--yes", "--edit", "pkg/parser.py", "--score", "python eval/score.py", "--guard", "")
    said = called(library, *words, "--train", "python guess.py")
    assert "hidden    eval/truth.txt, eval/*.csv: `score` names it, and `train` does not need it" in said
    assert "hidden    nothing of data/in.txt, which edited code in `train` can read" in said
    assert 'hidden: [eval/truth.txt, "eval/*.csv"]' in (library.folder / "program.md").read_text()
    library.commit()
    said = called(library, "check")
    assert "eval/" not in said.partition("hidden    ")[2] and "data/in.txt, which edited code in `train`" in said
    one = "python guess.py && python eval/score.py"
    said = called(library, *words[:6], one, *words[7:], "--force")
    assert "nothing of data/in.txt, eval/truth.txt, eval/*.csv, which edited code in `score` can read" in said


@pytest.mark.slow
def test_check(toy):
    assert "it works. Start with: " in called(toy, "check")
    toy.write("program.md", PROGRAM.replace("python check.py", "python -c 'raise SystemExit(3)'"))
    assert "the guard fails on the unchanged code" in called(toy, "check", expect=1)
    toy.write("program.md", PROGRAM.replace("metric: score", "metric: points"))
    assert "it names score" in called(toy, "check", expect=1)


@pytest.mark.slow
def test_plan_asks_at_a_terminal(library):
    words = f"{sys.executable} {ROOT / 'loop.py'} plan --plain --guard '' --edit pkg/parser.py"
    words = f"{words}; echo ended with $?; {words}; echo ended with $?"
    terminal = Terminal(["sh", "-c", f"trap '' INT; {words}"], library.folder, library.environment)
    terminal.wait_for("What is to be improved?")
    os.write(terminal.end, b"\x03")
    terminal.wait_for("ended with 130")
    assert "stopped; nothing was written" in terminal.raw
    terminal.raw = terminal.raw.partition("ended with 130")[2]  # which may hold the next question already
    terminal.wait_for("What is to be improved?")
    os.write(terminal.end, b"make parsing faster\n")
    terminal.wait_for("Which command is timed?")
    os.write(terminal.end, b"python work.py\n")
    assert "ended with 0" in terminal.finish()
    assert "make parsing faster".capitalize() in (library.folder / "program.md").read_text()


@pytest.mark.slow
def test_a_mended_task_goes_on_under_the_same_tag(toy):
    """As long as nothing was measured: then the run has a game, and it stays."""
    toy.write("program.md", PROGRAM.replace("metric: score", "metric: points"))
    toy.run(expect=2)
    toy.write("program.md", PROGRAM)
    toy.write("solver.py", solver(7))
    toy.commit()
    toy.plan_steps(e3=[step(8)])
    toy.run_agent(3)
    assert [row[1] for row in toy.rows()] == ["0.000000", "7.000000", "8.000000"]
    assert toy.statuses() == ["crash", "keep", "keep"]
    toy.write("program.md", PROGRAM.replace("maximize", "minimize"))
    assert "is not the one that run night began with" in toy.run(expect=2)


@pytest.mark.slow
def test_a_workload_that_an_agent_drafts(library):
    """It is told the goal and the sources, a person sees what it wrote, and it is proved like any other."""
    agent = library.folder.parent / "drafter.py"
    agent.write_text(DRAFTER)
    words = ("plan", "make parsing faster", "--yes", "--agent", "command", "--agent-command")
    said = called(library, *words, f"{sys.executable} {agent}")
    assert "print(len(parse('a ' * 999)))" in said
    agenda = (
        "Make parsing faster. Parsing texts of many short words is to take less time; what is found must stay the same."
    )
    assert agenda in (library.folder / "program.md").read_text()
    assert "git add -f program.md autoresearch_score.py autoresearch_workload.py" in said
    assert "PYTHONPATH=. python autoresearch_workload.py" in (library.folder / "autoresearch_score.py").read_text()
    (library.folder / "program.md").unlink()
    (library.folder / "autoresearch_score.py").unlink()
    assert "exists already" in called(library, *words, "true", expect=2)
    (library.folder / "autoresearch_workload.py").unlink()
    assert "command drafted no workload: autoresearch_workload.py was not changed" in called(
        library, *words, "true", expect=2
    )


@pytest.mark.slow
def test_a_pattern_may_fit_files_that_nothing_uses(library):
    """They are named, and the plan stands; a program that prints nothing and does nothing is not timed."""
    library.write("pkg/unused.py", "NOTHING = 1\n")
    library.commit()
    words = ("plan", "faster", "--yes", "--edit", "pkg/*.py", "--guard", "")
    said = called(library, *words, "--time", "python work.py")
    assert "no command uses" in said and "pkg/unused.py" in said and "it works" in said
    idle = called(library, *words, "--force", "--time", "python pkg/unused.py", expect=1)
    assert "prints something that depends on the work: --time COMMAND" in idle


@pytest.mark.slow
def test_a_proposed_file_that_nothing_uses_is_left_out(library):
    """It has the name that the goal speaks of, and nobody chose it."""
    library.write("pkg/old_parser.py", "NOTHING = 1\n" * 99)  # the largest, so it is proposed first
    library.commit()
    said = called(library, "plan", "make parsing faster", "--yes", "--guard", "", "--time", "python work.py")
    assert "pkg/old_parser.py cannot be edited, since nothing uses it" in said
    assert "  editable: [pkg/parser.py]\n" in (library.folder / "program.md").read_text()
