"""PPO (arXiv 1707.06347) from states, with continuous or discrete actions, and with CleanRL's
hyper-parameters and details."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor, nn

from rlearly.agents.modules import AgentModules, NetworkBuilder
from rlearly.agents.network_factory import NETWORK, NETWORK_KWARGS, NetworkFactory
from rlearly.agents.spec import AgentSpec
from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError
from rlearly.core.spaces import split_mask
from rlearly.core.types import EnvSpec, Metrics, Rollout
from rlearly.kernels.ppo_gradient import PPOGradient, RolloutRows
from rlearly.nn.custom import draws_dropout, our_modules
from rlearly.nn.distributions import FORBIDDEN, Categorical, Distribution
from rlearly.nn.layers import RecordedStack, draw_dropout_from
from rlearly.nn.networks import StateValue, layers
from rlearly.nn.optim import adam, optimize
from rlearly.nn.policies import CategoricalActor, GaussianActor
from rlearly.nn.policy_module import NormalizedStates, PolicyModule
from rlearly.nn.precision import ComputeOptions
from rlearly.nn.running_stats import CLIP, RunningMeanStd, normalized_states, standardized
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds
from rlearly.system.threads import one_thread

NOISE_AHEAD = 256
"""Rows of noise drawn at once: most of the cost of one row is the call."""

SINGLE_THREAD_WORK = 4_000_000
"""Multiplications in a minibatch's largest matrix product up to which an update uses one thread."""


CONTINUOUS = {
    "lr": 3e-4,
    "rollout_steps": 2048,
    "minibatches": 32,
    "epochs": 10,
    "entropy_weight": 0.0,
    "normalize": True,
}
DISCRETE = {
    "lr": 2.5e-4,
    "rollout_steps": 128,
    "minibatches": 4,
    "epochs": 4,
    "entropy_weight": 0.01,
    "normalize": False,
}
"""The settings that differ, from CleanRL's ppo_continuous_action.py and ppo.py."""


@dataclass(frozen=True)
class Config:
    """PPO's hyper-parameters; the defaults are CleanRL's.

    Where None stands, the value depends on the action space, which only the env knows:
    `for_actions` puts it there.
    """

    lr: float | None = setting(
        None,
        "Adam's learning rate at the start, decays to 0; null: 3e-4, discrete actions: 2.5e-4",
        above=0,
        search="log(3e-5,3e-3)",
    )
    anneal_steps: int | None = setting(
        None, "agent steps of the linear decay of lr; null: the whole run", at_least=1
    )
    rollout_steps: int | None = setting(
        None, "agent steps per rollout and env; null: 2048, discrete actions: 128", at_least=1
    )
    minibatches: int | None = setting(
        None, "minibatches (gradient steps) per epoch; null: 32, discrete actions: 4", at_least=1
    )
    epochs: int | None = setting(
        None, "passes over a rollout; null: 10, discrete actions: 4", at_least=1, search="int(3,15)"
    )
    discount: float = setting(
        0.99, "gamma per agent step", at_least=0, at_most=1, search="choice(0.95,0.98,0.99,0.995)"
    )
    gae_lambda: float = setting(
        0.95, "lambda of GAE", at_least=0, at_most=1, search="uniform(0.9,1)"
    )
    clip: float = setting(
        0.2, "clip range of ratios and values", above=0, search="uniform(0.1,0.4)"
    )
    clip_value: bool = setting(True, "whether to clip the value loss")
    entropy_weight: float | None = setting(
        None,
        "weight of the entropy bonus; null: 0, discrete actions: 0.01",
        at_least=0,
        search="choice(0,1e-4,1e-3,1e-2)",
    )
    value_weight: float = setting(0.5, "weight of the value loss", at_least=0)
    max_grad_norm: float = setting(0.5, "the gradient is clipped to this norm", above=0)
    hidden_dim: int = setting(64, "units per hidden layer", at_least=1)
    normalize: bool | None = setting(
        None,
        "whether to normalise observations and rewards by running statistics; null: true, discrete "
        "actions: false",
    )
    network: str | None = setting(None, NETWORK)
    network_kwargs: dict[str, Any] = setting({}, NETWORK_KWARGS)

    def seed_frames(self, frames_per_step: int) -> int:
        """Simulator frames before the first rollout counts: 0."""
        return 0

    def for_actions(self, space: Any) -> Config:
        """These settings with CleanRL's values for an action space in the place of None."""
        values = DISCRETE if isinstance(space, Discrete) else CONTINUOUS
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return replace(self, **missing)


class PPO:
    """The agent. One instance learns on one device, from rollouts of its own actions.

    Continuous actions have a Gaussian distribution, discrete ones a categorical one, which is the
    actor's part. Where observations end with a mask of actions, forbidden ones have the probability
    0 in acting, in the loss and in the entropy; neither network sees the mask.

    With `normalize`, observations and rewards are normalised by running statistics, which are
    updated only when the agent explores; an evaluation leaves them unchanged. Observations are
    stored as they were normalised for acting, so the log-probabilities of a rollout are those of
    the policy that acted.

    The loss is `_loss`, in plain autograd. Where `PPOGradient` supports the networks (plain tanh
    stacks on a CPU), its gradient is computed by hand, which is several times faster.

    Deviations from CleanRL: a truncated episode bootstraps with V(its final observation), where
    CleanRL treats truncation as termination. Final observations are normalised by the statistics
    at the rollout's end and do not enter them. All envs share their statistics. The discounted
    return, whose variance scales the rewards, restarts with each episode (gymnasium's wrapper
    carries it over truncations, and drops it one step before a termination). Learning rates decay
    with steps learnt from / anneal_steps, which is CleanRL's rule where rollouts divide the run.
    Losses and clip fractions are means over the update's minibatches, not the last one's.
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
        settings: Any = config.for_actions(spec.action)  # where nothing is None
        self.config = settings
        if settings.rollout_steps < 2 * settings.minibatches:
            raise ConfigError(
                "agent.minibatches: expected at most half of agent.rollout_steps = "
                f"{settings.rollout_steps}, since advantages are normalised in each; "
                f"received {settings.minibatches}."
            )
        self.device = device
        self.mask_size = spec.mask_size
        features = int(np.prod(spec.observation.shape)) - self.mask_size
        compute = compute or ComputeOptions()
        builder = NetworkBuilder(
            _initialise,
            seeds.torch("weights"),
            device,
            interventions,
            compute,
            NetworkFactory.of(settings),
        )
        v = builder.stack("critic", features, 1)
        policy = builder.stack("actor", features, action_size(spec.action))
        self.critic = builder.build("critic", StateValue(features, settings.hidden_dim, v=v))
        self.actor = builder.build("actor", _actor(features, spec, settings.hidden_dim, policy))
        self.networks: dict[str, nn.Module] = {"actor": self.actor, "critic": self.critic}
        self.optimizers = {"both": adam(nn.ModuleDict(self.networks), settings.lr, eps=1e-5)}
        self.generators = {
            "exploration": seeds.torch("exploration"),
            "minibatches": seeds.torch("minibatches"),
        }
        if draws_dropout(self.networks):
            self.generators["dropout"] = seeds.torch("dropout", device)
            draw_dropout_from(self.generators["dropout"], *self.networks.values())
        self.modules = AgentModules(
            self.networks,
            builder,
            optimizers=self.optimizers,
            generators=self.generators,
            monitor=monitor,
            on_policy=True,
        )
        self._policy = self.modules.numpy_forward(self.actor.policy)
        self._value = self.modules.numpy_forward(self.critic.v)
        self.fast_gradient: PPOGradient | None = None
        if compute.kernels and compute.hidden_dtype is None:
            self.fast_gradient = PPOGradient.of(
                self.actor,
                self.critic,
                clip=settings.clip,
                clip_value=settings.clip_value,
                entropy_weight=settings.entropy_weight,
                value_weight=settings.value_weight,
            )
        self.obs_rms = RunningMeanStd((features,))
        self.return_rms = RunningMeanStd(())
        self.returns: np.ndarray | None = None  # [N], discounted, of the running episodes
        self.acted: list[np.ndarray] = []  # per step since the last rollout: normalised [n, D]
        self.noise = self._draw_noise(0)  # for the next steps
        self.learnt_steps = 0

    # --- acting ---

    def act(self, obs: np.ndarray, *, step: int, explore: bool) -> np.ndarray:
        """Actions for states [N, D]: samples of the policy, which may leave [-1, 1], or its mode
        (of a Gaussian, the mean clipped to [-1, 1])."""
        flat = obs.reshape(len(obs), -1)
        if explore and self.config.normalize:
            self.obs_rms.update(split_mask(flat, self.mask_size)[0])
        normal = self._normalize(flat)
        output = self._policy_output(normal)
        if not explore:
            return self.actor.mode(output)
        self.acted.append(normal)
        return self._drawn(output)

    def sample(self, obs: np.ndarray) -> np.ndarray:
        """Actions for states [N, D], drawn as `act` draws them; they are not learned from."""
        return self._drawn(self._policy_output(self._normalize(obs.reshape(len(obs), -1))))

    def _policy_output(self, normal: np.ndarray) -> np.ndarray:
        """The actor's output [N, ...] for normalised states, which end with a mask if there is
        one."""
        states, mask = split_mask(normal, self.mask_size)
        output = self._policy(states)
        if mask is not None:
            output[~mask] = FORBIDDEN
        return output

    def _drawn(self, output: np.ndarray) -> np.ndarray:
        """Actions drawn from the policy with this output."""
        num_envs = len(output)
        if len(self.noise) < num_envs:
            self.noise = self._draw_noise(max(num_envs, NOISE_AHEAD))
        action = self.actor.sample(output, self.noise[:num_envs])
        self.noise = self.noise[num_envs:]
        return action

    def _draw_noise(self, rows: int) -> np.ndarray:
        """For the actor's samples; valid until the policy changes."""
        return self.actor.draw_noise(rows, self.generators["exploration"])

    def value(self, obs: np.ndarray) -> np.ndarray:
        """V(s) [N] for states [N, D], in units of the reward that is learnt from."""
        normal = self._normalize(obs.reshape(len(obs), -1))
        return self._value(split_mask(normal, self.mask_size)[0])[:, 0]

    def _normalize(self, flat: np.ndarray) -> np.ndarray:
        """A new float32 [N, D]; a mask of actions at the end of a row stays as it is."""
        if not self.config.normalize:
            return flat.astype(np.float32)
        return normalized_states(self.obs_rms, flat, self.mask_size)

    def policy_module(self) -> PolicyModule:
        """States [N, D] -> the mode of the policy: actions [N, A] in [-1, 1], or int64 [N]."""
        networks: dict[str, nn.Module] = {"actor": self.actor, "normalize": nn.Identity()}
        if self.config.normalize:
            networks["normalize"] = NormalizedStates(self.obs_rms, self.mask_size)

        def mode(nets: Any, obs: Tensor) -> Tensor:
            policy = nets["actor"](nets["normalize"](obs))
            if isinstance(policy, Categorical):
                return policy.logits.argmax(-1)
            return policy.mean.clamp(-1.0, 1.0)

        return PolicyModule(networks, mode)

    # --- learning ---

    def update(self, batch: Rollout, *, step: int) -> Metrics:
        """All epochs over one rollout, which must hold the agent's own last actions, in order.

        Entries of the rollout that are no steps are left out of minibatches, advantages, statistics
        and metrics.

        Raises:
            ValueError: the agent has not acted this number of steps since the last update.
        """
        rows = batch.reward.size // self.config.minibatches
        small = rows * self.config.hidden_dim**2 <= SINGLE_THREAD_WORK
        with one_thread() if small and self.device.type == "cpu" else nullcontext():
            return self._update(batch, step)

    def _update(self, batch: Rollout, step: int) -> Metrics:
        config = self.config
        steps, valid = len(batch.reward), batch.valid
        if len(self.acted) != steps:
            raise ValueError(f"expected a rollout of {len(self.acted)} steps, received {steps}")
        self.modules.begin_update(step)
        if self.fast_gradient is not None:
            self.fast_gradient.begin()
        obs = torch.from_numpy(np.concatenate(self.acted)).to(self.device)
        action = torch.from_numpy(_rows(batch.action, valid)).to(self.device)
        with torch.no_grad():
            policy, value = self._outputs(obs)
            log_prob = policy.log_prob(action)
        values = _columns(value.cpu().numpy(), batch)
        advantage = advantages(
            self._scaled_rewards(batch) if config.normalize else batch.reward,
            values,
            self._next_values(batch, values),
            terminated=batch.terminated,
            truncated=batch.truncated,
            discount=config.discount,
            gae_lambda=config.gae_lambda,
        )
        advantage = torch.from_numpy(_rows(advantage.astype(np.float32), valid)).to(self.device)
        rate = config.lr * self._lr_left()
        for group in self.optimizers["both"].param_groups:
            group["lr"] = rate
        metrics = self._run_epochs((obs, action, log_prob, value, advantage))
        target = advantage + value
        spread = target.var(unbiased=False)
        unexplained = (target - value).var(unbiased=False) / spread.clamp(min=1e-12)
        self.acted, self.noise = [], self.noise[:0]
        self.learnt_steps += len(obs)
        metrics |= {
            "policy/lr": rate,
            **self.actor.metrics(),
            "critic/explained_variance": 1 - unexplained,
            "critic/value": value.mean(),
        }
        return {**metrics, **self.modules.end_update()}

    def _outputs(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """The policy in B states and their values [B]; records activations if they are needed."""
        fast = self.fast_gradient
        recorded = {name: self.modules.activations(name) for name in self.networks}
        if fast is None or any(units is not None for units in recorded.values()):
            value = self.critic(split_mask(obs, self.mask_size)[0], recorded["critic"])
            policy = self.actor(obs, recorded["actor"])
        if fast is not None:  # so that recording does not change what is learnt
            policy, value = fast.outputs(obs.numpy(), self._minibatches(len(obs)))
        return policy, value

    def _minibatches(self, rows: int) -> int:
        """How many there are; each has at least two rows, since advantages are normalised in it."""
        return min(self.config.minibatches, max(1, rows // 2))

    def _lr_left(self) -> float:
        """The share of the learning rate that is left, in [0, 1]."""
        if self.config.anneal_steps is None:
            return 1.0
        return max(0.0, 1.0 - self.learnt_steps / self.config.anneal_steps)

    def _scaled_rewards(self, batch: Rollout) -> np.ndarray:
        """Rewards [T, N] / the running std of the discounted return, clipped to +-CLIP."""
        steps, num_envs = batch.reward.shape
        running = np.zeros(num_envs) if self.returns is None else self.returns
        over = batch.terminated | batch.truncated
        if batch.valid is not None:
            over = over | ~batch.valid
        keep = np.full((steps, num_envs), self.config.discount)
        keep[1:] *= ~over[:-1]
        returns = _discounted_sums(batch.reward, keep, running)
        self.returns = np.where(over[-1], 0.0, returns[-1])
        variance = self.return_rms.update_in_order(returns, batch.valid)
        return np.clip(batch.reward / np.sqrt(variance + 1e-8)[:, None], -CLIP, CLIP)

    @torch.no_grad()
    def _next_values(self, batch: Rollout, values: np.ndarray) -> np.ndarray:
        """V [T, N] of each step's next state: the next row's, or the final observation's."""
        after = np.zeros_like(values)
        after[:-1] = values[1:]
        final = batch.truncated.copy()
        final[-1] = True if batch.valid is None else batch.valid[-1]
        after[final] = self.value(batch.next_obs[final])
        return after

    def _run_epochs(self, data: tuple[Tensor, ...]) -> dict[str, Tensor | float]:
        """A gradient step per minibatch and epoch; returns the means of their metrics.

        data: the rollout's observations, actions, log-probabilities, values and advantages.
        """
        config, optimizer, fast = self.config, self.optimizers["both"], self.fast_gradient
        rows = None if fast is None else RolloutRows.of(*data, mask_size=self.mask_size)
        minibatches = self._minibatches(len(data[0]))
        sums: dict[str, Tensor] = {}
        for _ in range(config.epochs):
            order = torch.randperm(len(data[0]), generator=self.generators["minibatches"])
            if fast is not None and rows is not None:
                shuffled = rows.shuffled(order, minibatches)
                parts = fast.run_epoch(
                    shuffled, minibatches, optimizer, config.max_grad_norm, self._loss_terms
                )
            else:
                parts = self._run_epoch(data, order)
            _add(sums, parts)
        count = config.epochs * minibatches
        return {name: value / count for name, value in sums.items()}

    def _run_epoch(self, data: tuple[Tensor, ...], order: Tensor) -> dict[str, Tensor]:
        """A gradient step per minibatch; returns the sums of their metrics."""
        sums: dict[str, Tensor] = {}
        for rows in order.to(self.device).tensor_split(self._minibatches(len(order))):
            loss, parts = self._loss(*(tensor[rows] for tensor in data))
            optimize(loss, self.optimizers["both"], max_norm=self.config.max_grad_norm)
            _add(sums, parts)
        return sums

    def _loss(
        self,
        obs: Tensor,
        action: Tensor,
        old_log_prob: Tensor,
        old_value: Tensor,
        advantage: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one minibatch (equation 9), and its parts, detached; advantage [B]."""
        policy = self.actor(obs)
        terms = self._loss_terms(
            policy.log_prob(action),
            self.critic(split_mask(obs, self.mask_size)[0]),
            old_log_prob=old_log_prob,
            old_value=old_value,
            advantage=standardized(advantage),
            target=advantage + old_value,
        )
        parts = {name: term.mean() for name, term in terms.items()}
        parts["policy/entropy"] = policy.entropy().mean()
        loss = (
            parts["loss/actor"]
            - self.config.entropy_weight * parts["policy/entropy"]
            + self.config.value_weight * parts["loss/critic"]
        )
        return loss, {name: part.detach() for name, part in parts.items()}

    def _loss_terms(
        self,
        log_prob: Tensor,
        value: Tensor,
        *,
        old_log_prob: Tensor,
        old_value: Tensor,
        advantage: Tensor,
        target: Tensor,
    ) -> dict[str, Tensor]:
        """Each row's loss terms and metrics [B]; `advantage` is normalised.

        Actor: -min(A r, A clip(r)), r = pi(a|s) / pi_old(a|s) (equation 7). Critic: half the
        squared error, or that of the value clipped to old value +- clip if it is larger.
        """
        clip = self.config.clip
        log_ratio = log_prob - old_log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        error = (value - target).square()
        if self.config.clip_value:
            near = old_value + (value - old_value).clamp(-clip, clip)
            error = torch.max(error, (near - target).square())
        with torch.no_grad():
            kl = ratio - 1 - log_ratio
            clip_fraction = ((ratio - 1).abs() > clip).float()
        return {
            "loss/actor": -torch.min(advantage * ratio, advantage * clipped),
            "loss/critic": 0.5 * error,
            "policy/kl": kl,
            "policy/clip_fraction": clip_fraction,
        }

    def take_over(self, state: Mapping[str, Any], parts: Collection[str]) -> None:
        """As `BeginsFromAnother`; the learning rate is annealed anew."""
        if "normalizers" in parts:
            for own in (self.obs_rms, self.return_rms):
                own.check_fit(state["obs_rms" if own is self.obs_rms else "return_rms"])
        self.modules.take_over(state["modules"], parts)
        if "normalizers" in parts:
            self.obs_rms.load_state_dict(state["obs_rms"])
            self.return_rms.load_state_dict(state["return_rms"])

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": self.modules.state_dict(),
            "obs_rms": self.obs_rms.state_dict(),
            "return_rms": self.return_rms.state_dict(),
            "returns": self.returns,
            "acted": self._acted_state(),
            "noise": self.noise,
            "learnt_steps": self.learnt_steps,
        }

    def _acted_state(self) -> np.ndarray | list[np.ndarray] | None:
        """`acted` as one array, if it has as many rows at each step."""
        if len({len(rows) for rows in self.acted}) > 1:
            return list(self.acted)
        return np.stack(self.acted) if self.acted else None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.obs_rms.load_state_dict(state["obs_rms"])
        self.return_rms.load_state_dict(state["return_rms"])
        self.returns = None if state["returns"] is None else np.array(state["returns"])
        self.acted = [] if state["acted"] is None else [np.array(a) for a in state["acted"]]
        self.noise = np.array(state.get("noise", self.noise[:0]))  # absent in old checkpoints
        self.learnt_steps = state["learnt_steps"]


def _rows(array: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """The steps [n, ...] of an array [T, N, ...], in the order in which they were taken."""
    return array.reshape(-1, *array.shape[2:]) if valid is None else array[valid]


def _columns(rows: np.ndarray, batch: Rollout) -> np.ndarray:
    """Invert `_rows`: numbers [n] of a rollout's steps as [T, N], 0 where it has none."""
    if batch.valid is None:
        return rows.reshape(batch.reward.shape)
    columns = np.zeros(batch.valid.shape, rows.dtype)
    columns[batch.valid] = rows
    return columns


def action_size(space: Any) -> int:
    """How many numbers the actor puts out: the discrete actions, or an action's dimensions."""
    return int(space.n) if isinstance(space, Discrete) else space.shape[0]


def _actor(
    features: int, spec: EnvSpec, hidden_dim: int, policy: nn.Module | None
) -> GaussianActor | CategoricalActor:
    """The policy for an env's actions."""
    sizes = (features, action_size(spec.action), hidden_dim)
    if isinstance(spec.action, Discrete):
        return CategoricalActor(*sizes, masked=spec.action_mask, policy=policy)
    return GaussianActor(*sizes, policy=policy)


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

    A terminated step bootstraps with 0; a truncated one, and the rollout's last, with `next_value`.
    No sum continues from one episode into the next.
    """
    error = reward + discount * next_value * ~terminated - value
    keep = discount * gae_lambda * ~(terminated | truncated)
    return _discounted_sums(error[::-1], keep[::-1], np.zeros(error.shape[1]))[::-1]


def _discounted_sums(terms: np.ndarray, keep: np.ndarray, before: np.ndarray) -> np.ndarray:
    """y [T, N] with y[t] = terms[t] + keep[t] * y[t - 1], where y[-1] is `before` [N].

    In Python floats, which are float64 too: numpy takes ten times as long for rows of one number.
    """
    sums = np.empty(terms.shape)
    for env_index, total in enumerate(before.tolist()):
        column = []
        steps = zip(terms[:, env_index].tolist(), keep[:, env_index].tolist(), strict=True)
        for term, share in steps:
            total = term + share * total
            column.append(total)
        sums[:, env_index] = column
    return sums


def _add(sums: dict[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    for name, part in parts.items():
        sums[name] = sums[name] + part if name in sums else part


def _initialise(name: str, network: nn.Module, weights: torch.Generator) -> None:
    """Orthogonal weights with gain sqrt(2), in the last layer 1 or (actor) 0.01; zero biases."""
    last_gain = 0.01 if name == "actor" else 1.0
    for head in (m for m in our_modules(network) if isinstance(m, RecordedStack)):
        *hidden, last = (layer for layer in layers(head) if isinstance(layer, nn.Linear))
        for layer in (*hidden, last):
            gain = last_gain if layer is last else 2**0.5
            nn.init.orthogonal_(layer.weight, gain, generator=weights)
            nn.init.zeros_(layer.bias)


SPEC = AgentSpec(
    config_class=Config,
    make=PPO,
    networks=("actor", "critic"),
    actions=("continuous", "discrete"),
    on_policy=True,
    takes_networks=True,
    policy_module=PPO.policy_module,
    max_threads=1,  # its matrices are too small for a second thread
    run_defaults=("video_size=0",),
    refused_interventions={
        "augmentation": "it learns from states, which are not augmented",
        "crelu": "its hidden units are tanh, not ReLU",
        "freeze_encoder": "it has no encoder",
    },
)
