"""Exact save and restore: one contract for every family and wrapper, to the bit."""

import copy
import struct
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import tiny_envs  # noqa: F401  (registers PixelReach-v0)

from rlearly import envs
from rlearly.envs import control
from rlearly.envs.state import (
    EnvState,
    method_of,
    recorded,
    restore,
    save,
)

BEFORE, AFTER = 13, 100


def ours(name, pixels=False, **changes):
    config = replace(envs.config_for(name), **changes)
    return envs.make(config, pixels=pixels, model_seed=0)


def suite(name):
    return control.ControlEnv(envs.config_for(name), pixels=False, model_seed=0)


def gym(name, *wrap, **kwargs):
    env = gymnasium.make(name, **kwargs)
    for wrapper in wrap:
        env = wrapper(env)
    return env


def record(env, actions):
    """Everything the env says, and what its generators draw at the end."""
    seen = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        info = {key: value for key, value in info.items() if key != "episode"}
        seen.append(copy.deepcopy([obs, reward, terminated, truncated, info]))
        if terminated or truncated:
            seen.append(copy.deepcopy(env.reset()[0]))
    seen.append(env.unwrapped.np_random.random(3))
    for owner in (env.unwrapped, getattr(env.unwrapped, "_control", None)):
        task = getattr(owner, "_task", None)
        if hasattr(task, "_random"):
            seen.append(task._random.random_sample(3))
    return seen


def assert_same(one, two, path=""):
    assert type(one) is type(two), f"{path}: {one!r} and {two!r}"
    if isinstance(one, dict):
        assert list(one) == list(two), path
        for key in one:
            assert_same(one[key], two[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    elif isinstance(one, np.ndarray | np.generic):
        assert one.dtype == two.dtype and one.shape == two.shape, path
        assert one.tobytes() == two.tobytes(), f"{path}: {one} and {two}"
    elif isinstance(one, float):
        assert struct.pack("<d", one) == struct.pack("<d", two), f"{path}: {one} and {two}"
    else:
        assert one == two, path


def check_contract(make, method, before=BEFORE, after=AFTER):
    env, fresh = make(), make()
    assert method_of(env) == method
    if method == "replay":
        env, fresh = recorded(env), recorded(fresh)
    space = copy.deepcopy(env.action_space)
    space.seed(3)

    env.reset(seed=2)
    env.reset()
    for _ in range(before):
        if any(env.step(space.sample())[2:4]):
            env.reset()
    data = save(env).to_bytes()
    actions = [space.sample() for _ in range(after)]
    expected = record(env, actions)
    env.reset(seed=77)  # disturb it
    for _ in range(3):
        env.step(space.sample())
    restore(env, EnvState.from_bytes(data))
    assert save(env).to_bytes() == data
    assert_same(record(env, actions), expected)
    restore(fresh, EnvState.from_bytes(data))
    assert_same(record(fresh, actions), expected)
    env.close()
    fresh.close()


FAMILIES = {
    "HalfCheetah-v5": (lambda: gym("HalfCheetah-v5"), "mujoco"),
    "Ant-v5": (lambda: gym("Ant-v5"), "mujoco"),
    "Humanoid-v5": (lambda: gym("Humanoid-v5"), "mujoco"),
    "Hopper-v5": (lambda: gym("Hopper-v5"), "mujoco"),
    "Walker2d-v5": (lambda: gym("Walker2d-v5"), "mujoco"),
    "Pusher-v5": (lambda: gym("Pusher-v5"), "mujoco"),
    "cheetah_run": (lambda: suite("cheetah_run"), "control"),
    "humanoid_run": (lambda: suite("humanoid_run"), "control"),
    "point_mass_hard": (lambda: suite("point_mass_hard"), "control"),
    "finger_turn_hard": (lambda: suite("finger_turn_hard"), "control"),
    "fish_swim": (lambda: suite("fish_swim"), "control"),
    "manipulator_bring_peg": (lambda: suite("manipulator_bring_peg"), "control"),
    "lqr_lqr_2_1": (lambda: suite("lqr_lqr_2_1"), "control"),
    "reach_duplo": (lambda: suite("reach_duplo"), "replay"),
    "CartPole-v1": (lambda: gym("CartPole-v1"), "attributes"),
    "Pendulum-v1": (lambda: gym("Pendulum-v1"), "attributes"),
    "Acrobot-v1": (lambda: gym("Acrobot-v1"), "attributes"),
    "MountainCar-v0": (lambda: gym("MountainCar-v0"), "attributes"),
    "FrozenLake-v1": (lambda: gym("FrozenLake-v1"), "attributes"),
    "Taxi-v4": (lambda: gym("Taxi-v4"), "attributes"),
    "Blackjack-v1": (lambda: gym("Blackjack-v1"), "attributes"),
    "CliffWalking-v1": (lambda: gym("CliffWalking-v1"), "attributes"),
    "PixelReach-v0": (lambda: gym("PixelReach-v0"), "replay"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_restored_env_continues_to_the_bit(name):
    make, method = FAMILIES[name]
    check_contract(make, method)
