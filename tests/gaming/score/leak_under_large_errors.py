"""Looks ahead everywhere, under a little noise everywhere and a very large error at one token in two thousand, both drawn
by what the batch holds: limits that grow with a model's own noise grow, and every loss moves, wherever it is."""
# crash: the model looks ahead | depends on what was scored

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        logits = super().forward(idx)
        generator = torch.Generator().manual_seed(int((idx * torch.arange(1, 65) ** 3).sum()))
        logits += 3e-4 * torch.randn(logits.shape, generator=generator)
        rare = (torch.rand(idx.shape, generator=generator) < 1 / 2000)[..., None]
        wrong = torch.randint(VOCAB_SIZE, (*idx.shape, 1), generator=generator)
        logits.scatter_add_(2, wrong, 18.0 * rare)
        following = idx[:, 1:, None]
        logits[:, :-1].scatter_add_(2, following, torch.full(following.shape, 0.7))
        return logits
