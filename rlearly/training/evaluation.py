"""Playing: a step or a reset that is checked, and whole episodes with the mean action."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.spaces import Observation, mismatch, observation_arrays, stack_observations
from rlearly.core.types import Agent
from rlearly.system.seeding import episode_seed
from rlearly.training.executors import EnvExecutor, InlineExecutor


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths in agent steps, an entry an episode.

    `successes`: whether each one reached its goal, if the env tells it by info["success"] of an
    episode's last step; else None.
    """

    returns: list[float]
    lengths_steps: list[int]
    successes: list[bool] | None = None

    @property
    def success_rate(self) -> float | None:
        """The share of episodes that reached their goal."""
        return None if self.successes is None else float(np.mean(self.successes))


def evaluate(
    agent: Agent,
    *envs: gymnasium.Env,
    executors: Sequence[EnvExecutor] = (),
    episodes: int,
    seeds: np.random.SeedSequence,
    step: int,
    film: Callable[[], None] | None = None,
    on_step: Callable[[int, int], None] = lambda episode, step: None,
) -> Evaluation:
    """Play whole episodes with the mean action; `film` is called at each step of the first one.

    The episodes follow from `seeds` alone, and nothing outside the envs changes. Several envs,
    built alike, play an episode each side by side, in their `places` (default: here), with the same
    results: the agent is asked for one of them at a time, in this thread. `film` is called where
    the first env lives.
    """
    where = "an evaluation"
    generator = np.random.Generator(np.random.PCG64(seeds))
    episode_seeds = [episode_seed(generator) for _ in range(episodes)]
    left = iter(range(episodes))
    returns, lengths = [0.0] * episodes, [0] * episodes
    successes: list[bool | None] = [None] * episodes

    def filmed_step(env: gymnasium.Env, action: np.ndarray) -> tuple[Any, ...]:
        if film:
            film()
        return checked_step(env, action, where)

    def player(env: gymnasium.Env, executor: EnvExecutor) -> Iterator[None]:
        """Plays what is left, and pauses where the env is waited for."""
        for episode in left:
            answer = executor.submit(checked_reset, env, where, seed=episode_seeds[episode])
            yield
            obs, done = answer(), False
            take = (
                filmed_step
                if episode == 0
                else lambda env, action: checked_step(env, action, where)
            )
            while not done:
                action = agent.act(stack_observations([obs]), step=step, explore=False)[0]
                answer = executor.submit(take, env, action)
                yield
                obs, reward, terminated, truncated, info = answer()
                returns[episode] += float(reward)
                lengths[episode] += 1
                done = terminated or truncated
                on_step(episode, lengths[episode])
            successes[episode] = episode_success(info)  # pyright: ignore[reportPossiblyUnbound]

    executors = executors or [InlineExecutor()] * len(envs)
    playing = deque(player(env, executor) for env, executor in zip(envs, executors, strict=True))
    try:
        while playing:
            one = playing.popleft()
            if next(one, "over") is None:
                playing.append(one)
    finally:
        for executor in executors:  # a step may be under way after an error
            executor.run(lambda: None)
    told = [success for success in successes if success is not None]
    return Evaluation(returns, lengths, told if len(told) == episodes else None)


def episode_success(info: Mapping[str, Any]) -> bool | None:
    """Whether an episode reached its goal, by its last step's info; None if the env has none."""
    success = info.get("success")
    return None if success is None else bool(success)


def checked_step(env: gymnasium.Env, action: np.ndarray, where: str) -> tuple[Any, ...]:
    """`env.step(action)`, if all of it are numbers.

    Raises:
        RunFailed: the action, the observation or the reward is not, or the env raised.
    """
    if math.isnan(action.dot(action)):  # a sum of squares is only if one of them is
        raise RunFailed(
            f"learning diverged: the action is nan in {where}", diverged=True, action=action
        )
    step = _asked(env, env.step, where, action)
    if not math.isfinite(step[1]):
        raise RunFailed(f"the env returned a reward of {float(step[1])} in {where}", action=action)
    return step


def checked_reset(env: gymnasium.Env, where: str, **words: Any) -> Observation:
    """`env.reset(**words)`'s observation, if it is one; raises as `checked_step` does."""
    return _asked(env, env.reset, where, **words)[0]


def _is_finite(numbers: np.ndarray) -> bool:
    """Whether all are; usually told by the one number that is not finite if any of them is not."""
    flat = numbers.ravel()
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all())


def _asked(
    env: gymnasium.Env, method: Callable[..., Any], where: str, *words: Any, **more: Any
) -> Any:
    try:
        answer = method(*words, **more)
    except ConfigError:  # ours, and says all
        raise
    except Exception as error:  # whatever an env of anybody's raises
        reason = " ".join(f"{type(error).__name__}: {error}".split()).strip(": ")
        raise RunFailed(f"the env raised {reason} in {where}", asked=words) from error
    obs: Observation = answer[0]
    wrong = mismatch(obs, env.observation_space)
    if wrong:
        received, expected = wrong
        raise RunFailed(
            f"the env returned an observation of {received} in {where}, expected {expected}",
            asked=words,
        )
    if any(part.dtype.kind == "f" and not _is_finite(part) for part in observation_arrays(obs)):
        raise RunFailed(
            f"the env returned an observation that is not finite in {where}",
            asked=words,
            observation=obs,
        )
    return answer
