"""SAC (arXiv 1812.05905) for states, with CleanRL's hyper-parameters and order of operations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlearly.agents.network_factory import NETWORK, NETWORK_KWARGS, NetworkFactory
from rlearly.agents.spec import AgentSpec
from rlearly.agents.state_actor_critic import StateActorCritic
from rlearly.config.fields import setting
from rlearly.core.types import Batch, EnvSpec, Metrics
from rlearly.nn.distributions import squashed_gaussian, uniform_actions
from rlearly.nn.optim import adam, frozen, optimize, polyak_update_
from rlearly.nn.policy_module import PolicyModule
from rlearly.nn.precision import ComputeOptions
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


@dataclass(frozen=True)
class Config:
    """SAC's hyper-parameters; the defaults are CleanRL's."""

    policy_lr: float = setting(
        3e-4, "Adam's learning rate, actor", above=0, search="log(3e-5,3e-3)"
    )
    q_lr: float = setting(
        1e-3, "Adam's learning rate, critic and entropy weight", above=0, search="log(1e-4,1e-2)"
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
        0.005,
        "EMA step of the target critic towards the critic",
        above=0,
        at_most=1,
        search="log(1e-3,5e-2)",
    )
    learning_starts_steps: int = setting(
        5000, "agent steps of uniform random actions before the first update", at_least=0
    )
    alpha: float | None = setting(None, "entropy weight; null: learned", at_least=0)
    policy_every_updates: int = setting(
        2, "after this many critic updates, as many actor updates at once", at_least=1
    )
    network: str | None = setting(None, NETWORK)
    network_kwargs: dict[str, Any] = setting({}, NETWORK_KWARGS)

    def seed_frames(self, frames_per_step: int) -> int:
        """Simulator frames before the first update."""
        return self.learning_starts_steps * frames_per_step


class SAC:
    """The agent. One instance learns on one device.

    Deviations from CleanRL: actions and their entropy are in [-1, 1] whatever the env's bounds, as
    in the authors' code (CleanRL's log-probabilities include the log of the bounds, which only
    shifts the target entropy); delayed updates are counted in updates, not env steps (equal at
    replay ratio 1, and correct at others).
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
            actor_outputs=2 * self.actions,  # means and log stds
            hidden_dim=config.hidden_dim,
            factory=NetworkFactory.of(config),
            targets=("critic",),
            seeds=seeds,
            device=device,
            interventions=interventions,
            compute=compute,
        )
        self.networks, self.generators = parts.networks, parts.generators
        self._update_buffers = parts.update_buffers
        self.actor, self.critic = parts.actor, parts.critic
        self.critic_target = parts.networks["critic_target"]
        self.critic_parameters = list(self.critic.parameters())
        self.target_parameters = list(self.critic_target.parameters())
        fixed = config.alpha is not None
        start = torch.tensor(config.alpha if fixed else 1.0, device=device).log()
        self.log_alpha = nn.Parameter(start, requires_grad=not fixed)
        self.optimizers = {
            "actor": adam(self.actor, config.policy_lr),
            "critic": adam(self.critic, config.q_lr),
        }
        if not fixed:
            self.optimizers["alpha"] = adam(nn.ParameterList([self.log_alpha]), config.q_lr)
        self.modules = parts.modules(self.optimizers, monitor)
        self._policy_outputs = self.modules.numpy_forward(self.actor.policy)
        self._q1 = self.modules.numpy_forward(self.critic.q1)
        self._q2 = self.modules.numpy_forward(self.critic.q2)
        self.updates = 0

    # --- acting ---

    def act(self, obs: np.ndarray, *, step: int, explore: bool) -> np.ndarray:
        """Actions [N, A] in [-1, 1] for states [N, D]; uniform until learning starts."""
        noise = self.generators["exploration"]
        if explore and step < self.config.learning_starts_steps:
            return uniform_actions(len(obs), self.actions, noise)
        outputs = self._policy_outputs(obs.reshape(len(obs), -1))
        action, log_std = outputs[:, : self.actions], outputs[:, self.actions :]
        if explore:
            drawn = torch.randn(action.shape, generator=noise).numpy()
            share = (np.tanh(log_std) + 1) / 2
            drawn *= np.exp(LOG_STD_MIN + (LOG_STD_MAX - LOG_STD_MIN) * share)
            action += drawn
        return np.tanh(action)

    def value(self, obs: np.ndarray) -> np.ndarray:
        """min(Q1, Q2)(s, mean action) [N] for states [N, D]."""
        state = obs.reshape(len(obs), -1)
        action = np.tanh(self._policy_outputs(state)[:, : self.actions])
        joined = np.concatenate([state, action], axis=1)
        return np.minimum(self._q1(joined), self._q2(joined))[:, 0]

    def _policy(
        self, obs: Tensor, activations: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log std [B, A] before squashing; tanh keeps the log std within its bounds."""
        mean, log_std = self.actor(obs, activations).chunk(2, dim=-1)
        share = (torch.tanh(log_std) + 1) / 2
        return mean, LOG_STD_MIN + (LOG_STD_MAX - LOG_STD_MIN) * share

    def _sample(
        self, obs: Tensor, activations: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """An action [B, A] and its log-probability [B, 1], differentiable in the policy."""
        mean, log_std = self._policy(obs, activations)
        noise = torch.empty_like(mean).normal_(generator=self.generators["policy_noise"])
        return squashed_gaussian(mean, log_std, noise)

    def policy_module(self) -> PolicyModule:
        """States [N, D] -> tanh of the policy's means, [N, A]."""
        size = self.actions
        return PolicyModule(
            {"actor": self.actor}, lambda nets, obs: torch.tanh(nets["actor"](obs)[:, :size])
        )

    # --- learning ---

    def update(self, batch: Batch, *, step: int) -> Metrics:
        """One step of the critic and its target; once every `policy_every_updates` updates, also
        that many steps of the actor and alpha."""
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
            for _ in range(self.config.policy_every_updates - 1):
                self._update_policy(obs, None)
            metrics |= self._update_policy(obs, self.modules.activations("actor"))
        polyak_update_(self.target_parameters, self.critic_parameters, self.config.target_tau)
        self._update_buffers()
        return {**metrics, **self.modules.end_update()}

    @torch.no_grad()
    def _target_q(self, batch: Batch) -> Tensor:
        """reward + discount * (min(Q1', Q2') - alpha * log pi) at the policy's action, [B, 1]."""
        next_obs = batch.next_obs.flatten(1)
        action, log_prob = self._sample(next_obs)
        soft = torch.min(*self.critic_target(next_obs, action)) - self.log_alpha.exp() * log_prob
        return batch.reward + batch.discount * soft

    def _update_policy(
        self, obs: Tensor, activations: list[Tensor] | None
    ) -> dict[str, Tensor | float]:
        action, log_prob = self._sample(obs, activations)
        alpha = self.log_alpha.detach().exp()
        with frozen(self.critic_parameters):
            actor_loss = (alpha * log_prob - torch.min(*self.critic(obs, action))).mean()
        optimize(actor_loss, self.optimizers["actor"])
        metrics: dict[str, Tensor | float] = {
            "loss/actor": actor_loss.detach(),
            "policy/entropy": -log_prob.detach().mean(),
            "policy/alpha": alpha,
        }
        if "alpha" in self.optimizers:
            metrics["loss/alpha"] = self._update_alpha(obs)
        return metrics

    def _update_alpha(self, obs: Tensor) -> Tensor:
        """Raise alpha if the policy's entropy is below -A, lower it if above (section 5)."""
        with torch.no_grad():
            _, log_prob = self._sample(obs)
        loss = (-self.log_alpha.exp() * (log_prob - self.actions)).mean()
        optimize(loss, self.optimizers["alpha"])
        return loss.detach()

    def take_over(self, state: Mapping[str, Any], parts: Collection[str]) -> None:
        """As `BeginsFromAnother`; alpha belongs to the networks, unless `agent.alpha` fixes it.
        Updates are counted anew."""
        self.modules.take_over(state["modules"], parts, optional=("alpha",))
        if "networks" in parts and self.config.alpha is None:
            with torch.no_grad():
                self.log_alpha.copy_(state["log_alpha"])

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": self.modules.state_dict(),
            "log_alpha": self.log_alpha.detach(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self.updates = state["updates"]


SPEC = AgentSpec(
    config_class=Config,
    make=SAC,
    networks=("actor", "critic"),
    random_start="learning_starts_steps",
    max_threads=2,  # its matrices are 256 wide
    run_defaults=("replay_ratio=1", "video_size=0"),
    refused_interventions={
        "augmentation": "it learns from states, which are not augmented",
        "freeze_encoder": "it has no encoder",
    },
    takes_networks=True,
    policy_module=SAC.policy_module,
)
