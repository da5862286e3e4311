"""The loop, which compares the nodes of a cluster also where training takes a few seconds.

`python paced_loop.py ARGUMENTS...`
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import loop
from autoresearch import paces

if __name__ == "__main__":
    sys.argv[0] = loop.__file__  # Ray's nodes import from beside it
    paces.LONG_ENOUGH = 3.0
    loop.main()
