"""An agent: double DQN (arXiv 1509.06461) from states, with exploration by an epsilon schedule."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlearly.agents import AgentSpec
from rlearly.agents.modules import AgentModules, NetworkBuilder, each_layer
from rlearly.config.fields import setting
from rlearly.nn.networks import fan_in_, mlp
from rlearly.nn.optim import adam, optimize
from rlearly.nn.precision import ComputeOptions


@dataclass(frozen=True)
class Config:
    """DQN's settings; each is a key of the command line, as in agent.lr=1e-4."""

    lr: float = setting(1e-3, "Adam's learning rate", above=0)
    batch_size: int = setting(64, "transitions per update", at_least=1)
    nstep: int = setting(1, "steps of reward before bootstrapping", at_least=1)
    discount: float = setting(0.95, "gamma, per agent step", at_least=0, at_most=1)
    hidden_dim: int = setting(64, "units per hidden layer", at_least=1)
    target_every_updates: int = setting(100, "updates between copies to the target", at_least=1)
    epsilon_end: float = setting(0.05, "final share of random actions", at_least=0, at_most=1)
    epsilon_steps: int = setting(2000, "agent steps over which epsilon falls to it", at_least=1)
    learning_starts_steps: int = setting(200, "agent steps before the first update", at_least=0)

    def seed_frames(self, frames_per_step: int) -> int:
        """Simulator frames before the first update."""
        return self.learning_starts_steps * frames_per_step


class QNetwork(nn.Module):
    """state [B, D] -> Q [B, actions]; records its hidden units in the list that it is given."""

    def __init__(self, inputs: int, actions: int, hidden_dim: int):
        super().__init__()
        self.q = mlp(inputs, hidden_dim, actions)

    def forward(self, obs: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        return self.q(obs, activations)


class DQN:
    """The agent. One instance learns on one device."""

    def __init__(
        self, config, spec, *, seeds, device, monitor=None, interventions=(), compute=None
    ):
        self.config, self.device = config, device
        self.actions = int(spec.action.n)
        builder = NetworkBuilder(
            each_layer(fan_in_),  # how layers are initialised
            seeds.torch("weights"),  # a random stream for each purpose
            device,
            interventions,
            compute or ComputeOptions(),
        )
        inputs = int(np.prod(spec.observation.shape))
        self.critic = builder.build("critic", QNetwork(inputs, self.actions, config.hidden_dim))
        self.target = copy.deepcopy(self.critic)
        self.optimizer = adam(self.critic, config.lr)
        self.noise = seeds.torch("exploration")
        self.modules = AgentModules(  # saves them, measures them, lets interventions act
            {"critic": self.critic, "critic_target": self.target},
            builder,
            targets={"critic_target": "critic"},
            optimizers={"critic": self.optimizer},
            generators={"exploration": self.noise},
            monitor=monitor,
        )
        self.q = self.modules.numpy_forward(self.critic.q)  # fast for a few observations
        self.updates = 0

    # --- acting ---

    def act(self, obs: np.ndarray, *, step: int, explore: bool) -> np.ndarray:
        """Actions int64 [N] for states [N, D]."""
        best = self.q(obs.reshape(len(obs), -1)).argmax(1)
        if not explore:
            return best
        share = min(step / self.config.epsilon_steps, 1.0)
        epsilon = 1.0 + (self.config.epsilon_end - 1.0) * share
        random = torch.randint(self.actions, best.shape, generator=self.noise).numpy()
        return np.where(
            torch.rand(best.shape, generator=self.noise).numpy() < epsilon, random, best
        )

    def value(self, obs: np.ndarray) -> np.ndarray:
        """max_a Q(s, a) [N] for states [N, D]."""
        return self.q(obs.reshape(len(obs), -1)).max(1)

    # --- learning ---

    def update(self, batch, *, step: int) -> dict[str, Any]:
        """One gradient step; returns detached metrics."""
        self.updates += 1
        self.modules.begin_update(step)
        obs, next_obs = batch.obs.flatten(1), batch.next_obs.flatten(1)
        with torch.no_grad():
            best = self.critic(next_obs).argmax(1, keepdim=True)
            next_q = self.target(next_obs).gather(1, best)
            target_q = batch.reward + batch.discount * next_q
        every = self.critic(obs, self.modules.activations("critic"))
        q = every.gather(1, batch.action[:, None])
        loss = F.smooth_l1_loss(q, target_q)
        optimize(loss, self.optimizer)
        if self.updates % self.config.target_every_updates == 0:
            self.target.load_state_dict(self.critic.state_dict())
        return {
            "loss/critic": loss.detach(),
            "critic/q": q.detach().mean(),
            "critic/target_q": target_q.mean(),
            **self.modules.end_update(),
        }

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {"modules": self.modules.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.updates = state["updates"]


dqn = AgentSpec(
    config_class=Config,
    make=DQN,
    networks=("critic",),
    actions=("discrete",),
    max_threads=1,
    run_defaults=("replay_ratio=1", "video_size=0"),
    refused_interventions={
        "augmentation": "it learns from states, which are not augmented",
        "freeze_encoder": "it has no encoder",
    },
)
