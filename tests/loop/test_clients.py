"""Agents that are command lines of others: the real claude, codex, gemini and opencode, and programs that are none of them.

The real ones speak to a scripted model on 127.0.0.1 and are installed from npm's registry where they are missing.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import git, solver
from models import CUT, Fault, Models, read_edit_say
from test_end_to_end import Game

PROGRAMS = {
    "claude": "@anthropic-ai/claude-code@2.1.197",
    "codex": "@openai/codex@0.169.0",
    "gemini": "@google/gemini-cli@0.61.0",
    "opencode": "opencode-ai@1.18.33",
}
CLIENTS = {"claude-code": "claude", "codex": "codex", "gemini": "gemini", "opencode": "opencode"}
SAID = "description: change {number}\ncategory: optimizer\nhypothesis: it may help\npredicted: 0.5\nlesson: changes are cheap\n"


@pytest.fixture(scope="session")
def programs() -> Path:
    """A folder with the real programs, for PATH. Installed once, in the user's cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autoresearch-test-clients"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp, wanted = folder / "installed", " ".join(PROGRAMS.values())
        if not stamp.exists() or stamp.read_text() != wanted:
            if not shutil.which("npm") and not os.environ.get("CI"):
                pytest.skip("npm is not installed, so the clients cannot be")
            ended = subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *PROGRAMS.values()],
                capture_output=True,
                text=True,
            )
            if ended.returncode and not os.environ.get("CI"):
                pytest.skip(f"npm could not install the clients: {ended.stderr[-300:]}")
            assert ended.returncode == 0, ended.stderr
            stamp.write_text(wanted)
    return folder / "node_modules/.bin"


def signed_in(client: str, home: Path, url: str) -> dict[str, str]:
    """What a user has who is signed in to a client whose service is at `url`."""
    for folder in (".codex", ".gemini", ".local/share/opencode", "tmp"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    match client:
        case "claude-code":
            return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "local-key-for-tests"}
        case "codex":
            (home / ".codex/config.toml").write_text(
                'model = "gpt-5.5"\nmodel_provider = "local"\n[model_providers.local]\nname = "local"\nenv_key = "LOCAL_KEY"\nwire_api = "responses"\n'
                f'base_url = "{url}/v1"\nrequest_max_retries = 1\nstream_max_retries = 1\n'
            )
            (home / ".codex/auth.json").write_text("{}")
            return {"LOCAL_KEY": "local-key-for-tests"}
        case "gemini":
            settings = {
                "security": {"auth": {"selectedType": "gemini-api-key"}},
                "general": {"maxAttempts": 1},
                "model": {"name": "gemini-2.5-pro"},
            }
            (home / ".gemini/settings.json").write_text(json.dumps(settings))
            return {"GEMINI_API_KEY": "local-key-for-tests", "GOOGLE_GEMINI_BASE_URL": url}
        case "opencode":
            (home / ".local/share/opencode/auth.json").write_text(
                json.dumps({"anthropic": {"type": "api", "key": "local-key-for-tests"}})
            )
            (home / ".config/opencode").mkdir(parents=True)
            (home / ".config/opencode/opencode.json").write_text(
                json.dumps(
                    {
                        "model": "anthropic/claude-sonnet-4-5",
                        "enabled_providers": ["anthropic"],
                        "permission": {"edit": "ask", "bash": "allow"},
                        "provider": {"anthropic": {"options": {"baseURL": f"{url}/v1"}}},
                    }
                )
            )
            return {"OPENCODE_DISABLE_MODELS_FETCH": "1"}


def environment_of(client: str, toy, programs: Path, url: str) -> dict[str, str]:
    home = Path(toy.environment["HOME"])
    return {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(home / "tmp"),
        **signed_in(client, home, url),
    }


@pytest.mark.clients
@pytest.mark.timeout(600)
def test_real_trials(tmp_path, environment, programs):
    """One run, three real trials of each agent in turn: the real program is asked, reads and edits train.py, and what it says is in the record."""
    game = Game(tmp_path / "clone", environment, small=True)
    line = "def build_model():"
    edits = {number: (line, f"NUMBER_{number} = {number}\n\n\n{line}") for number in range(2, 20)}
    agents = ("claude-api", *CLIENTS)
    for turn, client in enumerate(agents, 1):
        with Models(read_edit_say(edits, "train.py", SAID)) as models:
            more = (
                environment_of(client, game, programs, models.url)
                if client in CLIENTS
                else {"ANTHROPIC_API_KEY": "local-key-for-tests", "ANTHROPIC_BASE_URL": models.url}
            )
            output = game.run(
                "--agent",
                client,
                "--experiments",
                str(1 + 3 * turn),
                "--baseline-runs",
                "1",
                "--lookahead",
                "0",
                seconds=240,
                **more,
            )
        assert len(game.rows()) == 1 + 3 * turn, output
        offered = {name for asked in models.asked for name in asked.tools}
        assert not offered & {"Bash", "bash", "run_shell_command", "Write"}
    assert "crash" not in game.statuses() and not game.journal("refused")
    for number, entry in enumerate(game.journal("attempt")[1:], 2):
        client = agents[(number - 2) // 3]
        assert (entry["agent"], entry["description"], entry["category"], entry["predicted"]) == (
            client,
            f"change {number}",
            "optimizer",
            0.5,
        )
        assert entry["tokens"] and (entry["dollars"] is None) == (client in ("claude-api", "codex")), (
            entry
        )  # a local server; a model that it does not name
        assert f"NUMBER_{number} = {number}" in git(game.folder, "show", f"{entry['commit']}:train.py")
    assert "changes are cheap" in (game.folder / ".autoresearch/lessons.md").read_text()
    game.require_whole()


@pytest.mark.clients
@pytest.mark.parametrize(
    ("client", "fault", "message", "code"),
    [
        ("claude-code", Fault(401, "authentication_error", "invalid x-api-key"), "claude is not signed in", 2),
        ("codex", Fault(401, "authentication_error", "bad key"), "codex is not signed in", 2),
        ("gemini", Fault(401, "UNAUTHENTICATED", "bad key"), "gemini is not signed in", 2),
        ("opencode", Fault(401, "authentication_error", "invalid x-api-key"), "opencode is not signed in", 2),
        ("claude-code", Fault(529, "overloaded_error", "Overloaded"), "cannot be reached: claude: exit code 1: ", 0),
        ("codex", Fault(503, "server_error", "busy"), "cannot be reached: codex: exit code 1: ", 0),
        ("gemini", Fault(429, "RESOURCE_EXHAUSTED", "slow down"), "cannot be reached: gemini: ", 0),
        ("codex", CUT, "cannot be reached: codex: exit code 1: stream disconnected", 0),
    ],
)
def test_faults_of_a_service(client, fault, message, code, toy, programs):
    """A key that is refused stops the run and says what to do; a service that is away is waited for."""
    with Models(lambda asked: fault) as models:
        environment = environment_of(client, toy, programs, models.url)
        if code:
            assert message in toy.run(
                "--agent", client, "--baseline-runs", "1", "--lookahead", "0", expect=code, **environment
            )
        else:
            toy.run_until(message, "--agent", client, "--baseline-runs", "1", "--lookahead", "0", **environment)
    assert toy.statuses() == ["keep"]
    toy.require_whole()


FAKE = """#!/usr/bin/env python3
import json, os, sys, time
if "--version" in sys.argv:
    print(os.environ.get("FAKE_VERSION", "2.1.197 (Claude Code)"))
    sys.exit()
brief = sys.stdin.read()
exec(os.environ["FAKE_DOES"])
"""


@pytest.fixture
def fake(toy, tmp_path) -> dict[str, str]:
    """A program named claude that does what FAKE_DOES says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "claude").write_text(FAKE)
    (folder / "claude").chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "ANTHROPIC_API_KEY": "x"}


def result(text: str, **more) -> str:
    return f"print(json.dumps({{'type': 'result', 'is_error': False, 'result': {text!r}, **{more!r}}}))\n"


EDIT = f"open('solver.py', 'w').write({solver(5)!r})\n"
USAGE = {
    "modelUsage": {"a": {"inputTokens": 10, "outputTokens": 5}, "b": {"cacheReadInputTokens": 100}},
    "total_cost_usd": 0.25,
}


def test_text_tokens_and_cost_are_taken_from_among_other_output(toy, fake):
    does = (
        "print('a warning')\n"
        + EDIT
        + result("Done.\ndescription: up\nlesson: up is better", **USAGE)
        + "print('{not json', file=sys.stderr)"
    )
    output = toy.run(
        "--agent",
        "claude-code",
        "--experiments",
        "2",
        "--baseline-runs",
        "1",
        "--lookahead",
        "0",
        FAKE_DOES=does,
        **fake,
    )
    entry = toy.journal("attempt")[1]
    assert (entry["description"], entry["tokens"], entry["dollars"]) == (
        "up",
        115,
        0.25,
    ) and "115 tokens and $0.25" in output
    assert Path(entry["transcript"], "brief.md").read_text().startswith("# Experiment 2")


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("sys.exit(1)", "claude: exit code 1: it printed no result"),
        ("print('{\"type\": ')", "it failed: it printed no result"),
        (result("I would raise it."), "nothing changed in solver.py"),
        (result(""), "nothing changed in solver.py"),
        ("open('check.py', 'w').write('')\n" + result("x"), "also touches check.py"),
        ("print('x' * 2_000_000)", "it printed no result"),
        (result("", subtype="error_max_turns") + "sys.exit(1)", "exit code 1"),
    ],
)
def test_an_answer_that_is_none(toy, fake, does, message):
    output = toy.run_until(
        message, "--agent", "claude-code", "--baseline-runs", "1", "--lookahead", "0", FAKE_DOES=does, **fake
    )
    assert len(output) < 5000
    assert toy.statuses() == ["keep"] and git(toy.runs / "worktree", "status", "--porcelain") == ""
    toy.require_whole()


def test_a_client_that_hangs_is_ended_with_all_that_it_started(toy, fake, tmp_path):
    does = f"import subprocess\nsubprocess.Popen(['sleep', '1000'])\nopen({str(tmp_path / 'here')!r}, 'a').write(str(os.getpid()) + ' ')\ntime.sleep(1000)"
    toy.run_until(
        "claude: ended after its time limit of 1 s",
        "--agent",
        "claude-code",
        "--agent-limit",
        "1",
        "--baseline-runs",
        "1",
        "--lookahead",
        "0",
        FAKE_DOES=does,
        **fake,
    )
    for pid in (tmp_path / "here").read_text().split():
        assert not Path(f"/proc/{pid}").exists()
    assert not any(
        b"sleep\x001000" in path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()
    )


def test_a_client_that_is_missing_or_too_old(toy, fake, tmp_path):
    assert "claude says that it is version '1.0.3'" in toy.run(
        "--agent", "claude-code", expect=2, FAKE_VERSION="1.0.3", **fake
    )
    assert "no program opencode; install it, `npm install -g opencode-ai`" in toy.run(
        "--agent", "opencode", expect=2, PATH="/usr/bin:/bin"
    )
    assert not toy.runs.exists()


def test_auto_takes_what_is_ready_and_says_so(toy, fake):
    alone = {**fake, "ANTHROPIC_API_KEY": ""}
    said = toy.run("--experiments", "1", "--baseline-runs", "1", "--lookahead", "0", **alone)
    assert "sweep (no model: seeded local search over the constants; --agent auto: no ANTHROPIC_API_KEY is set" in said
    said = toy.run("--experiments", "1", FAKE_DOES="", CLAUDE_CODE_OAUTH_TOKEN="x", **alone)
    assert "claude-code (--agent auto: claude is installed and signed in; --agent NAME chooses another)" in said
    assert "claude-api (claude-sonnet-5-5) (--agent auto: a key for it is set" in toy.run("--experiments", "1", **fake)


@pytest.mark.parametrize(
    ("option", "limit", "warning", "reason"),
    [
        (
            "--max-cost",
            "0.95",
            "$0.80 of $0.95 (--max-cost)",
            "$1.00 of $0.95 are used up; a larger --max-cost goes on",
        ),
        (
            "--max-tokens",
            "500",
            "400 of 500 tokens (--max-tokens)",
            "500 of 500 tokens are used up; a larger --max-tokens goes on",
        ),
    ],
)
def test_budgets_of_money_and_tokens(toy, fake, option, limit, warning, reason):
    """Warned at four fifths; at the end the proposal that was paid for gets its trial. Refused proposals count, too."""
    does = (
        "n = int(brief.split()[2])\nfirst = n == 3 and 'was refused' not in brief\nopen('solver.py', 'w').write(%r.replace('N', '(' if first else str(n)))\n"
        % solver("N")
        + result("up", total_cost_usd=0.2, modelUsage={"a": {"inputTokens": 100}})
    )
    output = toy.run(
        "--agent", "claude-code", "--baseline-runs", "1", "--lookahead", "0", option, limit, FAKE_DOES=does, **fake
    )
    assert warning in output and output.count(f"({option})") == 1 and f"stopped: {reason}" in output
    assert (
        toy.statuses() == ["keep"] * 5 and len(toy.journal("refused")) == 1
    )  # five proposals: one refused, four tried
    assert "proposals took 500 tokens and $1.00" in output
    assert reason in toy.run("--agent", "claude-code", option, limit, FAKE_DOES=does, **fake)  # of the whole run
    toy.require_whole()


def test_a_budget_that_cannot_be_held_says_so(toy):
    toy.plan_steps(e2=[{"files": {"solver.py": solver(5)}, "say": "up"}])
    output = toy.run_agent(2, "--max-cost", "1", "--max-tokens", "5")
    assert "an unknown number of tokens and an unknown cost" in output
    toy.plan_steps(e3=[{"files": {"solver.py": solver(6)}, "say": "up"}])
    assert (
        "--max-cost cannot hold the run: the agent did not say the cost of 1 proposal; --experiments and --hours can"
        in toy.run_agent(3, "--max-cost", "1")
    )


def test_several_agents_by_what_they_earn(toy, fake):
    """Each has its turns; the one whose edits are kept has more of them."""
    does = (
        "n = int(brief.split()[2])\nopen('solver.py', 'w').write(%r.replace('N', str(n)))\n" % solver("N")
        + "print(json.dumps({'type': 'result', 'is_error': False, 'result': 'up', 'total_cost_usd': 0.1, 'modelUsage': {'a': {'inputTokens': 9}}}))"
    )
    toy.plan_steps(
        **{f"e{number}": [{"files": {"solver.py": solver(-number)}, "say": "down"}] for number in range(2, 20)}
    )
    output = toy.run(
        "--agent",
        "command,claude-code",
        "--agent-command",
        toy.agent[3],
        "--experiments",
        "13",
        "--baseline-runs",
        "1",
        "--lookahead",
        "0",
        FAKE_DOES=does,
        **fake,
    )
    agents = [entry["agent"] for entry in toy.journal("attempt")[1:]]
    assert agents[:2] == ["command", "claude-code"] and agents.count("claude-code") > agents.count("command") >= 2
    assert "command, claude-code (each as often as it earns)" in output
    toy.run("report")
    report = (toy.runs / "report/report.md").read_text()
    assert "| claude-code |" in report and "| command |" in report
