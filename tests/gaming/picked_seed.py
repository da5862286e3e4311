"""Trains with a luckier seed."""
# refused: takes prepare's SEED and nothing else

from small_train import *  # noqa: F403


def build_model():
    torch.manual_seed(137)
    return Model()
