"""TODO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rlearly.config.interventions import INTERVENTIONS
from rlearly.config.schema import RunConfig
from rlearly.system.seeding import Seeds

if TYPE_CHECKING:
    pass
from rlearly.plasticity.interventions.architecture import AddLayerNorm, AddSpectralNorm, UseCReLU
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.interventions.injection import PlasticityInjection
from rlearly.plasticity.interventions.redo import ReDo
from rlearly.plasticity.interventions.regularisers import WeightRegularizer
from rlearly.plasticity.interventions.resets import ResetLayers, ShrinkAndPerturb
from rlearly.plasticity.interventions.switches import FreezeEncoder, SwitchAugmentation

# --- by name ---


def build_interventions(config: RunConfig, seeds: Seeds) -> list[Intervention]:
    """The interventions that a config names, layers first, in an order of their own."""

    def weights(name: str) -> torch.Generator:
        return seeds.torch("interventions", "cpu", list(INTERVENTIONS).index(name))

    c = config
    make = {
        "layer_norm": lambda: AddLayerNorm(c.layer_norm.networks),
        "crelu": lambda: UseCReLU(c.crelu.networks),
        "spectral_norm": lambda: AddSpectralNorm(c.spectral_norm.networks),
        "injection": lambda: PlasticityInjection(
            c.injection.at_step, networks=c.injection.networks, weights=weights("injection")
        ),
        "weight_decay": lambda: WeightRegularizer(
            "weight_decay",
            c.weight_decay.strength,
            to_start=False,
            networks=c.weight_decay.networks,
        ),
        "l2_init": lambda: WeightRegularizer(
            "l2_init", 2 * c.l2_init.strength, to_start=True, networks=c.l2_init.networks
        ),
        "freeze_encoder": lambda: FreezeEncoder(c.freeze_encoder.at_step),
        "augmentation": lambda: SwitchAugmentation(c.augmentation.at_step, on=c.augmentation.on),
        "shrink_perturb": lambda: ShrinkAndPerturb(
            c.shrink_perturb.every_steps,
            alpha=c.shrink_perturb.alpha,
            alpha_min=c.shrink_perturb.alpha_min,
            alpha_max=c.shrink_perturb.alpha_max,
            scope=c.shrink_perturb.scope,
            threshold=c.plasticity.dormant_threshold,
            networks=c.shrink_perturb.networks,
            weights=weights("shrink_perturb"),
        ),
        "reset": lambda: ResetLayers(
            c.reset.every_steps,
            layers=c.reset.layers,
            networks=c.reset.networks,
            weights=weights("reset"),
        ),
        "redo": lambda: ReDo(
            c.redo.every_steps,
            threshold=c.redo.threshold,
            networks=c.redo.networks,
            weights=weights("redo"),
        ),
    }
    return [make[name]() for name in make if name in (config.intervention or ())]
