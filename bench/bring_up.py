"""The first look at a machine with a GPU, in one command: does it run, is it right, is it fast?

    python3 bench/bring_up.py                           # needs no uv and no network; see below for what it does need
    python3 bench/bring_up.py --only doctor kernels     # some of the steps

Each step is a process of its own with a time limit, so that a crash does not end the rest. Every result is printed at
once, and is a line of JSON in bring_up.jsonl (--output FILE). The text is random tokens, which train as fast. Without a
GPU it says so, does what a CPU can do at the sizes of the `test` profile, and ends with exit code 1, as it does where a
step fails.

    doctor        what `loop.py doctor` finds
    sandbox       CUDA and a compile where a trial runs; where they fail, with each part of the sandbox switched off
    tests         pytest -m gpu
    kernels       each attention of train.py against plain products, forward and backward, at 128 x 2048; its time
    compiled      the compiled model against itself uncompiled: loss and gradients
    train_step    train.py cold and warm: step time, tokens/s, MFU, memory, waiting for data (bench/train_step.py)
    graphs        graphs, recompiles and graph breaks in 20 steps; then the kernels that take longest
    ahead         seconds to the first step of an edit, with the caches of the trial before it, and after
                  --compile-ahead beside that trial; what this takes of that trial's speed, and of the GPU's memory
    scoring       what starts a model's process, part by part; a batch of logits and the losses of them; their kernels
    trial         30 s of training and the score, with logits through the device's memory and through the host's; from
                  the end of the clock to the exit; what the driver says of the GPU meanwhile
    night         loop.py itself, told no profile: data, baseline and one edit of `sweep`, to verdicts and git; all as
                  on a real night, but for 30 s of training instead of 300

All of it takes about 20 minutes on a GPU, `night` a quarter of that. It needs torch 2.11 or later, numpy,
psutil, safetensors; for `tests` also pytest and xdist; for `tests` and `night` git and the project's packages.
"""

import argparse
import ast
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
MINUTES = 23.0  # for all steps
TOLERANCE = 0.02  # of a kernel's output and gradients, relative to those of plain products, in bf16
COMPILED_TOLERANCE = 0.1  # of a parameter's gradient; nine blocks in bf16 on a CPU: at most 0.026
STEPS, PROFILED = 20, 3  # optimizer steps in which recompiles are counted, and that are profiled after them
TOP = 15  # kernels that are shown
GPU_ALONE = ("cudnn_attention", "flex_attention", "varlen_attention")  # kernels that a CPU has not, or not backward
SHARED = "BRING_UP_FOLDER"  # environment variable: a folder of all steps, so that the second trial starts warm
# What the sandbox is made of: functions of runner/keeper that can be left out, paths that can be opened again.
PARTS = ("restrict", "cut_off", "drop_privileges", "set_apart", "enter_namespaces")
DEVICE = [sys.executable, __file__, "--step", "device"]  # the command that is run in it
SHORTER = (  # what a shorter night replaces: file, text, by what. Less time to train, and as much as ever to compile
    ("prepare.py", 'Profile("gpu", 300.0,', 'Profile("gpu", 30.0,'),
    ("autoresearch/runner/progress.py", "max(120.0, budget)", "max(300.0, budget)"),
)
DEEPEST = 5  # folders deep in which is looked for what the sandbox would have to open


def on_gpu() -> bool:
    return os.environ.get("AUTORESEARCH_PROFILE") == "gpu"


def say(what: str, **figures: Any) -> None:
    """Print a result of a step, for the program that started it."""
    print(json.dumps({"what": what} | figures), flush=True)


# ----------------------------------------------------------------------------------------------
# Steps; each runs in a process of its own


def doctor() -> None:
    from autoresearch.doctor import examine

    examine({}, lambda found: say(found.name, status=found.status, said=found.said, next=found.next))


def sandbox() -> None:
    """Run `device` by itself, then as a trial runs; where that fails, with less and less in its way."""
    from autoresearch.runner import sandbox
    from autoresearch.runner.trial import trial_environment

    def tried(command: list[str], without: str = "", open_too: Sequence[str] = (), confined: bool = True):
        """The command as it ended. without: a part that is left out. open_too: paths that may be written to as well."""
        with tempfile.TemporaryDirectory() as folder:
            run, caches = Path(folder, "run"), Path(folder, "caches")
            for path in (run / "tmp", caches):
                path.mkdir(parents=True)
            write = [str(run), str(caches), *open_too]
            rules = {"read": [str(ROOT)], "write": write, "strict": True} if confined else None
            words = [*sandbox.launcher(rules), *command]
            if without:
                words = [sys.executable, __file__, "--confined", without, words[len(words) - len(command) - 1]]
            environment = trial_environment(Path(folder), caches, {})
            try:
                return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
            except subprocess.TimeoutExpired:
                return subprocess.CompletedProcess(words, 1, "", "no end within 60 s")

    def failed(what: str, **how: Any) -> str:
        """What goes wrong with `device`; empty where nothing does."""
        ended = tried(DEVICE, **how)
        lines = [line for line in (ended.stderr + ended.stdout).splitlines() if line.strip()]
        if not ended.returncode:
            say(**{**json.loads(ended.stdout.splitlines()[-1]), "what": what})
            return ""
        said = (lines or [f"exit code {ended.returncode}"])[-1][:300]
        say(what, fails=said)
        return said

    if said := failed("not confined", confined=False):
        raise SystemExit(f"not even outside of the sandbox: {said}")
    if not (method := sandbox.method()):
        return say("no sandbox here", why="there is neither Landlock nor a bubblewrap that works")
    if not (said := failed(f"confined by {method}")):
        return
    for part in PARTS if method == "Landlock" else ():
        failed(f"without {part}", without=part)
    probe = [sys.executable, __file__, "--step", "driver"] if on_gpu() else DEVICE
    needed = fewest_open(lambda paths: not tried(probe, open_too=paths).returncode)
    say("would have to be open" if needed else "opening files does not help", paths=" ".join(needed))
    raise SystemExit(f"in the sandbox as it is a trial would crash: {said}")


def fewest_open(works: Callable[[Sequence[str]], bool]) -> list[str]:
    """The fewest and deepest paths that have to be open: a folder gives way to what is in it where that is enough.

    Empty where it does not even work with all of them.
    """

    def within(folder: str) -> list[str]:
        if not os.path.isdir(folder) or (os.path.islink(folder) and folder != "/proc/self"):
            return []
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not name.isdigit()]  # processes

    paths = ["/"] if works(["/"]) else []
    for _ in range(DEEPEST if paths else 0):
        for path in list(paths):
            deeper = [other for other in paths if other != path] + within(path)
            if within(path) and works(deeper):
                paths = deeper
        without = [[other for other in paths if other != path] for path in paths]
        with ThreadPoolExecutor(8) as pool:
            spare = dict(zip(paths, pool.map(works, without), strict=True))
        needed = [path for path in paths if not spare[path]]
        if works(needed):
            paths = needed
            continue
        for path in filter(spare.get, list(paths)):  # two of them would do: one after the other
            rest = [other for other in paths if other != path]
            paths = rest if works(rest) else paths
    return paths


def confined(without: str, rules: str) -> None:
    """Run the step `device` below the keeper of the sandbox, with a part of it left out."""
    from autoresearch.runner.keeper import main as keeper

    setattr(keeper, without, lambda *arguments, **more: None)
    keeper.run(json.loads(rules), lambda: os.execv(DEVICE[0], DEVICE))


def driver() -> None:
    """Start the driver, without torch. Exits with its error."""
    sys.exit(ctypes.CDLL("libcuda.so.1").cuInit(0))


def device() -> None:
    """A product, and a compiled function forward and backward: CUDA's start, Triton, the C compiler, caches, ptxas."""
    began = time.perf_counter()
    import torch

    marks = {"import": time.perf_counter()}
    where = "cuda" if on_gpu() else "cpu"
    x = torch.ones(512, 512, device=where, dtype=torch.bfloat16, requires_grad=True)
    assert (x @ x).float().mean().item() == 512, "a product of matrices comes out wrong"
    marks["product"] = time.perf_counter()
    torch.compile(lambda x: (x.sin() * x.cos()).sum(), fullgraph=True)(x).backward()
    assert x.grad is not None and abs(x.grad.float().mean().item() - -0.416) < 0.01, "its gradient comes out wrong"
    marks["compile"] = time.perf_counter()
    starts = [began, *marks.values()]
    say("device", **{f"{name}_s": end - start for (name, end), start in zip(marks.items(), starts, strict=False)})


def tests() -> None:
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    words = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "gpu", "-q", "-rA", "--no-header", *files]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if on_gpu() and not re.search(r"\d+ passed", ended.stdout):
        raise SystemExit(f"no test ran: {ended.stdout.strip()[-500:]}")
    for line in ended.stdout.splitlines():
        if line.startswith(("PASSED", "FAILED", "ERROR", "SKIPPED")) or " in " in line[-12:]:
            say(line[:200])
    if ended.returncode:
        raise SystemExit((ended.stderr + ended.stdout).strip()[-1000:])


def kernel_names() -> list[str]:
    """The functions of train.py that take a window and return an attention."""
    tree = ast.parse((ROOT / "train.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [
        node.name
        for node in functions
        if node.name.endswith("_attention") and not node.name.startswith("choose") and len(node.args.args) == 1
    ]


def kernels(name: str) -> None:
    """One attention beside plain products: relative errors of output and gradients, time forward and backward."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    import train
    from prepare import MAX_SEQ_LEN

    wrong = []
    rows = 8
    if on_gpu():  # masked attention of 128 takes 7 GiB
        rows = 128 if torch.cuda.mem_get_info()[1] > 16 << 30 else 32
    shape = (rows, MAX_SEQ_LEN, train.HEADS, train.HEAD_DIM)
    dtype = torch.bfloat16 if train.BF16 else torch.float32
    torch.manual_seed(0)
    inputs = [torch.randn(shape, device=train.DEVICE, dtype=dtype, requires_grad=True) for _ in "qkv"]
    weights = torch.randn(shape, device=train.DEVICE, dtype=dtype)
    few = [x[:2].detach().requires_grad_() for x in inputs]  # plain products of all rows would fill the memory

    def there_and_back(attend: Callable, inputs: list = inputs) -> tuple:
        out = attend(*inputs)
        return (out.detach(), *torch.autograd.grad(out, inputs, weights[: len(out)]))

    def milliseconds(attend: Callable) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            there_and_back(attend)
            if on_gpu():
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - began))
        return median(times)

    for window in sorted({train.SHORT_WINDOW, MAX_SEQ_LEN}):
        try:
            attend = getattr(train, name)(window)
        except AssertionError:  # it is for other windows
            continue
        with sdpa_kernel(SDPBackend.MATH):
            expected = there_and_back(train.masked_attention(window), few)
        errors = [relative_error(got[:2], wanted) for got, wanted in zip(there_and_back(attend), expected, strict=True)]
        named = dict(zip(("out", "dq", "dk", "dv"), errors, strict=True))
        say(f"{name}, window {window}", rows=shape[0], **named, ms=milliseconds(attend))
        wrong += [f"window {window}: {errors}"] if not max(errors) < TOLERANCE else []
    if wrong:
        raise SystemExit(f"{name} is wrong here: {'; '.join(wrong)}")


def relative_error(got: Any, wanted: Any) -> float:
    """Of a tensor, relative to another one."""
    return ((got.float() - wanted.float()).norm() / wanted.float().norm()).item()


def compiled() -> None:
    """The compiled model beside itself uncompiled. A compiler that is wrong shows nowhere else: the scorer compiles
    nothing, and scores what wrong gradients made."""
    import torch

    import train
    from prepare import warmup_batch

    inputs, targets = warmup_batch(4, train.DEVICE)
    torch.manual_seed(0)
    model = train.build_model()
    with torch.no_grad():
        for parameter in model.parameters():  # the outputs of a new block are zero: nothing would be seen
            parameter.add_(0.02 * torch.randn_like(parameter))

    def results() -> dict[str, Any]:
        loss = model.loss(model.hidden(inputs), targets)
        names, parameters = zip(*model.named_parameters(), strict=True)
        return {"loss": loss.detach(), **dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))}

    expected = results()
    model.compile()
    errors = {name: relative_error(got, expected[name]) for name, got in results().items()}
    worst = max(errors, key=lambda name: errors[name])
    say("the model", loss=errors["loss"], gradients=median(errors.values()), worst=errors[worst], worst_of=worst)
    if not all(value < COMPILED_TOLERANCE for value in errors.values()):
        raise SystemExit(f"what is compiled is wrong here: {errors}")


def train_step() -> None:
    import train_step

    seconds = 15.0 if on_gpu() else 2.0
    with tempfile.TemporaryDirectory() as caches:
        for name, length in (("cold", 2.0), ("warm", seconds)):
            figures = train_step.measure(ROOT / "train.py", None, Path(caches), length, "random")
            if isinstance(figures, str):
                raise SystemExit(f"{name}: {figures}")
            say(name, **figures)


def ahead() -> None:
    """What --compile-ahead gains: the start of an edit; and what it costs: speed and memory of the trial beside it."""
    import train_step

    from autoresearch import compile_ahead

    seconds = 15.0 if on_gpu() else 2.0
    shipped = ROOT / "train.py"
    with tempfile.TemporaryDirectory() as top:
        edited, left, filled = Path(top, "train.py"), Path(top, "left"), Path(top, "filled")
        text = shipped.read_text()
        edited.write_text(text.replace("MLP_RATIO = 4 ", "MLP_RATIO = 3 "))
        assert edited.read_text() != text, "train.py has no MLP_RATIO of 4 to be edited"

        def measured(what: str, file: Path, caches: Path, length: float) -> None:
            looks, ended = [0.0], threading.Event()
            looking = threading.Thread(target=look_at_memory, args=(looks, ended))
            looking.start()
            figures = train_step.measure(file, None, caches, length, "random")
            ended.set()
            looking.join()
            if isinstance(figures, str):
                raise SystemExit(f"{what}: {figures}")
            say(what, first_step_s=figures["startup"], step_ms=figures["step_ms"], gpu_memory_mb=max(looks))

        measured("as shipped, cold", shipped, left, 2.0)
        shutil.copytree(left, filled)
        measured("as shipped, warm", shipped, filled, seconds)
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(filled / "inductor"), "TRITON_CACHE_DIR": str(filled / "triton")}
        began = time.perf_counter()
        compiling = subprocess.Popen(
            [sys.executable, compile_ahead.__file__, str(edited)],
            env={**os.environ, **caches, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.setpriority(os.PRIO_PROCESS, compiling.pid, 19)
        ended: list = []
        waiting = threading.Thread(target=lambda: ended.extend((*compiling.communicate(), time.perf_counter() - began)))
        waiting.start()
        measured("the same, beside compiling ahead", shipped, filled, 3 * seconds)
        waiting.join()
        if compiling.returncode:
            raise SystemExit(f"compiling ahead: {ended[0]}")
        say("compiling ahead", said=ended[0].strip().splitlines()[-1], seconds=ended[-1])
        measured("an edit", edited, left, 2.0)
        measured("an edit, compiled ahead", edited, filled, 2.0)


def look_at_memory(looks: list[float], ended: threading.Event) -> None:
    """Note what is taken of the first GPU's memory, in MB, until `ended`."""
    words = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    while on_gpu() and not ended.wait(1.0):
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
            looks.append(float(subprocess.run(words, capture_output=True, text=True, timeout=20).stdout))


def graphs() -> None:
    """Count what is compiled while train.py trains, then profile it. Ends its process."""
    import runpy

    import torch
    import train_step
    from torch._dynamo.utils import counters

    import prepare

    def figures() -> dict[str, Any]:
        return {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}

    profiler = torch.profiler.profile()
    marks: dict[str, Any] = {"batches": 0}
    handed_out = prepare.TrainBatches.__next__

    def counted(batches: prepare.TrainBatches):
        batch_tokens = sys.modules["__main__"].__dict__["BATCH_TOKENS"]  # of train.py
        micro_batches = max(1, batch_tokens // (batches.batch_size * prepare.MAX_SEQ_LEN))
        step, rest = divmod(marks["batches"], micro_batches)
        marks["batches"] += 1
        if not rest and step == 0:
            marks["first"] = figures()
        if not rest and step == STEPS:
            now = figures()
            say(f"{STEPS} steps", recompiles=now["graphs"] - marks["first"]["graphs"], **now)
            synchronize()
            marks["began"] = time.perf_counter()
            profiler.start()
        if not rest and step == STEPS + PROFILED:
            synchronize()
            profiler.stop()
            say_profile(profiler, time.perf_counter() - marks["began"])
            raise StopIteration
        return handed_out(batches)

    def synchronize() -> None:
        if on_gpu():
            torch.cuda.synchronize()

    prepare.TrainBatches.__next__ = counted
    train_step.stand_in(300.0, "random", lambda *arguments, **more: os._exit(0))
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def say_profile(profiler: Any, seconds: float, each: str = "step") -> None:
    """The kernels that take longest, of PROFILED steps or batches; on a CPU the operations."""
    from torch.autograd import DeviceType

    kind, time_of = (DeviceType.CUDA, "self_device_time_total") if on_gpu() else (DeviceType.CPU, "self_cpu_time_total")
    events = [event for event in profiler.key_averages() if event.device_type == kind]
    events = [event for event in events if not getattr(event, "is_user_annotation", False)]
    took = sorted(((getattr(event, time_of) / 1e6, event) for event in events), key=lambda pair: -pair[0])
    total = sum(spent for spent, _ in took)
    took_ms = {f"{each}_ms": 1000 * seconds / PROFILED}
    say(f"{PROFILED} times a {each}, profiled", **took_ms, busy_percent=100 * total / seconds)
    for spent, event in took[:TOP]:
        say(event.key[:70], ms=1000 * spent / PROFILED, percent=100 * spent / total, calls=event.count / PROFILED)


def scoring() -> None:
    """Where scoring spends its time: a model's process before its first answer; a batch of logits and their losses."""
    began, marks = time.perf_counter(), {}

    def mark(name: str) -> None:
        synchronize()
        marks[name] = time.perf_counter()

    def synchronize() -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def milliseconds(work: Callable[[], Any]) -> float:
        began = time.perf_counter()
        work()
        synchronize()
        return 1000 * (time.perf_counter() - began)

    import torch

    mark("torch")
    import torch._dynamo

    mark("dynamo")
    torch.zeros(1, device="cuda" if on_gpu() else "cpu")
    mark("context")
    import numpy as np

    import train
    from prepare import MAX_SEQ_LEN, PROFILE, losses_of, scored_batch_size

    mark("train_py")
    for window in (train.SHORT_WINDOW, MAX_SEQ_LEN):
        train.attention(window)
        mark(f"attention_{window}")
    model = train.build_model().eval()
    mark("model")
    starts = [began, *marks.values()]
    say("a process", **{f"{name}_s": end - start for (name, end), start in zip(marks.items(), starts, strict=False)})

    count = scored_batch_size(PROFILE)
    rows = np.random.default_rng(0).integers(PROFILE.vocab_size, size=(count, MAX_SEQ_LEN + 1), dtype=np.uint16)
    ids = torch.from_numpy(rows[:, :-1].astype(np.int64))
    shared = torch.empty(*ids.shape, PROFILE.vocab_size, device=train.DEVICE)

    def logits() -> None:
        with torch.inference_mode():
            shared.copy_(model(ids.to(train.DEVICE)))

    class Scored:
        batch_size, device = count, str(train.DEVICE)

        def logits(self, ids: torch.Tensor) -> torch.Tensor:
            return shared

    def losses() -> None:
        losses_of(Scored(), rows)

    figures: dict[str, float] = {"first_ms": milliseconds(logits)}
    for work in (logits, losses):
        figures[f"{work.__name__}_ms"] = median([milliseconds(work) for _ in range(10)])
    say("a batch", rows=count, **figures)
    with torch.profiler.profile() as profiler:
        took = sum(milliseconds(work) for work in [logits, losses] * PROFILED)
    say_profile(profiler, took / 1000, "batch")


def trial(shared_by: str) -> None:
    """A whole trial as the loop runs it, on random tokens: confined, with the referee, its clock and its score."""
    import asyncio

    from autoresearch.runner import Job
    from autoresearch.runner import sandbox as confinement
    from autoresearch.runner.trial import Trial, trial_environment
    from autoresearch.task import Facts, Task

    budget = 30.0 if on_gpu() else 3.0
    play = f"python {__file__} --play {budget} {shared_by}"
    task = Task(
        editable=("train.py",),
        train=f"{play} train.py",
        score=f"{play} -m autoresearch.referee score --wait --train train.py",
        metric="val_bpb",
        referee=True,
        time_limit=300.0,  # a slow card with one compiling thread takes minutes
        score_limit=300.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        cache, made = Path(folder, "cache"), Path(folder, ".autoresearch/bring-up/trials/1")  # as in a run
        settings = {"AUTORESEARCH_CACHE": str(cache), "AUTORESEARCH_SEED": "42"}
        os.environ |= settings
        tokens = random_game(cache, share=8 if shared_by == "host" and on_gpu() else 1)
        caches = Path(os.environ[SHARED], "caches")
        warm = caches.exists()
        environment = trial_environment(made, caches, settings)
        confine = {"readable": [], "hidden": [str(cache)]} if confinement.method() else None
        job = Job(shared_by, {}, 42)
        facts = Facts(time_budget=budget, profile="gpu" if on_gpu() else None, most_taken=0.05)
        arguments = (task, job, facts, ROOT, made, environment, confine)

        async def run():
            seen = asyncio.create_task(asyncio.to_thread(watch_gpu, ended)) if on_gpu() else None
            try:
                return await Trial(*arguments, changed=list, tell=lambda phase: None).run()
            finally:
                ended.set()
                if seen:
                    say("the GPU meanwhile", **await seen)

        ended = threading.Event()
        measured = asyncio.run(run())
        logs = "\n".join(path.read_text()[-1500:] for path in sorted(made.glob("*.log")))
        if measured.score is None:
            raise SystemExit(f"{measured.reason}\n{logs}")
        by = next((line for line in logs.splitlines() if line.startswith("logits through")), "logits through the host")
        line = json.loads((made / "run/figures.json").read_text())["timeline"]
        figures = {name: measured.figures.get(name) for name in ("num_steps", "mfu_percent", "peak_vram_mb")}
        say(by, val_bpb=measured.score, score_s=measured.seconds["score"], scored_tokens=tokens, **figures)
        spent = json.loads(re.findall(r"SPENT (.*)", logs)[-1])
        parts = {"gpu_started": spent["start_device"], "both_models_built": spent["load"], "logits": spent["logits"]}
        parts |= {"losses": spent["losses_of"] - spent["logits"], "both_ended": spent["end"]}
        rest = measured.seconds["score"] - sum(parts.values())
        say("of the score", rows=int(spent["rows"]), **parts, rest=rest)
        say("of the machine, others", share=measured.taken, by=measured.taken_by)
        starts = {"import": line["imported"], "build": line["built"] - line["imported"]}
        say(f"before the clock, {'warm' if warm else 'cold'}", **starts, compile=line["clock"] - line["built"])
        ends = {"device": line["finished"] - line["ended"], "saving": line["saved"] - line["finished"]}
        left = measured.seconds["train"] - line["saved"]
        say("after the clock", **ends, exit=left, in_all=measured.seconds["train"] - line["ended"])


def night() -> None:
    """Two experiments of loop.py in a copy of the repository; on a GPU with a shorter training, and a start as long."""
    with tempfile.TemporaryDirectory() as top:
        copy = Path(top, "copy")
        left_out = shutil.ignore_patterns(
            ".[!g]*", ".git", "__pycache__", "shared", "*.jsonl", "results.tsv", "uv.lock"
        )
        shutil.copytree(ROOT, copy, ignore=left_out)
        environment = {**os.environ, "AUTORESEARCH_CACHE": str(Path(top, "cache"))}
        if on_gpu():
            del environment["AUTORESEARCH_PROFILE"]  # it is to find the GPU by itself
            for name, text, by in SHORTER:
                (copy / name).write_text((copy / name).read_text().replace(text, by))
        for words in ("init -q", "add -A", "-c user.name=me -c user.email=me@example.org commit -qm all"):
            subprocess.run(["git", *words.split()], cwd=copy, check=True, capture_output=True)
        command = [sys.executable, "loop.py", "--agent", "sweep", "--experiments", "2", "--baseline-runs", "1"]
        command += ["--data", "sotu", "--tag", "night", "--plain"]
        ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        journal = copy / ".autoresearch/night/journal.jsonl"
        events = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
        for event in events:
            match event["event"]:
                case "game":
                    say("begun", **{name: event["facts"][name] for name in ("device", "profile", "data")})
                case "rerun":
                    say(f"experiment {event['number']} runs again", why=event["reason"])
                case "measured":
                    say(f"experiment {event['number']}, its trial", taken=event["taken"], by=event["taken_by"])
                case "verdict":
                    seconds = {f"{name}_s": value for name, value in event["seconds"].items()}
                    said = {"status": event["status"], "why": event["reason"], "val_bpb": event["score"]}
                    say(f"experiment {event['number']}", **said, holdout=event["holdout"], **seconds)
        if ended.returncode or sum(event["event"] == "verdict" for event in events) < 2:
            logs = "\n".join(path.read_text()[-1500:] for path in sorted(journal.parent.glob("trials/*/*.log")))
            raise SystemExit(f"exit code {ended.returncode}\n{(ended.stdout + ended.stderr)[-3000:]}\n{logs[-3000:]}")


def watch_gpu(ended: threading.Event) -> dict[str, Any]:
    """What the driver says of the first GPU until `ended`, the lowest and the highest: could one tell from it that
    something else slowed a trial down? Also which processes it names; the trial's own has ended by then.
    """
    asked = ("clocks.sm", "clocks.max.sm", "power.draw", "temperature.gpu", "utilization.gpu")
    seen: dict[str, list[float]] = {name: [] for name in asked}
    reasons, users, took = set(), set(), []

    def query(kind: str, names: Sequence[str]) -> list[list[str]]:
        words = ["nvidia-smi", "--id=0", f"--query-{kind}={','.join(names)}", "--format=csv,noheader,nounits"]
        told = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
        return [line.split(", ") for line in told.splitlines()]

    try:
        while not ended.wait(3.0):
            began = time.perf_counter()
            *values, reason = query("gpu", (*asked, "clocks_event_reasons.active"))[0]
            took.append(time.perf_counter() - began)
            for name, value in zip(asked, values, strict=True):
                with contextlib.suppress(ValueError):  # `[N/A]`
                    seen[name].append(float(value))
            reasons.add(reason)
            users |= {tuple(line) for line in query("compute-apps", ("pid", "used_memory"))}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"error": str(error)}
    ranges = {name: f"{min(values):g} to {max(values):g}" for name, values in seen.items() if values}
    return ranges | {
        "clocks_event_reasons": sorted(reasons),
        "processes": len(users),
        "a_look_s": median(took or [0.0]),
    }


def random_game(cache: Path, share: int) -> int:
    """Random tokens in place of prepared text, as autoresearch/data would leave it. Returns the tokens to score.

    share: of the rows that are scored in the game, every how many are made.
    """
    import dataclasses

    import numpy as np

    from prepare import GAME

    generator, sizes, folder = np.random.default_rng(0), GAME.profile, cache / f"sotu-{GAME.profile.name}"
    folder.mkdir(parents=True)
    rows = {"train": 4096, "val": sizes.scored_tokens // sizes.max_seq_len // share, "holdout": 64, "spare": 512}
    for split, count in rows.items():
        tokens = generator.integers(0, sizes.vocab_size, (count, sizes.max_seq_len + 1), dtype=np.uint16)
        (folder / f"{split}.bin").write_bytes(tokens.tobytes())
    np.save(folder / "token_bytes.npy", np.ones(sizes.vocab_size, np.int32))
    manifest = {
        "format": GAME.FORMAT,
        "profile": dataclasses.asdict(sizes),
        "source": {"name": "random tokens"},
        "splits": {split: {"rows": count} for split, count in rows.items()},
        "files": {path.name: {"bytes": path.stat().st_size} for path in folder.iterdir()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return rows["val"] * sizes.max_seq_len


def play(budget: float, shared_by: str, words: list[str]) -> None:
    """Run a script or a module of the game as it is, but with another time budget, and logits through `shared_by`."""
    import dataclasses
    import runpy

    module = words[0] == "-m"
    if not module:
        import torch  # noqa: F401  (as train.py does, before prepare notes that everything is imported)
    import prepare
    from autoresearch.referee import models, score, shared

    prepare.PROFILE = dataclasses.replace(prepare.PROFILE, time_budget=budget)
    prepare.GAME = dataclasses.replace(prepare.GAME, profile=prepare.PROFILE)
    prepare.TIME_BUDGET = budget
    original = shared.device_memory

    def noted(*arguments):
        if shared_by == "host":
            raise OSError("the host's is asked for")
        memory = original(*arguments)
        print("logits through the device's memory", flush=True)
        return memory

    shared.device_memory = noted

    def timed(owner: Any, name: str) -> None:
        """Count the seconds that the referee spends in a function; all are printed when a model's process ends."""
        function = getattr(owner, name)

        def called(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent[name] += time.perf_counter() - began
                if name == "losses_of":
                    spent["rows"] += len(arguments[1])
                if name == "end":
                    print(f"SPENT {json.dumps(spent)}", flush=True)

        setattr(owner, name, called)

    spent = dict.fromkeys(("start_device", "load", "logits", "losses_of", "end", "rows"), 0.0)
    for name in ("load", "logits", "end"):
        timed(models.ModelProcess, name)
    for name in ("start_device", "losses_of"):
        timed(score, name)
    sys.argv = words[module:]
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


FUNCTIONS = {
    function.__name__: function
    for function in (
        doctor,
        sandbox,
        device,
        driver,
        tests,
        kernels,
        compiled,
        train_step,
        graphs,
        ahead,
        scoring,
        trial,
        night,
    )
}


# ----------------------------------------------------------------------------------------------
# All of them, one after the other


def steps() -> list[tuple[str, list[str], float]]:
    """(Name, arguments, seconds that it may take.)"""
    return [
        ("doctor", [], 90.0),
        ("sandbox", [], 240.0),
        ("tests", [], 150.0),
        *(("kernels", [name], 75.0) for name in kernel_names() if on_gpu() or name not in GPU_ALONE),
        ("compiled", [], 180.0),
        ("train_step", [], 180.0),
        ("graphs", [], 120.0),
        ("ahead", [], 420.0),
        ("scoring", [], 120.0),
        *(("trial", [shared_by], 400.0) for shared_by in (("handle", "host") if on_gpu() else ("host",))),
        ("night", [], 600.0),
    ]


def run_step(name: str, arguments: list[str], limit: float, note: Callable[[dict], None]) -> bool:
    """Run a step, and note its results as they come. Whether it went well."""
    began, over = time.monotonic(), []
    process = subprocess.Popen(
        [sys.executable, __file__, "--step", name, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def end() -> None:
        over.append(True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, end)
    timer.start()
    printed = []
    for line in process.stdout or ():
        try:
            note({"step": name, **json.loads(line)})
        except (ValueError, TypeError):
            printed = [*printed[-30:], line.rstrip()]
    code = process.wait()
    timer.cancel()
    seconds = time.monotonic() - began
    if not code:
        note({"step": name, "what": "done", "seconds": seconds})
        return True
    why = f"ended after {limit:.0f} s" if over else f"exit code {code}"
    note({"step": name, "what": "FAILED", "why": " ".join([why, *arguments]), "seconds": seconds, "printed": printed})
    return False


def in_words(result: dict) -> str:
    """A result as a line, and what else there is to say below it."""

    def shown(name: str, value: Any) -> str:
        if isinstance(value, str):
            return f"fails: {value}" if name == "fails" else value
        return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"

    elsewhere = ("step", "what", "printed", "next")
    figures = [shown(*item) for item in result.items() if item[0] not in elsewhere and item[1] not in ("", None)]
    below = [f"next: {result['next']}"] if result.get("next") else result.get("printed", [])
    return f"\n{'':<14}".join([f"{result['step']:<12}{result['what']:<33} {', '.join(figures)}".rstrip(), *below])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(name for name in FUNCTIONS if name not in ("device", "driver")))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STEP", help="the steps to do")
    parser.add_argument("--output", type=Path, default=Path("bring_up.jsonl"), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all steps (default: %(default)g)")
    for hidden in ("--step", "--play", "--confined"):
        parser.add_argument(hidden, nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        return FUNCTIONS[arguments.step[0]](*arguments.step[1:])
    if arguments.play:
        return play(float(arguments.play[0]), arguments.play[1], arguments.play[2:])
    if arguments.confined:
        return confined(*arguments.confined)
    import prepare

    gpu = prepare.cuda_device_name()
    os.environ |= {"AUTORESEARCH_PROFILE": "gpu" if gpu else "test", "AUTORESEARCH_DATA": "sotu"}
    if not gpu:  # what runs is what counts then: other programs on the machine must not hold it up
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    deadline = time.monotonic() + 60 * arguments.minutes
    failed = []
    with open(arguments.output, "w") as file, tempfile.TemporaryDirectory() as shared:
        os.environ[SHARED] = shared

        def note(result: dict) -> None:
            print(in_words(result), flush=True)
            file.write(json.dumps(result) + "\n")
            file.flush()

        note({"step": "machine", "what": gpu or "NO GPU: only what a CPU can do, at the sizes of the `test` profile"})
        for name, words, limit in steps():
            left = deadline - time.monotonic()
            if name not in arguments.only:
                continue
            if left < 10:
                note({"step": name, "what": "not done: the time is over"})
                failed.append(name)
            elif not run_step(name, words, min(limit, left), note):
                failed.append(" ".join([name, *words]))
    print(f"\n{arguments.output}: " + (f"failed: {', '.join(failed)}" if failed else "all went well"))
    if not gpu:
        print("There is no GPU here: nothing of this says how the `gpu` profile does.")
    sys.exit(1 if failed or not gpu else 0)


if __name__ == "__main__":
    main()
