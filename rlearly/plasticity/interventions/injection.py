"""Plasticity injection: fresh heads that start at the output of the old ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rlearly.config.interventions import InjectionConfig
from rlearly.core.types import Metrics
from rlearly.nn.surgery import injected_heads, make_injectable
from rlearly.plasticity.interventions.base import Intervention
from rlearly.system.seeding import restore


class PlasticityInjection(Intervention):
    """From one step on, heads learn with fresh weights; their outputs do not jump.

    arXiv 2305.15555, section 3, on every head of the selected networks. Until that step, and in
    all other networks, the run equals the run without the injection.
    """

    name = "injection"
    config: InjectionConfig
    needs_stacks = True

    def __init__(self, config: InjectionConfig, *, weights: torch.Generator):
        super().__init__(config)
        self.weights = weights
        self.is_done = False

    def initialised(self, name: str, network: nn.Module) -> None:
        if self.applies_to(name):
            make_injectable(network)

    def before_update(self, step: int) -> Metrics:
        if self.is_done or step < self.config.at_step:
            return {}
        self.is_done = True
        for name in self.selected():
            fresh = injected_heads(self.modules.fresh_copy(name, self.weights))
            for network in self.modules.online_and_targets(name):
                for head, new in zip(injected_heads(network), fresh, strict=True):
                    head.inject(new.base)
        self.modules.freeze_targets()
        return {"event/injection": 1.0}

    def took_over(self, saved: Mapping[str, Any] | None) -> None:
        """Heads that were injected there are not injected again: their output would jump."""
        self.is_done = bool(saved and saved["is_done"])

    def state_dict(self) -> dict[str, Any]:
        return {"is_done": self.is_done, "weights": self.weights.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.is_done = state["is_done"]
        restore(self.weights, state["weights"])
