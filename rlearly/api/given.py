"""Envs that a Python program passes: objects, and functions that make them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from rlearly.core.errors import ConfigError
from rlearly.envs.entry_points import GIVEN, name_of_env, name_of_factory, register_given
from rlearly.envs.vector.declared import vector_name
from rlearly.envs.vector.evaluation import find_single_env
from rlearly.envs.vector.family import PREFIX, config_of

EXPECTED = "an env's name, a gymnasium.Env, a function that makes one, or a VectorEnv"


def single_env_of(
    env: Any, make_eval_env: Callable[[], gymnasium.Env] | None
) -> Callable[[], gymnasium.Env] | None:
    """A function that makes one env like the members of a VectorEnv, if there is one.

    Raises:
        ConfigError: `make_eval_env` is not callable, or `env` is not a VectorEnv.
    """
    if make_eval_env is not None and not callable(make_eval_env):
        raise ConfigError(
            f"make_eval_env: expected a function that makes an env, received {make_eval_env!r}."
        )
    if isinstance(env, VectorEnv):
        return make_eval_env or find_single_env(env)[0]
    if make_eval_env is not None:
        raise ConfigError(
            "make_eval_env: has no effect without env=THE_VECTOR_ENV; other evaluations make their "
            "env as training does: leave it out."
        )
    return None


def settings_for(env: Any, single: Callable[[], gymnasium.Env] | None = None) -> dict[str, Any]:
    """The settings `env=` and `env.*` for an env's name, an env, a function that makes one, or a
    VectorEnv with the function `single` that makes one env like its members.

    Raises:
        ConfigError: it is something else, or an env that cannot be made again.
    """
    if isinstance(env, str):
        return {"env": env}
    if isinstance(env, gymnasium.Env):
        name, settings = name_of_env(env)
        return {"env": name, **settings}
    if isinstance(env, VectorEnv):
        name = config_of(env).name
        return {
            "env": name if single is None else register_given(vector_name(env), single),
            "num_envs": env.num_envs,
        }
    if callable(env):
        factory: Any = env
        return {"env": name_of_factory(factory)}
    raise ConfigError(f"env: expected {EXPECTED}, received {env!r}.")


def give_again(run: Path, env: Any, single: Callable[[], gymnasium.Env] | None = None) -> None:
    """Let this process make the env of an existing run that was started with an env object.

    Raises:
        ConfigError: the run names its env, which then cannot be replaced.
    """
    from rlearly.config.structured import read_yaml

    file = run / "config.yaml"
    if not file.is_file():
        return  # what reads the run reports it
    name = str(read_yaml(file).env.name)
    if isinstance(env, VectorEnv) and name.startswith(PREFIX):
        return
    if not name.startswith(GIVEN):
        raise ConfigError(
            f"env: {run} was trained on env={name}, which is made from its name; leave env "
            "out, or begin a new run from this one with start_from=."
        )
    if isinstance(env, VectorEnv) and single is None:
        raise ConfigError(
            f"env: {run} plays single envs, and this {vector_name(env)} does not tell how to make "
            "one: to load the run, pass a function that makes one as env=; to resume it, pass the "
            "VectorEnv and that function as make_eval_env=."
        )
    register_given(name.removeprefix(GIVEN), single or _factory(env))


def _factory(env: Any) -> Any:
    """A function that makes this env."""
    if isinstance(env, gymnasium.Env):
        name, settings = name_of_env(env)
        if name.startswith(GIVEN):  # registered just now, perhaps under the name that it will have
            return gymnasium.registry[name].entry_point
        made = {"max_episode_steps": settings.get("env.max_episode_steps")}
        return partial(gymnasium.make, name, **made, **settings.get("env.kwargs", {}))
    if callable(env):
        return env
    raise ConfigError(f"env: expected {EXPECTED}, received {env!r}.")
