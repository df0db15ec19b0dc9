"""The networks that TD3 and SAC have in common."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from rlearly.agents.modules import AgentModules, NetworkBuilder, each_layer
from rlearly.agents.network_factory import NetworkFactory
from rlearly.core.types import EnvSpec
from rlearly.nn.custom import copy_buffers_, custom_buffers, draws_dropout
from rlearly.nn.layers import draw_dropout_from
from rlearly.nn.networks import StateActor, StateCritic, fan_in_
from rlearly.nn.optim import Adam
from rlearly.nn.precision import ComputeOptions
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds


class StateActorCritic:
    """An actor and two critics for states, their target networks and random streams.

    actor_outputs: size of the actor's output. targets: names of the networks that get a target
    network, NAME_target. Weights are initialised as in CleanRL: uniform, by fan-in. factory: makes
    the networks of the user's own.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        actor_outputs: int,
        hidden_dim: int,
        factory: NetworkFactory | None,
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
            factory,
        )
        policy = self.builder.stack("actor", features, actor_outputs)
        q1, q2 = (self.builder.stack("critic", features + actions, 1) for _ in range(2))
        self.actor = self.builder.build(
            "actor", StateActor(features, actor_outputs, hidden_dim, policy=policy)
        )
        self.critic = self.builder.build(
            "critic", StateCritic(features, actions, hidden_dim, q1=q1, q2=q2)
        )
        self.networks: dict[str, nn.Module] = {"actor": self.actor, "critic": self.critic}
        self.targets = {f"{name}_target": name for name in targets}
        for target, name in self.targets.items():
            self.networks[target] = copy.deepcopy(self.networks[name])
        self.generators = {
            "exploration": seeds.torch("exploration"),
            "policy_noise": seeds.torch("policy_noise", device),
        }
        if draws_dropout(self.networks):
            self.generators["dropout"] = seeds.torch("dropout", device)
            draw_dropout_from(self.generators["dropout"], *self.networks.values())
        self._target_buffers = custom_buffers([self.networks[name] for name in self.targets])
        self._buffers = custom_buffers([self.networks[name] for name in self.targets.values()])

    def update_buffers(self) -> None:
        """Give the targets the statistics of networks of the user's own (BatchNorm's)."""
        copy_buffers_(self._target_buffers, self._buffers)

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
