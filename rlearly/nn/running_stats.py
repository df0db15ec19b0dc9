"""Normalisation by means and variances, running or of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlearly.core.errors import Misfit
from rlearly.core.spaces import split_mask

CLIP = 10.0
"""Normalised observations are clipped to +-CLIP, as by Stable-Baselines3's VecNormalize."""

LOWEST, HIGHEST, EPSILON = np.array(-CLIP), np.array(CLIP), np.array(1e-8)
"""As arrays: numpy takes twice as long with a Python float."""


class RunningMeanStd:
    """Mean and variance of all samples so far, in float64.

    They start as mean 0 and variance 1 with the weight of 1e-4 samples, as gymnasium's do.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.mean = np.zeros(shape)
        self.variance = np.ones(shape)
        self.count = 1e-4

    def update(self, batch: np.ndarray) -> None:
        """Add samples [B, *shape] (Chan et al. 1979, the parallel form)."""
        size = len(batch)
        count = self.count + size
        if size == 1:  # Welford's form, half as many operations
            away = batch[0] - self.mean
            moved = away / count
            self.mean = self.mean + moved
            self.variance = (self.variance + away * moved) * (self.count / count)
        else:
            away = batch.mean(axis=0, dtype=np.float64) - self.mean
            squares = self.variance * self.count + batch.var(axis=0, dtype=np.float64) * size
            squares += away * away * (self.count * size / count)
            self.mean = self.mean + away * (size / count)
            self.variance = squares / count
        self.count = count

    def normalized(self, batch: np.ndarray) -> np.ndarray:
        """Samples [B, *shape] as float32, with mean 0 and variance 1, clipped to [-10, 10]."""
        spread = self.variance + EPSILON
        normal = batch - self.mean
        normal /= np.sqrt(spread, spread)
        np.maximum(normal, LOWEST, out=normal)
        return np.minimum(normal, HIGHEST, out=normal).astype(np.float32)

    def update_in_order(self, batches: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """Add numbers [T, B] row by row; returns the variance [T] after each row.

        valid: bool [T, B] of the numbers that count; None: all.
        """
        counts = self.count + batches.shape[1] * np.arange(1, len(batches) + 1)
        away = batches - self.mean  # relative to the old mean, or large squares would cancel
        if valid is not None:
            counts = self.count + np.cumsum(valid.sum(axis=1))
            away = np.where(valid, away, 0.0)
        sums = np.cumsum(away.sum(axis=1))
        squares = self.variance * self.count + np.cumsum(np.square(away).sum(axis=1))
        variances = (squares - sums**2 / counts) / counts
        self.mean = self.mean + sums[-1] / counts[-1]
        self.variance = np.asarray(variances[-1])
        self.count = float(counts[-1])
        return variances

    def check_fit(self, state: Mapping[str, Any]) -> None:
        """Check that a saved state is of as many numbers.

        Raises:
            Misfit: it is not.
        """
        there, here = np.shape(state["mean"]), np.shape(self.mean)
        if there != here:
            raise Misfit(
                f"the running statistics are of {list(there)} numbers there and {list(here)} here"
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "mean": self.mean.tolist(),
            "variance": self.variance.tolist(),
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean = np.array(state["mean"])
        self.variance = np.array(state["variance"])
        self.count = state["count"]


def normalized_states(statistics: RunningMeanStd, obs: np.ndarray, mask_size: int) -> np.ndarray:
    """Observations [N, D + mask_size] with normalised states; their masks of actions stay as they
    are (see `rlearly.core.spaces.split_mask`)."""
    states, mask = split_mask(obs, mask_size)
    normal = statistics.normalized(states)
    return normal if mask is None else np.concatenate([normal, mask], 1, dtype=np.float32)


def standardized(values: Tensor) -> Tensor:
    """Values [..., B] with mean 0 and standard deviation 1 along the last dimension."""
    return (values - values.mean(-1, keepdim=True)) / (values.std(-1, keepdim=True) + 1e-8)


class Normalizer:
    """Running statistics of the observations and discounted returns of a run's envs.

    Observations become (obs - mean) / sqrt(variance + 1e-8), clipped to [-10, 10]; rewards are
    divided by sqrt(variance of the discounted return + 1e-8), as by gymnasium's wrappers. All envs
    share the statistics, and the discounted return restarts with each episode.

    Args:
        shape: of one observation; None: observations stay as they are.
        discount: gamma of the discounted return; None: rewards stay as they are.
        mask_size: numbers at the end of an observation that are a mask of actions, and stay as they
            are (see `rlearly.core.spaces.split_mask`).
    """

    def __init__(self, shape: tuple[int, ...] | None, discount: float | None, mask_size: int = 0):
        if shape is not None and mask_size:
            shape = (shape[0] - mask_size,)
        self.mask_size = mask_size
        self.obs = None if shape is None else RunningMeanStd(shape)
        self.returns = None if discount is None else RunningMeanStd(())
        self.discount = discount
        self.running_returns: dict[int, float] = {}  # of each env's episode
        self._tensors: tuple[Tensor, Tensor] | None = None

    def begin_episode(self, obs: np.ndarray, env_index: int) -> None:
        self.running_returns[env_index] = 0.0
        self._see(obs)

    def add(self, reward: float, next_obs: np.ndarray, env_index: int) -> None:
        if self.returns is not None and self.discount is not None:
            total = self.running_returns.get(env_index, 0.0) * self.discount + reward
            self.running_returns[env_index] = total
            self.returns.update(np.array([total]))
        self._see(next_obs)

    def _see(self, obs: np.ndarray) -> None:
        if self.obs is not None:
            self.obs.update(split_mask(obs[None], self.mask_size)[0])
            self._tensors = None

    def normalized(self, obs: np.ndarray) -> np.ndarray:
        """Observations [N, *O], float32."""
        if self.obs is None:
            return obs
        return normalized_states(self.obs, obs, self.mask_size)

    def normalized_tensor(self, obs: Tensor) -> Tensor:
        """Observations [B, *O] on their device, in their dtype."""
        if self.obs is None:
            return obs
        if self._tensors is None:
            mean = torch.as_tensor(self.obs.mean)
            std = torch.as_tensor(np.sqrt(self.obs.variance + EPSILON))
            self._tensors = mean.to(obs.device), std.to(obs.device)
        mean, std = self._tensors
        states, mask = split_mask(obs, self.mask_size)
        normal = ((states - mean) / std).clamp_(-CLIP, CLIP).to(obs.dtype)
        return normal if mask is None else torch.cat([normal, mask.to(obs.dtype)], 1)

    @property
    def reward_scale(self) -> float:
        """What rewards are divided by; 1 if they stay as they are."""
        return 1.0 if self.returns is None else float(np.sqrt(self.returns.variance + EPSILON))

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Begin with the statistics of another run; no episode is running yet.

        Raises:
            Misfit: it normalises something else, or observations of another shape.
        """
        for name, own in (("obs", self.obs), ("returns", self.returns)):
            if (own is None) != (state[name] is None):
                raise Misfit(f"the {name} are normalised only {'there' if own is None else 'here'}")
            if own is not None:
                own.check_fit(state[name])
        self.load_state_dict({**state, "running_returns": {}})

    def state_dict(self) -> dict[str, Any]:
        return {
            "obs": self.obs and self.obs.state_dict(),
            "returns": self.returns and self.returns.state_dict(),
            "running_returns": dict(self.running_returns),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.obs is not None:
            self.obs.load_state_dict(state["obs"])
        if self.returns is not None:
            self.returns.load_state_dict(state["returns"])
        self.running_returns = dict(state["running_returns"])
        self._tensors = None
