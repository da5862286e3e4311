"""Attention within chunks of eight tokens and to the whole chunk before, causal inside."""

from small_train import *  # noqa: F403


def attention(q, k, v):
    position = torch.arange(q.size(2))
    near = position[:, None] // 8 - position // 8 <= 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=near & (position[:, None] >= position))
