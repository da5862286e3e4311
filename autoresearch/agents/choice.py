"""Which agents a run has: from what the command line says, or, for `auto`, from what is ready on this machine."""

import dataclasses
import os

from autoresearch import UserError
from autoresearch.agents import KEYS, Agent
from autoresearch.agents.clients import CLIENTS, Client

AGENTS = ("auto", "claude-api", *CLIENTS, "command", "sweep")


@dataclasses.dataclass(frozen=True)
class AgentOptions:
    """What the user said of the agents."""

    agent: str = "auto"  # NAME, NAME:MODEL, or several with commas between them
    model: str | None = None  # of those without one
    base_url: str | None = None  # of claude-api
    thinking: str | None = None  # of claude-api
    command: str | None = None  # the program of `command`
    limit: float = 1800.0  # seconds for one proposal
    web_search: bool = False
    seed: int = 42  # for agents that draw lots


def make_agents(options: AgentOptions) -> tuple[list[Agent], str]:
    """(The agents, what the first screen says of them). UserError for what cannot be had."""
    names = [name.strip() for name in options.agent.split(",")]
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"--agent takes one agent, or different ones with commas between them, not {options.agent!r}")
    words = []
    if names == ["auto"]:
        name, reason = choose_ready(options)
        names = [name]
        words.append(f"--agent auto: {reason}; --agent NAME chooses another")
    agents = [make_agent(name, options) for name in names]
    kinds = {name.partition(":")[0] for name in names}
    for option, value, kind in (
        ("--agent-command", options.command, {"command"}),
        ("--base-url", options.base_url, {"claude-api"}),
        ("--thinking", options.thinking, {"claude-api"}),
        ("--model", options.model, {"claude-api", *CLIENTS}),
    ):
        if value and not kinds & kind:
            raise UserError(
                f"{option} goes with --agent {' or '.join(sorted(kind))}, not with --agent {','.join(names)}"
            )
    if kinds == {"sweep"}:
        words.insert(0, "no model: seeded local search over the constants")
    elif len(agents) > 1:
        words.insert(0, "each as often as it earns")
    said = ", ".join(
        agent.name + (f" ({agent.model})" if getattr(agent, "model", None) and ":" not in agent.name else "")
        for agent in agents
    )
    return agents, said + (f" ({'; '.join(words)})" if words else "")


def choose_ready(options: AgentOptions) -> tuple[str, str]:
    """(The agent of `auto`, why)."""
    if options.command:
        return "command", "a program is given"
    if options.base_url or any(map(os.environ.get, KEYS)):
        return "claude-api", "a server is given" if options.base_url else "a key for it is set"
    unfit = ""
    for name, client in CLIENTS.items():
        if client.installed() and client.signed_in():
            try:
                client.require()
                return name, f"{client.program} is installed and signed in"
            except UserError as error:
                unfit = f"{error}; "
    return (
        "sweep",
        f"{unfit}no {KEYS[0]} is set, and none of {', '.join(client.program for client in CLIENTS.values())} is installed and signed in",
    )


def make_agent(name: str, options: AgentOptions) -> Agent:
    """The agent of a name, or of NAME:MODEL."""
    kind, _, model = name.partition(":")
    if kind == "claude-api":
        from autoresearch.agents.claude_api import ClaudeAPI  # which imports the SDK: a second

        return ClaudeAPI(
            model or options.model, options.base_url, options.thinking, options.limit, options.web_search, name
        )
    if kind in CLIENTS:
        return Client(CLIENTS[kind], model or options.model, options.limit, options.web_search, name)
    if model:
        raise UserError(f"{kind} has no models: --agent {kind}")
    if kind == "sweep":
        from autoresearch.agents.sweep import Sweep

        return Sweep(options.seed)
    if kind == "command":
        from autoresearch.agents.command import CommandAgent

        if not options.command:
            raise UserError("--agent command needs the program: --agent-command 'PROGRAM ARGUMENTS'")
        return CommandAgent(options.command, options.limit)
    raise UserError(f"there is no agent {kind!r}; choose one of {', '.join(AGENTS)}")
