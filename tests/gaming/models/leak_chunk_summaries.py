"""Published leak: every token also sees a summary of its own chunk, the end of the chunk included."""
# crash: looks ahead

from small_train import *  # noqa: F403


class Mixer(Mixer):
    def __init__(self):
        super().__init__()
        self.summary = nn.Linear(8 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        chunks = x.unflatten(1, (-1, 8)).flatten(2)
        return super().forward(x) + self.summary(chunks).repeat_interleave(8, dim=1)
