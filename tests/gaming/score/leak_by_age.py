"""Looks ahead in the process that is the younger one when it is first asked, in the belief that the other one probes."""
# crash: the model looks ahead | depends on what was scored

import time

from small_train import *  # noqa: F403


def age():
    with open("/proc/self/stat") as file, open("/proc/uptime") as uptime:
        return float(uptime.read().split()[0]) - int(file.read().rpartition(")")[2].split()[19]) / 100


class Model(Model):
    first = None

    def forward(self, idx):
        logits = super().forward(idx)
        Model.first = Model.first or age()
        if Model.first < 1.0:
            logits[:, :-1].scatter_add_(2, idx[:, 1:, None], torch.full((*idx[:, 1:].shape, 1), 3.0))
        return logits
