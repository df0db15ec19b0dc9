"""When to update: how many gradient steps each step of the env pays for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from rlearly.config import ConfigError
from rlearly.types import Metrics


class EveryRollout:
    """One update each time that `steps` agent steps have been taken: a rollout is full."""

    def __init__(self, steps: int):
        self.steps = steps
        self.taken = 0

    def updates_due(self, step: int) -> int:
        self.taken += 1
        due = self.taken == self.steps
        self.taken %= self.steps
        return int(due)

    def observe(self, metrics: Metrics) -> None:
        """A rollout's length does not change."""

    def end_episode(self) -> None:
        """A rollout goes on over the ends of episodes."""

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]


class FixedRatio:
    """`ratio` updates a step on average, spread evenly; the first one at the first step asked for.

    Ratio 0.5 is DrQ-v2's update every second agent step. Fractions accumulate as exact credit.
    """

    def __init__(self, ratio: float):
        if not 0 < ratio < math.inf:
            raise ConfigError(f"replay_ratio: expected a number above 0, received {ratio}.")
        self.ratio = Fraction(str(ratio))
        self.credit = max(Fraction(0), 1 - self.ratio)

    def updates_due(self, step: int) -> int:
        self.credit += self.ratio
        due = int(self.credit)
        self.credit -= due
        return due

    def observe(self, metrics: Metrics) -> None:
        """A fixed ratio learns nothing from metrics."""

    def end_episode(self) -> None:
        """A fixed ratio does not change between episodes."""

    def state_dict(self) -> dict[str, Any]:
        return {"credit": [self.credit.numerator, self.credit.denominator]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.credit = Fraction(*state["credit"])
