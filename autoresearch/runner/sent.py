"""What the nodes of a cluster get of a repository: the commit that the run began with, and those of submodules, as git
bundles. Files and folders that `link` names must be on each node already.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import git

from autoresearch import UserError
from autoresearch.files import remove
from autoresearch.repo import Git, same_hash
from autoresearch.text import one_line, short

# ----------------------------------------------------------------------------------------------
# On the loop's machine


def bundles_of(root: Path, base: str, modules: Mapping[str, str]) -> dict[str, bytes]:
    """The commits that a node needs, as git bundles by their paths in the repository. Raises UserError."""
    bundles = {"": bundle_of(root, base)}
    for path, commit in modules.items():
        try:
            bundles[path] = bundle_of(root / path, commit)
        except (UserError, git.GitCommandError) as error:
            said = one_line(str(getattr(error, "stderr", error)), 200)
            raise UserError(
                f"the submodule {path} cannot be sent to the nodes: its commit {short(commit)} and all its history "
                f"must be here. `git -C {path} fetch --unshallow` fetches them if it is a shallow clone, `git "
                f"submodule update` if another commit is checked out ({said})"
            ) from None
    return bundles


def bundle_of(root: Path, commit: str) -> bytes:
    """A commit and its history, as a git bundle of a branch `base`. root: a worktree of its repository. Raises
    UserError.
    """
    common = Git(root).execute(["git", "rev-parse", "--path-format=absolute", "--git-common-dir"])
    if Path(common, "shallow").exists():
        raise UserError("a shallow clone does not run on a cluster: bring its history, `git fetch --unshallow`")
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as folder:
        there = Git(folder)
        there.execute(["git", "init", "--quiet", "--bare", "."], env=same_hash(commit))
        Path(folder, "objects/info/alternates").write_text(f"{common}/objects\n")
        there.execute(["git", "update-ref", "refs/heads/base", commit])
        there.execute(["git", "bundle", "create", "--quiet", "base.bundle", "refs/heads/base"])
        return Path(folder, "base.bundle").read_bytes()


# ----------------------------------------------------------------------------------------------
# On a node


def clone(seat: Path, bundle: bytes, base: str, path: str = "") -> Path:
    """A clone with the commit, in the folder of a seat; one that is there is used again. path: of a submodule."""
    root = seat / "repository" / path
    if (root / ".git").is_dir():  # else git would look in the folders above
        with contextlib.suppress(git.GitError):
            Git(root).execute(["git", "cat-file", "-e", f"{base}^{{commit}}"])
            return root
    remove(root)
    packed = seat / "base.bundle"
    packed.write_bytes(bundle)
    Git(seat).execute(["git", "clone", "--quiet", "--branch", "base", str(packed), str(root)])
    return root


def find_links(root: Path, links: Mapping[str, str]) -> None:
    """Link what `link` names into a clone. It must be at the same path as on the loop's machine. Raises UserError."""
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
