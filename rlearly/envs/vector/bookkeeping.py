"""Save and restore the state of a SyncVectorEnv and its wrappers, without the envs in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper

from rlearly.envs.state import codec
from rlearly.envs.state.action_replay import InexactState
from rlearly.envs.state.objects import LAYOUT, trusted

CLOCK = {"episode_start_times", "time_queue"}
"""Attributes of gymnasium's RecordEpisodeStatistics that hold wall-clock time."""


def obstacle(vector: VectorEnv) -> str | None:
    """Why a vector env cannot be saved and restored; None: it can, if the envs in it can."""
    base = vector.unwrapped
    if type(base) is not SyncVectorEnv:
        return f"only a SyncVectorEnv can be saved, not {type(base).__name__}"
    for wrapper in wrappers_of(vector):
        if not trusted(type(wrapper)) and not _has_own_state(wrapper):
            return (
                f"its wrapper {type(wrapper).__name__} cannot be saved; give it state_dict() and "
                "load_state_dict()"
            )
    try:
        save(vector)
    except InexactState as error:
        return str(error)
    return None


def wrappers_of(vector: VectorEnv) -> list[Any]:
    """The wrappers of a vector env, outermost first."""
    found = []
    while isinstance(vector, VectorWrapper):
        found.append(vector)
        vector = vector.env
    return found


def save(vector: VectorEnv) -> dict[str, Any]:
    """A tree of plain data, without the states of the envs.

    Raises:
        InexactState: a wrapper holds something that cannot be saved as data.
    """
    base: Any = vector.unwrapped
    wrappers = wrappers_of(vector)
    encoder = codec.Encoder([base, *wrappers, *base.envs])
    trees = []
    for i, wrapper in enumerate(wrappers):
        try:
            if _has_own_state(wrapper):
                tree = {"~state_dict": encoder.encode(dict(wrapper.state_dict()), _path(i))}
            else:
                tree = encoder.attributes(wrapper, _path(i), {"env", *CLOCK, *LAYOUT})
        except (codec.Unencodable, RecursionError) as error:
            name = type(wrapper).__name__
            raise InexactState(f"its wrapper {name} cannot be saved: {error}") from None
        trees.append([type(wrapper).__name__, tree])
    return {
        "autoreset": np.array(base._autoreset_envs),
        "obs": codec.Encoder().encode(copy.deepcopy(base._env_obs)),
        "wrappers": trees,
        "random": encoder.random,
    }


def restore(vector: VectorEnv, saved: Mapping[str, Any]) -> None:
    """Put a vector env that was reset into the state that `save` returned; not the envs in it.

    Raises:
        InexactState: it has other wrappers.
    """
    base: Any = vector.unwrapped
    wrappers = wrappers_of(vector)
    names = [type(wrapper).__name__ for wrapper in wrappers]
    before = [name for name, _ in saved["wrappers"]]
    if names != before:
        raise InexactState(
            f"The vector env had the wrappers {', '.join(before) or 'none'}, outermost first, and "
            f"now has {', '.join(names) or 'none'}."
        )
    decoder = codec.Decoder([base, *wrappers], saved["random"])
    for i, (wrapper, (name, tree)) in enumerate(zip(wrappers, saved["wrappers"], strict=True)):
        try:
            if "~state_dict" in tree:
                own = decoder.decode(tree["~state_dict"], codec.MISSING, _path(i))
                wrapper.load_state_dict(own)
            else:
                decoder.attributes(tree, wrapper, _path(i))
        except codec.Incomplete as error:
            raise InexactState(
                f"The wrapper {name} cannot be restored: {error}; build it as the saved one was."
            ) from None
    base._env_obs = codec.Decoder([base], {}).decode(saved["obs"], codec.MISSING)
    base._autoreset_envs[:] = saved["autoreset"]
    base._terminations[:] = False
    base._truncations[:] = False


def _has_own_state(wrapper: Any) -> bool:
    return hasattr(wrapper, "state_dict") and hasattr(wrapper, "load_state_dict")


def _path(index: int) -> tuple[str, ...]:
    return (f"#{index + 1}",)
