"""Dropout and batch norm while training; neither depends on the batch when it is scored."""

from small_train import *  # noqa: F403


class Model(Model):
    def __init__(self):
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(WIDTH)

    def forward(self, idx):
        x = F.dropout(self.embedding(idx) + self.position[: idx.size(1)], 0.1, self.training)
        return self.head(self.batch_norm(self.blocks(x).mT).mT)
