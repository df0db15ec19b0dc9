"""DrQ-v2 (arXiv 2107.09645), with the parts that DrM and others replace.

The parts are how much to explore (`Exploration`), what the critic bootstraps from (`Target`), and
what is done to the networks between updates (a list of interventions).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlearly.agents.modules import AgentModules, NetworkBuilder, each_layer
from rlearly.agents.network_factory import NETWORK, NETWORK_KWARGS, NetworkFactory
from rlearly.agents.spec import AgentSpec
from rlearly.config.fields import setting
from rlearly.core.spaces import PIXELS as IMAGE
from rlearly.core.spaces import Observation, has_images, observation_arrays, on_device
from rlearly.core.types import Batch, EnvSpec, Metrics, Stateful
from rlearly.nn.augmentation import random_shift
from rlearly.nn.custom import copy_buffers_, custom_buffers, draws_dropout, dropouts
from rlearly.nn.distributions import truncated_normal, uniform_actions
from rlearly.nn.layers import draw_dropout_from, without_dropout
from rlearly.nn.networks import (
    Actor,
    Critic,
    Encoder,
    Features,
    encoder_for,
    orthogonal_,
)
from rlearly.nn.optim import Adam, adam, frozen, optimize, polyak_update_
from rlearly.nn.policy_module import PolicyModule
from rlearly.nn.precision import ComputeOptions
from rlearly.nn.schedules import Linear, Schedule
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.measures import dormant_ratio
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds


@dataclass(frozen=True)
class Config:
    """DrQ-v2's hyper-parameters; the defaults are the paper's."""

    lr: float = setting(
        1e-4, "Adam's learning rate, for all networks", above=0, search="log(2e-5,1e-3)"
    )
    batch_size: int = setting(
        256, "transitions per update", at_least=1, search="choice(128,256,512)"
    )
    nstep: int = setting(
        3, "agent steps of reward before bootstrapping", at_least=1, search="int(1,5)"
    )
    discount: float = setting(0.99, "gamma per agent step", at_least=0, at_most=1)
    nstep_schedule: str | None = setting(
        None,
        "n over agent steps, overrides nstep: decay(3,7,1000000) is 3 + 7 exp(-step / 1000000)",
    )
    discount_schedule: str | None = setting(
        None,
        "gamma, overrides discount: decay(...), linear(START,END,STEPS), step(FIRST,THEN,AT_STEP)",
    )
    feature_dim: int = setting(50, "output width of the trunks", at_least=1)
    hidden_dim: int = setting(1024, "units per hidden layer", at_least=1)
    q_dropout: float = setting(
        0.0, "dropout rate in the critic (DrM on MetaWorld: 0.01)", at_least=0, at_most=0.9
    )
    q_layer_norm: bool = setting(
        False, "LayerNorm in the critic, after any dropout (DrM on MetaWorld: true)"
    )
    encoder_channels: int = setting(32, "channels of each convolution", at_least=1)
    target_tau: float = setting(
        0.01,
        "EMA step of the target critic towards the critic",
        above=0,
        at_most=1,
        search="log(2e-3,5e-2)",
    )
    shift_pixels: int = setting(4, "largest random shift of an image", at_least=0)
    exploration_steps: int = setting(2000, "agent steps of uniform random actions", at_least=0)
    std_start: float = setting(1.0, "exploration noise at the start", at_least=0)
    std_end: float = setting(
        0.1, "exploration noise at the end", at_least=0, search="uniform(0.05,0.3)"
    )
    std_duration_steps: int = setting(500_000, "agent steps from std_start to std_end", at_least=1)
    std_clip: float = setting(0.3, "clip range of the noise in updates", at_least=0)
    dormant_threshold: float = setting(0.025, "largest score of a dormant neuron", at_least=0)
    network: str | None = setting(None, NETWORK)
    network_kwargs: dict[str, Any] = setting({}, NETWORK_KWARGS)

    def seed_frames(self, frames_per_step: int) -> int:
        """Simulator frames before the first update: the paper's 4000, at any action repeat."""
        return 4000


class Exploration(Stateful, Protocol):
    """The std of the policy's noise, when acting and in updates."""

    def observe(self, step: int, dormancy: Tensor) -> None:
        """Called with the dormant ratio of every update."""
        ...

    def std(self, step: int, dormancy: Tensor) -> Tensor | float: ...

    def metrics(self) -> Metrics:
        """Metrics other than the noise itself."""
        ...


class Target(Protocol):
    """What the critic bootstraps from at the next observation.

    The agent saves and restores the networks and optimizers; a target has no other state.
    """

    def networks(self) -> Mapping[str, nn.Module]: ...

    def optimizers(self) -> Mapping[str, Adam]: ...

    def fit(self, features: Features, min_q: Tensor, activations: list[Tensor] | None) -> Metrics:
        """Learn from a batch: features [B, F] and min(Q1, Q2) [B, 1] of its actions.

        activations: where to record the hidden units of the network "value"; None: do not.
        """
        ...

    def value(self, next_features: Features, min_q: Tensor, dormancy: Tensor) -> Tensor:
        """[B, 1], from the target critic's min(Q1, Q2) [B, 1] at the policy's next action."""
        ...


@dataclass(frozen=True)
class ScheduledExploration:
    """Noise by a schedule of the agent step alone."""

    schedule: Schedule

    def observe(self, step: int, dormancy: Tensor) -> None:
        pass

    def std(self, step: int, dormancy: Tensor) -> Tensor | float:
        return self.schedule(step)

    def metrics(self) -> Metrics:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class ClippedDoubleQTarget:
    """min(Q1', Q2')."""

    def networks(self) -> Mapping[str, nn.Module]:
        return {}

    def optimizers(self) -> Mapping[str, Adam]:
        return {}

    def fit(self, features: Features, min_q: Tensor, activations: list[Tensor] | None) -> Metrics:
        return {}

    def value(self, next_features: Features, min_q: Tensor, dormancy: Tensor) -> Tensor:
        return min_q


class DrQv2:
    """The agent. One instance learns on one device.

    Deviations from the official code that change no result: whole-pixel crops instead of bilinear
    sampling; one forward pass of the actor on the batch, for its dormancy and for its loss (nothing
    changes the actor in between); gradients that no optimizer uses are not computed. Deviations
    that do: the official replay turns a discount of 0 into 1 (`discount or 1.0`), so that
    termination does not reach the target, as it does here; and with dropout, DrM's value network
    fits the Q values of the critic loss's forward pass, not of one with its own dropout mask.
    """

    def __init__(
        self,
        config: Config,
        spec: EnvSpec,
        *,
        seeds: Seeds,
        device: torch.device,
        builder: NetworkBuilder,
        encoder: Encoder,
        exploration: Exploration,
        target: Target,
        monitor: PlasticityMonitor | None = None,
    ):
        """`encoder`: from `builder.modify`, its weights not yet drawn."""
        self.config = config
        self.device = device
        self.exploration = exploration
        self.target = target
        self.images = has_images(spec.observation)
        self.actions = spec.action.shape[0]
        self.encoder = builder.initialise("encoder", encoder)
        sizes = (encoder.features, self.actions, config.feature_dim, config.hidden_dim)
        policy = builder.stack("actor", config.feature_dim, self.actions)
        actor = Actor(*sizes, encoder.vector, policy=policy)
        self.actor = builder.build("actor", actor)
        inputs = config.feature_dim + self.actions
        q1, q2 = (builder.stack("critic", inputs, 1) for _ in range(2))
        norms = {"dropout": config.q_dropout, "norm": config.q_layer_norm}
        critic = Critic(*sizes, encoder.vector, **norms, q1=q1, q2=q2)
        self.critic = builder.build("critic", critic)
        self.critic_target = copy.deepcopy(self.critic)
        self.networks: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "actor": self.actor,
            "critic": self.critic,
            "critic_target": self.critic_target,
            **target.networks(),
        }
        self.optimizers = dict(target.optimizers())
        for name in ("encoder", "actor", "critic"):
            if any(True for _ in self.networks[name].parameters()):
                self.optimizers[name] = adam(self.networks[name], config.lr)
        self.generators = {
            "exploration": seeds.torch("exploration"),
            "policy_noise": seeds.torch("policy_noise", device),
            "augmentation": seeds.torch("augmentation", device),
        }
        if draws_dropout(self.networks):
            self.generators["dropout"] = seeds.torch("dropout", device)
            draw_dropout_from(self.generators["dropout"], *self.networks.values())
        self._dropouts = dropouts([self.encoder, self.actor, self.critic])
        self._buffers = [custom_buffers([n]) for n in (self.critic_target, self.critic)]
        heads: list[Any] = [net for name, net in self.networks.items() if name != "encoder"]
        self.modules = AgentModules(
            self.networks,
            builder,
            targets={"critic_target": "critic"},
            readers={"encoder": [head.trunk[0] for head in heads]},
            optimizers=self.optimizers,
            generators=self.generators,
            monitor=monitor,
        )
        self.modules.dormancy = torch.ones((), device=device)

    @property
    def dormancy(self) -> Tensor:
        """The actor's dormant ratio [] at the last update; 1 before the first."""
        assert self.modules.dormancy is not None
        return self.modules.dormancy

    # --- acting ---

    @torch.no_grad()
    def value(self, obs: Observation) -> np.ndarray:
        """min(Q1, Q2)(s, mean action) [N], without dropout."""
        with without_dropout(self._dropouts):
            features = self.encoder(on_device(obs, self.device))
            q = torch.min(*self.critic(features, self.actor(features)))
        return q[:, 0].cpu().numpy()

    @torch.no_grad()
    def act(self, obs: Observation, *, step: int, explore: bool) -> np.ndarray:
        """Actions [N, A] in [-1, 1] for observations [N, *O]; uniform for the first steps."""
        noise = self.generators["exploration"]
        if explore and step < self.config.exploration_steps:
            return uniform_actions(len(observation_arrays(obs)[0]), self.actions, noise)
        with without_dropout(self._dropouts):
            features = self.encoder(on_device(obs, self.device))
            action = self.actor(features).cpu()
        if explore:
            std = self.exploration.std(step, self.dormancy)
            std = std.cpu() if isinstance(std, Tensor) else std
            action = truncated_normal(action, std, noise)
        return action.numpy()

    def policy_module(self) -> PolicyModule:
        """Observations [N, *O] -> the policy's mean actions [N, A]."""
        networks = {"encoder": self.encoder, "actor": self.actor}
        return PolicyModule(networks, lambda nets, obs: nets["actor"](nets["encoder"](obs)))

    # --- learning ---

    def update(self, batch: Batch, *, step: int) -> Metrics:
        """One step of every optimizer, in the official order; all losses are the paper's."""
        self.modules.begin_update(step)
        features = self.encoder(self._augment(batch.obs), self.modules.activations("encoder"))
        with torch.no_grad():
            next_features = self.encoder(self._augment(batch.next_obs))
        detached = features.detach()

        recorded = self.modules.activations("actor")
        activations: list[Tensor] = [] if recorded is None else recorded
        pre_activations: list[Tensor] = []
        mean = self.actor(detached, activations, pre_activations)
        self.modules.dormancy = dormant_ratio(
            [*activations, *pre_activations], self.config.dormant_threshold
        )
        self.exploration.observe(step, self.dormancy)
        std = self.exploration.std(step, self.dormancy)

        q1, q2 = self.critic(features, batch.action, self.modules.activations("critic"))
        value_activations = self.modules.activations("value")
        fitted = self.target.fit(detached, torch.min(q1, q2).detach(), value_activations)
        target_q = self._target_q(batch, next_features, std)
        critic_loss = F.mse_loss(q1, target_q) + F.mse_loss(q2, target_q)
        optimize(
            critic_loss,
            *(self.optimizers[n] for n in ("critic", "encoder") if n in self.optimizers),
        )

        action = truncated_normal(mean, std, self.generators["policy_noise"], self.config.std_clip)
        with frozen(self.critic.parameters()):
            actor_loss = -torch.min(*self.critic(detached, action)).mean()
        optimize(actor_loss, self.optimizers["actor"])

        polyak_update_(
            list(self.critic_target.parameters()),
            list(self.critic.parameters()),
            self.config.target_tau,
        )
        copy_buffers_(*self._buffers)
        return {
            "loss/critic": critic_loss.detach(),
            "loss/actor": actor_loss.detach(),
            "critic/target_q": target_q.mean(),
            "critic/q1": q1.detach().mean(),
            "critic/q2": q2.detach().mean(),
            "replay/batch_reward": batch.reward.mean(),
            "exploration/std": std,
            "plasticity/dormant_ratio": self.dormancy,
            **self.exploration.metrics(),
            **fitted,
            **self.modules.end_update(),
        }

    def _augment(self, obs: Any) -> Any:
        if not (self.images and self.modules.augments):
            return obs
        if isinstance(obs, Mapping):
            return {**obs, IMAGE: self._augment(obs[IMAGE])}
        return random_shift(obs, self.config.shift_pixels, self.generators["augmentation"])

    @torch.no_grad()
    def _target_q(self, batch: Batch, next_features: Features, std: Tensor | float) -> Tensor:
        """reward_n + discount_n * target value at the next observation, [B, 1]."""
        next_action = truncated_normal(
            self.actor(next_features), std, self.generators["policy_noise"], self.config.std_clip
        )
        min_q = torch.min(*self.critic_target(next_features, next_action))
        value = self.target.value(next_features, min_q, self.dormancy)
        return batch.reward + batch.discount * value

    def take_over(self, state: Mapping[str, Any], parts: Collection[str]) -> None:
        """As `BeginsFromAnother`; the exploration begins anew."""
        self.modules.take_over(state["modules"], parts)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": self.modules.state_dict(),
            "exploration": self.exploration.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.exploration.load_state_dict(state["exploration"])


def network_builder(
    seeds: Seeds,
    device: torch.device,
    interventions: Sequence[Intervention],
    compute: ComputeOptions | None,
    factory: NetworkFactory | None,
) -> NetworkBuilder:
    """A builder that draws orthogonal weights from the run's stream."""
    compute = compute or ComputeOptions()
    return NetworkBuilder(
        each_layer(orthogonal_), seeds.torch("weights"), device, interventions, compute, factory
    )


def make_encoder(config: Config, spec: EnvSpec, builder: NetworkBuilder) -> Encoder:
    """The encoder of an env's observations; its weights are not drawn yet."""
    encoder = encoder_for(spec.observation, config.encoder_channels, builder.image_network)
    return builder.modify("encoder", encoder)


def noise_schedule(config: Config) -> Linear:
    """The config's schedule of exploration noise."""
    return Linear(config.std_start, config.std_end, config.std_duration_steps)


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
    """DrQ-v2 as published, with any interventions."""
    builder = network_builder(seeds, device, interventions, compute, NetworkFactory.of(config))
    return DrQv2(
        config,
        spec,
        seeds=seeds,
        device=device,
        builder=builder,
        encoder=make_encoder(config, spec, builder),
        exploration=ScheduledExploration(noise_schedule(config)),
        target=ClippedDoubleQTarget(),
        monitor=monitor,
    )


SPEC = AgentSpec(
    config_class=Config,
    make=make,
    networks=("encoder", "actor", "critic"),
    random_start="exploration_steps",
    observes_pixels=True,
    takes_networks=True,
    policy_module=DrQv2.policy_module,
)
