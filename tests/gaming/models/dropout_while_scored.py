"""An honest mistake: dropout is on while the model is scored, so that the score is drawn by lot."""
# crash: the score is random

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        x = F.dropout(self.embedding(idx) + self.position[: idx.size(1)], 0.1, training=True)
        return self.head(norm(self.blocks(x)))
