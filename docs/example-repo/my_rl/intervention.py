"""An intervention: weight clipping (arXiv 2407.01704)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlearly.config.fields import setting
from rlearly.plasticity.interventions.base import Intervention


@dataclass(frozen=True)
class ClipConfig:
    """The settings of weight clipping."""

    bound: float = setting(1.0, "largest absolute value of a weight", above=0)
    networks: list[str] | None = setting(None, "networks to apply it to; null: all")


class ClipWeights(Intervention):
    """No weight leaves [-bound, bound]."""

    config_class = ClipConfig

    @torch.no_grad()
    def before_update(self, step):
        for name in self.selected():
            for parameter in self.modules.networks[name].parameters():
                parameter.clamp_(-self.config.bound, self.config.bound)
        return {}
