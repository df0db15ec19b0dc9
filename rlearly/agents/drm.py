"""DrM (arXiv 2310.19668): DrQ-v2 with three parts driven by the actor's dormant ratio, beta.

Perturbation of the networks (`ShrinkAndPerturb`), exploration noise (`AwakenExploration`), and the
critic's target (`DormancyGuidedTarget`). The update itself is `DrQv2.update`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlearly.agents import drqv2
from rlearly.agents.drqv2 import DrQv2, make_encoder, network_builder, noise_schedule
from rlearly.agents.network_factory import NetworkFactory
from rlearly.config.fields import setting
from rlearly.config.interventions import ShrinkPerturbConfig
from rlearly.core.types import EnvSpec, Metrics
from rlearly.nn.networks import Features, Value
from rlearly.nn.optim import Adam, adam, optimize
from rlearly.nn.precision import ComputeOptions
from rlearly.nn.schedules import Schedule
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.interventions.resets import ShrinkAndPerturb
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds

AWAKE_BELOW = 0.2
"""The dormant ratio below which the agent is awake; the centre of both sigmoids."""


@dataclass(frozen=True)
class Config(drqv2.Config):
    """DrQ-v2's hyper-parameters and DrM's own; the defaults are the paper's for medium tasks."""

    perturb_every_steps: int = setting(
        100_000, "agent steps between perturbations", at_least=1, search="log(25000,400000)"
    )
    perturb_scope: str = setting(
        "linear",
        "linear: as in the official code; all: as in the paper",
        choices=("linear", "all"),
    )
    alpha_min: float = setting(
        0.2, "smallest share of the old weights that is kept", at_least=0, at_most=1
    )
    alpha_max: float = setting(
        1.0, "largest share of the old weights that is kept", at_least=0, at_most=1
    )
    dormancy_slope: float = setting(
        10.0, "slope of the noise as a function of the dormant ratio", above=0
    )
    expectile: float = setting(0.9, "expectile of Q that V fits", above=0, at_most=1)
    lambda_max: float = setting(
        0.6, "largest weight of V in the target", at_least=0, at_most=1, search="uniform(0,0.9)"
    )
    lambda_slope: float = setting(
        50.0, "slope of that weight as a function of the dormant ratio", above=0
    )
    lambda_constant: bool = setting(False, "keep the weight of V at lambda_max")


class AwakenExploration:
    """Noise that follows the dormant ratio; once the agent is awake, it is at least a schedule that
    starts at the awakening.

    sigma(beta) = 1 / (1 + exp(-slope * (beta - 0.2))). The agent awakens at the first update after
    `asleep_until_step` with beta < 0.2 (section 4.3). The awakening step is a tensor, so that
    nothing here waits for the device.
    """

    def __init__(
        self, schedule: Schedule, slope: float, asleep_until_step: int, device: torch.device
    ):
        self.schedule = schedule
        self.slope = slope
        self.asleep_until_step = asleep_until_step
        self.awaken_step = torch.full((), -1, dtype=torch.int64, device=device)

    def observe(self, step: int, dormancy: Tensor) -> None:
        if step > self.asleep_until_step:
            awakens = (self.awaken_step < 0) & (dormancy < AWAKE_BELOW)
            self.awaken_step = torch.where(awakens, step, self.awaken_step)

    def std(self, step: int, dormancy: Tensor) -> Tensor:
        asleep = torch.sigmoid(self.slope * (dormancy - AWAKE_BELOW))
        scheduled = torch.as_tensor(self.schedule(step - self.awaken_step)).to(asleep)
        return torch.where(self.awaken_step < 0, asleep, torch.maximum(asleep, scheduled))

    def metrics(self) -> Metrics:
        """The agent step of the awakening; -1 before it."""
        return {"exploration/awaken_step": self.awaken_step}

    def state_dict(self) -> dict[str, Any]:
        return {"awaken_step": self.awaken_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.awaken_step = state["awaken_step"].to(self.awaken_step.device)


class DormancyGuidedTarget:
    """lambda * V(s') + (1 - lambda) * min Q'(s', a'): the fewer neurons are dormant, the more V.

    V fits min(Q1, Q2) of the batch's actions by expectile regression (section 4.4).
    lambda = lambda_max / (1 + exp(slope * (beta - 0.2))), or always lambda_max if `constant`.
    """

    def __init__(
        self,
        value: Value,
        *,
        lr: float,
        expectile: float,
        lambda_max: float,
        slope: float,
        constant: bool,
    ):
        self.value_net = value
        self.optimizer = adam(value, lr)
        self.expectile = expectile
        self.lambda_max = lambda_max
        self.slope = slope
        self.constant = constant

    def networks(self) -> Mapping[str, nn.Module]:
        return {"value": self.value_net}

    def optimizers(self) -> Mapping[str, Adam]:
        return {"value": self.optimizer}

    def fit(self, features: Features, min_q: Tensor, activations: list[Tensor] | None) -> Metrics:
        error = min_q - self.value_net(features, activations)
        weight = torch.where(error > 0, self.expectile, 1.0 - self.expectile)
        loss = (weight * error.square()).mean()
        optimize(loss, self.optimizer)
        return {"loss/value": loss.detach()}

    def share(self, dormancy: Tensor) -> Tensor:
        """lambda, the weight of V in the target, as a tensor []."""
        if self.constant:
            return torch.full_like(dormancy, self.lambda_max)
        return self.lambda_max * torch.sigmoid(-self.slope * (dormancy - AWAKE_BELOW))

    def value(self, next_features: Features, min_q: Tensor, dormancy: Tensor) -> Tensor:
        return torch.lerp(min_q, self.value_net(next_features), self.share(dormancy))


def make(
    config: Config,
    spec: EnvSpec,
    *,
    seeds: Seeds,
    device: torch.device,
    monitor: PlasticityMonitor | None = None,
    interventions: Sequence[Intervention] = (),
    compute: ComputeOptions | None = None,
) -> DrQv2:
    """DrQ-v2 with DrM's three parts, and any further interventions."""
    perturbation = ShrinkAndPerturb(
        ShrinkPerturbConfig(
            every_steps=config.perturb_every_steps,
            alpha_min=config.alpha_min,
            alpha_max=config.alpha_max,
            scope=config.perturb_scope,
        ),
        weights=seeds.torch("perturbation"),
    )
    factory = NetworkFactory.of(config)
    builder = network_builder(seeds, device, [*interventions, perturbation], compute, factory)
    encoder = make_encoder(config, spec, builder)
    sizes = (encoder.features, config.feature_dim, config.hidden_dim)
    v = builder.stack("value", config.feature_dim, 1)
    value = Value(*sizes, encoder.vector, v=v)
    return DrQv2(
        config,
        spec,
        seeds=seeds,
        device=device,
        builder=builder,
        encoder=encoder,
        exploration=AwakenExploration(
            noise_schedule(config), config.dormancy_slope, config.exploration_steps, device
        ),
        target=DormancyGuidedTarget(
            builder.build("value", value),
            lr=config.lr,
            expectile=config.expectile,
            lambda_max=config.lambda_max,
            slope=config.lambda_slope,
            constant=config.lambda_constant,
        ),
        monitor=monitor,
    )


SPEC = replace(
    drqv2.SPEC,
    config_class=Config,
    make=make,
    networks=(*drqv2.SPEC.networks, "value"),
    refused_interventions={
        "shrink_perturb": "it is one of DrM's own parts: set agent.perturb_every_steps"
    },
)
