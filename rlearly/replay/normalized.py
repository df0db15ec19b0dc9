"""A replay that normalises what it samples: `env.normalize`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlearly.core.types import Batch, Memory
from rlearly.nn.running_stats import Normalizer


class NormalizedReplay:
    """Keeps transitions as the env gave them, and scales batches by the newest statistics.

    `normalizer` is the agent's, which saves it.
    """

    def __init__(self, memory: Memory, normalizer: Normalizer):
        self.memory = memory
        self.normalizer = normalizer

    def __len__(self) -> int:
        return len(self.memory)

    def begin_episode(self, obs: Any, *, env_index: int) -> None:
        self.normalizer.begin_episode(obs, env_index)
        self.memory.begin_episode(obs, env_index=env_index)

    def add(
        self, action: Any, reward: float, next_obs: Any, *, env_index: int, **ends: Any
    ) -> None:
        """As `Memory.add`."""
        self.normalizer.add(reward, next_obs, env_index)
        self.memory.add(action, reward, next_obs, env_index=env_index, **ends)

    def skip(self, *, env_index: int) -> None:
        self.memory.skip(env_index=env_index)

    def sample(self, batch_size: int) -> Batch:
        batch = self.memory.sample(batch_size)
        return replace(
            batch,
            obs=self.normalizer.normalized_tensor(batch.obs),
            next_obs=self.normalizer.normalized_tensor(batch.next_obs),
            reward=batch.reward / self.normalizer.reward_scale,
        )

    def clear(self) -> None:
        self.memory.clear()

    def close(self) -> None:
        self.memory.close()

    def metrics(self) -> Mapping[str, float]:
        return self.memory.metrics()

    def take_over(self, state: Mapping[str, Any], *, nstep: int, frame_stack: int) -> None:
        self.memory.take_over(state, nstep=nstep, frame_stack=frame_stack)

    def state_dict(self) -> dict[str, Any]:
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state)
