"""Action distributions."""

from __future__ import annotations

import torch
from torch import Tensor

EDGE = 1e-6


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
