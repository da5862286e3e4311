"""Activations in eight bits with one scale for the whole tensor: what else is in the batch rounds them otherwise."""

from small_train import *  # noqa: F403


def fp8(x):
    scale = 448 / x.detach().abs().max().clamp(min=1e-6)
    rounded = (x.detach() * scale).to(torch.float8_e4m3fn).to(x.dtype) / scale
    return x + (rounded - x).detach()


class Block(Block):
    def forward(self, x):
        x = x + self.mixer(fp8(norm(x)))
        return x + self.mlp(fp8(norm(x)))
