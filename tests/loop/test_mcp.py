"""The MCP server, asked by the SDK's own client, and by the real Claude Code (marked `clients`)."""

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, git, solver
from models import Answer, Asked, Models, Say, Use, read_edit_say
from test_clients import SAID, USUAL, environment_of, programs  # noqa: F401
from test_loop import WAITING
from test_verify import write_night

import loop

mcp = pytest.importorskip("mcp", reason="the package mcp is not installed")
TOOLS = {"start", "try", "wait", "status", "attempts", "attempt", "ideas", "add_idea", "note", "stop"}
READS = {"wait", "status", "attempts", "attempt", "ideas"}


def asked(toy, talk) -> None:
    """Call `talk` with a client of a server that works in the toy's repository."""

    async def night() -> None:
        server = mcp.StdioServerParameters(
            command=sys.executable,
            args=[str(ROOT / "loop.py"), "mcp"],
            cwd=toy.folder,
            env={**toy.environment, "PYTHONPATH": ":".join(sys.path)},
        )
        async with mcp.Client(server) as client:
            await talk(client)

    asyncio.run(night())


def said(answer) -> str:
    (content,) = answer.content
    return content.text


@pytest.mark.slow
def test_experiments_of_an_agent_that_has_only_the_tools(toy):
    """From start to a keep, a discard and a refused edit. What the fences refuse, they refuse here, too."""
    told: list[str] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append(message or "")
        if (toy.runs / "trials/2/run/started").exists():
            (toy.runs / "trials/2/run/release").touch()

    async def verdict(client, number: int | None = None) -> dict:
        while True:
            answer = await client.call_tool("wait", {"number": number, "seconds": 30}, progress_callback=progress)
            if answer.structured_content["verdict"] != "running":
                return answer

    async def talk(client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == TOOLS and {name for name in TOOLS if tools[name].annotations.read_only_hint} == READS
        missing = await client.call_tool("status", {})
        assert missing.is_error and "begin one with start" in said(missing)

        begun = await client.call_tool("start", {"tag": "night"})
        assert begun.structured_content["edit"] == [".autoresearch/night/worktree/solver.py"], begun
        assert (await verdict(client)).structured_content["verdict"] == "keep"
        worktree = toy.runs / "worktree/solver.py"
        worktree.write_text(solver(2, before=WAITING))  # until progress was told
        added = await client.call_tool("add_idea", {"words": "--tag x: two", "expected": "+1", "source": "Ada, 2020"})
        assert "I1: agents see it" in said(added)
        words = {"message": "--tag x; two", "category": "optimizer", "predicted": 1, "ideas": ["I1", "--x three"]}
        tried = await client.call_tool("try", words)
        assert not tried.is_error and tried.structured_content["number"] == 2, tried
        kept = await verdict(client, 2)
        assert kept.structured_content["verdict"] == "keep" and kept.structured_content["score"] == 2
        assert said(kept).startswith("experiment 2: keep: ") and "champion: score 2" in said(kept)
        assert any(message.startswith("experiment 2: starting up") for message in told)

        refused = await client.call_tool("try", {"message": "nothing"})
        assert refused.structured_content["verdict"] == "refused" and "nothing changed" in said(refused)
        (toy.runs / "worktree/check.py").write_text("")
        assert "I2: --x three" in said(await client.call_tool("ideas", {}))
        worktree.write_text(solver(30))
        refused = await client.call_tool("try", {"message": "check nothing"})
        assert refused.structured_content["verdict"] == "refused" and "check.py" in said(refused)

        state = (await client.call_tool("status", {})).structured_content
        assert state["champion"]["score"] == 2 and state["experiments"] == 2 and not state["running"]
        rows = (await client.call_tool("attempts", {"last": 1})).structured_content["attempts"]
        assert [(row["number"], row["status"], row["description"]) for row in rows] == [(2, "keep", "--tag x; two")]
        assert "+VALUE = 2" in (await client.call_tool("attempt", {"number": 2})).structured_content["page"]
        assert "no attempt 7" in said(await client.call_tool("attempt", {"number": 7}))
        assert "the note is in the next brief" in said(await client.call_tool("note", {"words": "--tag x: smaller"}))
        assert "no loop is running" in said(await client.call_tool("stop", {}))

    asked(toy, talk)
    assert toy.statuses() == ["keep", "keep"]
    assert [event["text"] for event in toy.journal("note")] == ["--tag x: smaller"]
    text = (toy.folder / ".autoresearch/ideas.md").read_text()
    assert "- I1 (kept, run night, experiment 2): --tag x: two\n  expected: +1\n  source: agent over MCP: Ada" in text
    (entry,) = (event for event in toy.journal("attempt") if event["number"] == 2)
    assert (entry["category"], entry["predicted"], entry["agent"]) == ("optimizer", 1, "external")


def test_a_run_is_read_while_nothing_runs(toy):
    write_night(toy, [1.0], [(solver(2), "set it to 2", 2.0), ("raise SystemExit(1)", "exit code 1", None)])
    lesson = "- L1 (confirmed 0) [; ; run night, experiment 2]: larger is better\n"
    (toy.folder / ".autoresearch/lessons.md").write_text(lesson)

    async def talk(client) -> None:
        told = said(await client.call_tool("status", {}))
        assert told.startswith(toy.run("digest").rstrip("\n")) and "edit: .autoresearch/night/" in told
        crashed = await client.call_tool("wait", {"number": 3, "seconds": 0})
        assert crashed.structured_content["verdict"] == "crash" and "exit code 1" in said(crashed)
        ideas = await client.call_tool("ideas", {})
        assert "To be kept an edit must " in said(ideas) and "L1 (confirmed 0): larger is better" in said(ideas)
        assert (
            ideas.structured_content["lessons"] == ["L1: larger is better"]
            and not ideas.structured_content["near_misses"]
        )
        unknown = await client.call_tool("wait", {"number": 9, "seconds": 0})
        assert unknown.is_error and "has no experiment 9" in said(unknown)

    asked(toy, talk)


@pytest.mark.parametrize("program", ["/somewhere/bin/autoresearch", str(ROOT / "loop.py")])
def test_the_server_starts_the_program_that_it_is(monkeypatch, program):
    """Also the installed one: what its commands tell people to type begins with its name."""
    served: list[str] = []
    monkeypatch.setattr("autoresearch.mcp_server.serve", served.append)
    monkeypatch.setattr(sys, "argv", [program, "mcp"])
    with pytest.raises(SystemExit) as ended:
        loop.main()
    assert ended.value.code == 0 and served == [program]


def test_the_server_that_is_shipped():
    servers = json.loads((ROOT / ".mcp.json").read_text())["mcpServers"]
    assert servers == {"autoresearch": {"command": "uv", "args": ["run", "loop.py", "mcp"]}}


@pytest.mark.clients
def test_claude_code_runs_experiments_with_the_tools_alone(toy, programs):  # noqa: F811
    """From start to three verdicts, with no shell, by the files that this repository ships."""
    program, uv = (toy.folder / "program.md").read_text(), toy.folder.parent / "bin/uv"
    toy.write("program.md", program.replace("solver", "train").replace("check", "train"))
    git(toy.folder, "mv", "solver.py", "train.py")
    shutil.copytree(ROOT / ".claude", toy.folder / ".claude")
    shutil.copy(ROOT / ".mcp.json", toy.folder)
    toy.commit()
    uv.parent.mkdir()
    path = f"PYTHONPATH={shlex.quote(':'.join(sys.path))}"
    uv.write_text(f'#!/bin/sh\nshift 2\n{path} exec {sys.executable} {ROOT}/loop.py "$@"\n')  # `uv run loop.py mcp`
    uv.chmod(0o755)
    file = str(toy.runs / "worktree/train.py")
    steps = [Use("mcp__autoresearch__start", {"tag": "night"}), Use("mcp__autoresearch__wait", {"seconds": 100})]
    for value in (2, 3, 4):
        steps += [
            Use("read", {"path": file}),
            Use("edit", {"path": file, "old": f"VALUE = {value - 1}", "new": f"VALUE = {value}"}),
            Use("mcp__autoresearch__try", {"message": f"set it to {value}", "category": "batch"}),
            Use("mcp__autoresearch__wait", {"seconds": 100}),
        ]
    steps += [Use("mcp__autoresearch__status", {}), Use("mcp__autoresearch__stop", {})]

    def answer(asked: Asked) -> Answer:
        done = len(asked.results)
        return [steps[done]] if "mcp__autoresearch__try" in asked.tools and done < len(steps) else [Say("done")]

    with Models(answer) as models:
        more = environment_of("claude-code", toy, programs, models.url)
        words = ["--mcp-config", ".mcp.json", "--strict-mcp-config", "--settings", ".claude/settings.json"]
        ended = subprocess.run(
            ["claude", "-p", *words, "--tools", "Read,Edit", "--", "read program.md and begin"],
            cwd=toy.folder,
            env={**toy.environment, **more, "PATH": f"{uv.parent}{os.pathsep}{more['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        *_, verdict, status, stop = models.asked[-1].results
    assert ended.stdout == "done\n", ended.stdout + ended.stderr
    assert r"\"verdict\":\"keep\"" in verdict and "run night: 3 changes tried" in status
    assert "permission" in stop  # the human's word
    assert toy.statuses() == ["keep"] * 4
    toy.require_whole()


@pytest.mark.clients
def test_the_agents_of_the_loop_get_no_server_of_the_repository(toy, programs):  # noqa: F811
    """Not that of .mcp.json, which lies in their worktree, too."""
    server = {"command": "sh", "args": ["-c", f"touch {toy.folder.parent}/began; exec cat"]}
    toy.write(".mcp.json", json.dumps({"mcpServers": {"autoresearch": server}}))
    toy.commit()
    with Models(read_edit_say({2: ("VALUE = 1", "VALUE = 2")}, "solver.py", SAID)) as models:
        more = environment_of("claude-code", toy, programs, models.url)
        toy.run("--agent", "claude-code", "--experiments", "2", *USUAL, seconds=240, **more)
        offered = {name for asked in models.asked for name in asked.tools}
    assert toy.statuses() == ["keep", "keep"] and (toy.runs / "worktree/.mcp.json").exists()
    assert not (toy.folder.parent / "began").exists()
    assert "Edit" in offered and not any(name.startswith("mcp__") for name in offered)
