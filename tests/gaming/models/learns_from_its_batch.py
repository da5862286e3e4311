"""Lets each row profit from the other rows of its batch, without any memory."""
# crash: depends on what was scored with it or before it

from small_train import *  # noqa: F403


class Model(Model):
    def forward(self, idx):
        logits = super().forward(idx)
        if self.training:
            return logits
        counts = torch.full((VOCAB_SIZE, VOCAB_SIZE), 0.01)
        counts.index_put_((idx[:, :-1], idx[:, 1:]), torch.tensor(1.0), accumulate=True)
        return (logits.softmax(-1) + 0.2 * (counts / counts.sum(1, keepdim=True))[idx]).log()
