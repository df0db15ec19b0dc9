"""Action distributions."""

from __future__ import annotations

import math

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
