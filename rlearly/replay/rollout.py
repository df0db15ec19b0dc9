"""On-policy memory: a fixed number of steps of every copy of the env, learnt from once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlearly.core.types import EnvSpec, Rollout


class RolloutNotFull(Exception):
    """Not every copy has taken its steps yet."""


class RolloutBuffer:
    """`steps` steps of each of `copies` copies, in order; full, then emptied by being sampled.

    An episode may go over the end of a rollout, and a rollout over the ends of episodes.
    """

    def __init__(self, spec: EnvSpec, *, steps: int, num_envs: int):
        self.steps = steps
        self.num_envs = num_envs
        self.arrays = {
            "action": np.zeros((steps, num_envs, *spec.action.shape), np.float32),
            "reward": np.zeros((steps, num_envs), np.float64),
            "terminated": np.zeros((steps, num_envs), bool),
            "truncated": np.zeros((steps, num_envs), bool),
            "next_obs": np.zeros(
                (steps, num_envs, *spec.observation.shape), spec.observation.dtype
            ),
        }
        self.taken = [0] * num_envs  # steps of each copy that are here

    def __len__(self) -> int:
        """Transitions that are here."""
        return sum(self.taken)

    def begin_episode(self, obs: np.ndarray, *, env_index: int) -> None:
        """An episode starts; one that was left off without an end is cut here."""
        last = self.taken[env_index] - 1
        if last >= 0 and not self.arrays["terminated"][last, env_index]:
            self.arrays["truncated"][last, env_index] = True

    def add(
        self,
        action: np.ndarray,
        reward: float,
        next_obs: np.ndarray,
        *,
        terminated: bool,
        truncated: bool,
        env_index: int,
    ) -> None:
        """Append a copy's step. action [A] as the agent gave it, beyond [-1, 1] or not."""
        arrays, at = self.arrays, (self.taken[env_index], env_index)
        arrays["action"][at] = action
        arrays["reward"][at] = reward
        arrays["terminated"][at] = terminated
        arrays["truncated"][at] = truncated
        arrays["next_obs"][at] = next_obs
        self.taken[env_index] += 1

    def sample(self, batch_size: int) -> Rollout:
        """The whole rollout, which is then gone from here.

        Raises:
            RolloutNotFull: some step is still to be taken.
            ValueError: `batch_size` is not the rollout's.
        """
        if batch_size != self.steps * self.num_envs:
            raise ValueError(
                f"batch_size: expected steps * num_envs = {self.steps * self.num_envs}, "
                f"received {batch_size}"
            )
        if len(self) != batch_size:
            raise RolloutNotFull(f"{len(self)} of {batch_size} steps have been taken")
        self.taken = [0] * self.num_envs
        return Rollout(**{name: array.copy() for name, array in self.arrays.items()})

    def clear(self) -> None:
        """A rollout is learnt from once anyway, and must be whole."""

    def metrics(self) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"taken": list(self.taken), "arrays": dict(self.arrays)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = list(state["taken"])
        for name, array in self.arrays.items():
            array[:] = state["arrays"][name]
