"""Observations: an array, or pixels and a vector in a dict; and what is done to both alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.spaces import Box, Dict, Space

if TYPE_CHECKING:  # an env needs no torch
    import torch
    from torch import Tensor

PIXELS, VECTOR = "pixels", "vector"
"""The keys of a dict: uint8 [C, H, W], frames stacked on C, and float32 [D], the newest frame's."""

Observation = Any
"""np.ndarray, or {PIXELS: np.ndarray, VECTOR: np.ndarray}."""


def is_image(space: Space) -> bool:
    """True for uint8 [C, H, W] observations."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3


def is_fused(space: Space) -> bool:
    """True for dicts of an image and a vector."""
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
    """Observations [*O] as one [N, *O]."""
    if isinstance(many[0], Mapping):
        return {key: stack_observations([one[key] for one in many]) for key in many[0]}
    return np.asarray(many[0])[None] if len(many) == 1 else np.stack(many)


def copy_observation(obs: Observation) -> Observation:
    """One that nothing else writes to."""
    if isinstance(obs, Mapping):
        return {key: np.array(part) for key, part in obs.items()}
    return np.array(obs)


def observation_arrays(obs: Any) -> list[Any]:
    """The arrays, or tensors, that an observation is made of."""
    return list(obs.values()) if isinstance(obs, Mapping) else [obs]


def on_device(obs: Observation, device: torch.device) -> Tensor | dict[str, Tensor]:
    """Observations [N, *O] where a network computes."""
    import torch

    if isinstance(obs, Mapping):
        return {key: torch.as_tensor(part).to(device) for key, part in obs.items()}
    return torch.as_tensor(obs).to(device)


def mismatch(obs: Observation, space: Any) -> tuple[str, str] | None:
    """What an observation is and what was expected, if it is not of its space's kind and shape."""
    if isinstance(space, Dict):
        if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
            keys = f"a dict of {', '.join(obs)}" if isinstance(obs, Mapping) else type(obs).__name__
            return keys, f"a dict of {', '.join(space.spaces)}"
        found = (mismatch(obs[key], part) for key, part in space.spaces.items())
        return next(filter(None, found), None)
    if obs.shape != space.shape or obs.dtype != space.dtype:
        return f"{obs.dtype} {list(obs.shape)}", f"{space.dtype} {list(space.shape)}"
    return None


LOWEST, HIGHEST = np.array(-1.0, np.float32), np.array(1.0, np.float32)


def clip_actions(actions: np.ndarray) -> np.ndarray:
    """Within [-1, 1]: np.clip takes twice as long, and so do Python's numbers as bounds."""
    return np.minimum(np.maximum(actions, LOWEST), HIGHEST)
