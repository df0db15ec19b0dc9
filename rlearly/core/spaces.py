"""Observations are arrays, or dicts of pixels and a vector; these functions handle both alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space

if TYPE_CHECKING:  # envs work without importing torch
    import torch
    from torch import Tensor

PIXELS, VECTOR = "pixels", "vector"
"""Keys of a dict observation: uint8 [C, H, W] with frames stacked on C, and float32 [D], which
belongs to the newest frame only."""

Observation = Any
"""np.ndarray, or {PIXELS: np.ndarray, VECTOR: np.ndarray}."""


def is_image(space: Space) -> bool:
    """Whether observations are uint8 [C, H, W]."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3


def is_fused(space: Space) -> bool:
    """Whether observations are dicts of an image and a vector."""
    return (
        isinstance(space, Dict)
        and set(space.spaces) == {PIXELS, VECTOR}
        and is_image(space[PIXELS])
        and isinstance(space[VECTOR], Box)
        and len(space[VECTOR].shape or ()) == 1
    )


def has_images(space: Space) -> bool:
    """Whether there are images to encode and to augment."""
    return is_image(space) or is_fused(space)


def stack_observations(many: Sequence[Observation]) -> Observation:
    """N observations [*O] as one [N, *O]."""
    if isinstance(many[0], Mapping):
        return {key: stack_observations([one[key] for one in many]) for key in many[0]}
    return np.asarray(many[0])[None] if len(many) == 1 else np.stack(many)


def copy_observation(obs: Observation) -> Observation:
    """A copy that shares no memory with `obs`."""
    if isinstance(obs, Mapping):
        return {key: copy_observation(part) for key, part in obs.items()}
    if isinstance(obs, tuple):
        return tuple(map(copy_observation, obs))
    return np.array(obs)


def observation_arrays(obs: Any) -> list[Any]:
    """The arrays, or tensors, of an observation."""
    return list(obs.values()) if isinstance(obs, Mapping) else [obs]


def on_device(obs: Observation, device: torch.device) -> Tensor | dict[str, Tensor]:
    """Observations [N, *O] as tensors on a device."""
    import torch

    if isinstance(obs, Mapping):
        return {key: torch.as_tensor(part).to(device) for key, part in obs.items()}
    return torch.as_tensor(obs).to(device)


def mismatch(obs: Observation, space: Any) -> tuple[str, str] | None:
    """Descriptions of (obs, space) if their kinds, dtypes or shapes differ, otherwise None."""
    if isinstance(space, Dict):
        if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
            keys = f"a dict of {', '.join(obs)}" if isinstance(obs, Mapping) else type(obs).__name__
            return keys, f"a dict of {', '.join(space.spaces)}"
        found = (mismatch(obs[key], part) for key, part in space.spaces.items())
        return next(filter(None, found), None)
    if obs.shape != space.shape or obs.dtype != space.dtype:
        return f"{obs.dtype} {list(obs.shape)}", f"{space.dtype} {list(space.shape)}"
    return None


def split_mask(obs: Any, mask_size: int) -> tuple[Any, Any]:
    """(states [N, D], mask [N, n]) of observations [N, D + n], arrays or tensors.

    The mask is True for the actions that are allowed, of which each row has at least one.

    Args:
        mask_size: n, as in `EnvSpec.mask_size`; 0: the observations are states, and the mask None.
    """
    if not mask_size:
        return obs, None
    return obs[:, :-mask_size], obs[:, -mask_size:] > 0


LOWEST, HIGHEST = np.array(-1.0, np.float32), np.array(1.0, np.float32)


def clip_actions(actions: np.ndarray) -> np.ndarray:
    """Actions clipped to [-1, 1]; discrete ones unchanged.

    np.clip, or Python floats as bounds, would take twice as long.
    """
    if actions.dtype.kind == "i":
        return actions
    return np.minimum(np.maximum(actions, LOWEST), HIGHEST)


def describe_space(space: Any) -> str:
    """A space's kind, dtype and shape in words, as in "float32 [17]" or "3 actions"."""
    if isinstance(space, Dict):
        parts = (f"{key}: {describe_space(part)}" for key, part in space.spaces.items())
        return f"a dict of {', '.join(parts)}"
    if isinstance(space, Discrete):
        return f"the numbers 0 to {space.n - 1}"
    return f"{space.dtype} {list(space.shape or ())}"
