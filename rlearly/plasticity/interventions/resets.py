"""TODO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlearly.core.errors import ConfigError
from rlearly.core.types import Metrics
from rlearly.nn.networks import layers
from rlearly.nn.surgery import (
    injected_heads,
    recorded_stacks,
)
from rlearly.plasticity.measures import dormant_ratio

if TYPE_CHECKING:
    pass
from rlearly.plasticity.interventions.base import PeriodicIntervention

# --- other weights, between updates ---


class ShrinkAndPerturb(PeriodicIntervention):
    """theta <- alpha * theta + (1 - alpha) * phi, with phi freshly initialised, once an interval.

    With `alpha` None it is clip(1 - 2 * dormancy, alpha_min, alpha_max) of the actor's dormant
    ratio (DrM, arXiv 2310.19668, section 4.2), so a network that responds is barely touched and a
    dormant one is mostly renewed. Where the agent measures that ratio at every update, the last
    one counts and the interval's first update begins with this; elsewhere it ends with this, and
    its own hidden units at `threshold` count.

    scope "linear" (the official code's): weights and biases of the Linear layers of every network
    but the encoder. scope "all" (the paper's words): every layer, the encoder's and the
    normalisations' included (PPO's log std is none). Each network draws a phi of its own, a target
    as well. The optimizers begin anew with the networks it is for, the encoder too if it is for
    all (official).
    """

    name = "shrink_perturb"

    def __init__(
        self,
        every_steps: int,
        *,
        alpha: float | None = None,
        alpha_min: float = 0.2,
        alpha_max: float = 1.0,
        scope: str = "linear",
        threshold: float = 0.025,
        networks: Sequence[str] | None = None,
        weights: torch.Generator,
    ):
        super().__init__(every_steps, networks=networks, weights=weights)
        if alpha_min > alpha_max:
            raise ConfigError(
                f"alpha_min: expected at most alpha_max = {alpha_max}, received {alpha_min}."
            )
        self.alpha = alpha
        self.alpha_min = alpha_min
        self.alpha_max = alpha_max
        self.scope = scope
        self.threshold = threshold

    def before_update(self, step: int) -> Metrics:
        if not self.timer.is_due(step):
            return {}
        if self.alpha is not None:
            return self._apply(step, torch.tensor(self.alpha))
        if self.modules.dormancy is not None:
            return self._apply(step, self._keep(self.modules.dormancy))
        return {}

    def needs_activations(self, step: int) -> bool:
        return self.timer.is_due(step)

    def after_update(self, step: int, units: Mapping[str, list[Tensor]]) -> Metrics:
        return self._apply(step, self._keep(dormant_ratio(units["actor"], self.threshold)))

    def _keep(self, dormancy: Tensor) -> Tensor:
        """alpha."""
        return (1.0 - 2.0 * dormancy).clamp(self.alpha_min, self.alpha_max)

    @torch.no_grad()
    def _apply(self, step: int, alpha: Tensor) -> Metrics:
        self.timer.done(step)
        for name, network in self.modules.networks.items():
            leader = self.modules.targets.get(name, name)
            if not self.applies_to(leader) or (self.scope == "linear" and name == "encoder"):
                continue
            fresh = self.modules.fresh_copy(name, self.weights)
            led = layers(self.modules.networks[leader])
            for layer, new, own in zip(layers(network), layers(fresh), led, strict=True):
                learns = all(p.requires_grad for p in own.parameters())
                if learns and (self.scope == "all" or isinstance(layer, nn.Linear)):
                    for old, phi in zip(layer.parameters(), new.parameters(), strict=True):
                        old.mul_(alpha).add_(phi.to(old.device) * (1.0 - alpha))
        if self.networks is None:
            for optimizer in self.modules.optimizers.values():
                optimizer.state.clear()
        for name in self._named():
            self.modules.reset_optimizer_state(self.modules.networks[name].parameters())
        return {"event/perturbation_alpha": alpha}


class ResetLayers(PeriodicIntervention):
    """Heads, or only their last layers, begin anew once an interval (arXiv 2205.07802).

    layers "heads": the whole stacks of linear layers after encoder and trunk; "last": the layer
    that gives the output (PPO's log std stays). A target takes its leader's fresh weights, and the
    optimizers begin anew with what was reset. An injected head is a plain one from then on.
    """

    name = "reset"

    def __init__(
        self,
        every_steps: int,
        *,
        layers: str = "heads",
        networks: Sequence[str] | None = None,
        weights: torch.Generator,
    ):
        super().__init__(every_steps, networks=networks, weights=weights)
        self.layers = layers

    def before_update(self, step: int) -> Metrics:
        if not self.timer.is_due(step):
            return {}
        self.timer.done(step)
        for name in self._named():
            for network in self.modules.online_and_targets(name):
                for head in injected_heads(network):
                    head.retire()
            fresh = self.modules.fresh_copy(name, self.weights)
            for network in self.modules.online_and_targets(name):
                for layer, new in zip(self._reset(network), self._reset(fresh), strict=True):
                    layer.load_state_dict(new.state_dict())
            self.modules.reset_optimizer_state(
                p for layer in self._reset(self.modules.networks[name]) for p in layer.parameters()
            )
        self.modules.freeze_targets()
        return {"event/reset": 1.0}

    def _reset(self, network: nn.Module) -> list[nn.Module]:
        """The layers that are reset."""
        found: list[nn.Module] = []
        for _, head in recorded_stacks(network):
            own = list(layers(head))
            if not any(isinstance(layer, nn.Conv2d) for layer in own):
                found += own if self.layers == "heads" else own[-1:]
        return found
