"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from rlearly.nn.layers import SpectralLinear
from rlearly.nn.surgery import (
    add_layer_norm,
    spectral_layers,
    use_crelu,
    use_spectral_norm,
)
from rlearly.plasticity.interventions.base import Intervention, ModulesView, _owned

# --- other layers ---


class AddLayerNorm(Intervention):
    """A LayerNorm before every activation."""

    name = "layer_norm"

    def modify(self, name: str, network: nn.Module) -> None:
        if self.applies_to(name):
            add_layer_norm(network)


class UseCReLU(Intervention):
    """relu(x) beside relu(-x) in the place of relu(x)."""

    name = "crelu"

    def modify(self, name: str, network: nn.Module) -> None:
        if self.applies_to(name):
            use_crelu(network)


class AddSpectralNorm(Intervention):
    """Linear layers that make hidden units have spectral norm 1 (arXiv 2105.05246).

    The norms are followed at each step of the optimizer that a network learns by, its target's
    too, and estimated anew where another intervention has changed weights.
    """

    name = "spectral_norm"

    def modify(self, name: str, network: nn.Module) -> None:
        if self.applies_to(name):
            use_spectral_norm(network)

    def attach(self, modules: ModulesView) -> None:
        super().attach(modules)
        self.weights_changed()
        for optimizer in modules.optimizers.values():
            owned = _owned(optimizer)
            follows = [
                layer
                for name, leader in modules.online.items()
                if owned & {id(p) for p in leader.parameters()}
                for network in modules.online_and_targets(name)
                for layer in spectral_layers(network)
            ]
            optimizer.register_step_post_hook(partial(_iterate, follows))

    def weights_changed(self) -> None:
        for network in self.modules.networks.values():
            for layer in spectral_layers(network):
                layer.begin_anew()


def _iterate(follows: Sequence[SpectralLinear], *step: Any) -> None:
    for layer in follows:
        layer.iterate()
