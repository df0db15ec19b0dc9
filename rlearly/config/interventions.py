"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

from rlearly.config.fields import setting

NETWORKS = "networks it is for, as in [actor,critic]; null: all"


@dataclass(frozen=True)
class LayerNormConfig:
    """LayerNorm before every activation."""

    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class CReLUConfig:
    """CReLU in the place of ReLU."""

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

    strength: float = setting(1e-5, "of the pull to 0", above=0)
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class L2InitConfig:
    """Loss + strength * |weights - initial weights|^2."""

    strength: float = setting(1e-2, "of the pull to the initial weights", above=0)
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class FreezeEncoderConfig:
    """The encoder stops learning."""

    at_step: int = setting(0, "agent step from which it does", at_least=0)


@dataclass(frozen=True)
class AugmentationConfig:
    """Data augmentation, switched once."""

    at_step: int = setting(0, "agent step of the switch; the opposite holds before it", at_least=0)
    on: bool = setting(False, "whether images are augmented from then on")


@dataclass(frozen=True)
class ShrinkPerturbConfig:
    """Weights are mixed with fresh ones."""

    every_steps: int = setting(100_000, "agent steps between two", at_least=1)
    alpha: float | None = setting(
        None, "weight that is kept; null: by the actor's dormant ratio", at_least=0, at_most=1
    )
    alpha_min: float = setting(0.2, "least that is kept, by dormancy", at_least=0, at_most=1)
    alpha_max: float = setting(1.0, "most that is kept, by dormancy", at_least=0, at_most=1)
    scope: str = setting(
        "linear", "linear: linear layers, not the encoder; all: all", choices=("linear", "all")
    )
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class ResetConfig:
    """Heads begin anew."""

    every_steps: int = setting(200_000, "agent steps between two", at_least=1)
    layers: str = setting(
        "heads",
        "heads: all after encoder and trunk; last: output layers",
        choices=("heads", "last"),
    )
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class ReDoConfig:
    """Dormant units are recycled."""

    every_steps: int = setting(1000, "agent steps between two", at_least=1)
    threshold: float = setting(0.1, "a unit of at most this score is", at_least=0, at_most=1)
    networks: list[str] | None = setting(None, NETWORKS)


INTERVENTIONS = {
    "augmentation": "switch data augmentation on or off at a step",
    "crelu": "relu(x) beside relu(-x) in the place of ReLU",
    "freeze_encoder": "no more learning of the encoder from a step on",
    "injection": "plasticity injection: fresh heads whose outputs begin at the old ones'",
    "l2_init": "pull the weights to where they began",
    "layer_norm": "LayerNorm before every activation",
    "redo": "recycle dormant units (ReDo)",
    "reset": "give heads, or their last layers, fresh weights",
    "shrink_perturb": "mix the weights with fresh ones, by dormancy or by a fixed share",
    "spectral_norm": "divide the weights of hidden layers by their spectral norm",
    "weight_decay": "pull the weights to 0",
}
"""Name -> one line. Each has a group of settings of its name."""
