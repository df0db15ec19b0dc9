"""dm_control behind gymnasium's interface: every suite task, and the manipulation tasks."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError
from rlearly.envs.gl_backend import check_rendering, import_simulator
from rlearly.envs.mujoco_rendering import DMControlRenderer
from rlearly.envs.wrappers import SuccessTracker, agent_view

ALIASES = {"cup_catch": "ball_in_cup_catch"}
QUADRUPED_CAMERA = 2
MANIPULATION_CAMERA = "front_close"
UNLIMITED_STEPS = 1000
"""Steps after which an episode is truncated if the task itself sets no limit (LQR)."""


_SUITE = """
acrobot: swingup swingup_sparse
ball_in_cup: catch
cartpole: balance balance_sparse swingup swingup_sparse two_poles three_poles
cheetah: run
dog: stand walk trot run fetch
finger: spin turn_easy turn_hard
fish: upright swim
hopper: stand hop
humanoid: stand walk run run_pure_state
humanoid_CMU: stand walk run
lqr: lqr_2_1 lqr_6_2
manipulator: bring_ball bring_peg insert_ball insert_peg
pendulum: swingup
point_mass: easy hard
quadruped: walk run escape fetch
reacher: easy hard
stacker: stack_2 stack_4
swimmer: swimmer6 swimmer15
walker: stand walk run
"""

_MANIPULATION = """
stack_2_bricks stack_2_bricks_moveable_base stack_3_bricks stack_3_bricks_random_order
stack_2_of_3_bricks_random_order reassemble_3_bricks_fixed_order reassemble_5_bricks_random_order
lift_brick lift_large_box place_brick place_cradle reach_duplo reach_site
"""
"""dm_control's tasks, listed here because importing dm_control opens GL."""

FEATURES_ONLY = ("stack_3_bricks_random_order",)
"""Manipulation tasks without a vision variant."""


@cache
def suite_tasks() -> dict[str, tuple[str, str]]:
    """domain_task -> (domain, task), for the whole suite."""
    lines = [line.partition(": ") for line in _SUITE.strip().splitlines()]
    names = {
        f"{domain}_{task}": (domain, task) for domain, _, tasks in lines for task in tasks.split()
    }
    return names | {alias: names[name] for alias, name in ALIASES.items()}


@cache
def manipulation_tasks() -> dict[str, set[str]]:
    """Manipulation task -> its variants ("vision", "features")."""
    return {
        task: {"features"} if task in FEATURES_ONLY else {"features", "vision"}
        for task in _MANIPULATION.split()
    }


def names() -> list[str]:
    return [*suite_tasks(), *manipulation_tasks()]


def config_for(name: str) -> EnvConfig | None:
    """The config of a task by its name, or None if there is no such task."""
    known = name in suite_tasks() or name in manipulation_tasks()
    return EnvConfig(name=name, family="dm_control") if known else None


class DMControlEnv(gymnasium.Env):
    """A dm_control task: dict observations in float64, native action bounds.

    `reset(seed)` alone decides the episode: it replaces the task's random state. An episode ends
    terminated if the last time step's discount is 0, and truncated otherwise. `model_seed` seeds
    what a task draws when it is built (LQR's masses and springs).

    With pixels, a manipulation task is its `_vision` variant, otherwise its `_features` variant.
    Their simulated worlds differ (the first shows what to build): a saved state of one does not fit
    the other. For each frame of a manipulation task, `info["success"]` says
    whether the reward is 1, which these tasks give only at the goal (and, when placing, with the
    hand withdrawn). dm_control has no other flag, and DrQ-v2's paper measures only the reward.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, config: EnvConfig, *, pixels: bool, model_seed: int):
        self.task_name = config.name
        self._truncate_at: int | None = None
        self._composed = config.name not in suite_tasks()  # built by dm_control.composer
        if self._composed:
            self.task_name += "_vision" if pixels else "_features"
            self._control: Any = _load_manipulation(config.name, pixels, model_seed)
            default_camera: int | str = MANIPULATION_CAMERA
            self._truncate_at = _take_over_time_limit(self._control)
        else:
            from dm_control import suite

            domain, task = suite_tasks()[config.name]
            self._control = suite.load(domain, task, task_kwargs={"random": model_seed})
            default_camera = QUADRUPED_CAMERA if domain == "quadruped" else 0
            if self._control._step_limit == float("inf"):
                self._truncate_at = UNLIMITED_STEPS
        self.camera = default_camera if config.camera is None else config.camera
        cameras = self._control.physics.model.ncam
        if isinstance(self.camera, int) and not -1 <= self.camera < cameras:
            raise ConfigError(
                f"env.camera: expected a number from -1 (free camera) to {cameras - 1} for "
                f"{self.task_name}, received {self.camera}."
            )
        self._cached_camera = DMControlRenderer(
            self.camera, fast=config.render == "fast", keep_cameras=not self._composed
        )
        self._steps = 0
        specs = self._control.observation_spec()
        self.observation_space = gymnasium.spaces.Dict(
            {key: Box(-np.inf, np.inf, spec.shape or (1,)) for key, spec in specs.items()}
        )
        action = self._control.action_spec()
        low, high = (
            np.broadcast_to(bound, action.shape).astype(np.float64)
            for bound in (action.minimum, action.maximum)
        )
        self.action_space = Box(low, high, dtype=np.float64)

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
        """uint8 [size, size, 3]; unless `fast`, the same bytes as physics.render."""
        return self._cached_camera.render(self._control.physics, size)

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.render_frame(256)

    def close(self) -> None:
        self._cached_camera.cameras = {}
        if not self._composed:  # its own close() keeps the GL context until the interpreter ends
            self._control.physics.free()
        self._control.close()


def _load_manipulation(task: str, pixels: bool, model_seed: int) -> Any:
    from dm_control import manipulation

    variant = "vision" if pixels else "features"
    if variant not in manipulation_tasks()[task]:
        raise ConfigError(
            f"env={task}: dm_control has no {variant} variant of this task; "
            f"add env.pixels={'false' if pixels else 'true'}."
        )
    loaded = manipulation.load(f"{task}_{variant}", seed=model_seed)
    for observable in loaded.task.observables.values():
        if type(observable).__name__ == "MJCFCamera":
            observable.enabled = False  # `render_frame` renders once per step instead
    loaded.reset()
    return loaded


def _take_over_time_limit(control: Any) -> int:
    """Remove a composer env's time limit and return it in steps.

    It limits the simulated time, which does not begin at 0 in an episode from a snapshot; such an
    episode should have its full length.
    """
    steps = round(control._time_limit / control.control_timestep())
    control._time_limit = float("inf")
    return steps


def make(
    config: EnvConfig, *, pixels: bool | None, model_seed: int, videos: bool = False
) -> gymnasium.Env:
    """A dm_control task, from images or from a flat state; see `rlearly.envs.make`.

    Raises:
        ConfigError: there is no such variant or camera, it cannot be rendered here, or
            env.render=fast without image observations.
    """
    pixels = pixels is not False
    check_rendering(config, pixels=pixels, videos=videos)
    import_simulator("mujoco", "dm_control._render")
    base = DMControlEnv(config, pixels=pixels, model_seed=model_seed)
    env = base if config.name in suite_tasks() else SuccessTracker(base)
    return agent_view(env, config, base.render_frame if pixels else None)
