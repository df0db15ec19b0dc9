"""Evaluation: whole episodes with the mean action; and checked env steps and resets."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from rlearly.core.errors import ConfigError, RunFailed, UserCodeFailed, raised
from rlearly.core.spaces import Observation, mismatch, observation_arrays, stack_observations
from rlearly.core.types import Agent
from rlearly.system.seeding import episode_seed

log = logging.getLogger(__name__)

LONG_EPISODE_STEPS = 30_000
"""An episode of an evaluation that takes longer may never end. The longest limit of common envs is
that of Atari games, 27,000 steps."""


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths in agent steps, one entry per episode.

    `successes`: whether each episode reached its goal, from info["success"] of its last step; None
    if the env does not report it.
    """

    returns: list[float]
    lengths_steps: list[int]
    successes: list[bool] | None = None

    @property
    def success_rate(self) -> float | None:
        return None if self.successes is None else float(np.mean(self.successes))


def evaluate(
    agent: Agent,
    env: gymnasium.Env,
    *,
    episodes: int,
    seeds: np.random.SeedSequence,
    step: int,
    record_frame: Callable[[], None] | None = None,
    on_step: Callable[[int, int], None] = lambda episode, step: None,
) -> Evaluation:
    """Play whole episodes with the mean action. The episodes follow from `seeds` alone, and only
    the env changes.

    Args:
        record_frame: called before each step of the first episode.
        on_step: called with the episode's index and its length so far, after each step.
    """
    where = "an evaluation"
    generator = np.random.Generator(np.random.PCG64(seeds))
    returns, lengths, successes = [], [], []
    for episode in range(episodes):
        obs = checked_reset(env, where, seed=episode_seed(generator))
        total, length, done, info = 0.0, 0, False, {}
        while not done:
            action = agent.act(stack_observations([obs]), step=step, explore=False)[0]
            if record_frame and episode == 0:
                record_frame()
            obs, reward, terminated, truncated, info = checked_step(env, action, where)
            total += float(reward)
            length += 1
            done = terminated or truncated
            on_step(episode, length)
        returns.append(total)
        lengths.append(length)
        successes.append(episode_success(info))
    return Evaluation(returns, lengths, None if None in successes else successes)


def episode_success(info: Mapping[str, Any]) -> bool | None:
    """Whether an episode reached its goal, from its last step's info; None if not reported."""
    success = info.get("success")
    return None if success is None else bool(success)


def checked_step(env: gymnasium.Env, action: np.ndarray, where: str) -> tuple[Any, ...]:
    """Call `env.step(action)`, and check that action, observation and reward are finite.

    `where`: what the step belongs to, for the error message.

    Raises:
        RunFailed: the action is NaN, the observation or reward is wrong, or the env raised.
    """
    if action.dtype.kind == "f" and math.isnan(action.dot(action)):  # NaN if an entry is
        raise RunFailed(
            f"learning diverged: the action is nan in {where}", diverged=True, action=action
        )
    result = _call(env, env.step, where, action)
    if not math.isfinite(result[1]):
        raise RunFailed(
            f"the env returned a reward of {float(result[1])} in {where}", action=action
        )
    return result


def checked_reset(env: gymnasium.Env, where: str, **kwargs: Any) -> Observation:
    """The observation of `env.reset(**kwargs)`; raises as `checked_step` does."""
    return _call(env, env.reset, where, **kwargs)[0]


def close_env(env: gymnasium.Env) -> None:
    """Close an env. What was done in it is kept, so failing to close is only a warning."""
    try:
        env.close()
    except RunFailed as failed:
        log.warning("%s; everything before that is kept.", failed)


def _call(
    env: gymnasium.Env, method: Callable[..., Any], where: str, *args: Any, **kwargs: Any
) -> Any:
    """A step's or a reset's result, with its observation checked against the env's space."""
    try:
        result = method(*args, **kwargs)
    except ConfigError:  # our own; its message is complete
        raise
    except UserCodeFailed as failed:
        failed.where = where
        raise
    except Exception as error:  # a third-party env may raise anything
        raise RunFailed(f"the env {raised(error)} in {where}", asked=args) from error
    obs: Observation = result[0]
    wrong = mismatch(obs, env.observation_space)
    if wrong:
        received, expected = wrong
        raise RunFailed(
            f"the env returned an observation of {received} in {where}, expected {expected}",
            asked=args,
        )
    if any(part.dtype.kind == "f" and not _is_finite(part) for part in observation_arrays(obs)):
        raise RunFailed(
            f"the env returned an observation that is not finite in {where}",
            asked=args,
            observation=obs,
        )
    return result


def _is_finite(array: np.ndarray) -> bool:
    """Whether all entries are finite. The sum of squares, which is fast, usually suffices."""
    flat = array.ravel()
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all())
