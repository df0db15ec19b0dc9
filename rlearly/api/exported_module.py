"""A policy with its preprocessing and action scaling, as one torch module for export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space
from gymnasium.spaces import Tuple as TupleSpace
from torch import Tensor, nn

from rlearly.core.errors import ConfigError
from rlearly.core.spaces import PIXELS, VECTOR
from rlearly.envs.observations import PLANES_LAST, leaves
from rlearly.envs.raw_view import RawView
from rlearly.envs.wrappers import ScaledActions, resized

MASK, FRAMES = "action_mask", "frames"
"""Names of inputs: of a mask of discrete actions, and of the newest images."""


@dataclass(frozen=True)
class Input:
    """One input of an exported policy, [N, *shape].

    path: where it is in an observation: keys of dicts and numbers of tuples.
    stacked: [N, stack, *shape], the newest images, oldest first.
    """

    name: str
    path: tuple[Any, ...]
    dtype: np.dtype
    shape: tuple[int, ...]
    stacked: bool = False


def inputs_of(view: RawView) -> list[Input]:
    """The inputs of an exported policy, in order.

    Raises:
        ConfigError: observations have parts without a fixed size.
    """
    if view.size:
        if view.image is None:
            shape: Any = view.observation.shape
            return [Input(FRAMES, (), np.dtype(np.uint8), shape, stacked=True)]
        path = () if view.image.key is None else (view.image.key,)
        space = view.image.space
        frames = Input(FRAMES, path, space.dtype, space.shape, stacked=True)
        return [frames, *_leaves(view.image.others or Dict(), ())]
    found = _leaves(view.observation, ())
    if view.mask_size:
        found.append(Input(MASK, (), np.dtype(np.int8), (view.mask_size,)))
    return found


def _leaves(space: Space, path: tuple[Any, ...]) -> list[Input]:
    if isinstance(space, Dict):
        parts: Any = space.spaces.items()
    elif isinstance(space, TupleSpace):
        parts = enumerate(space.spaces)
    else:
        if not isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete):
            raise ConfigError(
                f"export: expected observations of Box, Discrete, MultiBinary or MultiDiscrete, "
                f"received {space}."
            )
        name = "_".join(map(str, path)) or "observation"
        dtype = np.dtype(np.int64 if isinstance(space, Discrete) else space.dtype)
        return [Input(name, path, dtype, tuple(space.shape or ()))]
    return [leaf for key, part in parts for leaf in _leaves(part, (*path, key))]


class ExportedModule(nn.Module):
    """Raw observations, as many tensors as `inputs_of` lists -> the env's own actions [N, ...].

    Args:
        policy: from an agent's `policy_module`.
    """

    def __init__(self, view: RawView, policy: nn.Module):
        super().__init__()
        self.view = view
        self.policy = policy
        self.inputs = inputs_of(view)
        actions = getattr(view.to_action, "__self__", None)
        self.actions: nn.Module = (
            ScaleActions(actions)
            if isinstance(actions, ScaledActions)
            else FirstAction(int(view.action.start))  # pyright: ignore[reportAttributeAccessIssue]
        )
        self.frames = Frames(view) if view.size else None

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = list(inputs)
        if self.frames is not None:
            obs: Any = self.frames(parts[0])
            if len(parts) > 1:
                space: Any = self.view.image and self.view.image.others
                obs = {PIXELS: obs, VECTOR: flat_tensor(space, parts[1:])}
        else:
            mask = [parts.pop().float()] if self.view.mask_size else []
            obs = torch.cat([flat_tensor(self.view.observation, parts), *mask], 1)
        return self.actions(self.policy(obs))


def flat_tensor(space: Space, parts: list[Tensor]) -> Tensor:
    """The leaves of N observations, in order, as float32 [N, D]; see `envs.wrappers.flat`."""
    columns = []
    for (_, leaf), part in zip(leaves(space), parts, strict=True):
        if isinstance(leaf, Discrete):
            columns.append(F.one_hot(part.reshape(-1) - int(leaf.start), int(leaf.n)).float())
        elif isinstance(leaf, MultiDiscrete):
            starts, sizes = np.ravel(leaf.start), np.ravel(leaf.nvec)
            rows = part.reshape(part.shape[0], -1)
            columns += [
                F.one_hot(rows[:, i].long() - int(starts[i]), int(sizes[i])).float()
                for i in range(len(sizes))
            ]
        else:
            columns.append(part.reshape(part.shape[0], -1).float())
    return torch.cat(columns, 1)


class ScaleActions(nn.Module):
    """Map actions [N, A] from [-1, 1] to the env's Box, as `ScaledActions` does."""

    def __init__(self, actions: ScaledActions):
        super().__init__()
        self.low: Tensor
        self.high: Tensor
        self.span: Tensor
        for name in ("low", "high", "span"):
            self.register_buffer(name, torch.as_tensor(getattr(actions, name)))
        self.is_identity, self.is_integer = actions.is_identity, actions.is_integer
        self.shape = tuple(actions.shape)
        self.dtype = torch.as_tensor(np.zeros(0, actions.dtype)).dtype

    def forward(self, action: Tensor) -> Tensor:
        action = action.clamp(-1.0, 1.0)
        if not self.is_identity:
            unit = (action.double() + 1.0) / 2.0
            action = self.low + unit * self.span
            if self.is_integer:
                action = torch.floor(action)
            action = torch.where(unit == 1.0, self.high, torch.minimum(action, self.high))
        return action.reshape(-1, *self.shape).to(self.dtype)


class FirstAction(nn.Module):
    """Shift actions that count from 0 to the env's own, which begin at `start`."""

    def __init__(self, start: int):
        super().__init__()
        self.start = start

    def forward(self, action: Tensor) -> Tensor:
        return action + self.start


class Frames(nn.Module):
    """The newest images [N, stack, *shape] -> uint8 [N, stack * planes, size, size]."""

    def __init__(self, view: RawView):
        super().__init__()
        self.size, self.stack = view.size, view.stack
        self.format = None if view.image is None else view.image.format
        self.sides = (view.size, view.size) if self.format is None else self.format.sides
        self.rows: Tensor | None
        self.columns: Tensor | None
        for name, side in zip(("rows", "columns"), self.sides, strict=True):
            same = self.sides == (self.size, self.size)
            weights = None if same else torch.as_tensor(area_weights(side, self.size))
            self.register_buffer(name, weights)
        self.rows_first = False
        if self.rows is not None:  # Pillow's version decides which is first
            probe = np.random.default_rng(0).integers(0, 256, (*self.sides, 1), dtype=np.uint8)
            as_scaled = torch.from_numpy(resized(probe, view.size)[..., 0].copy())
            self.rows_first = not torch.equal(self._scaled(torch.tensor(probe[..., 0])), as_scaled)

    def forward(self, frames: Tensor) -> Tensor:
        count = frames.shape[0]
        images = frames.reshape(-1, *frames.shape[2:])
        images = self._planes_first(images)
        if self.rows is not None:
            images = self._scaled(images)
        return images.reshape(count, -1, self.size, self.size)

    def _scaled(self, images: Tensor) -> Tensor:
        """uint8 [..., H, W] -> [..., size, size], rounded after each of the two directions."""
        assert self.rows is not None and self.columns is not None
        pixels = images.double()
        if self.rows_first:
            pixels = _rounded(_rounded(self.rows @ pixels) @ self.columns.T)
        else:
            pixels = _rounded(self.rows @ _rounded(pixels @ self.columns.T))
        return pixels.to(torch.uint8)

    def _planes_first(self, images: Tensor) -> Tensor:
        """uint8 [N * stack, planes, H, W]."""
        if self.format is None:
            return images.permute(0, 3, 1, 2)
        if images.dtype != torch.uint8 or self.format.highest != 255:
            scaled = images.float() * (255.0 / self.format.highest)
            images = scaled.round().clamp(0, 255).to(torch.uint8)
        height, width, *planes = (axis + 1 for axis in PLANES_LAST[self.format.arrangement])
        images = images.permute(0, *planes, height, width)
        return images.reshape(images.shape[0], -1, *self.sides)


def area_weights(inputs: int, outputs: int) -> np.ndarray:
    """Weights [outputs, inputs], float64, of Pillow's BOX filter in its fixed-point arithmetic.

    An output is the sum of weights * values / 2**22, rounded half up.
    """
    scale = inputs / outputs
    support, per_input = 0.5 * max(scale, 1.0), 1.0 / max(scale, 1.0)
    weights = np.zeros((outputs, inputs))
    for out in range(outputs):
        centre = (out + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), inputs)
        inside = (np.arange(first, last) - centre + 0.5) * per_input
        chosen = ((inside > -0.5) & (inside <= 0.5)).astype(float)
        weights[out, first:last] = np.floor(0.5 + chosen * (1.0 / chosen.sum()) * 2**22)
    return weights


def _rounded(sums: Tensor) -> Tensor:
    return torch.floor(sums / 2**22 + 0.5).clamp(0, 255)
