"""Nights with agents that are programs of others: the real claude, codex, gemini and opencode, and a stand-in.

The real ones speak to a scripted model on 127.0.0.1 and are installed from npm's registry where they are missing.
Single calls of such an agent are in unit/test_agents.py.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from calls import fake_claude, prints, running
from conftest import ROOT, git, solver
from models import CUT, Answer, Asked, Fault, Models, Say, Use, read_edit_say
from test_end_to_end import Game
from test_loop import LATE_LOOP

from autoresearch.agents.clients import CLIENTS as CLIENTS_OF

NEWEST = {
    "claude": "@anthropic-ai/claude-code@2.1.332",
    "codex": "@openai/codex@0.169.0",
    "gemini": "@google/gemini-cli@0.61.0",
    "opencode": "opencode-ai@1.18.33",
}
OLDEST = {"claude": "@anthropic-ai/claude-code@2.1.0", "opencode": "opencode-ai@1.18.3"}  # of those that are accepted
CLIENTS = {"claude-code": "claude", "codex": "codex", "gemini": "gemini", "opencode": "opencode"}
SAID = (
    "description: change {number}\ncategory: optimizer\nhypothesis: it may help\npredicted: 0.5\n"
    "lesson: changes are cheap\n"
)
USUAL = ("--baseline-runs", "1", "--lookahead", "0")


def install(packages: dict[str, str], name: str) -> Path:
    """A folder with real programs, for PATH. Installed once, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "autoresearch-test-clients" / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp, wanted = folder / "installed", " ".join(packages.values())
        if not stamp.exists() or stamp.read_text() != wanted:
            if not shutil.which("npm") and not os.environ.get("CI"):
                pytest.skip("npm is not installed, so the clients cannot be")
            ended = subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages.values()],
                capture_output=True,
                text=True,
            )
            if ended.returncode and not os.environ.get("CI"):
                pytest.skip(f"npm could not install the clients: {ended.stderr[-300:]}")
            assert ended.returncode == 0, ended.stderr
            stamp.write_text(wanted)
    return folder / "node_modules/.bin"


@pytest.fixture(scope="session")
def programs() -> Path:
    return install(NEWEST, "newest")


@pytest.fixture(scope="session")
def oldest() -> Path:
    return install(OLDEST, "oldest")


def signed_in(client: str, home: Path, url: str) -> dict[str, str]:
    """What a user has who is signed in to a client whose service is at `url`."""
    for folder in (".codex", ".gemini", ".local/share/opencode", "tmp"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    match client:
        case "claude-code":
            return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "local-key-for-tests"}
        case "codex":
            (home / ".codex/config.toml").write_text(
                'model = "gpt-5.5"\nmodel_provider = "local"\n[model_providers.local]\nname = "local"\n'
                f'env_key = "LOCAL_KEY"\nwire_api = "responses"\nbase_url = "{url}/v1"\nrequest_max_retries = 1\n'
                "stream_max_retries = 1\n"
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
            key = {"anthropic": {"type": "api", "key": "local-key-for-tests"}}
            (home / ".local/share/opencode/auth.json").write_text(json.dumps(key))
            (home / ".config/opencode").mkdir(parents=True)
            settings = {
                "model": "anthropic/claude-sonnet-4-5",
                "enabled_providers": ["anthropic"],
                "permission": {"edit": "ask", "bash": "allow"},
                "provider": {"anthropic": {"options": {"baseURL": f"{url}/v1"}}},
            }
            (home / ".config/opencode/opencode.json").write_text(json.dumps(settings))
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
    """One run, three real trials of each agent in turn.

    The real program is asked, reads and edits train.py, and what it says is in the record.
    """
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
            arguments = ("--agent", client, "--experiments", str(1 + 3 * turn), *USUAL)
            output = game.run(*arguments, seconds=240, **more)
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
        # no price: for the one it is a local server, for the other a model that it does not name
        assert entry["tokens"] and (entry["dollars"] is None) == (client in ("claude-api", "codex")), entry
        assert f"NUMBER_{number} = {number}" in git(game.folder, "show", f"{entry['commit']}:train.py")
    assert "changes are cheap" in (game.folder / ".autoresearch/lessons.md").read_text()
    game.require_whole()


@pytest.mark.clients
@pytest.mark.parametrize("client", ["claude-code", "opencode"])
def test_the_oldest_that_are_accepted(client, toy, oldest):
    """Of the others the newest are the oldest."""
    assert CLIENTS_OF[client].oldest == tuple(map(int, OLDEST[CLIENTS[client]].rpartition("@")[2].split(".")))
    edits = {number: (f"VALUE = {number - 1}", f"VALUE = {number}") for number in (2, 3)}
    with Models(read_edit_say(edits, "solver.py", SAID)) as models:
        environment = environment_of(client, toy, oldest, models.url)
        output = toy.run("--agent", client, "--experiments", "3", *USUAL, **environment)
    assert toy.statuses() == ["keep"] * 3 and f"version {'.'.join(map(str, CLIENTS_OF[client].oldest))}" in output
    assert all(entry["tokens"] for entry in toy.journal("attempt")[1:]) and not toy.journal("refused")


def driving(folder: Path) -> Callable[[Asked], Answer]:
    """A model that does as program.md says, until it has three verdicts; then it tries what it may not."""
    train = str(folder / ".autoresearch/night/worktree/train.py")
    shell = ["uv run loop.py start --background --tag night", "uv run loop.py wait --for 100"]
    steps = [Use("read", {"path": str(folder / "program.md")}), *(Use("Bash", {"command": line}) for line in shell)]
    for value in (2, 3, 4):
        steps += [
            Use("read", {"path": train}),
            Use("edit", {"path": train, "old": f"VALUE = {value - 1}", "new": f"VALUE = {value}"}),
            Use("Bash", {"command": f'uv run loop.py try --background -m "set it to {value}" --category batch'}),
            Use("Bash", {"command": "uv run loop.py wait --for 100"}),
        ]
    for line in ("uv run loop.py try --sandbox off -m x", "uv run loop.py status && touch hi", "rm -f train.py"):
        steps.append(Use("Bash", {"command": line}))

    def answer(asked: Asked) -> Answer:
        done = len(asked.results)
        return [steps[done]] if "Bash" in asked.tools and done < len(steps) else [Say("three verdicts")]

    return answer


@pytest.mark.clients
@pytest.mark.parametrize("version", ["programs", "oldest"])
def test_claude_code_at_program_md(version, toy, request):
    """From "read program.md and begin" to three verdicts, by the permissions of the repository's own settings."""
    programs, uv = request.getfixturevalue(version), toy.folder.parent / "bin/uv"
    toy.write(
        "program.md", (toy.folder / "program.md").read_text().replace("solver", "train").replace("check", "train")
    )
    git(toy.folder, "mv", "solver.py", "train.py")
    shutil.copytree(ROOT / ".claude", toy.folder / ".claude")
    toy.commit()
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {ROOT}/loop.py "$@"\n')  # `uv run loop.py ...`
    uv.chmod(0o755)
    with Models(driving(toy.folder)) as models:
        more = environment_of("claude-code", toy, programs, models.url)
        ended = subprocess.run(
            ["claude", "-p", "--settings", ".claude/settings.json", "read program.md and begin"],
            cwd=toy.folder,
            env={**toy.environment, **more, "PATH": f"{uv.parent}{os.pathsep}{more['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        *_, off, touch, remove = models.asked[-1].results
    assert ended.stdout == "three verdicts\n" and toy.statuses() == ["keep"] * 4, ended.stderr
    assert "AUTORESEARCH_FENCED is set" in off and "approval" in touch and "approval" in remove
    assert (toy.folder / "train.py").exists() and not (toy.folder / "hi").exists()
    toy.require_whole()


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
            assert message in toy.run("--agent", client, *USUAL, expect=code, **environment)
        else:
            toy.run_until(message, "--agent", client, *USUAL, **environment)
    assert toy.statuses() == ["keep"]
    toy.require_whole()


@pytest.fixture
def fake(tmp_path) -> dict[str, str]:
    """The environment in which a stand-in for `claude` does what FAKE_DOES says."""
    return {"PATH": fake_claude(tmp_path / "bin"), "ANTHROPIC_API_KEY": "x"}


USAGE = {
    "modelUsage": {"a": {"inputTokens": 10, "outputTokens": 5}, "b": {"cacheReadInputTokens": 100}},
    "total_cost_usd": 0.25,
}


def sets(value: str) -> str:
    """A line of FAKE_DOES: set the toy's value to that of an expression in `n`, the number of the experiment."""
    return f"n = int(brief.split()[2])\nopen('solver.py', 'w').write({solver('N')!r}.replace('N', str({value})))\n"


@pytest.mark.slow
def test_failures_are_told_and_followed_by_another_call(toy, fake, tmp_path):
    """A call that hangs is ended with all that it started; an edit of another file goes back; the third one counts.

    What that says of itself, its tokens and its cost are taken from among its other output.
    """
    here, late, sleeper = tmp_path / "calls", tmp_path / "late", f"1002.{os.getpid()}"
    does = (
        f"calls = open({str(here)!r}, 'a+')\ncalls.write('x')\ncalls.seek(0)\ncall = len(calls.read())\n"
        f"if call == 1:\n    import subprocess\n    calls.close()\n    subprocess.Popen(['sleep', {sleeper!r}])\n"
        f"    open({str(late)!r}, 'w')\n    time.sleep(1000)\n"
        "if call == 2: open('check.py', 'w').write('')\n"
        + sets("5")
        + "print('a warning')\n"
        + prints("Done.\ndescription: up\nlesson: up is better", **USAGE)
        + "print('{not json', file=sys.stderr)"
    )
    arguments = ("--agent", "claude-code", "--agent-limit", "300", "--experiments", "2", *USUAL)
    output = toy.run(*arguments, loop=LATE_LOOP, LATE=str(late), FAKE_DOES=does, **fake)
    (refused,), (waited,) = toy.journal("refused"), toy.journal("waited")
    assert "claude: ended after its time limit of 300 s" in waited["reason"]  # which passes
    assert "also touches check.py" in refused["reason"] and not running(sleeper)
    entry = toy.journal("attempt")[1]
    assert (entry["description"], entry["lesson"], entry["tokens"], entry["dollars"]) == (
        "up",
        "up is better",
        115,
        0.25,
    )
    assert "230 tokens and $0.50" in output and toy.statuses() == ["keep", "keep"]  # of the second call and the third
    assert Path(entry["transcript"], "brief.md").read_text().startswith("# Experiment 2")
    toy.require_whole()


def test_a_client_that_is_too_old_is_refused_before_anything_runs(toy, fake, refused):
    output = refused("--agent", "claude-code", FAKE_VERSION="1.0.3", **fake)
    assert "claude says that it is version '1.0.3'" in output and not toy.runs.exists()


@pytest.mark.parametrize(
    ("option", "limit", "warning", "reason"),
    [
        (
            "--max-cost",
            "0.95",
            "$0.80 of $0.95 (--max-cost)",
            "$1.00 of $0.95 are used up; continue with a larger --max-cost",
        ),
        (
            "--max-tokens",
            "500",
            "400 of 500 tokens (--max-tokens)",
            "500 of 500 tokens are used up; continue with a larger --max-tokens",
        ),
    ],
)
@pytest.mark.slow
def test_budgets_of_money_and_tokens(toy, fake, option, limit, warning, reason):
    """Warned at four fifths; at the end the proposal that was paid for gets its trial. Refused proposals count, too."""
    answer = prints("up", total_cost_usd=0.2, modelUsage={"a": {"inputTokens": 100}})
    does = sets("'(' if n == 3 and 'was refused' not in brief else n") + answer
    arguments = ("--agent", "claude-code", *USUAL, option, limit)
    output = toy.run(*arguments, FAKE_DOES=does, **fake)
    assert warning in output and output.count(f"({option})") == 1 and f"stopped: {reason}" in output
    # five proposals: one refused, four tried
    assert toy.statuses() == ["keep"] * 5 and len(toy.journal("refused")) == 1
    assert "proposals took 500 tokens and $1.00" in output
    assert reason in toy.run(*arguments, FAKE_DOES=does, **fake)  # of the whole run
    toy.require_whole()


@pytest.mark.slow
def test_a_budget_that_cannot_be_held_says_so(toy):
    toy.plan_steps(e2=[{"files": {"solver.py": solver(5)}, "say": "up"}])
    output = toy.run_agent(2, "--max-cost", "1", "--max-tokens", "5")
    assert "an unknown number of tokens and an unknown cost" in output
    toy.plan_steps(e3=[{"files": {"solver.py": solver(6)}, "say": "up"}])
    output = toy.run_agent(3, "--max-cost", "1")
    assert (
        "--max-cost cannot be enforced: the agent did not report the cost of 1 proposal; use --experiments or --hours"
        in output
    )


@pytest.mark.slow
def test_several_agents_have_their_turns(toy, fake):
    """First of all one each, then by what they earn (unit/test_agents.py)."""
    answer = prints("up", total_cost_usd=0.1, modelUsage={"a": {"inputTokens": 9}})
    down = {f"e{number}": [{"files": {"solver.py": solver(-number)}, "say": "down"}] for number in range(2, 6)}
    toy.plan_steps(**down)
    arguments = ("--agent", "command,claude-code", "--agent-command", toy.agent[3], "--experiments", "5", *USUAL)
    output = toy.run(*arguments, FAKE_DOES=sets("n") + answer, **fake)
    agents = [entry["agent"] for entry in toy.journal("attempt")[1:]]
    assert agents[:3] == ["command", "claude-code", "claude-code"]
    assert "command, claude-code (version 2.1.197) (the better one proposes more often)" in output
    toy.run("report")
    report = (toy.runs / "report/report.md").read_text()
    assert "| claude-code |" in report and "| command |" in report
