"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from rlearly.nn.layers import SpectralLinear
from rlearly.nn.surgery import (
    bound_hidden,
    double_hidden,
    normalise_hidden,
    spectral_layers,
)
from rlearly.plasticity.interventions.base import Body, Intervention, _owned

# --- other layers ---


class LayerNorm(Intervention):
    """A LayerNorm before every activation."""

    name = "layer_norm"

    def shape(self, name: str, network: nn.Module) -> None:
        if self.is_for(name):
            normalise_hidden(network)


class CReLU(Intervention):
    """relu(x) beside relu(-x) in the place of relu(x)."""

    name = "crelu"

    def shape(self, name: str, network: nn.Module) -> None:
        if self.is_for(name):
            double_hidden(network)


class SpectralNorm(Intervention):
    """Linear layers that make hidden units have spectral norm 1 (arXiv 2105.05246).

    The norms are followed at each step of the optimizer that a network learns by, its target's
    too, and estimated anew where another intervention has changed weights.
    """

    name = "spectral_norm"

    def shape(self, name: str, network: nn.Module) -> None:
        if self.is_for(name):
            bound_hidden(network)

    def attach(self, body: Body) -> None:
        super().attach(body)
        self.settle()
        for optimizer in body.optimizers.values():
            owned = _owned(optimizer)
            follows = [
                layer
                for name, leader in body.leaders.items()
                if owned & {id(p) for p in leader.parameters()}
                for network in body.with_targets(name)
                for layer in spectral_layers(network)
            ]
            optimizer.register_step_post_hook(partial(_iterate, follows))

    def settle(self) -> None:
        for network in self.body.networks.values():
            for layer in spectral_layers(network):
                layer.begin_anew()


def _iterate(follows: Sequence[SpectralLinear], *step: Any) -> None:
    for layer in follows:
        layer.iterate()
