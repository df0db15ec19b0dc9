"""How observations of gymnasium envs are read: which ones are images, and which are states.

An observation is an image if

- its shape is [H, W], [H, W, P] or [P, H, W], where the P planes are channels, or images stacked by
  a wrapper; or [N, H, W, C] or [N, C, H, W], a stack of N images with 1, 3 or 4 channels;
- H and W are at least 16, and P and N are less;
- its bounds are [0, 255] or [0, 1], in any dtype.

So is an entry of a Dict; the other entries are then a vector. Smaller arrays (boards, MiniGrid's
symbols [7, 7, 3]) are states; with env.pixels=true, one of uint8 in [0, 255] that is the whole
observation is an image, and other states are rendered. Arrays of an image's size that are not
images by this rule could be either: they are refused unless env.pixels=false makes them states.

No plane is left out: [H, W, 4] can be RGBA, but as well four stacked grey images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, OneOf, Space, Text, Tuple, flatdim

from rlearly.core.errors import ConfigError
from rlearly.core.spaces import PIXELS, VECTOR
from rlearly.envs.wrappers import flat

MIN_SIDE = 16
"""Least height and width of an array that is taken for an image."""

OVERSHOOT = 0.1
"""By how much values may exceed their bounds, as a fraction of the range: resizing overshoots."""

PLANES_LAST = {"HW": (0, 1), "HWP": (0, 1, 2), "PHW": (1, 2, 0), "NHWC": (1, 2, 0, 3)}
PLANES_LAST["NCHW"] = (2, 3, 0, 1)
"""Arrangement of an image's axes -> the order that puts height and width first."""


@dataclass(frozen=True)
class ImageFormat:
    """How images of a Box become frames.

    arrangement: a key of `PLANES_LAST`. highest: 255 or 1, the value of white.
    """

    shape: tuple[int, ...]
    arrangement: str
    highest: int

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        height, width = PLANES_LAST[self.arrangement][:2]
        return self.shape[height], self.shape[width]

    @property
    def planes(self) -> int:
        """P: channels of an image, times the number of images if it is a stack."""
        return int(np.prod(self.shape)) // (self.sides[0] * self.sides[1])

    def frame(self, observation: Any) -> np.ndarray:
        """uint8 [H, W, P]: a stack's oldest image first; values in [0, 1] times 255, rounded.

        Raises:
            ValueError: the observation does not have the shape of its space, or its values are
                outside of their bounds, or not finite.
        """
        image = np.asarray(observation)
        if image.shape != self.shape:
            raise ValueError(
                f"the observed image has the shape {list(image.shape)}, and its space the shape "
                f"{list(self.shape)}"
            )
        if image.dtype != np.uint8 or self.highest != 255:
            image = self._as_uint8(image)
        return image.transpose(PLANES_LAST[self.arrangement]).reshape(*self.sides, self.planes)

    def _as_uint8(self, image: np.ndarray) -> np.ndarray:
        margin = OVERSHOOT * self.highest
        least, most = float(image.min()), float(image.max())
        if not -margin <= least <= most <= self.highest + margin:  # true also for NaN
            raise ValueError(
                f"the observed image has values from {least:g} to {most:g}, and its space bounds "
                f"of 0 and {self.highest}"
            )
        if self.highest == 255 and 0 < most <= 1 and (image % 1).any():
            raise ValueError(
                f"the observed image has values from {least:g} to {most:g}, and its space bounds "
                "of 0 and 255, with which they would all be black: if they are in [0, 1], its "
                "space should be too"
            )
        values = image.astype(np.float32) * np.float32(255 / self.highest)
        return np.rint(values).clip(0, 255).astype(np.uint8)

    def picture(self, frame: np.ndarray) -> np.ndarray:
        """A frame [H, W, P] for people, [H, W, 3]: its newest image; a grey one is repeated."""
        colours = self._colours()
        newest = frame[..., -colours:]
        return newest[..., :3] if colours >= 3 else np.repeat(newest[..., -1:], 3, axis=-1)

    def _colours(self) -> int:
        """Channels of one of the stacked images; for [H, W, P] and [P, H, W] the likely ones."""
        if self.arrangement in ("NHWC", "NCHW"):
            return self.planes // self.shape[0]
        if self.planes % 3 == 0:
            return 3
        return 4 if self.arrangement == "HWP" and self.planes == 4 else 1


@dataclass(frozen=True)
class ImageObservation:
    """An image that is all of an env's observation, or one entry of a Dict.

    key: the entry, or None. others: the Dict's other entries, or None if there are none.
    """

    space: Any
    format: ImageFormat
    key: str | None = None
    others: Dict | None = None

    @property
    def vector_size(self) -> int:
        return 0 if self.others is None else flatdim(self.others)

    def frame(self, observation: Any) -> np.ndarray:
        """uint8 [H, W, P]; raises as `ImageFormat.frame` does."""
        return self.format.frame(observation if self.key is None else observation[self.key])

    def vector(self, observation: Any) -> np.ndarray:
        """The other entries: float32 [vector_size]."""
        return flat(self.others or Dict(), observation)

    def note(self, stack: int, size: int) -> str:
        """One line for the user on what becomes of the observations.

        Args:
            stack, size: env.frame_stack and env.image_size.
        """
        planes = self.format.planes
        what = "observations" if self.key is None else f"{self.key!r}"
        line = f"images: the env's {what}, {describe(self.space)}, are frames of uint8 "
        line += f"[{planes}, {size}, {size}]"
        if self.others is not None:
            names = ", ".join(repr(key) for key in self.others.spaces)
            line += f", observed with {self.vector_size:,} numbers ({names})"
        if stack > 1 and planes not in (1, 3):
            line += f"; env.frame_stack={stack} stacks them; if they are stacks already, add "
            line += "env.frame_stack=1"
        return line


def describe(space: Space) -> str:
    """A space in words; a Box as in: float32 [64, 64, 3] in [0, 1]."""
    if not isinstance(space, Box):
        return str(space)
    low, high = float(space.low.min()), float(space.high.max())
    return f"{space.dtype} {list(space.shape)} in [{low:g}, {high:g}]"


def find_image(space: Space, name: str, *, small: bool = False) -> ImageObservation | None:
    """The image that an env observes, or None if it observes states.

    {"pixels": uint8 [H, W, 3], "vector": D numbers} is an image and a vector whatever its size.

    Args:
        name: the env's, for the message.
        small: a small array of uint8 in [0, 255] is an image too, if it is the whole observation.

    Raises:
        ConfigError: it is not clear whether they are images or states, there are several images or
            nested ones, or what is observed beside the image cannot be flattened.
    """
    parts: dict[Any, Any] = dict(space.spaces) if isinstance(space, Dict) else {"": space}
    if isinstance(space, Dict):
        small = set(parts) == {PIXELS, VECTOR}
    images = {key: found for key in parts if (found := image_format(parts[key], small=small))}
    large = {path: leaf for path, leaf in leaves(space) if _is_large(leaf)}
    for path, leaf in large.items():
        if image_format(leaf) is None:
            what = f"{path!r} of its observations" if path else "its observations"
            raise ConfigError(
                f"env={name}: {what}, {describe(leaf)}, could be images or states: expected "
                "images [H, W], [H, W, C] or [C, H, W] with bounds [0, 255] or [0, 1]; declare "
                "such a space (gymnasium.wrappers.TransformObservation), or add obs=state to "
                "learn from all the numbers."
            )
    if len(images) > 1 or set(large) - set(map(str, images)):
        names = ", ".join(map(repr, sorted({*large, *map(str, images)})))
        raise ConfigError(
            f"env={name}: expected one image in the observations, at the top of the Dict, "
            f"received {names}: keep one of them (gymnasium.wrappers.FilterObservation or "
            "TransformObservation), or add obs=state to learn from all the numbers."
        )
    for key, image in images.items():
        box = parts.pop(key)
        if not isinstance(space, Dict):
            return ImageObservation(box, image)
        others = Dict(list(parts.items()))
        refuse_unflattenable(others, name)
        return ImageObservation(box, image, key, others if parts else None)
    return None


def image_format(space: Any, *, small: bool = False) -> ImageFormat | None:
    """The format of a Box of images, by the rule at the top of this file; None for other spaces.

    Args:
        small: read arrays of uint8 in [0, 255] that are smaller too.
    """
    if not isinstance(space, Box) or not space.shape:
        return None
    highest = next(
        (top for top in (255, 1) if (space.low == 0).all() and (space.high == top).all()), None
    )
    arrangement = _arrangement(space.shape)
    if highest is None or arrangement is None:
        return None
    found = ImageFormat(space.shape, arrangement, highest)
    is_bytes = space.dtype == np.uint8 and highest == 255
    return found if min(found.sides) >= MIN_SIDE or (small and is_bytes) else None


def _arrangement(shape: tuple[int, ...]) -> str | None:
    """What the axes of an array of this shape are if it is an image; None: it cannot be one."""
    if len(shape) == 2:
        return "HW"
    if len(shape) == 3 and shape[2] < min(*shape[:2], MIN_SIDE):
        return "HWP"
    if len(shape) == 3 and shape[0] < min(*shape[1:], MIN_SIDE):
        return "PHW"
    if len(shape) == 4 and shape[0] < MIN_SIDE <= min(shape[1:3]) and shape[3] in (1, 3, 4):
        return "NHWC"
    if len(shape) == 4 and shape[0] < MIN_SIDE <= min(shape[2:]) and shape[1] in (1, 3, 4):
        return "NCHW"
    return None


def _is_large(space: Any) -> bool:
    """Whether a Box has at least two axes of an image's size."""
    return isinstance(space, Box) and sum(side >= MIN_SIDE for side in space.shape) >= 2


def leaves(space: Space, path: str = "") -> Iterator[tuple[str, Space]]:
    """The spaces in a Dict or Tuple, however nested, with their paths ("arm/joints"), or itself."""
    if isinstance(space, Dict):
        parts: Any = space.spaces.items()
    elif isinstance(space, Tuple | OneOf):
        parts = enumerate(space.spaces)
    else:
        yield path, space
        return
    for key, part in parts:
        yield from leaves(part, f"{path}/{key}" if path else str(key))


def refuse_unflattenable(space: Space, name: str) -> None:
    """Check that observations can become a vector of numbers.

    Raises:
        ConfigError: a part is text, or has no fixed size (a graph, a sequence).
    """
    for path, leaf in leaves(space):
        try:
            flattens = not isinstance(leaf, Text) and flatdim(leaf) >= 0
        except (NotImplementedError, ValueError):  # gymnasium's for spaces of no size or unknown
            flattens = False
        if not flattens:
            what = f"{path!r} of its observations" if path else "its observations"
            remedy = "FilterObservation leaves it out, " if path else ""
            raise ConfigError(
                f"env={name}: {what} cannot be flattened into a vector of numbers: expected "
                f"Box, Discrete, MultiBinary or MultiDiscrete, received {leaf}; gymnasium.wrappers."
                f"{remedy}TransformObservation makes numbers of it."
            )


def without_mission(env: gymnasium.Env) -> tuple[gymnasium.Env, str]:
    """(the env without MiniGrid's mission in its observations, text to append to its note).

    Other envs stay as they are, and the text is "".
    """
    space = env.observation_space
    parts: dict[Any, Any] = dict(space.spaces) if isinstance(space, Dict) else {}
    keep = [key for key in parts if type(parts[key]).__name__ != "MissionSpace"]
    if len(keep) == len(parts):
        return env, ""
    env = gymnasium.wrappers.FilterObservation(env, keep)
    note = "; the mission, a text, is left out: where it changes, wrap the env in minigrid's "
    return env, note + "FlatObsWrapper"


def state_note(space: Space, can_render: bool) -> str:
    """One line for the user if arrays of two or more axes are flattened into a state; else "".

    Args:
        can_render: the env renders images, so that env.pixels=true works.
    """
    arrays = [
        f"{path!r}, {describe(leaf)}" if path else describe(leaf)
        for path, leaf in leaves(space)
        if sum(side > 1 for side in leaf.shape or ()) >= 2
    ]
    if not arrays:
        return ""
    line = f"states: observed as a vector of {flatdim(space):,} numbers, flattened from "
    line += "; ".join(arrays)
    if can_render or image_format(space, small=True):
        line += "; env.pixels=true observes images instead"
    return line
