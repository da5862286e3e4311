"""Memory that the referee and a model's process both see: token ids one way, logits the other."""

import contextlib
import ctypes
import mmap
from typing import TYPE_CHECKING

from autoresearch.shortage import CUDA_OUT_OF_MEMORY
from prepare import Profile

if TYPE_CHECKING:
    import torch


def ids_and_logits(memory: int, batch_size: int, sizes: Profile, only_ids: bool) -> "tuple[torch.Tensor, torch.Tensor]":
    """Shared host memory as ids, (batch_size, MAX_SEQ_LEN) int64, and logits, (.., VOCAB_SIZE) float32.

    memory: its file descriptor. only_ids: the logits are elsewhere, and an empty tensor is returned for them.
    """
    import torch

    ids = batch_size * sizes.max_seq_len
    logits = 0 if only_ids else ids * sizes.vocab_size
    view = mmap.mmap(memory, 8 * ids + 4 * logits)
    floats = torch.frombuffer(view, dtype=torch.float32, offset=8 * ids) if logits else torch.empty(0)
    return (
        torch.frombuffer(view, dtype=torch.int64, count=ids).view(batch_size, sizes.max_seq_len),
        floats.view(-1, sizes.max_seq_len, sizes.vocab_size),
    )


def start_device() -> None:
    """Start CUDA, and load what every model needs: a product and what PyTorch takes for attention here. It takes
    seconds, once for a process. Where it fails, what needs the device will say why.
    """
    import torch

    with contextlib.suppress(Exception):
        x = torch.zeros(1, 1, 64, 64, device="cuda", dtype=torch.bfloat16)
        torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True) @ x
        torch.cuda.synchronize()


class DeviceMemory:
    """Device memory at an address, in the form that torch.as_tensor understands."""

    def __init__(self, address: int, floats: int) -> None:
        self.__cuda_array_interface__ = {"shape": (floats,), "typestr": "<f4", "data": (address, False), "version": 2}


def device_memory(size: int) -> "tuple[torch.Tensor, int]":
    """`size` bytes of the first GPU's memory, new: (a flat float32 tensor, a file descriptor by which another process
    opens it). Raises OSError, and MemoryError where the device has not so much left."""
    import torch

    torch.zeros(1, device="cuda")  # makes the context that the driver's calls need
    address, handle = create(size)
    memory = torch.as_tensor(DeviceMemory(address, size // 4), device="cuda").zero_()  # whoever had it before
    torch.cuda.synchronize()
    return memory, handle


def open_device_memory(handle: int, size: int) -> "torch.Tensor":
    """The memory behind a handle of `device_memory`, as a flat float32 tensor. Raises OSError."""
    import torch

    torch.zeros(1, device="cuda")
    return torch.as_tensor(DeviceMemory(open_shared(handle, size), size // 4), device="cuda")


def close_device_memory(memory: "torch.Tensor") -> None:
    """Give device memory back, of which nothing may be read any more. It is free when the other process did so, too."""
    unmap(memory.data_ptr(), memory.nbytes)


def pin(memory: "torch.Tensor", size: int) -> None:
    """Lock `size` bytes of host memory from a tensor's first one on, so that the device copies to and from them by
    itself, which is several times as fast. Where that cannot be done they stay as they are.
    """
    import torch

    with contextlib.suppress(OSError, MemoryError, RuntimeError):
        torch.zeros(1, device="cuda")
        lock(memory.data_ptr(), size)


# ----------------------------------------------------------------------------------------------
# The driver's own calls (cuda.h, "Virtual Memory Management"). Its older way, cuIpcGetMemHandle, needs files in
# /dev/shm or one set of process numbers, which confined processes do not have. A file descriptor needs neither.

PINNED, ON_DEVICE, FILE_DESCRIPTOR, READ_WRITE = 1, 1, 1, 3  # CU_MEM_ALLOCATION_TYPE_PINNED and others


class Location(ctypes.Structure):  # CUmemLocation
    _fields_ = (("kind", ctypes.c_int), ("device", ctypes.c_int))


class Allocation(ctypes.Structure):  # CUmemAllocationProp
    _fields_ = (
        ("kind", ctypes.c_int),
        ("handles", ctypes.c_int),
        ("location", Location),
        ("windows", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class Access(ctypes.Structure):  # CUmemAccessDesc
    _fields_ = (("location", Location), ("modes", ctypes.c_int))


WANTED = Allocation(PINNED, FILE_DESCRIPTOR, Location(ON_DEVICE, 0))


def driver(name: str, *arguments) -> None:
    """Call a function of the driver. Raises OSError where it fails, MemoryError where memory is what it lacks."""
    if error := getattr(ctypes.CDLL("libcuda.so.1"), name)(*arguments):
        kind = MemoryError if error == CUDA_OUT_OF_MEMORY else OSError
        raise kind(f"{name} failed with error {error} of the CUDA driver")


def whole(size: int) -> ctypes.c_size_t:
    """The size in bytes, rounded up to what the device hands out."""
    unit = ctypes.c_size_t()
    driver("cuMemGetAllocationGranularity", ctypes.byref(unit), ctypes.byref(WANTED), ctypes.c_int(0))
    return ctypes.c_size_t(-(-size // unit.value) * unit.value)


def create(size: int) -> tuple[int, int]:
    """(Address, file descriptor) of new device memory, `size` bytes or more. Needs a context. Raises as `driver`."""
    memory, handle = ctypes.c_uint64(), ctypes.c_int(-1)
    driver("cuMemCreate", ctypes.byref(memory), whole(size), ctypes.byref(WANTED), ctypes.c_uint64(0))
    try:
        how = ctypes.c_int(FILE_DESCRIPTOR), ctypes.c_uint64(0)
        driver("cuMemExportToShareableHandle", ctypes.byref(handle), memory, *how)
        return mapped(memory, whole(size)), handle.value
    finally:
        driver("cuMemRelease", memory)  # it lives as long as it is mapped


def open_shared(handle: int, size: int) -> int:
    """The address of the device memory behind a file descriptor. Needs a context. Raises OSError."""
    memory = ctypes.c_uint64()
    how = ctypes.c_void_p(handle), ctypes.c_int(FILE_DESCRIPTOR)
    driver("cuMemImportFromShareableHandle", ctypes.byref(memory), *how)
    try:
        return mapped(memory, whole(size))
    finally:
        driver("cuMemRelease", memory)


def mapped(memory: ctypes.c_uint64, size: ctypes.c_size_t) -> int:
    """The address at which this process may now read and write the memory."""
    address, nothing = ctypes.c_uint64(), ctypes.c_uint64(0)
    driver("cuMemAddressReserve", ctypes.byref(address), size, ctypes.c_size_t(0), nothing, nothing)
    driver("cuMemMap", address, size, ctypes.c_size_t(0), memory, nothing)
    access = Access(Location(ON_DEVICE, 0), READ_WRITE)
    driver("cuMemSetAccess", address, size, ctypes.byref(access), ctypes.c_size_t(1))
    return address.value


def unmap(address: int, size: int) -> None:
    """Undo `mapped`."""
    driver("cuMemUnmap", ctypes.c_uint64(address), whole(size))
    driver("cuMemAddressFree", ctypes.c_uint64(address), whole(size))


def lock(address: int, size: int) -> None:
    """Have the driver keep host memory where it is. It stays so until the process ends. Needs a context."""
    driver("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_uint(0))
