"""The networks that TD3 and SAC have in common."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from rlearly.agents.modules import AgentModules, NetworkBuilder, each_layer
from rlearly.core.types import EnvSpec
from rlearly.nn.networks import StateActor, StateCritic, fan_in_
from rlearly.nn.optim import Adam
from rlearly.nn.precision import ComputeOptions
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds


class StateActorCritic:
    """An actor and two critics for states, their target networks and random streams.

    actor_outputs: size of the actor's output. targets: names of the networks that get a target
    network, NAME_target. Weights are initialised as in CleanRL: uniform, by fan-in.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        actor_outputs: int,
        hidden_dim: int,
        targets: Sequence[str],
        seeds: Seeds,
        device: torch.device,
        interventions: Sequence[Intervention],
        compute: ComputeOptions | None,
    ):
        features, actions = int(np.prod(spec.observation.shape)), spec.action.shape[0]
        self.builder = NetworkBuilder(
            each_layer(fan_in_),
            seeds.torch("weights"),
            device,
            interventions,
            compute or ComputeOptions(),
        )
        self.actor = self.builder.build("actor", StateActor(features, actor_outputs, hidden_dim))
        self.critic = self.builder.build("critic", StateCritic(features, actions, hidden_dim))
        self.networks: dict[str, nn.Module] = {"actor": self.actor, "critic": self.critic}
        self.targets = {f"{name}_target": name for name in targets}
        for target, name in self.targets.items():
            self.networks[target] = copy.deepcopy(self.networks[name])
        self.generators = {
            "exploration": seeds.torch("exploration"),
            "policy_noise": seeds.torch("policy_noise", device),
        }

    def modules(
        self, optimizers: Mapping[str, Adam], monitor: PlasticityMonitor | None
    ) -> AgentModules:
        return AgentModules(
            self.networks,
            self.builder,
            targets=self.targets,
            optimizers=optimizers,
            generators=self.generators,
            monitor=monitor,
        )
