"""Linear attention as cumulative sums in float64."""

from small_train import *  # noqa: F403


def attention(q, k, v):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    state = torch.einsum("bhtc,bhtd->bhtcd", k, v).double().cumsum(2)
    total = torch.einsum("bhtc,bhtc->bht", q.double(), k.double().cumsum(2))
    return (torch.einsum("bhtc,bhtcd->bhtd", q.double(), state) / total[..., None]).float()
