"""The loop: propose, commit, train, score, judge, record, keep or reset. Again, until morning.

    uv run loop.py                      # an agent does research all night; Ctrl-C stops after the running trial
    uv run loop.py --experiments 5      # stop when the run has five experiments
    uv run loop.py start                # for an agent that drives by itself: baseline, and where to edit (see program.md)
    uv run loop.py try -m "what, why"   # one trial of the edit that stands there, with its verdict
    uv run loop.py verify               # run baseline and champion again with fresh seeds: what is the gain?
    uv run loop.py report               # a short paper of the run
    uv run loop.py results              # write results.tsv again, from the journal

The same command again continues the run. This file reads like the idea; how each verb is done
stands in the room of that name in autoresearch/.
"""

import dataclasses
import errno
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import git
import typer

from autoresearch import UserError, count, keys
from autoresearch.agents import Agent, AgentUnavailable, NothingLeft, Proposal
from autoresearch.agents.bandit import choose
from autoresearch.agents.choice import AGENTS, AgentOptions, make_agents
from autoresearch.agents.driver import Driver
from autoresearch.brief import BUDGET
from autoresearch.console import Console
from autoresearch.judge import RULES, KeepRule, Verdict, judge, mean
from autoresearch.lab import LEFT, RUNS, Lab, open_lab, recorded_run, sandbox_says
from autoresearch.ledger import Attempt, Results, one_line
from autoresearch.limits import Interrupted, Limits, StopRequest
from autoresearch.propose import Proposing
from autoresearch.repo import RunRepo, repository_of, root_of, short
from autoresearch.report import Run, write_report
from autoresearch.show import answer_of, first_screen, show_answer, show_end
from autoresearch.task import read_agenda, task_of
from autoresearch.trial import Outcome, Trial, finite, holdout_score
from autoresearch.verify import Verification, lines_of

FAILURES = 5                        # proposals in a row that came to nothing, before the loop gives up
EARLY = 60.0                        # seconds: a trial that crashed before may be mended and run again


class Loop:
    """The loop over one run.

    agents: who proposes; of several the bandit chooses one for each experiment. fill: who does when the agent cannot be reached.
    repairs: how often an edit that crashed early goes back to its agent.
    """

    def __init__(self, lab: Lab, proposing: Proposing, agents: list[Agent], rule: KeepRule, baseline_runs: int = 1, fill: Agent | None = None,
                 repairs: int = 0) -> None:
        self.lab, self.ledger, self.repo, self.task, self.console, self.stop = lab, lab.ledger, lab.repo, lab.task, lab.console, lab.stop
        self.proposing, self.agents, self.rule, self.baseline_runs, self.fill, self.repairs = proposing, agents, rule, baseline_runs, fill, repairs
        self.failures = 0

    def night(self, limits: Limits) -> str:
        """The loop. Returns why it ended."""
        while not (reason := self.reason_to_end(limits)):
            for warning in limits.warnings(self.ledger):
                self.console.line(warning, "yellow")
            try:
                attempt = self.ledger.pending or self.next_attempt()
            except NothingLeft as nothing:
                return str(nothing)
            if attempt and not self.stop.level:
                self.try_out(attempt)
            elif attempt:                               # asked to stop while the agent was thinking: it stays pending
                self.lab.settle()
        return reason

    def reason_to_end(self, limits: Limits) -> str | None:
        return "you asked it to stop" if self.stop.level else limits.reached(self.ledger)

    # -- propose and commit

    def next_attempt(self) -> Attempt | None:
        """The baseline first; then what an agent proposes. None when nothing came of it."""
        number = len(self.ledger.attempts) + 1
        if self.ledger.champion is None:
            return self.record_attempt(number, self.lab.base, self.lab.base, Proposal("baseline", tokens=0, dollars=0.0), "loop")
        ready = [agent for agent in self.agents if not self.proposing.away(agent)]
        agent = self.fill if self.fill and not ready else choose(ready or self.agents, self.ledger, self.task.lower_is_better)
        try:
            proposal = self.proposing.ask(number, agent)
        except AgentUnavailable as failure:
            self.proposing.settle()
            self.proposing.wait_for(agent, failure, next((other.name for other in (*ready, self.fill) if other and other is not agent), None))
            return None
        except NothingLeft:
            if agent is self.fill:
                self.fill = None
            elif len(self.agents) > 1:
                self.agents.remove(agent)
            else:
                raise
            return None
        except Interrupted:
            self.proposing.settle()
            return None
        self.proposing.reached(agent)
        if proposal:
            self.failures = 0
            return self.commit_attempt(number, proposal, agent.name)
        self.proposing.settle()
        self.failures += 1
        if self.failures >= FAILURES:
            raise UserError(f"{agent.name} came to nothing {FAILURES} times in a row, the last time: {self.ledger.refused[-1]['reason']}. "
                            "What was measured is kept; mend the agent and run the same command again")
        return None

    def commit_attempt(self, number: int, proposal: Proposal, agent: str) -> Attempt:
        proposal = dataclasses.replace(proposal, description=proposal.description or f"edit of {', '.join(self.task.editable)} without a description")
        commit = self.repo.commit(self.task.editable, proposal.description)
        attempt = self.record_attempt(number, commit, self.ledger.champion.commit, proposal, agent)
        self.proposing.learn(proposal.lesson, number)
        return attempt

    def record_attempt(self, number: int, commit: str, parent: str, proposal: Proposal, agent: str) -> Attempt:
        self.ledger.append("attempt", number=number, commit=commit, parent=parent, **dataclasses.asdict(proposal), agent=agent,
                           edit=self.lab.edit(), lines=self.lab.lines(commit) - self.lab.lines(parent), preflight=self.proposing.rehearsed)
        self.repo.remember(number, commit)
        return self.ledger.attempts[-1]

    # -- run, judge, record, keep or reset

    def try_out(self, attempt: Attempt) -> Verdict | None:
        """Run an attempt to its verdict. None when the user stopped it before."""
        began = time.monotonic()
        lab = self.lab
        lab.require_own_code()
        self.repo.set_stage(lab.base, attempt.commit, self.task.editable)
        self.ledger.append("trial", number=attempt.number)
        view = self.console.trial(attempt, lab.trial_folder(attempt), lab.time_budget)
        trial = lab.trial(lab.trial_folder(attempt), self.repo.stage, view)
        outcome = self.measure(attempt, trial, lab.seed)
        standing = self.ledger.standing
        verdict, holdout = self.decide(attempt, trial, outcome)
        if verdict.status == "crash" and not outcome.stopped:
            lab.require_space()
        if outcome.stopped or self.stop.now() and verdict.status != "keep":
            return self.interrupted(attempt)
        crashed = verdict.status == "crash"
        try:
            if crashed and outcome.score is None and time.monotonic() - began < EARLY and (mended := self.mend(attempt, verdict.reason)):
                return self.try_out(mended)
        except Interrupted:
            return self.interrupted(attempt)
        self.ledger.append("verdict", number=attempt.number, status=verdict.status, reason=verdict.reason,
                           score=None if crashed else mean(attempt.runs), memory_gb=0.0 if crashed else outcome.memory_gb,
                           figures=finite(outcome.figures), holdout=holdout,
                           noise=self.ledger.noise(), standing=mean(standing) if standing else None, standing_runs=len(standing),
                           seconds={**trial.seconds, "wall": round(time.monotonic() - began, 3)})
        lab.results.add(attempt)
        lab.settle()
        trial.tidy(keep_weights=verdict.status == "keep")
        self.proposing.write_page(attempt)
        self.console.verdict(attempt, time.monotonic() - began)
        if self.ledger.champion is None:
            raise UserError(f"the baseline crashed: {verdict.reason}\nIts log is {lab.trial_folder(attempt) / 'train.log'}. "
                            f"Mend {', '.join(self.task.editable)}, commit, and start again with --tag NEW "
                            "(or run the same command again if the fault was a passing one)")
        return verdict

    def mend(self, attempt: Attempt, reason: str) -> Attempt | None:
        """Let its agent mend an attempt that crashed early, under the same number. None when that is not to be."""
        agent = next((agent for agent in self.agents if agent.name == attempt.agent and agent.mends), None)
        if agent is None or attempt.repairs >= self.repairs or self.stop.level:
            return None
        self.console.stop_bar()
        self.console.line(f"  crashed early: {one_line(reason, 200)}; {agent.name} may mend it", "yellow")
        self.ledger.append("crashed", number=attempt.number, commit=attempt.commit, reason=reason)
        while True:
            self.lab.settle()
            self.repo.take_up(attempt.commit, self.task.editable)
            try:
                proposal = self.proposing.ask(attempt.number, agent, attempt, reason)
                break
            except AgentUnavailable as failure:
                others = self.fill or len(self.agents) > 1
                self.proposing.wait_for(agent, failure, "the crash is final, and another" if others else None)
                if others:
                    return None
        if proposal is None:
            return None
        self.repo.remember(f"{attempt.number}-crashed" + (f"-{attempt.repairs + 1}" if attempt.repairs else ""), attempt.commit)
        return self.commit_attempt(attempt.number, dataclasses.replace(proposal, description=proposal.description or attempt.description), agent.name)

    def measure(self, attempt: Attempt, trial: Trial, seed: int) -> Outcome:
        """Train and score. What has a score counts among the attempt's runs from here on."""
        outcome = trial.run()
        if outcome.score is not None:
            self.ledger.append("measured", number=attempt.number, seed=seed, score=outcome.score, seconds=dict(trial.seconds))
        return outcome

    def judge(self, attempt: Attempt, scores: list[float]) -> Verdict:
        """The judge's word on scores of an attempt."""
        sign = 1 if self.task.lower_is_better else -1
        best = min((mean(self.ledger.scores(kept)) for kept in self.ledger.kept), key=lambda score: sign * score, default=None)
        return judge(scores, self.ledger.standing, self.ledger.noise(), attempt.lines or 0, self.rule, self.task.lower_is_better, best)

    def decide(self, attempt: Attempt, trial: Trial, outcome: Outcome) -> tuple[Verdict, float | None]:
        """(The verdict on a trial; of what is kept, its score on the holdout.) What would be kept has more to stand."""
        if outcome.score is None:
            return Verdict("crash", outcome.reason), None
        standing = self.ledger.standing
        verdict = self.judge(attempt, attempt.runs)
        if verdict.status == "keep" and (objection := trial.guard()):
            verdict = Verdict("discard", objection)
        if verdict.status != "keep":
            return verdict, None
        objection, figures = trial.holdout()
        if objection:
            return Verdict("crash", f"on the holdout: {objection}"), None
        if not standing and (objection := self.run_baseline_again(attempt)):
            return objection, None
        if standing and (objection := self.quarantine(attempt, abs(outcome.score - mean(standing)), outcome.score)):
            return objection, None
        if len(attempt.runs) > 1:
            verdict = self.judge(attempt, attempt.runs)
        return verdict, holdout_score(figures, self.task)

    def run_baseline_again(self, attempt: Attempt) -> Verdict | None:
        """So that the run knows its noise, and what everything is compared with is not one draw. Why it does not stand, or None."""
        for number in range(2, self.baseline_runs + 1):
            folder = self.lab.folder / "trials" / f"{attempt.number}-{number}"
            seed = self.lab.seed + number - 1
            view = self.console.trial(attempt, folder, self.lab.time_budget, f"again, run {number} of {self.baseline_runs}, seed {seed}")
            again = self.lab.trial(folder, self.repo.stage, view, seed=seed)
            outcome = self.measure(attempt, again, seed)
            again.tidy(keep_weights=False)
            if outcome.score is None:
                return Verdict("crash", f"in its run {number}: {outcome.reason}")
        return None

    def quarantine(self, attempt: Attempt, gain: float, score: float) -> Verdict | None:
        """A gain larger than any honest step is believed only twice: why it is not kept, or None.

        The second trial has another seed, no compile cache of the run's, and every row of both splits probed.
        """
        largest = self.ledger.game.get("implausible_gain")
        if largest is None or gain <= largest or len(self.ledger.finished) < 5:
            return None
        self.ledger.append("quarantine", number=attempt.number, gain=gain, score=score)
        self.console.line(f"  {score:.6f} is {gain:.6f} better: too good to be believed once; it runs again with another seed", "yellow")
        folder = self.lab.folder / "trials" / f"{attempt.number}-again"
        again = self.lab.trial(folder, self.repo.stage, self.console.trial(attempt, folder, self.lab.time_budget, f"again, seed {self.lab.seed + 1}"),
                           seed=self.lab.seed + 1, caches=folder / "caches")
        try:
            outcome = self.measure(attempt, again, self.lab.seed + 1)
            if outcome.score is None:
                return Verdict("crash", f"in quarantine: {outcome.reason}")
            second = self.judge(attempt, [outcome.score])
            objection = again.guard() or again.holdout()[0] or (second.status != "keep" and second.reason)
            return Verdict("discard", f"in quarantine, with another seed: {objection}") if objection else None
        finally:
            again.tidy(keep_weights=False)
            shutil.rmtree(folder / "caches", ignore_errors=True)

    def interrupted(self, attempt: Attempt) -> None:
        self.ledger.append("interrupted", number=attempt.number)
        self.lab.settle()
        self.console.stop_bar()
        self.console.line(f"  interrupted: experiment {attempt.number} runs again when the run is continued", "yellow")

    # -- an agent that drives by itself

    def try_edit(self) -> Attempt | None:
        """One experiment: the edit that stands in the worktree, or one that was interrupted. None when the edit was refused."""
        pending = self.ledger.pending
        if pending and self.lab.edit() not in (pending.edit, self.ledger.champion.edit):
            self.ledger.append("verdict", number=pending.number, status="crash", reason=LEFT, score=None, memory_gb=0.0, figures={},
                               holdout=None, seconds={})
            self.lab.results.add(pending)
            pending = None
        attempt = pending or self.next_attempt()
        if attempt and not self.stop.level:
            self.try_out(attempt)
        return attempt


# ----------------------------------------------------------------------------------------------
# Command line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  context_settings={"help_option_names": ["-h", "--help"]})
Tag = Annotated[str | None, typer.Option(help="Name of the run. Default: the last run, else today's date.")]
Profile = Annotated[str | None, typer.Option(help="gpu, cpu or test. Default: gpu where there is one, else cpu.")]
Data = Annotated[str | None, typer.Option(help="climbmix, sotu or a folder. Default: the profile's.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every trial: picking seeds is not research.")]
Rule = Annotated[str, typer.Option("--keep-rule", help="margin: a gain must exceed half of what noise does to it, and the price of the lines "
                                   "that it adds. strict: any gain.")]
BaselineRuns = Annotated[int, typer.Option(min=1, help="How often the baseline is trained, to know the noise.")]
SandboxMode = Annotated[str, typer.Option("--sandbox", help="auto: confine trials where the kernel can. require: refuse to run "
                                          "where it cannot. off: trust the agent's code.")]
Plain = Annotated[bool, typer.Option("--plain", help="One line an event, no live view.")]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    experiments: Annotated[int | None, typer.Option(min=1, help="Stop when the run has this many, the baseline included.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Start no experiment after this many hours.")] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, metavar="USD", help="Start no experiment when the run's proposals have cost this.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Start no experiment when they have taken this many tokens.")] = None,
    tag: Tag = None,
    agent: Annotated[str, typer.Option(help=f"Who proposes: {', '.join(AGENTS)}; auto: the first that is ready. NAME:MODEL for a certain model. "
                                       "A,B: both, the better one more often.")] = "auto",
    model: Annotated[str | None, typer.Option(help="The agent's model. Default: the agent's own.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Of claude-api: any server with a Messages API.")] = None,
    thinking: Annotated[str | None, typer.Option(help="Of claude-api: low, medium, high, xhigh, max, off, or a budget in tokens for models that take one.")] = None,
    agent_command: Annotated[str | None, typer.Option(help="The program of --agent command.")] = None,
    agent_limit: Annotated[float, typer.Option(min=1, help="Seconds for one proposal.")] = 1800,
    web_search: Annotated[bool, typer.Option("--web-search", help="Let the agent search the web when it is stuck.")] = False,
    fill: Annotated[str | None, typer.Option(help="sweep: proposes while the agent cannot be reached.")] = None,
    repairs: Annotated[int, typer.Option(min=0, help="How often an edit that crashed in its first minute goes back to the agent.")] = 1,
    brief_tokens: Annotated[int, typer.Option(min=4000, help="How much the agent is told.")] = BUDGET,
    profile: Profile = None,
    data: Data = None,
    seed: Seed = 42,
    keep_rule: Rule = "margin",
    baseline_runs: BaselineRuns = 2,
    sandbox_mode: SandboxMode = "auto",
    plain: Plain = False,
) -> None:
    """Let an agent do language-model research: it edits train.py, each edit is trained for a fixed
    time, scored, and kept or thrown away. The same command again continues the run."""
    if context.invoked_subcommand:
        return
    console = Console(plain)
    stop = StopRequest(console.line)
    limits = Limits(experiments, hours, max_cost, max_tokens)
    options = AgentOptions(agent, model, base_url, thinking, agent_command, agent_limit, web_search, seed)
    agents, said = make_agents(options)
    if fill not in (None, "sweep"):
        raise UserError(f"--fill takes sweep, not {fill!r}")
    filler = make_agents(dataclasses.replace(options, agent=fill, model=None, base_url=None, thinking=None, command=None))[0][0] if fill else None
    with open_lab(tag, sandbox_mode, console, stop) as lab:
        lab.begin()
        loop = Loop(lab, Proposing(lab, web_search, brief_tokens), agents, rule_of(keep_rule, lab), baseline_runs, filler, repairs)
        open_ended = max_cost is None and any(hasattr(agent, "model") for agent in agents)
        shown = {"agent": said, "until": str(limits), **({"cost": "not limited: --max-cost USD would"} if open_ended else {})}
        lab.prepare(settings_of(profile, data), seed, lambda facts: first_screen(lab, facts, shown))
        note_start(lab, keep_rule)
        reason = loop.night(limits)
        lab.ledger.append("stop", reason=reason)
        show_end(lab, reason)
    if stop.now():
        raise typer.Exit(130)


def rule_of(name: str, lab: Lab) -> KeepRule:
    if name not in RULES:
        raise UserError(f"--keep-rule takes {' or '.join(RULES)}, not {name!r}")
    return RULES[name] if name == "strict" else dataclasses.replace(RULES[name], line_price=lab.task.line_price)


def settings_of(profile: str | None, data: str | None) -> dict[str, str]:
    """Environment variables of the game. A folder's path must mean the same from the worktree."""
    if data and data not in ("climbmix", "sotu"):
        data = str(Path(data).expanduser().resolve())
    return {name: value for name, value in (("AUTORESEARCH_PROFILE", profile), ("AUTORESEARCH_DATA", data)) if value}


def note_start(lab: Lab, keep_rule: str) -> None:
    lab.ledger.append("start", code=lab.code, keep_rule=keep_rule, agenda=read_agenda(lab.root / "program.md"))
    lab.results.rebuild()


@app.command()
def start(
    tag: Tag = None,
    profile: Profile = None,
    data: Data = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every trial. Default: the run's, else 42.")] = None,
    keep_rule: Annotated[str | None, typer.Option(help="margin or strict, as for the loop itself. Default: the run's, else margin.")] = None,
    baseline_runs: BaselineRuns = 1,
    sandbox_mode: SandboxMode = "auto",
    plain: Plain = False,
) -> None:
    """For an agent that drives by itself (see program.md): begin a run or find it again, train the baseline, and say where to edit."""
    console = Console(plain)
    stop = StopRequest(console.line)
    with open_lab(tag, sandbox_mode, console, stop) as lab:
        lab.begin(keep_edit=bool(lab.ledger.champion))
        keep_rule = keep_rule or lab.ledger.keep_rule or "margin"
        loop = Loop(lab, Proposing(lab, driven=True), [], rule_of(keep_rule, lab), baseline_runs)
        lab.prepare(lab.recorded_settings() | settings_of(profile, data), lab.ledger.seed if seed is None else seed,
                    lambda facts: first_screen(lab, facts, {"agent": "the one that called this: it drives"}))
        note_start(lab, keep_rule)
        if lab.ledger.champion is None and not stop.level:
            loop.try_out(lab.ledger.pending or loop.next_attempt())
        if champion := lab.ledger.champion:
            for name in lab.task.editable:
                console.line(f"edit      {(lab.repo.worktree / name).relative_to(lab.root)}")
            console.line(f"champion  experiment {champion.number}, {lab.task.metric} {champion.score:.6f}")
            console.line('then      uv run loop.py try -m "what and why"')
    if stop.now():
        raise typer.Exit(130)


@app.command("try")
def try_(
    message: Annotated[str, typer.Option("--message", "-m", help="What was changed, and why.")],
    category: Annotated[str, typer.Option(help="What kind of change it is, e.g. optimizer.")] = "",
    hypothesis: Annotated[str, typer.Option(help="Why it should help.")] = "",
    predicted: Annotated[float | None, typer.Option(help="The change of the metric that is expected.")] = None,
    lesson: Annotated[str, typer.Option(help="What the last verdicts taught, for later runs.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, everything else to standard error.")] = False,
    tag: Tag = None,
    sandbox_mode: SandboxMode = "auto",
    plain: Plain = False,
) -> None:
    """For an agent that drives by itself: run the edit that stands in the worktree, keep or discard it, and say so.

    Exit code 0: kept. 1: discarded. 3: it crashed. 4: it was refused, and stands where it stood. 2: bad use, or a fault that
    has to be mended first. 130: it was stopped; the same command goes on."""
    console = Console(plain, to_errors=as_json)
    stop = StopRequest(console.line)
    if not message.strip():
        raise UserError('-m needs a description: uv run loop.py try -m "what and why"')
    tag, _ = recorded_run(root_of(repository_of(Path.cwd(), RUNS)), tag, "begin one: uv run loop.py start")
    with open_lab(tag, sandbox_mode, console, stop) as lab:
        if lab.ledger.champion is None:
            raise UserError(f"run {tag} has no baseline yet: uv run loop.py start")
        lab.begin(keep_edit=True)
        keep_rule = lab.ledger.keep_rule or "margin"
        driver = Driver(Proposal(message, hypothesis, predicted, category, lesson))
        loop = Loop(lab, Proposing(lab, driven=True), [driver], rule_of(keep_rule, lab))
        lab.prepare(lab.recorded_settings(), lab.ledger.seed, lambda facts: None)
        note_start(lab, keep_rule)
        attempt = loop.try_edit()
        answer = answer_of(lab, attempt, loop.proposing.stages)
    if stop.level and not (attempt and attempt.status):
        raise typer.Exit(130)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        show_answer(console, answer)
    raise typer.Exit({"keep": 0, "discard": 1, "crash": 3}.get(answer["verdict"], 4))


@app.command()
def verify(
    tag: Tag = None,
    runs: Annotated[int, typer.Option(min=2, help="How often each code is trained, each time with another fresh seed.")] = 3,
    ablate: Annotated[bool, typer.Option("--ablate", help="Also leave out each kept change in turn: which of them carry the gain?")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Ablate, then write a branch without the changes that do not, and run that too.")] = False,
    sandbox_mode: SandboxMode = "auto",
    plain: Plain = False,
) -> None:
    """Run baseline and champion again with fresh seeds, and say what the gain is. The same command again continues."""
    console = Console(plain)
    stop = StopRequest(console.line)
    tag, _ = recorded_run(root_of(repository_of(Path.cwd(), RUNS)), tag)
    with open_lab(tag, sandbox_mode, console, stop) as lab:
        kept = lab.ledger.kept
        if len(kept) < 2:
            raise UserError(f"run {tag} has kept nothing after its baseline, so there is no gain to verify")
        lab.begin(keep_edit=True)
        verification = Verification(lab, runs)
        lab.prepare(lab.recorded_settings(), lab.ledger.seed, lambda facts: console.first_screen(f"autoresearch: verify run {tag}", {
            "baseline": f"{short(kept[0].commit)}, {lab.task.metric} {kept[0].score:.6f} in the run",
            "champion": f"{short(kept[-1].commit)}, {kept[-1].score:.6f}, {count(len(kept) - 1, 'change')} kept",
            "runs": f"{runs} of each code, with fresh seeds, in turn",
            "sandbox": sandbox_says(lab.confined),
            "to stop": "Ctrl-C: after the running one; twice: now. The same command continues",
        }))
        finished = verification(ablate, prune)
        for line, style in lines_of(verification.findings()):
            console.line(line, style)
        if not finished:
            console.line("stopped before all was run; the same command continues")
    if stop.now():
        raise typer.Exit(130)


@app.command()
def report(
    tag: Tag = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write to. Default: report/ in the run's own folder.")] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write report.pdf as well.")] = False,
) -> None:
    """Write a short paper of a run, from its record alone: what was kept, what it is worth, what did not help, what it cost."""
    repository = repository_of(Path.cwd(), RUNS)
    root = root_of(repository)
    tag, ledger = recorded_run(root, tag)
    if ledger.champion is None:
        raise UserError(f"run {tag} has no baseline yet, so there is nothing to report")
    repo, task = RunRepo(repository, tag, ledger.path.parent), task_of(ledger.run["task"])
    diffs = {attempt.number: repo.diff(attempt.parent, attempt.commit, task.editable) for attempt in ledger.kept[1:]}
    path = write_report(Run(tag, task, ledger, diffs), output or ledger.path.parent / "report", pdf)
    print(f"{path}: {count(len(ledger.finished), 'experiment')} of run {tag}")


@app.command()
def results(tag: Tag = None) -> None:
    """Write results.tsv again, from the journal."""
    root = root_of(repository_of(Path.cwd(), RUNS))
    tag, ledger = recorded_run(root, tag)
    file = Results(root / "results.tsv", ledger)
    file.require_ours(root / RUNS)
    file.rebuild()
    print(f"{file.path}: {len(ledger.finished)} experiments of run {tag}")


def main() -> None:
    try:
        app()
    except UserError as error:
        print(f"error: {keys.scrub(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (OSError, git.GitCommandError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            print("error: the disk is full. Nothing that was recorded is lost: free some space and run the same command again",
                  file=sys.stderr)
        elif isinstance(error, PermissionError):
            print(f"error: {error.filename} cannot be written: {error.strerror}. Nothing that was recorded is lost: mend its permissions "
                  "and run the same command again", file=sys.stderr)
        elif isinstance(error, git.GitCommandError):
            print(f"error: git failed: {error}\nNothing that was recorded is lost: mend it and run the same command again",
                  file=sys.stderr)
        else:
            raise
        sys.exit(2)


if __name__ == "__main__":
    main()
