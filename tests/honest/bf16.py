"""Everything in bf16, the logits too."""

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(idx)
