"""Functions that make networks, as a user's own module may hold them; good and bad ones."""

from itertools import pairwise

import torch
from torch import nn

from rlearly.nn.layers import Dropout, RecordedStack
from rlearly.nn.networks import mlp


class Residual(nn.Module):
    """x + MLP(x), so that no flat stack can express it."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.inner(x)


def residual(name, inputs, outputs, width=12, blocks=1):
    if name == "encoder":
        return convolutions(name, inputs, outputs)
    parts = [nn.Linear(inputs[0], width), *(Residual(width) for _ in range(blocks)), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def relus(name, inputs, outputs, width=12):
    if name == "encoder":
        return convolutions(name, inputs, outputs)
    hidden = [nn.Linear(inputs[0], width), nn.LayerNorm(width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


def batch_norm(name, inputs, outputs, width=12):
    if name == "encoder":
        layers = [nn.Conv2d(inputs[0], 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10), nn.ReLU())
    hidden = [nn.Linear(inputs[0], width), nn.BatchNorm1d(width), nn.ReLU(), Dropout(0.1)]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def convolutions(name, inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs[0], 4, 5, stride=3), nn.ReLU(), nn.Flatten())


def our_stack(name, inputs, outputs):
    """Three hidden layers in the agent's own kind of stack."""
    if name == "encoder":
        first = nn.Conv2d(inputs[0], 4, 4, stride=3)
        return RecordedStack(first, nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
    widths, layers = (inputs[0], 12, 10, 8), []
    for ins, outs in pairwise(widths):
        layers += [nn.Linear(ins, outs), nn.ReLU()]
    return RecordedStack(*layers, nn.Linear(8, outputs))


def our_tanh_stack(name, inputs, outputs):
    return mlp(inputs[0], 9, outputs, nn.Tanh)


def only_the_critic(name, inputs, outputs):
    return residual(name, inputs, outputs) if name == "critic" else None


class Nested(nn.Module):
    """Holds one of our stacks, which nobody but it may touch."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.stack = mlp(inputs, 8, outputs)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.stack(x)


def nested(name, inputs, outputs):
    return convolutions(name, inputs, outputs) if name == "encoder" else Nested(*inputs, outputs)


def unmeasured(name, inputs, outputs):
    """Has no activation layer."""
    if name == "encoder":
        return None
    return nn.Sequential(nn.Linear(inputs[0], 6), nn.LayerNorm(6), nn.Linear(6, outputs))


def one_too_many(name, inputs, outputs):
    return nn.Linear(inputs[0], outputs + 1) if name == "actor" else None


def squeezed(name, inputs, outputs):
    return nn.Sequential(nn.Linear(inputs[0], 1), nn.Flatten(0)) if name == "critic" else None


def doubles(name, inputs, outputs):
    return nn.Linear(inputs[0], outputs).double() if name == "actor" else None


def maps(name, inputs, outputs):
    return nn.Conv2d(inputs[0], 4, 3) if name == "encoder" else None


def wrong_inputs(name, inputs, outputs):
    return nn.Linear(inputs[0] + 1, outputs) if name == "actor" else None


def text(name, inputs, outputs):
    return "an actor"


def raises(name, inputs, outputs):
    return nn.Linear(inputs["width"], outputs)


SHARED = nn.Linear(10, 1)


def shared(name, inputs, outputs):
    return SHARED if name == "critic" else None


def torch_dropout(name, inputs, outputs):
    if name != "actor":
        return None
    return nn.Sequential(nn.Linear(inputs[0], 4), nn.Dropout(0.1), nn.Linear(4, outputs))


def frozen(name, inputs, outputs):
    return nn.Linear(inputs[0], outputs).requires_grad_(False) if name == "actor" else None


def padded(name, inputs, outputs):
    if name != "encoder":
        return None
    return RecordedStack(nn.Conv2d(inputs[0], 4, 3, padding=1), nn.ReLU())


def gelu_stack(name, inputs, outputs):
    if name != "actor":
        return None
    return RecordedStack(nn.Linear(inputs[0], 4), nn.GELU(), nn.Linear(4, outputs))


def endless(name, inputs, outputs):
    if name != "actor":
        return None
    return RecordedStack(nn.Linear(inputs[0], outputs), nn.ReLU())
