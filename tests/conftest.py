"""What several tests share."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from rlearly.envs.rendering import choose_backend
from rlearly.types import Batch, EnvSpec

choose_backend()  # before anything imports mujoco
torch.set_num_threads(1)  # small networks: a second thread only waits

TINY = [
    "env=tiny_envs:PixelReach-v0",
    "env.image_size=24",
    "env.action_repeat=1",
    "agent.hidden_dim=64",
    "agent.encoder_channels=8",
    "agent.feature_dim=20",
    "agent.batch_size=32",
    "agent.lr=1e-3",
    "agent.shift_pixels=1",
    "agent.exploration_steps=100",
    "agent.std_duration_steps=300",
    "replay.capacity=5000",
    "seed_frames=100",
    "eval_every_frames=0",
    "checkpoint_every_frames=0",
    "video_size=0",
]
"""A run that learns in seconds, from pixels."""


@pytest.fixture
def pixel_spec():
    return EnvSpec(Box(0, 255, (9, 24, 24), np.uint8), Box(-1, 1, (3,), np.float32), 2)


@pytest.fixture
def state_spec():
    return EnvSpec(Box(-np.inf, np.inf, (7,), np.float32), Box(-1, 1, (3,), np.float32), 1)


def random_batch(spec, size=16, seed=0, discount=0.97):
    """Transitions of random numbers that fit a spec."""
    generator = np.random.default_rng(seed)
    shape = (size, *spec.observation.shape)
    if spec.observation.dtype == np.uint8:
        obs = [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(2)]
    else:
        obs = [generator.normal(size=shape).astype(np.float32) for _ in range(2)]
    return Batch(
        obs=torch.from_numpy(obs[0]),
        action=torch.from_numpy(
            generator.uniform(-1, 1, (size, *spec.action.shape)).astype(np.float32)
        ),
        reward=torch.from_numpy(generator.normal(size=(size, 1)).astype(np.float32)),
        discount=torch.full((size, 1), discount),
        next_obs=torch.from_numpy(obs[1]),
    )
