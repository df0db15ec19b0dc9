"""TD3 (arXiv 1802.09477) for states, with CleanRL's hyper-parameters and order of operations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlearly.agents.network_factory import NETWORK, NETWORK_KWARGS, NetworkFactory
from rlearly.agents.spec import AgentSpec
from rlearly.agents.state_actor_critic import StateActorCritic
from rlearly.config.fields import setting
from rlearly.core.types import Batch, EnvSpec, Metrics
from rlearly.nn.distributions import uniform_actions
from rlearly.nn.optim import adam, frozen, optimize, polyak_update_
from rlearly.nn.policy_module import PolicyModule
from rlearly.nn.precision import ComputeOptions
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds


@dataclass(frozen=True)
class Config:
    """TD3's hyper-parameters; the defaults are CleanRL's."""

    lr: float = setting(
        3e-4, "Adam's learning rate, for both networks", above=0, search="log(3e-5,3e-3)"
    )
    batch_size: int = setting(
        256, "transitions per update", at_least=1, search="choice(64,128,256,512)"
    )
    nstep: int = setting(1, "steps of reward before bootstrapping", at_least=1, search="int(1,5)")
    discount: float = setting(
        0.99, "gamma, per agent step", at_least=0, at_most=1, search="choice(0.95,0.98,0.99,0.995)"
    )
    hidden_dim: int = setting(256, "units per hidden layer", at_least=1)
    target_tau: float = setting(
        0.005, "EMA step of the target networks", above=0, at_most=1, search="log(1e-3,5e-2)"
    )
    learning_starts_steps: int = setting(
        25_000, "agent steps of uniform random actions before the first update", at_least=0
    )
    exploration_noise: float = setting(
        0.1, "std of the noise when acting", at_least=0, search="uniform(0.05,0.4)"
    )
    policy_noise: float = setting(0.2, "std of the noise in the critic's target", at_least=0)
    noise_clip: float = setting(0.5, "clip range of that noise", at_least=0)
    policy_every_updates: int = setting(2, "critic updates per actor update", at_least=1)
    network: str | None = setting(None, NETWORK)
    network_kwargs: dict[str, Any] = setting({}, NETWORK_KWARGS)

    def seed_frames(self, frames_per_step: int) -> int:
        """Simulator frames before the first update."""
        return self.learning_starts_steps * frames_per_step


class TD3:
    """The agent. One instance learns on one device.

    Deviations from CleanRL: actions are in [-1, 1] whatever the env's bounds; delayed updates are
    counted in updates, not env steps (equal at replay ratio 1, and correct at others).
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
        parts = StateActorCritic(
            spec,
            actor_outputs=self.actions,
            hidden_dim=config.hidden_dim,
            factory=NetworkFactory.of(config),
            targets=("actor", "critic"),
            seeds=seeds,
            device=device,
            interventions=interventions,
            compute=compute,
        )
        self.networks, self.generators = parts.networks, parts.generators
        self._update_buffers = parts.update_buffers
        self.actor, self.critic = parts.actor, parts.critic
        self.actor_target = parts.networks["actor_target"]
        self.critic_target = parts.networks["critic_target"]
        self.target_parameters = [
            *self.actor_target.parameters(),
            *self.critic_target.parameters(),
        ]
        self.online_parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.critic_parameters = list(self.critic.parameters())
        self.optimizers = {
            "actor": adam(self.actor, config.lr),
            "critic": adam(self.critic, config.lr),
        }
        self.modules = parts.modules(self.optimizers, monitor)
        self._mean = self.modules.numpy_forward(self.actor.policy)  # before tanh
        self._q1 = self.modules.numpy_forward(self.critic.q1)
        self.updates = 0

    # --- acting ---

    def act(self, obs: np.ndarray, *, step: int, explore: bool) -> np.ndarray:
        """Actions [N, A] in [-1, 1] for states [N, D]; uniform until learning starts."""
        noise = self.generators["exploration"]
        if explore and step < self.config.learning_starts_steps:
            return uniform_actions(len(obs), self.actions, noise)
        action = self._mean(obs.reshape(len(obs), -1))
        np.tanh(action, out=action)
        if explore:
            drawn = torch.randn(action.shape, generator=noise).numpy()
            action += drawn * np.float32(self.config.exploration_noise)
            np.minimum(np.maximum(action, -1.0, out=action), 1.0, out=action)
        return action

    def value(self, obs: np.ndarray) -> np.ndarray:
        """Q1(s, pi(s)) [N] for states [N, D]: the critic's estimate of the policy's return."""
        state = obs.reshape(len(obs), -1)
        return self._q1(np.concatenate([state, np.tanh(self._mean(state))], axis=1))[:, 0]

    def policy_module(self) -> PolicyModule:
        """States [N, D] -> the policy's actions [N, A]."""
        return PolicyModule({"actor": self.actor}, lambda nets, obs: torch.tanh(nets["actor"](obs)))

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
        polyak_update_(self.target_parameters, self.online_parameters, self.config.target_tau)
        self._update_buffers()
        return actor_loss.detach()

    def take_over(self, state: Mapping[str, Any], parts: Collection[str]) -> None:
        """As `BeginsFromAnother`; updates are counted anew."""
        self.modules.take_over(state["modules"], parts)

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
    random_start="learning_starts_steps",
    max_threads=2,  # its matrices are 256 wide
    run_defaults=("replay_ratio=1", "video_size=0"),
    refused_interventions={
        "augmentation": "it learns from states, which are not augmented",
        "freeze_encoder": "it has no encoder",
    },
    takes_networks=True,
    policy_module=TD3.policy_module,
)
