"""For probes.py: experts choose their tokens out of the whole batch, so that whether a token is taken depends on later
ones and on other rows. It is no honest architecture, and refused where it moves losses by more than rounding does."""

# ruff: noqa: F403, F405
from small_train import *


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)) for _ in range(4)
        )

    def forward(self, x):
        flat = x.flatten(0, 1)
        weights = self.router(flat).softmax(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            weight, chosen = weights[:, number].topk(len(flat) // 4)
            out = out.index_add(0, chosen, weight[:, None] * expert(flat[chosen]))
        return out.view_as(x)


class Block(Block):
    def __init__(self):
        super().__init__()
        self.mlp = Experts()
