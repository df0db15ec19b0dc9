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
from rlearly.core.types import EnvSpec
from rlearly.envs.gl_backend import choose_backend
from rlearly.testing.data import random_actions, random_batch, random_rollout  # noqa: F401

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


SMALL = {
    "hidden_dim": 16,
    "feature_dim": 8,
    "encoder_channels": 4,
    "exploration_steps": 10,
    "learning_starts_steps": 10,
    "batch_size": 16,
    "rollout_steps": 8,
    "minibatches": 2,
}
"""Settings with which every agent of ours is small and learns early."""


class Silent:
    """A progress display that keeps its lines."""

    def __init__(self):
        self.messages = []

    def on_progress(self, at, updates, latest):
        pass

    def message(self, text):
        self.messages.append(text)


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
