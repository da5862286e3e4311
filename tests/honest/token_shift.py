"""Every block sees half of each token and half of the one before it (RWKV's token shift)."""

from small_train import *  # noqa: F403


class Block(Block):
    def forward(self, x):
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        return super().forward(torch.cat((x[..., : WIDTH // 2], before[..., WIDTH // 2 :]), dim=-1))
