"""Action distributions."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

EDGE = 1e-6
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def uniform_actions(count: int, actions: int, generator: torch.Generator) -> np.ndarray:
    """Actions [count, actions], uniform in [-1, 1)."""
    return torch.rand((count, actions), generator=generator).mul(2.0).sub(1.0).numpy()


def truncated_normal(
    mean: Tensor, std: Tensor | float, generator: torch.Generator, clip: float | None = None
) -> Tensor:
    """A sample of N(mean, std) with the noise clipped to +-clip and the action to (-1, 1).

    mean [N, A]. Gradients pass straight through the action's clamp, as in DrQ-v2.
    """
    noise = torch.randn(mean.shape, generator=generator, device=mean.device) * std
    if clip is not None:
        noise = noise.clamp(-clip, clip)
    action = mean + noise.to(mean.dtype)
    return action + (action.clamp(-1.0 + EDGE, 1.0 - EDGE) - action).detach()


def squashed_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh of mean + std * noise [N, A], and its log-probability [N, 1].

    `noise` is standard normal. The density of y = tanh(x) is the Gaussian's divided by tanh's slope
    1 - y^2 (arXiv 1812.05905, appendix C); EDGE keeps its logarithm finite where y rounds to 1, as
    in CleanRL.
    """
    action = torch.tanh(mean + log_std.exp() * noise)
    gaussian = -0.5 * noise.square() - log_std - HALF_LOG_TAU
    return action, (gaussian - torch.log(1 - action.square() + EDGE)).sum(-1, keepdim=True)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Log-probabilities [B] of actions [B, A] under N(mean [B, A], std [A])."""
    noise = (action - mean) / log_std.exp()
    return (-0.5 * noise.square() - log_std - HALF_LOG_TAU).sum(-1)


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Entropy [...] of Gaussians in nats; log_std [..., A]."""
    return (log_std + HALF_LOG_TAU + 0.5).sum(-1)


class Distribution(Protocol):
    """A batch of B action distributions, one for each state."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probabilities (of continuous actions: densities) [B]."""
        ...

    def entropy(self) -> Tensor:
        """In nats: [B], or one number if it is the same in all states."""
        ...


class Gaussian(NamedTuple):
    """Independent Gaussians: mean [B, A], and log std [A], the same in all states."""

    mean: Tensor
    log_std: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        return gaussian_log_prob(self.mean, self.log_std, action)

    def entropy(self) -> Tensor:
        return gaussian_entropy(self.log_std)


class Categorical(NamedTuple):
    """Categorical distributions of n actions from logits [B, n].

    A logit of `FORBIDDEN` is a probability of exactly 0, and neither entropy nor gradients become
    NaN, as they would with minus infinity.
    """

    logits: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """Of actions int64 [B]."""
        return self.logits.log_softmax(-1).gather(-1, action[:, None])[:, 0]

    def entropy(self) -> Tensor:
        log_prob = self.logits.log_softmax(-1)
        return -(log_prob.exp() * log_prob).sum(-1)


FORBIDDEN = float(np.finfo(np.float32).min)
"""The logit, or the value, of an action that a mask forbids."""


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> np.ndarray:
    """Standard Gumbel noise, float32, at most 37.

    The largest of logits + noise is a sample of their categorical distribution (the Gumbel-max
    trick). Drawn in float64: in float32 improbable actions would never be taken.
    """
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    uniform.clamp_(min=torch.finfo(torch.float64).tiny)
    return uniform.log_().neg_().log_().neg_().float().numpy()
