"""Agents that are command lines of others: Claude Code, Codex, Gemini CLI, OpenCode. One row of CLIENTS each.

Each is run headless in the run's worktree, told the brief on its standard input, and may read and edit there with its own file
tools: no shell, no permission is bypassed. It signs in with the user's own account or key and keeps its own settings. Its JSON output says
what it answered and what that took.
"""

import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from autoresearch import UserError
from autoresearch.agents import AgentFailed, AgentUnavailable, Proposal, price, read_reply
from autoresearch.agents.command import run_told
from autoresearch.brief import Brief
from autoresearch.ledger import one_line
from autoresearch.trial import read_tail

OUTPUT = 8 << 20  # bytes of output that are read
STATUS = r"(?:^|\(|status:? |code\W{1,3}|error\W{1,3})"  # before a number that is a status
SIGN_IN = re.compile(
    STATUS
    + r"401\b|unauthori[sz]ed|authentication.?(?:error|failed|required)|invalid (?:x-)?api.?key|not logged in|please run /login|"
    r"sign in again|log in again|api key not valid|set an auth method|no api key|missing api key|missing environment variable",
    re.IGNORECASE,
)
AWAY = re.compile(
    STATUS
    + r"(?:429|50[0234]|529)\b|overloaded|rate.?limit|too many requests|quota|ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|"
    r"fetch failed|connection (?:error|refused|reset|closed)|unable to connect|stream disconnected|network error|service unavailable|"
    r"error sending request|premature close|terminated",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a client's output says."""

    text: str  # its last words
    tokens: int | None = None
    dollars: float | None = None
    error: str = ""  # what went wrong, in its words


@dataclasses.dataclass(frozen=True)
class Program:
    """How one command line is used.

    Arguments may name the folders of a brief as $AUTORESEARCH_PAGES and $AUTORESEARCH_DESK; in the environment {pages} stands for the first.
    """

    program: str
    package: str  # of npm
    oldest: tuple[int, ...]  # version with all the options below; older ones are refused
    arguments: str  # for a shell
    model: str  # the option that chooses a model
    search: tuple[str, str]  # arguments without and with web search
    keys: tuple[str, ...]  # environment variables that mean signed in
    files: tuple[str, ...]  # and files, from the home folder
    read: Callable[[str, str | None], Answer]  # of (its whole output, the model that was asked for)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    search_environment: dict[str, str] = dataclasses.field(default_factory=dict)  # instead, with web search
    policy: str = ""  # a file that is written for it, policy.toml on the desk; {search} stands for more tools
    stuck: str = ""  # what its output holds again and again when it will never end

    @functools.cached_property
    def path(self) -> str | None:
        return shutil.which(self.program)

    def installed(self) -> bool:
        return self.path is not None

    def signed_in(self) -> bool:
        return any(os.environ.get(name) for name in self.keys) or any(
            (Path.home() / name).exists() for name in self.files
        )

    def require(self) -> None:
        """UserError where it is not there, or too old."""
        if not self.installed():
            raise UserError(
                f"there is no program {self.program}; install it, `npm install -g {self.package}`, and sign in, or choose another --agent"
            )
        try:
            said = subprocess.run(
                [self.path, "--version"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
            ).stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"`{self.program} --version` does not answer: {error}") from None
        found = re.search(r"\d+(?:\.\d+)+", said)
        if not found or tuple(map(int, found[0].split("."))) < self.oldest:
            raise UserError(
                f"{self.program} says that it is version {one_line(said, 60) or 'nothing'!r}, but {'.'.join(map(str, self.oldest))} or later is "
                f"needed: `npm install -g {self.package}`"
            )


def objects(output: str) -> list[dict]:
    """The JSON objects in an output, each beginning a line; what stands between is passed over."""
    found, decoder, position = [], json.JSONDecoder(), 0
    while match := re.compile(r"^\{", re.MULTILINE).search(output, position):
        try:
            value, position = decoder.raw_decode(output, match.start())
            found.append(value)
        except ValueError:
            position = match.end()
    return found


def read_claude(output: str, model: str | None) -> Answer:
    """`claude -p --output-format json`: one object with result, cost, and usage by model (which, unlike `usage`, counts all calls)."""
    said = next((value for value in objects(output) if value.get("type") == "result"), None)
    if said is None:
        return Answer("", error="it printed no result")
    tokens = sum(
        usage.get(name) or 0
        for usage in (said.get("modelUsage") or {}).values()
        for name in ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
    )
    text = str(said.get("result") or "")
    trouble = text or ", ".join(map(str, said.get("errors") or ())) or str(said.get("subtype"))
    status = said.get("api_error_status")
    return Answer(
        text,
        tokens or None,
        said.get("total_cost_usd"),
        (f"{status} " if status else "") + trouble if said.get("is_error") else "",
    )


def read_codex(output: str, model: str | None) -> Answer:
    """`codex exec --json`: an object a line; the last message is the text, `turn.completed` has the usage, `turn.failed` the reason."""
    text, error, tokens, dollars = "", "", None, None
    for value in objects(output):
        item = value.get("item") or {}
        if item.get("type") == "agent_message":
            text = str(item.get("text") or "")
        elif value.get("type") == "turn.failed":
            error = str((value.get("error") or {}).get("message") or "it failed")
        elif value.get("type") == "turn.completed" and (usage := value.get("usage")):
            taken, made, cached = (
                usage.get(name) or 0 for name in ("input_tokens", "output_tokens", "cached_input_tokens")
            )
            tokens, dollars = taken + made, price(model, "openai", taken, made, cached)
    return Answer(text, tokens, dollars, error or ("" if text else "it printed no answer"))


def read_gemini(output: str, model: str | None) -> Answer:
    """`gemini -o json`: one object with response and the tokens of each model, or one with error; errors stand among other output."""
    said = next((value for value in reversed(objects(output)) if "response" in value or "error" in value), {})
    if said.get("error"):
        error = said["error"] if isinstance(said["error"], dict) else {"message": said["error"]}
        return Answer("", error=f"{error.get('code', '')} {error.get('message', '')}".strip())
    tokens, dollars = None, 0.0
    for name, stats in ((said.get("stats") or {}).get("models") or {}).items():
        used = {key: value or 0 for key, value in (stats.get("tokens") or {}).items()}
        tokens = (tokens or 0) + used.get("total", 0)
        cost = price(
            name,
            "google",
            used.get("prompt", 0),
            used.get("candidates", 0) + used.get("thoughts", 0),
            used.get("cached", 0),
        )
        dollars = None if cost is None or dollars is None else dollars + cost
    text = str(said.get("response") or "")
    return Answer(text, tokens, dollars if tokens else None, "" if text else "it printed no answer")


def read_opencode(output: str, model: str | None) -> Answer:
    """`opencode run --format json`: an object a line; texts after the last step's start are the answer, each step has its tokens and cost."""
    text, error, tokens, dollars = "", "", None, None
    for value in objects(output):
        part = value.get("part") or {}
        match value.get("type"):
            case "step_start":
                text = ""
            case "text":
                text += str(part.get("text") or "") + "\n"
            case "step_finish":
                used = part.get("tokens") or {}
                tokens = (tokens or 0) + (used.get("total") or (used.get("input") or 0) + (used.get("output") or 0))
                dollars = (dollars or 0.0) + (part.get("cost") or 0.0)
            case "error":
                fault = value.get("error") or {}
                data = fault.get("data") or {}
                error = (
                    f"{data.get('statusCode') or ''} {data.get('message') or fault.get('name') or 'it failed'}".strip()
                )
    return Answer(text.strip(), tokens, dollars, error or ("" if text.strip() else "it printed no answer"))


# Claude Code: edit tools only; the pages are readable and, unlike with --add-dir, not writable. Settings and hooks of the repository do not count.
CLAUDE = Program(
    "claude",
    "@anthropic-ai/claude-code",
    (2, 1, 0),
    "-p --output-format json --permission-mode acceptEdits --setting-sources user --strict-mcp-config --no-session-persistence --max-turns 50",
    "--model",
    (
        '--tools Read,Edit --allowedTools "Read(/$AUTORESEARCH_PAGES/**)"',
        '--tools Read,Edit,WebSearch --allowedTools "Read(/$AUTORESEARCH_PAGES/**)" WebSearch',
    ),
    (
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
    ),
    (".claude/.credentials.json",),
    read_claude,
    {
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "3",
    },  # what lasts longer the loop waits for
)
# Codex reads with a shell, which its own sandbox keeps in the worktree and off the network; it edits with a tool of its own.
CODEX = Program(
    "codex",
    "@openai/codex",
    (0, 169, 0),
    "exec --json --color never --ephemeral --sandbox workspace-write -c sandbox_workspace_write.exclude_slash_tmp=true "
    "-c sandbox_workspace_write.exclude_tmpdir_env_var=true -c sandbox_workspace_write.network_access=false -c 'approval_policy=\"never\"' "
    "-c 'shell_environment_policy.inherit=\"core\"' --disable unbounded_connection_retries",
    "-m",
    ("-c 'web_search=\"disabled\"'", "-c 'web_search=\"live\"'"),
    ("CODEX_API_KEY",),
    (".codex/auth.json",),
    read_codex,
)
# Gemini CLI: file tools only, by a policy file of our own, which also keeps the pages from being written.
GEMINI = Program(
    "gemini",
    "@google/gemini-cli",
    (0, 61, 0),
    '--approval-mode auto_edit --skip-trust -o json --policy "$AUTORESEARCH_DESK/policy.toml" --include-directories "$AUTORESEARCH_PAGES" '
    "-e none --allowed-mcp-server-names none",
    "-m",
    ("", ""),
    ("GEMINI_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_GCA"),
    (".gemini/oauth_creds.json",),
    read_gemini,
    {"NO_COLOR": "1"},
    policy="""[[rule]]
toolName = "*"
decision = "deny"
priority = 100

[[rule]]
toolName = ["list_directory", "read_file", "glob", "grep_search", "replace", "write_file"{search}]
decision = "allow"
priority = 200

[[rule]]
toolName = ["replace", "write_file"]
argsPattern = '"file_path":"[^"]*attempts/'
decision = "deny"
priority = 300
""",
)
# OpenCode: an agent of our own, since permissions of the user's would come before those that are given with them.
LAB = {
    "*": "deny",
    "read": "allow",
    "edit": {"*": "allow", "../*": "deny", ".git": "deny", ".opencode/*": "deny", "opencode.json*": "deny"},
    "external_directory": {"*": "deny", "{pages}/*": "allow"},
}


def lab(**more: str) -> str:
    return json.dumps(
        {
            "share": "disabled",
            "autoupdate": False,
            "snapshot": False,
            "agent": {"lab": {"mode": "primary", "permission": {**LAB, **more}}},
        }
    )


QUIET = {
    "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
    "OPENCODE_DB": ":memory:",
    "OPENCODE_DISABLE_FFF": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
}
OPENCODE = Program(
    "opencode",
    "opencode-ai",
    (1, 18, 0),
    "run --format json --title experiment --agent lab",
    "-m",
    ("", ""),
    ("OPENCODE_AUTH_CONTENT",),
    (".local/share/opencode/auth.json",),
    read_opencode,
    {**QUIET, "OPENCODE_CONFIG_CONTENT": lab()},
    {**QUIET, "OPENCODE_CONFIG_CONTENT": lab(websearch="allow", webfetch="allow"), "OPENCODE_ENABLE_EXA": "1"},
    stuck='"reason":"unknown"',  # when answers break off it asks again without end
)
CLIENTS = {"claude-code": CLAUDE, "codex": CODEX, "gemini": GEMINI, "opencode": OPENCODE}


class Client:
    """The agent of a row."""

    mends = True

    def __init__(self, program: Program, model: str | None, limit: float, web_search: bool, name: str) -> None:
        program.require()
        self.program, self.model, self.limit, self.web_search, self.name = program, model, limit, web_search, name

    def command(self, search: bool) -> str:
        """The whole command line, for a shell."""
        arguments = f"{self.program.arguments} {self.program.search[search]}"
        return f"exec {shlex.quote(self.program.path)} {arguments}" + (
            f" {self.program.model} {shlex.quote(self.model)}" if self.model else ""
        )

    def propose(self, brief: Brief, folder: Path) -> Proposal:
        brief.pages.mkdir(exist_ok=True)
        search = self.web_search and brief.stage == "look outside"
        if self.program.policy:
            policy = self.program.policy.replace("{search}", ', "google_web_search"' if search else "")
            (brief.desk / "policy.toml").write_text(policy)
        environment = (
            self.program.search_environment if search and self.program.search_environment else self.program.environment
        )
        environment = {
            name: value.replace("{pages}", json.dumps(str(brief.pages))[1:-1]) for name, value in environment.items()
        }
        ended, log = run_told(
            self.command(search),
            brief,
            brief.text(with_sources=False),
            folder,
            self.limit,
            self.stuck(brief),
            **environment,
        )
        output = read_tail(log, OUTPUT)
        answer = self.program.read(output, self.model)
        if ended.reason or answer.error:
            self.fail(ended.reason, answer, output)
        return read_reply(answer.text, tokens=answer.tokens, dollars=answer.dollars, transcript=str(log.parent))

    def stuck(self, brief: Brief) -> Callable[[], str | None]:
        """Asked now and then whether it goes round in circles: why it must end, or None."""

        def excess() -> str | None:
            circles = self.program.stuck and read_tail(brief.desk / "agent.log").count(self.program.stuck) > 5
            return "ended because its answers break off again and again (terminated)" if circles else None

        return excess

    def fail(self, reason: str, answer: Answer, output: str) -> None:
        """Raise what a failed call comes to."""
        name, said = (
            self.program.program,
            one_line(answer.error if objects(output) else f"{answer.error}: {output[-1000:]}", 300),
        )
        if SIGN_IN.search(said):
            raise UserError(
                f"{name} is not signed in ({said}). Start `{name}` once and sign in, or set {self.program.keys[0]}, and run the same command again; "
                "nothing is lost"
            )
        failed = AgentUnavailable if AWAY.search(said) else AgentFailed
        raise failed(f"{name}: {reason or 'it failed'}: {said}", answer.tokens, answer.dollars)
