"""Action distributions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EDGE = 1e-6
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def truncated_normal(
    mean: Tensor, std: Tensor | float, generator: torch.Generator, clip: float | None = None
) -> Tensor:
    """A sample of N(mean, std) with the noise cut at +-clip and the action kept inside (-1, 1).

    The gradient passes straight through the last clamp, as in DrQ-v2. mean [N, A].
    """
    noise = torch.randn(mean.shape, generator=generator, device=mean.device) * std
    if clip is not None:
        noise = noise.clamp(-clip, clip)
    action = mean + noise.to(mean.dtype)
    return action + (action.clamp(-1.0 + EDGE, 1.0 - EDGE) - action).detach()


def squashed_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh of mean + std * noise [N, A], and its log-probability [N, 1].

    `noise` is standard normal. The density of tanh's result is the Gaussian's divided by tanh's
    slope 1 - y^2 (arXiv 1812.05905, appendix C); EDGE keeps its logarithm finite where a float
    rounds y to 1, as in CleanRL.
    """
    action = torch.tanh(mean + log_std.exp() * noise)
    gaussian = -0.5 * noise.square() - log_std - HALF_LOG_TAU
    return action, (gaussian - torch.log(1 - action.square() + EDGE)).sum(-1, keepdim=True)
