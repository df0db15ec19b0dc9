"""Where agents live: families of envs behind one gymnasium interface."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np

from rlearly.config.schema import EnvConfig
from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError
from rlearly.core.types import EnvSpec

FAMILIES = {
    "dm_control suite": "domain_task: dog_run, cheetah_run, humanoid_walk, ...",
    "dm_control manipulation": "reach_duplo, stack_2_bricks, place_brick, ...",
    "Adroit": "adroit/door, adroit/hammer, adroit/pen, adroit/relocate",
    "MetaWorld": "metaworld/task: metaworld/coffee-push, metaworld/hammer, ... (see README.md)",
    "gymnasium": "any registered id with a Box action space: HalfCheetah-v5, Pendulum-v1, ...",
    "anyone's": "module:EnvId imports the module, which registers the id with gymnasium",
}
"""Family -> what its names look like."""


def config_for(name: str) -> EnvConfig:
    """The config of an env by its name.

    Raises:
        ConfigError: no family knows the name; the nearest names are given.
    """
    from rlearly.envs import adroit, dm_control, gymnasium_envs, metaworld

    families = (gymnasium_envs, metaworld, adroit, dm_control)
    found = next(filter(None, (family.config_for(name) for family in families)), None)
    if found is None:
        valid = [known for family in families for known in family.names()]
        raise ConfigError(f"There is no env {name!r}; {did_you_mean(name, valid)}")
    return found


def make(
    config: EnvConfig, *, pixels: bool | None, model_seed: int, videos: bool = False
) -> gymnasium.Env:
    """The env that a config describes: actions float32 [A] in [-1, 1], uint8 or float32 obs."""
    from rlearly.envs import adroit, dm_control, gymnasium_envs, metaworld

    if config.family == "adroit":
        return adroit.make(config, pixels=pixels is not False, videos=videos)
    if config.family == "metaworld":
        return metaworld.make(config, pixels=pixels, videos=videos)
    if config.family == "dm_control":
        return dm_control.make(
            config, pixels=pixels is not False, model_seed=model_seed, videos=videos
        )
    return gymnasium_envs.make(config, pixels=pixels, videos=videos)


def env_spec(env: gymnasium.Env, config: EnvConfig) -> EnvSpec:
    """What an agent may know of an env made from `config`."""
    observation, action = env.observation_space, env.action_space
    assert isinstance(observation, gymnasium.spaces.Box | gymnasium.spaces.Dict)
    assert isinstance(action, gymnasium.spaces.Box)
    return EnvSpec(observation, action, config.action_repeat)


def frame_renderer(env: gymnasium.Env) -> Callable[[int], np.ndarray]:
    """Takes pictures of a made env: side in pixels -> uint8 [side, side, 3]."""
    return env.get_wrapper_attr("render_frame")
