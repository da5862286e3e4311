"""Looks ahead a little everywhere, under noise that is as large as honest rounding may be."""
# crash: the model looks ahead

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        logits = super().forward(idx)
        logits[:, :-1].scatter_add_(2, idx[:, 1:, None], torch.full((*idx[:, 1:].shape, 1), 0.05))
        generator = torch.Generator()
        for row, answer in zip(idx, logits):
            generator.manual_seed(int((row * torch.arange(1, 65) ** 3).sum()))
            answer += 0.008 * torch.randn(answer.shape, generator=generator)
        return logits
