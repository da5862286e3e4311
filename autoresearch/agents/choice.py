"""Which agents a run uses: those named on the command line or, with `auto`, one that is ready on this machine."""

import dataclasses
import os

from autoresearch import UserError
from autoresearch.agents import KEYS, NAMES, Agent
from autoresearch.agents.clients import CLIENTS, Client
from autoresearch.agents.hybrid import SHARE, Informed


@dataclasses.dataclass(frozen=True)
class AgentOptions:
    """What the command line says about agents."""

    agent: str = "auto"  # NAME, NAME:MODEL, several with commas between them, or optimize+NAME
    model: str | None = None  # for agents named without a model
    base_url: str | None = None  # the server that claude-api calls
    thinking: str | None = None  # how much claude-api's model thinks: see claude_api.thinking_settings
    command: str | None = None  # the program that `command` runs
    limit: float = 1800.0  # seconds for one proposal
    web_search: bool = False  # whether agents may search the web when they are stuck
    seed: int = 42  # of agents that choose at random
    price: str | None = None  # IN,OUT: dollars per million tokens of claude-api's server


def make_agents(options: AgentOptions) -> tuple[list[Agent], str]:
    """(The agents, how the first screen describes them.) UserError for an agent that is unknown or not ready."""
    hybrid = "+" in options.agent
    names = [name.strip() for name in options.agent.split("+" if hybrid else ",")]
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"--agent takes one agent, or several different ones with commas, not {options.agent!r}")
    if hybrid and (len(names) != 2 or names[0] != "optimize" or names[1] in ("auto", "sweep") or "," in options.agent):
        raise UserError(
            f"--agent optimize+NAME takes one agent with a model, e.g. optimize+claude-api, not {options.agent}"
        )
    words = []
    if names == ["auto"]:
        name, reason = choose_ready(options)
        names = [name]
        words.append(f"--agent auto: {reason}; choose another with --agent NAME")
    agents = [make_agent(name, options) for name in names]
    kinds = {name.partition(":")[0] for name in names}
    for option, value, kind in (
        ("--agent-command", options.command, {"command"}),
        ("--base-url", options.base_url, {"claude-api"}),
        ("--price", options.price, {"claude-api"}),
        ("--thinking", options.thinking, {"claude-api"}),
        ("--model", options.model, {"claude-api", *CLIENTS}),
    ):
        if value and not kinds & kind:
            raise UserError(f"{option} is for --agent {' or '.join(sorted(kind))}, not for --agent {','.join(names)}")
    if kinds == {"sweep"}:
        words.insert(0, "no model: seeded local search over the constants")
    elif kinds == {"optimize"}:
        words.insert(0, "no model: learns the effect of each constant from all attempts")
    elif hybrid:
        words.insert(0, f"optimize varies constants; {names[1]} changes code, in {SHARE:.0%} of the trials")
    elif len(agents) > 1:
        words.insert(0, "the better one proposes more often")
    said = ", ".join(map(describe, agents))
    if hybrid:
        from autoresearch.agents.optimize import Optimize

        optimizer, other = agents
        assert isinstance(optimizer, Optimize)
        return [optimizer, Informed(other, optimizer)], f"{said} ({'; '.join(words)})"
    return agents, said + (f" ({'; '.join(words)})" if words else "")


def describe(agent: Agent) -> str:
    """`claude-code (sonnet, version 2.1.332)`, as far as known."""
    model = getattr(agent, "model", None) if ":" not in agent.name else None
    version = f"version {agent.version}" if isinstance(agent, Client) else None
    more = ", ".join(word for word in (model, version) if word)
    return agent.name + (f" ({more})" if more else "")


def choose_ready(options: AgentOptions) -> tuple[str, str]:
    """(The name of the agent that `auto` selects here, why.)"""
    if options.command:
        return "command", "--agent-command is given"
    if options.base_url or any(map(os.environ.get, KEYS)):
        return "claude-api", "--base-url is given" if options.base_url else "its key is set"
    too_old = ""
    for name, client in CLIENTS.items():
        if client.installed() and client.signed_in():
            try:
                client.require()
                return name, f"{client.program} is installed and signed in"
            except UserError as error:
                too_old = f"{error}; "
    programs = ", ".join(client.program for client in CLIENTS.values())
    return "sweep", f"{too_old}no {KEYS[0]} is set, and none of {programs} is installed and signed in"


def make_agent(name: str, options: AgentOptions) -> Agent:
    """The agent that NAME or NAME:MODEL names."""
    kind, _, model = name.partition(":")
    if kind == "claude-api":
        from autoresearch.agents.claude_api import ClaudeAPI  # imports the SDK, which takes a second

        prices = read_prices(options.price) if options.price else None
        return ClaudeAPI(
            model or options.model, options.base_url, options.thinking, options.limit, options.web_search, name, prices
        )
    if kind in CLIENTS:
        return Client(CLIENTS[kind], model or options.model, options.limit, options.web_search, name)
    if model:
        raise UserError(f"{kind} takes no model; type --agent {kind}")
    if kind == "sweep":
        from autoresearch.agents.sweep import Sweep

        return Sweep(options.seed)
    if kind == "optimize":
        from autoresearch.agents.optimize import Optimize

        return Optimize(options.seed)
    if kind == "command":
        from autoresearch.agents.command import CommandAgent

        if not options.command:
            raise UserError("--agent command needs the program: --agent-command 'PROGRAM ARGUMENTS'")
        return CommandAgent(options.command, options.limit)
    raise UserError(f"there is no agent {kind!r}; choose one of {', '.join(NAMES)}")


def read_prices(text: str) -> tuple[float, float]:
    """The two numbers of --price IN,OUT. Raises UserError."""
    try:
        taken, made = (float(part) for part in text.split(","))
        if 0 <= taken < 1e6 and 0 <= made < 1e6:
            return taken, made
    except ValueError:
        pass
    raise UserError(f"--price takes dollars per million input and output tokens, e.g. 3,15, not {text!r}")
