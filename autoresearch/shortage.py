"""What a trial lacked, memory or time, according to its reason: in the words of Python, C++, PyTorch and CUDA, and in
those of the loop, the referee, train.py and prepare.py (whose is_out_of_memory looks at the exception itself).
"""

import re

OF_GPU = (  # or of one of the two: PyTorch says `out of memory` of both
    r"out ?of ?memory|CUBLAS_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)"
    "|memory of the GPU|more memory than there is|too little memory"
)
GPU_MEMORY = re.compile(OF_GPU, re.IGNORECASE)
MEMORY = re.compile(f"{OF_GPU}|MemoryError|bad_alloc|allocate memory|of host memory|next to no memory", re.IGNORECASE)
CUDA_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY of cuda.h, as the driver's functions return it
TIME = re.compile(r"its time limit|in its first \d|its first batch after|process went on for")


def shortage(reason: str) -> str:
    """`memory` or `time`, if a trial failed for want of it; else empty."""
    return "memory" if MEMORY.search(reason) else "time" if TIME.search(reason) else ""
