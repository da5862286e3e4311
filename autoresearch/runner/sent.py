"""What of a repository the nodes of a cluster get: the commit that the run began with, and those of submodules, as git
bundles. What `link` names they have to have themselves.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import git

from autoresearch import UserError
from autoresearch.repo import Git, RunRepo
from autoresearch.runner.machine import remove
from autoresearch.text import one_line, short

# ----------------------------------------------------------------------------------------------
# On the loop's machine


def links_of(root: Path, links: Sequence[str]) -> dict[str, str]:
    """Where what `link` names lies on this machine, by its path in the repository. Raises UserError."""
    for link in links:
        if not (root / link).exists():
            raise UserError(f"`link` in program.md names {link}, and there is no such file or folder in {root}")
    return {link: os.path.realpath(root / link) for link in links}


def submodules_of(repo: RunRepo, base: str) -> dict[str, str]:
    """The commits of submodules in a commit, by their paths; of those that the user has checked out."""
    listed = repo.repository.git.ls_tree("-r", "-z", base).split("\0")
    found = {line.partition("\t")[2]: line.split()[2] for line in listed if line.startswith("160000 ")}
    return {path: commit for path, commit in found.items() if (repo.root / path / ".git").exists()}


def bundles_of(root: Path, base: str, modules: Mapping[str, str]) -> dict[str, bytes]:
    """The commits that a node needs, as git bundles by their paths in the repository. Raises UserError."""
    bundles = {"": bundle_of(root, base)}
    for path, commit in modules.items():
        try:
            bundles[path] = bundle_of(root / path, commit)
        except git.GitCommandError as error:
            raise UserError(
                f"the submodule {path} cannot be sent to the nodes: its commit {short(commit)}, and what it stands on, "
                f"have to be here. `git -C {path} fetch --unshallow` fetches it if it is a shallow clone, `git "
                f"submodule update` if it is another one ({one_line(str(error.stderr), 200)})"
            ) from None
    return bundles


def bundle_of(root: Path, commit: str) -> bytes:
    """A commit, and what it stands on, as a git bundle of a branch `base`. root: of its repository's worktree."""
    common = Git(root).execute(["git", "rev-parse", "--path-format=absolute", "--git-common-dir"])
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as folder:
        there = Git(folder)
        there.execute(["git", "init", "--quiet", "--bare", "."])
        Path(folder, "objects/info/alternates").write_text(f"{common}/objects\n")
        there.execute(["git", "update-ref", "refs/heads/base", commit])
        there.execute(["git", "bundle", "create", "--quiet", "base.bundle", "refs/heads/base"])
        return Path(folder, "base.bundle").read_bytes()


# ----------------------------------------------------------------------------------------------
# On a node


def clone(seat: Path, bundle: bytes, base: str, path: str = "") -> Path:
    """A clone in the folder of a seat that has the commit; the one that is there, if it has. path: of a submodule."""
    root = seat / "repository" / path
    if (root / ".git").is_dir():  # else GitPython would ask in the folder that Ray was started in
        with contextlib.suppress(git.GitError):
            Git(root).execute(["git", "cat-file", "-e", f"{base}^{{commit}}"])
            return root
    shutil.rmtree(root, ignore_errors=True)
    packed = seat / "base.bundle"
    packed.write_bytes(bundle)
    Git(seat).execute(["git", "clone", "--quiet", "--branch", "base", str(packed), str(root)])
    return root


def find_links(root: Path, links: Mapping[str, str]) -> None:
    """Link what `link` names into a clone. It has to lie where it does on the loop's machine. Raises UserError."""
    for link, target in links.items():
        if not os.path.exists(target):
            raise UserError(
                f"`link` in program.md names {link}, and {target} is not there: copy it to the same path on this node, "
                "or share it, and start the node again"
            )
        if os.path.realpath(root / link) != target:
            remove(root / link)
            (root / link).parent.mkdir(parents=True, exist_ok=True)
            (root / link).symlink_to(target)
