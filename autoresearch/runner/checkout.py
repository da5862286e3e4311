"""The folder in which another repository's trials run: its sources, the files of its set-up, and build outputs.

A trial may write next to the sources; before the next trial everything is restored to the state after the set-up. Which
files a command may create or change is learned from the baseline: those that it creates or changes, too. Any other
difference voids the trial, for example a changed guard.

The loop uses a separate git folder for this checkout, which trials can read but not write. It contains a single commit,
so that `git rev-parse` and `git describe --always` work in a build.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

import git

from autoresearch import UserError, disk_is_full
from autoresearch.files import remove, write_whole
from autoresearch.repo import Git, RunRepo, same_hash
from autoresearch.runner.environment import VIRTUAL

SETTLED = 2.0  # seconds after which a file that changed again has another time of change
# Endings of what interpreters and build tools load by themselves: a new one is learned by its whole name.
LOADED = {
    *("", ".py", ".pyc", ".pyo", ".pth", ".so", ".pyd", ".js", ".cjs", ".mjs", ".node", ".json", ".rb", ".pl", ".pm"),
    *(".lua", ".php", ".class", ".jar", ".sh", ".mk", ".toml", ".cfg", ".ini", ".yaml", ".yml", ".h", ".hpp", ".c"),
    *(".cc", ".cpp", ".go", ".mod", ".work", ".rs", ".ts", ".tsx", ".jsx", ".java", ".properties", ".hs", ".local"),
}
# The same by their names, which have no such ending: settings, `.npmrc`, and what tells Python of plug-ins.
LOADED_NAMES = re.compile(r"(?:^|/)(?:\.[^/]+|[^/]+\.(?:egg|dist)-info|(?:GNU)?[Mm]akefile)(?:/|$)")
PROGRAMS = ("node_modules/.bin", *(f"{name}/bin" for name in VIRTUAL))  # where `of_the_shell` looks for them first


class Checkout:
    """name: of the folder, beside the run's worktree. links: paths of the user's checkout that are linked into it.

    learned: file that holds what the baseline made beside the sources, shared by all seats of a run.
    """

    def __init__(self, repo: RunRepo, name: str, links: Iterable[str] = ()) -> None:
        self.repo, self.links = repo, tuple(os.path.normpath(link) for link in links)
        self.folder, self.git_folder = repo.worktree.with_name(name), repo.worktree.with_name(f"{name}.git")
        self.made = repo.worktree.with_name(f"{name}.made")  # what the set-up made
        self.learned = repo.worktree.with_name("products.json")
        self.sealed: dict[str, str] = {}
        self.is_baseline = False  # what it holds is the human's own code
        self._folders: Set[str] = frozenset()
        self._clean: dict = {}  # as `seal` left it
        self._known: dict[str, tuple[tuple, str]] = {}  # by path: what tells that a file is the same, and its hash

    # -- made once

    def prepare(self, base: str, setup: str) -> bool:
        """Make it hold a commit. Whether the set-up has to run: not if it did so for this commit and stands."""
        key = [base, setup, str(self.folder), *self.links]  # a set-up may write down where it stands
        try:
            self._clean = json.loads((self.made / "clean.json").read_text())
            if self._clean["key"] == key and self.git_folder.is_dir():
                self.reset()
                return False
        except (OSError, ValueError, KeyError):
            pass
        remove(self.made)
        self._check_out(base)
        self._clean = {"key": key}
        return True

    def _check_out(self, base: str) -> None:
        for path in (self.folder, self.git_folder):
            remove(path)
        self.folder.mkdir(parents=True)
        source = self.repo.repository.common_dir
        init = ["git", "init", "--quiet", f"--separate-git-dir={self.git_folder}"]
        Git(self.folder).execute(init, env=same_hash(base))
        any_commit = "--upload-pack=git -c uploadpack.allowAnySHA1InWant=true upload-pack"
        self._git(
            "-c", "protocol.file.allow=always",  # which careful users forbid; this is their own repository
            "fetch", "--quiet", "--depth=1", "--no-tags", any_commit, f"file://{urllib.parse.quote(str(source))}", base,
            env={"GIT_NO_LAZY_FETCH": "0"},  # of a partial clone: it is the user's own, and may fetch
        )  # fmt: skip
        self._git("config", "lfs.storage", os.path.join(source, "lfs"))
        self._git("checkout", "--quiet", "--detach", "--force", base)
        for name, commit in submodules_of(self.repo, base).items():
            self._add_submodule(name, commit)
        for link, target in links_of(self.repo.root, self.links).items():
            if os.path.lexists(path := self.folder / link):
                raise UserError(f"`link` in program.md names {link}, which git has: it is there without a link")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)

    def _add_submodule(self, path: str, commit: str) -> None:
        """A submodule's files as they are in a commit, from the user's checkout of it."""
        words = ["git", "-C", str(self.repo.root / path), "archive", "--format=tar", commit]
        packed = subprocess.run(words, capture_output=True)
        (self.folder / path).mkdir(parents=True, exist_ok=True)
        if packed.returncode == 0:
            subprocess.run(["tar", "-x", "-C", str(self.folder / path)], input=packed.stdout, check=True)

    def seal(self) -> None:
        """Remember all that stands here now as what every trial begins with."""
        files, folders = self._look()
        tracked = set(self._git("ls-files", "-z").split("\0"))
        remove(self.made)
        for name in files.keys() - tracked:
            (self.made / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / name, self.made / "files" / name, follow_symlinks=False)
        self.made.mkdir(exist_ok=True)
        self._clean |= {"files": files, "folders": sorted(folders), "tracked": sorted(tracked & files.keys())}
        write_whole(self.made / "clean.json", json.dumps(self._clean))

    def _git(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        """What git says of it. A trial cannot have changed the settings that git goes by."""
        at = f"--git-dir={self.git_folder}", f"--work-tree={self.folder}"
        return Git(self.folder).execute(["git", *at, *words], strip_newline_in_stdout=False, env=env)

    # -- before and after each trial

    def reset(self) -> None:
        """Make it hold what it was sealed with, and nothing else, whatever was done to it."""
        try:
            self._put_back()
        except (OSError, git.GitError) as error:  # a lock of a git that was killed, a broken index: made again, once
            if disk_is_full(error):
                raise
            self._check_out(self._clean["key"][0])
            self._put_back()

    def _put_back(self) -> None:
        self.folder.mkdir(exist_ok=True)
        files, folders = self._look()
        clean, tracked = self._clean["files"], set(self._clean["tracked"])
        for name in files.keys() - clean.keys():
            remove(self.folder / name)
        for name in sorted(folders - set(self._clean["folders"])):
            remove(self.folder / name)
        wrong = [name for name, content in clean.items() if files.get(name) != content]
        for name in wrong:
            remove(self.folder / name)
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name not in tracked:
                shutil.copy2(self.made / "files" / name, self.folder / name, follow_symlinks=False)
        if from_git := [name for name in wrong if name in tracked]:
            for some in (from_git[at : at + 500] for at in range(0, len(from_git), 500)):
                self._git("checkout", "--force", "HEAD", "--", *some)
        for name in self._clean["folders"]:
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def set(self, base: str, files: Mapping[str, bytes], gone: Sequence[str] = ()) -> None:
        """Make it hold its commit with these files instead of its own, and without those that are gone."""
        self.reset()
        self.is_baseline = not gone
        for name, content in files.items():
            path = self.folder / name
            if not (path.is_file() and (path.read_bytes() == content or self._is_checked_out(base, name, content))):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                self.is_baseline = False
        for name in gone:
            remove(self.folder / name)
        self.sealed, self._folders = self._look()

    def _is_checked_out(self, base: str, name: str, content: bytes) -> bool:
        """Whether a file is what git makes of this content, its commit's: with other line endings, say."""
        if name not in self._clean["tracked"] or self.repo.read(base, [name])[name] != content:
            return False  # an edit, mostly
        return not self._git("diff", "--name-only", "HEAD", "--", f":(literal){name}")

    def changed(self, ignored: bool = False) -> list[str]:
        """Files that are not as `set` left them, where the baseline, which is learned from, leaves them as they are."""
        found, _ = self._look()
        changed = {name for name, content in self.sealed.items() if found.get(name) != content}
        new = {name: self._kind(name) for name in found.keys() - self.sealed.keys()}
        known = self._products()
        if self.is_baseline:
            if more := known | changed | set(new.values()):
                write_whole(self.learned, json.dumps(sorted(more)))
            return []
        changed -= known
        unknown = {name for name, kind in new.items() if kind not in known}
        if unknown and not changed:
            listed = self._git("ls-files", "--others", "--exclude-standard", "-z").split("\0")
            folders = tuple(name for name in listed if name.endswith("/"))  # a .git in it: git names no files there
            seen = {*listed, *(name for name in unknown if is_loaded_unseen(name) or name.startswith(folders))}
            unknown = {name for name in unknown if name in seen or found[name].startswith("->")}
        return sorted(changed | unknown)

    def _products(self) -> Set[str]:
        try:
            return set(json.loads(self.learned.read_text()))
        except (OSError, ValueError):
            return set()

    def _kind(self, name: str) -> str:
        """What a new file is learned as: its topmost new folder, else its folder and ending, else its name."""
        for above in reversed(Path(name).parents):
            if str(above) != "." and str(above) not in self._folders:
                return f"{above}/"
        if (last := os.path.basename(name)).startswith("."):  # .coverage.HOST.NUMBER
            return f"{os.path.dirname(name)}/.{last.split('.')[1]}*"
        return name if is_loaded(name) else f"{os.path.dirname(name)}/*{os.path.splitext(name)[1]}"

    def _look(self) -> tuple[dict[str, str], Set[str]]:
        """(A hash of each file and its mode by its path, of a link where it leads; the folders.)"""
        contents, folders = {}, set()
        before, self._known = self._known, {}  # what is gone is forgotten: each trial may make files of other names
        for folder, below, names in os.walk(self.folder):
            for name in list(below):
                path = os.path.join(folder, name)
                mode = os.lstat(path).st_mode
                if stat.S_ISLNK(mode):
                    below.remove(name)
                    names.append(name)
                    continue
                if mode & 0o700 != 0o700:
                    os.chmod(path, mode & 0o777 | 0o700)  # else nobody could look into it
                folders.add(os.path.relpath(path, self.folder))
            for name in names:
                path = os.path.join(folder, name)
                contents[os.path.relpath(path, self.folder)] = self._hash(path, before)
        return contents, folders

    def _hash(self, path: str, before: Mapping[str, tuple[tuple, str]]) -> str:
        """Names a file's contents. It is read again where its time of change, which only the kernel sets, differs.

        before: the files that were known at the last look.
        """
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return f"-> {os.readlink(path)}"
        if not stat.S_ISREG(status.st_mode):
            return f"kind {stat.S_IFMT(status.st_mode)}"
        same = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode
        if (known := before.get(path)) and known[0] == same:
            self._known[path] = known
            return known[1]
        if not status.st_mode & 0o400:
            os.chmod(path, status.st_mode & 0o777 | 0o400)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found = f"{digest} x" if status.st_mode & 0o100 else digest
        if time.time() - status.st_ctime > SETTLED:
            self._known[path] = same, found
        return found


def is_loaded(name: str) -> bool:
    return os.path.splitext(name)[1] in LOADED


def is_loaded_unseen(name: str) -> bool:
    """Whether a new file could take part in what is run next, though nobody names it, and git may ignore it."""
    ending, folder = os.path.splitext(name)[1], os.path.dirname(name)
    return ending in LOADED - {""} or folder.endswith(PROGRAMS) or bool(LOADED_NAMES.search(name))


def links_of(root: Path, links: Sequence[str]) -> dict[str, str]:
    """The real paths on this machine of what `link` names, by path in the repository. Raises UserError."""
    for link in links:
        if not (root / link).exists():
            raise UserError(f"`link` in program.md names {link}, and there is no such file or folder in {root}")
    return {link: os.path.realpath(root / link) for link in links}


def submodules_of(repo: RunRepo, base: str) -> dict[str, str]:
    """The commits of the submodules in a commit, by their paths, of those that the user has checked out."""
    listed = repo.repository.git.ls_tree("-r", "-z", base).split("\0")
    found = {line.partition("\t")[2]: line.split()[2] for line in listed if line.startswith("160000 ")}
    return {path: commit for path, commit in found.items() if (repo.root / path / ".git").exists()}
