"""Wrappers that give agents scaled or zero-based discrete actions, action repeat, stacked images
and flat states."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space, flatdim, flatten

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError, UserCodeFailed
from rlearly.core.spaces import PIXELS, VECTOR, clip_actions
from rlearly.envs.guard import as_float

UNBOUNDED = 1e9
"""An action bound this large counts as no bound (dm_control's LQR declares 1e10)."""


def agent_view(
    env: gymnasium.Env,
    config: EnvConfig,
    render_frame: Callable[[int], np.ndarray] | None,
    vector: Callable[[], np.ndarray] | None = None,
    vector_size: int = 0,
    *,
    planes: int = 3,
    note: str = "",
) -> gymnasium.Env:
    """Wrap an env as agents see it: repeated actions, in [-1, 1] or discrete; images or a state.

    Args:
        render_frame: size -> uint8 [size, size, planes]; None: observe the flat state.
        vector: returns float [vector_size], observed in addition to the images.
        planes: of a frame; 3 are colours.
        note: a line for the user on what the observations are made from (see `notes`).
    """
    env = ActionRepeat(agent_actions(env), config.action_repeat)
    if render_frame is None:
        return FlatObservation(env, note)
    size = config.image_size
    env = PixelObservation(
        env, lambda: render_frame(size), config.frame_stack, size, planes=planes, note=note
    )
    return env if vector is None else PixelVectorObservation(env, vector, vector_size)


def notes(env: gymnasium.Env) -> list[str]:
    """Lines for the user on how an env from `agent_view` is observed and acted in."""
    found: list[str] = []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, ScaledActions | FlatObservation | MaskedObservation | PixelObservation):
            found += [env.note] if env.note else []
        env = env.env
    return found


def find_wrapper(env: gymnasium.Env, kind: type | UnionType) -> Any:
    """The outermost wrapper of a class, or of one of several (A | B); None if there is none."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, kind):
            return env
        env = env.env
    return None


def name_of(env: gymnasium.Env) -> str:
    """The env's id if it is registered, as it is given with env=NAME; otherwise its description."""
    return env.spec.id if env.spec else str(env)


def supported_actions(env: gymnasium.Env) -> Box | Discrete:
    """The env's action space.

    Raises:
        ConfigError: it is neither a Box nor Discrete.
    """
    space = env.action_space
    if isinstance(space, Box | Discrete):
        return space
    raise ConfigError(
        f"env={name_of(env)}: expected a Box or Discrete action space, received {space}: map "
        "it to Discrete, one number per combination, with gymnasium.wrappers.TransformAction."
    )


def agent_actions(env: gymnasium.Env) -> gymnasium.Env:
    """The env with actions as agents give them; raises as `supported_actions` does."""
    if isinstance(supported_actions(env), Discrete):
        return ZeroBasedActions(env)
    return ScaledActions(env)


class ZeroBasedActions(gymnasium.ActionWrapper):
    """Discrete actions as int64 indices from 0, whatever the env's own first number is."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        space: Any = env.action_space
        self.start = space.start
        self.action_space = Discrete(space.n)

    def action(self, action: np.int64) -> np.int64:
        return self.start + action


class ScaledActions(gymnasium.ActionWrapper):
    """Actions in [-1, 1] of shape [A], mapped onto the env's own Box, as members of it.

    Numbers of floating point are mapped linearly: -1 and 1 give exactly the bounds. Of integers,
    each value gets an equal part of [-1, 1], so that a uniform action draws all of them equally
    often. A dimension without bounds gets values from -1 to 1 (of integers -1, 0 and 1) and no
    others; `note` then says so.

    Raises:
        ConfigError: a dimension has only one bound.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        space: Any = env.action_space
        low, high = (np.ravel(bound).astype(np.float64) for bound in (space.low, space.high))
        no_low, no_high = low <= -UNBOUNDED, high >= UNBOUNDED
        single = np.flatnonzero(no_low != no_high)
        if len(single):
            raise ConfigError(
                f"env={name_of(env)}: expected actions with two bounds or none, received "
                f"[{low[single[0]]:g}, {high[single[0]]:g}] in {_dimensions(single)}, and there is "
                f"no range to scale to ({UNBOUNDED:g} or more counts as no bound): declare one, in "
                "the env or with gymnasium.wrappers.TransformAction."
            )
        free = no_low & no_high
        self.low, self.high = np.where(free, -1.0, low), np.where(free, 1.0, high)
        self.is_integer = space.dtype.kind in "iub"
        self.span = self.high - self.low + self.is_integer
        is_unit = bool((self.low == -1.0).all() and (self.high == 1.0).all())
        self.is_identity = is_unit and not self.is_integer
        self.note = _free_note(free, self.is_integer)
        self.shape = space.shape
        self.dtype = space.dtype
        self.action_space = Box(-1.0, 1.0, low.shape, np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        action = clip_actions(action)
        if not self.is_identity:
            unit = (action.astype(np.float64) + 1.0) / 2.0
            action = self.low + unit * self.span
            if self.is_integer:
                action = np.floor(action)
            # `low + span` can miss `high` by rounding
            action = np.where(unit == 1.0, self.high, np.minimum(action, self.high))
        return action.reshape(self.shape).astype(self.dtype, copy=False)


def _free_note(free: np.ndarray, is_integer: bool) -> str:
    if not free.any():
        return ""
    values = "-1, 0 or 1" if is_integer else "from -1 to 1"
    return (
        f"actions: the env declares no bounds in {_dimensions(np.flatnonzero(free))}; all values "
        f"there will be {values}: for others, declare their range, in the env or with "
        "gymnasium.wrappers.TransformAction"
    )


def _dimensions(which: np.ndarray) -> str:
    """dimension 3; dimensions 0, 1, 2 and 5 others."""
    more = f" and {len(which) - 3} others" if len(which) > 3 else ""
    return f"dimension{'s' * (len(which) > 1)} {', '.join(map(str, which[:3]))}{more}"


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

    def __init__(self, env: gymnasium.Env, note: str = ""):
        super().__init__(env)
        self.note = note
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


class MaskedObservation(gymnasium.Wrapper):
    """A flat state [D] and the mask of the allowed discrete actions after it: float32 [D + n].

    The mask is `info["action_mask"]`, n numbers of which 1 allows an action and 0 forbids it, as in
    gymnasium's Taxi. In the observation it is stored, saved and evaluated with the state that it
    belongs to. An episode's last step may have none, or one that forbids everything: no action
    follows, and then all are allowed.

    Raises:
        UserCodeFailed: the mask is missing, has another shape or other numbers, or forbids all.
    """

    note = "actions: info['action_mask'] says which ones are allowed; no others will be taken"

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        space: Any = env.observation_space
        actions: Any = env.action_space
        self.shape = (int(actions.n),)
        self.observation_space = Box(-np.inf, np.inf, (space.shape[0] + actions.n,), np.float32)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return self._with_mask(obs, info, "reset()"), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        over = terminated or truncated
        return self._with_mask(obs, info, "step(action)", over), reward, terminated, truncated, info

    def _with_mask(
        self, obs: np.ndarray, info: dict[str, Any], call: str, over: bool = False
    ) -> np.ndarray:
        return state_with_mask(obs, info, self.shape, name_of(self.env), call, over=over)


def state_with_mask(
    obs: np.ndarray,
    info: Mapping[str, Any],
    shape: tuple[int, ...],
    name: str,
    call: str,
    *,
    over: bool,
) -> np.ndarray:
    """A state [D] with the mask in its info after it; see `MaskedObservation`.

    Args:
        shape: of the mask.
        name: of the env, for messages, as is `call`.
        over: the episode has ended.
    """

    def failed(did: str) -> UserCodeFailed:
        return UserCodeFailed(
            f"env={name}: info['action_mask']: {call} {did}",
            remedy=f"expected {shape[0]} numbers, 1 for each action that is allowed and 0 for "
            "the others, after every reset and every step but an episode's last",
        )

    mask = info.get("action_mask")
    if mask is None:
        if not over:
            raise failed("returned no mask, though earlier calls did")
        mask = np.ones(shape)
    mask = np.asarray(mask)
    if mask.shape != shape or not ((mask == 0) | (mask == 1)).all():
        other = mask.shape != shape
        what = f"the shape {list(mask.shape)}" if other else "numbers other than 0 and 1"
        raise failed(f"returned a mask with {what}")
    if not mask.any():
        if not over:
            raise failed("returned a mask that forbids every action")
        mask = np.ones(shape)
    return np.concatenate([obs, mask], dtype=np.float32)


def masks_actions(env: gymnasium.Env) -> bool:
    """Whether the env's observations end with a mask of the allowed actions."""
    return find_wrapper(env, MaskedObservation) is not None


class PixelObservation(gymnasium.Wrapper):
    """uint8 [stack * planes, size, size]: the last `stack` frames on the first axis, oldest first.

    A reset fills the stack with the first frame, as DrQ-v2 does. `camera` returns
    uint8 [size, size, planes] and is called once per step.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        camera: Callable[[], np.ndarray],
        stack: int,
        size: int,
        *,
        planes: int = 3,
        note: str = "",
    ):
        super().__init__(env)
        self.camera = camera
        self.stack = stack
        self.note = note
        self.images: deque[np.ndarray] = deque(maxlen=stack)
        self.observation_space = Box(0, 255, (planes * stack, size, size), np.uint8)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = self.env.reset(**kwargs)
        self.images.extend([self._image()] * self.stack)
        return np.concatenate(self.images), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = self.env.step(action)
        self.images.append(self._image())
        return np.concatenate(self.images), as_float(reward), terminated, truncated, info

    def _image(self) -> np.ndarray:
        return np.array(self.camera().transpose(2, 0, 1), order="C")  # the env may reuse its own


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
    """uint8 [H, W, P] as [size, size, P], by averaging over areas."""
    if image.shape[:2] == (size, size):
        return image
    from PIL import Image

    def resize(planes: np.ndarray) -> np.ndarray:
        area = Image.Resampling.BOX
        return np.asarray(Image.fromarray(planes).resize((size, size), area))

    if image.shape[2] == 3:
        return resize(np.ascontiguousarray(image))
    return np.stack([resize(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, 2, 0)], 2)
