"""The embedding of the previous token is added through a learned gate."""

from small_train import *  # noqa: F403


class Smeared(nn.Embedding):
    def __init__(self):
        super().__init__(VOCAB_SIZE, WIDTH)
        self.gate = nn.Linear(WIDTH, 1)

    def forward(self, idx):
        x = super().forward(idx)
        return x + torch.sigmoid(self.gate(x)) * F.pad(x, (0, 0, 1, 0))[:, :-1]


class Model(Model):
    def __init__(self):
        super().__init__()
        self.embedding = Smeared()
