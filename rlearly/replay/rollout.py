"""On-policy memory: a fixed number of steps of every env, used once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlearly.core.errors import Misfit
from rlearly.core.types import EnvSpec, Rollout


class RolloutNotFull(Exception):
    """Some env has not taken all its steps yet."""


class RolloutBuffer:
    """`steps` consecutive steps of each of `num_envs` envs; sampling empties it.

    An episode may span several rollouts, and a rollout several episodes.
    """

    def __init__(self, spec: EnvSpec, *, steps: int, num_envs: int):
        self.steps = steps
        self.num_envs = num_envs
        size = (steps, num_envs)
        self.arrays = {
            "action": np.zeros((*size, *spec.action.shape), spec.action.dtype),
            "reward": np.zeros(size, np.float64),
            "terminated": np.zeros(size, bool),
            "truncated": np.zeros(size, bool),
            "next_obs": np.zeros((*size, *spec.observation.shape), spec.observation.dtype),
        }
        self.valid = np.ones(size, bool)  # False where an env took no step
        self.taken = [0] * num_envs  # steps of each env so far, with those that were skipped

    def __len__(self) -> int:
        return sum(self.taken) - int((~self.valid).sum())

    def begin_episode(self, obs: np.ndarray, *, env_index: int) -> None:
        """Start an episode; one that was abandoned without an end counts as truncated."""
        last = self.taken[env_index] - 1
        at = last, env_index
        if last >= 0 and self.valid[at] and not self.arrays["terminated"][at]:
            self.arrays["truncated"][at] = True

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
        """Add a step. action [A] as the agent returned it, also beyond [-1, 1], or a
        number."""
        at = self.taken[env_index], env_index
        step = (action, reward, terminated, truncated, next_obs)
        for array, value in zip(self.arrays.values(), step, strict=True):
            array[at] = value
        self.taken[env_index] += 1

    def skip(self, *, env_index: int) -> None:
        """Leave out a step of one env, which reset itself instead."""
        at = self.taken[env_index], env_index
        for array in self.arrays.values():
            array[at] = 0
        self.valid[at] = False
        self.taken[env_index] += 1

    def sample(self, batch_size: int) -> Rollout:
        """The whole rollout, which is then removed.

        Raises:
            RolloutNotFull: steps are missing.
            ValueError: `batch_size` is not the rollout's.
        """
        if batch_size != self.steps * self.num_envs:
            raise ValueError(
                f"batch_size: expected steps * num_envs = {self.steps * self.num_envs}, "
                f"received {batch_size}"
            )
        if sum(self.taken) != batch_size:
            raise RolloutNotFull(f"{sum(self.taken)} of {batch_size} steps have been taken")
        self.taken = [0] * self.num_envs
        valid = None if self.valid.all() else self.valid.copy()
        self.valid[:] = True
        return Rollout(**{name: array.copy() for name, array in self.arrays.items()}, valid=valid)

    def clear(self) -> None:
        """Does nothing: a rollout is used only once anyway, and must be whole."""

    def metrics(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        """Does nothing: it has no threads."""

    def take_over(self, state: Mapping[str, Any], *, nstep: int, frame_stack: int) -> None:
        """Raises Misfit: the steps of another policy are nothing to learn from."""
        raise Misfit("an on-policy agent learns from its own steps alone")

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"taken": list(self.taken), "arrays": dict(self.arrays)}
        return state if self.valid.all() else state | {"valid": self.valid.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = list(state["taken"])
        self.valid[:] = state.get("valid", True)
        for name, array in self.arrays.items():
            array[:] = state["arrays"][name]
