"""One head of one layer sees one token ahead."""
# crash: looks ahead

from small_train import *  # noqa: F403


def attention(q, k, v, ahead=0):
    distance = torch.arange(q.size(2))[:, None] - torch.arange(q.size(2))
    mask = (distance >= 0).repeat(HEADS, 1, 1)
    mask[0] = distance >= -ahead
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Leaky(Mixer):
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attention(q, k, v, ahead=1).transpose(1, 2).flatten(2))


class Model(Model):
    def __init__(self):
        super().__init__()
        self.blocks[-1].mixer = Leaky()
