"""Interventions that switch something at one step: learning of the encoder, augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlearly.config.interventions import AugmentationConfig, FreezeEncoderConfig
from rlearly.core.types import Metrics
from rlearly.plasticity.interventions.base import Intervention, ModulesView


class FreezeEncoder(Intervention):
    """The encoder stops learning from one step on."""

    name = "freeze_encoder"
    config: FreezeEncoderConfig
    is_done = False

    def before_update(self, step: int) -> Metrics:
        if self.is_done or step < self.config.at_step:
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
    """Images are augmented from one step on, or only until that step."""

    name = "augmentation"
    config: AugmentationConfig

    def attach(self, modules: ModulesView) -> None:
        super().attach(modules)
        self._switch(0)

    def before_update(self, step: int) -> Metrics:
        before = self.modules.augments
        self._switch(step)
        switched = self.modules.augments != before
        return {"event/augmentation": float(self.config.on)} if switched else {}

    def _switch(self, step: int) -> None:
        self.modules.augments = self.config.on == (step >= self.config.at_step)

    def state_dict(self) -> dict[str, Any]:
        return {"augments": self.modules.augments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.augments = state["augments"]
