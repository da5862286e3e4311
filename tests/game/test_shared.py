"""Device memory between processes, against a driver that is not there: one in C, which checks what it is asked for."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# The calls of cuda.h that shared.py makes, on memory of the host. Each returns an error for arguments that are wrong.
DRIVER = r"""
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
typedef struct { int kind, device; } Location;
typedef struct { int kind, handles; Location location; void *windows; unsigned char flags[8]; } Allocation;
typedef struct { Location location; int modes; } Access;
typedef unsigned long long u64;
static Allocation wanted = {1, 1, {1, 0}};
static int wrong(const Allocation *asked) { return memcmp(asked, &wanted, sizeof wanted) ? 1 : 0; }
int cuMemGetAllocationGranularity(size_t *unit, const Allocation *asked, int option) {
    *unit = 1 << 21; return wrong(asked) || option;
}
int cuMemCreate(u64 *memory, size_t size, const Allocation *asked, u64 flags) {
    if (wrong(asked) || size % (1 << 21) || flags) return 1;
    if (size > 4 << 20) return 2;
    int file = memfd_create("device", 0);
    *memory = file + 1000;
    return ftruncate(file, size) ? 2 : 0;
}
int cuMemExportToShareableHandle(void *handle, u64 memory, int kind, u64 flags) {
    *(int *)handle = dup(memory - 1000); return kind != 1 || flags;
}
int cuMemImportFromShareableHandle(u64 *memory, void *handle, int kind) {
    int file = dup((int)(long)handle);
    *memory = file + 1000; return file < 0 || kind != 1;
}
int cuMemAddressReserve(u64 *address, size_t size, size_t alignment, u64 wish, u64 flags) {
    *address = (u64)mmap(0, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return alignment || wish || flags;
}
int cuMemMap(u64 address, size_t size, size_t offset, u64 memory, u64 flags) {
    void *mapped = mmap((void *)address, size, PROT_NONE, MAP_SHARED | MAP_FIXED, memory - 1000, 0);
    return offset || flags || mapped == MAP_FAILED;
}
int cuMemSetAccess(u64 address, size_t size, const Access *access, size_t count) {
    if (count != 1 || access->location.kind != 1 || access->location.device || access->modes != 3) return 1;
    return mprotect((void *)address, size, PROT_READ | PROT_WRITE);
}
int cuMemRelease(u64 memory) { return close(memory - 1000); }
int cuMemUnmap(u64 address, size_t size) {
    void *left = mmap((void *)address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return size % (1 << 21) || left == MAP_FAILED;
}
int cuMemAddressFree(u64 address, size_t size) { return size % (1 << 21) || munmap((void *)address, size); }
int cuMemHostRegister_v2(void *address, size_t size, unsigned flags) {
    ((char *)address)[0] = ((char *)address)[size - 1] = 7; return flags;
}
"""
MAKE = """
import ctypes, subprocess, sys
from autoresearch.referee import shared
address, handle = shared.create(3_000_000)
other = [sys.executable, "-c", sys.argv[1], str(handle)]
ctypes.memmove(address + 2_999_990, b"logits", 6)
subprocess.run(other, pass_fds=[handle], check=True)
print(ctypes.string_at(address, 6).decode())
shared.unmap(address, 3_000_000)
print(f"{address:x}-" in open("/proc/self/maps").read())
try:
    shared.create(5_000_000)
except MemoryError as error:
    print(error)
"""
LOCK = """
import os
from autoresearch.referee import shared
from prepare import PROFILES
file = os.memfd_create("logits")
os.ftruncate(file, 12 << 20)
ids, logits = shared.ids_and_logits(file, 4, PROFILES["test"], only_ids=False)
shared.lock(ids.data_ptr(), ids.nbytes + logits.nbytes)
print(ids.flatten()[0].item(), logits.view(-1)[-1].item() > 0, ids.sum().item())
shared.pin(ids, ids.nbytes)  # without a GPU: nothing happens
"""
OPEN = """
import ctypes, sys
from autoresearch.referee import shared
address = shared.open_shared(int(sys.argv[1]), 3_000_000)
assert ctypes.string_at(address + 2_999_990, 6) == b"logits"
ctypes.memmove(address, b"answer", 6)
try:
    shared.open_shared(99, 3_000_000)
except OSError as error:
    print(error)
"""


pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


@pytest.fixture
def said(tmp_path):
    """Runs code beside that driver, and returns the lines that it printed."""
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run(*words: str) -> list[str]:
        words = (sys.executable, "-c", *words)
        answer = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.splitlines()

    return run


def test_two_processes_see_the_same_memory(said):
    assert said(MAKE, OPEN) == [
        "cuMemImportFromShareableHandle failed with error 1 of the CUDA driver",
        "answer",
        "False",  # it is unmapped
        "cuMemCreate failed with error 2 of the CUDA driver",
    ]


def test_the_memory_of_ids_and_logits_is_locked_whole(said):
    assert said(LOCK) == ["7 True 7"]
