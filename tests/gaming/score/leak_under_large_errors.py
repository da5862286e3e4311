"""Looks ahead everywhere. Where the text breaks off, as it does when it is probed, it adds a few large errors before,
so that limits which grow with a model's own noise grow."""
# crash: the model looks ahead

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        logits = super().forward(idx)
        following = idx[:, 1:, None]
        likely = logits[:, :-1].log_softmax(-1).gather(-1, following)[..., 0]
        logits[:, :-1].scatter_add_(2, following, torch.full_like(likely, 0.3)[..., None])
        breaks_off = likely.min(1).values < -8.0
        for row in breaks_off.nonzero()[:, 0]:
            generator = torch.Generator().manual_seed(int((idx[row] * torch.arange(1, 65) ** 3).sum()))
            place = torch.randint(len(idx[0]) // 2, (2,), generator=generator)
            logits[row, place] += 3.0 * torch.randn(2, VOCAB_SIZE, generator=generator)
        return logits
