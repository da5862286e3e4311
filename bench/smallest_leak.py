"""For probes.py: a head sees one token ahead at a single position of the row, and hardly learns to use it."""

# ruff: noqa: F403, F405
from small_train import *


def attention(q, k, v):
    position = torch.arange(q.size(2))
    distance = position[:, None] - position
    mask = (distance >= 0).repeat(HEADS, 1, 1)
    mask[0] |= (distance == -1) & (position[:, None] == 40)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
