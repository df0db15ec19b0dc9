"""Wrappers that give agents scaled actions, action repeat, stacked images and flat states."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space, flatdim, flatten

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError
from rlearly.core.spaces import PIXELS, VECTOR, clip_actions
from rlearly.envs.guard import as_float

UNBOUNDED = 1e6
"""An action bound this large is treated as no bound (dm_control's LQR declares 1e10)."""


def agent_view(
    env: gymnasium.Env,
    config: EnvConfig,
    render_frame: Callable[[int], np.ndarray] | None,
    vector: Callable[[], np.ndarray] | None = None,
    vector_size: int = 0,
) -> gymnasium.Env:
    """Wrap an env as agents see it: repeated actions in [-1, 1], images or a flat state.

    Args:
        render_frame: size -> uint8 [size, size, 3]; None: observe the flat state.
        vector: returns float [vector_size], observed in addition to the images.
    """
    env = ActionRepeat(ScaledActions(env), config.action_repeat)
    if render_frame is None:
        return FlatObservation(env)
    size = config.image_size
    env = PixelObservation(env, lambda: render_frame(size), config.frame_stack, size)
    return env if vector is None else PixelVectorObservation(env, vector, vector_size)


class ScaledActions(gymnasium.ActionWrapper):
    """Actions in [-1, 1] of shape [A], mapped linearly onto the env's own bounds.

    Unbounded dimensions are passed on unscaled.
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
        self.is_identity = bool((self.low == -1.0).all() and (self.span == 2.0).all())
        self.shape = space.shape
        self.dtype = space.dtype
        self.action_space = Box(-1.0, 1.0, low.shape, np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        action = clip_actions(action)
        if not self.is_identity:
            unit = (action.astype(np.float64) + 1.0) / 2.0
            action = self.low + unit * self.span
        return action.reshape(self.shape).astype(self.dtype, copy=False)


class ActionRepeat(gymnasium.Wrapper):
    """Repeats each action for `times` simulator frames, or until the episode ends; sums rewards."""

    def __init__(self, env: gymnasium.Env, times: int):
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.times):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += as_float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info  # pyright: ignore[reportPossiblyUnbound]


class SuccessTracker(gymnasium.Wrapper):
    """Sets `info["success"]` to whether the episode has succeeded so far.

    An episode succeeds once more than `over_frames` of its frames have reached the goal; the env
    below reports each frame in its own `info["success"]`. Success lasts until the next reset, so
    the last step's info tells whether the episode succeeded. This wrapper must be below
    `ActionRepeat`, which passes on only the last frame's info.
    """

    def __init__(self, env: gymnasium.Env, over_frames: int = 0):
        super().__init__(env)
        self.over_frames = over_frames
        self.reached_frames = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.reached_frames = 0
        return self.env.reset(**kwargs)

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
    """A new float32 [D]. Equals gymnasium's `flatten`, but is faster for Boxes and Dicts."""
    if isinstance(space, Box):
        return np.asarray(observation, space.dtype).ravel().astype(np.float32)
    if isinstance(space, Dict):
        return np.concatenate([flat(s, observation[key]) for key, s in space.spaces.items()])
    return np.asarray(flatten(space, observation), dtype=np.float32)


class PixelObservation(gymnasium.Wrapper):
    """uint8 [stack * 3, size, size]: the last `stack` frames on the channel axis, oldest first.

    A reset fills the stack with the first frame, as DrQ-v2 does. `camera` returns
    uint8 [size, size, 3] and is called once per step.
    """

    def __init__(self, env: gymnasium.Env, camera: Callable[[], np.ndarray], stack: int, size: int):
        super().__init__(env)
        self.camera = camera
        self.stack = stack
        self.images: deque[np.ndarray] = deque(maxlen=stack)
        self.observation_space = Box(0, 255, (3 * stack, size, size), np.uint8)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = self.env.reset(**kwargs)
        self.images.extend([self._image()] * self.stack)
        return np.concatenate(self.images), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = self.env.step(action)
        self.images.append(self._image())
        return np.concatenate(self.images), float(reward), terminated, truncated, info

    def _image(self) -> np.ndarray:
        return np.ascontiguousarray(self.camera().transpose(2, 0, 1))


class PixelVectorObservation(gymnasium.ObservationWrapper):
    """{"pixels": the env's observation, "vector": float32 [D] of the newest step}."""

    def __init__(self, env: gymnasium.Env, vector: Callable[[], np.ndarray], size: int):
        super().__init__(env)
        self.vector = vector
        box = Box(-np.inf, np.inf, (size,), np.float32)
        self.observation_space = Dict([(PIXELS, env.observation_space), (VECTOR, box)])

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        return {PIXELS: observation, VECTOR: np.array(self.vector(), np.float32)}


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] as [size, size, 3], by averaging over areas."""
    if image.shape[:2] == (size, size):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
