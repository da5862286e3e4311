"""The options of each command: a dataclass whose fields carry their help texts. `taking` makes a command line of it."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from autoresearch import BRIEF_TOKENS
from autoresearch.agents import NAMES


def option(help: str, *names: str, default: Any = None, **more) -> Any:
    """A field of an options dataclass. names: given if the option is not named like the field."""
    return dataclasses.field(default=default, metadata={"option": typer.Option(default, *names, help=help, **more)})


def argument(help: str, default: Any = None, **more) -> Any:
    """The same for a positional argument. default: `...` if it is required."""
    return dataclasses.field(default=default, metadata={"option": typer.Argument(default, help=help, **more)})


def taking(kind: type) -> Callable[[Callable], Callable]:
    """Turn a function of (context, options) into a typer command with a keyword for each field of the dataclass."""

    def decorate(function: Callable) -> Callable:
        def call(context: typer.Context, **values):
            return function(context, kind(**values))

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
        for field in dataclasses.fields(kind):
            option = field.metadata["option"]
            parameters.append(inspect.Parameter(field.name, keyword, default=option, annotation=field.type))
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        call.__name__, call.__doc__ = function.__name__, function.__doc__
        return call

    return decorate


@dataclasses.dataclass
class Tagged:
    tag: str | None = option("Name of the run. Default: the last run, else today's date.")


@dataclasses.dataclass
class Confined:
    """Options of commands that run other people's code."""

    sandbox: str = option(
        "auto: run trials in a sandbox if the kernel supports it. require: refuse to run without one. off: trust the "
        "agent's code.",
        default="auto",
    )
    plain: bool = option("Print one line per event, no live view.", "--plain", default=False)


@dataclasses.dataclass
class Trials(Confined, Tagged):
    """Options of commands that run trials."""


@dataclasses.dataclass
class Game:
    """Which game is played: profile and data."""

    profile: str | None = option("gpu, cpu or test. Default: gpu if there is a GPU, else cpu.")
    data: str | None = option("climbmix, sotu or a folder. Default: depends on the profile.")

    def settings(self) -> dict[str, str]:
        """Environment variables of the game. A folder's path must mean the same from the worktree."""
        data = self.data
        if data and data not in ("climbmix", "sotu"):
            data = str(Path(data).expanduser().resolve())
        return {k: v for k, v in (("AUTORESEARCH_PROFILE", self.profile), ("AUTORESEARCH_DATA", data)) if v}


@dataclasses.dataclass
class Begins(Game, Trials):
    """Options of commands that can begin a run."""


# Options that several commands have.
MODEL = "The agent's model. Default: the agent's own."
BASE_URL = "With --agent claude-api: any server with a Messages API."
AGENT_COMMAND = "The program that --agent command runs."
AS_JSON = "Print one JSON object; everything else goes to standard error."
CLUSTER = (
    "Run trials on a Ray cluster. auto: the cluster that this machine belongs to. "
    "`uv run --group cluster` installs Ray."
)
SEAT_CPUS = "With --cluster: cores per trial on nodes without GPUs. Default: all cores of the node."


@dataclasses.dataclass
class Research(Begins):
    """Options of the loop itself."""

    experiments: int | None = option("Stop when the run has this many experiments, including the baseline.", min=1)
    hours: float | None = option("Start no experiment after this many hours.", min=0)
    max_cost: float | None = option(
        "Start no experiment once the run's proposals (and its seats, with --seat-price) have cost this much.",
        min=0,
        metavar="USD",
    )
    max_tokens: int | None = option("Start no experiment once the proposals have used this many tokens.", min=1)
    agent: str = option(
        f"Who proposes the edits: {', '.join(NAMES)}; auto: the first that is ready. NAME:MODEL selects a model. A,B: "
        "both, the better one more often. optimize+NAME: optimize varies constants, NAME changes code.",
        default="auto",
    )
    model: str | None = option(MODEL)
    base_url: str | None = option(BASE_URL)
    price: str | None = option(
        "With --base-url: price of a million input and a million output tokens, in dollars.", metavar="IN,OUT"
    )
    thinking: str | None = option(
        "With claude-api: low, medium (the default), high, xhigh, max, off, or a budget in tokens for older models."
    )
    agent_command: str | None = option(AGENT_COMMAND)
    agent_limit: float = option("Time limit for one proposal, in seconds.", min=1, default=1800.0)
    web_search: bool = option("Let the agent search the web when it is stuck.", "--web-search", default=False)
    fill: str | None = option("sweep: let sweep propose while the agent cannot be reached.")
    repairs: int = option(
        "How often an edit that crashed in its first minute goes back to the agent.", min=0, default=1
    )
    lookahead: int | None = option(
        "Proposals to have ready while trials run. Default: 1 for agents that take time to think, else 0; with several "
        "seats, as many as will be free by the time a proposal is ready.",
        min=0,
    )
    compile_ahead: bool = option(
        "On GPUs: while trials run, compile what the next edit needs, on idle processors. Not measured yet.",
        "--compile-ahead",
        default=False,
    )
    proposers: int | None = option(
        "Maximum number of proposals in progress at once. The loop asks for as many as there are seats that are idle "
        "or about to be; they cost the same as one after the other. Default: one per seat, up to 16.",
        min=1,
    )
    gpus: str | None = option(
        "GPUs to use, by their nvidia-smi numbers; each runs one trial at a time. Default: those of the run, or the "
        "first.",
        "--gpus",
        "--gpu",
        metavar="0,1,..",
    )
    workers: int | None = option("Number of trials at a time, without GPUs. Default: that of the run, or 1.", min=1)
    cluster: str | None = option(CLUSTER, metavar="auto|HOST:PORT")
    seat_cpus: int | None = option(SEAT_CPUS, min=1)
    tiers: str | None = option(
        "With --cluster: two kinds of devices. Edits are screened on the first; those that look good run on the "
        "second, which decides.",
        metavar="KIND,KIND",
    )
    max_seats: int | None = option(
        "With --cluster: ask its autoscaler for up to this many seats while proposals wait for one, and give them back "
        "when no more trials will begin. Default: the seats that it has.",
        min=1,
    )
    seat_price: list[str] = option(
        "With --cluster: price of a seat of that kind in dollars per hour, counted by --max-cost. Repeat, or separate "
        "with commas, for several kinds.",
        metavar="KIND=USD",
        default=(),
    )
    brief_tokens: int = option("Maximum size of the agent's brief, in tokens.", min=4000, default=BRIEF_TOKENS)
    seed: int = option("Seed of every trial; picking seeds is not research.", min=0, default=42)
    keep_rule: str = option(
        "margin: a gain must exceed half its standard error and the price of the added lines. strict: any gain is "
        "kept.",
        default="margin",
    )
    baseline_runs: int | None = option(
        "How often the baseline is trained, to estimate the noise. Default: 2; in other repositories 5 if it takes "
        "less than a minute.",
        min=1,
    )
    approve: str | None = option(
        "Wait for `approve NUMBER` or `reject NUMBER` before an edit is tried, before a keep counts, or each time this "
        "many dollars are spent. Other work continues meanwhile.",
        metavar="edits|keeps|cost:USD",
    )
    notify: str | None = option(
        "Command to call on each keep, stop and fault, with one JSON line on its standard input.", metavar="COMMAND"
    )
    track: str | None = option(
        "Send the run to an experiment tracker as it runs; `uv run --extra NAME` installs it.",
        metavar="trackio|wandb|mlflow",
    )
    detach: bool = option(
        "Run in the background, even after the terminal is closed. See also: status, logs, stop.",
        "--detach",
        default=False,
    )


@dataclasses.dataclass
class Plan(Confined):
    goal: str = argument('What to improve, e.g. "make parsing faster".', default="")
    edit: list[str] = option("A file that experiments may change, or a pattern. Repeat for more.", "--edit", default=())
    time: str | None = option("The score is the processor time that this command takes.", metavar="COMMAND")
    size: str | None = option("The score is the size of this file, or of the files matching it.", metavar="FILE")
    score: str | None = option("The score is what this command prints, as `name: number`.", metavar="COMMAND")
    metric: str | None = option("Name of the score among what is printed. Default: the only name printed.")
    direction: str | None = option("minimize or maximize.")
    train: str | None = option("Command to build or train before each score. Empty: none.", metavar="COMMAND")
    guard: str | None = option(
        "Command that must succeed before anything is kept. Default: the tests. Empty: none.", metavar="COMMAND"
    )
    setup: str | None = option(
        "Command to run once, with your rights, before the first trial. Empty: none.", metavar="COMMAND"
    )
    time_limit: float | None = option(
        "Time limit for each command, in seconds. Default: ten times what it takes.", min=1
    )
    agent: str | None = option(
        f"Agent that drafts the workload to be timed if you name none: {', '.join(NAMES[:-2])}. Default: none."
    )
    model: str | None = option(MODEL)
    base_url: str | None = option(BASE_URL)
    agent_command: str | None = option(AGENT_COMMAND)
    yes: bool = option("Accept what is proposed without asking.", "--yes", "-y", default=False)
    force: bool = option("Replace the existing program.md.", "--force", default=False)


@dataclasses.dataclass
class Check(Confined):
    pass


@dataclasses.dataclass
class Called:
    """Options of commands that an external agent calls."""

    background: bool = option(
        "Return as soon as the trial runs; `loop.py wait` returns its verdict.", "--background", default=False
    )
    apart: bool = option("This is the process that does the work (calls.py).", "--apart", default=False, hidden=True)
    cluster: str | None = option("Refused.", hidden=True)


@dataclasses.dataclass
class Start(Called, Begins):
    seed: int | None = option("Seed of every trial. Default: the run's, else 42.", min=0)
    keep_rule: str | None = option("margin or strict, as for the loop itself. Default: the run's, else margin.")
    baseline_runs: int | None = option(
        "How often the baseline is trained, to estimate the noise. Default: 1; in other repositories as for the loop.",
        min=1,
    )
    gpu: str | None = option("The GPU to use, by its nvidia-smi number. Default: the run's, else the first.")


@dataclasses.dataclass
class Try(Called, Trials):
    message: str = option("What you changed, and why.", "--message", "-m", default="")
    category: str = option("The kind of change, e.g. optimizer.", default="")
    hypothesis: str = option("Why it should help.", default="")
    predicted: float | None = option("The change of the metric that you expect.")
    lesson: str = option("What the last verdicts taught, for later runs. L3: this edit tests lesson L3.", default="")
    idea: list[str] = option(
        "I3: this edit tests idea I3. 'WHAT | EXPECTED EFFECT | SOURCE': an idea for a later edit. Repeat for more.",
        default=(),
    )
    as_json: bool = option(AS_JSON, "--json", default=False)


@dataclasses.dataclass
class Clean(Tagged):
    yes: bool = option("Do not ask.", "--yes", "-y", default=False)


@dataclasses.dataclass
class Numbered(Trials):
    """Options of commands about one experiment."""

    number: int = argument("Number of the experiment.", default=0, metavar="NUMBER", show_default=False)


@dataclasses.dataclass
class Wait(Tagged):
    number: int | None = argument("The experiment. Default: the last one.", metavar="NUMBER", min=1)
    seconds: float | None = option(
        "Wait at most this long. Default: until there is a verdict.", "--for", metavar="SECONDS", min=0
    )
    as_json: bool = option(AS_JSON, "--json", default=False)


@dataclasses.dataclass
class Verify(Trials):
    runs: int = option("How often each version is trained, each time with a fresh seed.", min=2, default=3)
    ablate: bool = option(
        "Also leave out each kept change in turn, to see which of them contribute.", "--ablate", default=False
    )
    prune: bool = option(
        "Ablate, then write a branch without the changes that contribute nothing, and run that too.",
        "--prune",
        default=False,
    )
    cluster: str | None = option(f"{CLUSTER} Only for a run of a cluster.", metavar="auto|HOST:PORT")
    seat_cpus: int | None = option(SEAT_CPUS, min=1)


@dataclasses.dataclass
class Status(Tagged):
    as_json: bool = option(
        "Print one JSON object; autoresearch/views/state.py explains its keys.", "--json", default=False
    )
    plain: bool = option("No colours or frames.", "--plain", default=False)


@dataclasses.dataclass
class Note(Tagged):
    text: str = argument('What to tell the agent, e.g. "try smaller batches".', metavar="TEXT", default=...)


@dataclasses.dataclass
class SearchIdeas:
    search: str | None = option(
        "Let an agent search the web for ideas on this topic; ideas without a source are dropped.", metavar="TOPIC"
    )
    agent: str = option(f"Who searches: {', '.join(NAMES[:-2])}.", default="auto")
    model: str | None = option(MODEL)
    base_url: str | None = option(BASE_URL)
    agent_command: str | None = option(AGENT_COMMAND)
    agent_limit: float = option("Time limit for the search, in seconds.", min=1, default=1800.0)


@dataclasses.dataclass
class AddIdea:
    text: str = argument('What to try, e.g. "one matrix for both embeddings".', metavar="TEXT", default=...)
    source: str = option("Whose idea it is, or where it was published.", default="by hand")
    expect: str = option("The effect you expect.", default="")


@dataclasses.dataclass
class DropIdea:
    idea: str = argument("Number of the idea, such as I3.", metavar="IDEA", default=...)


@dataclasses.dataclass
class Approve(Tagged):
    number: int = argument("The experiment.", metavar="NUMBER", default=..., min=1)


@dataclasses.dataclass
class Reject(Approve):
    message: str = option("Why you reject it; the agent is told.", "--message", "-m", default="")


@dataclasses.dataclass
class Stop(Tagged):
    now: bool = option(
        "Stop at once. The running experiment gets no verdict; it runs again when the run continues.",
        "--now",
        default=False,
    )


@dataclasses.dataclass
class Logs(Tagged):
    follow: bool = option("Keep printing until the loop ends, or Ctrl-C.", "--follow", "-f", default=False)
    trial: bool = option(
        "Print the output of the running trial instead, or of the last one if none is running.",
        "--trial",
        default=False,
    )


@dataclasses.dataclass
class Report(Tagged):
    output: Path | None = option("Folder to write to. Default: report/ in the run's own folder.")
    pdf: bool = option("Write report.pdf as well.", "--pdf", default=False)


@dataclasses.dataclass
class Track(Tagged):
    tracker: str | None = argument("trackio, wandb or mlflow.", metavar="TRACKER")


@dataclasses.dataclass
class Watch(Tagged):
    port: int = option("Port on 127.0.0.1. Default: a free one.", min=0, max=65535, default=0)
    writable: bool = option(
        "Let anyone who has the page's address add notes, pause, stop, approve and reject.",
        "--writable",
        default=False,
    )


@dataclasses.dataclass
class Doctor(Game):
    as_json: bool = option(
        "Print one JSON object: `ready`, and `findings`, each with name, status, said and next.",
        "--json",
        default=False,
    )
    plain: bool = option("No colours.", "--plain", default=False)
