"""`clean`: remove worktrees, caches and git refs of old runs. Their records, logs and branches stay."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import git

from autoresearch import UserError
from autoresearch.files import remove
from autoresearch.record.journal import Lock
from autoresearch.record.ledger import Ledger
from autoresearch.record.runs import RUNS, choose_tag
from autoresearch.repo import open_repository
from autoresearch.runner.machine import disk_usage
from autoresearch.text import count

FOLDERS = ("worktree*", "scratch", "stage*", "caches*", "reference")  # of a run: what can be created again


def folders_of(run: Path) -> list[Path]:
    return [path for name in FOLDERS for path in sorted(run.glob(name))]


def refs_of(repository: git.Repo, run: Path) -> list[str]:
    """The refs of a run's attempts, but for those without a verdict, which run when it is continued."""
    place = f"refs/autoresearch/{run.name}/"
    pending: set[str] = set()
    with contextlib.suppress(UserError):  # a damaged record, with which nothing can be continued
        pending = {f"{place}{attempt.number}" for attempt in Ledger(run, repair=False).pending}
    refs = repository.git.for_each_ref("--format=%(refname)", place).split()
    return [ref for ref in refs if ref not in pending]


def clean(root: Path, tag: str | None, agreed: Callable[[str], bool], say: Callable[[str], None]) -> None:
    """Remove worktrees, caches and refs of a run; without a tag, those of all runs but the last one.

    agreed: asks a person. Raises UserError if a loop is working on the run.
    """
    runs, repository = root / RUNS, open_repository(root)
    last = choose_tag(runs, None)
    known = [path.parent.name for path in sorted(runs.glob("*/journal.jsonl"))]
    if tag is not None and tag not in known:
        raise UserError(f"there is no run {tag} here; runs are: {', '.join(known) or 'none'}")
    tags = [name for name in known if name == tag or (tag is None and name != last)]
    refs = {name: refs_of(repository, runs / name) for name in tags}
    tags = [name for name in tags if refs[name] or folders_of(runs / name)]
    if not tags:
        besides = f" besides the last run: --tag {last} removes that too" if tag is None else ""
        return say(f"there is nothing to remove{besides}")
    for name in tags:
        size = disk_usage(folders_of(runs / name)) / 2**20
        say(f"run {name}: {size:,.0f} MB of worktrees and caches, {count(len(refs[name]), 'git ref')} of attempts")
    say("journals, logs and branches stay; a cleaned run can be continued from its champion")
    if not agreed("Remove them?"):
        return say("nothing was removed")
    for name in tags:
        lock = Lock(runs / name, name)
        try:
            for path in folders_of(runs / name):
                with contextlib.suppress(git.GitCommandError):  # no worktree, or one of a repository that was copied
                    repository.git.worktree("remove", "--force", str(path))
                remove(path)
            for ref in refs[name]:
                repository.git.update_ref("-d", ref)
        finally:
            lock.release()
    say(f"cleaned {count(len(tags), 'run')}: {', '.join(tags)}")
