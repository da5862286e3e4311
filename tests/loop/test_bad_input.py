"""A user's mistakes and a machine's faults: a message that says what to do, exit code 2, nothing lost."""

import json
import os
import subprocess
import sys

import pytest
from conftest import HANGS, PROGRAM, ROOT, git, solver, step, wait_for


def test_a_mistake_ends_the_process_with_a_message_and_no_traceback(tmp_path, environment):
    answer = subprocess.run(
        [sys.executable, str(ROOT / "loop.py")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 2 and answer.stderr.startswith("error: ") and answer.stdout == ""
    assert "is not in a git repository" in answer.stderr and "git init" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_no_commits_yet(tmp_path, refused):
    git(tmp_path, "init", "-q")
    said = refused(folder=tmp_path)
    assert "no commit yet" in said and "git add -A && git commit" in said


def test_no_git_identity(toy, refused):
    (toy.folder.parent / "home/.gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")
    said = refused()
    assert "git does not know who commits" in said and "git config user.name" in said
    assert not (toy.folder / ".autoresearch").exists()


def test_a_branch_with_other_work(toy, refused):
    git(toy.folder, "branch", "autoresearch/night")
    assert "git branch -D autoresearch/night" in refused()
    assert not (toy.folder / "results.tsv").exists()


def test_a_branch_that_leaves_no_room_for_the_runs(toy, refused):
    git(toy.folder, "branch", "autoresearch")
    assert "git branch -m autoresearch NEW" in refused() and not (toy.runs / "journal.jsonl").exists()


def test_two_loops_on_one_tag(toy, refused):
    toy.write("solver.py", "import time\nVALUE = 1\ntime.sleep(600)\n")
    toy.commit()
    first = toy.start()
    try:
        wait_for(lambda: (toy.runs / "trials/1/train.log").exists())
        output = refused()
        assert (
            "a loop is already running on tag night" in output
            and "loop.py stop --tag night" in output
            and f"process {first.pid}" in output
        )
    finally:
        first.terminate()
        first.communicate(timeout=60)
    assert len(toy.journal("attempt")) == 1


def test_a_dirty_checkout_is_not_touched(toy):
    toy.write("solver.py", solver(99))
    toy.write("notes.txt", "mine")
    toy.plan_steps(e2=[step(5)])
    output = toy.run_agent(2)
    assert "solver.py has uncommitted changes, which the run ignores" in output
    assert (toy.folder / "solver.py").read_text() == solver(99)
    assert (toy.folder / "notes.txt").read_text() == "mine"
    assert [row[1] for row in toy.rows()] == ["1.000000", "5.000000"]


def test_an_edited_file_that_does_not_parse_in_the_repository(toy, refused):
    toy.write("solver.py", "def (:\n")
    toy.commit()
    output = refused()
    assert "solver.py does not parse" in output and "(line 1)" in output and "Fix it, commit" in output
    assert toy.journal("attempt") == []
    toy.write("solver.py", solver(1))
    toy.commit()
    toy.plan_steps()
    toy.run_agent(1)  # nothing was measured, so the run begins with the corrected commit
    assert toy.statuses() == ["keep"]
    toy.require_whole()


def test_a_baseline_that_crashes(toy):
    toy.write("solver.py", "VALUE = 1\nraise SystemExit('no luck')\n")
    toy.commit()
    output = toy.run(expect=2)
    assert all(text in output for text in ("the baseline crashed", "no luck", "train.log", "loop.py doctor"))
    assert toy.statuses() == ["crash"]
    toy.require_whole()


def test_a_results_file_of_something_else(toy, refused):
    theirs = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\nabcdef1\t0.997900\t44.0\tkeep\tbaseline\n"
    toy.write("results.tsv", theirs)
    assert "mv results.tsv results-old.tsv" in refused()
    assert (toy.folder / "results.tsv").read_text() == theirs


def test_an_edited_results_file_is_not_replaced(toy, refused):
    toy.plan_steps(e2=[step(5)])
    toy.run_agent(2)
    text = (toy.folder / "results.tsv").read_text() + "my own note\n"
    toy.write("results.tsv", text)
    assert "was not written by this loop" in refused(*toy.agent, "--experiments", "3")
    assert (toy.folder / "results.tsv").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agent", "nobody"], "there is no agent 'nobody'; choose one of auto, claude-api, claude-code"),
        (["--agent", "command"], "--agent command needs the program"),
        (["--agent", "sweep", "--agent-command", "x"], "--agent-command is for --agent command"),
        (["--tag", "../up"], "'../up' is not a valid tag"),
        (["--experiments", "0"], "--experiments"),
        (["--bogus"], "--bogus"),
        (["results"], "there is no run night here"),
    ],
)
def test_wrong_arguments(toy, refused, arguments, message):
    assert message in refused(*arguments)
    assert not (toy.folder / ".autoresearch").exists()


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ("task: [", "is not YAML"),
        ("task: 3", "must have settings"),
        ("task: {editable: [a.py], train: x, metric: m, colour: red}", "unknown settings colour"),
        ("task: {editable: [a.py], metric: m}", "lacks train"),
        ("task: {editable: [a.py], train: x, metric: m, direction: up}", "must be minimize or maximize"),
        ("task: {editable: [a.py], train: x, metric: m, time_limit: soon}", "must be a number of seconds"),
        ("task: {editable: 7, train: x, metric: m}", "must be a list of names"),
        ("task: {editable: [a.py, 2], train: x, metric: m}", "must be a list of names"),
        ("task: {editable: [/etc/a.py], train: x, metric: m}", "/etc/a.py lies outside the repository"),
        ("task: {editable: [../a.py], train: x, metric: m}", "../a.py lies outside the repository"),
        ("task: {editable: [a.py], trian: x, metric: m}", "unknown settings trian (did you mean train?)"),
        ("task: {editable: [a.py], 1: x, on: y, metric: m}", "unknown settings 1"),
        ("task: {editable: [a.py], train: true, metric: m}", 'not True; put it in quotes: train: "true"'),
        ("task: {editable: [a.py], train: x, metric: 3}", 'put it in quotes: metric: "3"'),
        ("task: {editable: [a.py], train: x, metric: 2026-13-45}", "is not YAML"),
        ("task: {editable: [a.py], train: x, metric: my number}", "must be a name of letters"),
        ("task: {editable: [a.py], train: x, metric: m, direction: higher}", "did you mean maximize?"),
        ("task: {editable: [a.py], train: x, metric: m, time_limit: yes}", "must be a number of seconds"),
        ("task: {editable: [a.py], train: x, metric: m, time_limit: .inf}", "must be a number of seconds"),
        ("task: {editable: [a.py], train: x, metric: m, referee: 1}", "must be true or false"),
        ("task: {editable: [a.py], train: [x], metric: m}", "must be a shell command"),
        ("task: {editable: [a.py], train: '  ', metric: m}", "lacks train"),
        ("metric: m", "Put metric below `task:`"),
        ("tasks: {metric: m}", "unknown settings tasks (did you mean task?)"),
        ("stages: {refine: 3}", "has no `task:` in its front matter"),
        ("task: {editable: [solver.pyy], train: x, metric: m}", "there is no such file in"),
        ("task: {editable: [sover.py], train: x, metric: m}", "did you mean solver.py?"),
        ("task: {editable: ['src/*.py'], train: x, metric: m}", "src/*.py fits no committed file"),
        ("task: {editable: [src], train: x, metric: m}", "names the folder src"),
        ("task: {editable: [./src/new.py], train: x, metric: m}", "git add -f src/new.py && git commit"),
        (
            "task: {editable: [solver.py], train: python src/new.py, metric: m}",
            "`train` in program.md names src/new.py",
        ),
        ("task: {editable: [a.py], train: 'x \"', metric: m}", "must be a shell command"),
        ("task: {editable: [solver.py], train: 7, metric: m}", "must be a shell command"),
        ("simplicity: 7", "must hold two numbers"),
        ("simplicity: {gain: 0.1}", "must hold two numbers"),
        ("simplicity: {gain: 0.1, lines: 0}", "`lines` above 0"),
        ("simplicty: {gain: 0.1, lines: 1}", "unknown settings simplicty"),
    ],
)
def test_wrong_front_matter(toy, refused, front, message):
    toy.write("program.md", f"---\n{front}\n---\nAgenda.\n")
    (toy.folder / "src").mkdir()
    toy.write("src/new.py", "")
    assert message in refused()
    assert toy.journal() == []


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (None, "there is no program.md in"),
        ("Raise the number.\n", "has no `task:` in its front matter"),
        ("task:\n  editable: [solver.py]\n", "is not in its front matter"),
        ("---\ntask: {metric: m}\nRaise it.\n", "is not closed"),
        ("---\ntask: {metric: m}\n---\n".encode("utf-16"), "save it as UTF-8"),
    ],
)
def test_a_program_md_that_says_nothing(toy, refused, program, message):
    """Never a traceback, and never the language-model game of this project."""
    (toy.folder / "program.md").unlink()
    if program:
        (toy.folder / "program.md").write_bytes(program if isinstance(program, bytes) else program.encode())
    said = refused()
    assert message in said and ("uv run loop.py plan" in said) == ("in its front" in said or not program)


def test_a_program_md_as_windows_writes_it_in_a_folder_of_a_monorepo(toy):
    """Byte order mark, line ends of Windows, `./`; its paths and commands are relative to its folder."""
    (toy.folder / "program.md").unlink()
    package = toy.folder / "packages/one"
    package.mkdir(parents=True)
    for name in ("solver.py", "check.py"):
        (toy.folder / name).rename(package / name)
    toy.write("packages/one/program.md", "\ufeff" + PROGRAM.replace("[solver", "[./solver").replace("\n", "\r\n"))
    toy.commit()
    toy.plan_steps(e2=[{"files": {"packages/one/solver.py": solver(5)}, "say": "five"}], e3=[step(6)])
    below, toy.folder = toy.folder, package
    toy.run_agent(2)
    toy.folder = below
    assert toy.statuses() == ["keep", "keep"]
    assert "packages/one/solver.py" in (toy.runs / "proposals/2/brief.md").read_text()
    toy.write("program.md", "---\nstages: nonsense\n---\n")  # of another game, which is not this one's
    toy.folder = package
    assert json.loads(toy.run("wait", "--json"))["stage"] == "explore"
    toy.folder = below
    (toy.folder / "program.md").unlink()
    toy.require_whole()


@pytest.mark.slow
def test_what_the_edited_code_prints_is_only_a_log(toy):
    """A score command beside no training; the edit prints a score of its own, and the committed scorer the last one."""
    toy.write("judge.py", "import solver\nprint('METRIC score =', solver.VALUE, 'points')\n")
    program = PROGRAM.replace("train: python solver.py", "score: python judge.py")
    toy.write("program.md", program)
    toy.commit()
    toy.plan_steps(e2=[step(5)], e3=[{"files": {"solver.py": solver(4, "print('score: 99')\n")}, "say": "claims 99"}])
    toy.run_agent(3)
    assert [row[1] for row in toy.rows()] == ["1.000000", "5.000000", "4.000000"]
    assert toy.statuses() == ["keep", "keep", "discard"]


def test_a_command_that_is_not_there(toy):
    toy.write("program.md", (toy.folder / "program.md").read_text().replace("python solver.py", "no-such-program"))
    assert "cannot start `no-such-program`: there is no program no-such-program" in toy.run(
        "--sandbox", "off", expect=2
    )


def test_who_is_fenced_does_not_switch_the_sandbox_off(toy, refused):
    assert "AUTORESEARCH_FENCED is set" in refused("--sandbox", "off", AUTORESEARCH_FENCED="1")


def test_a_slip_in_program_md_does_not_end_the_night(toy):
    """The task was read when the night began; what is read again for each proposal is the agenda alone."""
    program = str(toy.folder / "program.md")
    slip = f"import pathlib\npathlib.Path({program!r}).write_text('---\\ntask: [\\n---\\nGo on.\\n')\n"
    toy.plan_steps(e2=[{"files": {"solver.py": slip + solver(5)}, "say": "slip"}], e3=[step(6)])
    toy.run_agent(3, "--sandbox", "off")
    assert toy.statuses() == ["keep", "keep", "keep"]
    assert "Go on." in (toy.runs / "proposals/3/brief.md").read_text()


def test_a_program_md_that_cannot_be_read_does_not_end_the_night(toy):
    """Saved as UTF-16, as an editor on Windows may: the agent is told what stood there before."""
    program = str(toy.folder / "program.md")
    slip = f"import pathlib\npathlib.Path({program!r}).write_text('Go on.', encoding='utf-16')\n"
    toy.plan_steps(e2=[{"files": {"solver.py": slip + solver(5)}, "say": "slip"}], e3=[step(6)])
    assert "save it as UTF-8; agenda and stages stay as before" in toy.run_agent(3, "--sandbox", "off")
    assert toy.statuses() == ["keep", "keep", "keep"]
    assert "Raise the number." in (toy.runs / "proposals/3/brief.md").read_text()


def test_a_task_that_changed_under_a_run(toy, refused):
    toy.plan_steps(e2=[step(5)])
    toy.run_agent(2)
    toy.write("program.md", (toy.folder / "program.md").read_text().replace("maximize", "minimize"))
    assert "is not the one that run night began with" in refused(*toy.agent, "--experiments", "3")


@pytest.mark.slow
def test_a_branch_that_the_user_moved(toy, refused):
    toy.plan_steps(e2=[step(5)])
    toy.run_agent(2)
    champion = toy.tip()
    toy.write("notes.txt", "new work")
    toy.commit()
    git(toy.folder, "branch", "-f", "autoresearch/night", "HEAD")
    output = refused(*toy.agent, "--experiments", "3")
    assert f"git branch -f autoresearch/night {champion[:7]}" in output
    git(toy.folder, "branch", "-f", "autoresearch/night", champion)
    toy.run_agent(2)
    toy.require_whole()


@pytest.mark.slow
def test_the_branch_checked_out_by_the_user(toy):
    """Who looks at the champion does not end the night, and sees no edit that is not there."""
    toy.plan_steps(e2=[step(5)], e3=[step(6)], e4=[step(7)], e5=[step(8)])
    toy.run_agent(2)
    git(toy.folder, "switch", "-q", "autoresearch/night")
    champion, output = toy.tip(), toy.run_agent(4)
    assert output.count("the run continues, but") == 1 and "switch --detach" in output
    assert toy.tip() == champion and git(toy.folder, "status", "--porcelain") == ""
    assert "switch --detach" in toy.run_agent(5, expect=2)
    git(toy.folder, "switch", "-q", "main")
    toy.run_agent(5)
    assert [row[1] for row in toy.rows()] == [f"{value}.000000" for value in (1, 5, 6, 7, 8)]
    toy.require_whole()


def test_a_journal_damaged_in_its_middle(toy, refused):
    toy.plan_steps(e2=[step(5)])
    toy.run_agent(2)
    journal = toy.runs / "journal.jsonl"
    text = journal.read_text()
    journal.write_text("garbage\n" + text)
    assert "is damaged in line 1" in refused(*toy.agent, "--experiments", "3")
    assert journal.read_text() == "garbage\n" + text


@pytest.fixture
def small_disk(toy):
    """Runs a command with the run's folder on a file system of one megabyte, in a mount namespace of its own."""

    def run(script: str) -> subprocess.CompletedProcess:
        mount = f"mount -t tmpfs -o size=1m none {toy.folder / '.autoresearch'} && {script}"
        flags = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
        return subprocess.run(
            ["unshare", *flags, "sh", "-c", mount],
            cwd=toy.folder,
            env=toy.environment,
            capture_output=True,
            text=True,
            timeout=HANGS,
        )

    (toy.folder / ".autoresearch").mkdir()
    if run("true").returncode:
        pytest.skip("this machine allows no mount namespaces")
    return run


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.slow
def test_a_disk_that_fills_up_while_recording(toy, small_disk, stopped):
    """The second trial fills the disk. The record before it stays whole; the loop waits for space, and then goes on."""
    once, log, said = toy.folder.parent / "filled", toy.folder.parent / "journal-when-full", toy.folder.parent / "said"
    filler = f"""import os, pathlib
if not pathlib.Path({str(once)!r}).exists():
    pathlib.Path({str(once)!r}).touch()
    big = open(os.environ['AUTORESEARCH_RUN_DIR'] + '/big', 'wb', 0)
    while True:
        big.write(b'x' * 512)
"""
    toy.plan_steps(e2=[{"files": {"solver.py": solver(2, before=filler)}, "say": "fill the disk"}], e3=[step(3)])
    loop = " ".join(
        f"'{word}'"
        for word in [
            sys.executable,
            str(ROOT / "loop.py"),
            "--tag",
            "night",
            *toy.agent,
            "--experiments",
            "3",
            "--sandbox",
            "off",
        ]
    )
    waits = (
        f"{loop} > {said} & until grep -qs 'the disk is full' {said}; do sleep 0.1; done; "
        f"cp .autoresearch/night/journal.jsonl {log}; "
    )
    free = "rm .autoresearch/night/trials/2/run/big; "
    if stopped:
        stops = f"{sys.executable} {ROOT / 'loop.py'} stop >&2; wait $! && exit 9; code=$?; "
        answer = small_disk(waits + stops + f"{free} {loop} >&2 || exit 8; exit $code")
        assert answer.returncode == 2 and "Traceback" not in answer.stderr, answer.stdout + answer.stderr
        assert "the disk is full" in answer.stderr and "run the same command again" in answer.stderr
    else:
        answer = small_disk(waits + free + f"wait $! && cat {said} >&2")
        assert answer.returncode == 0, answer.stderr
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["number"] for event in events if event["event"] == "verdict"] == [1]
    assert "3 experiments: 3 keep" in answer.stderr  # the trial that met the full disk was run again
    assert len(toy.rows()) == 3
