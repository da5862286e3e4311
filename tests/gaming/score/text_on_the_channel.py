"""Takes the channel to the referee and says the text itself, as if it were the reason of a failure."""
# crash: the model cannot be scored: its process broke the rules

import os

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        words = b"failed HELDOUT %d of the people" % int(idx[0, 1])
        for handle in range(3, 64):
            try:
                os.write(handle, words)
            except OSError:
                pass
        return super().forward(idx)
