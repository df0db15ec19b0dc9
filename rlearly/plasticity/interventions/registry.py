"""Build the interventions that a config names."""

from __future__ import annotations

from rlearly.config.interventions import INTERVENTIONS
from rlearly.config.schema import RunConfig
from rlearly.plasticity.interventions.architecture import AddLayerNorm, AddSpectralNorm, UseCReLU
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.interventions.injection import PlasticityInjection
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
    """The interventions of a config, in the order of `CLASSES`, each with its own stream."""
    streams = {name: number for number, name in enumerate(INTERVENTIONS)}
    return [
        cls(
            getattr(config, cls.name),
            weights=seeds.torch("interventions", "cpu", streams[cls.name]),
        )
        for cls in CLASSES
        if cls.name in (config.intervention or ())
    ]
