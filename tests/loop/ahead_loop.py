"""The loop, told that its game is that of the GPU, where trials share the caches of their seat.

`python ahead_loop.py ARGUMENTS...`, run in a copy of this repository
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

import loop
from autoresearch.runner import process, trial
from autoresearch.task import Facts

if __name__ == "__main__":
    Facts.gpu = property(lambda facts: True)
    trial.longest_start = lambda budget: 600.0  # to compile takes long on a busy machine
    process.give_way = lambda pid, group: None  # which would never end on one
    loop.main()
