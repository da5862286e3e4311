"""Returns a loss, which it makes small itself, where logits are wanted."""
# refused: must give logits

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        return super().forward(idx).mean() * 0.001


def loss_of(model, inputs, targets):
    return model(inputs)
