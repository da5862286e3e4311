"""What is printed about a run: the first screen, how it ended, and the answer of `try`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoresearch.program import program_of, read_stages
from autoresearch.record.ledger import Ledger
from autoresearch.record.runs import RUNS
from autoresearch.runner import SCORE, TRAIN
from autoresearch.runner.logs import ends_of
from autoresearch.task import NOTHING, Facts
from autoresearch.text import count, digits, short
from autoresearch.views.console import Console
from autoresearch.views.verdicts import Record

if TYPE_CHECKING:  # `try` and `wait` need not wait for git
    from autoresearch.run import Run


def first_screen(run: Run, facts: Facts, more: dict[str, str]) -> None:
    from autoresearch.runner.local import sandbox_in_words

    ledger, repo, task = run.ledger, run.repo, run.task
    better = "lower" if task.lower_is_better else "higher"
    budget = facts.time_budget
    shown = {
        "device": facts.device,
        "note": facts.note,
        "profile": facts.profile,
        "data": facts.data and facts.data + ("" if facts.game else ", not prepared yet; this is done first"),
        "agent": more.get("agent"),
        "edits": ", ".join(task.editable),
        "trial": (task.score if task.train == NOTHING and task.score else task.train)
        + (f", {budget:g} s of training" if budget else "")
        + f"; scored by {task.metric}, {better} is better",
        "sandbox": sandbox_in_words(run.confined),
        "branch": f"{repo.branch}, in its own worktree; your checkout is not touched",
        "record": f"results.tsv and {RUNS}/{repo.tag}/",
        **more,
        "to stop": "Ctrl-C: after the running experiment; twice: now. Same command again: continue",
    }
    edited = repo.uncommitted(task.editable)
    if edited and not ledger.attempts:
        uncommitted = f"{', '.join(edited)} has uncommitted changes, which the run ignores: it starts from commit "
        shown["note"] = "; ".join(filter(None, (facts.note, uncommitted + short(ledger.base))))
    done = count(len(ledger.finished), "experiment")
    title = f"autoresearch: run {repo.tag}, " + (f"continued after {done}" if ledger.attempts else "new")
    run.console.first_screen(title, {name: text for name, text in shown.items() if text})


def show_end(run: Run, reason: str) -> None:
    kept, spent = run.ledger.kept, run.ledger.spent
    counts = ", ".join(f"{number} {status}" for status, number in Record(run.ledger).counts.items())
    run.console.line(f"stopped: {reason}")
    run.console.line(f"{count(len(run.ledger.finished), 'experiment')}: {counts}")
    if spent.tokens or spent.dollars or spent.unknown_dollars:
        run.console.line(f"proposals took {spent.words()}")
    if dollars := run.ledger.account.dollars():
        run.console.line(f"seats cost ${dollars:.2f}")
    if kept:
        run.console.line(
            f"{run.task.metric} {digits(kept[0].score)} -> {digits(kept[-1].score)}, "
            f"best commit {short(kept[-1].commit)} on {run.repo.branch}"
        )


def answer_of(root: Path, ledger: Ledger, number: int) -> dict:
    """The answer of `try` about an experiment that has a verdict, or whose edit was refused. root: the checkout."""
    assert ledger.run and ledger.task
    champion, folder, tag, editable = ledger.champion, ledger.path.parent, ledger.run.tag, ledger.task.editable
    common = {
        "metric": ledger.task.metric,
        "champion": champion and champion.score,
        "champion_commit": champion and champion.commit,
        "branch": f"autoresearch/{tag}",
        "edit": [str((folder / "worktree" / name).relative_to(root)) for name in editable],
    }
    if number > len(ledger.attempts):
        reason = ledger.refused[-1].reason
        if reason.startswith("nothing changed") and (elsewhere := edited_elsewhere(root, ledger)):
            reason += (
                f"; you edited {', '.join(elsewhere)} in your checkout, which is not what is tried: "
                f"edit {', '.join(common['edit'])}"
            )
        return {"verdict": "refused", "reason": reason, **common}
    attempt, stages = ledger.attempts[number - 1], read_stages(program_of(root, Path.cwd()))
    trial = folder / "trials" / str(number)
    return {
        "number": attempt.number,
        "verdict": attempt.status,
        "reason": attempt.reason,
        "score": attempt.score,
        "champion_before": attempt.standing,
        "noise": attempt.noise,
        "lines": attempt.lines,
        "figures": attempt.figures,
        "commit": attempt.commit,
        "description": attempt.description,
        "log": str((trial / "train.log").relative_to(root)),
        "log_tail": ends_of(trial, 2000, (TRAIN, SCORE)) if attempt.status == "crash" else "",
        "ref": f"refs/autoresearch/{tag}/{attempt.number}",
        "stage": stages.of(ledger.finished),
        "verdicts_without_a_keep": stages.barren(ledger.finished),
        "notes": [text for before, text in ledger.notes if before >= number],
        **common,
    }


def edited_elsewhere(root: Path, ledger: Ledger) -> list[str]:
    """The editable files that have uncommitted changes in the user's checkout."""
    from autoresearch.repo import RunRepo, open_repository

    assert ledger.run and ledger.task
    return RunRepo(open_repository(root), ledger.run.tag, ledger.path.parent).uncommitted(ledger.task.editable)


def show_answer(console: Console, answer: dict) -> None:
    """The summary block of a trial, and its verdict, one `key: value` a line."""
    if answer.get("log_tail"):
        console.line("end of the log:")
        for line in answer["log_tail"].splitlines():
            console.line(f"  | {line}")
    console.line("---")
    for name, value in answer.get("figures", {}).items():
        console.line(f"{name + ':':<19}{digits(value)}" if name.endswith("bpb") else f"{name + ':':<19}{value:g}")
    shown = {
        "experiment": answer.get("number"),
        "verdict": answer["verdict"],
        "reason": answer["reason"],
        "champion": answer["champion_commit"]
        and f"{answer['metric']} {digits(answer['champion'])}, {short(answer['champion_commit'])} on "
        f"{answer['branch']}",
        "tried": answer.get("ref"),
        "log": answer.get("log"),
        "stage": answer.get("stage"),
        "note": "; ".join(answer.get("notes", [])) or None,
        "edit next": ", ".join(answer["edit"]),
    }
    for name, value in shown.items():
        if value is not None:
            console.line(f"{name + ':':<19}{value}")
