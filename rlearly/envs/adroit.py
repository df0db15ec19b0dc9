"""Adroit's four tasks of a dexterous hand, from gymnasium-robotics, as DrM's paper has them.

Where the two differ, `env.rules=paper` follows the official code of DrM (arXiv 2310.19668;
github.com/XuGW-Kevin/DrM: adroit.py, train_adroit.py and, under rrl-dependencies, the RRL authors'
mj_envs), and `env.rules=package` leaves gymnasium-robotics as it is:

- The reward is scaled (door 1/20, hammer 1/100, pen 1/50, relocate 1/30), and its term
  0.1 * |palm - handle, hammer or ball| has a minus, where gymnasium-robotics 1.4.2 has a plus.
- The door's goal is a hinge beyond 1.4 rad, not 1.35; the pen's is its direction alone, wherever
  the pen is.
- A pen that falls below 0.075 m ends its episode, and an episode with it lasts 100 frames, not 200.

An episode has succeeded when its goal was reached in more than 25 frames (the pen's: 20).

Observed are an image by one camera and the angles of the hand's 24 joints; a step is 2 frames. The
cameras from above, of door and hammer, are those of the RRL authors' fork of mj_envs
(github.com/ShahRutav/mj_envs). They are free cameras here, so that the model stays the package's.

Deviations from the official code, the same under both rules: images are upright (theirs stay as
mujoco_py reads them, bottom row first); relocate, of which the paper has no results, is seen by
`vil_camera` alone (the official code names three cameras whose places are not public), and its
target is at a random height, as in the package (theirs: 0.25 m).
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
from rlearly.envs.gl_backend import choose_backend, require_rendering
from rlearly.envs.gymnasium_envs import RenderWrapper, registered
from rlearly.envs.wrappers import (
    ActionRepeat,
    FlatObservation,
    PixelObservation,
    PixelVectorObservation,
    ScaledActions,
    SuccessTracker,
)

HAND_JOINTS = 24


@dataclass(frozen=True)
class Frame:
    """What the paper's rules say of one simulator frame; the reward is not scaled."""

    reward: float
    reached: bool
    lost: bool = False


def _apart_m(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other))


def door(data: Any) -> Frame:
    """Undo the latch and open the door; the hinge's angle is in rad."""
    hinge = float(data.joint("door_hinge").qpos[0])
    reward = -0.1 * _apart_m(data.site("S_grasp").xpos, data.site("S_handle").xpos)
    reward -= 0.1 * (hinge - 1.57) ** 2
    reward -= 1e-5 * float(np.sum(data.qvel**2))
    reward += 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
    return Frame(reward, reached=hinge > 1.4)


def hammer(data: Any) -> Frame:
    """Take the hammer and drive the nail into the board."""
    handle, head = data.body("Object").xpos, data.site("tool").xpos
    nail = data.site("S_target").xpos
    left_m = _apart_m(nail, data.site("nail_goal").xpos)
    reward = -0.1 * _apart_m(data.site("S_grasp").xpos, handle)
    reward -= _apart_m(head, nail) + 10 * left_m
    reward -= 1e-2 * float(np.linalg.norm(data.qvel))
    reward += 2 * bool(handle[2] > 0.04 and head[2] > 0.04)
    reward += 25 * (left_m < 0.02) + 75 * (left_m < 0.01)
    return Frame(reward, reached=left_m < 0.01)


def pen(data: Any) -> Frame:
    """Turn the pen into the direction of the target's; a dropped one is lost."""
    place = data.body("Object").xpos
    away_m = _apart_m(place, data.site("eps_ball").xpos)
    likeness = float(np.dot(_direction(data, "object"), _direction(data, "target")))
    lost = bool(place[2] < 0.075)
    near = away_m < 0.075
    reward = likeness - away_m - 5 * lost
    reward += 10 * (near and likeness > 0.9) + 50 * (near and likeness > 0.95)
    return Frame(reward, reached=likeness > 0.95, lost=lost)


def _direction(data: Any, name: str) -> np.ndarray:
    """From the bottom of a pen to its top, of length 1."""
    along = data.site(f"{name}_top").xpos - data.site(f"{name}_bottom").xpos
    return along / np.linalg.norm(along)


def relocate(data: Any) -> Frame:
    """Take the ball to the target."""
    ball, palm = data.body("Object").xpos, data.site("S_grasp").xpos
    target = data.site("target").xpos
    left_m = _apart_m(ball, target)
    reward = -0.1 * _apart_m(palm, ball)
    if ball[2] > 0.04:
        reward += 1 - 0.5 * _apart_m(palm, target) - 0.5 * left_m
    reward += 10 * (left_m < 0.1) + 20 * (left_m < 0.05)
    return Frame(reward, reached=left_m < 0.1)


def _from_above(height_m: float, model: Any) -> Any:
    """A camera at (0, 0, height_m) with the Euler angles (0, 0, 3.14) rad."""
    mujoco: Any = importlib.import_module("mujoco")
    view = mujoco.MjvCamera()
    view.lookat[:] = 0.0
    view.distance = height_m
    view.elevation = -90.0
    view.azimuth = 90.0 + math.degrees(3.14)
    return view


def _of_the_model(model: Any) -> int:
    return int(model.camera("vil_camera").id)


@dataclass(frozen=True)
class Task:
    """`hand` are the first of the hand's joints in qpos and the one after its last, from the end;
    `view` is the usual camera of a model."""

    env_id: str
    rules: Callable[[Any], Frame]
    reward_scale: float
    hand: tuple[int, int]
    view: Callable[[Any], Any]
    horizon_frames: int = 200
    over_frames: int = 25


TASKS = {
    "adroit/door": Task(
        "AdroitHandDoor-v1", door, 1 / 20, (4, -2), functools.partial(_from_above, 1.5)
    ),
    "adroit/hammer": Task(
        "AdroitHandHammer-v1", hammer, 1 / 100, (2, -7), functools.partial(_from_above, 1.1)
    ),
    "adroit/pen": Task(
        "AdroitHandPen-v1",
        pen,
        1 / 50,
        (0, -6),
        _of_the_model,
        horizon_frames=100,
        over_frames=20,
    ),
    "adroit/relocate": Task("AdroitHandRelocate-v1", relocate, 1 / 30, (6, -6), _of_the_model),
}


def names() -> list[str]:
    return list(TASKS)


def config_for(name: str) -> EnvConfig | None:
    """The config of a task by its name, or None if there is no such task."""
    known = name in TASKS
    return EnvConfig(name=name, family="adroit", frame_stack=1) if known else None


class PaperRules(gymnasium.Wrapper):
    """Rewards, endings and `info["success"]` of each frame by DrM's code, not by the env's own."""

    def __init__(self, env: gymnasium.Env, rules: Callable[[Any], Frame], reward_scale: float):
        super().__init__(env)
        self.rules = rules
        self.reward_scale = reward_scale

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = self.env.step(action)
        base: Any = self.unwrapped
        frame = self.rules(base.data)
        info = {**info, "success": frame.reached}
        return obs, frame.reward * self.reward_scale, terminated or frame.lost, truncated, info


def make(config: EnvConfig, *, pixels: bool, videos: bool = False) -> gymnasium.Env:
    """A task as agents see it: [A] actions in [-1, 1]; images and joint angles, or a flat state.

    `videos`: it will be asked for pictures (videos) even if it is not observed by them.

    Raises:
        ConfigError: gymnasium-robotics is not installed or does not take these arguments, nothing
            here can draw, or fast drawing is asked for where no image is observed.
    """
    require_rendering(config, pixels=pixels, videos=videos)
    task = TASKS[config.name]
    base = _base(config, task)
    photographed = RenderWrapper(base, config.camera, fast=config.render == "fast", usual=task.view)
    env: gymnasium.Env = photographed
    if config.rules == "paper":
        env = PaperRules(env, task.rules, task.reward_scale)
    env = ActionRepeat(ScaledActions(SuccessTracker(env, task.over_frames)), config.action_repeat)
    if not pixels:
        return FlatObservation(env)
    size, data = config.image_size, base.unwrapped.data  # pyright: ignore[reportAttributeAccessIssue]
    env = PixelObservation(env, lambda: photographed.render_frame(size), config.frame_stack, size)
    return PixelVectorObservation(env, lambda: data.qpos[slice(*task.hand)], HAND_JOINTS)


def _base(config: EnvConfig, task: Task) -> gymnasium.Env:
    _register(config.name)
    kwargs = dict(config.kwargs)
    if config.rules == "paper":
        if "reward_type" in kwargs:
            raise ConfigError(
                f"env.kwargs.reward_type: the rewards of env={config.name} are the paper's; "
                "add env.rules=package, or leave it out."
            )
        kwargs = {"max_episode_steps": task.horizon_frames, **kwargs}
    return registered(replace(config, name=task.env_id, kwargs=kwargs))


def _register(name: str) -> None:
    """Have gymnasium-robotics register its envs, without the notice that it prints."""
    choose_backend()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            gymnasium.register_envs(importlib.import_module("gymnasium_robotics"))
    except ModuleNotFoundError:
        raise ConfigError(
            f"env={name}: gymnasium-robotics is not installed: pip install 'rlearly[adroit]'."
        ) from None
