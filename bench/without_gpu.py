"""The whole step of the `gpu` profile where there is no GPU: compiled to kernels of an H200, never launched.

    uv run bench/without_gpu.py             # train.py as it ships; one to three minutes
    uv run bench/without_gpu.py 512 640     # at these widths
    uv run bench/without_gpu.py --card 4090 # for another card: sizes as on it, kernels for it
    uv run bench/without_gpu.py --ahead     # only: what --compile-ahead leaves for another process
    uv run bench/without_gpu.py --scoring   # only: what a batch of scoring reads and writes; ten seconds

train.py runs in its full size on tensors that have a shape and no numbers, and its graphs go through Dynamo, Inductor,
Triton and ptxas. Prints, and ends with exit code 1 if one of them is not so: a preflight passes; no graph breaks; each
kernel fits into the card's shared memory; what lies between forward and backward pass agrees with `token_bytes` of
train.py; varlen attention gets no float32. Prints besides, and judges not, what is saved and how much a step computes
and moves.

It cannot see wrong numbers, what cuBLAS and cuDNN say, or any time. It leans on private names of torch 2.15 and Triton
3.9, needs g++, and is for whoever changes the GPU's path: no test that every machine passes.
"""

import argparse
import collections
import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Cards: capability, multiprocessors, GiB, bytes of shared memory that a block may have, threads of a multiprocessor,
# MB of second-level cache (CUDA's programming guide, the cards' data sheets).
CARDS = {
    "NVIDIA H200": (9, 0, 132, 140.4, 232_448, 2048, 60),
    "NVIDIA A100-SXM4-40GB": (8, 0, 108, 39.4, 166_912, 2048, 40),
    "NVIDIA GeForce RTX 3090": (8, 6, 82, 23.7, 101_376, 1536, 6),
    "NVIDIA GeForce RTX 4090": (8, 9, 128, 23.5, 101_376, 1536, 72),
    "NVIDIA GeForce RTX 5090": (12, 0, 170, 31.4, 101_376, 1536, 96),
    "NVIDIA B200": (10, 0, 148, 178.4, 232_448, 2048, 126),
}


def card_named(name: str) -> types.SimpleNamespace:
    """What torch says of a card."""
    major, minor, multiprocessors, gib, shared, threads, cache = CARDS[name]
    return types.SimpleNamespace(
        name=name,
        major=major,
        minor=minor,
        multi_processor_count=multiprocessors,
        warp_size=32,
        total_memory=int(gib * 2**30),
        regs_per_multiprocessor=65_536,
        max_threads_per_multi_processor=threads,
        max_threads_per_block=1024,
        shared_memory_per_block=49_152,
        shared_memory_per_block_optin=shared,
        shared_memory_per_multiprocessor=shared + 1024,
        L2_cache_size=cache << 20,
        is_integrated=0,
        is_multi_gpu_board=0,
        gcnArchName="",
        clock_rate=1_980_000,
        memory_clock_rate=2_619_000,
        memory_bus_width=6144,
    )


class NoGuard(contextlib.ContextDecorator):
    """In the place of what switches devices."""

    idx = prev_idx = 0

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def pretend(shim: Path) -> types.SimpleNamespace:
    """Make torch and Triton believe that device 0 is the card that CARD names. Returns what they are told of it."""
    import torch
    import triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._subclasses.fake_tensor import FakeTensorMode
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver

    card = card_named(os.environ["CARD"])
    capability = card.major, card.minor
    stream = types.SimpleNamespace(cuda_stream=0, device=torch.device("cuda", 0), device_index=0)
    answers = {
        "is_available": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": card,
        "get_device_capability": capability,
        "get_device_name": card.name,
        "mem_get_info": (int(0.97 * card.total_memory), card.total_memory),
        "current_stream": stream,
        "is_initialized": False,
        "is_current_stream_capturing": False,
        **dict.fromkeys(("set_device", "synchronize", "_lazy_init", "set_rng_state"), None),
        **dict.fromkeys(("_exchange_device", "_maybe_exchange_device"), 0),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        if hasattr(CudaInterface, name):
            setattr(CudaInterface, name, staticmethod(getattr(torch.cuda, name)))
    torch.cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.device = torch.cuda._DeviceGuard = CudaInterface.device = NoGuard
    CudaInterface.exchange_device = CudaInterface.maybe_exchange_device = staticmethod(lambda device: 0)
    CudaInterface.get_raw_stream = staticmethod(lambda device: 0)
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    FakeTensorMode.avoid_device_init = property(lambda mode: True)
    torch._C._ensureCUDADeviceGuardSet()
    ctypes.CDLL(str(shim)).device_is_there()

    class Driver(CudaDriver):
        def __init__(self):
            limits = {
                "max_shared_mem": card.shared_memory_per_block_optin,
                "max_num_regs": card.regs_per_multiprocessor,
                "multiprocessor_count": card.multi_processor_count,
                "warpSize": card.warp_size,
            }
            self.utils = types.SimpleNamespace(get_device_properties=lambda device: limits)
            self.get_current_device = self.get_current_stream = lambda *_: 0
            self.get_device_capability = lambda *_: capability

        def get_current_target(self):
            return GPUTarget("cuda", 10 * card.major + card.minor, card.warp_size)

    triton.runtime.driver._default = triton.runtime.driver._active = Driver()
    return card


class Compiler:
    """A backend of torch.compile that compiles each graph as Inductor does, and then runs it on fake tensors."""

    def __init__(self):
        import torch._inductor.config as inductor
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner, StaticTritonCompileResult
        from torch._inductor.scheduler import Scheduler

        self.kernels: list[tuple[str, int]] = []  # name, bytes of shared memory
        self.graphs: list[dict] = []  # of each: calls, flops, bytes, saved (tensors that it makes, by storage)
        inductor.force_disable_caches = True
        inductor.compile_threads = 1
        inductor.triton.autotune_pointwise = False  # one configuration of each: half the time
        inductor.shape_padding = inductor.joint_graph_constant_folding = False  # both would launch
        seen, codegen = self, Scheduler.codegen

        def collect(autotuner):
            for result in autotuner.compile_results:
                seen.kernels.append((autotuner.inductor_meta["kernel_name"], result.kernel.metadata.shared))
            autotuner.launchers = [None]

        def count(scheduler):
            graph = seen.graphs[-1]
            graph["bytes"] += sum(node.get_read_write_buffers_sizes() for node in scheduler.nodes)
            graph["flops"] += sum(node.estimate_flops() or 0 for node in scheduler.nodes)
            return codegen(scheduler)

        StaticTritonCompileResult.can_statically_launch = staticmethod(lambda *_, **__: None)
        CachingAutotuner._make_launchers = collect
        CachingAutotuner._dynamic_scale_rblock = lambda autotuner: None
        Scheduler.codegen = count

    def __call__(self, graph, inputs):
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph, inputs, inner_compile=self.compile)

    def compile(self, graph, inputs, **options):
        import torch
        from torch._inductor.compile_fx import compile_fx_inner

        facts = {"calls": 0, "flops": 0, "bytes": 0, "saved": {}}
        self.graphs.append(facts)
        before, began = len(self.kernels), time.perf_counter()
        result = compile_fx_inner(graph, inputs, **options)
        kernels, seconds = len(self.kernels) - before, time.perf_counter() - began
        print(f"  graph {len(self.graphs)}: {kernels} kernels, {seconds:.0f} s", flush=True)

        def run(arguments):
            facts["calls"] += 1
            mode = next(a.fake_mode for a in arguments if hasattr(a, "fake_mode"))
            given = {a.untyped_storage()._cdata for a in arguments if isinstance(a, torch.Tensor)}
            with mode:
                out = torch.fx.Interpreter(graph).run(*arguments)
            if not options.get("is_backward"):
                new = [x for x in out if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in given]
                facts["saved"] = {x.untyped_storage()._cdata: x for x in new}
            return out

        result.current_callable = run
        return result


def rehearse(shim: Path) -> bool:
    """What a preflight does with train.py on a machine with a GPU. Whether it finds it in order."""
    pretend(shim)
    from autoresearch import preflight

    began = time.monotonic()
    reason = preflight.rehearse(ROOT / "train.py", fake=True)
    print(f"  {'WRONG' if reason else 'ok':<7}rehearsed in {time.monotonic() - began:.1f} s: {reason or 'in order'}")
    return not reason


def ahead(shim: Path) -> bool:
    """What --compile-ahead does, with the settings of a trial. Whether all is compiled, or found if it was before."""
    pretend(shim)
    from autoresearch import compile_ahead

    filled = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"], "fxgraph").exists()
    began = time.monotonic()
    found = compile_ahead.compile_ahead(str(ROOT / "train.py"))
    misses, hits = found["fxgraph_cache_miss"], found["fxgraph_cache_hit"]
    right = bool(hits and not misses if filled else misses)
    seconds = time.monotonic() - began
    print(f"  {'ok' if right else 'WRONG':<7}{misses} graphs compiled, {hits} found in the cache: {seconds:.0f} s")
    return right


def trace(width: int | None, shim: Path) -> bool:
    """Run, compile and count the step. Whether all is as it should be."""
    card = pretend(shim)
    import torch
    import torch.nn.attention.varlen as varlen
    from torch._dynamo.utils import counters
    from torch._subclasses.fake_tensor import FakeTensorMode

    verdicts = []

    def claim(text: str, holds: bool) -> None:
        print(f"  {'ok' if holds else 'WRONG':<7}{text}", flush=True)
        verdicts.append(holds)

    def model_with(windowed):
        train.attention.cache_clear()
        full = train.cudnn_attention if (card.major, card.minor) == (9, 0) else train.masked_attention
        train.choose_attention = lambda window: full if window >= train.MAX_SEQ_LEN else getattr(train, windowed)
        return train.build_model()

    compiler, dtypes, attend = Compiler(), set(), varlen.varlen_attn

    def watched(q, k, v, *rest, **options):
        dtypes.update(str(x.dtype) for x in (q, k, v))
        return attend(q, k, v, *rest, **options)

    varlen.varlen_attn = watched
    with FakeTensorMode(), torch.autograd.set_multithreading_enabled(False):
        import train

        if width:
            train.WIDTH, train.HEADS = width, width // train.HEAD_DIM
        train.COMPILE = {**train.COMPILE, "backend": compiler}
        rows = train.choose_micro_batch()
        print(f"{card.name}: {train.DEPTH} blocks, width {train.WIDTH}, {rows} rows of {train.MAX_SEQ_LEN} tokens")
        idx = torch.zeros(rows, train.MAX_SEQ_LEN, dtype=torch.int64, device="cuda")

        model = model_with("varlen_attention")  # eager: its kernels are not Triton's
        model.loss(model.hidden(idx), idx).backward()
        claim(f"varlen attention gets {', '.join(sorted(dtypes))}", dtypes == {"torch.bfloat16"})

        model = model_with("flex_attention")
        model.compile()
        model.loss(model.hidden(idx), idx).backward()
        saved = collections.Counter()
        for graph in compiler.graphs:
            for x in graph["saved"].values():
                kind = str(x.dtype).removeprefix("torch."), tuple(x.shape)
                saved[kind] += graph["calls"] * x.untyped_storage().nbytes() / idx.numel()
        for (dtype, shape), size in saved.most_common(8):
            print(f"         {size:>7,.0f} bytes a token saved: {dtype} {list(shape)}")
        traced = sum(saved.values()) + 2 * train.VOCAB_SIZE  # the gradient of the logits, bf16
        estimate = train.token_bytes()
        claim(f"a token takes {traced:,.0f} bytes, estimated {estimate:,}", traced <= estimate <= 1.2 * traced)

        adamw, muon = train.build_optimizers(model)
        adamw.step()
        muon.step(0.01, 0.9, 0.1)
    breaks = sum(counters["graph_break"].values())
    claim(f"{breaks} graph breaks in {len(compiler.graphs)} graphs", not breaks)
    name, shared = max(compiler.kernels, key=lambda kernel: kernel[1])
    most = card.shared_memory_per_block_optin
    text = f"{len(compiler.kernels)} kernels take at most {shared:,} of {most:,} bytes of shared memory ({name})"
    claim(text, shared <= most)
    flops, moved = (sum(graph["calls"] * graph[key] for graph in compiler.graphs) for key in ("flops", "bytes"))
    print(f"         a step: {flops / 1e12:.1f} TFLOP of products, {moved / 1e9:.0f} GB read and written")
    return all(verdicts)


def scoring(shim: Path) -> bool:
    """What a batch costs while it is scored: the model as it is, not compiled, and the arithmetic on its logits."""
    card = pretend(shim)
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Traffic(TorchDispatchMode):
        """Counts operations that are no views, and what they read and write."""

        calls = size = 0

        def __torch_dispatch__(self, operation, types, arguments=(), options=None):
            out = operation(*arguments, **(options or {}))
            given, made = ([x for x in tree_leaves(y) if isinstance(x, torch.Tensor)] for y in (arguments, out))
            known = {x.untyped_storage()._cdata for x in given}
            if operation in (torch.ops.aten.embedding.default, torch.ops.aten.gather.default):  # read what they give
                given = made
            if operation is torch.ops.aten.copy_.default:  # does not read what it overwrites
                given = given[1:]
            given = {id(x): x for x in given}.values()  # a product with itself reads it once
            if operation._schema.is_mutable or any(x.untyped_storage()._cdata not in known for x in made):
                self.calls += 1
                self.size += sum(x.numel() * x.element_size() for x in (*given, *made))
            return out

    # With `no_grad`: `inference_mode` hides what operations such as `square` are made of, and so their autocast.
    with FakeTensorMode(), torch.no_grad():
        import train
        from prepare import PROFILE, cross_entropy, scored_batch_size

        full = train.cudnn_attention if (card.major, card.minor) == (9, 0) else train.masked_attention
        train.choose_attention = lambda window: full if window >= train.MAX_SEQ_LEN else train.varlen_attention
        model, rows = train.build_model(), scored_batch_size(PROFILE)
        idx = torch.zeros(rows, train.MAX_SEQ_LEN, dtype=torch.int64, device="cuda")
        given, shared = (torch.empty(*idx.shape, train.VOCAB_SIZE, device="cuda") for _ in range(2))
        x = model.hidden(idx)

        def losses() -> None:
            for row, wanted in zip(shared, idx, strict=True):
                cross_entropy(row.to(copy=True), wanted)

        print(f"{card.name}: {train.DEPTH} blocks, {rows} rows at a time; operations, and bytes a token that they move")
        works = {"blocks": lambda: model.hidden(idx), "head": lambda: model.logits(x)}
        works |= {"logits to the referee": lambda: shared.copy_(given), "losses": losses}
        for name, work in works.items():
            with Traffic() as traffic:
                work()
            print(f"         {name:<22}{traffic.calls:>6}{traffic.size / idx.numel():>12,.0f}")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("widths", nargs="*", type=int, metavar="WIDTH", help="multiples of 128 (default: as shipped)")
    parser.add_argument("--card", default="H200", help="words of its name: " + ", ".join(CARDS))
    parser.add_argument("--shim", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ahead", action="store_true", help="only: what --compile-ahead leaves for another process")
    parser.add_argument("--scoring", action="store_true", help="only: what a batch of scoring reads and writes")
    arguments = parser.parse_args()
    if arguments.shim:
        sys.path.insert(0, str(ROOT))
        if arguments.scoring:
            sys.exit(not scoring(arguments.shim))
        if arguments.ahead:
            sys.exit(not ahead(arguments.shim))
        if arguments.rehearse:
            sys.exit(not rehearse(arguments.shim))
        sys.exit(not trace(next(iter(arguments.widths), None), arguments.shim))
    card = next((name for name in CARDS if arguments.card in name), None) or parser.error(f"no card {arguments.card}")
    major, minor, multiprocessors, gib, shared, threads, _ = CARDS[card]
    failed = False
    with tempfile.TemporaryDirectory(prefix="without-gpu-") as folder:
        shim = Path(folder, "shim.so")
        import triton

        headers = Path(triton.__file__).parent / "backends/nvidia/include"
        source = Path(__file__).with_suffix(".cpp")
        command = ["g++", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", f"-I{headers}", "-o", shim, source]
        subprocess.run(command, check=True)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(shim),
            "CARD": card,
            "CARD_NUMBERS": f"{major} {minor} {multiprocessors} {int(gib * 2**30)} {shared} {threads}",
            "AUTORESEARCH_PROFILE": "gpu",
            "AUTORESEARCH_CACHE": folder,
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            "TRITON_CACHE_DIR": f"{folder}/triton",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # workers would find no GPU
        }
        steps = [["--rehearse"], *([str(width)] for width in arguments.widths or [""])]
        steps = [["--ahead"]] * 2 if arguments.ahead else [["--scoring"]] if arguments.scoring else steps
        for more in steps:
            words = [sys.executable, "-W", "ignore", __file__, "--shim", shim, *filter(None, more)]
            failed |= subprocess.run(words, env=environment, cwd=ROOT).returncode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
