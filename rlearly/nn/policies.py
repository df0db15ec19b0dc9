"""Stochastic policies for states: a network and the distribution over actions that it outputs."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rlearly.core.spaces import split_mask
from rlearly.nn.distributions import (
    FORBIDDEN,
    Categorical,
    Distribution,
    Gaussian,
    gumbel_noise,
)
from rlearly.nn.networks import mlp


class StochasticActor(Protocol):
    """A network for states whose output `policy(state)` determines a distribution over actions.

    Acting is in numpy, from that output [N, K] and noise [N, K] that may be drawn ahead.
    """

    policy: nn.Module

    def __call__(self, obs: Tensor, activations: list[Tensor] | None = None) -> Distribution: ...

    def draw_noise(self, rows: int, generator: torch.Generator) -> np.ndarray:
        """[rows, K] for `sample`; valid until the policy changes."""
        ...

    def sample(self, output: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """An action of the distribution for each row; may change `output`."""
        ...

    def mode(self, output: np.ndarray) -> np.ndarray:
        """The policy's mode, its most probable action, for each row."""
        ...

    def metrics(self) -> dict[str, Tensor]:
        """Metrics of the policy that depend on no state."""
        ...


class GaussianActor(nn.Module):
    """state [B, D] -> Gaussian: mean [B, A] and log std [A], the same in all states; tanh layers.

    A sample may leave [-1, 1]; the mode is the mean, clipped to it. policy: [B, D] -> [B, A]; None:
    an `mlp`.
    """

    def __init__(
        self, features: int, actions: int, hidden_dim: int, *, policy: nn.Module | None = None
    ):
        super().__init__()
        self.policy = policy or mlp(features, hidden_dim, actions, nn.Tanh)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def forward(self, obs: Tensor, activations: list[Tensor] | None = None) -> Gaussian:
        return Gaussian(self.policy(obs, activations), self.log_std)

    def draw_noise(self, rows: int, generator: torch.Generator) -> np.ndarray:
        noise = torch.randn((rows, len(self.log_std)), generator=generator).numpy()
        noise *= np.exp(self.log_std.numpy(force=True))
        return noise

    def sample(self, output: np.ndarray, noise: np.ndarray) -> np.ndarray:
        output += noise
        return output

    def mode(self, output: np.ndarray) -> np.ndarray:
        return output.clip(-1.0, 1.0)

    def metrics(self) -> dict[str, Tensor]:
        return {"policy/std": self.log_std.detach().exp().mean()}


class CategoricalActor(nn.Module):
    """state [B, D] -> Categorical: logits [B, n] of n actions; tanh layers.

    With `masked`, states [B, D + n] end with a mask of the allowed actions, which the network does
    not see: the others get the logit `FORBIDDEN`. policy: [B, D] -> [B, n]; None: an `mlp`.
    """

    def __init__(
        self,
        features: int,
        actions: int,
        hidden_dim: int,
        *,
        masked: bool = False,
        policy: nn.Module | None = None,
    ):
        super().__init__()
        self.actions = actions
        self.mask_size = actions if masked else 0
        self.policy = policy or mlp(features, hidden_dim, actions, nn.Tanh)

    def forward(self, obs: Tensor, activations: list[Tensor] | None = None) -> Categorical:
        states, mask = split_mask(obs, self.mask_size)
        logits = self.policy(states, activations)
        return Categorical(logits if mask is None else logits.masked_fill(~mask, FORBIDDEN))

    def draw_noise(self, rows: int, generator: torch.Generator) -> np.ndarray:
        return gumbel_noise((rows, self.actions), generator)

    def sample(self, output: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return (output + noise).argmax(-1)

    def mode(self, output: np.ndarray) -> np.ndarray:
        return output.argmax(-1)

    def metrics(self) -> dict[str, Tensor]:
        return {}
