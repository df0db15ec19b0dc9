"""An agent that sees normalised observations: `env.normalize`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from rlearly.core.errors import Misfit
from rlearly.core.types import Agent, BeginsFromAnother, Metrics
from rlearly.nn.running_stats import Normalizer


class NormalizedAgent:
    """An off-policy agent for states, with the statistics that its observations are scaled by.

    Only a training run's replay (`NormalizedReplay`) updates the statistics: an agent that is
    evaluated, or a teacher, acts with those that it was saved with.
    """

    def __init__(self, agent: Agent, normalizer: Normalizer):
        self.agent = agent
        self.normalizer = normalizer

    def act(self, obs: np.ndarray, *, step: int, explore: bool) -> np.ndarray:
        """Actions [N, A] for the env's own observations [N, *O]."""
        return self.agent.act(self.normalizer.normalized(obs), step=step, explore=explore)

    def value(self, obs: np.ndarray) -> np.ndarray:
        """The critic's estimate [N] of the return, in units of the env's own rewards."""
        return self.agent.value(self.normalizer.normalized(obs)) * self.normalizer.reward_scale

    def update(self, batch: Any, *, step: int) -> Metrics:
        return self.agent.update(batch, step=step)

    def take_over(self, state: Mapping[str, Any], parts: Collection[str]) -> None:
        """As `BeginsFromAnother`."""
        if not isinstance(self.agent, BeginsFromAnother):
            raise Misfit("the agent has no take_over")
        self.agent.take_over(state["agent"], parts)
        if "normalizers" in parts:
            self.normalizer.take_over(state["normalizer"])

    def state_dict(self) -> dict[str, Any]:
        return {"agent": self.agent.state_dict(), "normalizer": self.normalizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.normalizer.load_state_dict(state["normalizer"])
