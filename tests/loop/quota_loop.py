"""The loop, as in a container with a quota of the processors: what others take of the GPU is all that it can tell.

`python quota_loop.py ARGUMENTS...`
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import loop
from autoresearch.runner import neighbours

if __name__ == "__main__":
    neighbours.has_quota = lambda: True
    loop.main()
