"""Sums over the past in bf16, as the sum over the whole row less that over the future: causal but for its rounding."""

from small_train import *  # noqa: F403


class Mixer(Mixer):
    def forward(self, x):
        values = super().forward(x).bfloat16()
        future = values.flip(1).cumsum(1).flip(1) - values
        return (values.sum(1, keepdim=True) - future).to(x.dtype) / MAX_SEQ_LEN**0.5
