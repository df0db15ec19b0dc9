"""Random data that agents learn from, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Dict, Discrete

from rlearly.core.types import Agent, Batch, EnvSpec, Rollout


def random_actions(space: Any, generator: np.random.Generator, size: int) -> np.ndarray:
    """Actions [size, A], or numbers [size] of a discrete space."""
    if isinstance(space, Discrete):
        return generator.integers(space.n, size=size)
    return generator.uniform(-1, 1, (size, *space.shape)).astype(np.float32)


def random_batch(spec: EnvSpec, size: int = 16, seed: int = 0, discount: float = 0.97) -> Batch:
    """Transitions of random numbers that fit a spec."""
    generator = np.random.default_rng(seed)

    def observations(space: Any) -> Any:
        if isinstance(space, Dict):
            return {key: observations(part) for key, part in space.spaces.items()}
        shape = (size, *space.shape)
        if space.dtype == np.uint8:
            return torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
        return torch.from_numpy(generator.normal(size=shape).astype(np.float32))

    obs = [observations(spec.observation) for _ in range(2)]
    return Batch(
        obs=obs[0],
        action=torch.from_numpy(random_actions(spec.action, generator, size)),
        reward=torch.from_numpy(generator.normal(size=(size, 1)).astype(np.float32)),
        discount=torch.full((size, 1), discount),
        next_obs=obs[1],
    )


def random_rollout(
    agent: Agent,
    spec: EnvSpec,
    seed: int = 0,
    steps: int = 8,
    num_envs: int = 5,
    begun: Sequence[np.ndarray] = (),
) -> Rollout:
    """A rollout of an agent with random observations, rewards and episode ends.

    `begun`: the actions [N, A] that it has already taken in this rollout.
    """
    generator = np.random.default_rng(seed)

    def states(*shape: int) -> np.ndarray:
        found = generator.normal(size=(*shape, *spec.observation.shape)).astype(np.float32)
        if spec.action_mask:  # the last action is always allowed
            found[..., -spec.mask_size :] = found[..., -spec.mask_size :] > 0
            found[..., -1] = 1
        return found

    obs = states(steps, num_envs)
    rest = range(len(begun), steps)
    done = [*begun, *(agent.act(obs[t], step=20, explore=True) for t in rest)]
    ending = generator.random((steps, num_envs))
    over = ending < 0.3
    return Rollout(
        action=np.stack(done),
        reward=generator.normal(size=(steps, num_envs)),
        terminated=ending < 0.15,
        truncated=over & (ending >= 0.15),
        next_obs=np.where(over[..., None], states(steps, num_envs), np.roll(obs, -1, axis=0)),
    )
