"""A head sees one token ahead, at even positions only."""
# crash: looks ahead

from small_train import *  # noqa: F403


def attention(q, k, v):
    position = torch.arange(q.size(2))
    distance = position[:, None] - position
    mask = (distance >= 0).repeat(HEADS, 1, 1)
    mask[0] |= (distance == -1) & (position[:, None] % 2 == 0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
