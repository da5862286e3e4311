"""What a trial may read, write and reach. Real trials on the toy task try it, and the kernel answers."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, solver, step

from autoresearch.runner import sandbox

pytestmark = pytest.mark.skipif(not sandbox.method(), reason="this machine has neither Landlock nor bubblewrap")

SPY = '''import ctypes, json, os, pathlib, signal, socket, subprocess, sys
def attempt(action):
    try:
        action()
        return "done"
    except OSError as error:
        return type(error).__name__
def missing():
    raise PermissionError
def datagrams():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def mode(path):
    return os.stat(path).st_mode & 0o777
def note(call, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if (number := getattr(libc, call)(*arguments)) < 0:
        raise OSError(ctypes.get_errno(), call)
    if call != "adjtimex":
        getattr(libc, call.replace("get", "ctl"))(number, 0, None)
CHILD = """import os
try: os.listdir(os.path.expanduser('~'))
except OSError as error: print(type(error).__name__)
else: print('done')"""
out = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
target = json.loads(pathlib.Path("target.json").read_text())
seen = {
    "read home": attempt(lambda: os.listdir(pathlib.Path.home())),
    "read a file at home": attempt((pathlib.Path.home() / ".gitconfig").read_text),
    "read the repository": attempt((pathlib.Path(target["repository"]) / "program.md").read_text),
    "read git's folder": attempt((pathlib.Path(target["repository"]) / ".git/HEAD").read_text),
    "read the journal": attempt(lambda: (out.parent.parent.parent / "journal.jsonl").read_text()),
    "write the journal": attempt(lambda: open(out.parent.parent.parent / "journal.jsonl", "a").close()),
    "write the results": attempt(lambda: open(target["repository"] + "/results.tsv", "a").close()),
    "write another trial": attempt(lambda: open(out.parent.parent / "1/train.log", "a").close()),
    "write its own source": attempt(lambda: open("solver.py", "a").close()),
    "write the guard": attempt(lambda: open("check.py", "a").close()),
    "connect": attempt(lambda: socket.create_connection(("127.0.0.1", target["port"]), 2).close()),
    "listen": attempt(lambda: socket.create_server(("127.0.0.1", 0)).close()),
    "connect to a local socket": attempt(lambda: socket.socket(socket.AF_UNIX).connect(target["local"])),
    "send a datagram": attempt(lambda: datagrams().sendto(b"x", ("127.0.0.1", target["port"]))),
    "read what it shall not see": attempt(lambda: open(target["hidden"]).read()),
    "see what lies beside it": attempt(lambda: open(target["beside"]).read()),
    "share memory": attempt(lambda: os.close(os.open("/dev/shm/autoresearch-test", os.O_CREAT | os.O_RDWR))),
    "write the log of its trial": attempt(lambda: open(out.parent / "score.log", "a").close()),
    "change a mode": attempt(lambda: (os.chmod(target["beside"], 0o600), mode(target["beside"]) == 0o600 or missing())),
    "leave a note in shared memory": attempt(lambda: note("shmget", 4711, 4096, 0o1666)),
    "leave a message": attempt(lambda: note("msgget", 4712, 0o1666)),
    "leave an attribute": attempt(lambda: os.setxattr(out, "user.note", b"x")),
    "leave a time stamp": attempt(lambda: (os.utime(out, (1, 1)), os.stat(out).st_mtime == 1 or missing())),
    "open another device": attempt(lambda: os.close(os.open(target["device"], os.O_RDONLY))),
    "set the clock": attempt(lambda: note("adjtimex", ctypes.create_string_buffer(512))),
    "signal the loop": attempt(lambda: os.kill(target["loop"], 0)),
    "read the loop's environment": attempt(pathlib.Path(f"/proc/{target['loop']}/environ").read_text),
    "own folder": attempt(lambda: (out / "mine").write_text("x")),
    "own temporary file": attempt(lambda: __import__("tempfile").NamedTemporaryFile().close()),
    "a child, confined too": subprocess.check_output([sys.executable, "-c", CHILD], text=True).strip(),
}
print("seen", json.dumps(seen))
'''
DENIED = [
    "read home",
    "read a file at home",
    "read the repository",
    "read git's folder",
    "read the journal",
    "write the journal",
    "write the results",
    "write another trial",
    "write its own source",
    "write the guard",
    "a child, confined too",
    "read the loop's environment",
    "read what it shall not see",
    "share memory",
    "write the log of its trial",
    "connect",
    "listen",
    "connect to a local socket",
    "send a datagram",
    "change a mode",
    "leave a note in shared memory",
    "leave a message",
    "leave an attribute",
    "leave a time stamp",
    "open another device",
    "set the clock",
]


# Something in /dev that a trial does not need and this process can open, or an empty text.
DEVICE = next((path for path in ("/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/ptmx") if os.access(path, os.R_OK)), "")


def keeps_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.note", b"x")
    except OSError:
        return False
    return True


SHIM = """import sys
sys.path.insert(0, %r)
from autoresearch.runner import sandbox
sandbox.method = lambda: %r
"""


@pytest.fixture
def method(tmp_path):
    """The environment in which the loop takes a method of confinement for what the machine has."""

    def choose(name: str) -> dict[str, str]:
        shim = tmp_path / f"shim-{name}"
        shim.mkdir()
        (shim / "sitecustomize.py").write_text(SHIM % (str(ROOT), name))
        return {"PYTHONPATH": str(shim)}

    return choose


@pytest.fixture
def seen(toy, tmp_path):
    """What a spying trial saw, confined or not."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("hidden", "beside"):
        (texts / name).write_text("text")

    def run(*arguments: str, **environment: str) -> dict[str, str]:
        local = str(tmp_path / "socket")
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(local)
            listener.listen()
            toy.write(
                "target.json",
                json.dumps(
                    {
                        "repository": str(toy.folder),
                        "port": server.getsockname()[1],
                        "loop": os.getpid(),
                        "local": local,
                        "hidden": str(texts / "hidden"),
                        "beside": str(texts / "beside"),
                        "device": DEVICE,
                    }
                ),
            )
            toy.write("facts.py", f'print(\'{{"hidden": ["{texts / "hidden"}"]}}\')')
            program = (toy.folder / "program.md").read_text()
            toy.write(
                "program.md",
                program.replace("time_limit", f"readable: [{texts}]\n  describe: python facts.py\n  time_limit"),
            )
            toy.commit()
            toy.plan_steps(e2=[{"files": {"solver.py": SPY + solver(2)}, "say": "spy"}])
            toy.run_agent(2, *arguments, **environment)
        assert toy.statuses() == ["keep", "keep"]
        return json.loads((toy.runs / "trials/2/train.log").read_text().splitlines()[0].removeprefix("seen "))

    return run


def test_a_trial_confined_by_landlock(seen, method):
    answers = seen("--sandbox", "require", **method("Landlock"))
    assert {name: answers[name] for name in DENIED} == dict.fromkeys(DENIED, "PermissionError")
    assert answers["own folder"] == answers["own temporary file"] == answers["see what lies beside it"] == "done"
    if sandbox.version() >= 6:
        assert answers["signal the loop"] == "PermissionError"


@pytest.mark.skipif(not sandbox.bubblewrap(), reason="no bubblewrap that works here")
def test_a_trial_confined_by_bubblewrap(seen, method):
    """What it must not see is not there: other errors, the same walls. It has shared memory, but nobody shares it."""
    answers = seen("--sandbox", "require", **method("bubblewrap"))
    walls = set(DENIED) - {"share memory", "read what it shall not see"}
    assert {name for name in walls if answers[name] == "done"} == set()
    assert answers["own folder"] == answers["own temporary file"] == answers["see what lies beside it"] == "done"
    assert answers["signal the loop"] != "done" or os.getpid() == 1


def test_an_unconfined_trial_does_all_of_it(seen, toy):
    """The control: what is denied above is denied by the sandbox and by nothing else."""
    answers = seen("--sandbox", "off")
    lacking = ({"leave an attribute"} if not keeps_attributes(toy.folder) else set()) | (
        set() if DEVICE else {"open another device"}
    )
    assert {name for name, answer in answers.items() if answer != "done"} == lacking, answers


@pytest.mark.slow
def test_a_confined_process_can_compile(tmp_path):
    """torch.compile on a CPU: a C++ compiler, shared libraries, a cache, worker processes."""
    (tmp_path / "out").mkdir()
    code = (
        "import torch\nf = torch.compile(lambda x: (x * 2).relu() + 1)\n"
        "assert torch.equal(f(torch.ones(1000)), torch.full((1000,), 3.0))\nprint('compiled')"
    )
    command = [*sandbox.launcher({"write": [str(tmp_path / "out")]}), sys.executable, "-c", code]
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path / "out"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "out/inductor"),
    }
    answer = subprocess.run(command, cwd=tmp_path / "out", env=environment, capture_output=True, text=True)
    assert answer.stdout == "compiled\n", answer.stderr[-2000:]


def test_a_task_names_what_else_it_reads_and_writes(toy):
    outside = toy.folder.parent / "numbers"
    outside.mkdir()
    (outside / "seven").write_text("7")
    program = (toy.folder / "program.md").read_text()
    reading = (
        f"VALUE = int(open({str(outside / 'seven')!r}).read())\n"
        f"open({str(outside / 'note')!r}, 'w').close()\nprint('score:', VALUE)\n"
    )
    toy.plan_steps(otherwise=[{"files": {"solver.py": reading}, "say": "read it"}])
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "crash"]
    assert "Permission denied" in toy.journal("verdict")[1]["reason"]
    toy.write("program.md", program.replace("time_limit: 20", f"time_limit: 20\n  writable: [{outside}]"))
    toy.commit()
    toy.tag = "allowed"
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "keep"]


@pytest.mark.parametrize(
    "by",
    [name for name, works in (("Landlock", sandbox.version() >= 2), ("bubblewrap", sandbox.bubblewrap())) if works],
)
def test_the_record_is_hidden_in_what_a_trial_may_read(toy, method, by):
    """As where the whole repository lies among the system's own folders, which all can be read."""
    (toy.folder / "numbers").write_text("7")
    toy.write(
        "program.md",
        (toy.folder / "program.md").read_text().replace("time_limit", f"readable: [{toy.folder}]\n  time_limit"),
    )
    toy.commit()
    code = f"VALUE = int(open({str(toy.folder / 'numbers')!r}).read())\nprint('score:', VALUE)\n"
    for number, name in enumerate((".autoresearch/night/journal.jsonl", ".git/HEAD"), 3):
        peek = f"VALUE = len(open({str(toy.folder / name)!r}).read())\nprint('score:', VALUE)\n"
        toy.plan_steps(
            e2=[{"files": {"solver.py": code}, "say": "seven"}], otherwise=[{"files": {"solver.py": peek}, "say": name}]
        )
        toy.run_agent(
            number,
            "--sandbox",
            "require",
            **method(by) if number == 3 else {"PYTHONPATH": str(toy.folder.parent / f"shim-{by}")},
        )
    assert toy.statuses() == ["keep", "keep", "crash", "crash"]


def test_where_the_machine_cannot(toy, method):
    """An old kernel and no bubblewrap: the first screen says so, and --sandbox require refuses."""
    toy.plan_steps()
    output = toy.run_agent(1, "--sandbox", "require", expect=2, **method(""))
    assert "this kernel has no Landlock" in output
    (toy.folder.parent / "shim-").rename(toy.folder.parent / "shim")
    output = toy.run_agent(1, PYTHONPATH=str(toy.folder.parent / "shim"))
    assert "NONE: the agent's code runs with your rights" in output and toy.statuses() == ["keep"]


# -- the keeper

ESCAPE = """import os, sys, time
if os.fork() == 0:
    os.setsid()
    if (child := os.fork()) == 0:
        time.sleep(600)
    os.write(1, b"%d\\n" % child)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize(
    "ending", ["", "time.sleep(600)", "import signal; signal.signal(15, lambda *_: None)\nwhile True: time.sleep(9)"]
)
@pytest.mark.slow
def test_nothing_outlives_a_trial(toy, ending):
    """A child in a session of its own, of a trial that ends by itself, at its time limit, or only when it is killed."""
    toy.write("program.md", (toy.folder / "program.md").read_text().replace("time_limit: 20", "time_limit: 2"))
    toy.commit()
    toy.plan_steps(e2=[{"files": {"solver.py": ESCAPE + solver(2) + ending + "\n"}, "say": "leave"}])
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "crash" if ending else "keep"]
    pid = int((toy.runs / "trials/2/train.log").read_text().split()[0])
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.skipif(
    sandbox.version() < 6, reason="without a signal that reaches trials alone, who forks fast enough is outrun by luck"
)
def test_who_forks_fast_does_not_outlive_a_trial(toy):
    """A chain of processes, each of which has ended before anybody could have ended it."""
    chain = "import os\nif os.fork() == 0:\n    os.setsid()\n    while True:\n        if os.fork(): os._exit(0)\n"
    toy.plan_steps(e2=[{"files": {"solver.py": chain + solver(2)}, "say": "run"}])
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "keep"]
    mark, alive = str(toy.runs / "trials/2").encode(), []
    for _ in range(50):
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes():
                    alive.append(path)
    assert not alive


@pytest.mark.parametrize(
    ("setting", "hog", "reason"),
    [
        ("memory_limit: 0.3", "held = bytearray(400 << 20)", "GiB of host memory; 0.3 are allowed"),
        (
            "disk_limit: 0.1",
            "out = open(os.environ['AUTORESEARCH_RUN_DIR'] + '/x', 'wb', 0)\n"
            "for _ in range(200): out.write(bytes(1 << 20))",
            "GiB; 0.1 are allowed",
        ),
    ],
)
def test_a_trial_that_takes_too_much(toy, setting, hog, reason):
    toy.write(
        "program.md", (toy.folder / "program.md").read_text().replace("time_limit: 20", f"time_limit: 20\n  {setting}")
    )
    toy.commit()
    toy.plan_steps(
        e2=[{"files": {"solver.py": f"import os, time\n{hog}\ntime.sleep(600)\n"}, "say": "more"}], e3=[step(3)]
    )
    toy.run_agent(3)
    assert toy.statuses() == ["keep", "crash", "keep"]
    assert reason in toy.journal("verdict")[1]["reason"]
    assert not (toy.runs / "trials/2/run/x").exists()


def test_a_wrong_mode(toy, refused):
    assert "--sandbox takes auto, require or off" in refused("--sandbox", "maybe")
