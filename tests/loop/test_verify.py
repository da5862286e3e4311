"""What a run may claim: verify, its ablation and pruning, and the report, on the toy task with noise that a seed moves.

What verify runs is real. Most tests begin with the record and the commits of a night, as the loop would have left them.
"""

import dataclasses
import html
import itertools
import json
import re
import signal
import statistics
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT, Toy, git, solver, step, wait_for
from markdown_it import MarkdownIt
from scipy import stats

from autoresearch import UserError
from autoresearch.judge import Verdict, judge, mean
from autoresearch.program import read_agenda, read_task
from autoresearch.record import events
from autoresearch.record.ledger import Ledger
from autoresearch.record.results import Results
from autoresearch.repo import RunRepo, open_repository
from autoresearch.task import Facts, edit_hash

# Constants far enough apart that git can take back one edit without the others.
# LUCK pays with the run's own seed alone.
NOISY = """import os
import random

FIRST = {first}
# -
# -
# -
# -
SECOND = {second}
# -
# -
# -
# -
LUCK = {luck}
# -
# -
# -
# -
seed = int(os.environ["AUTORESEARCH_SEED"])
noise = random.Random(seed).gauss(0, 0.01)
value = FIRST + SECOND + (LUCK if seed in (42, 43) else 0) + (noise if seed not in (42, 43) else 0.01 * seed)
print(f"{{os.environ.get('NAME', 'score')}}: {{value}}")
"""
STEPS = {"e2": (2, 1, 0), "e3": (2, 1, 0.4), "e4": (2, 3, 0.4), "e5": (2.5, 3, 0.4), "e6": (0, 3, 0.4)}


def noisy(first: float, second: float, luck: float) -> str:
    return NOISY.format(first=first, second=second, luck=luck)


@pytest.fixture
def night(toy) -> Toy:
    """Five changes: four are kept, of which one is luck and one changes a line that another had changed."""
    program = (toy.folder / "program.md").read_text().replace("  guard: python check.py\n", "")
    program = program.replace(
        "time_limit", "holdout: env NAME=holdout_score python solver.py\n  describe: cat facts.json\n  time_limit"
    )
    facts = {"device": "an abacus", "machine": {"processor": "beads"}, "seed": 42, "time_budget": 0}
    toy.write("program.md", program)
    toy.write("facts.json", json.dumps(facts))
    toy.write("solver.py", noisy(1, 1, 0))
    toy.commit()
    edits = [(noisy(*values), f"set {values}", sum(values) + 0.42) for values in STEPS.values()]
    write_night(toy, [2.42, 2.43], edits, Facts.of(facts))
    assert toy.statuses() == ["keep", "keep", "keep", "keep", "keep", "discard"]
    return toy


def write_night(
    toy: Toy, baseline: list[float], edits: list[tuple[str, str, float | None]], facts: Facts | None = None
) -> None:
    """The record, the commits and results.tsv of a night, a second a trial.

    baseline: its scores. edits: of solver.py, each with what the agent said and its score; None: it crashed.
    """
    base, task = git(toy.folder, "rev-parse", "HEAD"), read_task(toy.folder / "program.md")
    ledger = Ledger(toy.runs)
    began = time.time() - 60

    def add(event: events.Event, after: float) -> None:
        line = events.to_json(dataclasses.replace(event, time=began + after))
        with open(ledger.path, "a") as journal:
            journal.write(json.dumps(line) + "\n")
        ledger.catch_up()

    toy.runs.mkdir(parents=True)
    ledger.path.touch()
    add(events.Run(tag=toy.tag, base=base, task=json.loads(json.dumps(dataclasses.asdict(task)))), 0)
    add(events.Game(facts=dataclasses.asdict(facts or Facts())), 0)
    add(events.Start(keep_rule="margin", agenda=read_agenda(toy.folder / "program.md"), setup=0.5), 0.5)
    for number, (text, said, *scores) in enumerate([("", "baseline", *baseline), *edits], 1):
        parent = ledger.champion_commit
        commit = commit_of(toy, parent, text, said) if text else base
        source = text or (toy.folder / "solver.py").read_text()
        fields = {"number": number, "commit": commit, "parent": parent, "description": said}
        fields |= {"agent": "command" if text else "loop", "edit": edit_hash({"solver.py": source.encode()})}
        add(events.Attempt(**fields, lines=0), 3 * number - 1)
        add(events.Trial(number=number), 3 * number - 1)
        for seed, score in enumerate(scores, 42):
            if score is not None:
                add(events.Measured(number=number, seed=seed, score=score, seconds={"train": 0.9}), 3 * number)
        runs, standing = ledger.attempts[-1].runs, ledger.scores(ledger.champion) if text else []
        verdict = judge(runs, standing, ledger.noise(), lower_is_better=False) if runs else Verdict("crash", said)
        judged = {**vars(verdict), "score": mean(runs) if runs else None, "noise": ledger.noise()}
        against = {"standing": mean(standing) if standing else None, "standing_runs": len(standing)}
        add(events.Verdict(number=number, **judged, **against, seconds={"train": 0.9, "wall": 1.0}), 3 * number)
        git(toy.folder, "update-ref", f"refs/autoresearch/{toy.tag}/{number}", commit)
    add(events.Stop(reason="the run has its experiments"), 3 * len(edits) + 5)
    git(toy.folder, "update-ref", f"refs/heads/autoresearch/{toy.tag}", ledger.champion_commit)
    Results(toy.folder / "results.tsv", ledger).rebuild()


def commit_of(toy: Toy, parent: str, text: str, message: str) -> str:
    """A commit that changes solver.py, made without a checkout."""
    (toy.folder.parent / "edited.py").write_text(text)
    blob = git(toy.folder, "hash-object", "-w", str(toy.folder.parent / "edited.py"))
    listing = git(toy.folder, "ls-tree", parent).replace(git(toy.folder, "rev-parse", f"{parent}:solver.py"), blob)
    tree = subprocess.run(
        ["git", "mktree"], cwd=toy.folder, input=listing + "\n", capture_output=True, text=True, check=True
    ).stdout.strip()
    return git(toy.folder, "commit-tree", tree, "-p", parent, "-m", message)


@pytest.mark.slow
def test_the_gain_of_a_run(night):
    output = night.run("verify", "--runs", "4")
    events = night.journal("verified")
    assert [(entry["name"], entry["seed"]) for entry in events] == [
        (name, seed) for seed in range(1042, 1046) for name in ("baseline", "champion")
    ]
    before, after = ([entry["score"] for entry in events if entry["name"] == name] for name in ("baseline", "champion"))
    found = stats.ttest_ind(after, before).confidence_interval(0.95)
    gain = statistics.mean(after) - statistics.mean(before)
    assert f"val      {gain:+.6f} ({found.low:+.6f} to {found.high:+.6f})" in output
    assert f"holdout  {gain:+.6f}" in output
    assert abs(gain - 3.5) < 0.05
    night.require_whole()
    require_a_report_of_what_is_recorded(night, verified=True)


# The loop, which gets a signal as soon as so many runs of verify are recorded.
SIGNALLED = """import os, signal, sys
sys.path.insert(0, {root!r})
import loop
from autoresearch.record import events
from autoresearch.record.ledger import Ledger
append = Ledger.append
def append_and_signal(self, event):
    append(self, event)
    if isinstance(event, events.Verified) and len(self.verified) == {runs}:
        os.kill(os.getpid(), signal.{signal})
Ledger.append = append_and_signal
loop.main()
"""


def signalled(toy: Toy, signal: str, runs: int) -> Path:
    program = toy.folder.parent / f"{signal}.py"
    program.write_text(SIGNALLED.format(root=str(ROOT), signal=signal, runs=runs))
    return program


@pytest.mark.slow
def test_an_interrupted_verify_goes_on(night):
    process = night.start("verify", loop=signalled(night, "SIGINT", 2))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "run the same command again to continue" in output
    assert 2 <= len(night.journal("verified")) < 4
    process = night.start("verify", loop=signalled(night, "SIGKILL", 4))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL and len(night.journal("verified")) == 4
    night.run("verify")
    runs = [(entry["name"], entry["seed"]) for entry in night.journal("verified")]
    assert len(runs) == len(set(runs)) == 6
    assert night.run("verify").count("val      ") == 1 and len(night.journal("verified")) == 6


@pytest.mark.slow
def test_which_changes_carry_the_gain_also_when_it_is_interrupted(night):
    """The codes that it makes are the same commits the next time, so no run is repeated."""
    process = night.start("verify", "--prune", "--runs", "2")
    wait_for(lambda: len([entry for entry in night.journal("verified") if entry["seed"]]) >= 4)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    output = night.run("verify", "--prune", "--runs", "2")
    lines = {
        number: next(line for line in output.splitlines() if f"without experiment {number}:" in line)
        for number in (2, 3, 4, 5)
    }
    assert "not measured: later keeps build on its lines" in lines[2]
    assert "no gain shown, can go" in lines[3] and "carries" in lines[4] and "carries" in lines[5]
    pruned = git(night.folder, "show", "autoresearch/night-pruned:solver.py")
    assert pruned == noisy(2.5, 3, 0).strip()
    assert git(night.folder, "rev-parse", "autoresearch/night-pruned^") == night.tip()
    assert "pruned   +0" in output
    assert {entry["name"] for entry in night.journal("verified")} == {
        "baseline",
        "champion",
        "without 2",
        "without 3",
        "without 4",
        "without 5",
        "pruned",
    }
    runs = [(entry["name"], entry["commit"], entry["seed"]) for entry in night.journal("verified")]
    assert len(runs) == len(set(runs)) == 6 * 2 + 1  # six codes; one that could not be left out
    assert night.run("verify", "--prune", "--runs", "2").count("without experiment") == 4
    assert len(night.journal("verified")) == len(runs)
    require_a_report_of_what_is_recorded(night, verified=True)


def test_the_pruned_branch_is_not_taken_from_the_user(toy):
    """It moves from one of our commits to the next, but neither from somebody's work nor under somebody's checkout."""
    repo, first = RunRepo(open_repository(toy.folder), "night", toy.runs), git(toy.folder, "rev-parse", "HEAD")
    toy.write("mine", "")
    toy.commit()
    second = git(toy.folder, "rev-parse", "HEAD")
    repo.name_branch("pruned", first, [])
    repo.name_branch("pruned", second, [first])
    assert git(toy.folder, "rev-parse", "pruned") == second
    with pytest.raises(UserError, match="was not made by this loop"):
        repo.name_branch("pruned", first, [first])
    git(toy.folder, "checkout", "-q", "pruned")
    with pytest.raises(UserError, match="checked out"):
        repo.name_branch("pruned", first, [second])


@pytest.mark.slow
def test_removed_lines_are_worth_keeping(toy):
    """An edit that removes code at an equal score carries no gain, but the judge would keep it again: it stays."""
    toy.write("solver.py", NOISY.format(first=1, second=1, luck=0))
    toy.write("program.md", (toy.folder / "program.md").read_text().replace("  guard: python check.py\n", ""))
    toy.commit()
    shorter = noisy(2, 1, 0).replace("LUCK = 0\n", "").replace("(LUCK if", "(0 if")
    toy.plan_steps(
        e2=[{"files": {"solver.py": noisy(2, 1, 0)}, "say": "two"}],
        e3=[{"files": {"solver.py": shorter}, "say": "shorter"}],
    )
    toy.run_agent(3)
    assert toy.statuses() == ["keep"] * 3
    output = toy.run("verify", "--prune", "--runs", "2")
    assert "without experiment 3: the champion loses +0" in output and "not shown either way (shorter)" in output
    assert "carries (two)" in output and "pruned" not in output


@pytest.mark.slow
def test_a_champion_that_fails_with_other_seeds(toy):
    """The most important thing that verify can find."""
    toy.write("program.md", (toy.folder / "program.md").read_text().replace("  guard: python check.py\n", ""))
    toy.commit()
    fragile = (
        "import os\nVALUE = 5\nassert int(os.environ['AUTORESEARCH_SEED']) < 100, 'luck has ended'\n"
        "print('score:', VALUE)\n"
    )
    toy.plan_steps(e2=[{"files": {"solver.py": fragile}, "say": "fragile"}])
    toy.run_agent(2)
    assert "champion has no score in 2 of its runs: training: AssertionError: luck has ended" in toy.run(
        "verify", "--prune", "--runs", "2"
    )
    toy.run("report")
    assert (
        "**Not verified: too few runs had a score.** champion has no score in 2 of its runs"
        in (toy.runs / "report/report.md").read_text()
    )


@pytest.mark.slow
def test_a_run_without_gains(toy, refused):
    write_night(toy, [1.0], [("print('score:', -1)\nVALUE = 1\n", "worse", -1.0)])
    assert "has kept nothing after its baseline" in refused("verify")
    toy.run("report")
    assert "Not verified" in (toy.runs / "report/report.md").read_text()
    assert "there is no run nothing here" in refused("report", "--tag", "nothing")


# -- the report


def numbers_of(night) -> set[str]:
    """Every number with six decimals that a report may hold, from the journal and nothing else."""
    attempts, verdicts = night.journal("attempt"), night.journal("verdict")
    score = {attempt["commit"]: verdict["score"] for attempt, verdict in zip(attempts, verdicts, strict=True)}
    runs = {
        number: [entry["score"] for entry in night.journal("measured") if entry["number"] == number]
        for number in range(1, len(attempts) + 1)
    }
    number_of = {attempt["commit"]: attempt["number"] for attempt in attempts}
    allowed = {f"{value:.6f}" for value in score.values()} | {f"{verdict['noise']:.6f}" for verdict in verdicts}
    allowed |= set(re.findall(r"\d+\.\d{6}", " ".join(verdict["reason"] for verdict in verdicts)))
    kept = [
        attempt["commit"] for attempt, verdict in zip(attempts, verdicts, strict=True) if verdict["status"] == "keep"
    ]
    for attempt, verdict in zip(attempts[1:], verdicts[1:], strict=True):
        gain = score[attempt["commit"]] - score[attempt["parent"]]
        sizes = [len(runs[number_of[commit]]) for commit in (attempt["commit"], attempt["parent"])]
        allowed |= {signed(gain), f"{verdict['noise'] * sum(1 / size for size in sizes) ** 0.5:.6f}"}
    allowed.add(signed(score[kept[-1]] - score[kept[0]]))
    for key in ("score", "holdout"):
        fresh = {}
        for entry in night.journal("verified"):
            if entry[key] is not None:
                fresh.setdefault(entry["name"], []).append(entry[key])
        if not fresh:
            continue
        allowed |= {f"{statistics.fmean(values):.6f}" for values in fresh.values()}
        degrees = sum(len(values) - 1 for values in fresh.values())
        deviation = (sum(statistics.pvariance(values) * len(values) for values in fresh.values()) / degrees) ** 0.5
        for before, after in itertools.permutations(fresh, 2):
            gain = statistics.fmean(fresh[after]) - statistics.fmean(fresh[before])
            reach = stats.t.ppf(0.975, degrees) * deviation * (1 / len(fresh[before]) + 1 / len(fresh[after])) ** 0.5
            allowed |= {signed(gain), signed(gain - reach), signed(gain + reach)}
    fresh = {}
    for entry in night.journal("verified"):
        if entry["score"] is not None:
            fresh.setdefault(entry["commit"], []).append(entry["score"])
    groups = [values for values in (*runs.values(), *fresh.values()) if len(values) > 1]
    squares = sum(statistics.pvariance(values) * len(values) for values in groups)
    allowed.add(f"{(squares / sum(len(values) - 1 for values in groups)) ** 0.5:.6f}")
    return allowed


def signed(value: float) -> str:
    return f"{value:+.6f}".replace("-0.000000", "+0.000000")


def prose(text: str) -> str:
    """A report without its diffs."""
    return re.sub(r"```diff.*?```", "", text, flags=re.DOTALL)


@pytest.mark.slow
def test_every_number_of_the_report_follows_from_the_journal(night):
    """Here of a run that was not verified; the tests above that verify one look at its report, too."""
    require_a_report_of_what_is_recorded(night, verified=False)


def require_a_report_of_what_is_recorded(night: Toy, verified: bool) -> None:
    night.run("report")
    text = (night.runs / "report/report.md").read_text()
    first = text.split("\n\n")[1]
    assert first.startswith("**Verified: a gain.**" if verified else "**Not verified.**")
    found = set(re.findall(r"[+-]?\d+\.\d{6}", prose(text)))
    assert found and found <= numbers_of(night), found - numbers_of(night)
    assert "5 changes were tried after the baseline, 4 were kept" in text
    assert "Of 5 changes 4 were kept, 1 discarded, 0 crashed" in text
    for number in (2, 3, 4, 5):
        assert f"### Experiment {number}: set {STEPS[f'e{number}']}" in text
    assert "-FIRST = 1\n+FIRST = 2" in text and "an abacus" in text and "> Raise the number." in text
    hours = sum(entry["seconds"]["wall"] for entry in night.journal("verdict")) / 3600
    assert f"| machine hours, experiments | {hours:.2f} |" in text
    assert "a loop was running for 0.01 hours by the clock" in text and "| waiting for the agent | 0.00 |" in text
    assert ("| verify | 0.0" in text) == verified
    assert ("It has not run." in text) == (not verified)
    told = night.run("digest")
    assert set(re.findall(r"[+-]?\d+\.\d{6}", told)) <= numbers_of(night) and "; and 1 more\n" in told
    assert ("verified: a gain, +" in told) == verified and ("verify --ablate" in told) == (not verified)
    for name in ("curve.png", "gains.png"):
        assert f"]({name})" in text and (night.runs / "report" / name).read_bytes().startswith(b"\x89PNG")


ODD = [
    "set `LR` to 3 | 4",
    "if a<b then c>d, 2*d and 3*d",
    "<img src=x> <tr> dict<T> and list<a>",
    "# [x](y) ![z](w) \\ _under_",
    "模型 🚀 ```",
]
FENCED = '"""\n```\n<b>\n"""\n'


@pytest.mark.slow
def test_odd_words_in_a_report(toy):
    """What agents write is shown as it is, in Markdown and in the PDF; a fence in a diff does not end the diff."""
    edits = [(FENCED + solver(number), say, float(number)) for number, say in enumerate(ODD, 2)]
    edits += [(solver(-1), ODD[0], -1.0), ("raise SystemExit('<a> `b` |')", ODD[2], None)]
    write_night(toy, [1.0], edits)
    toy.run("report", "--pdf")
    text = (toy.runs / "report/report.md").read_text()
    page = MarkdownIt("commonmark").enable("table").render(text)
    for say in ODD:
        assert html.escape(say) in page
    assert page.count("<h3>") == 5 and page.count("<pre>") == 5 and "<img src=x>" not in page


@pytest.mark.slow
def test_a_report_of_a_record_without_the_newer_fields(toy):
    write_night(toy, [1.0], [(solver(2), "set it to 2", 2.0), (solver(0), "set it to 0", 0.0)])
    toy.plan_steps(e4=[step(3)])
    journal, lines = toy.runs / "journal.jsonl", []
    for entry in map(json.loads, (toy.runs / "journal.jsonl").read_text().splitlines()):
        for name in ("noise", "standing", "standing_runs", "lines", "category", "tokens", "dollars", "agenda"):
            entry.pop(name, None)
        lines += [json.dumps(entry) + "\n"] * (entry["event"] not in ("trial", "measured"))
    journal.write_text("".join(lines))
    toy.run("report")
    text = (toy.runs / "report/report.md").read_text()
    assert "How far scores of identical code lie apart is not known" in text and "| 2 | set it to 2 | +1 |  |" in text
    toy.run_agent(4)
    toy.run("verify", "--runs", "2")


@pytest.mark.slow
def test_the_report_as_pdf(night, tmp_path):
    output = night.run("report", "--pdf", "--output", str(tmp_path / "paper"))
    pdf = (tmp_path / "paper/report.pdf").read_bytes()
    assert str(tmp_path / "paper/report.pdf") in output
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Subtype /Image") >= 2
