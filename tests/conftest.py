"""What the tests share: a repository with a toy task, the real loop run on it, and a place for caches.

The loop's mechanics are tested on a toy task that takes milliseconds and needs no torch: solver.py
prints its VALUE as the score, higher is better. Everything is real: git, processes, signals, files.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import games
import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

import loop
from autoresearch.record import results
from autoresearch.record.ledger import Ledger

ROOT = Path(__file__).resolve().parent.parent
os.environ["AUTORESEARCH_PROFILE"] = "test"  # before any test imports prepare.py
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of tests share the machine
asked = any(re.search(r"(?<!not )\bgpu\b", word) for word in sys.argv[1:])  # by `-m gpu`
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0" if asked else "")
# The same examples in every run, however long each takes: whoever looks for others says --hypothesis-profile default.
settings.register_profile("each time", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("each time")
HANGS = 300.0  # seconds: what has not happened by then never will, on however slow a machine

PROGRAM = """---
task:
  editable: [solver.py]
  train: python solver.py
  metric: score
  direction: maximize
  guard: python check.py
  time_limit: 200
---
Raise the number.
"""
CHECK = """import solver
assert solver.VALUE != 30, "30 is forbidden"
"""
# The agent of the tests: does for experiment N what plan.json says, and prints what it did.
AGENT = """import json, os, re, sys
brief = sys.stdin.read()
number = re.match(r"# Experiment (\\d+)", brief).group(1)
plan = json.load(open(sys.argv[1]))
steps = plan.get(number, plan.get("else"))
step = steps[min(brief.count("was refused") + brief.count("Refused since"), len(steps) - 1)]
for name, text in step["files"].items():
    open(name, "w").write(text)
print("thinking about it")
print(step["say"])
sys.exit(step.get("exit", 0))
"""


# What trains against the clock comes when the rest is done, in two lanes: one for each of two processors. `[0` is the
# first of the two nights of test_gaming.py.
LANES = (
    r"test_clock\.py|test_gaming\.py.*\[0",
    r"test_end_to_end\.py|test_external\.py::test_an_external_agent_does|test_clients\.py::test_real_trials"
    r"|test_gaming\.py|test_neighbours\.py",
)
# The tests of each share what takes long. They come first. Those on a cluster mostly wait: one process runs them all.
WHOLE = (r"test_cluster\.py|test_growing\.py|test_kill_on_nodes\.py", r"test_honest\.py", r"test_score\.py")


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run all tests but those marked `clients` or `alone`")


def pytest_configure(config):
    """With `-m alone` each process of tests has cores of its own."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and are_alone(config):
        cores, beside = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, set(cores[int(worker.removeprefix("gw")) :: beside]) or set(cores))


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: place_of(item.nodeid))
    dropped = [item for item in items if any(map(item.get_closest_marker, left_out(config)))]
    if dropped:
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=dropped)


def left_out(config) -> tuple[str, ...]:
    """The marks of tests that do not run unless the command asks for them: with -m, by their names, or with --full."""
    if config.option.markexpr or any("::" in word for word in config.args):
        return ()
    if any(word.endswith(".py") for word in config.args):  # a file is asked for whole
        return ("clients",)
    return ("clients", "alone") if config.option.full else ("clients", "alone", "slow")


def are_alone(config) -> bool:
    return config.option.markexpr == "alone"


def lane_of(nodeid: str) -> int | None:
    return next((place for place, pattern in enumerate(LANES) if re.search(pattern, nodeid)), None)


def whole_of(nodeid: str) -> str | None:
    return next((pattern for pattern in WHOLE if re.search(pattern, nodeid)), None)


def place_of(nodeid: str) -> tuple[bool, bool]:
    """Sort key: what is timed comes last, of the rest what takes long first."""
    return lane_of(nodeid) is not None, whole_of(nodeid) is None


def pytest_xdist_make_scheduler(config, log):
    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if (lane := lane_of(nodeid)) is not None and not are_alone(config):
                return f"timed {lane}"
            return whole_of(nodeid) or nodeid

    return Scheduler(config, log)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def solver(value: object, before: str = "") -> str:
    return f"{before}VALUE = {value}\nif __name__ == '__main__':\n    print(f'score: {{VALUE}}')\n"


def step(value: object, say: str = "", **fields) -> dict:
    """One planned edit of the toy: set VALUE."""
    return {"files": {"solver.py": solver(value)}, "say": say or f"set it to {value}", **fields}


def as_at_a_terminal() -> None:
    """Ctrl-C and a hang-up end what the tests start, even if the tests themselves ignore them, as under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_for(condition, seconds: float = HANGS):
    """The first true answer of `condition`, asked a hundred times a second. When it comes is no test's business."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.01)
    raise AssertionError(f"it did not happen within {seconds} s")


class Toy:
    """A repository with the toy task, and the loop run on it as a user would."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.tag = "night"
        self.plan = folder.parent / "plan.json"
        agent = folder.parent / "agent.py"
        agent.write_text(AGENT)
        self.agent = [
            "--agent",
            "command",
            "--agent-command",
            f"{sys.executable} {agent} {self.plan}",
            "--lookahead",
            "0",
            "--proposers",
            "1",  # so that the plan's numbers are the experiments'
        ]
        folder.mkdir()
        git(folder, "init", "-q", "-b", "main")
        self.write("program.md", PROGRAM)
        self.write("solver.py", solver(1))
        self.write("check.py", CHECK)
        self.write(".gitignore", "results.tsv\n__pycache__/\n")
        self.commit()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def commit(self) -> None:
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-qm", "toy")

    def against_the_clock(self, facts: str, source: str, edits: range) -> None:
        """Make it a game that has these facts and no guard, whose edits change nothing but their number in `source`."""
        self.write("facts.py", facts)
        self.write("solver.py", source.format(edit=1))
        program = (self.folder / "program.md").read_text().replace("  guard: python check.py\n", "")
        self.write("program.md", program.replace("time_limit", "describe: python facts.py\n  time_limit"))
        self.commit()
        steps = {f"e{n}": [{"files": {"solver.py": source.format(edit=n)}, "say": "nothing new"}] for n in edits}
        self.plan_steps(**steps)

    def plan_steps(self, **steps) -> None:
        """plan_steps(e2=[step(2)], otherwise=[...]): what the agent does for experiment 2, and for all others."""
        self.plan.write_text(
            json.dumps({key[1:] if key != "otherwise" else "else": value for key, value in steps.items()})
        )

    def start(self, *arguments: str, loop: Path = ROOT / "loop.py", group: bool = False, **more) -> subprocess.Popen:
        """The loop as a process. group: the leader of a process group, as at a terminal."""
        command = [sys.executable, str(loop), *arguments, *(() if "--tag" in arguments else ("--tag", self.tag))]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=as_at_a_terminal,
            start_new_session=group,
        )

    def run(self, *arguments: str, expect: int = 0, seconds: float = 240, **more) -> str:
        process = self.start(*arguments, **more)
        output, _ = process.communicate(timeout=seconds)
        assert process.returncode == expect, f"exit code {process.returncode}, not {expect}:\n{output}"
        return output

    def run_until(self, text: str, *arguments: str, **more) -> str:
        """The output of a run that is stopped with Ctrl-C once it has printed a text."""
        process, lines = self.start(*arguments, **more), []
        for line in process.stdout:
            lines.append(line)
            if text in line:
                process.send_signal(signal.SIGINT)
        process.wait(60)
        assert any(text in line for line in lines) and process.returncode in (0, 2), "".join(lines)
        return "".join(lines)

    def run_agent(self, experiments: int, *arguments: str, **more) -> str:
        """A night with the planned edits.

        Unless the arguments say otherwise the baseline runs once, since the toy has no noise, and a crash is final.
        """
        usual = {"--baseline-runs": "1", "--repairs": "0"}
        defaults = [word for option, value in usual.items() if option not in arguments for word in (option, value)]
        return self.run(*self.agent, "--experiments", str(experiments), *defaults, *arguments, **more)

    # -- what stands afterwards

    @property
    def runs(self) -> Path:
        return self.folder / ".autoresearch" / self.tag

    def journal(self, event: str | None = None) -> list[dict]:
        path = self.runs / "journal.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [entry for entry in events if event in (None, entry["event"])]

    def rows(self) -> list[list[str]]:
        header, *lines = (self.folder / "results.tsv").read_text().split("\n")[:-1]
        assert header.split("\t")[2:] == ["memory_gb", "status", "description"] and header.startswith("commit\t")
        return [line.split("\t") for line in lines]

    def statuses(self) -> list[str]:
        return [row[3] for row in self.rows()]

    def tip(self) -> str:
        return git(self.folder, "rev-parse", f"autoresearch/{self.tag}")

    def references(self) -> list[str]:
        return git(
            self.folder,
            "for-each-ref",
            "--format=%(objectname)",
            "--sort=version:refname",
            f"refs/autoresearch/{self.tag}/",
        ).split()

    def require_whole(self, in_order: bool = True) -> None:
        """What must be true of a run that no loop works on: nothing lost, nothing twice, results.tsv as recorded.

        in_order: verdicts come in the order of their numbers, as where one trial runs at a time.
        """
        verdicts = self.journal("verdict")
        commits = {}  # by number; an edit that was made again, or moved onto a new champion, has the last one
        for entry in self.journal():
            if entry["event"] in ("attempt", "moved"):
                commits[entry["number"]] = entry["commit"]
        numbers = [entry["number"] for entry in verdicts]
        assert (numbers if in_order else sorted(numbers)) == list(range(1, len(verdicts) + 1))
        assert list(commits) == list(range(1, len(commits) + 1))
        refs = git(
            self.folder, "for-each-ref", "--format=%(refname:lstrip=3) %(objectname)", f"refs/autoresearch/{self.tag}/"
        )
        named = dict(line.split() for line in refs.splitlines())
        assert {
            int(name): commit for name, commit in named.items() if name.isdigit()
        } == commits  # earlier forms besides
        kept = [commits[entry["number"]] for entry in verdicts if entry["status"] == "keep"]
        champion = kept[-1] if kept else self.journal("run")[0]["base"]
        worktree = self.runs / "worktree"
        assert self.tip() == champion == git(worktree, "rev-parse", "HEAD")
        assert git(worktree, "status", "--porcelain", "--ignored") == ""
        assert len(self.rows()) == len(verdicts)
        self.require_results()

    def require_results(self) -> None:
        """results.tsv is what `loop.py results` would write: it follows from the journal."""
        assert results.whole(Ledger(self.runs, repair=False)) == (self.folder / "results.tsv").read_text()


@pytest.fixture(scope="session")
def game(tmp_path_factory):
    """The `test` profile on sotu, prepared once: a prepare.Game that no test changes."""
    import prepare
    from autoresearch.data import cache

    folder = tmp_path_factory.mktemp("cache")
    game = dataclasses.replace(prepare.GAME, cache=folder, run_folder=folder / "last-run")
    cache.prepare(game)
    return game


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """A user's environment with a git identity and nothing of the machine's own settings."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\n\tname = Ada\n\temail = ada@example.org\n")
    programs = f"{sys.base_prefix}/bin{os.pathsep}{os.environ['PATH']}"  # `python` is a Python itself, not a script
    return games.clean_environment(HOME=str(home), AUTORESEARCH_CACHE=str(tmp_path / "cache"), PATH=programs)


def set_environment(monkeypatch, environment: dict[str, str]) -> None:
    """Make this process's environment that one, for a test."""
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def refused(tmp_path, environment, monkeypatch, capsys):
    """What loop.py prints before it ends with exit code 2. It is called in this process: it gets to no trial."""

    def call(*arguments: str, folder: Path = tmp_path / "repository", **more: str) -> str:
        tag = () if "--tag" in arguments else ("--tag", "night")
        capsys.readouterr()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            set_environment(patch, {**environment, **more})
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["loop.py", *arguments, *tag])
            loop.main()
        printed = "".join(capsys.readouterr())
        assert ended.value.code == 2, printed
        return printed

    return call


@pytest.fixture
def nvml(tmp_path) -> dict[str, str]:
    """Variables by which a program finds nvml.c instead of NVIDIA's library; FAKE_NVML is the file with its numbers."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    library = tmp_path / "nvml/libnvidia-ml.so.1"
    library.parent.mkdir()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, ROOT / "tests/nvml.c"], check=True)
    return {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML": str(tmp_path / "nvml/numbers")}


@pytest.fixture
def toy(tmp_path, environment) -> Toy:
    return Toy(tmp_path / "repository", environment)
