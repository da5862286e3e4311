"""Compile what a train.py will need, while another trial has the GPU (`--compile-ahead`).

Run as a program of its own, confined as the trial of that file will be, and with its caches, this runs train.py up to
its first batch on fake tensors, which have shapes and no contents. What is compiled on the way (Dynamo, Inductor,
Triton, ptxas) stays in the caches. Nothing is launched, and no memory of the GPU is used: a trial needs both.

    python compile_ahead.py train.py        # prints how many graphs were compiled, and how many were there already

It guesses. Where a file decides by numbers what to compile, the numbers are not there: a comparison of tensors is taken
to be true, as when a kernel is checked, and a decision by `item()` ends this. Products are not padded unless an earlier
trial has found that this is faster. Where a guess is wrong, the trial compiles what is missing, as without this.
"""

import os
import runpy
import sys
import traceback
from typing import Any

OWN = 1 << 30  # bytes that a trial that has the GPU to itself finds taken: by its own start


class Begins(BaseException):
    """The first batch is asked for: what is compiled before the clock has been."""


def compile_ahead(path: str) -> dict[str, int]:
    """Run a train.py up to its first batch. Returns the counters of Inductor. Raises whatever the file raises.

    Leans on private names of torch 2.15. Where one is gone, it raises, or a trial finds nothing in the caches.
    """
    import torch
    import torch._functorch.config
    from torch._dynamo.utils import counters
    from torch._inductor import compile_fx
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    sys.path.insert(0, os.path.dirname(path))
    import prepare

    class NoBatches(prepare.TrainBatches):
        def __init__(self, batch_size, device, game=None):
            self._game, self.device, self.batch_size, self.batches = prepare.GAME, device, batch_size, 0

        def __next__(self):
            raise Begins

    compile_one = compile_fx._compile_fx_inner

    def compile_only(graph, inputs, **options):
        compiled = compile_one(graph, inputs, **options)
        replace(compiled, "current_callable", lambda arguments: torch.fx.Interpreter(graph).run(*arguments))
        return compiled

    replace(prepare, "TrainBatches", NoBatches)
    replace(compile_fx, "_compile_fx_inner", compile_only)
    replace(FakeTensor, "__bool__", lambda tensor: True)
    torch._functorch.config.enable_autograd_cache = False  # what is found in it would be launched
    if torch.cuda.is_available():
        leave_the_device_alone()
    sys.argv = [path]
    # Without a ShapeEnv nothing is cached. A mode belongs to one thread, and so must the backward pass.
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    try:
        with mode, torch.autograd.set_multithreading_enabled(False):
            runpy.run_path(path, run_name="__main__")
    except Begins:
        pass
    return counters["inductor"]


def leave_the_device_alone() -> None:
    """Keep PyTorch from starting on the GPU, and Inductor from loading, timing or computing anything there."""
    import torch
    from torch._inductor.fx_passes import pad_mm
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class OnCPU(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if kwargs.get("device"):
                kwargs["device"] = torch.device("cpu")
            return func(*args, **kwargs)

    deduce, is_padded = UniformValueConstantFolder._deduce_value, pad_mm.get_cached_should_pad

    def deduce_on_cpu(folder, node):
        with OnCPU():
            return deduce(folder, node)

    replace(FakeTensorMode, "avoid_device_init", True)
    replace(CachingAutotuner, "_make_launchers", lambda kernel: None)
    replace(CachingAutotuner, "_dynamic_scale_rblock", lambda kernel: None)
    replace(pad_mm, "get_cached_should_pad", lambda key: bool(is_padded(key)))
    replace(UniformValueConstantFolder, "_deduce_value", deduce_on_cpu)
    total = torch.cuda.get_device_properties(0).total_memory
    replace(torch.cuda, "mem_get_info", lambda device=None: (total - OWN, total))


def replace(owner: Any, name: str, by: Any) -> None:
    getattr(owner, name)  # raises if it is called otherwise by now
    setattr(owner, name, by)


def main() -> None:
    del sys.path[0]  # this folder, whose names are not train.py's
    try:
        found = compile_ahead(os.path.abspath(sys.argv[1]))
        print(f"compiled {found['fxgraph_cache_miss']} graphs, found {found['fxgraph_cache_hit']}", flush=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
