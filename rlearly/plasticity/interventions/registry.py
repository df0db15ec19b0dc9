"""Build the interventions that a config names."""

from __future__ import annotations

from typing import Any

from rlearly.config.interventions import INTERVENTIONS
from rlearly.config.plugins import is_plugin
from rlearly.config.schema import RunConfig
from rlearly.plasticity.interventions.architecture import AddLayerNorm, AddSpectralNorm, UseCReLU
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.interventions.injection import PlasticityInjection
from rlearly.plasticity.interventions.own import build_own, own_settings
from rlearly.plasticity.interventions.redo import ReDo
from rlearly.plasticity.interventions.regularisers import L2Init, WeightDecay
from rlearly.plasticity.interventions.resets import ResetLayers, ShrinkAndPerturb
from rlearly.plasticity.interventions.switches import FreezeEncoder, SwitchAugmentation
from rlearly.system.seeding import Seeds

CLASSES: tuple[type[Intervention], ...] = (
    AddLayerNorm,
    UseCReLU,
    AddSpectralNorm,
    PlasticityInjection,
    WeightDecay,
    L2Init,
    FreezeEncoder,
    SwitchAugmentation,
    ShrinkAndPerturb,
    ResetLayers,
    ReDo,
)
"""All interventions, in the order in which they act; those that change layers come first."""


def build_interventions(config: RunConfig, seeds: Seeds) -> list[Intervention]:
    """The interventions of a config, in the order of `CLASSES`, then the user's own; each has its
    own stream."""
    streams = {name: number for number, name in enumerate(INTERVENTIONS)}
    ours = [
        cls(
            getattr(config, cls.name),
            weights=seeds.torch("interventions", "cpu", streams[cls.name]),
        )
        for cls in CLASSES
        if cls.name in (config.intervention or ())
    ]
    return [*ours, *build_own(config, seeds)]


def settings_of(config: RunConfig, name: str) -> Any:
    """The settings of one of a run's interventions."""
    return own_settings(config)[name] if is_plugin(name) else getattr(config, name)
