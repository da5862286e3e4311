"""Spreads its probability over fewer tokens than there are, once it is scored."""
# crash: must give logits

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        logits = super().forward(idx)
        return logits if self.training else logits[..., :256]
