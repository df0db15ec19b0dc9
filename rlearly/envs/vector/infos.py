"""Read the info of one member from the infos of a vector env."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.vector.utils import iterate

FINAL_OBS, FINAL_INFO = "final_obs", "final_info"
"""Keys of the last observation and info of an episode, in autoreset mode SAME_STEP."""


def member_info(infos: Any, index: int) -> dict[str, Any]:
    """The info of one member.

    Args:
        infos: a dict of arrays [N], or of such dicts, where "_KEY" [N] says which members have the
            entry KEY; or a list of N dicts, as from gymnasium's `DictInfoToList`.
    """
    if isinstance(infos, list | tuple):
        return dict(infos[index])
    return {
        key: _entry(value, index)
        for key, value in infos.items()
        if not _is_mask(key, infos) and has(infos, key, index)
    }


def final_info(infos: Any, index: int) -> dict[str, Any]:
    """The info of the last step of an episode that ended in this step; empty if there is none."""
    if isinstance(infos, list | tuple):
        return dict(infos[index].get(FINAL_INFO, {}))
    value = infos.get(FINAL_INFO)
    if value is None or not has(infos, FINAL_INFO, index):
        return {}
    if isinstance(value, Mapping | list | tuple):
        return member_info(value, index)
    return dict(value[index] or {})  # an array of dicts


def final_observation(infos: Any, index: int, batched: Space) -> Any:
    """The last observation of an episode that ended in this step; None if there is none.

    Args:
        batched: the space of all members' observations, for infos that hold all of them batched.
    """
    if isinstance(infos, list | tuple):
        return infos[index].get(FINAL_OBS)
    value = infos.get(FINAL_OBS)
    if value is None or not has(infos, FINAL_OBS, index):
        return None
    if isinstance(value, np.ndarray) and value.dtype == object:
        return value[index]
    return list(iterate(batched, value))[index]


def has(infos: Mapping[str, Any], key: str, index: int) -> bool:
    """Whether a member has an entry; all members have an entry without a mask."""
    mask = infos.get(f"_{key}")
    return mask is None or bool(mask[index])


def _is_mask(key: str, infos: Mapping[str, Any]) -> bool:
    return key.startswith("_") and key[1:] in infos


def _entry(value: Any, index: int) -> Any:
    if isinstance(value, Mapping):
        return member_info(value, index)
    try:
        return value[index]
    except (TypeError, IndexError, KeyError):  # one value for all
        return value
