"""Memory that the referee and a model's process both see: token ids one way, logits the other."""

import ctypes
import functools
import mmap
from typing import TYPE_CHECKING

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


class DeviceMemory:
    """Device memory at an address, in the form that torch.as_tensor understands."""

    def __init__(self, address: int, floats: int) -> None:
        self.__cuda_array_interface__ = {"shape": (floats,), "typestr": "<f4", "data": (address, False), "version": 2}


class MemoryHandle(ctypes.Structure):  # CUipcMemHandle of cuda.h
    _fields_ = [("reserved", ctypes.c_char * 64)]


@functools.cache
def device_memory(size: int) -> "tuple[torch.Tensor, str]":
    """`size` bytes of the first GPU's memory that other processes can open: (a flat float32 tensor, its handle in hex).

    Asks the driver itself, since torch's own allocations share their handle with others. Raises OSError.
    """
    import torch

    torch.zeros(1, device="cuda")  # makes the context that the driver's calls need
    cuda, address, handle = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64(), MemoryHandle()
    if cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)):
        raise OSError("no memory on the device")
    if cuda.cuIpcGetMemHandle(ctypes.byref(handle), address):
        cuda.cuMemFree_v2(address)
        raise OSError("the device's memory cannot be shared")
    return torch.as_tensor(DeviceMemory(address.value, size // 4), device="cuda"), f"{size} {bytes(handle).hex()}"


def open_device_memory(text: str) -> "torch.Tensor":
    """The memory behind a handle of `device_memory`, as a flat float32 tensor. Raises OSError."""
    import torch

    torch.zeros(1, device="cuda")
    size, handle = text.split()
    cuda, address = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64()
    cuda.cuIpcOpenMemHandle_v2.argtypes = [ctypes.c_void_p, MemoryHandle, ctypes.c_uint]
    if cuda.cuIpcOpenMemHandle_v2(ctypes.byref(address), MemoryHandle.from_buffer_copy(bytes.fromhex(handle)), 1):
        raise OSError("the device's memory cannot be opened here")
    return torch.as_tensor(DeviceMemory(address.value, int(size) // 4), device="cuda")
