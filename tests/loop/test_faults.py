"""What goes wrong around a run: folders that vanish, files that cannot be written, trials that flood their log."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANGS, ROOT, git, solver, step, wait_for

from autoresearch.runner import identity

READ_ONLY = "mount --bind {0} {0} && mount -o remount,bind,ro {0}"


def waiting(toy) -> tuple[dict, Path, Path]:
    """(An edit whose trial makes the file `start` and waits for the file `go`, these two). Without a sandbox."""
    start, go = toy.folder.parent / "start", toy.folder.parent / "go"
    waits = (
        f"import pathlib, time\npathlib.Path({str(start)!r}).touch()\n"
        f"while not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.02)\n"
    )
    return {"files": {"solver.py": solver(2, before=waits)}, "say": "wait"}, start, go


@pytest.mark.parametrize("folder", ["worktree", "stage"])
def test_a_worktree_that_is_deleted_while_a_trial_runs(toy, folder):
    """The trial that runs may fail for it; the next one has its files again."""
    edit, start, go = waiting(toy)
    toy.plan_steps(e2=[edit], e3=[step(3)])
    process = toy.start(*toy.agent, "--experiments", "3", "--baseline-runs", "1", "--repairs", "0", "--sandbox", "off")
    wait_for(start.exists)
    subprocess.run(["rm", "-rf", str(toy.runs / folder)], check=True)
    go.touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert toy.statuses()[0] == toy.statuses()[2] == "keep" and toy.statuses()[1] in ("keep", "crash")
    toy.require_whole()


def test_a_results_file_that_cannot_be_written_does_not_end_the_night(toy):
    """It is on a file system that becomes read-only. The journal has all; the file is written when it can be again."""
    toy.plan_steps(e2=[step(2)], e3=[step(3)])
    night = loop(*toy.agent, "--baseline-runs", "1")
    answer = mounting(toy, f"{night} --experiments 2 && {READ_ONLY.format('results.tsv')} && {night} --experiments 3")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.count("results.tsv cannot be written") == 1 and "loop.py results" in answer.stdout
    assert len(toy.rows()) == 2 and len(toy.journal("verdict")) == 3
    toy.run("results")
    assert toy.statuses() == ["keep"] * 3


def test_what_only_helps_and_cannot_be_written_does_not_end_the_night(toy):
    """Pages of attempts, ideas and lessons. It is said once of each."""
    toy.plan_steps(e2=[step(2)], e3=[lesson(3)], e4=[lesson(4)])
    night, runs = loop(*toy.agent, "--baseline-runs", "1"), ".autoresearch"
    ideas = f"printf -- '- dare more\n' > {runs}/ideas.md; touch {runs}/lessons.md"
    closed = " && ".join(READ_ONLY.format(f"{runs}/{name}") for name in ("night/attempts", "ideas.md", "lessons.md"))
    answer = mounting(toy, f"{night} --experiments 2 && {ideas} && {closed} && {night} --experiments 4")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert toy.statuses() == ["keep"] * 4
    for name in ("attempts/", "ideas.md", "lessons.md"):
        assert answer.stdout.count(f"{name} cannot be written") == 1, answer.stdout
    assert "I1: dare more" in (toy.runs / "proposals/4/brief.md").read_text()


def test_a_disk_that_cannot_be_written_is_said(toy):
    for command in ("", "note hello", "ideas add 'dare more'", "start"):
        answer = mounting(toy, f'{READ_ONLY.format(".")} && cd "$PWD" && {loop()} {command}')
        assert answer.returncode == 2 and answer.stderr.startswith("error: "), answer.stderr
    assert "cannot be used: Read-only file system" in answer.stderr


def test_what_a_power_failure_left_of_a_trial(toy):
    toy.plan_steps(e2=[step(2)])
    toy.run_agent(1)
    (toy.runs / "trials/1/process").write_bytes(bytes(30) + b"\n\xff\n12 gone\n")
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "keep"] and not (toy.runs / "trials/1/process").exists()


def test_what_a_power_failure_left_of_git(toy):
    """Locks of refs that it was about to move, and of a worktree that it was about to make."""
    toy.plan_steps(e2=[step(2)], e3=[step(3)])
    toy.run_agent(2)
    for ref in ("heads/autoresearch/night", "autoresearch/night/3"):
        (toy.folder / f".git/refs/{ref}.lock").touch()
    (toy.folder / ".git/worktrees/worktree/locked").write_text("initializing")
    shutil.rmtree(toy.runs / "worktree")
    toy.run_agent(3)
    assert toy.statuses() == ["keep"] * 3
    toy.require_whole()


def test_a_cleaned_run_whose_last_edit_has_no_verdict(toy):
    """git removes what no ref names; the edit still has to run."""
    edit, start, go = waiting(toy)
    toy.plan_steps(e2=[edit])
    process = toy.start(*toy.agent, "--experiments", "2", "--repairs", "0", "--baseline-runs", "1", "--sandbox", "off")
    wait_for(start.exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    toy.run("clean", "--yes")
    git(toy.folder, "reflog", "expire", "--expire=now", "--all")
    git(toy.folder, "gc", "-q", "--prune=now")
    go.touch()
    toy.run_agent(2, "--sandbox", "off")
    assert toy.statuses() == ["keep", "keep"] and toy.tip() == toy.references()[-1]


@pytest.mark.parametrize("what", ["down", "killed", "elsewhere"])
def test_an_edit_that_takes_the_machine_down(toy, what):
    """Something starts the loop after each boot, so it must not run again for ever. A loop that is killed twice, or
    continued on another machine, loses no edit, and an orderly shutdown does not count.
    """
    down = what == "down"
    edit, start, go = waiting(toy)
    toy.plan_steps(e2=[edit], e3=[step(3)])
    toy.run_agent(1, "--sandbox", "off")
    for ending in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        start.unlink(missing_ok=True)
        process = toy.start(*toy.agent, "--experiments", "3", "--repairs", "0", "--sandbox", "off")
        wait_for(start.exists)
        process.send_signal(ending)
        process.communicate(timeout=60)
        if what != "killed" or ending == signal.SIGTERM:
            came_up_again(toy, elsewhere=what == "elsewhere")
    go.touch()
    toy.run_agent(3, "--sandbox", "off")
    assert toy.statuses() == ["keep", "crash" if down else "keep", "keep"]
    assert [entry["why"] for entry in toy.journal("rerun")] == ["down"] * down
    assert ("was restarted 2 times before its trial had ended" in toy.journal("verdict")[1]["reason"]) == down
    toy.require_whole()


def goes_down(toy, process) -> None:
    process.kill()
    process.communicate()
    came_up_again(toy)


def came_up_again(toy, elsewhere: bool = False) -> None:
    """Let the record look as if the machine had started anew since its last line, or as if that was another machine."""
    journal, boot = toy.runs / "journal.jsonl", identity.boot()
    host, _, identifier = boot.partition(" ")
    before = f"{host}{'-2' if elsewhere else ''} {identifier[::-1]}"
    assert boot in journal.read_text()
    journal.write_text(journal.read_text().replace(boot, before))


def test_a_machine_that_goes_down_blames_no_edit_that_ran_beside_the_one_that_does_it(toy):
    """Both that ran run again, one at a time: only the one during which it goes down once more has crashed."""
    gates = [toy.folder.parent / name for name in ("start-2", "go-2", "start-3", "go-3")]

    def waits(number: int) -> list[dict]:
        start, go = gates[2 * number - 4 : 2 * number - 2]
        before = f"import pathlib, time\npathlib.Path({str(start)!r}).touch()\n"
        before += f"while not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.02)\n"
        return [{"files": {"solver.py": solver(number, before=before)}, "say": "wait"}]

    toy.plan_steps(e2=waits(2), e3=waits(3))
    toy.run_agent(1, "--sandbox", "off", "--workers", "2")
    night = (*toy.agent, "--experiments", "3", "--repairs", "0", "--sandbox", "off", "--workers", "2")
    process = toy.start(*night)
    wait_for(lambda: gates[0].exists() and gates[2].exists())
    goes_down(toy, process)
    gates[0].unlink()
    gates[2].unlink()
    process = toy.start(*night)
    wait_for(gates[0].exists)
    assert not gates[2].exists()
    gates[1].touch()
    wait_for(gates[2].exists)
    goes_down(toy, process)
    toy.run(*night)
    assert toy.statuses() == ["keep", "keep", "crash"]
    toy.require_whole()


def test_a_damaged_record_of_another_run_is_no_fault_of_this_one(toy, refused):
    """Nor is one of a newer version. But a file that belongs to it is not replaced."""
    toy.plan_steps(e2=[step(2)])
    toy.run_agent(2)
    other = toy.folder / ".autoresearch/other/journal.jsonl"
    other.parent.mkdir()
    for damaged in ("garbage\n{}\n", '{"event": "run", "form": 99}\n'):
        other.write_text(damaged)
        toy.run_agent(2)
    toy.write("results.tsv", "commit\tscore\tmemory_gb\tstatus\tdescription\n0123456\t1\t0.0\tkeep\tof the other\n")
    assert "was not written by this loop" in refused()


def loop(*arguments: str) -> str:
    """The words of the loop, for a shell."""
    return shlex.join([sys.executable, str(ROOT / "loop.py"), *arguments, "--tag", "night"])


def lesson(value: int) -> dict:
    return step(value, f"description: set it to {value}\nlesson: {value} is better\nidea: a b | c | d")


def mounting(toy, script: str) -> subprocess.CompletedProcess:
    """A shell script in the toy's folder that may mount something, which nobody else sees."""
    flags = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    if subprocess.run(["unshare", *flags, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    return subprocess.run(
        ["unshare", *flags, "sh", "-c", script],
        cwd=toy.folder,
        env=toy.environment,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


@pytest.mark.slow
def test_a_trial_that_prints_a_gigabyte(toy):
    flood = "import sys\nfor _ in range(1024):\n    sys.stdout.write(('x' * 1023 + chr(10)) * 1024)\n"
    toy.plan_steps(e2=[{"files": {"solver.py": solver(2, before=flood)}, "say": "flood"}], e3=[step(3)])
    toy.run_agent(3)
    assert toy.statuses() == ["keep", "keep", "keep"]
    log = toy.runs / "trials/2/train.log"
    assert (
        log.stat().st_size < 20 << 20
        and "bytes are left out" in log.read_text()
        and log.read_text().endswith("score: 2\n")
    )
