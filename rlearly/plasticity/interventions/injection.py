"""TODO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlearly.core.types import Metrics
from rlearly.nn.surgery import (
    injected_heads,
    make_injectable,
)
from rlearly.system.seeding import restore

if TYPE_CHECKING:
    pass
from rlearly.plasticity.interventions.base import Intervention


class PlasticityInjection(Intervention):
    """At one step, heads go on learning with fresh weights, their outputs unchanged.

    arXiv 2305.15555, section 3, on every head of the networks it is for. Until then, and but for
    them, the run is what it would be without.
    """

    name = "injection"

    def __init__(
        self, at_step: int, *, networks: Sequence[str] | None = None, weights: torch.Generator
    ):
        super().__init__(networks)
        self.at_step = at_step
        self.weights = weights
        self.is_done = False

    def initialised(self, name: str, network: nn.Module) -> None:
        if self.applies_to(name):
            make_injectable(network)

    def before_update(self, step: int) -> Metrics:
        if self.is_done or step < self.at_step:
            return {}
        self.is_done = True
        for name in self._named():
            fresh = [
                head.base for head in injected_heads(self.modules.fresh_copy(name, self.weights))
            ]
            for network in self.modules.online_and_targets(name):
                for head, new in zip(injected_heads(network), fresh, strict=True):
                    head.inject(new)
        self.modules.freeze_targets()
        return {"event/injection": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {"is_done": self.is_done, "weights": self.weights.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.is_done = state["is_done"]
        restore(self.weights, state["weights"])
