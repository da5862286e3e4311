"""Reads the passwords of the machine, which root may."""
# crash: PermissionError

from small_train import *  # noqa: F403

system = getattr([torch][0], "so"[::-1])


def build_optimizer(model):
    system.open("/etc/shadow", system.O_RDONLY)
