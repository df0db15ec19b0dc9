"""TODO."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlearly import envs
from rlearly.agents import agent_spec
from rlearly.config.schema import RunConfig

if TYPE_CHECKING:
    import torch

    from rlearly.core.types import Agent, EnvSpec
from rlearly.config.resolve import seed_frames
from rlearly.training.builder import make_agent, make_env, replay_bytes, transition_layout

USUAL_EPISODE_FRAMES = 1000
"""What an episode is taken to last in forecasts, where the env's spec does not tell."""


@dataclass(frozen=True)
class Pace:
    """How fast an env and an agent are here, and how much they store, as timed once."""

    step_seconds: float
    learn_seconds: float
    """Of an update; on policy, what an agent step takes of acting and learning."""
    frames_per_step: int
    episode_frames: int
    transition_bytes: int


def timed(config: RunConfig, device: torch.device) -> Pace:
    """The pace of a run, from a few steps and updates.

    It is measured on an env and an agent of its own, which are then thrown away.
    """
    from rlearly.replay.storage import transition_bytes

    env = make_env(config)
    spec = envs.env_spec(env, config.env)
    obs, _ = env.reset(seed=0)
    action = np.zeros(spec.action.shape, dtype=np.float32)
    env.step(action)
    began = time.monotonic()
    for _ in range(3):
        env.step(action)
    step_seconds = (time.monotonic() - began) / 3
    episode_frames = (env.spec and env.spec.max_episode_steps) or USUAL_EPISODE_FRAMES
    env.close()
    agent = make_agent(config, spec, device)
    if agent_spec(config.agent_name).on_policy:
        learn_seconds = _rollout_seconds(config, agent, obs)
    else:
        learn_seconds = _update_seconds(config, spec, agent, obs, device)
    size = transition_bytes(config.replay, transition_layout(config, spec))
    return Pace(step_seconds, learn_seconds, spec.frames_per_step, episode_frames, size)


def forecast_seconds(config: RunConfig, device: torch.device, pace: Pace | None = None) -> float:
    """How long the run with its evaluations would take here, at a pace that is timed or given."""
    from rlearly.training.update_schedule import mean_ratio

    pace = pace or timed(config, device)
    steps = config.train_frames / pace.frames_per_step
    seconds = steps * pace.step_seconds
    if config.eval_every_frames:
        evaluations = config.train_frames // config.eval_every_frames
        frames = evaluations * config.eval_episodes * pace.episode_frames
        seconds += frames / pace.frames_per_step * pace.step_seconds
    if agent_spec(config.agent_name).on_policy:
        return seconds + steps * pace.learn_seconds
    learning = max(0, config.train_frames - seed_frames(config)) / pace.frames_per_step
    updates = learning * mean_ratio(config.replay_ratio, config.adaptive_ratio, round(steps))
    return seconds + updates * pace.learn_seconds


def forecast_replay_bytes(config: RunConfig, pace: Pace) -> int:
    """What the run's replay will have taken by its end; PPO has none."""
    if agent_spec(config.agent_name).on_policy:
        return 0
    return replay_bytes(config, pace.transition_bytes)


def _update_seconds(
    config: RunConfig, spec: EnvSpec, agent: Agent, obs: np.ndarray, device: torch.device
) -> float:
    """The shortest of three updates from one observation."""
    import torch

    from rlearly.core.spaces import on_device, stack_observations
    from rlearly.core.types import Batch

    size = config.agent.batch_size
    many = on_device(stack_observations([obs] * size), device)
    ones = torch.ones(size, 1, device=device)
    zeros = torch.zeros(size, *spec.action.shape, device=device)
    batch = Batch(many, zeros, ones, ones, many)
    seconds = float("inf")
    for _ in range(3):  # the first ones also fetch memory from the system
        began = time.monotonic()
        agent.update(batch, step=0)
        seconds = min(seconds, time.monotonic() - began)
    return seconds


def _rollout_seconds(config: RunConfig, agent: Agent, obs: np.ndarray) -> float:
    """Seconds that an agent step takes of acting and learning, from one rollout."""
    from rlearly.core.types import Rollout

    steps, copies = config.agent.rollout_steps, config.num_envs
    many = np.broadcast_to(obs, (copies, *obs.shape))
    began = time.monotonic()
    actions = np.stack([agent.act(many, step=0, explore=True) for _ in range(steps)])
    never = np.zeros((steps, copies), bool)
    next_obs = np.broadcast_to(obs, (steps, copies, *obs.shape))
    agent.update(Rollout(actions, np.ones((steps, copies)), never, never, next_obs), step=0)
    return (time.monotonic() - began) / (steps * copies)
