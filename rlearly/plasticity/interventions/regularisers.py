"""Interventions that pull weights towards 0 or towards their initial values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlearly.config.interventions import L2InitConfig, WeightDecayConfig
from rlearly.plasticity.interventions.base import Intervention, ModulesView, parameter_ids


class WeightRegularizer(Intervention):
    """Adds `gradient_scale` times a weight's distance from its origin to its gradient.

    It is added just before the optimizer uses the gradient, which equals a term in the loss, except
    that PPO's clipping of the gradient's norm does not include it.
    """

    config: WeightDecayConfig | L2InitConfig
    toward_initial = False
    """Whether the origin is the initial weight; otherwise it is 0."""

    @property
    def gradient_scale(self) -> float:
        return self.config.strength

    def attach(self, modules: ModulesView) -> None:
        super().attach(modules)
        weights = {name: list(modules.networks[name].parameters()) for name in self.selected()}
        self.origins = {
            name: [p.detach().clone() for p in own]
            for name, own in weights.items()
            if self.toward_initial
        }
        for optimizer in modules.optimizers.values():
            updated = parameter_ids(optimizer)
            pairs: list[tuple[nn.Parameter, Tensor | None]] = []
            for name, own in weights.items():
                origins = self.origins.get(name) or [None] * len(own)
                both = zip(own, origins, strict=True)
                pairs += [(p, origin) for p, origin in both if id(p) in updated]
            optimizer.register_step_pre_hook(partial(self._add, pairs))

    @torch.no_grad()
    def _add(self, pairs: Sequence[tuple[nn.Parameter, Tensor | None]], *_: Any) -> None:
        for parameter, origin in pairs:
            if parameter.grad is not None:
                distance = parameter if origin is None else parameter - origin
                parameter.grad.add_(distance, alpha=self.gradient_scale)

    @torch.no_grad()
    def took_over(self, saved: Mapping[str, Any] | None) -> None:
        """The initial weights of a run are those that it begins with."""
        for name, origins in self.origins.items():
            for origin, weight in zip(
                origins, self.modules.networks[name].parameters(), strict=True
            ):
                origin.copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.origins}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, origins in self.origins.items():
            for origin, saved in zip(origins, state["start"][name], strict=True):
                origin.copy_(saved)


class WeightDecay(WeightRegularizer):
    """Pulls weights towards 0: gradient + strength * weight, as Adam's `weight_decay` does."""

    name = "weight_decay"


class L2Init(WeightRegularizer):
    """Pulls weights towards their initial values (L2 Init, arXiv 2308.11958).

    The loss gains strength * |weights - initial weights|^2; its gradient has a factor of 2.
    """

    name = "l2_init"
    toward_initial = True

    @property
    def gradient_scale(self) -> float:
        return 2 * self.config.strength
