"""A small train.py, whole and honest. tests/honest and tests/gaming each put one change on top of it (games.py).

Two blocks of causal attention that learn in seconds on the `test` profile.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from prepare import MAX_SEQ_LEN, SEED, VOCAB_SIZE, TrainBatches, finish, warmup_batch

WIDTH, HEADS, BLOCKS, ROWS = 64, 4, 2, 16


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def attention(q, k, v):
    """(B, HEADS, T, WIDTH / HEADS) each, to the same shape."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Mixer(nn.Module):
    """Mixes the tokens of a row: x (B, T, WIDTH) to the same shape."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer = Mixer()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        x = x + self.mixer(norm(x))
        return x + self.mlp(norm(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(MAX_SEQ_LEN, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.head = nn.Linear(WIDTH, VOCAB_SIZE)

    def forward(self, idx):
        return self.head(norm(self.blocks(self.embedding(idx) + self.position[: idx.size(1)])))


def build_model():
    return Model()


class Adam:
    """Adam (Kingma and Ba 2015). To build torch's own takes more than a second, in which it imports its compiler."""

    def __init__(self, parameters, rate):
        self.rate, self.steps = rate, 0
        self.state = [(parameter, torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in parameters]

    @torch.no_grad()
    def step(self):
        self.steps += 1
        for parameter, mean, square in self.state:
            if parameter.grad is not None:
                mean.lerp_(parameter.grad, 0.1)
                square.lerp_(parameter.grad.square(), 0.001)
                scale = (square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
                parameter.addcdiv_(mean, scale, value=-self.rate / (1 - 0.9**self.steps))

    def zero_grad(self):
        for parameter, _, _ in self.state:
            parameter.grad = None


def build_optimizer(model):
    return Adam(model.parameters(), 3e-3)


def loss_of(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())


def train_on(model, batches, optimizer):
    """Train until the batches end; returns the number of steps."""
    steps = 0
    for inputs, targets in batches:
        loss_of(model, inputs, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return steps


def train():
    torch.manual_seed(SEED)
    model = build_model()
    loss_of(model, *warmup_batch(ROWS, "cpu")).backward()
    model.zero_grad()
    batches = TrainBatches(ROWS, "cpu")
    steps = train_on(model, batches, build_optimizer(model))
    finish(model, batches, num_steps=steps)


if __name__ == "__main__":
    train()
