"""The single env in which an agent that trains on a VectorEnv is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.vector_env import VectorRewardWrapper

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError
from rlearly.core.types import EnvSpec
from rlearly.envs.guard import called, guarded
from rlearly.envs.gymnasium_envs import RenderWrapper
from rlearly.envs.vector.bookkeeping import wrappers_of
from rlearly.envs.wrappers import MaskedObservation, agent_view

UNSEEN = ("RecordEpisodeStatistics", "DictInfoToList", "NormalizeReward", "RecordVideo")
UNSEEN += ("HumanRendering",)
"""gymnasium's vector wrappers that change neither observations nor actions. Reward wrappers are
ignored too: evaluations report the env's own rewards."""

VECTOR_KWARGS = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers")
"""What gymnasium.make_vec adds to the arguments of the env."""

Make = Callable[[], gymnasium.Env]


def find_single_env(vector: VectorEnv) -> tuple[Make | None, str]:
    """(a function that makes one env like the members, ""), or (None, why there is none)."""
    base: Any = vector.unwrapped
    for wrapper in wrappers_of(vector):
        kind = type(wrapper)
        if not isinstance(wrapper, VectorRewardWrapper) and kind.__name__ not in UNSEEN:
            return None, f"its wrapper {kind.__name__} acts on all members together"
    if isinstance(base, SyncVectorEnv | AsyncVectorEnv) and isinstance(base.env_fns, Sequence):
        return base.env_fns[0], ""
    spec = vector.spec
    if spec is None:
        return None, f"a {type(base).__name__} does not say how to make one of its envs"
    kwargs = {key: value for key, value in spec.kwargs.items() if key not in VECTOR_KWARGS}
    return lambda: gymnasium.make(spec.id, **kwargs), ""


def evaluation_view(make: Make, config: EnvConfig, spec: EnvSpec, name: str) -> gymnasium.Env:
    """One env, as the agent sees the members of the vector env.

    Args:
        make: makes the env; its own observations and actions are those of the members.
        spec: of the members.
        name: of the env, for messages.

    Raises:
        ConfigError: it is not an env, or has other observations or actions.
        UserCodeFailed: `make` raised.
    """
    env = called("make_eval_env", make)
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(
            f"make_eval_env: expected it to return one gymnasium.Env, received a "
            f"{type(env).__name__}."
        )
    view = agent_view(RenderWrapper(guarded(env, name), config.camera), config, None)
    if spec.action_mask:
        view = MaskedObservation(view)
    observes, acts = view.observation_space, view.action_space
    if (observes, acts) != (spec.observation, spec.action):
        view.close()
        raise ConfigError(
            f"make_eval_env: expected the observations and actions of the members of {name}, "
            f"states of shape {spec.observation.shape} and {spec.action}; received states of shape "
            f"{observes.shape} and {acts}."
        )
    return view
