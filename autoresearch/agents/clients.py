"""Agents that are third-party programs: Claude Code, Codex, Gemini CLI, OpenCode. One row of CLIENTS each.

Each runs headless in the run's worktree, with the brief on its standard input, and may read and edit there with its own
file tools: no shell, and no permission is bypassed. It uses the user's own account or key, and its own settings. Its
JSON output has its answer and the cost. failures.py knows what its errors mean.
"""

import dataclasses
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from autoresearch import UserError
from autoresearch.agents import AgentBlocked, AgentFailed, AgentUnavailable, Proposal, price, read_reply
from autoresearch.agents.command import run_told
from autoresearch.agents.failures import Meaning, meaning_of, named_wait
from autoresearch.brief import Brief
from autoresearch.runner.logs import read_tail
from autoresearch.runner.process import ask
from autoresearch.text import one_line

OUTPUT = 8 << 20  # bytes of output that are read


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a program's output says."""

    text: str  # its answer
    tokens: int | None = None
    dollars: float | None = None
    error: str = ""  # what went wrong, in its words

    def __post_init__(self) -> None:
        """A program may print anything, and the record adds these up: what is no amount counts as not known."""
        for name in ("tokens", "dollars"):
            amount = getattr(self, name)
            if not (isinstance(amount, int | float) and 0 <= amount < math.inf):
                object.__setattr__(self, name, None)


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
    files: tuple[tuple[str, str], ...]  # files below the home folder that mean the same, if they hold the text
    read: Callable[[str, str | None], Answer]  # from (its whole output, the model that was asked for)
    search: tuple[str, str] = ("", "")  # more arguments: without web search, and with it
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    search_environment: dict[str, str] = dataclasses.field(default_factory=dict)  # in its place, with web search
    policy: str = ""  # contents of policy.toml in the transcript's folder; {search} stands for the web search tool
    stuck: str = ""  # what its output repeats when it will never end
    home: str = ""  # the environment variable that names another folder for the first part of its files' paths
    budget: str = ""  # the option that limits the dollars of a call
    needs_account: bool = True

    @property
    def path(self) -> str | None:
        return shutil.which(self.program)

    def installed(self) -> bool:
        return self.path is not None

    def signed_in(self) -> bool:
        """As far as it can be seen without asking its service."""
        return any(os.environ.get(name) for name in self.keys) or any(
            text in read_tail(self.settings(name)) for name, text in self.files if self.settings(name).is_file()
        )

    def settings(self, name: str) -> Path:
        folder, _, rest = name.partition("/")
        return Path(os.environ[self.home]) / rest if os.environ.get(self.home) else Path.home() / folder / rest

    def require_account(self) -> None:
        """UserError where nobody is signed in."""
        if self.needs_account and not self.signed_in():
            raise UserError(
                f"{self.program} is not signed in: start `{self.program}` once and sign in, or set {self.keys[0]}, or "
                "choose another --agent"
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
        except (ValueError, RecursionError):
            position = match.end()
    return found


def read_claude(output: str, model: str | None) -> Answer:
    """`claude -p --output-format stream-json`: an object a line. Of type result: the cost, and the usage by model.

    `modelUsage` counts all calls; `usage`, which it has as well, does not. Before there is a result, or without one,
    the messages of the model have theirs; a message has several lines.
    """
    values = objects(output)
    said = next((value for value in values if value.get("type") == "result"), None)
    if said is None:
        messages = [value["message"] for value in values if value.get("type") == "assistant" and value.get("message")]
        usages = {message.get("id"): message.get("usage") or {} for message in messages}
        used = sum(value for usage in usages.values() for name, value in usage.items()
                   if name.endswith("input_tokens") or name == "output_tokens")  # fmt: skip
        return Answer("", used or None, error="it printed no result")
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

    `turn.completed` has the usage of all requests together, `turn.failed` the reason. Each message, command and edit of
    the model ends a request.
    """
    text, error, tokens, dollars, requests = "", "", None, None, 0
    for value in objects(output):
        item = value.get("item") or {}
        requests += value.get("type") == "item.completed" and item.get("type") != "reasoning"
        if item.get("type") == "agent_message":
            text = str(item.get("text") or "")
        elif value.get("type") == "turn.failed":
            error = str((value.get("error") or {}).get("message") or "it failed")
        elif value.get("type") == "turn.completed" and (usage := value.get("usage")):
            taken, made, cached = (
                usage.get(name) or 0 for name in ("input_tokens", "output_tokens", "cached_input_tokens")
            )
            tokens, dollars = taken + made, price(model, "openai", taken, made, cached, requests=max(1, requests))
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
        requests = max(1, (stats.get("api") or {}).get("totalRequests") or 1)
        cost = price(name, "google", taken, made, used.get("cached", 0), requests=requests)
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
    arguments="-p --output-format stream-json --verbose --permission-mode acceptEdits --setting-sources user "
    "--strict-mcp-config --no-session-persistence --max-turns 50",
    model="--model",
    keys=(
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
        "CLAUDE_CODE_USE_FOUNDRY",
    ),
    files=(
        (".claude/.credentials.json", ""),
        (".claude/settings.json", "apiKeyHelper"),
        (".claude/settings.json", "ANTHROPIC_"),
    ),
    home="CLAUDE_CONFIG_DIR",
    budget="--max-budget-usd",
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
    files=((".codex/auth.json", ""), (".codex/config.toml", "model_provider"), (".codex/config.toml", "keyring")),
    home="CODEX_HOME",
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
    keys=("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_GCA"),
    files=((".gemini/oauth_creds.json", ""), (".gemini/.env", "KEY"), (".gemini/settings.json", "selectedType")),
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
    oldest=(1, 18, 3),
    arguments="run --format json --title experiment --agent lab",
    model="-m",
    keys=("OPENCODE_AUTH_CONTENT",),
    files=((".local/share/opencode/auth.json", ""),),
    needs_account=False,  # it has models that ask for none
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
    """An agent that runs one of these programs. Raises UserError where it is missing, too old or not signed in."""

    retries, paid = True, True

    def __init__(self, program: Program, model: str | None, limit: float, web_search: bool, name: str) -> None:
        self.version = program.require()
        program.require_account()
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
        command, excess = self.command(search, brief.dollars), self.excess(brief.transcript / "agent.log", brief)
        ended, log = await run_told(command, brief, text, folder, self.limit, excess, **environment)
        output = read_tail(log, OUTPUT)
        answer = self.read(output)
        if ended.reason or answer.error:
            raise self.failure(ended.reason, answer, output)
        return read_reply(answer.text, tokens=answer.tokens, dollars=answer.dollars, transcript=str(log.parent))

    def read(self, output: str) -> Answer:
        """What the program's output says. An error if it is not of the form that this version is known to print."""
        try:
            return self.program.read(output, self.model)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            return Answer("", error=f"an answer that makes no sense: {type(error).__name__}: {error}")

    def command(self, search: bool, dollars: float | None) -> str:
        """The whole command line, for a shell. dollars: that it may cost."""
        words = [f"exec {shlex.quote(str(self.program.path))}", self.program.arguments, self.program.search[search]]
        words += [self.program.model, shlex.quote(self.model)] if self.model else []
        words += (
            [self.program.budget, f"{max(dollars, 0.01):.2f}"] if self.program.budget and dollars is not None else []
        )
        return " ".join(words)

    def excess(self, log: Path, brief: Brief) -> Callable[[], str | None]:
        """A function that tells why the program must be ended, or None: a limit, or it repeats itself without end."""
        size = 0  # of the log, when it was read last

        def reason() -> str | None:
            nonlocal size
            if not log.exists() or log.stat().st_size == size:
                return None
            size = log.stat().st_size
            if self.program.stuck and read_tail(log).count(self.program.stuck) > 5:
                return "ended because its answers break off again and again (terminated)"
            taken = self.read(read_tail(log, OUTPUT))
            limit = brief.must_end(taken.tokens, taken.dollars)
            return limit and f"ended before it was done: {limit}"

        return reason

    def failure(self, reason: str, answer: Answer, output: str) -> Exception:
        """What to raise for a call that failed: only a person can fix it, it will pass, or this proposal failed."""
        name, costs = self.program.program, (answer.tokens, answer.dollars)
        said = one_line(answer.error if objects(output) else f"{answer.error}: {output[-1000:]}", 300)
        again = "run the same command again; nothing is lost"
        match meaning_of(said):
            case Meaning.SIGNED_OUT:
                how = f"Start `{name}` once and sign in, or set {self.program.keys[0]}"
                return AgentBlocked(f"{name} is not signed in ({said}). {how}, and {again}", *costs)
            case Meaning.NO_CREDIT:
                how = "Top up the account, or choose another --agent"
                return AgentBlocked(f"{name} asks for payment ({said}). {how}, and {again}", *costs)
            case Meaning.NO_MODEL:
                return AgentBlocked(f"{name} does not know the model ({said}); choose one with --model", *costs)
        whole = f"{name}: {reason or 'it failed'}: {said}"
        if Meaning.PASSES in (meaning_of(said), meaning_of(reason)):
            return AgentUnavailable(whole, *costs, again=named_wait(said))
        return AgentFailed(whole, *costs)
