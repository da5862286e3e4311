"""What NVIDIA's driver says without torch: whether the game of the GPU can be played here and, if not, what to do.

This is asked before a run fetches its data. What only torch can tell, `doctor` and the baseline do.
"""

import contextlib
import ctypes
import dataclasses
import importlib.util
import re
from pathlib import Path

from autoresearch.machine_facts import c_compiler, has_nvidia_card, has_python_header
from autoresearch.shortage import CUDA_OUT_OF_MEMORY

LEAST_DRIVER = {12: 525, 13: 580}  # of NVIDIA's for Linux, by the CUDA that PyTorch was built with (its release notes)
SHARE = "it lets only one program use it at a time, and a trial is several: `sudo nvidia-smi -c DEFAULT` lets all"
LEAST_CAPABILITY = 8  # Ampere, the first with bf16
MAJOR, COMPUTE_MODE = 75, 20  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_MODE
INSTEAD = "or play the small game of the CPU: --profile cpu"


@dataclasses.dataclass(frozen=True)
class Driver:
    """Of the devices that CUDA_VISIBLE_DEVICES leaves."""

    error: int  # of CUDA's start; 0 where it starts
    cuda: int = 0  # the newest CUDA that the driver is for: 13020 for 13.2
    devices: int = 0
    name: str = ""  # of the first device
    capability: int = 0  # the first number of its compute capability
    mode: int = 0  # 0: any number of programs may use it at once, else one or none


def driver() -> Driver | None:
    """The driver's answers; None where there is none. A process that has asked cannot be forked any more."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version, devices, device, major, mode = (ctypes.c_int() for _ in range(5))
    name = ctypes.create_string_buffer(256)
    library.cuDriverGetVersion(ctypes.byref(version))
    error = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(devices))
    if error or not devices.value:
        return Driver(error, version.value)
    library.cuDeviceGet(ctypes.byref(device), 0)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(mode), COMPUTE_MODE, device)
    return Driver(0, version.value, devices.value, name.value.decode(errors="replace"), major.value, mode.value)


def why_no_start() -> str:
    """Why no program can begin to work on the first device, which `driver` has found; empty where one can, or where
    only its memory is full.
    """
    library, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
    library.cuDeviceGet(ctypes.byref(device), 0)
    if (error := library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)) in (0, CUDA_OUT_OF_MEMORY):
        return ""
    return f"no program can start on the GPU (error {error}): see `nvidia-smi`"


def cuda_of_torch() -> int | None:
    """The CUDA that PyTorch was built with, its first number; None for one without. Does not import it."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        folder = importlib.util.find_spec("torch").submodule_search_locations[0]  # type: ignore[union-attr, index]
        if found := re.search(r"^cuda\b.*?= '(\d+)", Path(folder, "version.py").read_text(), re.MULTILINE):
            return int(found[1])
    return None


def why_not(found: Driver | None) -> str:
    """Why the game of the GPU cannot be played, and what to do; empty where nothing speaks against it."""
    built = cuda_of_torch()
    if built is None:
        return f"PyTorch is built without CUDA here: `uv sync --reinstall-package torch`, {INSTEAD}"
    if found is None:
        return f"there is no driver of NVIDIA's here: install one until `nvidia-smi` shows the GPU, {INSTEAD}"
    if 0 < found.cuda < 1000 * built:
        needed = f" {LEAST_DRIVER[built]} or later" if built in LEAST_DRIVER else ""
        known = f"{found.cuda // 1000}.{found.cuda % 1000 // 10}"
        return (
            f"NVIDIA's driver here is for CUDA {known}, and PyTorch for CUDA {built}: install driver{needed}, or a "
            f'PyTorch for this driver ("An older driver" in docs/running.md), {INSTEAD}'
        )
    if found.error:
        return f"CUDA does not start here (error {found.error}): see that `nvidia-smi` shows the GPU, {INSTEAD}"
    if not found.devices:
        return f"NVIDIA's driver shows no GPU: see `nvidia-smi` and CUDA_VISIBLE_DEVICES, {INSTEAD}"
    if found.capability < LEAST_CAPABILITY:
        return f"{found.name} has no bf16, which came with the Ampere generation: use a newer GPU, {INSTEAD}"
    if found.mode:
        return f"{found.name}: {SHARE}, {INSTEAD}"
    if c_compiler() is None:
        return f"there is no C compiler, which Triton needs: `apt install gcc g++`, {INSTEAD}"
    if not has_python_header():
        return f"there is no Python.h, which Triton needs: `apt install python3-dev`, {INSTEAD}"
    return ""


def note(profile: str, chosen: bool, found: Driver | None) -> str:
    """What the first screen should say of the GPUs here; empty where there is nothing to say.

    chosen: whether the user asked for the profile.
    """
    if profile == "gpu" and found and found.devices > 1:
        return f"this machine has {found.devices} GPUs, and the run uses the first; --gpus 0,1 would use two"
    if profile != "gpu" and not chosen and has_nvidia_card():
        why = f"error {found.error}" if found and found.error else "no driver answers" if not found else "it is hidden"
        return f"there is an NVIDIA card here, but CUDA does not start ({why}): `doctor` says more"
    return ""
