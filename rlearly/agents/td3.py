"""TD3 (arXiv 1802.09477) for states, with CleanRL's hyper-parameters and order of operations."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlearly.agents.modules import AgentModules, NetworkBuilder, each_layer
from rlearly.agents.spec import AgentSpec
from rlearly.config.fields import setting
from rlearly.core.types import Batch, EnvSpec, Metrics
from rlearly.kernels.numpy_forward import Forward, make_forward
from rlearly.nn.networks import StateActor, StateCritic, fan_in_
from rlearly.nn.optim import adam, frozen, optimize, polyak_update_
from rlearly.nn.precision import ComputeOptions
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds


@dataclass(frozen=True)
class Config:
    """TD3's hyper-parameters; the defaults are CleanRL's."""

    lr: float = setting(3e-4, "Adam's learning rate, for both networks", above=0)
    batch_size: int = setting(256, "transitions per update", at_least=1)
    nstep: int = setting(1, "agent steps of reward before bootstrapping", at_least=1)
    discount: float = setting(0.99, "gamma per agent step", at_least=0, at_most=1)
    hidden_dim: int = setting(256, "units per hidden layer", at_least=1)
    target_tau: float = setting(0.005, "Polyak rate of the target networks", above=0, at_most=1)
    learning_starts_steps: int = setting(
        25_000, "agent steps of uniform random actions before the first update", at_least=0
    )
    exploration_noise: float = setting(0.1, "std of the exploration noise", at_least=0)
    policy_noise: float = setting(0.2, "std of the target action's noise", at_least=0)
    noise_clip: float = setting(0.5, "clip of the target action's noise", at_least=0)
    policy_every_updates: int = setting(2, "critic updates per actor update", at_least=1)

    def seed_frames(self, frames_per_step: int) -> int:
        """Simulator frames before the first update."""
        return self.learning_starts_steps * frames_per_step


class TD3:
    """The agent. One instance learns on one device.

    Deviations from CleanRL: actions are learnt in [-1, 1] whatever the env's bounds; the delayed
    updates are counted in updates, not env steps (equal at replay ratio 1, and right at others).
    """

    def __init__(
        self,
        config: Config,
        spec: EnvSpec,
        *,
        seeds: Seeds,
        device: torch.device,
        monitor: PlasticityMonitor | None = None,
        interventions: Sequence[Intervention] = (),
        compute: ComputeOptions | None = None,
    ):
        self.config = config
        self.device = device
        self.actions = spec.action.shape[0]
        features = int(np.prod(spec.observation.shape))
        builder = NetworkBuilder(
            each_layer(fan_in_),
            seeds.torch("weights"),
            device,
            interventions,
            compute or ComputeOptions(),
        )
        actor = StateActor(features, self.actions, config.hidden_dim)
        critic = StateCritic(features, self.actions, config.hidden_dim)
        self.actor = builder.build("actor", actor)
        self.critic = builder.build("critic", critic)
        self.actor_target = copy.deepcopy(self.actor)
        self.critic_target = copy.deepcopy(self.critic)
        self.critic_parameters = list(self.critic.parameters())
        self.targets_and_leaders = (
            [*self.actor_target.parameters(), *self.critic_target.parameters()],
            [*self.actor.parameters(), *self.critic_parameters],
        )
        self.optimizers = {
            "actor": adam(self.actor, config.lr),
            "critic": adam(self.critic, config.lr),
        }
        self.generators = {
            "exploration": seeds.torch("exploration"),
            "policy_noise": seeds.torch("policy_noise", device),
        }
        self.networks: dict[str, nn.Module] = {
            "actor": self.actor,
            "critic": self.critic,
            "actor_target": self.actor_target,
            "critic_target": self.critic_target,
        }
        self.modules = AgentModules(
            self.networks,
            builder,
            targets={"actor_target": "actor", "critic_target": "critic"},
            optimizers=self.optimizers,
            generators=self.generators,
            monitor=monitor,
        )
        self.updates = 0

    # --- acting ---

    @cached_property
    def _mean(self) -> Forward:
        """The policy before its tanh."""
        return make_forward(self.actor.policy)

    @cached_property
    def _q1(self) -> Forward:
        return make_forward(self.critic.q1)

    def act(self, obs: np.ndarray, *, step: int, explore: bool) -> np.ndarray:
        """Actions [N, A] in [-1, 1] for states [N, D]; uniform until learning starts."""
        noise = self.generators["exploration"]
        if explore and step < self.config.learning_starts_steps:
            return torch.rand((len(obs), self.actions), generator=noise).mul(2.0).sub(1.0).numpy()
        action = self._mean(obs.reshape(len(obs), -1))
        np.tanh(action, out=action)
        if explore:
            drawn = torch.randn(action.shape, generator=noise).numpy()
            action += drawn * np.float32(self.config.exploration_noise)
            np.minimum(np.maximum(action, -1.0, out=action), 1.0, out=action)
        return action

    def value(self, obs: np.ndarray) -> np.ndarray:
        """Q1(s, pi(s)) [N] for states [N, D]: what the critic expects of the policy."""
        state = obs.reshape(len(obs), -1)
        return self._q1(np.concatenate([state, np.tanh(self._mean(state))], axis=1))[:, 0]

    # --- learning ---

    def update(self, batch: Batch, *, step: int) -> Metrics:
        """One step of the critic; every `policy_every_updates`, one of the actor and targets."""
        self.updates += 1
        moves_policy = self.updates % self.config.policy_every_updates == 0
        self.modules.begin_update(step, whole=moves_policy)
        obs = batch.obs.flatten(1)
        target_q = self._target_q(batch)
        q1, q2 = self.critic(obs, batch.action, self.modules.activations("critic"))
        critic_loss = F.mse_loss(q1, target_q) + F.mse_loss(q2, target_q)
        optimize(critic_loss, self.optimizers["critic"])
        metrics: dict[str, Tensor | float] = {
            "loss/critic": critic_loss.detach(),
            "critic/q1": q1.detach().mean(),
            "critic/target_q": target_q.mean(),
        }
        if moves_policy:
            metrics["loss/actor"] = self._update_policy(obs)
        return {**metrics, **self.modules.end_update()}

    @torch.no_grad()
    def _target_q(self, batch: Batch) -> Tensor:
        """reward + discount * min(Q1', Q2') at the target policy's smoothed action, [B, 1]."""
        config = self.config
        next_obs = batch.next_obs.flatten(1)
        noise = torch.empty_like(batch.action).normal_(generator=self.generators["policy_noise"])
        noise.mul_(config.policy_noise).clamp_(-config.noise_clip, config.noise_clip)
        action = torch.tanh(self.actor_target(next_obs)).add_(noise).clamp_(-1.0, 1.0)
        return batch.reward + batch.discount * torch.min(*self.critic_target(next_obs, action))

    def _update_policy(self, obs: Tensor) -> Tensor:
        action = torch.tanh(self.actor(obs, self.modules.activations("actor")))
        with frozen(self.critic_parameters):
            actor_loss = -self.critic.q1(torch.cat([obs, action], dim=-1)).mean()
        optimize(actor_loss, self.optimizers["actor"])
        polyak_update_(*self.targets_and_leaders, self.config.target_tau)
        return actor_loss.detach()

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {"modules": self.modules.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.updates = state["updates"]


SPEC = AgentSpec(
    config_class=Config,
    make=TD3,
    networks=("actor", "critic"),
    most_threads=2,  # its matrices are 256 wide
    run_defaults=("replay_ratio=1", "video_size=0"),
    refused_interventions={
        "augmentation": "it learns from states, which are not augmented",
        "freeze_encoder": "it has no encoder",
    },
)
