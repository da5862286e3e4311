"""What the commands of a trial see of the user's environment: what Python, torch and a compiler need."""

import fnmatch
from collections.abc import Iterable, Mapping

HARMLESS = (
    "PATH",
    "LANG",
    "LC_*",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "CUDA_*",
    "NVIDIA_*",
    "PYTORCH_*",
    "TORCH_*",
    "OMP_*",
    "MKL_*",
    "OPENBLAS_*",
    "CC",
    "CXX",
)
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")  # name folders of compiled kernels


def matching(environment: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """The variables whose names match one of the patterns."""
    patterns = list(patterns)
    return {
        name: value
        for name, value in environment.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
