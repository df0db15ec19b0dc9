"""Environments: families of envs behind one gymnasium interface.

To add a family, write `rlearly/envs/FILE.py` with the functions `names()`, `config_for(name)` and
`make(config, *, pixels, model_seed, videos)`, and add one line to `FAMILIES`. `metaworld.py` is a
short example.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from rlearly.config.schema import EnvConfig
from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError
from rlearly.core.types import EnvSpec
from rlearly.envs.entry_points import gymnasium_id
from rlearly.envs.gl_backend import check_rendering as check_rendering
from rlearly.envs.wrappers import find_wrapper, masks_actions
from rlearly.envs.wrappers import notes as notes


class Family(NamedTuple):
    """A family of envs.

    module: the file in rlearly/envs, imported when needed.
    names: examples for --help.
    own_evaluation: its envs differ in evaluations; `make` then takes `evaluation`.
    """

    module: str
    names: str
    own_evaluation: bool = False


FAMILIES = {
    "gymnasium": Family("gymnasium_envs", "HalfCheetah-v5, CartPole-v1, ..., or module:EnvId"),
    "metaworld": Family("metaworld", "metaworld/coffee-push, metaworld/hammer, ... (50 tasks)"),
    "adroit": Family("adroit", "adroit/door, adroit/hammer, adroit/pen, adroit/relocate"),
    "atari": Family("atari", "atari/Pong, atari/BankHeist, ... (104 games)", own_evaluation=True),
    "dm_control": Family("dm_control", "dog_run, ... (suite), reach_duplo, ... (manipulation)"),
}
"""Family (`EnvConfig.family`) -> its file. Names are looked up in this order: dm_control is last
because listing its tasks imports it."""


GIVEN_AS_OBJECTS = {"vector": "vector.family"}
"""Family -> the file of envs that a Python program hands over: they are made from no name."""


def _module(family: str) -> Any:
    if family in GIVEN_AS_OBJECTS:
        return importlib.import_module(f"rlearly.envs.{GIVEN_AS_OBJECTS[family]}")
    if family not in FAMILIES:
        raise ConfigError(
            f"env.family: expected one of {', '.join(FAMILIES)}, received {family!r}: the run was "
            "made by an older version; start it again with env=NAME."
        )
    return importlib.import_module(f"rlearly.envs.{FAMILIES[family].module}")


def config_for(name: str) -> EnvConfig:
    """The config of the env with this name.

    Raises:
        ConfigError: no family knows the name. The message suggests the closest names.
    """
    if name.partition("/")[0] in GIVEN_AS_OBJECTS:
        return _module(name.partition("/")[0]).config_for(name)
    modules = [_module(family) for family in FAMILIES]
    found = next(filter(None, (module.config_for(name) for module in modules)), None)
    if found is None:
        valid = [known for module in modules for known in module.names()]
        text = f"There is no env {name!r}; {did_you_mean(name, valid)}"
        if re.search(r"-v\d+$", name):
            text += (
                " If your own code registers it, put that code into a module and name it too: "
                f"env=MODULE:{name.rpartition(':')[2]} (an id that a script or notebook registers "
                "is known only in its own process)."
            )
        raise ConfigError(text)
    return found


def make(
    config: EnvConfig,
    *,
    pixels: bool | None,
    model_seed: int,
    videos: bool = False,
    evaluation: bool = False,
) -> gymnasium.Env:
    """Make the env that a config describes.

    Actions are float32 [A] in [-1, 1], or int64 numbers from 0. Observations are uint8 images, a
    flat float32 state, or a dict of both.

    Args:
        pixels: observe images; None: the family's default (gymnasium: as the env is; others: yes).
        model_seed: seed of what a task draws when it is built.
        videos: frames will be rendered for videos, even if images are not observed.
        evaluation: make the env for evaluations and teachers: Atari's is another than for training.

    Raises:
        ConfigError: the env cannot be made or rendered here.
    """
    module = _module(config.family)
    family = FAMILIES.get(config.family)
    more = {"evaluation": evaluation} if family and family.own_evaluation else {}
    return module.make(config, pixels=pixels, model_seed=model_seed, videos=videos, **more)


def code_of(config: EnvConfig) -> list[str]:
    """The modules outside gymnasium that define an env: the one in its name, and its class's.

    The env has been made, so that its id is registered.
    """
    if config.family != "gymnasium":
        return []
    named = config.name.rpartition(":")[0]
    env_id = gymnasium_id(config.name)
    entry_point = gymnasium.registry[env_id].entry_point if env_id in gymnasium.registry else ""
    if isinstance(entry_point, str):
        defined = entry_point.partition(":")[0]
    else:
        defined = getattr(entry_point, "__module__", "")
    found = dict.fromkeys(name for name in (named, defined) if name)
    return [name for name in found if name.split(".")[0] != "gymnasium"]


def env_spec(env: gymnasium.Env, config: EnvConfig) -> EnvSpec:
    """What an agent may know about an env made from `config`."""
    observation, action = env.observation_space, env.action_space
    assert isinstance(observation, gymnasium.spaces.Box | gymnasium.spaces.Dict)
    assert isinstance(action, gymnasium.spaces.Box | gymnasium.spaces.Discrete)
    return EnvSpec(observation, action, config.action_repeat, masks_actions(env))


def has_time_limit(env: gymnasium.Env, config: EnvConfig) -> bool:
    """Whether the episodes of an env made from `config` are limited, by its family or gymnasium.

    If not, only the env itself can end them.
    """
    if config.family in ("dm_control", "metaworld", "atari"):
        return True
    if find_wrapper(env, gymnasium.wrappers.TimeLimit) is not None:
        return True
    return hasattr(env.unwrapped, "max_steps")  # MiniGrid's own limit


def frame_renderer(env: gymnasium.Env) -> Callable[[int], np.ndarray]:
    """A function that renders an env from `make`: size in pixels -> uint8 [size, size, 3]."""
    return env.get_wrapper_attr("render_frame")
