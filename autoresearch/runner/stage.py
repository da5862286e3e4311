"""The worktree in which the trials of a seat run: the commit that the run began with, and the editable files of the
attempt. In other repositories a Checkout (checkout.py) takes its place.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import git

from autoresearch.repo import Repository, RunRepo


class Stage:
    """name: of the folder, beside the run's worktree."""

    def __init__(self, repo: RunRepo, name: str) -> None:
        self.repo, self.folder = repo, repo.worktree.with_name(name)
        self.sealed: dict[str, str] = {}

    def set(self, base: str, files: Mapping[str, bytes], gone: Sequence[str] = ()) -> None:
        """Fill it with a commit, replace these files, remove those that are gone, and remember the result."""
        with contextlib.suppress(git.GitError):  # the index would be believed, time stamps and all
            (Path(self.repo.tree(self.folder).git_dir) / "index").unlink(missing_ok=True)
        self.repo.reset(self.folder, base)
        for name, content in files.items():
            if (path := self.folder / name).read_bytes() != content:
                path.write_bytes(content)
        for name in gone:
            (self.folder / name).unlink(missing_ok=True)
        self.sealed = self._contents()

    def changed(self, ignored: bool) -> list[str]:
        """Files that are not as `set` left them, including new ones; with `ignored`, also those that git ignores."""
        found = self._contents()
        changed = [name for name, content in self.sealed.items() if found.get(name) != content]
        new = found.keys() - self.sealed.keys()
        if new and not ignored and not changed:
            listing = Repository(self.folder).git.ls_files("--others", "--exclude-standard", "-z").split("\0")
            new = {name for name in new if name in listing or os.path.basename(name) == ".gitignore"}
        return sorted([*changed, *new])

    def _contents(self) -> dict[str, str]:
        """A hash of each file, by its path; for a link, its target."""
        contents = {}
        for folder, _, names in os.walk(self.folder):
            for path in (os.path.join(folder, name) for name in names):
                if os.path.islink(path):
                    contents[os.path.relpath(path, self.folder)] = os.readlink(path)
                else:
                    with contextlib.suppress(OSError), open(path, "rb") as file:
                        contents[os.path.relpath(path, self.folder)] = hashlib.file_digest(file, "sha256").hexdigest()
        return contents
