"""PPO (arXiv 1707.06347) for states, with CleanRL's hyper-parameters and details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlearly.agents.modules import AgentModules, NetworkBuilder
from rlearly.agents.spec import AgentSpec
from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError
from rlearly.core.types import EnvSpec, Metrics, Rollout
from rlearly.kernels.numpy_forward import Forward, make_forward
from rlearly.kernels.ppo_gradient import (
    ClippedObjective,
    PPOGradient,
    Rows,
    entropy,
    gaussian,
    minibatches,
    normalised,
)
from rlearly.nn.layers import RecordedStack
from rlearly.nn.networks import GaussianActor, StateValue, layers
from rlearly.nn.optim import adam, optimize
from rlearly.nn.precision import ComputeOptions
from rlearly.nn.running_stats import RunningMeanStd
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds
from rlearly.system.threads import one_thread

CUT = 10.0
"""Normalised observations and rewards lie within +-CUT."""

LOWEST, HIGHEST, EPSILON = np.array(-CUT), np.array(CUT), np.array(1e-8)
"""As numpy has them: a number of Python's would take it twice as long."""

NOISE_AHEAD = 256
"""Rows of noise that are drawn at once: a row by itself is mostly the call."""

ONE_THREADS_WORK = 4_000_000
"""Multiplications in the largest product of a minibatch up to which one thread learns."""


@dataclass(frozen=True)
class Config:
    """PPO's hyper-parameters; the defaults are CleanRL's."""

    lr: float = setting(3e-4, "Adam's learning rate at the start; decays to 0", above=0)
    anneal_steps: int | None = setting(
        None, "agent steps of the linear decay of lr; null: the whole run", at_least=1
    )
    rollout_steps: int = setting(2048, "agent steps per rollout and env", at_least=1)
    minibatches: int = setting(32, "minibatches (gradient steps) per epoch", at_least=1)
    epochs: int = setting(10, "passes over a rollout", at_least=1)
    discount: float = setting(0.99, "gamma per agent step", at_least=0, at_most=1)
    gae_lambda: float = setting(0.95, "lambda of GAE", at_least=0, at_most=1)
    clip: float = setting(0.2, "clip range of ratios and values", above=0)
    clip_value: bool = setting(True, "whether to clip the value loss")
    entropy_weight: float = setting(0.0, "weight of the entropy bonus", at_least=0)
    value_weight: float = setting(0.5, "weight of the value loss", at_least=0)
    max_grad_norm: float = setting(0.5, "the gradient is clipped to this norm", above=0)
    hidden_dim: int = setting(64, "units per hidden layer", at_least=1)

    def seed_frames(self, frames_per_step: int) -> int:
        """Simulator frames before the first rollout is learnt from: none but its own."""
        return 0


class PPO:
    """The agent. One instance learns on one device, from rollouts of its own actions.

    It normalises what it sees and is paid by running moments of its own, which only exploring
    moves: an evaluation uses them as they are. Each observation is kept as it was normalised when
    it was acted on, so the log-probabilities of a rollout are those of its behaviour.

    Deviations from CleanRL: a truncated episode bootstraps with V(its final observation), where
    CleanRL takes truncation for an end. Final observations are normalised by the moments at the
    rollout's end and do not enter them. All copies of the env share their moments. The discounted
    return whose variance scales the rewards starts anew with each episode (gymnasium's wrapper
    carries it over truncations, and drops it one step before a termination). Learning rates fall
    by steps learnt from / anneal_steps, which is CleanRL's where rollouts divide the run. Losses
    and clip fractions are means over the update's minibatches, not the last one's.
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
        if config.rollout_steps < 2 * config.minibatches:
            raise ConfigError(
                "agent.minibatches: expected at most half of agent.rollout_steps = "
                f"{config.rollout_steps}, since advantages are normalised in each; "
                f"received {config.minibatches}."
            )
        self.config = config
        self.device = device
        features = int(np.prod(spec.observation.shape))
        builder = NetworkBuilder(
            _initialise, seeds.torch("weights"), device, interventions, compute or ComputeOptions()
        )
        critic = StateValue(features, config.hidden_dim)
        actor = GaussianActor(features, spec.action.shape[0], config.hidden_dim)
        self.critic = builder.build("critic", critic)
        self.actor = builder.build("actor", actor)
        self.networks: dict[str, nn.Module] = {"actor": self.actor, "critic": self.critic}
        self.optimizers = {"both": adam(nn.ModuleDict(self.networks), config.lr, eps=1e-5)}
        self.generators = {
            "exploration": seeds.torch("exploration"),
            "minibatches": seeds.torch("minibatches"),
        }
        self.modules = AgentModules(
            self.networks,
            builder,
            optimizers=self.optimizers,
            generators=self.generators,
            monitor=monitor,
            on_policy=True,
        )
        self.objective = ClippedObjective(
            clip=config.clip,
            clip_value=config.clip_value,
            entropy_weight=config.entropy_weight,
            value_weight=config.value_weight,
        )
        self.analytic: PPOGradient | None = None
        exact = builder.compute.hidden_dtype is None
        if exact and PPOGradient.fits(self.actor, self.critic):
            self.analytic = PPOGradient(self.actor, self.critic, self.objective)
        self.obs_rms = RunningMeanStd((features,))
        self.return_rms = RunningMeanStd(())
        self.returns: np.ndarray | None = None  # [N], discounted, of the running episodes
        self.acted: list[np.ndarray] = []  # normalised [N, D] a step since the last rollout
        self.noise = np.empty((0, spec.action.shape[0]), np.float32)  # of the steps to come
        self.learnt_steps = 0

    # --- acting ---

    @cached_property
    def _mean(self) -> Forward:
        return make_forward(self.actor.policy)

    @cached_property
    def _value(self) -> Forward:
        return make_forward(self.critic.v)

    def act(self, obs: np.ndarray, *, step: int, explore: bool) -> np.ndarray:
        """Actions [N, A] for states [N, D]: a Gaussian sample, which may leave [-1, 1], or its
        mean, cut to [-1, 1]."""
        flat = obs.reshape(len(obs), -1)
        if explore:
            self.obs_rms.update(flat)
        normal = self._normal(flat)
        mean = self._mean(normal)
        if not explore:
            return mean.clip(-1.0, 1.0)
        self.acted.append(normal)
        num_envs = len(mean)
        if len(self.noise) < num_envs:
            self.noise = self._draw_noise(max(num_envs, NOISE_AHEAD))
        mean += self.noise[:num_envs]
        self.noise = self.noise[num_envs:]
        return mean

    def _draw_noise(self, rows: int) -> np.ndarray:
        """[rows, A] of the policy's deviation; to be dropped when the policy has changed."""
        shape = (rows, self.noise.shape[1])
        noise = torch.randn(shape, generator=self.generators["exploration"]).numpy()
        noise *= np.exp(self.actor.log_std.numpy(force=True))
        return noise

    def value(self, obs: np.ndarray) -> np.ndarray:
        """V(s) [N] for states [N, D], in units of normalised reward."""
        return self._value(self._normal(obs.reshape(len(obs), -1)))[:, 0]

    def _normal(self, flat: np.ndarray) -> np.ndarray:
        spread = self.obs_rms.variance + EPSILON
        normal = flat - self.obs_rms.mean
        normal /= np.sqrt(spread, spread)
        np.maximum(normal, LOWEST, out=normal)
        return np.minimum(normal, HIGHEST, out=normal).astype(np.float32)

    # --- learning ---

    def update(self, batch: Rollout, *, step: int) -> Metrics:
        """All epochs over one rollout, which must hold the agent's own last actions, in order.

        Raises:
            ValueError: it has another number of steps than were acted since the last one.
        """
        rows = batch.reward.size // self.config.minibatches
        small = rows * self.config.hidden_dim**2 <= ONE_THREADS_WORK
        with one_thread() if small and self.device.type == "cpu" else nullcontext():
            return self._update(batch, step)

    def _update(self, batch: Rollout, step: int) -> Metrics:
        config = self.config
        steps, num_envs = batch.reward.shape
        if len(self.acted) != steps:
            raise ValueError(f"expected a rollout of {len(self.acted)} steps, received {steps}")
        self.modules.begin_update(step)
        if self.analytic is not None:
            self.analytic.begin()
        obs = torch.from_numpy(np.concatenate(self.acted)).to(self.device)
        action = torch.from_numpy(batch.action).to(self.device).flatten(0, 1)
        with torch.no_grad():
            mean, value = self._outputs(obs)
            log_prob, _ = gaussian(mean, self.actor.log_std, action)
        values = value.view(steps, num_envs).cpu().numpy()
        advantage = advantages(
            self._rewards(batch),
            values,
            self._next_values(batch, values),
            terminated=batch.terminated,
            truncated=batch.truncated,
            discount=config.discount,
            gae_lambda=config.gae_lambda,
        )
        data = (
            obs,
            action,
            log_prob,
            value,
            torch.from_numpy(advantage.astype(np.float32)).to(self.device).flatten(),
        )
        rate = config.lr * self._rate_left()
        for group in self.optimizers["both"].param_groups:
            group["lr"] = rate
        metrics = self._descend(data)
        target = data[4] + value
        spread = target.var(unbiased=False)
        unexplained = (target - value).var(unbiased=False) / spread.clamp(min=1e-12)
        self.acted, self.noise = [], self.noise[:0]
        self.learnt_steps += steps * num_envs
        metrics |= {
            "policy/lr": rate,
            "policy/std": self.actor.log_std.detach().exp().mean(),
            "critic/explained_variance": 1 - unexplained,
            "critic/value": value.mean(),
        }
        return {**metrics, **self.modules.end_update()}

    def _outputs(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean actions [B, A] and values [B]; the networks note their units if they are to."""
        form, noted = (
            self.analytic,
            {name: self.modules.activations(name) for name in self.networks},
        )
        if form is None or any(units is not None for units in noted.values()):
            value = self.critic(obs, noted["critic"])
            mean, _ = self.actor(obs, noted["actor"])
        if form is not None:  # what is learnt from does not depend on whether units are noted
            mean, value = map(torch.from_numpy, form.outputs(obs.numpy(), self.config.minibatches))
        return mean, value

    def _rate_left(self) -> float:
        """The share of the learning rate that is left, in [0, 1]."""
        if self.config.anneal_steps is None:
            return 1.0
        return max(0.0, 1.0 - self.learnt_steps / self.config.anneal_steps)

    def _rewards(self, batch: Rollout) -> np.ndarray:
        """Rewards [T, N] over the running spread of the discounted return, within +-CUT."""
        steps, num_envs = batch.reward.shape
        running = np.zeros(num_envs) if self.returns is None else self.returns
        over = batch.terminated | batch.truncated
        keep = np.full((steps, num_envs), self.config.discount)
        keep[1:] *= ~over[:-1]
        returns = _summed(batch.reward, keep, running)
        self.returns = np.where(over[-1], 0.0, returns[-1])
        variance = self.return_rms.update_in_order(returns)
        return np.clip(batch.reward / np.sqrt(variance + 1e-8)[:, None], -CUT, CUT)

    @torch.no_grad()
    def _next_values(self, batch: Rollout, values: np.ndarray) -> np.ndarray:
        """V [T, N] of what each step led to: the next row's, or a final observation's own."""
        after = np.empty_like(values)
        after[:-1] = values[1:]
        own = batch.truncated.copy()
        own[-1] = True
        after[own] = self.value(batch.next_obs[own])
        return after

    def _descend(self, data: tuple[Tensor, ...]) -> dict[str, Tensor | float]:
        """Every epoch's gradient steps; returns the means of their metrics."""
        rows = None if self.analytic is None else Rows.of(*data)
        sums: dict[str, Tensor] = {}
        for _ in range(self.config.epochs):
            order = torch.randperm(len(data[0]), generator=self.generators["minibatches"])
            parts = self._epoch(data, order) if rows is None else self._epoch_in_numpy(rows, order)
            for name, part in parts.items():
                sums[name] = sums[name] + part if name in sums else part
        count = self.config.epochs * self.config.minibatches
        return {name: value / count for name, value in sums.items()}

    def _epoch(self, data: tuple[Tensor, ...], order: Tensor) -> dict[str, Tensor]:
        """A gradient step a minibatch, by autograd; returns the sums of their metrics."""
        sums: dict[str, Tensor] = {}
        for rows in order.to(self.device).tensor_split(self.config.minibatches):
            total, parts = self._loss(*(tensor[rows] for tensor in data))
            optimize(total, self.optimizers["both"], max_norm=self.config.max_grad_norm)
            for name, part in parts.items():
                sums[name] = sums[name] + part if name in sums else part
        return sums

    def _epoch_in_numpy(self, rows: Rows, order: Tensor) -> dict[str, Tensor]:
        """The same by the closed form; metrics are worked out for all rows together."""
        assert self.analytic is not None
        optimizer, log_std = self.optimizers["both"], self.actor.log_std.detach().numpy()
        rows = rows.shuffled(order, self.config.minibatches)
        log_prob, value, share = np.empty((3, len(rows)), np.float32)
        log_stds = np.empty((self.config.minibatches, len(log_std)), np.float32)
        with np.errstate(all="ignore"):  # numbers that are not finite are the loop's to refuse
            for at, (start, end) in enumerate(minibatches(len(rows), self.config.minibatches)):
                share[start:end] = 1 / (end - start)
                log_stds[at] = log_std
                self.analytic.differentiate(
                    rows.part(start, end), log_prob[start:end], value[start:end]
                )
                self.analytic.clip_gradients(self.config.max_grad_norm)
                optimizer.step(self.analytic.flat)
        found = map(torch.from_numpy, (log_prob, value))
        terms = self.objective.terms(*found, **rows.as_tensors())
        sums = {name: term @ torch.from_numpy(share) for name, term in terms.items()}
        return sums | {"policy/entropy": entropy(torch.from_numpy(log_stds)).sum()}

    def _loss(
        self,
        obs: Tensor,
        action: Tensor,
        old_log_prob: Tensor,
        old_value: Tensor,
        advantage: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one minibatch and its parts, detached; `advantage` is the advantage [B]."""
        mean, log_std = self.actor(obs)
        log_prob, spread = gaussian(mean, log_std, action)
        terms = self.objective.terms(
            log_prob,
            self.critic(obs),
            old_log_prob=old_log_prob,
            old_value=old_value,
            advantage=normalised(advantage),
            target=advantage + old_value,
        )
        parts = {name: term.mean() for name, term in terms.items()} | {"policy/entropy": spread}
        return self.objective.total(parts), {name: part.detach() for name, part in parts.items()}

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": self.modules.state_dict(),
            "obs_rms": self.obs_rms.state_dict(),
            "return_rms": self.return_rms.state_dict(),
            "returns": self.returns,
            "acted": np.stack(self.acted) if self.acted else None,
            "noise": self.noise,
            "learnt_steps": self.learnt_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.obs_rms.load_state_dict(state["obs_rms"])
        self.return_rms.load_state_dict(state["return_rms"])
        self.returns = None if state["returns"] is None else np.array(state["returns"])
        self.acted = [] if state["acted"] is None else [*np.array(state["acted"])]
        self.noise = np.array(state.get("noise", self.noise[:0]))  # it was not always drawn ahead
        self.learnt_steps = state["learnt_steps"]


def advantages(
    reward: np.ndarray,
    value: np.ndarray,
    next_value: np.ndarray,
    *,
    terminated: np.ndarray,
    truncated: np.ndarray,
    discount: float,
    gae_lambda: float,
) -> np.ndarray:
    """Generalised advantages [T, N] (arXiv 1506.02438, equation 16) of a rollout [T, N].

    A termination is worth nothing afterwards; a truncation, and the rollout's end, are worth
    `next_value`. No sum goes on from one episode into the next.
    """
    error = reward + discount * next_value * ~terminated - value
    keep = discount * gae_lambda * ~(terminated | truncated)
    return _summed(error[::-1], keep[::-1], np.zeros(error.shape[1]))[::-1]


def _summed(terms: np.ndarray, keep: np.ndarray, before: np.ndarray) -> np.ndarray:
    """y [T, N] with y[t] = terms[t] + keep[t] * y[t - 1], where y[-1] is `before` [N].

    In Python's numbers, a column at a time: they are float64 too, and numpy would take ten times
    as long for a row of one.
    """
    sums = np.empty(terms.shape)
    for env_index, total in enumerate(before.tolist()):
        column = []
        for term, share in zip(
            terms[:, env_index].tolist(), keep[:, env_index].tolist(), strict=True
        ):
            total = term + share * total
            column.append(total)
        sums[:, env_index] = column
    return sums


def _initialise(name: str, network: nn.Module, weights: torch.Generator) -> None:
    """Orthogonal weights of advantage sqrt(2), in the last layer 1 or 0.01 (actor); no biases."""
    last_gain = 0.01 if name == "actor" else 1.0
    for head in (m for m in network.modules() if isinstance(m, RecordedStack)):
        *hidden, last = (layer for layer in layers(head) if isinstance(layer, nn.Linear))
        for layer in (*hidden, last):
            advantage = last_gain if layer is last else 2**0.5
            nn.init.orthogonal_(layer.weight, advantage, generator=weights)
            nn.init.zeros_(layer.bias)


SPEC = AgentSpec(
    config_class=Config,
    make=PPO,
    networks=("actor", "critic"),
    on_policy=True,
    most_threads=1,  # its matrices are too small for a second thread
    run_defaults=("video_size=0",),
    refused_interventions={
        "augmentation": "it learns from states, which are not augmented",
        "crelu": "its hidden units are tanh, not ReLU",
        "freeze_encoder": "it has no encoder",
    },
)
