"""A policy as one network, from observations to actions, for export to other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlearly.core.spaces import split_mask
from rlearly.nn.running_stats import CLIP, EPSILON, RunningMeanStd


class PolicyModule(nn.Module):
    """Observations [N, *O] -> the policy's mode: actions [N, A] in [-1, 1], or numbers int64 [N].

    Args:
        networks: the networks that it needs, by name.
        mode: (networks, observations) -> actions.
    """

    def __init__(self, networks: Mapping[str, nn.Module], mode: Callable[[Any, Any], Tensor]):
        super().__init__()
        self.networks = nn.ModuleDict(dict(networks))
        self.mode = mode

    def forward(self, obs: Any) -> Tensor:
        return self.mode(self.networks, obs)


class NormalizedStates(nn.Module):
    """States [N, D] scaled by running statistics that no longer change, as `RunningMeanStd` does.

    A mask of actions at their end stays as it is.
    """

    def __init__(self, statistics: RunningMeanStd, mask_size: int = 0):
        super().__init__()
        self.mask_size = mask_size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.as_tensor(statistics.mean))
        self.register_buffer("std", torch.as_tensor(np.sqrt(statistics.variance + EPSILON)))

    def forward(self, obs: Tensor) -> Tensor:
        states, mask = split_mask(obs, self.mask_size)
        normal = ((states.double() - self.mean) / self.std).clamp(-CLIP, CLIP).float()
        return normal if mask is None else torch.cat([normal, mask.float()], 1)
