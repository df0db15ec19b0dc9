"""Conversion between an env's own observations and actions and those of an agent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space, Tuple

from rlearly.core.errors import ConfigError
from rlearly.core.spaces import PIXELS, VECTOR, stack_observations
from rlearly.envs.gymnasium_envs import RenderWrapper
from rlearly.envs.observations import ImageObservation, describe
from rlearly.envs.wrappers import (
    ActionRepeat,
    FlatObservation,
    MaskedObservation,
    PixelObservation,
    ScaledActions,
    ZeroBasedActions,
    find_wrapper,
    flat,
    resized,
)


@dataclass(frozen=True)
class RawView:
    """How observations of one env become an agent's, and an agent's actions the env's.

    observation: the env's own space. Where rlearly renders the images, one frame, uint8
        [size, size, planes].
    action: the env's own space.
    to_action: an agent's action [A], or number from 0, -> a member of `action`.
    image: which part of an observation is the image; None: all of it is, or there are no images.
    size: height and width of an agent's images; 0: it sees states.
    stack: number of frames in an agent's observation.
    mask_size: size of the action mask at the end of an agent's state; 0: there is no mask.
    """

    observation: Space
    action: Space
    to_action: Callable[[np.ndarray], Any]
    image: ImageObservation | None = None
    size: int = 0
    stack: int = 1
    mask_size: int = 0

    @staticmethod
    def of(env: gymnasium.Env) -> RawView:
        """The view of an env from `rlearly.envs.make`."""
        actions: Any = find_wrapper(env, ScaledActions | ZeroBasedActions)
        pixels, states = find_wrapper(env, PixelObservation), find_wrapper(env, FlatObservation)
        own = actions.env.action_space
        if pixels is None:
            masked = find_wrapper(env, MaskedObservation)
            size = 0 if masked is None else masked.shape[0]
            return RawView(states.original, own, actions.action, mask_size=size)
        size = pixels.observation_space.shape[-1]
        renderer = find_wrapper(env, RenderWrapper)
        image = None if renderer is None else renderer.image
        if renderer is not None and image is not None:
            space = renderer.env.observation_space
        else:
            planes = pixels.observation_space.shape[0] // pixels.stack
            space = Box(0, 255, (size, size, planes), np.uint8)
        return RawView(space, own, actions.action, image, size, pixels.stack)

    def is_batch(self, observation: Any) -> bool:
        """Whether there are several observations, along a first axis.

        Raises:
            ConfigError: they are neither one nor several observations of this env.
        """
        try:
            extra = self._extra_axes(observation, self.observation)
        except ValueError:  # numpy's, of parts of several shapes
            extra = None
        if extra not in (0, 1):
            raise ConfigError(
                f"observation: expected one observation of the env, {describe(self.observation)}, "
                f"or several of them along a first axis, received {_shape_of(observation)}."
            )
        return extra == 1

    def _extra_axes(self, observation: Any, space: Space) -> int | None:
        """How many axes an observation has beyond its space's; None: it does not fit."""
        if isinstance(space, Dict):
            if not isinstance(observation, Mapping) or not set(space.spaces) <= set(observation):
                return None
            parts = [(observation[key], part) for key, part in space.spaces.items()]
        elif isinstance(space, Tuple):
            if not isinstance(observation, tuple) or len(observation) != len(space.spaces):
                return None
            parts = [*zip(observation, space.spaces, strict=True)]
        else:
            shape, expected = np.shape(observation), space.shape or ()
            if shape[:1] == (0,):
                return None
            extra = len(shape) - len(expected)
            inner = shape[extra:]
            if self.size and self.image is None:  # frames of any size are scaled
                inner, expected = inner[2:], expected[2:]
            return extra if extra >= 0 and inner == expected else None
        found = {self._extra_axes(one, part) for one, part in parts}
        return found.pop() if len(found) == 1 else None

    def state(self, observation: Any, mask: Any = None) -> np.ndarray:
        """An observation as an agent's state, float32 [D]."""
        state = flat(self.observation, observation)
        if not self.mask_size:
            return state
        if np.shape(mask) != (self.mask_size,):
            raise ConfigError(
                f"action_mask: expected info['action_mask'], {self.mask_size} numbers, received "
                f"{'nothing' if mask is None else _shape_of(mask)}: this agent learned with it."
            )
        return np.concatenate([state, mask], dtype=np.float32)

    def frame(self, observation: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """(uint8 [planes, size, size], float32 [D] of what is observed beside the image, or None).

        Raises:
            ConfigError: the values do not fit the env's space.
        """
        if self.image is None:
            pixels, vector = np.asarray(observation), None
            if pixels.dtype != np.uint8:
                raise ConfigError(
                    f"observation: expected an image of uint8, received {_shape_of(observation)}."
                )
        else:
            try:
                pixels = self.image.frame(observation)
            except ValueError as error:
                raise ConfigError(f"observation: {error}.") from None
            has_vector = self.image.vector_size
            vector = np.array(self.image.vector(observation), np.float32) if has_vector else None
        scaled = resized(pixels, self.size)
        return np.array(scaled.transpose(2, 0, 1), order="C"), vector


class FrameStacks:
    """The newest frames of several episodes that are played side by side."""

    def __init__(self, view: RawView):
        self.view = view
        self.stacks: list[deque[np.ndarray]] = []

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Begin new episodes: in all rows, or where the mask [N] is true."""
        for row, stack in enumerate(self.stacks):
            if rows is None or rows[row]:
                stack.clear()

    def add(self, observations: list[Any]) -> Any:
        """N observations as an agent's: uint8 [N, stack * planes, size, size], or a dict with it.

        The first frame of an episode fills its stack, as in training.
        """
        if len(self.stacks) != len(observations):
            self.stacks = [deque(maxlen=self.view.stack) for _ in observations]
        seen = []
        for observation, stack in zip(observations, self.stacks, strict=True):
            frame, vector = self.view.frame(observation)
            stack.extend([frame] * (1 if stack else self.view.stack))
            pixels = np.concatenate(stack)
            seen.append(pixels if vector is None else {PIXELS: pixels, VECTOR: vector})
        return stack_observations(seen)


def rows_of(space: Space, observations: Any) -> list[Any]:
    """Several observations, along a first axis of every part, as a list."""
    if isinstance(space, Dict):
        parts = {key: rows_of(part, observations[key]) for key, part in space.spaces.items()}
        count = len(next(iter(parts.values())))
        return [{key: parts[key][row] for key in parts} for row in range(count)]
    if isinstance(space, Tuple):
        each = [rows_of(part, one) for part, one in zip(space.spaces, observations, strict=True)]
        return [*zip(*each, strict=True)]
    return [*observations]


def _shape_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(f'{k!r}: {_shape_of(v)}' for k, v in value.items())}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} parts (if it is (obs, info), pass obs only)"
    try:
        array = np.asarray(value)
    except ValueError:
        return f"a {type(value).__name__} of parts of several shapes"
    return f"{array.dtype} {list(array.shape)}"


class RawEnv(gymnasium.Env):
    """An env with its own observations and actions, as in `RawView`, and with action repeat.

    Where rlearly renders the images, an observation is a frame.

    Args:
        env: from `rlearly.envs.make`; afterwards, use it only through this one.
    """

    def __init__(self, env: gymnasium.Env):
        self.view = RawView.of(env)
        actions: Any = find_wrapper(env, ScaledActions | ZeroBasedActions)
        pixels: Any = find_wrapper(env, PixelObservation)
        self.env = ActionRepeat(actions.env, find_wrapper(env, ActionRepeat).times)
        self.outer = env
        self.camera = pixels.camera if pixels is not None and self.view.image is None else None
        self.observation_space = self.view.observation
        self.action_space = self.view.action
        self.render_mode = self.env.render_mode
        self.metadata = self.env.metadata
        self.spec = self.env.spec

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._seen(obs), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(obs), reward, terminated, truncated, info

    def _seen(self, obs: Any) -> Any:
        return obs if self.camera is None else np.array(self.camera())

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.outer.close()
