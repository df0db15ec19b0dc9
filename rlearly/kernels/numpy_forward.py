"""Networks as functions of numpy arrays, for acting; plain stacks are computed in numpy.

A state agent acts on one observation at a time with small networks, and torch's calls take six
times as long as the arithmetic. A plain stack on a CPU is therefore computed in numpy, on views of
its own parameters; any other network is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from rlearly.nn.custom import dropouts
from rlearly.nn.layers import without_dropout

Forward = Callable[[np.ndarray], np.ndarray]
"""float32 [N, inputs] -> a new array float32 [N, outputs]."""


class DenseLayer(NamedTuple):
    """A linear layer and the activation after it (None: none)."""

    linear: nn.Linear
    activation: type[nn.ReLU] | type[nn.Tanh] | None


def dense_layers(network: nn.Module) -> list[DenseLayer] | None:
    """The layers of a Sequential of linear layers, ReLUs and tanhs; None if it is anything else."""
    if not isinstance(network, nn.Sequential):
        return None
    found: list[DenseLayer] = []
    for part in network:
        if type(part) is nn.Linear and part.weight.dtype == torch.float32:
            found.append(DenseLayer(part, None))
        elif isinstance(part, nn.ReLU | nn.Tanh) and found and found[-1].activation is None:
            found[-1] = DenseLayer(found[-1].linear, type(part))
        else:
            return None
    return found or None


def make_forward(network: nn.Module) -> Forward:
    """The network as a function, which follows its weights but not a change of its layers."""
    layers = dense_layers(network)
    if layers is None or any(p.device.type != "cpu" for p in network.parameters()):
        return TorchForward(network)
    return NumpyForward(layers)


class TorchForward:
    """Calls the network, without dropout."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.dropouts = dropouts([network])

    @torch.no_grad()
    def __call__(self, rows: np.ndarray) -> np.ndarray:
        device = next(self.network.parameters()).device
        with without_dropout(self.dropouts):
            return self.network(torch.from_numpy(rows).to(device)).cpu().numpy()


class NumpyForward:
    """A plain stack on the CPU, computed row by row.

    A row's outputs are the same to the bit whatever the other rows are, which matrix products do
    not guarantee. They equal the network's own within rounding.
    """

    def __init__(self, layers: Sequence[DenseLayer]):
        self.layers = layers
        self.parameters = [p for layer in layers for p in (layer.linear.weight, layer.linear.bias)]
        self._bind()

    def _bind(self) -> None:
        """Look up the parameters in memory, and allocate a buffer for each layer's output."""
        self.addresses = [p.data_ptr() for p in self.parameters]
        arrays = [p.detach().numpy() for p in self.parameters]
        products = [weight.dot for weight in arrays[::2]]
        activations = [ACTIVATIONS[layer.activation] for layer in self.layers]
        buffers = [np.empty(len(bias), np.float32) for bias in arrays[1::2]]
        self.steps = list(zip(products, arrays[1::2], activations, buffers, strict=True))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if [p.data_ptr() for p in self.parameters] != self.addresses:  # they have moved
            self._bind()
        out = np.empty((len(rows), len(self.steps[-1][-1])), np.float32)
        for at, units in enumerate(rows):
            for times, bias, activate, buffer in self.steps:
                times(units, buffer)
                np.add(buffer, bias, buffer)
                if activate is not None:
                    activate(buffer, buffer)
                units = buffer
            out[at] = units
        return out


ZERO = np.float32(0)


def _relu(units: np.ndarray, out: np.ndarray) -> None:
    np.maximum(units, ZERO, out=out)


ACTIVATIONS = {None: None, nn.ReLU: _relu, nn.Tanh: np.tanh}
"""Activation -> a function of an input and an output array, which may be the same."""
