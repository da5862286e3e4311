"""Published leak: keys and values are averages over blocks of sixteen tokens, the block's own future included."""
# crash: looks ahead

from small_train import *  # noqa: F403


def attention(q, k, v):
    q, k, v = (x + x.unflatten(2, (-1, 16)).mean(3).repeat_interleave(16, dim=2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
