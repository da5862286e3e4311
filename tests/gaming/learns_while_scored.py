"""Counts the tokens of the rows that it is given to score, and adds what it has learned to its logits."""
# crash: depends on what was scored with it or before it | looks ahead

from small_train import *  # noqa: F403


class Model(Model):
    seen = None

    def forward(self, idx):
        logits = super().forward(idx)
        if not self.training:
            if self.seen is None:
                self.seen = torch.ones(VOCAB_SIZE, VOCAB_SIZE)
            logits = (logits.softmax(-1) + 0.2 * (self.seen / self.seen.sum(1, keepdim=True))[idx]).log()
            self.seen.index_put_((idx[:, :-1], idx[:, 1:]), torch.tensor(1.0), accumulate=True)
        return logits
