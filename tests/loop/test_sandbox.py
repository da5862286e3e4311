"""What a trial may read, write and reach. Real trials on the toy task try it, and the kernel answers."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT, solver, step
from test_loop import LATE, LATE_LOOP

from autoresearch.runner import sandbox
from autoresearch.runner.keeper.paths import SHARE, TEXT_OF_PYTHON, has_cuda
from autoresearch.runner.keeper.privileges import drop_privileges

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
def stamp(path):
    os.utime(path, (1, 1))
    os.stat(path).st_mtime == 1 or missing()
def note(call, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if (number := getattr(libc, call)(*arguments)) < 0:
        raise OSError(ctypes.get_errno(), call)
    if call != "adjtimex":
        getattr(libc, call.replace("get", "ctl"))(number, 0, None)
CHILD = """import os, sys
try: os.listdir(sys.argv[1])
except OSError as error: print(type(error).__name__)
else: print('done')"""
out = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
target = json.loads(pathlib.Path("target.json").read_text())
seen = {
    "read home": attempt(lambda: os.listdir(target["home"])),
    "read a file at home": attempt((pathlib.Path(target["home"]) / ".gitconfig").read_text),
    "read the repository": attempt((pathlib.Path(target["repository"]) / "private").read_text),
    "read git's folder": attempt((pathlib.Path(target["repository"]) / ".git/HEAD").read_text),
    "read the journal": attempt(lambda: (out.parent.parent.parent / "journal.jsonl").read_text()),
    "write the journal": attempt(lambda: open(out.parent.parent.parent / "journal.jsonl", "a").close()),
    "write the results": attempt(lambda: open(target["repository"] + "/results.tsv", "a").close()),
    "write another trial": attempt(lambda: open(out.parent.parent / "1/train.log", "a").close()),
    "connect": attempt(lambda: socket.create_connection(("127.0.0.1", target["port"]), 2).close()),
    "listen": attempt(lambda: socket.create_server(("127.0.0.1", 0)).close()),
    "connect to a local socket": attempt(lambda: socket.socket(socket.AF_UNIX).connect(target["local"])),
    "send a datagram": attempt(lambda: datagrams().sendto(b"x", ("127.0.0.1", target["port"]))),
    "read what it shall not see": attempt(lambda: open(target["hidden"]).read()),
    "see what lies beside it": attempt(lambda: open(target["beside"]).read()),
    "share memory": attempt(lambda: os.close(os.open(target["shared"], os.O_CREAT | os.O_RDWR))),
    "write the log of its trial": attempt(lambda: open(out.parent / "score.log", "a").close()),
    "change a mode": attempt(lambda: (os.chmod(target["beside"], 0o600), mode(target["beside"]) == 0o600 or missing())),
    "leave a note in shared memory": attempt(lambda: note("shmget", 4711, 4096, 0o1666)),
    "leave a message": attempt(lambda: note("msgget", 4712, 0o1666)),
    "leave an attribute": attempt(lambda: os.setxattr(out, "user.note", b"x")),
    "leave a time stamp": attempt(lambda: stamp(target["beside"])),
    "open another device": attempt(lambda: os.close(os.open(target["device"], os.O_RDONLY))),
    "set the clock": attempt(lambda: note("adjtimex", ctypes.create_string_buffer(512))),
    "signal the loop": attempt(lambda: os.kill(target["loop"], 0)),
    "read the loop's environment": attempt(pathlib.Path(f"/proc/{target['loop']}/environ").read_text),
    "own folder": attempt(lambda: (out / "mine").write_text("x")),
    "own temporary file": attempt(lambda: __import__("tempfile").NamedTemporaryFile().close()),
    "a child, confined too": subprocess.check_output([sys.executable, "-c", CHILD, target["home"]], text=True).strip(),
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


SHARED = f"/dev/shm/autoresearch-test-{os.getpid()}"
# Something in /dev that a trial does not need and this process can open, or an empty text.


def opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # some say no although their mode says yes
    except OSError:
        return False
    return True


DEVICE = next((path for path in ("/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/fuse") if opens(path)), "")


def holds(privilege: int) -> bool:
    """Whether this process has a privilege of root's (linux/capability.h)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(line.split()[1], 16) >> privilege & 1)


def has_own_rooms() -> bool:
    """Whether the kernel gives a trial shared memory of its own: with CAP_SYS_ADMIN, or to anybody but root in a user
    namespace.
    """
    return holds(21) or (os.geteuid() != 0 and subprocess.run(["unshare", "-Urm", "true"], check=False).returncode == 0)


def has_workers(by: str) -> bool:
    """Whether Inductor may start worker processes in a trial that is confined in this way."""
    return by == "bubblewrap" or (has_own_rooms() and not has_cuda())


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
                        "home": toy.environment["HOME"],
                        "shared": SHARED,
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
            toy.write("private", "not committed: what is, the worktree has too")
            toy.plan_steps(e2=[{"files": {"solver.py": SPY + solver(2)}, "say": "spy"}])
            toy.run_agent(2, *arguments, **environment)
        assert toy.statuses() == ["keep", "keep"]
        return json.loads((toy.runs / "trials/2/train.log").read_text().splitlines()[0].removeprefix("seen "))

    return run


def test_a_trial_confined_by_landlock(seen, method):
    answers = seen("--sandbox", "require", **method("Landlock"))
    other = {"leave an attribute": "OSError"}  # not supported, as on some disks
    other |= {"share memory": "done"} if has_own_rooms() else {}  # nobody shares what it has
    assert {name: answers[name] for name in DENIED} == dict.fromkeys(DENIED, "PermissionError") | other
    assert "share memory" not in other or not os.path.exists(SHARED)
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


# -- what a program under the launcher may do, without a loop around it

METHODS = [
    name for name, works in (("Landlock", sandbox.version() >= 2), ("bubblewrap", sandbox.bubblewrap())) if works
]
# What not every kernel, container and file system lets a program do, confined or not.
RARE = {
    "the kernel's log",
    "a thread's own files",
    "io_uring",
    "secret memory",
    "a flag of a file",
    "a hint about a file",
    "of a namespace",
    "of a child's namespace",
    "passwords",
    "packages that are not used",
    "somebody else's",
}


def first(*paths: Path) -> str:
    """The first of these paths that is a plain file, or nothing."""
    return next((str(path) for path in paths if path.is_file() and not path.is_symlink()), "")


def launch(by: str | None, out: Path, *words: str, before=None, **rules) -> subprocess.CompletedProcess:
    """What a command printed that a method of confinement holds in a folder; None: nothing holds it."""
    out.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "method", lambda: by)
        rules = {**rules, "write": [str(out)], "read": [str(ROOT / "tests"), *rules.get("read", [])]}
        launcher = sandbox.launcher(rules) if by else sandbox.launcher(None)
    folders = {"TMPDIR": "tmp", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    environment = {**os.environ, **{name: str(out / folder) for name, folder in folders.items()}}
    (out / "tmp").mkdir(exist_ok=True)
    command = [*launcher, sys.executable, *words]
    return subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, preexec_fn=before)


@pytest.fixture
def attempts(tmp_path):
    """What tests/attempts.py achieves, by kind and name, held by a method."""
    texts, outside = tmp_path / "texts", tmp_path / "outside"
    texts.mkdir()
    outside.mkdir()
    (texts / "beside").write_text("text")
    (texts / "closed").write_text("text")
    packages, library, share = (
        Path(sysconfig.get_path("purelib")),
        Path(sysconfig.get_path("stdlib")),
        Path("/usr/share"),
    )
    unused = Path(sysconfig.get_path("purelib", vars={"base": sys.base_prefix}))
    target = {
        "beside": str(texts / "beside"),
        "closed": str(texts / "closed"),
        "datagrams": str(tmp_path / "datagrams"),
        "description": str(next(packages.glob("requests-*.dist-info")) / "METADATA"),
        "outside": str(outside),
        "settings": first(*(Path("/etc", name) for name in ("login.defs", "fstab", "hostname", "profile"))),
        "document": first(*(path for path in share.glob("*/*") if path.parent.name not in SHARE)),
        "unused": first(*unused.glob("*")) if unused != packages else "",
        "zone": first(share / "zoneinfo/Etc/UTC"),
        "test": first(*(path for name in TEXT_OF_PYTHON for path in library.glob(f"{name}/*.py"))),
    }
    if os.geteuid() == 0:
        os.chown(texts / "closed", 12345, 12345)
    (texts / "closed").chmod(0o600 if os.geteuid() == 0 else 0)

    def run(by: str | None, **rules) -> dict[str, dict[str, str]]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outside:
            (tmp_path / "datagrams").unlink(missing_ok=True)
            outside.bind(target["datagrams"])
            program = str(ROOT / "tests/attempts.py")
            answer = launch(
                by, tmp_path / f"out-{by}-{len(rules)}", program, json.dumps(target), read=[str(texts)], **rules
            )
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    return run


@pytest.mark.parametrize("by", METHODS)
def test_what_a_model_s_process_tries(attempts, by):
    """Names, page cache, datagrams, notes, files: each in several ways, and none comes through."""
    answers = attempts(by, strict=True, alone=True)
    allowed = answers.pop("allowed")
    assert set(allowed.values()) == {"done"}, allowed
    if has_cuda():
        answers["notes"].pop("to wait at a place of it")
    through = {kind: [name for name, said in said_of.items() if said == "done"] for kind, said_of in answers.items()}
    assert not any(through.values()), through


@pytest.mark.parametrize("by", METHODS)
def test_what_another_task_s_trial_tries(attempts, by):
    """A task without a referee: its commands may make links and lock files, and read what is installed."""
    answers = attempts(by)
    allowed = {**answers.pop("allowed"), **answers.pop("names")}
    assert {name for name, said in allowed.items() if said != "done"} == {"a socket", "an abstract socket"}
    for name in (
        "a lock of a file", "a lock of a part of it", "to wait at a place of it", "work that nobody counts",
    ):  # fmt: skip
        assert answers["notes"].pop(name) == "done"
    files = answers.pop("files")
    assert {answers["what others have read"].pop(name) for name in ("fadvise", "readahead")} == {"done"}  # to no effect
    assert {files["passwords"], files["another program's settings"], files["somebody else's"]}.isdisjoint({"done"})
    assert "done" not in [said for said_of in answers.values() for said in said_of.values()], answers


def test_nothing_but_the_sandbox_denies_it(attempts):
    """The control: a program that nothing holds does all of it, but for what not every machine lets it do."""
    answers = attempts(None)
    cannot = {name for said_of in answers.values() for name, said in said_of.items() if said != "done"}
    assert cannot <= RARE | ({"the processors of another process"} if os.cpu_count() == 1 else set()), answers


UNTEXT = r"""import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from autoresearch.runner.keeper.main import children
if (child := os.fork()) == 0:
    ctypes.CDLL(None).prctl(15, b"\xff\xfe")
    os.kill(os.getpid(), 19)
os.waitpid(child, os.WUNTRACED)
print(children() == [child])
os.kill(child, 9)
"""


def test_the_keeper_finds_a_child_whose_name_is_no_text():
    answer = subprocess.run([sys.executable, "-c", UNTEXT, str(ROOT)], capture_output=True, text=True)
    assert answer.stdout == "True\n", answer.stderr


@pytest.mark.parametrize("by", METHODS)
@pytest.mark.skipif(not holds(21), reason="only root with CAP_SYS_ADMIN can keep access times from changing")
def test_reading_leaves_no_time(tmp_path, by):
    """The time of the last access to a library's file would tell the next process what this one has read."""
    (tmp_path / "texts").mkdir()
    read = tmp_path / "texts/read"
    read.write_text("text")
    os.utime(read, (1, read.stat().st_mtime))
    assert launch(by, tmp_path / "out", "-c", f"open({str(read)!r}).read()", read=[str(read)]).returncode == 0
    assert read.stat().st_atime == 1


DRIVER = """import os, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from autoresearch.runner.keeper import paths
from autoresearch.runner.keeper.landlock import restrict
from autoresearch.runner.keeper.system_calls import cut_off
paths.gpu_devices = lambda names=(): [] if sys.argv[2] == "missing" else ["/dev/ptmx"]  # in the place of one
gpu = sys.argv[2] != "denied"
restrict([sys.prefix, sys.base_prefix], [], [], [], gpu=gpu)
cut_off({"strict": True, "alone": True, "gpu": gpu})
def works(action):
    try:
        action()
    except OSError:
        return False
    return True
def listen():
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("\\0cuda-uvmfd-autoresearch-%d" % os.getpid())
    listener.listen()
def name_a_thread():
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    for mode in ("r+", "w"):
        with open(f"/proc/self/task/{thread.native_id}/comm", mode) as name:
            name.write("cuda-EvtHandlr")
others = [(socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_INET, 1)]
first = works(listen), works(name_a_thread), works(lambda: open("/dev/ptmx"))
print(*first, *(works(lambda: socket.socket(*kind)) for kind in others))
"""


@pytest.mark.skipif(sandbox.version() < 2, reason="no Landlock")
@pytest.mark.parametrize("driver", ["there", "missing", "denied"])
def test_what_the_driver_of_a_gpu_needs(tmp_path, driver):
    """cuInit fails unless it may name its threads and listen at an abstract socket of one kind. In a game of the CPU
    it gets none of this, nor the device.
    """
    allowed = str(driver == "there")
    answer = launch(None, tmp_path / "out", "-c", DRIVER, str(ROOT), driver)
    assert answer.stdout.split() == [allowed, allowed, allowed, "False", "False", "False"], answer.stderr


POOL = """import concurrent.futures, os, sys
if os.environ.get("TORCHINDUCTOR_COMPILE_THREADS") == "1":
    sys.exit(print("alone"))
with open("/dev/shm/note", "a+") as note, concurrent.futures.ProcessPoolExecutor(2) as pool:
    print(sum(pool.map(abs, [1, -2, 3])), note.tell(), note.write("x"))
"""


@pytest.mark.parametrize("by", METHODS)
def test_worker_processes_have_what_they_need_or_are_not_started(tmp_path, by):
    """A pool needs semaphores, files in /dev/shm: a trial has one that no other sees, or Inductor has no pool."""
    has_one = has_workers(by)
    for _ in range(2):
        answer = launch(by, tmp_path / "out", "-c", POOL, strict=True)
        assert answer.stdout == ("6 0 1\n" if has_one else "alone\n"), answer.stderr[-2000:]
    assert launch(by, tmp_path / "out", "-c", POOL, strict=True, alone=True).stdout == "alone\n"
    if by == "Landlock" and os.geteuid() == 0:  # as in a container
        answer = launch(by, tmp_path / "out", "-c", POOL, strict=True, before=lambda: drop_privileges(False))
        assert answer.stdout == "alone\n"
    assert not os.path.exists("/dev/shm/note")


@pytest.mark.skipif(not sandbox.method(), reason="nothing confines a trial here")
def test_a_repository_in_shared_memory_is_refused(toy, refused):
    """In the sandbox another one takes its place: the baseline would crash, since there is none of its files."""
    folder = Path(f"{SHARED}-repository")
    shutil.copytree(toy.folder, folder)
    try:
        said = refused(*toy.agent, "--experiments", "1", "--baseline-runs", "1", folder=folder)
        assert f"{folder} lies in /dev/shm" in said and "--sandbox off" in said
        assert not list(folder.glob(".autoresearch/night/*"))
    finally:
        shutil.rmtree(folder)


BESIDE_CUDA = """import json, os, sys
sys.path.insert(0, sys.argv[1])
from autoresearch.runner.keeper import main
main.has_cuda = lambda gpu: gpu
program = "import os; print(os.environ['TORCHINDUCTOR_COMPILE_THREADS'])"
main.run(json.loads(sys.argv[2]), lambda: os.execv(sys.executable, [sys.executable, "-c", program]))
"""


@pytest.mark.skipif(sandbox.version() < 2, reason="no Landlock")
def test_no_workers_are_started_where_they_cannot_use_the_gpu(tmp_path, monkeypatch):
    """CUDA does not start in them. Inductor gives up all compiling where the first of them ends."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "4")
    monkeypatch.setattr(sandbox, "method", lambda: "Landlock")
    rules = sandbox.launcher({"strict": True})[-1]
    answer = launch(None, tmp_path / "out", "-c", BESIDE_CUDA, str(ROOT), rules)
    assert answer.stdout == "1\n", answer.stderr


LOOK = """import os, sys
def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
print(*(read(path) or "-" for path in sys.argv[1:]))
"""


@pytest.mark.parametrize("by", METHODS)
def test_what_is_given_in_what_is_hidden(tmp_path, by):
    """A stage lies in the hidden folder of all runs, and texts of the game that must not be seen in the stage."""
    files = {
        "runs/journal": "journal",
        "runs/stage/train": "train",
        "runs/stage/texts/row": "row",
        "runs/stage/page": "page",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    hidden = [str(tmp_path / name) for name in ("runs", "runs/stage/texts", "runs/stage/page", "runs/other")]
    paths = [str(tmp_path / name) for name in files]
    answer = launch(by, tmp_path / "out", "-c", LOOK, *paths, read=[str(tmp_path / "runs/stage")], hidden=hidden)
    assert answer.stdout.split() == ["-", "train", "-", "-"], answer.stderr


COMPILE = """import torch
from torch._inductor import async_compile, config
assert torch.equal(torch.compile(lambda x: (x * 2).relu() + 1)(torch.ones(1000)), torch.full((1000,), 3.0))
if config.compile_threads > 1:
    assert async_compile.AsyncCompile.process_pool().submit(max, 1, 2).result() == 2
print("compiled by", config.compile_threads)
"""
TRITON = """import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
@triton.jit
def double(x, y, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y + at, 2 * tl.load(x + at))
source = triton.compiler.ASTSource(double, {"x": "*fp32", "y": "*fp32", "SIZE": "constexpr"}, {(2,): 128})
made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
print(len(made.asm["cubin"]) > 1000)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("by", "alone"), [(by, by == "bubblewrap") for by in METHODS])  # it takes long
def test_a_confined_process_can_compile(tmp_path, by, alone, monkeypatch):
    """torch.compile on a CPU: a C++ compiler, shared libraries, a cache, workers; in a model's process none."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "4")
    (tmp_path / "compile.py").write_text(COMPILE)
    answer = launch(by, tmp_path / "out", str(tmp_path / "compile.py"), read=[str(tmp_path)], strict=True, alone=alone)
    pool = not alone and has_workers(by)
    assert answer.stdout == f"compiled by {4 if pool else 1}\n", answer.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("by", METHODS)
def test_a_confined_process_can_compile_for_a_gpu(tmp_path, by):
    """A Triton kernel down to a cubin for sm_90: its cache moves folders, ptxas runs. No GPU is needed."""
    pytest.importorskip("triton")
    (tmp_path / "kernel.py").write_text(TRITON)
    answer = launch(by, tmp_path / "out", str(tmp_path / "kernel.py"), read=[str(tmp_path)], strict=True, alone=True)
    assert answer.stdout == "True\n", answer.stderr[-2000:]


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
    toy.write("program.md", program.replace("  time_limit", f"  writable: [{outside}]\n  time_limit"))
    toy.commit()
    toy.tag = "allowed"
    toy.run_agent(2)
    assert toy.statuses() == ["keep", "keep"]


@pytest.mark.parametrize(
    "by",
    [name for name, works in (("Landlock", sandbox.version() >= 2), ("bubblewrap", sandbox.bubblewrap())) if works],
)
@pytest.mark.slow
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
    assert "NONE: the agent's code runs with your permissions" in output and toy.statuses() == ["keep"]


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
    ending = LATE + ending if ending else ""
    toy.plan_steps(e2=[{"files": {"solver.py": ESCAPE + solver(2) + ending + "\n"}, "say": "leave"}])
    toy.run_agent(2, loop=LATE_LOOP, LATE=str(toy.runs / "trials/2/run/late"))
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
        "program.md", (toy.folder / "program.md").read_text().replace("  time_limit", f"  {setting}\n  time_limit")
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
