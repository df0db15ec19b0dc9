"""Adroit's four dexterous hand tasks from gymnasium-robotics, with the rules of DrM's paper.

`env.rules=paper` follows the official code of DrM (arXiv 2310.19668; github.com/XuGW-Kevin/DrM:
adroit.py, train_adroit.py and, under rrl-dependencies, the RRL authors' mj_envs).
`env.rules=package` leaves gymnasium-robotics as it is. They differ in these points; the paper's:

- The reward is scaled (door 1/20, hammer 1/100, pen 1/50, relocate 1/30). Its term
  0.1 * |palm - handle, hammer or ball| is subtracted; gymnasium-robotics 1.4.2 adds it.
- The door's goal is a hinge beyond 1.4 rad, not 1.35. The pen's goal is its direction alone,
  wherever the pen is.
- A pen that falls below 0.075 m ends its episode. A pen episode lasts 100 frames, not 200.

An episode succeeds once its goal has been reached in more than 25 frames (pen: 20).

The observation is one camera's image and the angles of the hand's 24 joints; a step is 2 frames.
Door and hammer are seen from above, by the cameras of the RRL authors' fork of mj_envs
(github.com/ShahRutav/mj_envs). They are free cameras here, so the package's model is unchanged.

Deviations from the official code, under both rules: images are upright (theirs stay as mujoco_py
reads them, bottom row first). Relocate, for which the paper has no results, is seen by `vil_camera`
alone (the official code names three cameras whose positions are not public), and its target is at a
random height, as in the package (theirs: 0.25 m).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError
from rlearly.envs.gl_backend import check_rendering, import_simulator
from rlearly.envs.gymnasium_envs import RenderWrapper, make_registered
from rlearly.envs.wrappers import SuccessTracker, agent_view

HAND_JOINTS = 24


@dataclass(frozen=True)
class FrameOutcome:
    """The paper's reward (unscaled), goal and failure for one simulator frame."""

    reward: float
    reached: bool
    lost: bool = False


def _distance_m(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other))


def door(data: Any) -> FrameOutcome:
    """Undo the latch and open the door. The hinge's angle is in rad."""
    hinge = float(data.joint("door_hinge").qpos[0])
    reward = -0.1 * _distance_m(data.site("S_grasp").xpos, data.site("S_handle").xpos)
    reward -= 0.1 * (hinge - 1.57) ** 2
    reward -= 1e-5 * float(np.sum(data.qvel**2))
    reward += 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
    return FrameOutcome(reward, reached=hinge > 1.4)


def hammer(data: Any) -> FrameOutcome:
    """Take the hammer and drive the nail into the board."""
    handle, head = data.body("Object").xpos, data.site("tool").xpos
    nail = data.site("S_target").xpos
    remaining_m = _distance_m(nail, data.site("nail_goal").xpos)
    reward = -0.1 * _distance_m(data.site("S_grasp").xpos, handle)
    reward -= _distance_m(head, nail) + 10 * remaining_m
    reward -= 1e-2 * float(np.linalg.norm(data.qvel))
    reward += 2 * bool(handle[2] > 0.04 and head[2] > 0.04)
    reward += 25 * (remaining_m < 0.02) + 75 * (remaining_m < 0.01)
    return FrameOutcome(reward, reached=remaining_m < 0.01)


def pen(data: Any) -> FrameOutcome:
    """Turn the pen to point like the target pen. A dropped pen is lost."""
    position = data.body("Object").xpos
    offset_m = _distance_m(position, data.site("eps_ball").xpos)
    alignment = float(np.dot(_direction(data, "object"), _direction(data, "target")))
    lost = bool(position[2] < 0.075)
    near = offset_m < 0.075
    reward = alignment - offset_m - 5 * lost
    reward += 10 * (near and alignment > 0.9) + 50 * (near and alignment > 0.95)
    return FrameOutcome(reward, reached=alignment > 0.95, lost=lost)


def _direction(data: Any, name: str) -> np.ndarray:
    """Unit vector from the bottom of a pen to its top."""
    along = data.site(f"{name}_top").xpos - data.site(f"{name}_bottom").xpos
    return along / np.linalg.norm(along)


def relocate(data: Any) -> FrameOutcome:
    """Carry the ball to the target."""
    ball, palm = data.body("Object").xpos, data.site("S_grasp").xpos
    target = data.site("target").xpos
    remaining_m = _distance_m(ball, target)
    reward = -0.1 * _distance_m(palm, ball)
    if ball[2] > 0.04:
        reward += 1 - 0.5 * _distance_m(palm, target) - 0.5 * remaining_m
    reward += 10 * (remaining_m < 0.1) + 20 * (remaining_m < 0.05)
    return FrameOutcome(reward, reached=remaining_m < 0.1)


def _from_above(height_m: float, model: Any) -> Any:
    """A camera at (0, 0, height_m) with the Euler angles (0, 0, 3.14) rad."""
    mujoco: Any = importlib.import_module("mujoco")
    view = mujoco.MjvCamera()
    view.lookat[:] = 0.0
    view.distance = height_m
    view.elevation = -90.0
    view.azimuth = 90.0 + math.degrees(3.14)
    return view


def _model_camera(model: Any) -> int:
    return int(model.camera("vil_camera").id)


@dataclass(frozen=True)
class Task:
    """`hand`: slice of qpos that holds the hand's joints; `camera`: the default one of a model."""

    env_id: str
    rules: Callable[[Any], FrameOutcome]
    reward_scale: float
    hand: slice
    camera: Callable[[Any], Any]
    horizon_frames: int = 200
    over_frames: int = 25


_DOOR_CAMERA = functools.partial(_from_above, 1.5)
_HAMMER_CAMERA = functools.partial(_from_above, 1.1)
TASKS = {
    "adroit/door": Task("AdroitHandDoor-v1", door, 1 / 20, slice(4, -2), _DOOR_CAMERA),
    "adroit/hammer": Task("AdroitHandHammer-v1", hammer, 1 / 100, slice(2, -7), _HAMMER_CAMERA),
    "adroit/pen": Task("AdroitHandPen-v1", pen, 1 / 50, slice(0, -6), _model_camera, 100, 20),
    "adroit/relocate": Task("AdroitHandRelocate-v1", relocate, 1 / 30, slice(6, -6), _model_camera),
}


def names() -> list[str]:
    return list(TASKS)


def config_for(name: str) -> EnvConfig | None:
    """The config of a task by its name, or None if there is no such task."""
    known = name in TASKS
    return EnvConfig(name=name, family="adroit", frame_stack=1) if known else None


class PaperRules(gymnasium.Wrapper):
    """Replaces the env's rewards, endings and `info["success"]` with those of DrM's code."""

    def __init__(
        self, env: gymnasium.Env, rules: Callable[[Any], FrameOutcome], reward_scale: float
    ):
        super().__init__(env)
        self.rules = rules
        self.reward_scale = reward_scale

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = self.env.step(action)
        base: Any = self.unwrapped
        frame = self.rules(base.data)
        info = {**info, "success": frame.reached}
        return obs, frame.reward * self.reward_scale, terminated or frame.lost, truncated, info


def make(
    config: EnvConfig, *, pixels: bool | None, model_seed: int = 0, videos: bool = False
) -> gymnasium.Env:
    """A task, from images and joint angles or from a flat state; see `rlearly.envs.make`.

    Raises:
        ConfigError: gymnasium-robotics is not installed or refuses these arguments, it cannot be
            rendered here, or env.render=fast without image observations.
    """
    pixels = pixels is not False
    check_rendering(config, pixels=pixels, videos=videos)
    import_simulator("mujoco")
    task = TASKS[config.name]
    base = _base(config, task)
    rendered = RenderWrapper(
        base, config.camera, fast=config.render == "fast", default_camera=task.camera
    )
    env: gymnasium.Env = rendered
    if config.rules == "paper":
        env = PaperRules(env, task.rules, task.reward_scale)
    env = SuccessTracker(env, task.over_frames)
    data: Any = base.unwrapped.data  # pyright: ignore[reportAttributeAccessIssue]
    return agent_view(
        env,
        config,
        rendered.render_frame if pixels else None,
        vector=lambda: data.qpos[task.hand],
        vector_size=HAND_JOINTS,
    )


def _base(config: EnvConfig, task: Task) -> gymnasium.Env:
    """gymnasium-robotics' env, registered without the notice that the package prints."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            gymnasium.register_envs(importlib.import_module("gymnasium_robotics"))
    except ModuleNotFoundError:
        raise ConfigError(
            f"env={config.name}: gymnasium-robotics is not installed: pip install "
            "'rlearly[adroit]'."
        ) from None
    kwargs = dict(config.kwargs)
    if config.rules == "paper":
        if "reward_type" in kwargs:
            raise ConfigError(
                f"env.kwargs.reward_type: the rewards of env={config.name} are the paper's; "
                "add env.rules=package, or leave it out."
            )
        if config.max_episode_steps is None:
            kwargs = {"max_episode_steps": task.horizon_frames, **kwargs}
    return make_registered(replace(config, name=task.env_id, kwargs=kwargs))
