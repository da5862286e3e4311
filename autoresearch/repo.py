"""Commit, keep, reset. A run has the branch autoresearch/<tag> and its own worktrees.

The user's checkout is never switched, reset or cleaned. Agents edit in `worktree`, `worktree-1` and so on, one for each
proposal in progress. (Trials have worktrees of their own, see runner/stage.py.) All worktrees have a detached HEAD, so
the branch moves only when something is kept (and can be checked out elsewhere). Every attempt, kept or not, stays
reachable under refs/autoresearch/<tag>/<number>.
"""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import git

from autoresearch import UserError, disk_is_full
from autoresearch.editable import is_glob, pathspecs
from autoresearch.files import remove
from autoresearch.text import short

# Disable the user's hooks and commit signing, and housekeeping in the middle of a night.
SETTINGS = (
    *("core.hooksPath=/dev/null", "commit.gpgsign=false", "maintenance.auto=false", "gc.auto=0"),
    *("submodule.recurse=false", "commit.cleanup=whitespace"),  # a description may begin with #
    *("i18n.commitEncoding=utf-8", "i18n.logOutputEncoding=utf-8"),
    "core.sparseCheckout=false",  # a worktree has the whole commit, as a trial has
    "core.fsync=committed,reference",  # as the journal, which names them, is: a power failure loses neither
)
# Without git-lfs installed, git could not check out at all. Such files are pointers in the user's checkout, too, then.
WITHOUT_LFS = ("filter.lfs.smudge=", "filter.lfs.clean=", "filter.lfs.process=", "filter.lfs.required=false")
COMMIT = ["git", "commit", "--quiet", "--no-verify"]


class Git(git.Git):
    """git in its own session: Ctrl-C, which reaches all processes of a terminal, must not end it half-way.

    It also gets its folder as an option. If that folder is gone, GitPython would start it in the current one, which is
    the user's checkout.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.folder = str(folder)

    def execute(self, command, *arguments, **options):
        settings = SETTINGS if shutil.which("git-lfs") else SETTINGS + WITHOUT_LFS
        settings = [word for setting in settings for word in ("-c", setting)]
        whole = [command[0], "-C", self.folder, *settings, *command[1:]]
        try:
            return super().execute(whole, *arguments, **options, start_new_session=True)
        except git.GitCommandError as error:
            error._cmdline = " ".join(command)  # without the settings, behind which the reason would be cut off
            raise


def same_hash(commit: str) -> dict[str, str]:
    """The environment in which git makes a repository that can take a commit: it may make others by default."""
    return {"GIT_DEFAULT_HASH": "sha256" if len(commit) == 64 else "sha1"}


class Repository(git.Repo):
    GitCommandWrapperType = Git


def open_repository(folder: Path) -> git.Repo:
    """The repository around `folder`. Raises UserError if a run could not commit there."""
    try:
        repository = Repository(folder, search_parent_directories=True)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError):
        raise UserError(
            f"{folder} is not in a git repository; make it one: `git init && git add -A && git commit -m start`"
        ) from None
    if repository.bare:
        raise UserError(f"{folder} is a bare repository; clone it and run there")
    try:
        repository.git.rev_parse("--verify", "HEAD^{commit}")
    except git.GitCommandError as error:
        if "dubious ownership" in str(error):
            top = repository.working_tree_dir
            raise UserError(
                f"{top} belongs to another user, so git refuses to use it; if you trust its contents: "
                f"`git config --global --add safe.directory {top}`"
            ) from None
        raise UserError("the repository has no commit yet; make one: `git add -A && git commit -m start`") from None
    for identity in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
        try:
            repository.git.var(identity)
        except git.GitCommandError:
            raise UserError(
                "git does not know who commits; tell it: `git config user.name NAME && git config user.email ADDRESS`"
            ) from None
    return repository


class RunRepo:
    """The git side of one run."""

    def __init__(self, repository: git.Repo, tag: str, folder: Path) -> None:
        self.repository = repository
        self.root = Path(os.path.realpath(repository.working_tree_dir or folder))  # the user's checkout
        self.tag = tag
        self.branch = f"autoresearch/{tag}"
        self.worktree = folder / "worktree"
        self.scratch = folder / "scratch"

    def head(self) -> str:
        """The current commit of the user's checkout."""
        return self.repository.git.rev_parse("HEAD^{commit}")

    def branch_tip(self) -> str | None:
        """The commit that the run's branch points at, or None."""
        return self._resolve(f"refs/heads/{self.branch}")

    def has_branch(self, name: str) -> bool:
        return self._resolve(f"refs/heads/{name}") is not None

    def _resolve(self, ref: str) -> str | None:
        try:
            return self.repository.git.rev_parse("--verify", "--quiet", ref + "^{commit}")
        except git.GitCommandError:
            return None

    def move_branch(self, champion: str) -> None:
        """Move the branch to the champion, after every verdict and at every start: a kill may come between verdict and
        move. Raises UserError if a checkout has the branch.
        """
        if self.branch_tip() != champion:
            self._require_branch_is_free(self.branch)
            self.repository.git.update_ref(f"refs/heads/{self.branch}", champion, m="autoresearch: champion")

    def restore_worktree(self, champion: str, keep_edit: bool) -> None:
        """Put the worktree in order, at the champion, whatever state it was left in. keep_edit: leave its files."""
        if not keep_edit or not (self.worktree / ".git").exists():
            self.reset(self.worktree, champion)
        elif not self._has(self.worktree):
            self._take_over(self.worktree, champion)

    def remove_old_locks(self) -> None:
        """Remove git's locks on the run's refs that a power failure left: nobody but the run's one loop moves them."""
        refs = Path(self.repository.common_dir, "refs")
        for path in (refs / f"heads/{self.branch}.lock", *(refs / f"autoresearch/{self.tag}").glob("*.lock")):
            with contextlib.suppress(OSError):
                path.unlink()

    def agents_worktree(self, place: int) -> "Worktree":
        """The worktree of the proposal at a place; place 0 has `worktree`."""
        return Worktree(self, self.worktree.with_name(f"worktree-{place}") if place else self.worktree)

    def move(self, commit: str, champion: str) -> str | None:
        """Cherry-pick a commit onto the champion. Returns the new commit; None if git cannot apply it there.

        The new commit is checked out in the scratch worktree.
        """
        self.reset(self.scratch, champion)
        tree = Repository(self.scratch)
        try:
            tree.git.cherry_pick("--no-commit", commit)
            tree.git.execute([*COMMIT, "--reuse-message", commit])
            return tree.git.rev_parse("HEAD")
        except git.GitCommandError as error:
            if disk_is_full(error):
                raise
            return None

    def put(self, files: Mapping[str, bytes], champion: str, like: str) -> str:
        """Commit files on top of the champion, with the message of another commit. Uses the scratch worktree."""
        self.reset(self.scratch, champion)
        for name, content in files.items():
            (self.scratch / name).write_bytes(content)
        tree = Repository(self.scratch)
        tree.git.add("--", *files)
        tree.git.execute([*COMMIT, "--reuse-message", like])
        return tree.git.rev_parse("HEAD")

    def read(self, commit: str, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of files in a commit. Raises KeyError for one that is not there. GitPython knows only SHA-1."""
        names, found = list(names), {}
        with tempfile.TemporaryFile() as asked:
            asked.write("".join(f"{commit}:{name}\n" for name in names).encode(errors="surrogateescape"))
            asked.seek(0)
            plain = {"stdout_as_string": False, "strip_newline_in_stdout": False}
            said = io.BytesIO(self.repository.git.cat_file("--batch", istream=asked, **plain))
        for name in names:
            *_, size = said.readline().split()
            if size == b"missing":
                raise KeyError(name)
            found[name] = said.read(int(size))
            said.read(1)
        return found

    def snapshot(self, files: Mapping[str, str]) -> str:
        """The current commit of the user's checkout plus these files, as a commit that no branch points at."""
        if not files:
            return self.head()
        self.reset(self.scratch, self.head())
        for name, text in files.items():
            (self.scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (self.scratch / name).write_text(text)
        tree = Repository(self.scratch)
        tree.git.add("--force", "--", *files)
        tree.git.execute([*COMMIT, "--message", "autoresearch: what is to be proved"])
        return tree.git.rev_parse("HEAD")

    def committed(self, commit: str) -> set[str]:
        """The files of a commit."""
        return set(filter(None, self.repository.git.ls_tree("-r", "-z", "--name-only", commit).split("\0")))

    def new(self) -> set[str]:
        """Untracked files in the user's checkout that are not ignored."""
        return set(filter(None, self.repository.git.ls_files("-z", "--others", "--exclude-standard").split("\0")))

    def diff(self, before: str, after: str, paths: tuple[str, ...]) -> str:
        """The diff of the paths between two commits. Neither a NUL in a file nor an attribute of it hides anything."""
        plain = ("--no-color", "--no-ext-diff", "--no-textconv", "--text")
        diff = self.repository.git.diff(*plain, before, after, "--", *pathspecs(paths))
        return diff.encode(errors="replace").decode()

    def reset(self, folder: Path, commit: str) -> None:
        """Make a worktree contain exactly a commit, whatever was done to it."""
        for again in (True, False):
            try:
                if not self._has(folder):
                    remove(folder)
                    self._add(folder, commit)
                tree = Repository(folder)
                tree.git.checkout("--quiet", "--detach", "--force", commit)
                tree.git.clean("-ffdxq")
                return
            except git.GitError:  # a lock left by a killed git, or a broken .git: create it again, once
                if not again:
                    raise
                remove(folder)

    def _has(self, folder: Path) -> bool:
        """Whether a folder is a worktree of this repository. If the repository was moved, or copied with its runs, the
        worktrees in it still belong to the old place.
        """
        try:
            link = os.fsdecode((folder / ".git").read_bytes()).removeprefix("gitdir: ").strip()
        except OSError:
            return False
        ours = os.path.join(os.path.realpath(self.repository.common_dir), "worktrees")
        return os.path.dirname(os.path.realpath(folder / link)) == ours

    def tree(self, folder: Path) -> git.Repo:
        """A worktree. Raises GitError if an agent has replaced its `.git`: git would then work on the user's checkout,
        or on another repository.
        """
        if not self._has(folder):
            raise git.InvalidGitRepositoryError(f"{folder}/.git is not the one that the loop made")
        return Repository(folder)

    def _add(self, folder: Path, commit: str, *options: str) -> None:
        twice = ("--force", "--force")  # even if a git that did not end, while it added this one, has left it locked
        self.repository.git.worktree("add", *twice, "--detach", *options, str(folder), commit)

    def _take_over(self, folder: Path, commit: str) -> None:
        """Turn a worktree of another repository into one of this repository, at a commit, keeping its files."""
        other = folder.with_name(f"{folder.name}.old")
        remove(other)
        folder.rename(other)
        self._add(folder, commit, "--no-checkout")
        for path in other.iterdir():
            if path.name != ".git":
                path.rename(folder / path.name)
        remove(other)
        Repository(folder).git.reset("--quiet")

    def _require_branch_is_free(self, branch: str) -> None:
        """Raises UserError if a checkout has the branch: moving it would make its files look edited."""
        for entry in self.repository.git.worktree("list", "--porcelain").split("\n\n"):
            if f"branch refs/heads/{branch}" in entry.splitlines():
                path = entry.splitlines()[0].removeprefix("worktree ")
                raise UserError(
                    f"{path} has the run's branch {branch} checked out, so the loop cannot move it; "
                    f"switch that checkout first: `git -C {path} switch --detach`"
                )

    def remember(self, name: int | str, commit: str) -> None:
        """Keep an attempt's commit, or one that `verify` made, reachable under refs/autoresearch/<tag>/."""
        self.repository.git.update_ref(f"refs/autoresearch/{self.tag}/{name}", commit)

    def without(self, champion: str, commits: list[str], message: str) -> tuple[str | None, list[str]]:
        """Revert kept commits, newest first. Returns (the champion without them, those that could not be reverted).

        The latter are those that later commits build on. The first is None if reverting the others changes nothing.
        """
        stuck = []
        self.reset(self.scratch, champion)
        tree = Repository(self.scratch)
        for commit in commits:
            before = tree.git.write_tree()
            try:
                tree.git.revert("--no-commit", commit)
            except git.GitCommandError:
                tree.git.read_tree("--reset", "-u", before)
                stuck.append(commit)
            (Path(tree.git_dir) / "REVERT_HEAD").unlink(missing_ok=True)
        if tree.git.write_tree() == tree.git.rev_parse("HEAD^{tree}"):
            return None, stuck
        date = tree.git.show("--no-patch", "--format=%cI", champion)  # so that it is the same commit each time
        dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        tree.git.execute([*COMMIT, "--message", message], env=dates)
        return tree.git.rev_parse("HEAD"), stuck

    def name_branch(self, name: str, commit: str, ours: list[str]) -> None:
        """Make a branch point at a commit. Raises UserError if it is checked out, or points at none of `ours`."""
        tip = self._resolve(f"refs/heads/{name}")
        if tip == commit:
            return
        if tip is not None and tip not in ours:
            raise UserError(
                f"the branch {name} is at {short(tip)}, which was not made by this loop; give that work another "
                f"branch, `git branch mine {short(tip)}`, remove this one, `git branch -D {name}`, and run the same "
                "command again"
            )
        self._require_branch_is_free(name)
        self.repository.git.update_ref(f"refs/heads/{name}", commit, m="autoresearch: pruned")

    def uncommitted(self, paths: tuple[str, ...]) -> list[str]:
        """The paths in the user's checkout that differ from its last commit."""
        return [entry[3:] for entry in status_of(self.repository, *pathspecs(paths))]


def status_of(tree: git.Repo, *paths: str) -> list[str]:
    """Changed and new files, each as two letters (staged, unstaged), a space and the path."""
    listing = tree.git.status("--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", "--", *paths)
    return [entry for entry in listing.split("\0") if entry]


class Worktree:
    """A worktree in which an agent edits."""

    def __init__(self, repo: RunRepo, folder: Path) -> None:
        self.repo, self.folder = repo, folder

    def reset(self, commit: str) -> None:
        self.repo.reset(self.folder, commit)

    def changed(self, champion: str) -> list[str]:
        """Paths that differ from the champion, new ones included, ignored ones not.

        Commits that an agent made there are undone first; their changes are kept.
        """
        tree = self.repo.tree(self.folder)
        if not (Path(tree.git_dir) / "HEAD").read_text().startswith(champion):
            tree.git.checkout("--quiet", "--detach")
        tree.git.reset("--quiet", champion)
        return [entry[3:].encode(errors="replace").decode() for entry in status_of(tree)]

    def take_up(self, commit: str, paths: tuple[str, ...]) -> None:
        """Check the paths out from a commit."""
        self.repo.tree(self.folder).git.checkout(commit, "--", *pathspecs(paths))

    def restore_all_but(self, paths: tuple[str, ...]) -> None:
        """Undo every change outside the given paths."""
        others = pathspecs(paths, "exclude", "top")
        tree = self.repo.tree(self.folder)
        if tree.git.diff("--name-only", "--no-renames", "-z", "HEAD", "--", ":/", *others):
            tree.git.checkout("HEAD", "--", ":/", *others)
        tree.git.clean("-ffdxq", "--", ":/", *others)

    def commit(self, paths: tuple[str, ...], message: str) -> str:
        """Commit the given paths."""
        tree = self.repo.tree(self.folder)
        if any(map(is_glob, paths)):
            paths = tuple(f":(literal){entry[3:]}" for entry in status_of(tree, *pathspecs(paths)))
        tree.git.add("--all", "--", *paths)
        tree.git.execute([*COMMIT, "--message", message])
        return tree.git.rev_parse("HEAD")
