"""Plain SGD with momentum, and the mean of the weights on the way is what is scored."""

from small_train import *  # noqa: F403


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, nesterov=True)


def train_on(model, batches, optimizer):
    steps, mean = 0, [parameter.detach().clone() for parameter in model.parameters()]
    for inputs, targets in batches:
        loss_of(model, inputs, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        torch._foreach_lerp_(mean, [parameter.detach() for parameter in model.parameters()], 0.05)
    with torch.no_grad():
        torch._foreach_copy_(list(model.parameters()), mean)
    return steps
