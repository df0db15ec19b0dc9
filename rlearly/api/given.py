"""Envs that a Python program hands over: objects, and functions that make them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium

from rlearly.core.errors import ConfigError
from rlearly.envs.entry_points import GIVEN, name_of_env, name_of_factory, register_given

EXPECTED = "an env's name, a gymnasium.Env, or a function that makes one"


def settings_for(env: Any) -> dict[str, Any]:
    """The settings `env=` and `env.*` for an env's name, an env, or a function that makes one.

    Raises:
        ConfigError: it is something else, or an env that cannot be made again.
    """
    if isinstance(env, str):
        return {"env": env}
    if isinstance(env, gymnasium.Env):
        name, settings = name_of_env(env)
        return {"env": name, **settings}
    if callable(env):
        factory: Any = env
        return {"env": name_of_factory(factory)}
    raise ConfigError(f"env: expected {EXPECTED}, received {env!r}.")


def give_again(run: Path, env: Any) -> None:
    """Let this process make the env of an existing run that was started with an object.

    Raises:
        ConfigError: the run names its env, which then cannot be replaced.
    """
    from rlearly.config.structured import read_yaml

    file = run / "config.yaml"
    if not file.is_file():
        return  # what reads the run reports it
    name = str(read_yaml(file).env.name)
    if not name.startswith(GIVEN):
        raise ConfigError(
            f"env: {run} was trained on env={name}, which is made again by its name; leave env "
            "out, or begin a new run from this one with start_from=."
        )
    register_given(name.removeprefix(GIVEN), _factory(env))


def _factory(env: Any) -> Any:
    """A function that makes this env."""
    if isinstance(env, gymnasium.Env):
        name, settings = name_of_env(env)
        return partial(gymnasium.make, name, **settings.get("env.kwargs", {}))
    if callable(env):
        return env
    raise ConfigError(f"env: expected {EXPECTED}, received {env!r}.")
