"""`loop.py doctor`: what it finds on machines that lack something, how it says so, and that nothing holds it up."""

import errno
import json
import os
import socket
import subprocess
import sys

import psutil
import pytest
from conftest import ROOT

from autoresearch import doctor, machine_checks, machine_facts
from autoresearch.runner.keeper import main as keeper

SLEEP = "sleep 614.25"  # nobody else does
HANGS = f"#!/bin/sh\n{SLEEP} & wait\n"
# The doctor as loop.py runs it, but with less patience for agents.
IMPATIENT = "from autoresearch import machine_checks; machine_checks.AGENT_LIMIT = 1.0; import loop; loop.main()"
# loop.py or prepare.py on a system that is not there: what it lacks is taken away, then the program runs.
ELSEWHERE = """import asyncio, os, runpy, subprocess, sys, typer, numpy
platform, missing, *sys.argv = sys.argv[1:]
sys.platform = platform
for name in missing.split():
    sys.modules[name] = None
    if hasattr(os, name):
        delattr(os, name)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def called(folder, environment, *arguments: str, program=(str(ROOT / "loop.py"),), **more: str):
    words = [sys.executable, *program, *arguments]
    more = {"PYTHONPATH": str(ROOT), **more}
    return subprocess.run(words, cwd=folder, env={**environment, **more}, capture_output=True, text=True)


@pytest.mark.slow
def test_this_machine(toy, tmp_path, environment):
    """In a repository with this project's game: nothing is missing but an agent that answers."""
    (toy.folder / "program.md").unlink()
    toy.write("prepare.py", "")
    (toy.folder / "autoresearch/referee").mkdir(parents=True)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "claude").write_text(HANGS)
    (programs / "claude").chmod(0o755)
    path = f"{programs}:{environment['PATH']}"
    answer = called(toy.folder, environment, "doctor", "--json", "--data", "sotu", program=("-c", IMPATIENT), PATH=path)
    said = json.loads(answer.stdout)
    found = {finding["name"]: finding for finding in said["findings"]}
    assert (answer.returncode, said["ready"]) == (0, True), said
    assert list(found)[:10] == [
        "system", "memory", "cache", "runs", "git", "task", "compiler", "torch", "GPU", "sandbox"
    ]  # fmt: skip
    assert "commits as Ada" in found["git"]["said"] and found["task"]["said"].startswith("train.py; `python train.py`")
    assert "no answer within 1 s" in found["claude-code"]["said"] and found["claude-code"]["status"] == "warning"
    assert found["claude-code"]["next"] == "npm install -g @anthropic-ai/claude-code"
    assert "selects sweep" in found["agents"]["said"] and found["agents"]["next"].startswith("export ANTHROPIC_API_KEY")
    assert "no home folder, keys or network" in found["sandbox"]["said"] or found["sandbox"]["said"].startswith("none")
    assert found["data"]["said"].startswith("sotu, not prepared yet")
    running = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in running if str(programs / "claude") in line or SLEEP in line], "it was left running"


def test_another_repository_without_torch_and_git_identity(toy, tmp_path, environment):
    (tmp_path / "home/.gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    where = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "ANTHROPIC_API_KEY": "sk-ant-0123456789abcdef0123"}
    answer = called(toy.folder, environment, "doctor", **where)
    lines = answer.stdout.splitlines()
    assert answer.returncode == 1 and "not ready: 1 fault" in lines[-1], answer.stdout + answer.stderr
    assert [line for line in lines if line.startswith("fault")] == [
        "fault    git          git does not know who commits"
    ]
    assert "                      next: tell it: `git config user.name NAME && git config user.email ADDRESS`" in lines
    assert any(line.startswith("ok       torch        not installed; only this project's own game") for line in lines)
    assert "ok       claude-api   ANTHROPIC_API_KEY is set" in lines
    assert "Traceback" not in answer.stdout + answer.stderr and where["ANTHROPIC_API_KEY"] not in answer.stdout


def test_a_check_that_fails_does_not_end_the_others(toy, monkeypatch):
    """Whatever comes of it, it is a finding."""
    monkeypatch.chdir(toy.folder)
    toy.write("program.md", "---\ntask: 3\n---\n")

    def no_answer(machine):
        raise TimeoutError

    def broken(machine):
        raise KeyError("gone")

    monkeypatch.setattr(machine_checks.Machine, "ask", lambda *arguments: {})  # of torch: nobody wants to know it here
    monkeypatch.setattr(doctor, "CHECKS", (no_answer, machine_checks.task, broken, machine_checks.git))
    reported = []
    assert doctor.examine({}, reported.append) == reported
    assert [(finding.name, finding.status) for finding in reported] == [
        ("no_answer", "warning"), ("task", "fault"), ("broken", "fault"), ("git", "ok")
    ]  # fmt: skip
    assert reported[0].said == "no answer within 60 s" and "KeyError: 'gone'" in reported[2].said
    assert "program.md" in reported[1].said


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({}, "ok", "NVIDIA H100 80GB HBM3, 80 GiB, driver 580.1; 100% of an H100's bf16 rate"),
        ({"share": None}, "ok", "an unknown share of an H100's bf16 rate"),
        ({"free": 30 << 30}, "warning", "only 30 GiB are free"),
        ({"gpus": 2, "error": "no kernel image"}, "fault", "one of 2; 100% of an H100's bf16 rate; no kernel image"),
    ],
)
def test_a_gpu(more, status, said):
    h100 = {"gpu": "NVIDIA H100 80GB HBM3", "gpus": 1, "free": 79 << 30, "total": 80 << 30, "driver": "580.1"}
    finding = machine_checks.gpu({**h100, "share": 1.0, "error": "", **more}, "fault")
    assert finding.status == status and said in finding.said and bool(finding.next) == (status != "ok")


def test_servers_on_this_machine_and_elsewhere(httpserver):
    httpserver.expect_request("/v1/models").respond_with_json({"data": [{"id": "a-model"}, {"id": "another"}]})
    assert machine_facts.models_at(httpserver.port) == ["a-model", "another"]
    assert machine_facts.network_facts(httpserver.url_for("/v1/models")) == {"error": ""}
    assert machine_facts.network_facts(httpserver.url_for("/shard")) == {"error": "the server answers 500"}
    httpserver.clear()
    assert machine_facts.models_at(httpserver.port) == []  # a server of another kind
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert machine_facts.models_at(port) == []
    assert "ConnectionError" in machine_facts.network_facts(f"http://127.0.0.1:{port}/")["error"]


@pytest.mark.parametrize(
    ("platform", "missing", "said"),
    [
        ("win32", "fcntl resource fork pidfd_open memfd_create", ("WSL2", "wsl --install")),
        ("darwin", "pidfd_open memfd_create", ("macOS", "Linux")),
    ],
)
@pytest.mark.parametrize("program", ["loop.py", "prepare.py"])
def test_other_systems_are_told_at_once(tmp_path, environment, platform, missing, said, program):
    arguments = [platform, missing, str(ROOT / program), *(["status"] if program == "loop.py" else [])]
    answer = called(tmp_path, environment, *arguments, program=("-c", ELSEWHERE))
    assert answer.returncode == 2 and answer.stdout == "" and answer.stderr.startswith("error: "), answer.stderr
    assert all(word in answer.stderr for word in said) and answer.stderr.count("\n") == 1


def test_a_kernel_that_is_too_old_is_told_at_once(refused, toy, monkeypatch):
    """That of RHEL 8, say, on which many GPUs are served."""

    def missing(process: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", missing)
    assert refused("--experiments", "1").startswith("error: autoresearch needs Linux 5.3 or later")


def test_the_bring_up_knows_what_it_leaves_out(monkeypatch):
    """Names of parts of the sandbox and of kernels that bench/bring_up.py, which no test runs, takes from elsewhere."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import bring_up

    assert all(callable(getattr(keeper, part)) for part in bring_up.PARTS)
    assert {"masked_attention", *bring_up.GPU_ALONE} < set(bring_up.kernel_names())
    assert all(text in (ROOT / name).read_text() for name, text, _ in bring_up.SHORTER)
    said = bring_up.in_words({"step": "kernels", "what": "FAILED", "why": "exit code 1", "printed": ["a", "b"]})
    assert said.split() == ["kernels", "FAILED", "exit", "code", "1", "a", "b"]
