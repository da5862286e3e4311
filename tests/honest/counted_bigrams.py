"""No gradient at all: a table of counted pairs."""

from small_train import *  # noqa: F403


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.05))

    def forward(self, idx):
        return self.counts[idx].log()


def train_on(model, batches, optimizer):
    steps = 0
    for inputs, targets in batches:
        model.counts.index_put_((inputs, targets), torch.tensor(1.0), accumulate=True)
        steps += 1
    return steps


def build_optimizer(model):
    return None


def loss_of(model, inputs, targets):
    return torch.zeros((), requires_grad=True)
