"""What a trial may read, write and reach. Real trials on the toy task try it, and the kernel answers."""

import json
import os
import socket
import subprocess
import sys

import pytest

from autoresearch import sandbox
from conftest import ROOT, solver

pytestmark = pytest.mark.skipif(not sandbox.version(), reason="this kernel has no Landlock")

SPY = """import json, os, pathlib, signal, socket, subprocess, sys
def attempt(action):
    try:
        action()
        return "done"
    except OSError as error:
        return type(error).__name__
out = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
target = json.loads(pathlib.Path("target.json").read_text())
seen = {
    "read home": attempt(lambda: os.listdir(pathlib.Path.home())),
    "read a file at home": attempt((pathlib.Path.home() / ".gitconfig").read_text),
    "read the repository": attempt((pathlib.Path(target["repository"]) / "program.md").read_text),
    "read git's folder": attempt((pathlib.Path(target["repository"]) / ".git/HEAD").read_text),
    "read the journal": attempt(lambda: (out.parent.parent / "journal.jsonl").read_text()),
    "write the journal": attempt(lambda: open(out.parent.parent / "journal.jsonl", "a").close()),
    "write the results": attempt(lambda: open(target["repository"] + "/results.tsv", "a").close()),
    "write another trial": attempt(lambda: open(out.parent / "1/train.log", "a").close()),
    "write its own source": attempt(lambda: open("solver.py", "a").close()),
    "write the guard": attempt(lambda: open("check.py", "a").close()),
    "connect": attempt(lambda: socket.create_connection(("127.0.0.1", target["port"]), 2).close()),
    "listen": attempt(lambda: socket.create_server(("127.0.0.1", 0)).close()),
    "signal the loop": attempt(lambda: os.kill(target["loop"], 0)),
    "read the loop's environment": attempt(pathlib.Path(f"/proc/{target['loop']}/environ").read_text),
    "own folder": attempt(lambda: (out / "mine").write_text("x")),
    "own temporary file": attempt(lambda: __import__("tempfile").NamedTemporaryFile().close()),
    "a child, confined too": subprocess.run([sys.executable, "-c", "import os\\ntry: os.listdir(os.path.expanduser('~'))\\n"
        "except OSError as e: print(type(e).__name__)\\nelse: print('done')"], stdout=subprocess.PIPE, text=True).stdout.strip(),
}
print("seen", json.dumps(seen))
"""
DENIED = [
    "read home", "read a file at home", "read the repository", "read git's folder", "read the journal", "write the journal",
    "write the results", "write another trial", "write its own source", "write the guard", "a child, confined too",
    "read the loop's environment",
]


@pytest.fixture
def seen(toy):
    """What a spying trial saw, confined or not."""
    def run(*arguments: str) -> dict[str, str]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            target = {"repository": str(toy.folder), "port": server.getsockname()[1], "loop": os.getpid()}
            toy.write("target.json", json.dumps(target))
            toy.commit()
            toy.plan_steps(e2=[{"files": {"solver.py": SPY + solver(2)}, "say": "spy"}])
            toy.run_agent(2, *arguments)
        assert toy.statuses() == ["keep", "keep"]
        return json.loads((toy.runs / "trials/2/train.log").read_text().splitlines()[0].removeprefix("seen "))
    return run


def test_a_confined_trial(seen):
    answers = seen("--sandbox", "require")
    assert {name: answers[name] for name in DENIED} == dict.fromkeys(DENIED, "PermissionError")
    assert answers["own folder"] == answers["own temporary file"] == "done"
    if sandbox.version() >= 4:
        assert answers["connect"] == answers["listen"] == "PermissionError"
    if sandbox.version() >= 6:
        assert answers["signal the loop"] == "PermissionError"


def test_an_unconfined_trial_does_all_of_it(seen):
    """The control: what is denied above is denied by the sandbox and by nothing else."""
    answers = seen("--sandbox", "off")
    assert set(answers.values()) == {"done"}, answers


def test_a_confined_process_can_compile(tmp_path):
    """torch.compile on a CPU: a C++ compiler, shared libraries, a cache, worker processes."""
    (tmp_path / "out").mkdir()
    code = "import torch\nf = torch.compile(lambda x: (x * 2).relu() + 1)\n" \
           "assert torch.equal(f(torch.ones(1000)), torch.full((1000,), 3.0))\nprint('compiled')"
    command = sandbox.confined([sys.executable, "-c", code], [], [str(tmp_path / "out")])
    environment = {**os.environ, "TMPDIR": str(tmp_path / "out"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "out/inductor")}
    answer = subprocess.run(command, cwd=tmp_path / "out", env=environment, capture_output=True, text=True)
    assert answer.stdout == "compiled\n", answer.stderr[-2000:]


def test_a_task_names_what_else_it_reads_and_writes(toy):
    outside = toy.folder.parent / "numbers"
    outside.mkdir()
    (outside / "seven").write_text("7")
    program = (toy.folder / "program.md").read_text()
    reading = f"VALUE = int(open({str(outside / 'seven')!r}).read())\nopen({str(outside / 'note')!r}, 'w').close()\nprint('score:', VALUE)\n"
    toy.plan_steps(otherwise=[{"files": {"solver.py": reading}, "say": "read it"}])
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "crash"]
    assert "Permission denied" in toy.journal("verdict")[1]["reason"]
    toy.write("program.md", program.replace("time_limit: 20", f"time_limit: 20\n  writable: [{outside}]"))
    toy.commit()
    toy.tag = "allowed"
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "keep"]


def test_where_the_kernel_cannot(toy):
    """An old kernel: the first screen says so, and --sandbox require refuses."""
    shim = toy.folder.parent / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(
        "import sys\nsys.path.insert(0, %r)\nfrom autoresearch import sandbox\nsandbox.version = lambda: 0\n" % str(ROOT))
    toy.plan_steps()
    output = toy.run_agent(1, "--sandbox", "require", expect=2, PYTHONPATH=str(shim))
    assert "this kernel has no Landlock" in output
    output = toy.run_agent(1, PYTHONPATH=str(shim))
    assert "NONE: the agent's code runs with your rights" in output and toy.statuses() == ["keep"]


def test_a_wrong_mode(toy):
    assert "--sandbox takes auto, require or off" in toy.run("--sandbox", "maybe", expect=2)
