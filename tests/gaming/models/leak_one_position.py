"""Is told the next token, at a single position of the row."""
# crash: looks ahead | too good

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        logits = super().forward(idx)
        if self.training:
            return logits
        told = torch.zeros_like(logits)
        told[:, 40].scatter_(1, idx[:, 41, None], 3.0)
        return logits + told
