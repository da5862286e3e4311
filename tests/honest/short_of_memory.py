"""A model that cannot take more than seven rows at once when it is scored: smaller batches, the same score."""

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        if not self.training and len(idx) > 7:
            raise torch.OutOfMemoryError("no more than seven rows")
        return super().forward(idx)
