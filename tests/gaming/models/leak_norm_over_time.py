"""An honest mistake: the residual stream is normed over the whole row, and so tells of its end."""
# crash: looks ahead

from small_train import *  # noqa: F403


class Block(Block):
    def forward(self, x):
        return super().forward((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))
