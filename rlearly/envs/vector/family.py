"""Envs named "vector/NAME": a VectorEnv object, which only the program that made it has."""

from __future__ import annotations

from typing import Any, NoReturn

from gymnasium.vector import VectorEnv

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError
from rlearly.envs.vector.declared import vector_name

FAMILY = "vector"
PREFIX = f"{FAMILY}/"


def config_of(vector: VectorEnv) -> EnvConfig:
    """The config of a run that trains on this vector env."""
    return _config(f"{PREFIX}{vector_name(vector)}")


def names() -> list[str]:
    """None: these envs cannot be made from a name."""
    return []


def config_for(name: str) -> EnvConfig | None:
    """The config of a run on the vector env with this name, if it is such a name."""
    return _config(name) if name.startswith(PREFIX) else None


def _config(name: str) -> EnvConfig:
    return EnvConfig(name=name, family=FAMILY, action_repeat=1, pixels=False)


def make(config: EnvConfig, **kwargs: Any) -> NoReturn:
    """Refuse: there is nothing to make the env from."""
    raise ConfigError(
        f"env={config.name} is a VectorEnv object, which only the program that made it has: "
        "use rlearly.train(env=THE_VECTOR_ENV, ...) there, or name an env that can be made."
    )
