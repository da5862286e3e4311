"""Ends with weights that are no numbers, in the hope that they compare as better."""
# crash: not a finite number

from small_train import *  # noqa: F403


def train_on(model, batches, optimizer):
    steps = len(list(batches))
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    return steps
