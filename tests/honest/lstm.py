"""PyTorch's LSTM in place of attention."""

from small_train import *  # noqa: F403


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]
