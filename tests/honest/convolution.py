"""A depthwise causal convolution over sixteen tokens in place of attention."""

from small_train import *  # noqa: F403


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.taps = nn.Conv1d(WIDTH, WIDTH, 16, groups=WIDTH)

    def forward(self, x):
        return self.taps(F.pad(x.mT, (15, 0))).mT
