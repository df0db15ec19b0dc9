"""What a VectorEnv declares: its name, its autoreset mode, and the spaces of its members."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rlearly.core.errors import ConfigError
from rlearly.envs.observations import find_image, refuse_unflattenable
from rlearly.envs.wrappers import agent_actions

AUTORESET = "https://farama.org/Vector-Autoreset-Mode"


class _Spaces(gymnasium.Env):
    """The spaces of one member, for wrappers that ask for an env."""

    def __init__(self, vector: VectorEnv, name: str):
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self.name = name

    def __str__(self) -> str:
        return self.name


def vector_name(vector: VectorEnv) -> str:
    """The registered id of a vector env or of the envs in it; otherwise the class."""
    base: Any = vector.unwrapped
    first = base.envs[0].spec if isinstance(base, SyncVectorEnv) else None
    spec = vector.spec or first
    return str(spec.id) if spec is not None else type(base).__name__


def autoreset_mode(vector: VectorEnv) -> tuple[AutoresetMode, list[str]]:
    """How a vector env resets its members, and notes for the user.

    Raises:
        ConfigError: its metadata names no mode of gymnasium's.
    """
    base: Any = vector.unwrapped
    if isinstance(base, SyncVectorEnv | AsyncVectorEnv):  # their metadata may be shared
        return base.autoreset_mode, []
    mode = vector.metadata.get("autoreset_mode")
    if mode is None:
        return AutoresetMode.NEXT_STEP, [
            f"{vector_name(vector)}: metadata['autoreset_mode'] is missing: NEXT_STEP is assumed, "
            "as in gymnasium: the step after an episode's end only resets"
        ]
    try:
        return AutoresetMode(mode), []
    except ValueError:
        valid = ", ".join(f"AutoresetMode.{mode.name}" for mode in AutoresetMode)
        raise ConfigError(
            f"env={vector_name(vector)}: metadata['autoreset_mode']: expected one of {valid}, "
            f"received {mode!r}."
        ) from None


def member_actions(vector: VectorEnv, name: str) -> Any:
    """An action wrapper from agents' actions to a member's.

    Raises:
        ConfigError: the members' actions are not supported.
    """
    return agent_actions(_Spaces(vector, name))


def refuse_unsupported(space: Any, name: str) -> None:
    """Check that observations are states.

    Raises:
        ConfigError: they are images, or cannot be flattened.
    """
    if find_image(space, name) is not None:
        raise ConfigError(
            f"env={name}: the observations of this vector env are images; on a VectorEnv, agents "
            "learn from states only: give the env's id and num_envs=N instead."
        )
    refuse_unflattenable(space, name)
