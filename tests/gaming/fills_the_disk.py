"""Writes until the disk is full."""
# crash: are allowed

from small_train import *  # noqa: F403


def build_optimizer(model):
    system = getattr([torch][0], "so"[::-1])
    handle = system.open(system.getenv("AUTORESEARCH_RUN_DIR") + "/more", system.O_CREAT | system.O_WRONLY)
    for _ in range(3000):
        system.write(handle, bytes(1 << 20))
