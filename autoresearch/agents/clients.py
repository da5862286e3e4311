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
from autoresearch.agents import AgentFailed, AgentUnavailable, Proposal, read_reply
from autoresearch.agents.command import run_told
from autoresearch.brief import Brief
from autoresearch.ledger import one_line
from autoresearch.trial import read_tail

OUTPUT = 8 << 20                    # bytes of output that are read
SIGN_IN = re.compile(r"\b401\b|unauthori[sz]ed|authentication.?(?:error|failed|required)|invalid (?:x-)?api.?key|not logged in|please run /login|"
                     r"api key not valid|set an auth method|no api key|missing api key", re.IGNORECASE)
AWAY = re.compile(r"\b(?:429|50[0234]|529)\b|overloaded|rate.?limit|too many requests|quota|ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|"
                  r"fetch failed|connection (?:error|refused|reset|closed)|unable to connect|stream disconnected|network error|service unavailable|"
                  r"error sending request|premature close|terminated", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a client's output says."""

    text: str                       # its last words
    tokens: int | None = None
    dollars: float | None = None
    error: str = ""                 # what went wrong, in its words


@dataclasses.dataclass(frozen=True)
class Program:
    """How one command line is used."""

    program: str
    package: str                    # of npm
    oldest: tuple[int, ...]         # version with all the options below
    arguments: str                  # split as a shell does; {pages}: the folder with a page for each attempt
    model: str                      # the option that chooses a model
    search: tuple[str, str]         # arguments without and with web search
    keys: tuple[str, ...]           # environment variables that mean signed in
    files: tuple[str, ...]          # and files, from the home folder
    read: Callable[[str], Answer]   # of its whole output
    environment: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def path(self) -> str | None:
        return shutil.which(self.program)

    def installed(self) -> bool:
        return self.path is not None

    def signed_in(self) -> bool:
        return any(os.environ.get(name) for name in self.keys) or any((Path.home() / name).exists() for name in self.files)

    def require(self) -> None:
        """UserError where it is not there, or too old."""
        if not self.installed():
            raise UserError(f"there is no program {self.program}; install it, `npm install -g {self.package}`, and sign in, or choose another --agent")
        try:
            said = subprocess.run([self.path, "--version"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL).stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"`{self.program} --version` does not answer: {error}") from None
        found = re.search(r"\d+(?:\.\d+)+", said)
        if not found or tuple(map(int, found[0].split("."))) < self.oldest:
            raise UserError(f"{self.program} says that it is version {one_line(said, 60) or 'nothing'!r}, but {'.'.join(map(str, self.oldest))} or later is "
                            f"needed: `npm install -g {self.package}`")


def read_claude(output: str) -> Answer:
    """`claude -p --output-format json`: one object with result, usage and total_cost_usd."""
    said = next((value for value in objects(output) if value.get("type") == "result"), None)
    if said is None:
        return Answer("", error="it printed no result")
    usage = said.get("usage") or {}
    tokens = sum(usage.get(name) or 0 for name in ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"))
    text = str(said.get("result") or "")
    return Answer(text, tokens, said.get("total_cost_usd"), (text or str(said.get("subtype"))) if said.get("is_error") else "")


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


CLIENTS = {
    "claude-code": Program(
        "claude", "@anthropic-ai/claude-code", (2, 1, 0),
        "-p --output-format json --permission-mode acceptEdits --add-dir {pages}", "--model", ("--tools Read,Edit", "--tools Read,Edit,WebSearch --allowedTools WebSearch"),
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"), (".claude/.credentials.json",), read_claude,
    ),
}


class Client:
    """The agent of a row."""

    mends = True

    def __init__(self, program: Program, model: str | None, limit: float, web_search: bool, name: str) -> None:
        program.require()
        self.program, self.model, self.limit, self.web_search, self.name = program, model, limit, web_search, name

    def command(self, brief: Brief) -> str:
        """The whole command line, for a shell."""
        search = self.program.search[self.web_search and brief.stage == "look outside"]
        arguments = f"{self.program.arguments} {search}".replace("{pages}", shlex.quote(str(brief.pages)))
        return f"exec {shlex.quote(self.program.path)} {arguments}" + (f" {self.program.model} {shlex.quote(self.model)}" if self.model else "")

    def propose(self, brief: Brief, folder: Path) -> Proposal:
        brief.pages.mkdir(exist_ok=True)
        ended, log = run_told(self.command(brief), brief, brief.text(with_sources=False), folder, self.limit, **dict(self.program.environment))
        output = read_tail(log, OUTPUT)
        answer = self.program.read(output)
        if ended.reason or answer.error:
            self.fail(ended.reason, answer, output)
        return read_reply(answer.text, tokens=answer.tokens, dollars=answer.dollars, transcript=str(log.parent))

    def fail(self, reason: str, answer: Answer, output: str) -> None:
        """Raise what a failed call comes to."""
        name, said = self.program.program, one_line(answer.error or output[-2000:], 300)
        if SIGN_IN.search(said):
            raise UserError(f"{name} is not signed in ({said}). Start `{name}` once and sign in, or set {self.program.keys[0]}, and run the same command again; "
                            "nothing is lost")
        failed = AgentUnavailable if AWAY.search(said) else AgentFailed
        raise failed(f"{name}: {reason or 'it failed'}: {said}", answer.tokens, answer.dollars)
