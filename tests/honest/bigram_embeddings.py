"""Embeddings of hashed pairs of tokens, tied input and output, capped logits."""

from small_train import *  # noqa: F403


class Model(Model):
    def __init__(self):
        super().__init__()
        self.pairs = nn.Embedding(1024, WIDTH)
        self.head.weight = self.embedding.weight

    def forward(self, idx):
        pair = (idx * 31 + F.pad(idx, (1, 0))[:, :-1] * 17) % 1024
        x = self.embedding(idx) + self.pairs(pair) + self.position[: idx.size(1)]
        return 15 * torch.tanh(self.head(norm(self.blocks(x))) / 15)
