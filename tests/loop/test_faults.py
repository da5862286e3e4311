"""What goes wrong around a run: folders that vanish, files that cannot be written, trials that flood their log."""

import os
import subprocess
import sys

import pytest
from conftest import HANGS, ROOT, solver, step, wait_for


@pytest.mark.parametrize("folder", ["worktree", "stage"])
def test_a_worktree_that_is_deleted_while_a_trial_runs(toy, folder):
    """The trial that runs may fail for it; the next one has its files again."""
    start, go = toy.folder.parent / "start", toy.folder.parent / "go"
    waits = (
        f"import pathlib, time\npathlib.Path({str(start)!r}).touch()\n"
        f"while not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.02)\n"
    )
    toy.plan_steps(e2=[{"files": {"solver.py": solver(2, before=waits)}, "say": "wait"}], e3=[step(3)])
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
    loop = " ".join(
        f"'{word}'"
        for word in [sys.executable, str(ROOT / "loop.py"), "--tag", "night", *toy.agent, "--baseline-runs", "1"]
    )
    read_only = "mount --bind results.tsv results.tsv && mount -o remount,bind,ro results.tsv"
    script = f"{loop} --experiments 2 && {read_only} && {loop} --experiments 3"
    flags = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    if subprocess.run(["unshare", *flags, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    answer = subprocess.run(
        ["unshare", *flags, "sh", "-c", script],
        cwd=toy.folder,
        env=toy.environment,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.count("results.tsv cannot be written") == 1 and "loop.py results" in answer.stdout
    assert len(toy.rows()) == 2 and len(toy.journal("verdict")) == 3
    toy.run("results")
    assert toy.statuses() == ["keep"] * 3


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
