"""What several tests share."""

import dataclasses
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import numpy as np
import pytest
import torch
from forked import Zygote
from gymnasium.spaces import Box, Dict, Discrete

from rlearly.agents import agent_spec
from rlearly.core.types import Batch, EnvSpec, Rollout
from rlearly.envs.gl_backend import choose_backend

choose_backend()  # before anything imports mujoco
torch.set_num_threads(1)

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

TINY_STATE = {
    "td3": ["agent.hidden_dim=32", "agent.batch_size=64", "agent.lr=3e-3"],
    "sac": ["agent.hidden_dim=32", "agent.batch_size=64", "agent.policy_lr=3e-3"],
    "ppo": ["agent.rollout_steps=128", "agent.minibatches=4", "agent.lr=1e-2"],
    "drq_eps": [
        "agent.hidden_dim=32",
        "agent.batch_size=64",
        "agent.lr=3e-3",
        "agent.target_every_updates=10",
        "agent.learning_starts_steps=100",
        "agent.epsilon_steps=300",
        "env=tiny_envs:StepReach-v0",
        "replay.capacity=5000",
        "train_frames=1000",
        "video_size=0",
    ],
}
"""For each agent that learns from states, what makes it learn StateReach in seconds."""

for name in ("td3", "sac"):
    TINY_STATE[name] += [
        "agent.target_tau=0.02",
        "agent.learning_starts_steps=100",
        "replay.capacity=5000",
    ]
for name, words in TINY_STATE.items():
    if not any(word.startswith("env=") for word in words):
        words.append("env=tiny_envs:StateReach-v0")
    words += [
        f"agent={name}",
        "env.action_repeat=1",
        "agent.discount=0.9",
        "eval_every_frames=0",
        "checkpoint_every_frames=0",
    ]


@pytest.fixture(scope="session")
def zygote():
    """Starts training commands without waiting for imports."""
    running = Zygote()
    yield running
    running.stop()


@pytest.fixture
def pixel_spec():
    return EnvSpec(Box(0, 255, (9, 24, 24), np.uint8), Box(-1, 1, (3,), np.float32), 2)


@pytest.fixture
def state_spec():
    return EnvSpec(Box(-np.inf, np.inf, (7,), np.float32), Box(-1, 1, (3,), np.float32), 1)


def with_actions_for(agent, spec):
    """The spec with three discrete actions where the agent takes no others."""
    if "continuous" in agent_spec(agent).actions:
        return spec
    return dataclasses.replace(spec, action=Discrete(3))


def random_actions(space, generator, size):
    """Actions [size, A], or numbers [size] of a discrete space."""
    if isinstance(space, Discrete):
        return generator.integers(space.n, size=size)
    return generator.uniform(-1, 1, (size, *space.shape)).astype(np.float32)


@pytest.fixture
def discrete_spec():
    return EnvSpec(Box(-np.inf, np.inf, (7,), np.float32), Discrete(3), 1)


@pytest.fixture
def masked_spec():
    """The last three numbers of a state are a mask of actions."""
    return EnvSpec(Box(-np.inf, np.inf, (10,), np.float32), Discrete(3), 1, action_mask=True)


@pytest.fixture
def fused_spec():
    pixels = Box(0, 255, (3, 24, 24), np.uint8)
    vector = Box(-np.inf, np.inf, (5,), np.float32)
    return EnvSpec(Dict(pixels=pixels, vector=vector), Box(-1, 1, (3,), np.float32), 2)


def random_batch(spec, size=16, seed=0, discount=0.97):
    """Transitions of random numbers that fit a spec."""
    generator = np.random.default_rng(seed)

    def observations(space):
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


def random_rollout(agent, spec, seed=0, steps=8, num_envs=5, begun=()):
    """What an agent does where its every observation, reward and ending is random.

    `begun`: the actions [N, A] that it has taken in this rollout before.
    """
    generator = np.random.default_rng(seed)

    def states(*shape):
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
