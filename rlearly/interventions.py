"""What one can do to a network in mid-training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlearly.networks import layers, orthogonal_
from rlearly.seeding import restore
from rlearly.types import Metrics, Stateful


class Perturbation(Stateful, Protocol):
    """Changes networks between two updates, or does nothing."""

    def apply(
        self,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        *,
        step: int,
        dormancy: Tensor,
    ) -> Metrics: ...


class NoPerturbation:
    """Leaves the networks alone."""

    def apply(
        self,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        *,
        step: int,
        dormancy: Tensor,
    ) -> Metrics:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class ShrinkAndPerturb:
    """theta <- alpha * theta + (1 - alpha) * phi, with phi freshly initialised, once an interval.

    alpha = clip(1 - 2 * dormancy, alpha_min, alpha_max) (DrM, arXiv 2310.19668, section 4.2), so a
    network that responds is barely touched and a dormant one is mostly renewed. It clears the
    state of every optimizer, the encoder's too.

    scope "linear" (the official code's): weights and biases of the Linear layers of every network
    but the encoder. scope "all" (the paper's words): every parameter, the encoder's and the
    LayerNorms' included. Each network draws a phi of its own, the target critic as well.

    Deviation: the official test `step % interval == 0` fires once per update at such a step, so
    twice at a replay ratio of 2. Here it fires at the first update of each interval, and so once.
    """

    def __init__(
        self,
        interval_steps: int,
        alpha_min: float,
        alpha_max: float,
        scope: str,
        generator: torch.Generator,
    ):
        self.interval_steps = interval_steps
        self.alpha_min = alpha_min
        self.alpha_max = alpha_max
        self.scope = scope
        self.generator = generator
        self.intervals_done = 0

    @torch.no_grad()
    def apply(
        self,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        *,
        step: int,
        dormancy: Tensor,
    ) -> Metrics:
        if step // self.interval_steps <= self.intervals_done:
            return {}
        self.intervals_done = step // self.interval_steps
        alpha = (1.0 - 2.0 * dormancy).clamp(self.alpha_min, self.alpha_max)
        for name, network in networks.items():
            for layer in layers(network):
                if self._in_scope(name, layer):
                    self._mix(layer, alpha)
        for optimizer in optimizers.values():
            optimizer.state = defaultdict(dict)
        return {"perturbation/alpha": alpha}

    def _in_scope(self, name: str, layer: nn.Module) -> bool:
        return self.scope == "all" or (name != "encoder" and isinstance(layer, nn.Linear))

    def _mix(self, layer: nn.Module, alpha: Tensor) -> None:
        old = [p.clone() for p in layer.parameters()]
        orthogonal_(layer, self.generator)
        for fresh, kept in zip(layer.parameters(), old, strict=True):
            fresh.mul_(1.0 - alpha).add_(kept * alpha)

    def state_dict(self) -> dict[str, Any]:
        return {
            "intervals_done": self.intervals_done,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.intervals_done = state["intervals_done"]
        restore(self.generator, state["generator"])
