"""What a trial may take of the machine and leave behind: nothing that it does ends the loop, or helps the next one."""

import asyncio
import ctypes
import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, solver, step, wait_for

from autoresearch.runner import TRAIN, Job, machine, process
from autoresearch.runner.machine import MemoryGroup
from autoresearch.runner.process import Process
from autoresearch.runner.trial import Trial, settle, tidy, trial_environment
from autoresearch.runner.usage import NEARLY_NO_FILES
from autoresearch.task import Facts, Task

DEEP = """import os
os.makedirs("deep", exist_ok=True)
here = os.open("deep", os.O_RDONLY)
for _ in range(DEPTH):
    os.mkdir("d" * 100, dir_fd=here)
    below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
    os.close(here)
    here = below
os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
"""
STRANGE = """import os
os.symlink("x" * 300, "long")
os.symlink("/", "model.safetensors")
os.symlink("loop", "loop")
os.mkfifo("figures.json")
os.mkfifo("progress.json")
os.makedirs(b"bad \\xff bytes/\\n")
os.mkdir("closed", 0o000)
open("x" * 255, "w").close()
open(b"\\xff\\xfe", "w").close()
"""


@pytest.fixture(autouse=True)
def no_deep_folders(tmp_path):
    """Whatever fails, nothing stays that pytest could not remove."""
    yield
    subprocess.run(["rm", "-rf", *tmp_path.glob("*")], check=True)


def mess(folder: Path) -> None:
    """Leave behind what no honest program does. Deeper than Python calls itself, and than a path may be long."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-S", "-c", f"DEPTH = 1100\n{DEEP}{STRANGE}"], cwd=folder, check=True)


@pytest.mark.slow
def test_what_a_trial_leaves_does_not_end_the_loop(toy):
    """A long link, 1,500 nested folders, pipes where files are read, names that are no text."""
    into = "import os\nfolder = os.environ['AUTORESEARCH_RUN_DIR']\n"
    leave = into + "os.chdir(folder)\nDEPTH = 1500\n" + DEEP + STRANGE + "os.chdir('/')\n"
    toy.plan_steps(e2=[{"files": {"solver.py": leave + solver(2)}, "say": "leave"}], e3=[step(3)])
    toy.run_agent(3)
    assert toy.statuses() == ["keep"] * 3
    kept = [entry for entry in os.scandir(toy.runs / "trials/2/run") if not entry.is_file(follow_symlinks=False)]
    assert not kept and "score: 2" in (toy.runs / "trials/2/train.log").read_text()
    toy.require_whole()


@pytest.mark.parametrize("made", ["os.symlink(PRECIOUS, folder)", "open(folder, 'w')", "os.symlink('none', folder)"])
def test_a_folder_for_temporary_files_that_is_none(tmp_path, made):
    """What a command makes of it, the loop neither follows nor fails on, when it empties the next command's home."""
    letters = tmp_path / "precious/home/letters"
    letters.parent.mkdir(parents=True)
    letters.write_text("dear")
    breaks = f"import os, shutil\nPRECIOUS = {str(letters.parents[1])!r}\nfolder = os.environ['TMPDIR']\n"
    (tmp_path / "breaks.py").write_text(f"{breaks}shutil.rmtree(folder)\n{made}\n")
    looks = "import os, tempfile\nfound = os.listdir(os.environ['HOME']) + os.listdir(os.environ['TMPDIR'])\n"
    (tmp_path / "looks.py").write_text(f"{looks}tempfile.TemporaryFile()\nprint('found:', len(found))\n")
    folder = tmp_path / "trials/1"
    environment = trial_environment(folder, tmp_path / "caches", {}, {})
    task = Task((), train=f"{sys.executable} breaks.py", score=f"{sys.executable} looks.py", metric="found")
    trial = Trial(task, Job("1", {}, 1), Facts(), tmp_path, folder, environment, None, list, lambda phase: None)
    measured = asyncio.run(trial.run())
    assert measured.score == 0 and letters.read_text() == "dear", measured


def test_who_prints_a_figure_for_each_step_fills_no_journal(tmp_path):
    """Those that the task names are recorded wherever they stand, and the last ones of all others."""
    prints = "print('score: 1\\nsize: 2')\nfor step in range(1000):\n    print(f'loss_{step}: 3')\n"
    (tmp_path / "prints.py").write_text(prints)
    environment = trial_environment(tmp_path / "trials/1", tmp_path / "caches", {}, {})
    task = Task((), train=f"{sys.executable} prints.py", metric="score", also={"size": {}})
    arguments = tmp_path, tmp_path / "trials/1", environment, None, list, lambda phase: None
    figures = asyncio.run(Trial(task, Job("1", {}, 1, (TRAIN,)), Facts(), *arguments).run()).figures
    assert list(figures)[:3] == ["score", "size", "loss_800"] and list(figures)[-1] == "loss_999"


def test_only_weights_and_figures_outlive_a_training(tmp_path):
    run = tmp_path / "run"
    mess(run)
    settle(run)
    assert os.listdir(run) == []
    for name, size in {"model.safetensors": 1 << 20, "figures.json": 10, "progress.json": 1 << 17, "notes": 10}.items():
        (run / name).write_bytes(bytes(size))
    os.link(run / "figures.json", tmp_path / "elsewhere")
    (run / "tmp/deep").mkdir(parents=True)
    settle(run)
    assert os.listdir(run) == ["model.safetensors"]  # figures.json had a second name, progress.json was too long
    with open(run / "figures.json", "w") as file:  # and takes up more than it holds
        assert ctypes.CDLL(None).fallocate(file.fileno(), 1, ctypes.c_long(0), ctypes.c_long(1 << 20)) == 0
    settle(run)
    assert os.listdir(run) == ["model.safetensors"]


def test_a_tidied_folder_holds_plain_files_alone(tmp_path):
    mess(tmp_path / "tmp")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/figures.json").write_text("{}")
    (tmp_path / "run/weights").write_text("1")
    (tmp_path / "run/link").symlink_to("weights")
    tidy(tmp_path, [], keep_weights=True)
    assert os.listdir(tmp_path) == ["run"] and sorted(os.listdir(tmp_path / "run")) == ["figures.json", "weights"]
    tidy(tmp_path, [tmp_path / "run/weights"], keep_weights=False)
    assert os.listdir(tmp_path / "run") == ["figures.json"]


def test_folders_nested_too_deeply_to_be_counted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_bytes(bytes(100_000))
    assert 100_000 <= machine.disk_usage([tmp_path]) < 200_000
    mess(tmp_path / "b")
    assert machine.disk_usage([tmp_path]) == float("inf")
    machine.remove(tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_who_makes_too_many_files_is_ended(tmp_path, monkeypatch):
    """Files that hold nothing take no bytes, but the disk has room for so many only."""
    many = "import os, time; [open(str(number), 'w').close() for number in range(12_000)]; time.sleep(60)"
    (tmp_path / "many.py").write_text(f"import os\nos.chdir(os.environ['AUTORESEARCH_RUN_DIR'])\n{many}")
    folder, environment = tmp_path / "1", trial_environment(tmp_path / "1", tmp_path / "caches", {})
    task = Task((), train=f"{sys.executable} many.py", metric="score", time_limit=20.0)
    trial = Trial(task, Job("1", {}, 1), Facts(), tmp_path, folder, environment, None, list, lambda phase: None)
    real = os.statvfs

    def statvfs(path) -> SimpleNamespace:
        """Of a disk on which nobody else makes and removes files, with room for so many."""
        found = {name: getattr(real(path), name) for name in dir(real(path)) if name.startswith("f_")}
        made = len(os.listdir(folder / "run")) if (folder / "run").exists() else 0
        return SimpleNamespace(**found | {"f_favail": NEARLY_NO_FILES + 4_000 - made})

    monkeypatch.setattr(os, "statvfs", statvfs)
    measured = asyncio.run(trial.run())
    assert (
        measured.reason == "training: ended because the disk had next to no room for more files"
        and trial.usage.overfull
    )


def test_what_cannot_be_listed_is_not_taken_for_empty(tmp_path):
    (tmp_path / "file").touch()
    assert machine.disk_usage([tmp_path / "missing"]) == 0 and machine.disk_usage([tmp_path / "file"]) == float("inf")


RESERVES = """import ctypes, os
def reserve(handle):
    ctypes.CDLL(None).fallocate(handle, 1, ctypes.c_long(0), ctypes.c_long(MUCH))
for name in ("figures.json", "weights"):
    reserve(os.open(os.environ["AUTORESEARCH_RUN_DIR"] + "/" + name, os.O_CREAT | os.O_WRONLY))
reserve(1)
print("score: 2")
"""


def run_alone(folder: Path, program: str, **task) -> tuple[Trial, str]:
    """A trial of one program, and why it failed."""
    (folder / "program.py").write_text(program)
    environment = trial_environment(folder / "1", folder / "caches", {})
    task = Task((), train=f"{sys.executable} program.py", metric="score", time_limit=20.0, **task)
    trial = Trial(
        task, Job("1", {}, 1, (TRAIN,)), Facts(), folder, folder / "1", environment, None, list, lambda phase: None
    )
    return trial, asyncio.run(trial.run()).reason


def test_what_is_reserved_beyond_the_end_of_a_file_is_given_back(tmp_path):
    _, reason = run_alone(tmp_path, RESERVES.replace("MUCH", "20 << 20"))
    assert reason == "" and machine.disk_usage([tmp_path]) > 40 << 20  # the files of run/ are still to be looked at
    tidy(tmp_path / "1", [], keep_weights=True)
    assert sorted(os.listdir(tmp_path / "1/run")) == ["figures.json", "weights"]
    assert machine.disk_usage([tmp_path]) < 1 << 20


def test_what_is_written_just_before_the_end_counts(tmp_path):
    trial, reason = run_alone(tmp_path, RESERVES.replace("MUCH", "50 << 20"), disk_limit=0.1)
    assert (
        reason == "training: ended because it had written 0.1 GiB; 0.1 are allowed: score: 2" and trial.usage.overfull
    )
    assert machine.disk_usage([tmp_path]) < 1 << 20  # the record is written next, and has room


NAMELESS = """import os, time
path = os.environ["AUTORESEARCH_RUN_DIR"] + "/x"
handle = os.open(path, os.O_CREAT | os.O_RDWR)
os.unlink(path)
os.posix_fallocate(handle, 0, 150 << 20)
time.sleep(60)
"""


def test_a_file_without_a_name_counts(tmp_path):
    trial, reason = run_alone(tmp_path, NAMELESS, disk_limit=0.1)
    assert reason == "training: ended because it had written 0.1 GiB; 0.1 are allowed" and trial.usage.overfull


# -- memory

HOGS = {
    "its own": "held = bytearray(MUCH)",
    "mapped nowhere": "fd = os.memfd_create('x')\nwhile os.fstat(fd).st_size < MUCH: os.write(fd, bytes(1 << 20))",
    "written and let go": "held = mmap.mmap(-1, MUCH)\nheld.write(bytes(MUCH))\nheld.madvise(mmap.MADV_DONTNEED)",
    "written by a child that has ended": (
        "held = mmap.mmap(-1, MUCH)\nif os.fork() == 0:\n    held.write(bytes(MUCH))\n    os._exit(0)\nos.wait()"
    ),
    "mapped, its file closed": (
        "fd = os.memfd_create('x')\nos.ftruncate(fd, MUCH)\nheld = mmap.mmap(fd, MUCH)\n"
        "while os.lseek(fd, 0, 1) < MUCH: os.write(fd, bytes(1 << 20))\nos.close(fd)"
    ),
    "by names that are no lines of text": (
        "import ctypes\nctypes.CDLL(None).prctl(15, b'a\\r\\xff')\nfd = os.memfd_create('a\\rb')\n"
        "os.ftruncate(fd, MUCH)\nheld = mmap.mmap(fd, MUCH)\nheld.write(bytes(MUCH))\nos.close(fd)"
    ),
}
ONE_PAGE = (
    "fd = os.memfd_create('x')\nwhile os.fstat(fd).st_size < MUCH: os.write(fd, bytes(1 << 20))\n"
    "held = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE)\nos.close(fd)"
)
if os.geteuid() == 0:  # who may ask what a mapped file takes
    HOGS["one page mapped, its file closed"] = ONE_PAGE


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.slow
def test_memory_is_counted_wherever_it_is_held(tmp_path, counted):
    """By a control group, where this machine has one, else by what /proc tells."""
    group = MemoryGroup.make() if counted else None
    if group:
        group.remove()
    elif counted:
        pytest.skip("this process may not make control groups")

    async def held(name: str, hog: str) -> int:
        log = tmp_path / name
        program = f"import mmap, os, time\nMUCH = 100 << 20\n{hog}\nprint('held', flush=True)\ntime.sleep(60)"
        words = [sys.executable, "-c", program]
        async with Process(words, tmp_path, dict(os.environ), log, counted=counted) as running:
            await asyncio.to_thread(wait_for, lambda: "held" in log.read_text())
            return running.memory()

    async def all_of_them() -> list[int]:
        return [await held(name, hog) for name, hog in HOGS.items()]

    for name, memory in zip(HOGS, asyncio.run(all_of_them()), strict=True):
        assert 100 << 20 < memory < 180 << 20, name


def test_a_group_that_another_trial_has_just_made_stays(tmp_path):
    """It is empty until its command enters it. What a loop left that was killed is removed."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    new, left_over = tmp_path / f"autoresearch-{os.getpid()}-999999", tmp_path / f"autoresearch-{gone.pid}-0"
    for group in (new, left_over):
        group.mkdir()
    with pytest.raises(OSError):  # nothing is counted in this folder
        MemoryGroup(tmp_path)
    assert new.exists() and not left_over.exists()


def test_who_opens_too_many_files_cannot_be_counted(tmp_path, monkeypatch):
    assert machine.memory_of([os.getpid()]) < float("inf")
    monkeypatch.setattr(machine, "MOST_HANDLES", 2)
    assert machine.memory_of([os.getpid()]) == float("inf")


@pytest.mark.slow
def test_who_starts_too_many_threads_is_ended(toy):
    threads = (
        "import threading, time\nfor _ in range(40):\n    threading.Thread(target=time.sleep, args=(60,)).start()\n"
    )
    assert machine.tasks_of([os.getpid()]) >= threading.active_count()
    toy.plan_steps(e2=[{"files": {"solver.py": threads + solver(2)}, "say": "more"}])
    few = "from autoresearch.runner import usage\nusage.MOST_TASKS = 20\nimport loop\nloop.main()\n"
    program = toy.folder.parent / "loop.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{few}")
    toy.run_agent(2, loop=program)
    assert "training: ended because it had more than 20 processes and threads" in toy.journal("verdict")[1]["reason"]


# -- time

STOPS = {
    "itself": "os.kill(os.getpid(), signal.SIGSTOP)",
    "its child": "if os.fork() == 0:\n    os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(60)",
    "its group": "os.setpgid(0, 0)\nos.killpg(0, signal.SIGSTOP)",
}


def test_who_stops_himself_gets_no_more_time(tmp_path):
    async def ended(name: str, stop: str) -> process.Ended:
        words = [sys.executable, "-c", f"import os, signal, time\n{stop}"]
        async with Process(words, tmp_path, dict(os.environ), tmp_path / name) as running:
            return await running.wait(1.5)

    async def all_of_them() -> list[process.Ended]:
        return await asyncio.gather(*(ended(name, stop) for name, stop in STOPS.items()))

    for name, how in zip(STOPS, asyncio.run(all_of_them()), strict=True):
        assert how.reason == "ended after its time limit of 2 s" and how.suspended == 0.0 and how.seconds < 12, name


def test_a_training_that_does_not_begin_is_ended(tmp_path):
    """Before the clock there is time to import, build and compile, and not for more."""
    wait = f"{sys.executable} -c 'import time; time.sleep(60)'"
    task = Task((), train=wait, metric="score", score=f"{sys.executable} -c 'input()'", referee=True)
    job, facts = Job("1", {}, 1, (TRAIN,)), Facts(time_budget=3.0)
    folder, environment = tmp_path / "1", trial_environment(tmp_path / "1", tmp_path / "caches", {})
    trial = Trial(task, job, facts, tmp_path, folder, environment, None, list, lambda phase: None)
    assert trial.start_limit == 120.0 and trial.limits[TRAIN] == 183.0
    trial.start_limit = 1.0
    began = time.monotonic()
    measured = asyncio.run(trial.run())
    assert "drew no batch in its first 1 s" in measured.reason and time.monotonic() - began < 10
    longer = dataclasses.replace(facts, time_budget=300.0)
    assert Trial(task, job, longer, tmp_path, folder, environment, None, list, lambda phase: None).start_limit == 300.0
