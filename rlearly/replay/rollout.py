"""On-policy memory: a fixed number of steps of every copy of the env, learnt from once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlearly.core.types import EnvSpec, Rollout


class RolloutNotFull(Exception):
    """Not every copy has taken its steps yet."""


class Rollouts:
    """`steps` steps of each of `copies` copies, in order; full, then emptied by being sampled.

    An episode may go over the end of a rollout, and a rollout over the ends of episodes.
    """

    def __init__(self, spec: EnvSpec, *, steps: int, copies: int):
        self.steps = steps
        self.copies = copies
        self.arrays = {
            "action": np.zeros((steps, copies, *spec.action.shape), np.float32),
            "reward": np.zeros((steps, copies), np.float64),
            "terminated": np.zeros((steps, copies), bool),
            "truncated": np.zeros((steps, copies), bool),
            "next_obs": np.zeros((steps, copies, *spec.observation.shape), spec.observation.dtype),
        }
        self.taken = [0] * copies  # steps of each copy that are here

    def __len__(self) -> int:
        """Transitions that are here."""
        return sum(self.taken)

    def begin(self, obs: np.ndarray, *, copy: int) -> None:
        """An episode starts; one that was left off without an end is cut here."""
        last = self.taken[copy] - 1
        if last >= 0 and not self.arrays["terminated"][last, copy]:
            self.arrays["truncated"][last, copy] = True

    def add(
        self,
        action: np.ndarray,
        reward: float,
        next_obs: np.ndarray,
        *,
        terminated: bool,
        truncated: bool,
        copy: int,
    ) -> None:
        """Append a copy's step. action [A] as the agent gave it, beyond [-1, 1] or not."""
        arrays, at = self.arrays, (self.taken[copy], copy)
        arrays["action"][at] = action
        arrays["reward"][at] = reward
        arrays["terminated"][at] = terminated
        arrays["truncated"][at] = truncated
        arrays["next_obs"][at] = next_obs
        self.taken[copy] += 1

    def sample(self, batch_size: int) -> Rollout:
        """The whole rollout, which is then gone from here.

        Raises:
            RolloutNotFull: some step is still to be taken.
            ValueError: `batch_size` is not the rollout's.
        """
        if batch_size != self.steps * self.copies:
            raise ValueError(
                f"batch_size: expected steps * copies = {self.steps * self.copies}, "
                f"received {batch_size}"
            )
        if len(self) != batch_size:
            raise RolloutNotFull(f"{len(self)} of {batch_size} steps have been taken")
        self.taken = [0] * self.copies
        return Rollout(**{name: array.copy() for name, array in self.arrays.items()})

    def forget(self) -> None:
        """A rollout is learnt from once anyway, and must be whole."""

    def metrics(self) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"taken": list(self.taken), "arrays": dict(self.arrays)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = list(state["taken"])
        for name, array in self.arrays.items():
            array[:] = state["arrays"][name]
