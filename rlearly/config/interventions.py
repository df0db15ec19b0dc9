"""The settings of the interventions on networks, with their defaults.

Each dataclass is the settings group of one intervention, whose name it has in `RunConfig`. The
intervention's class in `rlearly.plasticity.interventions` is built from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlearly.config.fields import setting

NETWORKS = "networks to apply it to, as in [actor,critic]; null: all"


@dataclass(frozen=True)
class LayerNormConfig:
    """LayerNorm before every activation."""

    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class CReLUConfig:
    """CReLU instead of ReLU."""

    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class SpectralNormConfig:
    """Spectral normalisation of hidden linear layers."""

    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class InjectionConfig:
    """Plasticity injection into every head."""

    at_step: int = setting(100_000, "agent step of the injection", at_least=0)
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class WeightDecayConfig:
    """Adam's L2 term: gradient + strength * weight."""

    strength: float = setting(1e-5, "strength * weight is added to the gradient", above=0)
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class L2InitConfig:
    """Loss + strength * |weights - initial weights|^2."""

    strength: float = setting(1e-2, "weight of the squared distance in the loss", above=0)
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class FreezeEncoderConfig:
    """The encoder stops learning."""

    at_step: int = setting(0, "agent step from which it is frozen", at_least=0)


@dataclass(frozen=True)
class AugmentationConfig:
    """Data augmentation, switched once."""

    at_step: int = setting(0, "agent step of the switch; the opposite holds before it", at_least=0)
    on: bool = setting(False, "whether images are augmented from then on")


@dataclass(frozen=True)
class ShrinkPerturbConfig:
    """Weights are mixed with fresh ones."""

    every_steps: int = setting(100_000, "agent steps between perturbations", at_least=1)
    alpha: float | None = setting(
        None,
        "share of the old weights that is kept; null: depends on the actor's dormant ratio",
        at_least=0,
        at_most=1,
    )
    alpha_min: float = setting(0.2, "smallest share, if alpha is null", at_least=0, at_most=1)
    alpha_max: float = setting(1.0, "largest share, if alpha is null", at_least=0, at_most=1)
    scope: str = setting(
        "linear",
        "linear: linear layers outside the encoder; all: all layers",
        choices=("linear", "all"),
    )
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class ResetConfig:
    """Heads get fresh weights."""

    every_steps: int = setting(200_000, "agent steps between resets", at_least=1)
    layers: str = setting(
        "heads",
        "heads: all after encoder and trunk; last: output layers",
        choices=("heads", "last"),
    )
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class ReDoConfig:
    """Dormant units are recycled."""

    every_steps: int = setting(1000, "agent steps between recyclings", at_least=1)
    threshold: float = setting(0.1, "largest score of a dormant unit", at_least=0, at_most=1)
    networks: list[str] | None = setting(None, NETWORKS)


INTERVENTIONS = {
    "augmentation": "switch data augmentation on or off at a step",
    "crelu": "CReLU, the concatenation of relu(x) and relu(-x), instead of ReLU",
    "freeze_encoder": "stop training the encoder at a step",
    "injection": "plasticity injection: fresh heads that at first leave the outputs unchanged",
    "l2_init": "pull weights towards their initial values",
    "layer_norm": "LayerNorm before every activation",
    "redo": "recycle dormant units (ReDo)",
    "reset": "give heads, or their last layers, fresh weights",
    "shrink_perturb": "mix weights with fresh ones; the share is fixed or depends on dormancy",
    "spectral_norm": "divide the weights of hidden layers by their spectral norm",
    "weight_decay": "pull weights towards 0",
}
"""Name (also of the group of settings) -> one line of help.

Append new names at the end: a position selects the intervention's random stream.
"""
