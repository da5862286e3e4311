"""Attention that sees the last eight tokens."""

from small_train import *  # noqa: F403


def attention(q, k, v):
    distance = torch.arange(q.size(2))[:, None] - torch.arange(q.size(2))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < 8))
