"""Agents that are programs of others: Claude Code, Codex, Gemini CLI, OpenCode. One row of CLIENTS each.

Each is run headless in the run's worktree, with the brief on its standard input, and may read and edit there with its
own file tools: no shell, and no permission is bypassed. It signs in with the user's own account or key and keeps its
own settings. Its JSON output says what it answered and what that cost.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from autoresearch import UserError
from autoresearch.agents import AgentFailed, AgentUnavailable, Proposal, price, read_reply
from autoresearch.agents.command import run_told
from autoresearch.brief import Brief
from autoresearch.runner.logs import read_tail
from autoresearch.runner.process import ask
from autoresearch.text import one_line

OUTPUT = 8 << 20  # bytes of output that are read
STATUS = r"(?:^|\(|status:? |code\W{1,3}|error\W{1,3})"  # what stands before a number that is an HTTP status
SIGN_IN = re.compile(
    STATUS + r"401\b|unauthori[sz]ed|authentication.?(?:error|failed|required)|invalid (?:x-)?api.?key|not logged in|"
    r"please run /login|sign in again|log in again|api key not valid|set an auth method|no api key|missing api key|"
    r"missing environment variable",
    re.IGNORECASE,
)
AWAY = re.compile(
    STATUS + r"(?:429|50[0234]|529)\b|overloaded|rate.?limit|too many requests|quota|ECONNREFUSED|ECONNRESET|ENOTFOUND|"
    r"EAI_AGAIN|ETIMEDOUT|fetch failed|connection (?:error|refused|reset|closed)|unable to connect|stream disconnected|"
    r"network error|service unavailable|error sending request|premature close|terminated",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a program's output says."""

    text: str  # its answer
    tokens: int | None = None
    dollars: float | None = None
    error: str = ""  # what went wrong, in its words


@dataclasses.dataclass(frozen=True)
class Program:
    """How one program is used.

    Arguments may name the folders of a brief as $AUTORESEARCH_PAGES and $AUTORESEARCH_TRANSCRIPT. In the values of the
    environment {pages} stands for the first.
    """

    program: str
    package: str  # of npm
    oldest: tuple[int, ...]  # version that has all the options below; older ones are refused
    arguments: str  # as a shell reads them
    model: str  # the option that chooses a model
    keys: tuple[str, ...]  # environment variables of which each means: signed in
    files: tuple[str, ...]  # files that mean the same, relative to the home folder
    read: Callable[[str, str | None], Answer]  # from (its whole output, the model that was asked for)
    search: tuple[str, str] = ("", "")  # more arguments: without web search, and with it
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    search_environment: dict[str, str] = dataclasses.field(default_factory=dict)  # in its place, with web search
    policy: str = ""  # contents of policy.toml in the transcript's folder; {search} stands for the web search tool
    stuck: str = ""  # what its output repeats when it will never end

    @property
    def path(self) -> str | None:
        return shutil.which(self.program)

    def installed(self) -> bool:
        return self.path is not None

    def signed_in(self) -> bool:
        return any(os.environ.get(name) for name in self.keys) or any(
            (Path.home() / name).exists() for name in self.files
        )

    def require(self, limit: float = 60.0) -> str:
        """Its version. UserError where it is missing, too old, or says none within so many seconds."""
        if self.path is None:
            raise UserError(
                f"there is no program {self.program}; install it, `npm install -g {self.package}`, and sign in, or "
                "choose another --agent"
            )
        try:
            _, said = ask([self.path, "--version"], limit, errors=False)
        except OSError as error:
            raise UserError(f"`{self.program} --version` does not answer: {error}") from None
        found = re.search(r"\d+(?:\.\d+)+", said)
        if not found or tuple(map(int, found[0].split("."))) < self.oldest:
            needed = ".".join(map(str, self.oldest))
            raise UserError(
                f"{self.program} says that it is version {one_line(said, 60) or 'nothing'!r}, but {needed} or later is "
                f"needed: `npm install -g {self.package}`"
            )
        return found[0]


def objects(output: str) -> list[dict]:
    """The JSON objects in an output that begin a line. Anything between them is skipped."""
    found, decoder, position = [], json.JSONDecoder(), 0
    while match := re.compile(r"^\{", re.MULTILINE).search(output, position):
        try:
            value, position = decoder.raw_decode(output, match.start())
            found.append(value)
        except ValueError:
            position = match.end()
    return found


def read_claude(output: str, model: str | None) -> Answer:
    """`claude -p --output-format json`: one object with the result, the cost, and the usage by model.

    `modelUsage` counts all calls; `usage`, which it has as well, does not.
    """
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
    """`codex exec --json`: an object a line. The last message is the answer.

    `turn.completed` has the usage, `turn.failed` the reason.
    """
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
    """`gemini -o json`: one object with the response and the tokens of each model, or one with an error.

    An error stands among other output.
    """
    said = next((value for value in reversed(objects(output)) if "response" in value or "error" in value), {})
    if said.get("error"):
        error = said["error"] if isinstance(said["error"], dict) else {"message": said["error"]}
        return Answer("", error=f"{error.get('code', '')} {error.get('message', '')}".strip())
    tokens, dollars = None, 0.0
    for name, stats in ((said.get("stats") or {}).get("models") or {}).items():
        used = {key: value or 0 for key, value in (stats.get("tokens") or {}).items()}
        taken, made = used.get("prompt", 0), used.get("candidates", 0) + used.get("thoughts", 0)
        tokens = (tokens or 0) + used.get("total", 0)
        cost = price(name, "google", taken, made, used.get("cached", 0))
        dollars = None if cost is None or dollars is None else dollars + cost
    text = str(said.get("response") or "")
    return Answer(text, tokens, dollars if tokens else None, "" if text else "it printed no answer")


def read_opencode(output: str, model: str | None) -> Answer:
    """`opencode run --format json`: an object a line. The texts of the last step are the answer.

    Each step has its tokens and its cost.
    """
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
                said = value.get("error") or {}
                data = said.get("data") or {}
                reason = data.get("message") or said.get("name") or "it failed"
                error = f"{data.get('statusCode') or ''} {reason}".strip()
    return Answer(text.strip(), tokens, dollars, error or ("" if text.strip() else "it printed no answer"))


# Claude Code: edit tools only. The pages can be read but, unlike with --add-dir, not written. Settings and hooks of the
# repository do not count. It retries three times; what lasts longer the loop waits for.
CLAUDE = Program(
    program="claude",
    package="@anthropic-ai/claude-code",
    oldest=(2, 1, 0),
    arguments="-p --output-format json --permission-mode acceptEdits --setting-sources user --strict-mcp-config "
    "--no-session-persistence --max-turns 50",
    model="--model",
    keys=(
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
    ),
    files=(".claude/.credentials.json",),
    read=read_claude,
    search=(
        '--tools Read,Edit --allowedTools "Read(/$AUTORESEARCH_PAGES/**)"',
        '--tools Read,Edit,WebSearch --allowedTools "Read(/$AUTORESEARCH_PAGES/**)" WebSearch',
    ),
    environment={"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "CLAUDE_CODE_MAX_RETRIES": "3"},
)

# Codex reads with a shell, which its own sandbox keeps in the worktree and off the network. It edits with a tool.
CODEX = Program(
    program="codex",
    package="@openai/codex",
    oldest=(0, 169, 0),
    arguments="exec --json --color never --ephemeral --sandbox workspace-write "
    "-c sandbox_workspace_write.exclude_slash_tmp=true -c sandbox_workspace_write.exclude_tmpdir_env_var=true "
    "-c sandbox_workspace_write.network_access=false -c 'approval_policy=\"never\"' "
    "-c 'shell_environment_policy.inherit=\"core\"' --disable unbounded_connection_retries",
    model="-m",
    keys=("CODEX_API_KEY",),
    files=(".codex/auth.json",),
    read=read_codex,
    search=("-c 'web_search=\"disabled\"'", "-c 'web_search=\"live\"'"),
)

# Gemini CLI: file tools only, by a policy file of our own, which also keeps it from writing the pages.
GEMINI = Program(
    program="gemini",
    package="@google/gemini-cli",
    oldest=(0, 61, 0),
    arguments='--approval-mode auto_edit --skip-trust -o json --policy "$AUTORESEARCH_TRANSCRIPT/policy.toml" '
    '--include-directories "$AUTORESEARCH_PAGES" -e none --allowed-mcp-server-names none',
    model="-m",
    keys=("GEMINI_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_GCA"),
    files=(".gemini/oauth_creds.json",),
    read=read_gemini,
    environment={"NO_COLOR": "1"},
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


def opencode_settings(**more: str) -> str:
    """Settings with an agent of our own, `lab`: the user's own permissions would override any that came without one."""
    permissions = {
        "*": "deny",
        "read": "allow",
        "edit": {"*": "allow", "../*": "deny", ".git": "deny", ".opencode/*": "deny", "opencode.json*": "deny"},
        "external_directory": {"*": "deny", "{pages}/*": "allow"},
        **more,
    }
    agent = {"lab": {"mode": "primary", "permission": permissions}}
    return json.dumps({"share": "disabled", "autoupdate": False, "snapshot": False, "agent": agent})


OPENCODE_QUIET = {
    "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
    "OPENCODE_DB": ":memory:",
    "OPENCODE_DISABLE_FFF": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
}
OPENCODE_SEARCH = {"websearch": "allow", "webfetch": "allow"}
OPENCODE = Program(
    program="opencode",
    package="opencode-ai",
    oldest=(1, 18, 0),
    arguments="run --format json --title experiment --agent lab",
    model="-m",
    keys=("OPENCODE_AUTH_CONTENT",),
    files=(".local/share/opencode/auth.json",),
    read=read_opencode,
    environment={**OPENCODE_QUIET, "OPENCODE_CONFIG_CONTENT": opencode_settings()},
    search_environment={
        **OPENCODE_QUIET,
        "OPENCODE_CONFIG_CONTENT": opencode_settings(**OPENCODE_SEARCH),
        "OPENCODE_ENABLE_EXA": "1",
    },
    stuck='"reason":"unknown"',  # when answers break off it asks again without end
)
CLIENTS = {"claude-code": CLAUDE, "codex": CODEX, "gemini": GEMINI, "opencode": OPENCODE}


class Client:
    """An agent that runs one of these programs. Raises UserError where the program is missing or too old."""

    retries = True

    def __init__(self, program: Program, model: str | None, limit: float, web_search: bool, name: str) -> None:
        program.require()
        self.program, self.model, self.limit, self.web_search, self.name = program, model, limit, web_search, name

    async def propose(self, brief: Brief, folder: Path) -> Proposal:
        brief.pages.mkdir(exist_ok=True)
        search = self.web_search and brief.stage == "look outside"
        if self.program.policy:
            policy = self.program.policy.replace("{search}", ', "google_web_search"' if search else "")
            (brief.transcript / "policy.toml").write_text(policy)
        values = (search and self.program.search_environment) or self.program.environment
        pages = json.dumps(str(brief.pages))[1:-1]  # inside a JSON string
        environment = {name: value.replace("{pages}", pages) for name, value in values.items()}
        text = brief.text(with_sources=False)
        stuck = self.stuck(brief.transcript / "agent.log")
        ended, log = await run_told(self.command(search), brief, text, folder, self.limit, stuck, **environment)
        output = read_tail(log, OUTPUT)
        answer = self.program.read(output, self.model)
        if ended.reason or answer.error:
            raise self.failure(ended.reason, answer, output)
        return read_reply(answer.text, tokens=answer.tokens, dollars=answer.dollars, transcript=str(log.parent))

    def command(self, search: bool) -> str:
        """The whole command line, for a shell."""
        words = [f"exec {shlex.quote(str(self.program.path))}", self.program.arguments, self.program.search[search]]
        words += [self.program.model, shlex.quote(self.model)] if self.model else []
        return " ".join(words)

    def stuck(self, log: Path) -> Callable[[], str | None]:
        """A function that tells why the program must be ended, or None: whether it repeats itself without end."""

        def reason() -> str | None:
            endless = self.program.stuck and read_tail(log).count(self.program.stuck) > 5
            return "ended because its answers break off again and again (terminated)" if endless else None

        return reason

    def failure(self, reason: str, answer: Answer, output: str) -> Exception:
        """What to raise for a call that failed: only a person can fix it, it will pass, or this proposal failed."""
        name = self.program.program
        said = one_line(answer.error if objects(output) else f"{answer.error}: {output[-1000:]}", 300)
        if SIGN_IN.search(said):
            return UserError(
                f"{name} is not signed in ({said}). Start `{name}` once and sign in, or set {self.program.keys[0]}, "
                "and run the same command again; nothing is lost"
            )
        reason = f"{reason or 'it failed'}: {said}"
        failed = AgentUnavailable if AWAY.search(reason) else AgentFailed
        return failed(f"{name}: {reason}", answer.tokens, answer.dollars)
