"""The loop: propose, commit, train, score, judge, record, keep or reset. Again, until morning.

    uv run loop.py                      # an agent does research all night; Ctrl-C stops after the running trial
    uv run loop.py --experiments 5      # stop when the run has five experiments
    uv run loop.py verify               # run baseline and champion again with fresh seeds: what is the gain?
    uv run loop.py report               # a short paper of the run
    uv run loop.py results              # write results.tsv again, from the journal

The same command again continues the run. This file reads like the idea; how each verb is done
stands in the room of that name in autoresearch/.
"""

import contextlib
import dataclasses
import datetime
import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import git
import typer

from autoresearch import UserError, count, sandbox
from autoresearch.agents import Agent, AgentFailed, NothingLeft, Proposal, make_agent
from autoresearch.brief import Brief
from autoresearch.console import Console
from autoresearch.judge import RULES, KeepRule, Verdict, judge, mean
from autoresearch.ledger import Attempt, Ledger, Lock, Results, one_line
from autoresearch.process import command_words
from autoresearch.repo import RunRepo, open_repository, root_of, short
from autoresearch.report import Run, write_report
from autoresearch.task import Task, code_lines, edit_hash, read_agenda, read_task, task_of
from autoresearch.trial import Outcome, Trial, end_left_overs, trial_environment
from autoresearch.verify import BASELINE, CHAMPION, PRUNED, Code, Findings, findings, is_done, plan, without

MENDS = 3                           # times that a refused edit goes back to the agent
FAILURES = 5                        # proposals in a row that came to nothing, before the loop gives up
FACTS = {"machine": dict, "noise": float | int, "implausible_gain": float | int, "time_budget": float | int, "seed": int, "readable": list, "hidden": list}
RUNS = ".autoresearch"              # folder of all runs, in the user's checkout


class StopRequest:
    """Counts Ctrl-C: the first asks to stop after the running trial, the second to stop now.

    SIGTERM and a closed terminal (SIGHUP) mean now. Signals closer than 0.3 s count once: a
    terminal sends Ctrl-C to `uv` too, which passes it on.
    """

    def __init__(self, console: Console) -> None:
        self.level, self._last, self._console = 0, 0.0, console
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._count)
        signal.signal(signal.SIGTSTP, lambda *_: console.line("experiments are timed, so the loop does not pause; Ctrl-C stops it"))

    def _count(self, number: int, frame) -> None:
        previous, self._last = self._last, time.monotonic()
        if number != signal.SIGINT:
            self.level = 2
        elif self._last - previous > 0.3:
            self.level += 1
            if self.level == 1:
                self._console.line("stopping when the running experiment has its verdict; Ctrl-C again stops now")

    def now(self) -> bool:
        return self.level >= 2


@dataclasses.dataclass
class Limits:
    """When a night is over."""

    experiments: int | None         # of the whole run, the baseline included
    hours: float | None             # of this call
    began: float = dataclasses.field(default_factory=time.monotonic)

    def reached(self, done: int) -> str | None:
        if self.experiments is not None and done >= self.experiments:
            return f"the run has its {count(self.experiments, 'experiment')}; a larger --experiments goes on, --tag NEW starts another"
        if self.hours is not None and time.monotonic() - self.began >= self.hours * 3600:
            return f"{self.hours:g} hours are over"
        return None

    def __str__(self) -> str:
        parts = [count(self.experiments, "experiment")] if self.experiments is not None else []
        parts += [f"{self.hours:g} hours"] if self.hours is not None else []
        return " or ".join(parts) or "you stop it"


class Loop:
    """One run and its state. Everything it knows is in the journal, so it can be killed at any moment."""

    def __init__(self, opened: "Opened", agent: Agent | None, settings: dict[str, str], seed: int, rule: KeepRule,
                 baseline_runs: int) -> None:
        self.root, self.folder, self.repo, self.ledger, self.task = opened.root, opened.folder, opened.repo, opened.ledger, opened.task
        self.confined, self.console, self.stop = opened.confined, opened.console, opened.stop
        self.agent, self.seed, self.rule, self.baseline_runs = agent, seed, rule, baseline_runs
        self.settings = {**settings, "AUTORESEARCH_SEED": str(seed)}
        self.base = self.ledger.run["base"]
        self.originals = {name: self.repo.read(self.base, name) for name in self.task.editable}
        self.code = code_hash()
        self.results = Results(self.root / "results.tsv", self.ledger)
        self.refused_in_a_row = 0
        self.rehearsed: float | None = None             # seconds that the last rehearsal took

    def prepare(self, show: Callable[[dict], None]) -> None:
        """Set the game up, in the user's sight, and make sure that it is the one that the run began with."""
        environment = {**os.environ, **self.settings}
        self.repo.set_stage(self.base, self.base, self.task.editable)
        facts = describe(self.task, self.repo.stage, environment)
        require_same_game(self.ledger, {**facts, "game": (self.ledger.game or {}).get("game")}, self.repo.tag)  # the data may not be there yet
        show(facts)
        set_up(self.task, self.repo.stage, environment)
        facts = describe(self.task, self.repo.stage, environment)
        require_same_game(self.ledger, facts, self.repo.tag)
        if self.ledger.game is None:
            self.ledger.append("game", facts=facts)

    def night(self, limits: Limits) -> str:
        """The loop. Returns why it ended."""
        while not (reason := self.reason_to_end(limits)):
            try:
                attempt = self.ledger.pending or self.next_attempt()
            except NothingLeft as nothing:
                return str(nothing)
            if attempt is None or self.stop.level:      # asked to stop while the agent was thinking
                continue
            verdict = self.try_out(attempt)
            if verdict and self.ledger.champion is None:
                raise UserError(f"the baseline crashed: {verdict.reason}\nIts log is {self.trial_folder(attempt) / 'train.log'}. "
                                f"Mend {', '.join(self.task.editable)}, commit, and start again with --tag NEW "
                                "(or run the same command again if the fault was a passing one)")
        return reason

    def reason_to_end(self, limits: Limits) -> str | None:
        if self.stop.level:
            return "you asked it to stop"
        return limits.reached(len(self.ledger.finished))

    # -- propose and commit

    def next_attempt(self) -> Attempt | None:
        """The baseline first; then what the agent proposes. None when nothing came of it."""
        number = len(self.ledger.attempts) + 1
        champion = self.ledger.champion
        if champion is None:
            return self.record_attempt(number, self.base, self.base, Proposal("baseline"), "loop")
        refusal = None
        for _ in range(1 + MENDS):
            proposal = None
            self.console.proposing(number, self.agent.name)
            try:
                proposal = self.agent.propose(self.brief(number, refusal), self.repo.worktree)
                refusal = self.refusal() or self.rehearsal(number)
            except (AgentFailed, git.GitError) as failure:         # an agent can leave git in disorder, too
                refusal = str(failure)
                self.require_space()
                self.settle()
            finally:
                self.console.stop_bar()
            if self.stop.level and refusal:
                self.settle()
                return None
            if refusal is None:
                commit = self.repo.commit(self.task.editable, one_line(proposal.description))
                return self.record_attempt(number, commit, champion.commit, proposal, self.agent.name)
            self.ledger.append("refused", number=number, reason=refusal, description=one_line(proposal.description) if proposal else "")
            self.console.line(f"experiment {number}: refused: {one_line(refusal)}", "yellow")
            self.repo.restore_all_but(self.task.editable)
        self.settle()
        self.refused_in_a_row += 1
        if self.refused_in_a_row >= FAILURES:
            raise UserError(f"{self.agent.name} came to nothing {FAILURES} times in a row, the last time: {refusal}. "
                            "What was measured is kept; mend the agent and run the same command again")
        return None

    def refusal(self) -> str | None:
        """Why the edit in the worktree cannot be run, or None."""
        refusal = self.task.refusal(self.repo.worktree, self.repo.changed(self.ledger.champion.commit), self.originals)
        if refusal is None:
            edit = self.edit()
            earlier = next((attempt for attempt in self.ledger.attempts if attempt.edit == edit), None)
            if earlier:
                refusal = f"the same edit was tried before, as experiment {earlier.number} ({earlier.status})"
        return refusal

    def rehearsal(self, number: int) -> str | None:
        """Why the edit in the worktree cannot work, found without a trial, or None."""
        if not self.task.preflight:
            return None
        trial = self.trial(self.folder / "trials" / str(number), self.repo.worktree)
        reason = trial.rehearse()
        self.rehearsed = trial.seconds.get("preflight")
        self.require_space()
        return reason

    def edit(self) -> str:
        return edit_hash({name: (self.repo.worktree / name).read_bytes() for name in self.task.editable})

    def lines(self, commit: str) -> int:
        """Lines of code that the editable files have in a commit."""
        return code_lines({name: self.repo.read(commit, name) for name in self.task.editable})

    def brief(self, number: int, refusal: str | None) -> Brief:
        """Told anew for each proposal: a program.md edited in the night counts from the next one on."""
        agenda = read_agenda(self.root / "program.md")
        return Brief(number, self.task, agenda, self.ledger.game, self.ledger.champion, self.ledger.finished, refusal)

    def record_attempt(self, number: int, commit: str, parent: str, proposal: Proposal, agent: str) -> Attempt:
        self.ledger.append("attempt", number=number, commit=commit, parent=parent, **dataclasses.asdict(proposal), agent=agent,
                           edit=self.edit(), lines=self.lines(commit) - self.lines(parent), preflight=self.rehearsed)
        self.repo.remember(number, commit)
        self.refused_in_a_row = 0
        return self.ledger.attempts[-1]

    # -- run, judge, record, keep or reset

    def try_out(self, attempt: Attempt) -> Verdict | None:
        """Run an attempt to its verdict. None when the user stopped it before."""
        began = time.monotonic()
        self.require_own_code()
        self.repo.set_stage(self.base, attempt.commit, self.task.editable)
        self.ledger.append("trial", number=attempt.number)
        view = self.console.trial(attempt, self.trial_folder(attempt), self.time_budget)
        trial = self.trial(self.trial_folder(attempt), self.repo.stage, view)
        outcome = self.measure(attempt, trial, self.seed)
        standing = self.ledger.standing
        verdict, holdout = self.decide(attempt, trial, outcome)
        if verdict.status == "crash" and not outcome.stopped:
            self.require_space()
        if outcome.stopped or self.stop.now() and verdict.status != "keep":
            return self.interrupted(attempt)
        crashed = verdict.status == "crash"
        self.ledger.append("verdict", number=attempt.number, status=verdict.status, reason=verdict.reason,
                           score=None if crashed else mean(attempt.runs), memory_gb=0.0 if crashed else outcome.memory_gb,
                           figures=finite(outcome.figures), holdout=holdout,
                           noise=self.ledger.noise(), standing=mean(standing) if standing else None, standing_runs=len(standing),
                           seconds={**trial.seconds, "wall": round(time.monotonic() - began, 3)})
        self.results.add(attempt)
        self.settle()
        trial.tidy(keep_weights=verdict.status == "keep")
        self.console.verdict(attempt, time.monotonic() - began)
        return verdict

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
        return verdict, self.holdout_score(figures)

    def holdout_score(self, figures: dict[str, float]) -> float | None:
        return finite(figures).get(f"holdout_{self.task.metric.removeprefix('val_')}")

    def run_baseline_again(self, attempt: Attempt) -> Verdict | None:
        """So that the run knows its noise, and what everything is compared with is not one draw. Why it does not stand, or None."""
        for number in range(2, self.baseline_runs + 1):
            folder = self.folder / "trials" / f"{attempt.number}-{number}"
            seed = self.seed + number - 1
            view = self.console.trial(attempt, folder, self.time_budget, f"again, run {number} of {self.baseline_runs}, seed {seed}")
            again = self.trial(folder, self.repo.stage, view, seed=seed)
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
        folder = self.folder / "trials" / f"{attempt.number}-again"
        again = self.trial(folder, self.repo.stage, self.console.trial(attempt, folder, self.time_budget, f"again, seed {self.seed + 1}"),
                           seed=self.seed + 1, caches=folder / "caches")
        try:
            outcome = self.measure(attempt, again, self.seed + 1)
            if outcome.score is None:
                return Verdict("crash", f"in quarantine: {outcome.reason}")
            second = self.judge(attempt, [outcome.score])
            objection = again.guard() or again.holdout()[0] or (second.status != "keep" and second.reason)
            return Verdict("discard", f"in quarantine, with another seed: {objection}") if objection else None
        finally:
            again.tidy(keep_weights=False)
            shutil.rmtree(folder / "caches", ignore_errors=True)

    def trial(self, folder: Path, where: Path, view: Callable = lambda phase: None, seed: int | None = None,
              caches: Path | None = None) -> Trial:
        """A trial of the task in a worktree, ready to run."""
        environment = trial_environment(folder, caches or self.folder / "caches", self.seed if seed is None else seed, self.settings)
        changed = functools.partial(self.repo.changed_on_stage, ignored=self.task.referee)
        return Trial(self.task, where, folder, environment, self.confinement(), self.time_budget, changed, self.stop.now, view)

    def confinement(self) -> dict[str, list[str]] | None:
        """What the game says of files that trials need, or must not see; copies of those in the stage, and all runs, included."""
        if not self.confined:
            return None
        hidden = [Path(path) for path in self.ledger.game.get("hidden", [])]
        inside = [path.relative_to(self.root) for path in hidden if path.is_relative_to(self.root)]
        copies = [folder / path for folder in (self.repo.stage, self.repo.worktree) for path in inside if path.parts]
        records = [self.root / RUNS, Path(self.repo.repository.common_dir)]
        return {"readable": self.ledger.game.get("readable", []), "hidden": [str(path) for path in (*hidden, *copies, *records)]}

    @property
    def time_budget(self) -> float:
        return float(self.ledger.game.get("time_budget") or 0.0)

    def require_own_code(self) -> None:
        """What decides must be what was started: an agent, which has the user's rights, might have changed it."""
        if code_hash() != self.code:
            raise UserError("the loop's own code changed while it ran (loop.py or autoresearch/). Nothing is lost: see what changed "
                            "with `git diff`, and run the same command again to go on with what is there now")

    def interrupted(self, attempt: Attempt) -> None:
        self.ledger.append("interrupted", number=attempt.number)
        self.settle()
        self.console.stop_bar()
        self.console.line(f"  interrupted: experiment {attempt.number} runs again when the run is continued", "yellow")

    def settle(self) -> None:
        """Branch and worktree to the champion; before there is one, to the commit the run began with."""
        champion = self.ledger.champion
        self.repo.settle(champion.commit if champion else self.base)

    def require_space(self) -> None:
        """A failure on a full disk says nothing about the edit: no verdict, the attempt runs again."""
        if shutil.disk_usage(self.folder).free < 1 << 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def trial_folder(self, attempt: Attempt) -> Path:
        return self.folder / "trials" / str(attempt.number)


    # -- verify

    def ablations(self) -> list[Code]:
        """The champion without each kept change, where it can be left out. Where not, the record says so."""
        champion, codes = self.ledger.champion, []
        kept = self.ledger.kept[1:]
        for attempt in kept if len(kept) > 1 else ():           # of a single one the baseline is what is left
            name = without(attempt.number)
            commit, stuck = self.repo.without(champion.commit, [attempt.commit], f"Without experiment {attempt.number}: {one_line(attempt.description)}")
            reason = "later keeps build on its lines" if stuck else "" if commit else "nothing of it is left in the champion"
            if reason and not any(event["name"] == name and event["champion"] == champion.commit for event in self.ledger.verified):
                self.ledger.append("verified", name=name, commit=None, champion=champion.commit, seed=None, score=None, holdout=None,
                                   reason=reason, seconds={})
            if not reason:
                self.repo.remember(f"without-{attempt.number}", commit)
                codes.append(Code(name, commit))
        return codes

    def prune(self, dead: list[Attempt], runs: int) -> bool:
        """A branch with the champion without what does not carry, once that has run. False when the user stopped it."""
        commit, stuck = self.repo.without(self.ledger.champion.commit, [attempt.commit for attempt in reversed(dead)],
                                          "Without experiments " + ", ".join(str(attempt.number) for attempt in dead))
        for attempt in dead:
            if attempt.commit in stuck:
                self.console.line(f"experiment {attempt.number} stays: what is left of the others builds on its lines")
        if commit is None:
            return True
        self.repo.remember("pruned", commit)
        if not self.run_again([Code(PRUNED, commit)], runs):
            return False
        branch = f"{self.repo.branch}-pruned"
        self.repo.name_branch(branch, commit, [event["commit"] for event in self.ledger.verified if event["name"] == PRUNED])
        self.console.line(f"branch {branch}: {short(commit)}, {count(len(dead) - len(stuck), 'experiment')} left out")
        return True

    def run_again(self, codes: list[Code], runs: int) -> bool:
        """Run codes with fresh seeds, those that were not yet. False when the user stopped it."""
        champion = self.ledger.champion
        missing = [(code, seed) for code, seed in plan(codes, self.seed, runs) if not is_done(self.ledger, code, seed)]
        typical = champion.seconds.get("wall", self.time_budget)
        for number, (code, seed) in enumerate(missing, 1):
            if self.stop.level:
                return False
            self.require_own_code()
            self.repo.set_stage(self.base, code.commit, self.task.editable)
            folder = self.folder / "verify" / f"{code.name.replace(' ', '-')}-{seed}"
            view = self.console.verifying(f"{code.name}, seed {seed}", number, len(missing), typical * (len(missing) - number + 1), folder,
                                          self.time_budget)
            trial, began = self.trial(folder, self.repo.stage, view, seed=seed), time.monotonic()
            outcome = trial.run()
            objection, figures = trial.holdout() if outcome.score is not None else (None, {})
            trial.tidy(keep_weights=False)
            self.console.stop_bar()
            if self.stop.now():
                return False
            if outcome.score is None or objection:
                self.require_space()
            typical = time.monotonic() - began
            self.ledger.append("verified", name=code.name, commit=code.commit, champion=champion.commit, seed=seed,
                               score=None if objection else outcome.score, holdout=None if objection else self.holdout_score(figures),
                               reason=objection or outcome.reason, seconds={**trial.seconds, "wall": round(typical, 3)})
            self.console.line(f"  {outcome.score:.6f}" if not objection and outcome.score is not None else f"  no score: {objection or outcome.reason}")
        return True


def code_hash() -> str:
    """Names the contents of loop.py and autoresearch/."""
    here = Path(__file__).resolve().parent
    return edit_hash({str(path.relative_to(here)): path.read_bytes() for path in (here / "loop.py", *here.glob("autoresearch/**/*.py"))})


def finite(figures: dict[str, float]) -> dict[str, float]:
    """Without what JSON cannot hold."""
    return {name: value for name, value in figures.items() if abs(value) < float("inf")}


# ----------------------------------------------------------------------------------------------
# Starting and continuing a run


def choose_tag(runs: Path, tag: str | None) -> str:
    """The tag asked for; else that of the run that was active last; else today's date."""
    if tag is None:
        journals = sorted(runs.glob("*/journal.jsonl"), key=lambda path: path.stat().st_mtime)
        tag = journals[-1].parent.name if journals else datetime.date.today().isoformat()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*([.][A-Za-z0-9_-]+)*", tag):
        raise UserError(f"{tag!r} cannot be a tag: use letters, digits, '-', '_' and '.', e.g. --tag {datetime.date.today()}")
    return tag


def begin(repo: RunRepo, ledger: Ledger, task: Task) -> None:
    """Record a new run, or check that an old one can go on, and put branch and worktree in order."""
    asked = json.loads(json.dumps(dataclasses.asdict(task)))
    tip = repo.branch_tip()
    if ledger.run is None:
        if tip is not None:
            raise UserError(f"the branch {repo.branch} exists and was not made by this loop; choose another with --tag NEW, "
                            f"or remove it: `git branch -D {repo.branch}`")
        ledger.append("run", tag=repo.tag, base=repo.head(), task=asked)
    elif ledger.run["task"] != {name: asked[name] for name in ledger.run["task"] if name in asked}:
        raise UserError(f"the task in program.md is not the one that run {repo.tag} began with; put it back, or start "
                        "another run with --tag NEW")
    champion = ledger.champion.commit if ledger.champion else ledger.run["base"]
    before = [attempt.commit for attempt in ledger.kept][-2:-1] or [ledger.run["base"]]
    if tip not in (None, champion, *before):
        raise UserError(f"the branch {repo.branch} stands at {short(tip)}, not where the loop left it ({short(champion)}). "
                        f"To keep that work, name it: `git branch mine {short(tip)}`; then put the branch back: "
                        f"`git branch -f {repo.branch} {short(champion)}`")
    for leftover in (ledger.path.parent / "trials").glob("*"):
        end_left_overs(leftover)
    repo.settle(champion)
    if ledger.pending:
        repo.remember(ledger.pending.number, ledger.pending.commit)
    if fault := task.fault(repo.worktree, {name: repo.read(ledger.run["base"], name) for name in task.editable}):
        raise UserError(f"{fault}, in the commit that the run starts from ({short(champion)}). Mend it, commit, and start "
                        "again" + (" with --tag NEW" if ledger.attempts else ""))


def describe(task: Task, worktree: Path, environment: dict[str, str]) -> dict:
    """The facts of the game as the task itself states them."""
    if not task.describe:
        return {}
    answer = subprocess.run(command_words(task.describe), cwd=worktree, env=environment, stdout=subprocess.PIPE)
    try:
        facts = json.loads(answer.stdout)
    except ValueError:
        facts = None
    if answer.returncode or not isinstance(facts, dict) or not all(isinstance(facts.get(name), kind | None) for name, kind in FACTS.items()):
        raise UserError(f"`{task.describe}` did not say what the run would use (exit code {answer.returncode})")
    return facts


def set_up(task: Task, worktree: Path, environment: dict[str, str]) -> None:
    """Run the task's set-up in the user's sight: this project's own prepares the data if they are missing."""
    if task.setup and (code := subprocess.run(command_words(task.setup), cwd=worktree, env=environment).returncode):
        raise UserError(f"the set-up `{task.setup}` failed with exit code {code}; what it says above tells why. "
                        "Nothing is lost: run the same command again when it is mended")


def require_same_game(ledger: Ledger, facts: dict, tag: str) -> None:
    """A run's scores compare only on one profile, one data set, one seed and one kind of device."""
    if ledger.game is None:
        return
    for name in ("profile", "data", "seed", "device", "time_budget", "game"):
        if ledger.game.get(name) != facts.get(name):
            raise UserError(f"run {tag} has {name} {ledger.game.get(name)}, but now it would be {facts.get(name)}; results of "
                            f"two games are never mixed. Use the run's own settings, or start another with --tag NEW")


# ----------------------------------------------------------------------------------------------
# Command line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  context_settings={"help_option_names": ["-h", "--help"]})
Tag = Annotated[str | None, typer.Option(help="Name of the run. Default: the last run, else today's date.")]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    experiments: Annotated[int | None, typer.Option(min=1, help="Stop when the run has this many, the baseline included.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Start no experiment after this many hours.")] = None,
    tag: Tag = None,
    agent: Annotated[str, typer.Option(help="Who proposes: sweep (no model, the control) or command.")] = "sweep",
    agent_command: Annotated[str | None, typer.Option(help="The program of --agent command.")] = None,
    profile: Annotated[str | None, typer.Option(help="gpu, cpu or test. Default: gpu where there is one, else cpu.")] = None,
    data: Annotated[str | None, typer.Option(help="climbmix, sotu or a folder. Default: the profile's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every trial: picking seeds is not research.")] = 42,
    keep_rule: Annotated[str, typer.Option(help="margin: a gain must exceed half of what noise does to it, and the price of the lines that it "
                                           "adds. strict: any gain.")] = "margin",
    baseline_runs: Annotated[int, typer.Option(min=1, help="How often the baseline is trained, to know the noise.")] = 2,
    sandbox_mode: Annotated[str, typer.Option("--sandbox", help="auto: confine trials where the kernel can. require: refuse to run "
                                              "where it cannot. off: trust the agent's code.")] = "auto",
    plain: Annotated[bool, typer.Option("--plain", help="One line an event, no live view.")] = False,
) -> None:
    """Let an agent do language-model research: it edits train.py, each edit is trained for a fixed
    time, scored, and kept or thrown away. The same command again continues the run."""
    if context.invoked_subcommand:
        return
    console = Console(plain)
    stop = StopRequest(console)
    limits = Limits(experiments, hours)
    if keep_rule not in RULES:
        raise UserError(f"--keep-rule takes {' or '.join(RULES)}, not {keep_rule!r}")
    settings = {"AUTORESEARCH_PROFILE": profile, "AUTORESEARCH_DATA": data and resolve_data(data)}
    proposer = make_agent(agent, seed, agent_command, stopped=lambda: stop.level > 0)
    with open_run(tag, sandbox_mode, console, stop) as opened:
        begin(opened.repo, opened.ledger, opened.task)
        rule = RULES[keep_rule] if keep_rule == "strict" else dataclasses.replace(RULES[keep_rule], line_price=opened.task.line_price)
        loop = Loop(opened, proposer, {name: value for name, value in settings.items() if value}, seed, rule, baseline_runs)
        loop.prepare(lambda facts: show_first_screen(console, loop, facts, limits))
        opened.ledger.append("start", code=loop.code, keep_rule=keep_rule, agenda=read_agenda(opened.root / "program.md"))
        loop.results.rebuild()
        reason = loop.night(limits)
        opened.ledger.append("stop", reason=reason)
        show_end(console, loop, reason)
    if stop.now():
        raise typer.Exit(130)


@dataclasses.dataclass
class Opened:
    """A run that this process alone holds."""

    root: Path                      # the user's checkout
    folder: Path                    # of the run
    task: Task
    ledger: Ledger
    repo: RunRepo
    confined: bool
    console: Console
    stop: StopRequest


@contextlib.contextmanager
def open_run(tag: str | None, sandbox_mode: str, console: Console, stop: StopRequest) -> Iterator[Opened]:
    """The run of a tag, old or new, locked against other loops."""
    repository = open_repository(Path.cwd())
    root = root_of(repository)
    runs = root / RUNS
    task = read_task(root / "program.md")
    tag = choose_tag(runs, tag)
    folder = runs / tag
    confined = choose_confinement(sandbox_mode)
    lock = Lock(folder, tag)
    try:
        (runs / ".gitignore").write_text("*\n")
        ledger = Ledger(folder)
        Results(root / "results.tsv", ledger).require_ours(runs)
        yield Opened(root, folder, task, ledger, RunRepo(repository, tag, folder), confined, console, stop)
    finally:
        lock.release()


def choose_confinement(mode: str) -> bool:
    """Whether trials run confined."""
    if mode not in ("auto", "require", "off"):
        raise UserError(f"--sandbox takes auto, require or off, not {mode!r}")
    if mode == "require" and not sandbox.method():
        raise UserError("--sandbox require: this kernel has no Landlock (Linux 5.19 or later, not switched off) and there is no bubblewrap "
                        "that works, so trials cannot be confined. Install bubblewrap, or --sandbox off if you trust the agent's code")
    return mode != "off" and sandbox.method() != ""


def resolve_data(data: str) -> str:
    """A folder's path must mean the same from the worktree."""
    return data if data in ("climbmix", "sotu") else str(Path(data).expanduser().resolve())


def sandbox_says(confined: bool) -> str:
    if confined:
        return f"{sandbox.method()}: trials read no home and no keys, write to their own folder, no network"
    return "NONE: the agent's code runs with your rights (see --sandbox)"


def show_first_screen(console: Console, loop: Loop, facts: dict, limits: Limits) -> None:
    ledger, repo, task = loop.ledger, loop.repo, loop.task
    done = len(ledger.finished)
    better = "lower" if task.lower_is_better else "higher"
    budget = facts.get("time_budget")
    shown = {
        "device": facts.get("device"),
        "profile": facts.get("profile"),
        "data": facts.get("data") and f"{facts['data']}" + ("" if facts.get("game") else ", not prepared yet: that comes first"),
        "agent": loop.agent.name + " (no model: seeded local search over the constants)" * (loop.agent.name == "sweep"),
        "edits": ", ".join(task.editable),
        "trial": f"{task.train}" + (f", {budget:g} s of training" if budget else "") + f"; scored by {task.metric}, {better} is better",
        "sandbox": sandbox_says(loop.confined),
        "branch": f"{repo.branch}, in its own worktree; your checkout is not touched",
        "record": f"results.tsv and {RUNS}/{repo.tag}/",
        "until": str(limits),
        "to stop": "Ctrl-C: after the running experiment; twice: now. The same command continues",
    }
    edited = repo.uncommitted(task.editable)
    if edited and not ledger.attempts:
        shown["note"] = f"{', '.join(edited)} has uncommitted changes, which are not part of the run: it starts from {short(ledger.run['base'])}"
    title = f"autoresearch: run {repo.tag}, " + (f"continued after {count(done, 'experiment')}" if ledger.attempts else "new")
    console.first_screen(title, {name: text for name, text in shown.items() if text})


def show_end(console: Console, loop: Loop, reason: str) -> None:
    finished = loop.ledger.finished
    totals = {status: sum(attempt.status == status for attempt in finished) for status in ("keep", "discard", "crash")}
    console.line(f"stopped: {reason}")
    console.line(f"{count(len(finished), 'experiment')}: " + ", ".join(f"{total} {status}" for status, total in totals.items()))
    scored = loop.ledger.kept
    if scored:
        console.line(f"{loop.task.metric} {scored[0].score:.6f} -> {scored[-1].score:.6f}, "
                     f"best commit {short(scored[-1].commit)} on {loop.repo.branch}")


@app.command()
def verify(
    tag: Tag = None,
    runs: Annotated[int, typer.Option(min=2, help="How often each code is trained, each time with another fresh seed.")] = 3,
    ablate: Annotated[bool, typer.Option("--ablate", help="Also leave out each kept change in turn: which of them carry the gain?")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Ablate, then write a branch without the changes that do not, and run that too.")] = False,
    sandbox_mode: Annotated[str, typer.Option("--sandbox", help="As for the run itself.")] = "auto",
    plain: Annotated[bool, typer.Option("--plain", help="One line an event, no live view.")] = False,
) -> None:
    """Run baseline and champion again with fresh seeds, and say what the gain is. The same command again continues."""
    console = Console(plain)
    stop = StopRequest(console)
    tag, _ = recorded_run(root_of(open_repository(Path.cwd())), tag)
    with open_run(tag, sandbox_mode, console, stop) as opened:
        ledger, repo, task = opened.ledger, opened.repo, opened.task
        kept = ledger.kept
        if len(kept) < 2:
            raise UserError(f"run {repo.tag} has kept nothing after its baseline, so there is no gain to verify")
        begin(repo, ledger, task)
        settings = {f"AUTORESEARCH_{name.upper()}": ledger.game[name] for name in ("profile", "data") if ledger.game.get(name)}
        loop = Loop(opened, None, settings, ledger.seed, RULES["margin"], 1)
        loop.prepare(lambda facts: console.first_screen(f"autoresearch: verify run {repo.tag}", {
            "baseline": f"{short(kept[0].commit)}, {task.metric} {kept[0].score:.6f} in the run",
            "champion": f"{short(kept[-1].commit)}, {kept[-1].score:.6f}, {count(len(kept) - 1, 'change')} kept",
            "runs": f"{runs} of each code, with fresh seeds, in turn",
            "sandbox": sandbox_says(opened.confined),
            "to stop": "Ctrl-C: after the running one; twice: now. The same command continues",
        }))
        codes = [Code(BASELINE, kept[0].commit), Code(CHAMPION, kept[-1].commit), *(loop.ablations() if ablate or prune else ())]
        finished = loop.run_again(codes, runs)
        found = findings(ledger, task.lower_is_better, task.line_price)
        if finished and prune and (dead := [part.attempt for part in found.parts if part.dead]):
            finished = loop.prune(dead, runs)
            found = findings(ledger, task.lower_is_better, task.line_price)
        show_findings(console, found)
        if not finished:
            console.line("stopped before all was run; the same command continues")
    if stop.now():
        raise typer.Exit(130)


def show_findings(console: Console, found: Findings | None) -> None:
    if found is None or found.gain is None:
        console.line("not enough scores yet to say anything", "yellow")
        for line in found.failed if found else ():
            console.line(f"  {line}", "yellow")
        return
    console.line("gain of the champion over the baseline, {1} fresh runs against {0}, with its 95% interval:".format(*found.gain.runs))
    shown = "" if found.gain.low > 0 else ": no gain shown" if found.gain.high > 0 else ": the champion is worse"
    console.line(f"  val      {found.gain}{shown}", "yellow" if shown else "green")
    if found.holdout:
        console.line(f"  holdout  {found.holdout}")
    for part in found.parts:
        worth = f"{part.worth}: " if part.worth else ""
        console.line(f"  without experiment {part.attempt.number}: the champion loses {worth}{part.says} ({one_line(part.attempt.description, 60)})")
    if found.pruned:
        console.line(f"  pruned   {found.pruned} over the champion"
                     + (": what can go one by one cannot go together" if found.pruned.high < 0 else ""), "yellow" if found.pruned.high < 0 else "")
    for line in found.failed:
        console.line(f"  {line}", "yellow")


@app.command()
def report(
    tag: Tag = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write to. Default: report/ in the run's own folder.")] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write report.pdf as well.")] = False,
) -> None:
    """Write a short paper of a run, from its record alone: what was kept, what it is worth, what did not help, what it cost."""
    repository = open_repository(Path.cwd())
    root = root_of(repository)
    tag, ledger = recorded_run(root, tag)
    if ledger.champion is None:
        raise UserError(f"run {tag} has no baseline yet, so there is nothing to report")
    repo, task = RunRepo(repository, tag, ledger.path.parent), task_of(ledger.run["task"])
    diffs = {attempt.number: repo.diff(attempt.parent, attempt.commit, task.editable) for attempt in ledger.kept[1:]}
    path = write_report(Run(tag, task, ledger, diffs), output or ledger.path.parent / "report", pdf)
    print(f"{path}: {count(len(ledger.finished), 'experiment')} of run {tag}")


def recorded_run(root: Path, tag: str | None) -> tuple[str, Ledger]:
    """(The tag, the record) of a run that there is."""
    runs = root / RUNS
    tag = choose_tag(runs, tag)
    ledger = Ledger(runs / tag)
    if ledger.run is None:
        raise UserError(f"there is no run {tag} here; runs are: {', '.join(sorted(path.parent.name for path in runs.glob('*/journal.jsonl'))) or 'none'}")
    return tag, ledger


@app.command()
def results(tag: Tag = None) -> None:
    """Write results.tsv again, from the journal."""
    root = root_of(open_repository(Path.cwd()))
    tag, ledger = recorded_run(root, tag)
    file = Results(root / "results.tsv", ledger)
    file.require_ours(root / RUNS)
    file.rebuild()
    print(f"{file.path}: {len(ledger.finished)} experiments of run {tag}")


def main() -> None:
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
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
