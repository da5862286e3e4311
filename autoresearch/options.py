"""The options of each command: a dataclass, whose fields carry their help. cli.py makes a command line of them."""

import dataclasses
from pathlib import Path
from typing import Any

import typer

from autoresearch import BRIEF_TOKENS
from autoresearch.agents import NAMES


def option(help: str, *names: str, default: Any = None, **more) -> Any:
    """A field of a dataclass of options. names: where the option is not called like the field."""
    return dataclasses.field(default=default, metadata={"option": typer.Option(*names, help=help, **more)})


def argument(help: str, default: Any = None, **more) -> Any:
    """The same, of what stands in the command without an option's name. default: `...` for one that must be there."""
    return dataclasses.field(default=default, metadata={"option": typer.Argument(help=help, **more)})


@dataclasses.dataclass
class Tagged:
    tag: str | None = option("Name of the run. Default: the last run, else today's date.")


@dataclasses.dataclass
class Confined:
    """Of commands that run other people's code."""

    sandbox: str = option(
        "auto: confine trials where the kernel can. require: refuse to run where it cannot. off: trust the agent's "
        "code.",
        default="auto",
    )
    plain: bool = option("One line an event, no live view.", "--plain", default=False)


@dataclasses.dataclass
class Trials(Confined, Tagged):
    """Of commands that run trials."""


@dataclasses.dataclass
class Game:
    """Which game is played."""

    profile: str | None = option("gpu, cpu or test. Default: gpu where there is one, else cpu.")
    data: str | None = option("climbmix, sotu or a folder. Default: the profile's.")

    def settings(self) -> dict[str, str]:
        """Environment variables of the game. A folder's path must mean the same from the worktree."""
        data = self.data
        if data and data not in ("climbmix", "sotu"):
            data = str(Path(data).expanduser().resolve())
        return {k: v for k, v in (("AUTORESEARCH_PROFILE", self.profile), ("AUTORESEARCH_DATA", data)) if v}


@dataclasses.dataclass
class Begins(Game, Trials):
    """Of commands that can begin a run."""


KEEP_RULE = (
    "margin: a gain must exceed half of what noise does to it, and the price of the lines that it adds. strict: any "
    "gain."
)


CLUSTER = (
    "Run trials on the nodes of a Ray cluster: that of this machine, or the one there. `uv run --group cluster` "
    "installs Ray."
)
SEAT_CPUS = "With --cluster: cores of one trial, on nodes without GPUs. Default: all that a node has."


@dataclasses.dataclass
class Research(Begins):
    """Of the loop itself."""

    experiments: int | None = option("Stop when the run has this many, the baseline included.", min=1)
    hours: float | None = option("Start no experiment after this many hours.", min=0)
    max_cost: float | None = option(
        "Start no experiment when the run's proposals, and its seats with --seat-price, have cost this.",
        min=0,
        metavar="USD",
    )
    max_tokens: int | None = option("Start no experiment when they have taken this many tokens.", min=1)
    agent: str = option(
        f"Who proposes: {', '.join(NAMES)}; auto: the first that is ready. NAME:MODEL for a certain model. A,B: both, "
        "the better one more often. optimize+NAME: it varies constants, NAME changes code.",
        default="auto",
    )
    model: str | None = option("The agent's model. Default: the agent's own.")
    base_url: str | None = option("With --agent claude-api: any server with a Messages API.")
    price: str | None = option(
        "With --base-url: dollars for a million tokens of input and of output.", metavar="IN,OUT"
    )
    thinking: str | None = option(
        "With claude-api: low, medium (the default), high, xhigh, max, off, or a budget in tokens for older models."
    )
    agent_command: str | None = option("The program of --agent command.")
    agent_limit: float = option("Seconds for one proposal.", min=1, default=1800.0)
    web_search: bool = option("Let the agent search the web when it is stuck.", "--web-search", default=False)
    fill: str | None = option("sweep: proposes while the agent cannot be reached.")
    repairs: int = option(
        "How often an edit that crashed in its first minute goes back to the agent.", min=0, default=1
    )
    lookahead: int | None = option(
        "Proposals to have ready while trials run. Default: 1 for agents that take time to think, else 0; of several "
        "seats as many as will be free by the time that a proposal is ready.",
        min=0,
    )
    proposers: int | None = option(
        "Proposals in the making at once, at most: there are as many as seats are idle or about to be, and they cost "
        "what they would one after the other. Default: one for each seat, up to 16.",
        min=1,
    )
    gpus: str | None = option(
        "GPUs to use, by their numbers in nvidia-smi: a trial at a time on each. Default: the first, or those of the "
        "run.",
        "--gpus",
        "--gpu",
        metavar="0,1,..",
    )
    workers: int | None = option("Trials at a time, without GPUs. Default: 1, or as the run has it.", min=1)
    cluster: str | None = option(CLUSTER, metavar="auto|HOST:PORT")
    seat_cpus: int | None = option(SEAT_CPUS, min=1)
    tiers: str | None = option(
        "With --cluster: two kinds of devices. Edits are screened on the first; what looks good there is tried on "
        "the second, which decides.",
        metavar="KIND,KIND",
    )
    max_seats: int | None = option(
        "With --cluster: ask its autoscaler for up to so many seats while proposals wait for one, and give them back "
        "when no more will begin. Default: those that it has.",
        min=1,
    )
    seat_price: list[str] = option(
        "With --cluster: dollars an hour for a seat of that kind, counted by --max-cost; again, or with commas, for "
        "more.",
        metavar="KIND=USD",
        default=(),
    )
    brief_tokens: int = option("How much the agent is told.", min=4000, default=BRIEF_TOKENS)
    seed: int = option("Seed of every trial; picking seeds is not research.", min=0, default=42)
    keep_rule: str = option(KEEP_RULE, default="margin")
    baseline_runs: int | None = option(
        "How often the baseline is trained, to know the noise. Default: 2; in other repositories 5, where it takes "
        "less than a minute.",
        min=1,
    )
    approve: str | None = option(
        "Wait for `approve NUMBER` or `reject NUMBER` before an edit is tried, before a keep counts, or each time that "
        "so many dollars are spent; other work goes on.",
        metavar="edits|keeps|cost:USD",
    )
    notify: str | None = option(
        "Called with one JSON line on its standard input on each keep, stop and fault.", metavar="COMMAND"
    )
    track: str | None = option(
        "Send the run to a tracker while it goes on; uv run --extra installs it.", metavar="trackio|wandb|mlflow"
    )
    detach: bool = option(
        "Go on in the background, also when the terminal is closed: see status, logs, stop.", "--detach", default=False
    )


@dataclasses.dataclass
class Plan(Confined):
    goal: str = dataclasses.field(
        default="", metadata={"option": typer.Argument(help='What to improve, e.g. "make parsing faster".')}
    )
    edit: list[str] = option("A file that experiments may change, or a pattern; again for more.", "--edit", default=())
    time: str | None = option("The score is the time that this command takes.", metavar="COMMAND")
    size: str | None = option("The score is the size of this file, or of what fits this pattern.", metavar="FILE")
    score: str | None = option("The score is what this command prints, as `name: number`.", metavar="COMMAND")
    metric: str | None = option("The name that it prints. Default: the only one.")
    direction: str | None = option("minimize or maximize.")
    train: str | None = option("Builds or trains before each score. Empty: nothing does.", metavar="COMMAND")
    guard: str | None = option(
        "Must succeed before anything is kept. Default: the tests. Empty: none.", metavar="COMMAND"
    )
    setup: str | None = option("Runs once, with your rights. Empty: nothing.", metavar="COMMAND")
    time_limit: float | None = option("Seconds for each command. Default: ten times what it takes.", min=1)
    agent: str | None = option(
        f"Who drafts a workload that is timed, where you name none: {', '.join(NAMES[:-1])}. Default: nobody."
    )
    model: str | None = option("The agent's model. Default: the agent's own.")
    base_url: str | None = option("With --agent claude-api: any server with a Messages API.")
    agent_command: str | None = option("The program of --agent command.")
    yes: bool = option("Take what is proposed, and ask nothing.", "--yes", "-y", default=False)
    force: bool = option("Replace the program.md that is there.", "--force", default=False)


@dataclasses.dataclass
class Check(Confined):
    pass


@dataclasses.dataclass
class Called:
    """Of commands that an external agent calls."""

    background: bool = option(
        "Return as soon as the trial runs; `loop.py wait` has its verdict.", "--background", default=False
    )
    apart: bool = option("This is the process that does it (calls.py).", "--apart", default=False, hidden=True)
    cluster: str | None = option("Refused.", hidden=True)


@dataclasses.dataclass
class Start(Called, Begins):
    seed: int | None = option("Seed of every trial. Default: the run's, else 42.", min=0)
    keep_rule: str | None = option("margin or strict, as for the loop itself. Default: the run's, else margin.")
    baseline_runs: int | None = option(
        "How often the baseline is trained, to know the noise. Default: 1; in other repositories as for the loop.",
        min=1,
    )
    gpu: str | None = option("The GPU to use, by its number in nvidia-smi. Default: the run's, else the first.")


@dataclasses.dataclass
class Try(Called, Trials):
    message: str = option("What was changed, and why.", "--message", "-m", default="")
    category: str = option("What kind of change it is, e.g. optimizer.", default="")
    hypothesis: str = option("Why it should help.", default="")
    predicted: float | None = option("The change of the metric that is expected.")
    lesson: str = option("What the last verdicts taught, for later runs; L3: this edit tests lesson L3.", default="")
    idea: list[str] = option(
        "I3: this edit tests idea I3. 'WHAT | EXPECTED EFFECT | SOURCE': what another could test; again for more.",
        default=(),
    )
    as_json: bool = option("Print one JSON object, everything else to standard error.", "--json", default=False)


@dataclasses.dataclass
class Clean(Tagged):
    yes: bool = option("Do not ask.", "--yes", "-y", default=False)


@dataclasses.dataclass
class Numbered(Trials):
    """Of commands about one experiment."""

    number: int = argument("Number of the experiment.", default=0, metavar="NUMBER", show_default=False)


@dataclasses.dataclass
class Wait(Tagged):
    number: int | None = argument("The experiment. Default: the last one.", metavar="NUMBER", min=1)
    seconds: float | None = option("How long. Default: until it has its verdict.", "--for", metavar="SECONDS", min=0)
    as_json: bool = option("Print one JSON object, everything else to standard error.", "--json", default=False)


@dataclasses.dataclass
class Verify(Trials):
    runs: int = option("How often each code is trained, each time with another fresh seed.", min=2, default=3)
    ablate: bool = option(
        "Also leave out each kept change in turn: which of them carry the gain?", "--ablate", default=False
    )
    prune: bool = option(
        "Ablate, then write a branch without the changes that do not, and run that too.", "--prune", default=False
    )
    cluster: str | None = option(f"{CLUSTER} For a run of a cluster.", metavar="auto|HOST:PORT")
    seat_cpus: int | None = option(SEAT_CPUS, min=1)


@dataclasses.dataclass
class Status(Tagged):
    as_json: bool = option(
        "Print one JSON object; autoresearch/views/state.py says what its keys mean.", "--json", default=False
    )
    plain: bool = option("Without colours and frames.", "--plain", default=False)


@dataclasses.dataclass
class Note(Tagged):
    text: str = argument('What the agent is to know, e.g. "try smaller batches".', metavar="TEXT", default=...)


@dataclasses.dataclass
class Ideas:
    search: str | None = option(
        "Let an agent search the web for ideas on this; those without a source are dropped.", metavar="TOPIC"
    )
    agent: str = option(f"Who searches: {', '.join(NAMES[:-2])}.", default="auto")
    model: str | None = option("The agent's model. Default: the agent's own.")
    base_url: str | None = option("With --agent claude-api: any server with a Messages API.")
    agent_command: str | None = option("The program of --agent command.")
    agent_limit: float = option("Seconds for the search.", min=1, default=1800.0)


@dataclasses.dataclass
class AddIdea:
    text: str = argument('What to try, e.g. "one matrix for both embeddings".', metavar="TEXT", default=...)
    source: str = option("Who had it, or where it is published.", default="by hand")
    expect: str = option("The effect that it should have.", default="")


@dataclasses.dataclass
class DropIdea:
    idea: str = argument("Its number, as I3.", metavar="IDEA", default=...)


@dataclasses.dataclass
class Approve(Tagged):
    number: int = argument("The experiment.", metavar="NUMBER", default=..., min=1)


@dataclasses.dataclass
class Reject(Approve):
    message: str = option("Why: the agent is told.", "--message", "-m", default="")


@dataclasses.dataclass
class Stop(Tagged):
    now: bool = option(
        "At once. The running experiment has no verdict, and runs again when the run goes on.", "--now", default=False
    )


@dataclasses.dataclass
class Logs(Tagged):
    follow: bool = option("Go on until the loop ends, or Ctrl-C.", "--follow", "-f", default=False)
    trial: bool = option(
        "What the running trial prints instead; where none runs, the last one.", "--trial", default=False
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
    port: int = option("Port on 127.0.0.1. Default: one that is free.", min=0, max=65535, default=0)
    writable: bool = option(
        "The page also takes notes, a pause, a stop and your word, from whoever has its address.",
        "--writable",
        default=False,
    )


@dataclasses.dataclass
class Doctor(Game):
    as_json: bool = option(
        "Print one JSON object: `ready`, and of each of the `findings` name, status, said, next.",
        "--json",
        default=False,
    )
    plain: bool = option("Without colours.", "--plain", default=False)
