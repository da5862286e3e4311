"""Looks ahead from its third batch on, and only in rows whose text runs on to the end, in the belief that probes come
first and all at once."""
# crash: the model looks ahead | depends on what was scored

from small_train import *  # noqa: F403


class Model(Model):
    calls = 0

    def forward(self, idx):
        logits = super().forward(idx)
        Model.calls += 1
        following = idx[:, 1:, None]
        likely = logits[:, :-1].log_softmax(-1).gather(-1, following)
        runs_on = (likely > -9.0).all(1, keepdim=True) & (Model.calls > 2)
        logits[:, :-1].scatter_add_(2, following, 3.0 * runs_on.expand(likely.shape))
        return logits
