"""Interventions that change layers: normalisation before activations, CReLU, spectral norms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from rlearly.config.interventions import CReLUConfig, LayerNormConfig, SpectralNormConfig
from rlearly.nn.layers import SpectralLinear
from rlearly.nn.surgery import add_layer_norm, spectral_layers, use_crelu, use_spectral_norm
from rlearly.plasticity.interventions.base import Intervention, ModulesView, parameter_ids


class AddLayerNorm(Intervention):
    """A LayerNorm before every activation."""

    name = "layer_norm"
    config: LayerNormConfig
    needs_stacks = True

    def modify(self, name: str, network: nn.Module) -> None:
        if self.applies_to(name):
            add_layer_norm(network)


class UseCReLU(Intervention):
    """CReLU, the concatenation of relu(x) and relu(-x), instead of every ReLU."""

    name = "crelu"
    config: CReLUConfig
    needs_stacks = True

    def modify(self, name: str, network: nn.Module) -> None:
        if self.applies_to(name):
            use_crelu(network)


class AddSpectralNorm(Intervention):
    """Hidden linear layers divided by their spectral norm (arXiv 2105.05246).

    Each step of the optimizer that updates a network also refines the norm estimates of that
    network and of its target. They restart when another intervention has changed weights.
    """

    name = "spectral_norm"
    config: SpectralNormConfig
    needs_stacks = True

    def modify(self, name: str, network: nn.Module) -> None:
        if self.applies_to(name):
            use_spectral_norm(network)

    def attach(self, modules: ModulesView) -> None:
        super().attach(modules)
        self.weights_changed()
        for optimizer in modules.optimizers.values():
            updated = parameter_ids(optimizer)
            layers = [
                layer
                for name, online in modules.online.items()
                if updated & {id(p) for p in online.parameters()}
                for network in modules.online_and_targets(name)
                for layer in spectral_layers(network)
            ]
            optimizer.register_step_post_hook(partial(_iterate, layers))

    def weights_changed(self) -> None:
        for network in self.modules.networks.values():
            for layer in spectral_layers(network):
                layer.restart_estimate()


def _iterate(layers: Sequence[SpectralLinear], *_: Any) -> None:
    for layer in layers:
        layer.iterate()
