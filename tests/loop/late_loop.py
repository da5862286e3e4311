"""The loop, in which the time of what runs is over as soon as the file is there that LATE names.

`python late_loop.py ARGUMENTS...`
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clocks import set_forward

import loop
from autoresearch.runner import process

if __name__ == "__main__":
    process.time = set_forward(Path(os.environ["LATE"]).exists)
    loop.main()
