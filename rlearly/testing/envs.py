"""The contract of a gymnasium env, as agents, resuming and SnapshotRL need it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError
from rlearly.envs.guard import guarded
from rlearly.envs.gymnasium_envs import make_registered, observed_image
from rlearly.envs.observations import refuse_unflattenable
from rlearly.envs.state.save_restore import self_test
from rlearly.envs.wrappers import agent_actions
from rlearly.testing.laws import (
    Law,
    LawBroken,
    add_tests,
    check_all,
    expect,
    expect_equal,
    no_global_randomness,
)

STEPS = 200
EPISODES = 3


@dataclass(frozen=True)
class EnvSubject:
    """An env to check: what makes a new one, and after how many steps an episode must be over."""

    make: Callable[[], gymnasium.Env]
    most_steps: int

    def new(self) -> gymnasium.Env:
        return guarded(self.make())


def _play(env: gymnasium.Env, seed: int, steps: int = STEPS) -> Iterator[tuple[Any, ...]]:
    """What resets and steps return, with actions that the seed determines."""
    env.action_space.seed(seed)
    obs, info = env.reset(seed=seed)
    yield obs, info
    for _ in range(steps):
        result = env.step(env.action_space.sample())
        yield result
        if result[2] or result[3]:
            yield env.reset()


# --- laws ---


def has_spaces_that_agents_take(subject: EnvSubject) -> None:
    """Actions are Discrete or a Box, bounded or unbounded; observations are images or numbers."""
    env = subject.new()
    try:
        agent_actions(env)
        if observed_image(env, "the env", None) is None:
            refuse_unflattenable(env.observation_space, "the env")
    except ConfigError as error:
        raise LawBroken(str(error)) from error
    finally:
        env.close()


def observations_are_in_their_space(subject: EnvSubject) -> None:
    """Every observation is a member of `observation_space`, and no later step changes it."""
    env = subject.new()
    earlier: list[tuple[Any, Any]] = []
    for result in _play(env, seed=0):
        obs = result[0]
        expect(
            env.observation_space.contains(obs),
            f"expected an observation in {env.observation_space}, received {obs!r:.200}",
        )
        for kept, then in earlier:
            expect_equal(then, kept, "expected a step to leave earlier observations as they were")
        earlier = [(obs, copy.deepcopy(obs))]
    env.close()


def the_seed_of_a_reset_determines_the_episode(subject: EnvSubject) -> None:
    """Two envs, and one env twice, repeat an episode from its seed and actions."""
    one, two = subject.new(), subject.new()
    first, other, again = (
        [_facts(result) for result in _play(env, seed=3)] for env in (one, two, one)
    )
    sentence = "expected reset(seed=3) and the same actions to repeat what happened"
    expect_equal(first, other, f"{sentence} in another env")
    expect_equal(first, again, f"{sentence} in one env")
    one.close()
    two.close()


def _facts(result: tuple[Any, ...]) -> list[Any]:
    """Observation, reward and endings, without the info."""
    return [_as_arrays(result[0]), *(float(value) for value in result[1:-1])]


def _as_arrays(obs: Any) -> Any:
    if isinstance(obs, dict):
        return {key: _as_arrays(part) for key, part in obs.items()}
    return np.asarray(obs).copy()


def nothing_draws_from_a_global_generator(subject: EnvSubject) -> None:
    """All randomness is from `self.np_random`."""
    with no_global_randomness("the env"):
        env = subject.new()
        for _ in _play(env, seed=1):
            pass
        env.close()


def episodes_end(subject: EnvSubject) -> None:
    """Episodes of random actions end after at most `most_steps` steps."""
    env = subject.new()
    env.action_space.seed(2)
    for episode in range(EPISODES):
        env.reset(seed=episode)
        for _ in range(subject.most_steps):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                break
        else:
            raise LawBroken(
                f"an episode was not over after {subject.most_steps} steps; register the env with "
                "max_episode_steps"
            )
    env.close()


def states_can_be_saved_and_restored_exactly(subject: EnvSubject) -> None:
    """`self_test` finds a method that restores the env bit for bit, in another env too."""
    env = subject.make()
    self_test(env, make_fresh=subject.make)
    env.close()


def rendered_frames_are_images(subject: EnvSubject) -> None:
    """With render_mode="rgb_array", render() returns uint8 [H, W, 3]."""
    env = subject.new()
    if env.render_mode == "rgb_array":
        env.reset(seed=0)
        frame = np.asarray(env.render())
        expect(
            frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3,
            f"render(): expected uint8 [H, W, 3], received {frame.dtype} {list(frame.shape)}",
        )
    env.close()


ENV_LAWS: tuple[Law, ...] = (
    has_spaces_that_agents_take,
    observations_are_in_their_space,
    the_seed_of_a_reset_determines_the_episode,
    nothing_draws_from_a_global_generator,
    episodes_end,
    states_can_be_saved_and_restored_exactly,
    rendered_frames_are_images,
)
"""What holds for every env. Laws take an EnvSubject."""


def _maker(env: str | Callable[[], gymnasium.Env]) -> Callable[[], gymnasium.Env]:
    if callable(env):
        return env
    return lambda: make_registered(EnvConfig(name=env, family="gymnasium"))


def check_env(env: str | Callable[[], gymnasium.Env], most_steps: int = 10_000) -> None:
    """Check all laws of an env.

    >>> check_env("CartPole-v1")

    Args:
        env: an id, as in `env=my_module:MyEnv-v0`, or a function that makes an env.
        most_steps: after which an episode must be over.

    Raises:
        LawBroken: a law is broken; the message lists all that are.
    """
    check_all(ENV_LAWS, EnvSubject(_maker(env), most_steps))


class EnvContract:
    """Tests of an env, one for each law, for pytest.

        class TestMyEnv(EnvContract):
            env = "my_module:MyEnv-v0"

    env: an id, or a staticmethod that makes an env. most_steps: after which an episode must be
    over.
    """

    env: ClassVar[Any]
    most_steps: ClassVar[int] = 10_000

    def subjects(self) -> Iterator[EnvSubject]:
        yield EnvSubject(_maker(self.env), self.most_steps)


add_tests(EnvContract, ENV_LAWS)
