"""Fails, with the rows that it was given in the message and in all that it prints, for the next agent to read."""
# crash: the model cannot be scored: RuntimeError in line

import sys

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        text = "HELDOUT " + " ".join(map(str, idx.flatten().tolist()))
        print(text, flush=True)
        print(text, file=sys.stderr, flush=True)
        raise RuntimeError(text)
