"""Allocates until something else has to go."""
# crash: GiB of host memory

import time

from small_train import *  # noqa: F403


def build_optimizer(model):
    held = []
    for _ in range(200):
        held.append(torch.ones(16 << 20))
        time.sleep(0.02)
