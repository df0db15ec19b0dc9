"""DrQ(eps): Q-learning with augmented images, for discrete actions, as on Atari-100k.

The agent is Dopamine's DrQ(eps) (arXiv 2108.13264, appendix; arXiv 2004.13649), on which arXiv
2310.07418 shows the adaptive replay ratio. With states, two hidden layers take the encoder's place.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlearly.agents.modules import AgentModules, NetworkBuilder
from rlearly.agents.spec import AgentSpec
from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError
from rlearly.core.spaces import is_fused, is_image, on_device, split_mask
from rlearly.core.types import Batch, EnvSpec, Metrics
from rlearly.nn.augmentation import intensity_factors, shift
from rlearly.nn.distributions import FORBIDDEN
from rlearly.nn.layers import RecordedStack
from rlearly.nn.networks import (
    AtariEncoder,
    DuelingQ,
    VectorEncoder,
    initialise_,
    mlp,
    small_mlp,
    xavier_,
)
from rlearly.nn.optim import adam, optimize
from rlearly.nn.policy_module import PolicyModule
from rlearly.nn.precision import ComputeOptions
from rlearly.nn.schedules import Linear
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds


@dataclass(frozen=True)
class Config:
    """DrQ(eps)'s hyper-parameters; the defaults are Dopamine's for Atari-100k."""

    lr: float = setting(
        1e-4, "Adam's learning rate, for both networks", above=0, search="log(2e-5,1e-3)"
    )
    adam_eps: float = setting(1.5e-4, "Adam's epsilon, outside the root", above=0)
    batch_size: int = setting(
        32, "transitions per update", at_least=1, search="choice(16,32,64,128)"
    )
    nstep: int = setting(10, "steps of reward before bootstrapping", at_least=1, search="int(1,20)")
    discount: float = setting(0.99, "gamma, per agent step", at_least=0, at_most=1)
    encoder_channels: int = setting(
        32, "channels of the first convolution; the others have twice as many", at_least=1
    )
    hidden_dim: int = setting(512, "units per hidden layer", at_least=1)
    target_every_updates: int = setting(1, "updates between target-network syncs", at_least=1)
    learning_starts_steps: int = setting(
        1600, "agent steps of uniform random actions before the first update", at_least=0
    )
    epsilon_end: float = setting(
        0.01, "final probability of a random action", at_least=0, at_most=1, search="log(1e-3,0.1)"
    )
    epsilon_steps: int = setting(
        5000, "agent steps to decay epsilon from 1, after learning starts", at_least=1
    )
    shift_pixels: int = setting(4, "padding for the random crop, in pixels", at_least=0)
    intensity: float = setting(0.05, "scale of the random brightness of images", at_least=0)

    def seed_frames(self, frames_per_step: int) -> int:
        """Simulator frames before the first update: it needs more than `learning_starts_steps`."""
        return (self.learning_starts_steps + 1) * frames_per_step


class DrQEps:
    """The agent. One instance learns on one device.

    With `target_every_updates` 1, as published, a target network would be synced after every
    update: double DQN has no effect then, and there is no target network.

    Deviations from Dopamine's replay: near a termination its accumulator omits the terminal reward,
    repeats transitions with empty frames, and starts no transition at the terminal step; here these
    windows are shorter, and complete. Both networks are named, for metrics and interventions,
    "encoder" (the convolutions) and "critic" (the dense layers); "critic" decides on an adaptive
    replay ratio, as in the paper's code for DMC. The value of a state is max over a of Q(s, a).
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
        if is_fused(spec.observation):
            raise ConfigError(
                "agent=drq_eps: expected observations that are images or states, received both: "
                "add obs=state to learn from all the numbers, or keep one of them "
                "(gymnasium.wrappers.FilterObservation)."
            )
        self.config = config
        self.device = device
        self.actions = int(spec.action.n)
        self.images = is_image(spec.observation)
        self.mask_size = spec.mask_size
        self.epsilon = Linear(1.0, config.epsilon_end, config.epsilon_steps)
        builder = NetworkBuilder(
            _initialise,
            seeds.torch("weights"),
            device,
            interventions,
            compute or ComputeOptions(),
        )
        shape = spec.observation.shape
        if self.mask_size:  # which the networks do not see
            shape = (shape[0] - self.mask_size,)
        self.encoder: AtariEncoder | VectorEncoder = builder.build(
            "encoder",
            AtariEncoder(shape, config.encoder_channels) if self.images else VectorEncoder(shape),
        )
        stack = small_mlp if self.images else mlp
        outputs = 1 + self.actions
        head = stack(self.encoder.features, config.hidden_dim, outputs)
        self.critic = builder.build("critic", DuelingQ(head, self.actions))
        self.networks: dict[str, nn.Module] = {"encoder": self.encoder, "critic": self.critic}
        targets: dict[str, str] = {}
        if config.target_every_updates > 1:
            targets = {f"{name}_target": name for name in self.networks}
        for target, name in targets.items():
            self.networks[target] = copy.deepcopy(self.networks[name])
        self.optimizers = {
            name: adam(self.networks[name], config.lr, config.adam_eps)
            for name in ("encoder", "critic")
            if any(True for _ in self.networks[name].parameters())
        }
        self.generators = {
            "exploration": seeds.torch("exploration"),
            "augmentation": seeds.torch("augmentation", device),
        }
        readers = [net for name, net in self.networks.items() if name.startswith("critic")]
        self.modules = AgentModules(
            self.networks,
            builder,
            targets=targets,
            readers={"encoder": [layer for net in readers for layer in _first_layers(net)]},
            optimizers=self.optimizers,
            generators=self.generators,
            monitor=monitor,
        )
        self._stack_outputs = self.modules.numpy_forward(self.critic.q)
        self.updates = 0

    # --- acting ---

    def act(self, obs: np.ndarray, *, step: int, explore: bool) -> np.ndarray:
        """Actions int64 [N] for observations [N, *O]: the best, or with `explore` a random one with
        probability epsilon."""
        if not explore:
            return self._q(obs).argmax(1)
        generator, count = self.generators["exploration"], len(obs)
        chance = torch.rand(count, generator=generator).numpy()
        actions = self._random_actions(obs)
        greedy = chance >= self.epsilon(step - self.config.learning_starts_steps)
        if greedy.any():
            actions[greedy] = self._q(obs)[greedy].argmax(1)
        return actions

    def _random_actions(self, obs: np.ndarray) -> np.ndarray:
        """int64 [N], uniform over the allowed actions."""
        generator, count = self.generators["exploration"], len(obs)
        if not self.mask_size:
            return torch.randint(self.actions, (count,), generator=generator).numpy()
        _, mask = split_mask(obs, self.mask_size)
        draws = torch.rand((count, self.actions), generator=generator).numpy()
        return np.where(mask, draws, -1.0).argmax(1)

    def value(self, obs: np.ndarray) -> np.ndarray:
        """max over a of Q(s, a) [N] for observations [N, *O]."""
        return self._q(obs).max(1)

    def _q(self, obs: np.ndarray) -> np.ndarray:
        """Q [N, A]; `FORBIDDEN` for actions that a mask forbids."""
        if self.images:
            with torch.no_grad():
                return self.critic(self.encoder(on_device(obs, self.device))).cpu().numpy()
        states, mask = split_mask(obs.reshape(len(obs), -1), self.mask_size)
        output = self._stack_outputs(states)
        advantage = output[:, 1:]
        q = output[:, :1] + advantage - advantage.mean(1, keepdims=True)
        return q if mask is None else np.where(mask, q, np.float32(FORBIDDEN))

    def policy_module(self) -> PolicyModule:
        """Observations [N, *O] -> the numbers int64 [N] of the best allowed actions."""
        mask_size = self.mask_size

        def best(nets: Any, obs: Tensor) -> Tensor:
            states, mask = split_mask(obs, mask_size)
            q = nets["critic"](nets["encoder"](states))
            return (q if mask is None else q.masked_fill(~mask, FORBIDDEN)).argmax(1)

        return PolicyModule({"encoder": self.encoder, "critic": self.critic}, best)

    # --- learning ---

    def update(self, batch: Batch, *, step: int) -> Metrics:
        """One step of both networks on the Huber loss of the n-step double-DQN TD error."""
        self.modules.begin_update(step)
        obs, next_obs = self._augment(batch.obs), self._augment(batch.next_obs)
        target_q = self._target_q(batch, next_obs)
        states, _ = split_mask(obs, self.mask_size)
        features = self.encoder(states, self.modules.activations("encoder"))
        every_q = self.critic(features, self.modules.activations("critic"))
        q = every_q.gather(1, batch.action[:, None])
        loss = F.huber_loss(q, target_q)
        optimize(loss, *self.optimizers.values())
        self.updates += 1
        if self.modules.targets and self.updates % self.config.target_every_updates == 0:
            self._copy_to_targets()
        return {
            "loss/critic": loss.detach(),
            "critic/q": q.detach().mean(),
            "critic/target_q": target_q.mean(),
            "replay/batch_reward": batch.reward.mean(),
            "exploration/epsilon": self.epsilon(step - self.config.learning_starts_steps),
            **self.modules.end_update(),
        }

    def _augment(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float: each stack shifted, its brightness changed, in [0, 1.1]."""
        if not (self.images and self.modules.augments):
            return images
        pad, count = self.config.shift_pixels, len(images)
        draw: Any = {"generator": self.generators["augmentation"], "device": images.device}
        if pad:  # as in Dopamine, an offset is below 2 * pad
            images = shift(images, torch.randint(2 * pad, (count, 2), **draw), pad)
        factors = intensity_factors(torch.randn(count, **draw), self.config.intensity)
        pixels = images.to(torch.float32, memory_format=torch.channels_last)
        return pixels.mul_(factors / 255.0)

    @torch.no_grad()
    def _target_q(self, batch: Batch, next_obs: Tensor) -> Tensor:
        """reward_n + discount_n * Q'(next_obs, argmax over a of Q(next_obs, a)), [B, 1].

        Where a mask forbids actions, the argmax is over the others.
        """
        next_obs, mask = split_mask(next_obs, self.mask_size)
        q = target_q = self.critic(self.encoder(next_obs))
        if self.modules.targets:
            target_encoder, target_critic = (
                self.networks[f"{name}_target"] for name in ("encoder", "critic")
            )
            target_q = target_critic(target_encoder(next_obs))
        if mask is not None:
            q = q.masked_fill(~mask, FORBIDDEN)
        best = q.argmax(1, keepdim=True)
        return batch.reward + batch.discount * target_q.gather(1, best)

    @torch.no_grad()
    def _copy_to_targets(self) -> None:
        for target, name in self.modules.targets.items():
            self.networks[target].load_state_dict(self.networks[name].state_dict())

    def take_over(self, state: Mapping[str, Any], parts: Collection[str]) -> None:
        """As `BeginsFromAnother`; updates are counted anew."""
        self.modules.take_over(state["modules"], parts)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {"modules": self.modules.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.updates = state["updates"]


def _first_layers(critic: nn.Module) -> list[nn.Linear]:
    """The layers that read the features, in each part of a head that can take an injection."""
    stacks = [part for part in critic.modules() if isinstance(part, RecordedStack)]
    return [layer for stack in stacks if isinstance(layer := stack[0], nn.Linear)]


def _initialise(name: str, network: nn.Module, weights: torch.Generator) -> None:
    """Xavier-uniform weights and zero biases; V and the advantages as separate linear layers."""
    initialise_(network, weights, xavier_)
    if not isinstance(network, DuelingQ):
        return
    for stack in (part for part in network.modules() if isinstance(part, RecordedStack)):
        output: Any = stack[-1]
        inputs, outputs = output.in_features, output.out_features
        with torch.no_grad():
            output.weight[:1].mul_(((inputs + outputs) / (inputs + 1)) ** 0.5)
            output.weight[1:].mul_(((inputs + outputs) / (inputs + outputs - 1)) ** 0.5)


SPEC = AgentSpec(
    config_class=Config,
    make=DrQEps,
    networks=("encoder", "critic"),
    random_start="learning_starts_steps",
    actions=("discrete",),
    observes_pixels=True,
    run_defaults=("replay_ratio=1",),
    policy_module=DrQEps.policy_module,
)
