"""Hooks: executables of the user's beside program.md, called before trials, after verdicts, on keeps and at the end."""

import asyncio
import json

import pytest
from clocks import time_passes
from conftest import solver, step
from test_loop import alive

from autoresearch.views import notify
from autoresearch.views.notify import Hooks


def add_hook(root, name: str, text: str) -> None:
    (root / "hooks").mkdir(exist_ok=True)
    (root / "hooks" / name).write_text(f"#!/bin/sh\n{text}\n")
    (root / "hooks" / name).chmod(0o755)


def test_a_night_calls_the_hooks_of_the_checkout(toy, tmp_path):
    """Not those in a worktree, which an agent may have written; one that fails is said once and changes nothing."""
    say = f"printf '%s\\n' \"${{0##*/}} $(date +%s.%N) $PWD $(cat)\" >> {tmp_path}/told"
    for name in ("before-trial", "on-keep", "on-stop"):
        add_hook(toy.folder, name, say)
    add_hook(toy.folder, "after-verdict", f"{say}; exit 3")
    add_hook(toy.folder, "on-night", "exit 1")
    toy.commit()  # so that the worktree has them, too
    planted = f"#!/bin/sh\necho 'planted 0 x {{}}' >> {tmp_path}/told\n"
    edited = {"solver.py": solver(2), "hooks/on-keep": planted, "hooks/before-trial": planted}
    toy.plan_steps(e2=[{"files": edited, "say": "refused"}, step(2)], e3=[step(1.5)])
    output = toy.run_agent(3)
    assert toy.statuses() == ["keep", "keep", "discard"]
    told = [line.split(" ", 3) for line in (tmp_path / "told").read_text().splitlines()]
    assert all(folder == str(toy.folder) for _, _, folder, _ in told)
    names = [name for name, *_ in told]
    assert [name for name in names if name == "before-trial"] == ["before-trial"] * 3 and names[-1] == "on-stop"
    assert [name for name in names if name in ("after-verdict", "on-keep")] == [
        "after-verdict", "on-keep", "after-verdict", "on-keep", "after-verdict",
    ]  # fmt: skip
    notices = {name: [json.loads(line) for other, _, _, line in told if other == name] for name in names}
    before, after = notices["before-trial"], notices["after-verdict"]
    assert [one["number"] for one in before] == [one["number"] for one in after] == [1, 2, 3]
    assert (before[1]["description"], before[1]["agent"], before[1]["worker"]) == ("set it to 2", "command", 0)
    assert [(one["status"], one["score"]) for one in after] == [("keep", 1), ("keep", 2), ("discard", 1.5)]
    assert notices["on-stop"][0]["experiments"] == 3 and "run night: 2 changes" in notices["on-stop"][0]["digest"]
    ended = [float(time) for name, time, *_ in told if name == "before-trial"]
    began = [event["time"] for event in toy.journal("trial")]
    assert all(hook < trial for hook, trial in zip(ended, began, strict=True))  # it was awaited
    assert output.count("hooks/after-verdict: ") == 1 and "ended with exit code 3; the loop continues" in output
    assert "hooks/on-night is not called" in output
    assert "hooks     before-trial, after-verdict, on-keep, on-stop" in output


def test_a_hook_that_hangs_is_ended_and_one_that_changed_is_not_called(tmp_path):
    async def night() -> None:
        hooks = Hooks(tmp_path, said.append)
        async with time_passes(notify.LIMIT, lambda: pid.exists() and pid.read_text()):
            await hooks.before_trial({"event": "trial"})
        add_hook(tmp_path, "on-keep", f"echo changed >> {tmp_path}/told")
        for _ in range(2):
            hooks.send({"event": "keep"})
        await hooks.close()

    pid = tmp_path / "pid"
    add_hook(tmp_path, "before-trial", f"echo $$ > {pid}; exec sleep 600")
    add_hook(tmp_path, "on-keep", f"echo called >> {tmp_path}/told")
    (tmp_path / "hooks/on-stop").write_text("not executable")
    said: list[str] = []
    asyncio.run(night())
    assert not alive(int(pid.read_text())) and not (tmp_path / "told").exists()
    assert ["not executable" in said[0], "did not end" in said[1], "changed after the loop started" in said[2]] == [
        True
    ] * 3
    assert len(said) == 3


def test_an_external_agents_experiments_have_hooks_too(toy, tmp_path):
    add_hook(toy.folder, "on-keep", f"cat >> {tmp_path}/told")
    add_hook(toy.folder, "on-stop", f"cat >> {tmp_path}/told")
    toy.run("start")
    assert [json.loads(line)["number"] for line in (tmp_path / "told").read_text().splitlines()] == [1]


@pytest.mark.parametrize("kind", ["folder", "broken link"])
def test_what_is_no_hook(tmp_path, kind):
    async def night() -> None:
        hooks = Hooks(tmp_path, said.append)
        hooks.send({"event": "keep"})
        await hooks.close()

    (tmp_path / "hooks").mkdir()
    path = tmp_path / "hooks/on-keep"
    path.mkdir() if kind == "folder" else path.symlink_to("nowhere")
    said: list[str] = []
    asyncio.run(night())
    assert len(said) == 1 and "not executable" in said[0]
