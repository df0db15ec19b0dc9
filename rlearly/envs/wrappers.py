"""Wrappers that turn any env into what our agents see: repeated, scaled actions; stacked images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space, flatdim, flatten

from rlearly.core.errors import ConfigError
from rlearly.core.spaces import PIXELS, VECTOR, clip_actions

Camera = Callable[[], np.ndarray]
"""Takes a picture: uint8 [H, W, 3]."""

UNBOUNDED = 1e6
"""A bound at or beyond it is no bound (dm_control's LQR declares 1e10)."""


class ScaledActions(gymnasium.ActionWrapper):
    """Actions in [-1, 1] of shape [A], mapped linearly onto the env's own bounds.

    An unbounded dimension takes the number as it is.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, Box):
            raise ConfigError(
                f"env={env.spec.id if env.spec else env}: expected a Box action space, received "
                f"{space}; these agents act in continuous spaces only."
            )
        low, high = (np.ravel(bound).astype(np.float64) for bound in (space.low, space.high))
        free = (low <= -UNBOUNDED) | (high >= UNBOUNDED)
        self.low = np.where(free, -1.0, low)
        self.span = np.where(free, 2.0, high - low)
        self.as_it_is = bool((self.low == -1.0).all() and (self.span == 2.0).all())
        self.shape = space.shape
        self.dtype = space.dtype
        self.action_space = Box(-1.0, 1.0, low.shape, np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        unit = clip_actions(action)
        if self.as_it_is:
            return unit.reshape(self.shape).astype(self.dtype, copy=False)
        unit = (unit.astype(np.float64) + 1.0) / 2.0
        return (self.low + unit * self.span).reshape(self.shape).astype(self.dtype, copy=False)


class ActionRepeat(gymnasium.Wrapper):
    """One step is `times` simulator frames with the same action; rewards add up.

    It stops early at the episode's end.
    """

    def __init__(self, env: gymnasium.Env, times: int):
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.times):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info  # pyright: ignore[reportPossiblyUnbound]


class SuccessTracker(gymnasium.Wrapper):
    """Counts the simulator frames of an episode in which its goal is reached.

    The env below tells of each frame by `info["success"]`. From here on `info["success"]` is
    whether the episode has succeeded by now: whether more than `over_frames` of its frames had
    reached the goal. It stays true until the next reset, so an episode's last step tells of it all.
    It must be below `ActionRepeat`, which passes on the last frame's info alone.
    """

    def __init__(self, env: gymnasium.Env, over_frames: int = 0):
        super().__init__(env)
        self.over_frames = over_frames
        self.reached_frames = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.reached_frames = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.reached_frames += bool(info.get("success", False))
        succeeded = self.reached_frames > self.over_frames
        return obs, reward, terminated, truncated, {**info, "success": succeeded}


class FlatObservation(gymnasium.ObservationWrapper):
    """The observation as one float32 vector [D], whatever its space."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.original: Space = env.observation_space
        self.observation_space = Box(-np.inf, np.inf, (flatdim(self.original),), np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        return flat(self.original, observation)


def flat(space: Space, observation: Any) -> np.ndarray:
    """A new float32 [D]: what gymnasium's `flatten` gives, sooner for a Box or a Dict of Boxes."""
    if isinstance(space, Box):
        return np.asarray(observation, space.dtype).ravel().astype(np.float32)
    if isinstance(space, Dict):
        return np.concatenate([flat(s, observation[key]) for key, s in space.spaces.items()])
    return np.asarray(flatten(space, observation), dtype=np.float32)


class PixelObservation(gymnasium.Wrapper):
    """uint8 [stack * 3, H, W]: the last `stack` images on the channels, oldest first.

    Reset fills the stack with the first image (DrQ-v2). One image is taken after each step.
    """

    def __init__(self, env: gymnasium.Env, camera: Camera, stack: int, size: int):
        super().__init__(env)
        self.camera = camera
        self.stack = stack
        self.images: deque[np.ndarray] = deque(maxlen=stack)
        self.observation_space = Box(0, 255, (3 * stack, size, size), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options=options)
        self.images.extend([self._image()] * self.stack)
        return np.concatenate(self.images), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = self.env.step(action)
        self.images.append(self._image())
        return np.concatenate(self.images), float(reward), terminated, truncated, info

    def _image(self) -> np.ndarray:
        return np.ascontiguousarray(self.camera().transpose(2, 0, 1))


class PixelVectorObservation(gymnasium.Wrapper):
    """{"pixels": what the env observes, "vector": float32 [D]}, the vector of the newest step."""

    def __init__(self, env: gymnasium.Env, vector: Callable[[], np.ndarray], size: int):
        super().__init__(env)
        self.vector = vector
        box = Box(-np.inf, np.inf, (size,), np.float32)
        self.observation_space = Dict([(PIXELS, env.observation_space), (VECTOR, box)])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        pixels, info = self.env.reset(seed=seed, options=options)
        return self._with_vector(pixels), info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], Any, bool, bool, dict[str, Any]]:
        pixels, reward, terminated, truncated, info = self.env.step(action)
        return self._with_vector(pixels), reward, terminated, truncated, info

    def _with_vector(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {PIXELS: pixels, VECTOR: np.array(self.vector(), np.float32)}


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] as [size, size, 3], averaged over areas."""
    if image.shape[:2] == (size, size):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
