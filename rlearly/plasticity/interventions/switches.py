"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlearly.core.types import Metrics
from rlearly.plasticity.interventions.base import Intervention, ModulesView


class FreezeEncoder(Intervention):
    """From one step on the encoder learns no more."""

    name = "freeze_encoder"

    def __init__(self, at_step: int):
        super().__init__(["encoder"])
        self.at_step = at_step
        self.is_done = False

    def before_update(self, step: int) -> Metrics:
        if self.is_done or step < self.at_step:
            return {}
        self._freeze()
        return {"event/freeze_encoder": 1.0}

    def _freeze(self) -> None:
        self.is_done = True
        self.modules.networks["encoder"].requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        return {"is_done": self.is_done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["is_done"]:
            self._freeze()


class SwitchAugmentation(Intervention):
    """Images are augmented from one step on, or until then."""

    name = "augmentation"

    def __init__(self, at_step: int, *, on: bool):
        super().__init__()
        self.at_step = at_step
        self.on = on

    def attach(self, modules: ModulesView) -> None:
        super().attach(modules)
        modules.augments = self.on == (self.at_step == 0)

    def before_update(self, step: int) -> Metrics:
        before = self.modules.augments
        self.modules.augments = self.on == (step >= self.at_step)
        return {"event/augmentation": float(self.on)} if self.modules.augments != before else {}

    def state_dict(self) -> dict[str, Any]:
        return {"augments": self.modules.augments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.augments = state["augments"]
