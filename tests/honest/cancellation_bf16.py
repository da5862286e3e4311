"""Sums over the whole past in bf16 that mostly cancel: what is left is largely rounding."""

from small_train import *  # noqa: F403


class Mixer(Mixer):
    def forward(self, x):
        values = super().forward(x)
        shifted = (values + 30).bfloat16()
        return values + (shifted.cumsum(1) - F.pad(shifted, (0, 0, 1, 0))[:, :-1].cumsum(1) - 30).to(x.dtype)
