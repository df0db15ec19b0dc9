"""TD3 (arXiv 1802.09477) for states, with CleanRL's hyper-parameters and order of operations."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlearly.config import setting
from rlearly.networks import StateActor, StateCritic, fan_in_, initialise_
from rlearly.optim import adam, descend, follow_
from rlearly.plasticity import active_fraction, dormant_ratio
from rlearly.seeding import Seeds, restore
from rlearly.types import Batch, EnvSpec, Metrics

PIXELS = False
"""Observes pixels where an env offers them and nothing else is asked for."""

ON_POLICY = False
"""Learns from a replay; else once from what the policy of now did."""

RUN_DEFAULTS = ("replay_ratio=1", "video_size=0")
"""What a run with this agent sets otherwise than RunConfig, in the command line's grammar."""


@dataclass(frozen=True)
class Config:
    """TD3's hyper-parameters; the defaults are CleanRL's."""

    lr: float = setting(3e-4, "Adam's learning rate, both networks", above=0)
    batch_size: int = setting(256, "transitions in one update", at_least=1)
    nstep: int = setting(1, "steps of reward before bootstrapping", at_least=1)
    discount: float = setting(0.99, "gamma, per agent step", at_least=0, at_most=1)
    hidden_dim: int = setting(256, "width of the hidden layers", at_least=1)
    target_tau: float = setting(0.005, "targets' step towards their leaders", above=0, at_most=1)
    learning_starts_steps: int = setting(
        25_000, "agent steps of uniform actions before the first update", at_least=0
    )
    exploration_noise: float = setting(0.1, "std of the noise when acting", at_least=0)
    policy_noise: float = setting(0.2, "std of the noise in the critic's target", at_least=0)
    noise_clip: float = setting(0.5, "cut of the noise in the critic's target", at_least=0)
    policy_every_updates: int = setting(2, "updates for one of actor and targets", at_least=1)
    dormant_threshold: float = setting(0.025, "a neuron at or under it is dormant", at_least=0)
    plasticity_every_policy_updates: int = setting(
        10, "policy updates between two measurements; 0: never", at_least=0
    )

    def seed_frames(self, frames_per_step: int) -> int:
        """Simulator frames before the first update."""
        return self.learning_starts_steps * frames_per_step


class TD3:
    """The agent. One instance learns on one device.

    Deviations from CleanRL: actions are learnt in [-1, 1] whatever the env's bounds; the delayed
    updates are counted in updates, not env steps (equal at replay ratio 1, and right at others).
    """

    def __init__(self, config: Config, spec: EnvSpec, *, seeds: Seeds, device: torch.device):
        self.config = config
        self.device = device
        self.actions = spec.action.shape[0]
        features = int(np.prod(spec.observation.shape))
        self.actor = StateActor(features, self.actions, config.hidden_dim)
        self.critic = StateCritic(features, self.actions, config.hidden_dim)
        weights = seeds.torch("weights")
        for network in (self.actor, self.critic):
            initialise_(network, weights, fan_in_)
        self.actor_target = copy.deepcopy(self.actor)
        self.critic_target = copy.deepcopy(self.critic)
        self.networks: dict[str, nn.Module] = {
            "actor": self.actor,
            "critic": self.critic,
            "actor_target": self.actor_target,
            "critic_target": self.critic_target,
        }
        for network in self.networks.values():
            network.to(device)
        self.targets_and_leaders = (
            [*self.actor_target.parameters(), *self.critic_target.parameters()],
            [*self.actor.parameters(), *self.critic.parameters()],
        )
        self.optimizers = {
            "actor": adam(self.actor, config.lr),
            "critic": adam(self.critic, config.lr),
        }
        self.generators = {
            "exploration": seeds.torch("exploration"),
            "policy_noise": seeds.torch("policy_noise", device),
        }
        self.updates = 0

    # --- acting ---

    @torch.no_grad()
    def act(self, obs: np.ndarray, *, step: int, explore: bool) -> np.ndarray:
        """Actions [N, A] in [-1, 1] for states [N, D]; uniform until learning starts."""
        noise = self.generators["exploration"]
        if explore and step < self.config.learning_starts_steps:
            return torch.rand((len(obs), self.actions), generator=noise).mul(2.0).sub(1.0).numpy()
        action = torch.tanh(self.actor(self._tensor(obs))).cpu()
        if explore:
            drawn = torch.randn(action.shape, generator=noise)
            action = (action + drawn * self.config.exploration_noise).clamp(-1.0, 1.0)
        return action.numpy()

    @torch.no_grad()
    def value(self, obs: np.ndarray) -> np.ndarray:
        """Q1(s, pi(s)) [N] for states [N, D]: what the critic expects of the policy."""
        state = self._tensor(obs)
        return self.critic(state, torch.tanh(self.actor(state)))[0][:, 0].cpu().numpy()

    def _tensor(self, obs: np.ndarray) -> Tensor:
        return torch.as_tensor(obs).to(self.device).flatten(1)

    # --- learning ---

    def update(self, batch: Batch, *, step: int) -> Metrics:
        """One step of the critic; every `policy_every_updates`, one of the actor and targets."""
        self.updates += 1
        obs = batch.obs.flatten(1)
        goal = self._critic_goal(batch)
        hidden = self._recorder()
        q1, q2 = self.critic(obs, batch.action, hidden)
        critic_loss = F.mse_loss(q1, goal) + F.mse_loss(q2, goal)
        descend(critic_loss, self.optimizers["critic"])
        metrics: dict[str, Tensor | float] = {
            "loss/critic": critic_loss.detach(),
            "critic/q1": q1.detach().mean(),
            "critic/target_q": goal.mean(),
        }
        if hidden:
            metrics["plasticity/fau_critic"] = active_fraction(hidden)
        if self.updates % self.config.policy_every_updates == 0:
            metrics |= self._update_policy(obs)
        return metrics

    def _recorder(self) -> list[Tensor] | None:
        """Where activations are noted when plasticity is due, measured from policy updates on."""
        every = self.config.plasticity_every_policy_updates * self.config.policy_every_updates
        return [] if every and self.updates % every == 0 else None

    @torch.no_grad()
    def _critic_goal(self, batch: Batch) -> Tensor:
        """reward + discount * min(Q1', Q2') at the target policy's smoothed action, [B, 1]."""
        config = self.config
        next_obs = batch.next_obs.flatten(1)
        noise = torch.empty_like(batch.action).normal_(generator=self.generators["policy_noise"])
        noise.mul_(config.policy_noise).clamp_(-config.noise_clip, config.noise_clip)
        action = torch.tanh(self.actor_target(next_obs)).add_(noise).clamp_(-1.0, 1.0)
        return batch.reward + batch.discount * torch.min(*self.critic_target(next_obs, action))

    def _update_policy(self, obs: Tensor) -> dict[str, Tensor | float]:
        hidden = self._recorder()
        action = torch.tanh(self.actor(obs, hidden))
        actor_loss = -self.critic.q1(torch.cat([obs, action], dim=-1)).mean()
        descend(actor_loss, self.optimizers["actor"])
        follow_(*self.targets_and_leaders, self.config.target_tau)
        metrics: dict[str, Tensor | float] = {"loss/actor": actor_loss.detach()}
        if hidden:
            threshold = self.config.dormant_threshold
            metrics["plasticity/dormant_ratio"] = dormant_ratio(hidden, threshold)
            metrics["plasticity/fau_actor"] = active_fraction(hidden)
        return metrics

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "networks": {name: n.state_dict() for name, n in self.networks.items()},
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))  # else shared
        for name, generator in self.generators.items():
            restore(generator, state["generators"][name])
        self.updates = state["updates"]


def make(config: Config, spec: EnvSpec, *, seeds: Seeds, device: torch.device) -> TD3:
    """TD3 as published."""
    return TD3(config, spec, seeds=seeds, device=device)
