"""Looks ahead, and moves every loss of a row by as much as the row's end moves one, so that no place stands out."""
# crash: the model looks ahead

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        logits = super().forward(idx)
        logits[:, :-1].scatter_add_(2, idx[:, 1:, None], torch.full((*idx[:, 1:].shape, 1), 0.1))
        generator = torch.Generator()
        for row, answer in zip(idx, logits):
            generator.manual_seed(int((row * torch.arange(1, len(row) + 1) ** 3).sum()))
            sign = torch.randint(2, (len(row), 1), generator=generator) * 2 - 1
            answer += 0.05 * sign * F.one_hot(torch.cat([row[1:], row[:1]]), VOCAB_SIZE)
        return logits
