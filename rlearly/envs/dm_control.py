"""dm_control behind gymnasium's interface: every suite task, and the manipulation tasks."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError
from rlearly.envs.gl_backend import choose_backend, require_rendering
from rlearly.envs.mujoco_rendering import DMControlRenderer
from rlearly.envs.wrappers import (
    ActionRepeat,
    FlatObservation,
    PixelObservation,
    ScaledActions,
    SuccessTracker,
)

ALIASES = {"cup_catch": "ball_in_cup_catch"}
QUADRUPED_CAMERA = 2
MANIPULATION_CAMERA = "front_close"
UNLIMITED_STEPS = 1000
"""Simulator steps after which an episode is truncated when the task itself sets no limit (LQR)."""


@cache
def suite_tasks() -> dict[str, tuple[str, str]]:
    """domain_task -> (domain, task), for the whole suite."""
    choose_backend()
    from dm_control import suite

    names = {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
    return names | {alias: names[name] for alias, name in ALIASES.items()}


@cache
def manipulation_tasks() -> dict[str, set[str]]:
    """Task -> its variants ("vision", "features")."""
    choose_backend()
    from dm_control import manipulation

    tasks: dict[str, set[str]] = {}
    for name in manipulation.ALL:
        task, variant = name.rsplit("_", 1)
        tasks.setdefault(task, set()).add(variant)
    return tasks


def names() -> list[str]:
    return [*suite_tasks(), *manipulation_tasks()]


def config_for(name: str) -> EnvConfig | None:
    """The config of a task by its name, or None if there is no such task."""
    known = name in suite_tasks() or name in manipulation_tasks()
    return EnvConfig(name=name, family="dm_control") if known else None


class DMControlEnv(gymnasium.Env):
    """A dm_control task: dict observation in float64, native action bounds, pictures by `render`.

    `reset(seed)` alone decides the episode: the task's random state is replaced. An episode ends
    terminated when the last time step's discount is 0 and truncated otherwise. `model_seed` is
    for what a task draws when it is built (LQR's masses and springs).

    A manipulation task is its `_vision` variant if it is seen in pixels and its `_features` variant
    if not: two worlds (the first shows what to build), whose states are not each other's.
    `info["success"]` says of each frame of a manipulation task whether its reward is 1, which these
    tasks give at the goal alone (and, in placing, with the hand withdrawn). dm_control has no other
    flag, and DrQ-v2's paper no other measure than the reward.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, config: EnvConfig, *, pixels: bool, model_seed: int):
        self.task_name = config.name
        self._truncate_at: int | None = None
        if config.name in suite_tasks():
            from dm_control import suite

            domain, task = suite_tasks()[config.name]
            self._control: Any = suite.load(domain, task, task_kwargs={"random": model_seed})
            usual = QUADRUPED_CAMERA if domain == "quadruped" else 0
            self.camera: int | str = usual if config.camera is None else config.camera
            self._composed = False
            if self._control._step_limit == float("inf"):
                self._truncate_at = UNLIMITED_STEPS
        else:
            self.task_name += "_vision" if pixels else "_features"
            self._control = self._load_manipulation(config.name, pixels, model_seed)
            self.camera = MANIPULATION_CAMERA if config.camera is None else config.camera
            self._composed = True
            self._truncate_at = _own_clock(self._control)
        self._check_camera()
        self._cached_camera = DMControlRenderer(
            self.camera, fast=config.render == "fast", keep_cameras=not self._composed
        )
        self._steps = 0
        specs = self._control.observation_spec()
        self.observation_space = gymnasium.spaces.Dict(
            {key: Box(-np.inf, np.inf, spec.shape or (1,)) for key, spec in specs.items()}
        )
        action = self._control.action_spec()
        shape = action.shape
        self.action_space = Box(
            np.broadcast_to(action.minimum, shape).astype(np.float64),
            np.broadcast_to(action.maximum, shape).astype(np.float64),
            dtype=np.float64,
        )

    @staticmethod
    def _load_manipulation(task: str, pixels: bool, model_seed: int) -> Any:
        from dm_control import manipulation

        variant = "vision" if pixels else "features"
        if variant not in manipulation_tasks()[task]:
            raise ConfigError(
                f"env={task}: dm_control has no {variant} variant of this task; "
                f"add env.pixels={'false' if pixels else 'true'}."
            )
        loaded = manipulation.load(f"{task}_{variant}", seed=model_seed)
        for observable in (*loaded.task.observables.values(),):
            if type(observable).__name__ == "MJCFCamera":
                observable.enabled = False  # pictures are taken once a step, by `render`
        loaded.reset()
        return loaded

    def _check_camera(self) -> None:
        cameras = self._control.physics.model.ncam
        if isinstance(self.camera, int) and not -1 <= self.camera < cameras:
            raise ConfigError(
                f"env.camera: expected a number from -1 (free camera) to {cameras - 1} for "
                f"{self.task_name}, received {self.camera}."
            )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            random = np.random.RandomState(seed)
            if self._composed:
                self._control._random_state = random
            else:
                self._control.task._random = random
        self._steps = 0
        return self._observation(self._control.reset()), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        time_step = self._control.step(action)
        self._steps += 1
        terminated = time_step.last() and time_step.discount == 0.0
        truncated = (time_step.last() and not terminated) or self._steps == self._truncate_at
        reward = float(time_step.reward or 0.0)
        info = {"success": reward == 1.0} if self._composed else {}
        return self._observation(time_step), reward, terminated, truncated, info

    def _observation(self, time_step: Any) -> dict[str, np.ndarray]:
        return {key: np.atleast_1d(value) for key, value in time_step.observation.items()}

    def render_frame(self, size: int) -> np.ndarray:
        """uint8 [size, size, 3]; if exact, byte for byte what physics.render gives for this
        state."""
        return self._cached_camera.take(self._control.physics, size)

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.render_frame(256)

    def close(self) -> None:
        self._cached_camera.cameras = {}
        if not self._composed:  # its own close() leaves the GL context to the interpreter's end
            self._control.physics.free()
        self._control.close()


def _own_clock(control: Any) -> int:
    """The steps of a composed env's episode, which it counts no longer.

    Its clock is the world's time; an episode that starts at a snapshot has its full length ahead.
    """
    steps = round(control._time_limit / control.control_timestep())
    control._time_limit = float("inf")
    return steps


def make(
    config: EnvConfig, *, pixels: bool, model_seed: int, videos: bool = False
) -> gymnasium.Env:
    """A dm_control task as agents see it: [A] actions in [-1, 1], pixels or a flat state.

    `videos`: it will be asked for pictures (videos) even if it is not observed by them.

    Raises:
        ConfigError: there is no such variant or camera, nothing here can draw, or fast drawing is
            asked for where no image is observed.
    """
    require_rendering(config, pixels=pixels, videos=videos)
    base = DMControlEnv(config, pixels=pixels, model_seed=model_seed)
    frames = SuccessTracker(base) if config.name in manipulation_tasks() else base
    env = ActionRepeat(ScaledActions(frames), config.action_repeat)
    if not pixels:
        return FlatObservation(env)
    size = config.image_size
    return PixelObservation(env, lambda: base.render_frame(size), config.frame_stack, size)
