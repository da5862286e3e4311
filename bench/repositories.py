"""How long is it from other people's source packages to a proved game and its first experiments?

    uv run bench/repositories.py                    # all of them, one after the other: some minutes
    uv run bench/repositories.py bzip2 semver       # some
    uv run bench/repositories.py --experiments 10   # after `plan`, so many experiments each, instead of 3

Fetches source packages of PyPI, npm and Debian with their own clients (Debian's need `deb-src` in the list of
sources), makes each a git repository, and does what the README says. The experiments add a statement that does nothing,
so all should be discarded. Prints seconds for `plan` and for the experiments, noise, and what became of them.
"""

import argparse
import dataclasses
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOOP = [sys.executable, str(ROOT / "loop.py")]


@dataclasses.dataclass(frozen=True)
class Repository:
    fetch: str  # a command that leaves an archive, or a folder, in the current one
    plan: tuple[str, ...]  # what a user types behind `plan`
    files: dict[str, str] = dataclasses.field(default_factory=dict)  # that its user adds
    edit: tuple[str, str] = ("", "")  # (file, a statement that does nothing)


PYPI = "python3 -m pip download -q --no-deps --no-binary :all: "
MISTUNE = """import pathlib

import mistune

for path in sorted(pathlib.Path("benchmark/cases").glob("*.txt")):
    print(len(mistune.html(path.read_text() * 5)))
"""
TOMLI = """import tomli

text = "".join(f"[table.a{i}]\\nx = {i}\\ny = [1, 2.5, true]\\n" for i in range(2000))
print(len(tomli.loads(text)["table"]))
"""
SEMVER = """const semver = require('./index.js')
let sum = 0
for (let i = 0; i < 100000; i++) sum += semver.compare(`1.${i % 97}.3`, '1.50.3-beta.1')
console.log(sum)
"""
REPOSITORIES = {
    "mistune": Repository(
        PYPI + "mistune",
        ("make parsing faster", "--time", "python work.py", "--edit", "src/mistune/block_parser.py"),
        {"work.py": MISTUNE},
        ("src/mistune/block_parser.py", "\nNOTHING_{number} = None\n"),
    ),
    "tomli": Repository(
        PYPI + "tomli",
        ("make parsing faster", "--time", "python work.py"),
        {"work.py": TOMLI},
        ("src/tomli/_parser.py", "\nNOTHING_{number} = None\n"),
    ),
    "semver": Repository(
        "npm pack -s semver",
        ("make comparing faster", "--time", "node work.js", "--edit", "classes/semver.js"),
        {"work.js": SEMVER},
        ("classes/semver.js", "\nconst NOTHING_{number} = null\n"),
    ),
    "bzip2": Repository(
        "apt-get source -qq bzip2",
        (
            *("make compression faster", "--time", "LD_LIBRARY_PATH=. ./bzip2 -c -9 < sample.tmp"),
            *("--edit", "blocksort.c", "--train", "make bzip2 && cat manual.html manual.xml manual.ps > sample.tmp"),
        ),
        {},
        ("blocksort.c", "\nint nothing_{number};\n"),
    ),
    "ed": Repository(
        "apt-get source -qq ed",
        ("a smaller program", "--size", "ed", "--edit", "regex.c", "--edit", "main_loop.c"),
        {},
        ("regex.c", "\nstatic void nothing_{number}(void);\n"),
    ),
}
AGENT = """import json, pathlib, re, sys
number = re.match(r"# Experiment (\\d+)", sys.stdin.read()).group(1)
path, text = json.loads(sys.argv[1])
pathlib.Path(path).write_text(pathlib.Path(path).read_text() + text.replace("{number}", number))
print("add nothing, number", number)
"""


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *words], cwd=folder, check=True)


def unpack(repository: Repository, folder: Path) -> Path:
    """The repository as its user begins with it."""
    subprocess.run(repository.fetch, shell=True, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    if not (made := [path for path in folder.iterdir() if path.is_dir()]):
        archive = next(path for path in folder.iterdir() if re.search(r"\.t(ar\.)?gz$", path.name))
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        made = [path for path in folder.iterdir() if path.is_dir()]
    for name, text in repository.files.items():
        (made[0] / name).write_text(text)
    git(made[0], "init", "-q")
    git(made[0], "add", "-A")
    git(made[0], "commit", "-qm", "start")
    git(made[0], "config", "user.name", "Ada")
    git(made[0], "config", "user.email", "ada@example.org")
    return made[0]


def call(words: list[str], folder: Path) -> tuple[float, str]:
    """(Seconds, output) of a command, which is shown where it fails."""
    began = time.monotonic()
    answer = subprocess.run(words, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if answer.returncode:
        print(answer.stdout)
    return time.monotonic() - began, answer.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(REPOSITORIES))
    parser.add_argument("--experiments", type=int, default=3)
    asked = parser.parse_args()
    for name in asked.names:
        repository = REPOSITORIES[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = unpack(repository, Path(temporary))
            planned, said = call([*LOOP, "plan", *repository.plan, "--yes", "--plain"], folder)
            noise = re.search(r"noise .*|the same each time: any.*", said)
            print(f"{name}: plan {planned:.0f} s; {noise[0] if noise else 'no baseline'}", flush=True)
            if not (folder / "program.md").exists():
                continue
            git(folder, "add", "-f", "-A")
            git(folder, "commit", "-qm", "Set up autoresearch")
            (Path(temporary) / "agent.py").write_text(AGENT)
            edit = "[" + ", ".join(f'"{part}"' for part in repository.edit).replace("\n", "\\n") + "]"
            agent = f"{sys.executable} {temporary}/agent.py '{edit}'"
            words = ["--agent", "command", "--agent-command", agent, "--experiments", str(asked.experiments + 1)]
            ran, said = call([*LOOP, *words, "--plain"], folder)
            counts = re.search(r"^\d+ experiments?: .*", said, re.MULTILINE)
            print(f"{name}: {ran:.0f} s for {counts[0] if counts else said[-500:]}", flush=True)


if __name__ == "__main__":
    main()
