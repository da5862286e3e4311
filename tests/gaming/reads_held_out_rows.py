"""Opens the rows that it will be scored on."""
# crash: PermissionError

from small_train import *  # noqa: F403


def build_optimizer(model):
    system = getattr([torch][0], "so"[::-1])
    system.open(system.getenv("AUTORESEARCH_CACHE") + "/sotu-test/val.bin", system.O_RDONLY)
