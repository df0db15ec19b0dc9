"""MetaWorld's fifty tasks (arXiv 1910.10897), from pixels as in DrM, or from states.

The settings are those of DrM's official code (metaworld_env.py of github.com/XuGW-Kevin/DrM, which
follows MWM and TACO): the goal is observable, and drawn for each episode like the objects'
positions; camera corner2 moved to (0.75, 0.075, 0.7), which MetaWorld 3 has as corner4; 84x84
pixels, three images stacked, two simulator frames per step with their rewards added; an episode is
500 frames (250 steps) and is truncated, never terminated; it succeeds if any of its frames does.

Images are upright and mirrored, like the official ones: MetaWorld's cameras hang upside down, and
mujoco-py returned the rows of an image from the bottom up.

Deviations: the tasks are MetaWorld 3's (v3) on MuJoCo's own bindings, not v2 on mujoco-py. A new
episode's stack is its first image three times, not two black images and the first one. The first
image shows objects where the episode put them; the official one may show them where they were
before. Episodes follow from their seeds, not from numpy's global generator.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium
import numpy as np

from rlearly.config.schema import EnvConfig
from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError
from rlearly.envs.gl_backend import check_rendering, import_simulator
from rlearly.envs.gymnasium_envs import RenderWrapper, without_known_noise
from rlearly.envs.state.env_state import installed
from rlearly.envs.wrappers import SuccessTracker, agent_view

PREFIX = "metaworld/"
VERSION = "-v3"
CAMERA = "corner4"
INSTALL = "pip install 'rlearly[metaworld]' && pip install --no-deps metaworld==3.1.1"
"""MetaWorld pins a MuJoCo that is too old for us but works with newer ones: hence --no-deps."""

REMEDY = (
    "`make metaworld` builds a separate environment for it, and .venv-metaworld/bin/python runs "
    f"this there (by hand, in a new environment: {INSTALL})"
)

_TASKS = """
assembly basketball bin-picking box-close button-press button-press-topdown
button-press-topdown-wall button-press-wall coffee-button coffee-pull coffee-push dial-turn
disassemble door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close
faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side
lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide
plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall reach reach-wall
shelf-place soccer stick-pull stick-push sweep sweep-into window-close window-open
"""
TASKS = _TASKS.split()
"""MetaWorld 3's tasks, listed here so that names are known where it is not installed."""


def names() -> list[str]:
    return [PREFIX + task for task in TASKS]


def config_for(name: str) -> EnvConfig | None:
    """The config of metaworld/TASK, with or without its -v3, or None for other names.

    Raises:
        ConfigError: MetaWorld has no such task. The message suggests the closest names.
    """
    if not name.startswith(PREFIX):
        return None
    known = name.removesuffix(VERSION)
    if known not in names():
        raise ConfigError(f"There is no env {name!r}; {did_you_mean(known, names())}")
    return EnvConfig(name=known, family="metaworld")


class SeededReset(gymnasium.Wrapper):
    """A MetaWorld task in its `RenderWrapper`, where `reset(seed)` alone decides the episode.

    MetaWorld's own reset ignores its seed. Observations, rewards and dynamics are MetaWorld's to
    the bit. That includes a quirk: in seven tasks (window-close, dial-turn, ...) the first
    observation holds a part's position from before the reset moved it. Only the image rendered
    after a reset is up to date.
    """

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        base: Any = self.unwrapped
        gymnasium.Env.reset(base, seed=seed)
        obs, info = self.env.reset(seed=seed, **kwargs)
        mujoco: Any = importlib.import_module("mujoco")
        mujoco.mj_kinematics(base.model, base.data)  # tasks move parts of the model last
        mujoco.mj_camlight(base.model, base.data)
        return obs, info

    def render_frame(self, size: int) -> np.ndarray:
        """uint8 [size, size, 3], upright and mirrored."""
        upside_down: Any = self.env
        return np.ascontiguousarray(upside_down.render_frame(size)[::-1])


def make(
    config: EnvConfig, *, pixels: bool | None, model_seed: int = 0, videos: bool = False
) -> gymnasium.Env:
    """A MetaWorld task with actions [4], from images or states [39]; see `rlearly.envs.make`.

    Raises:
        ConfigError: MetaWorld is not installed or does not work with this MuJoCo, it cannot be
            rendered here, or env.render=fast without image observations.
    """
    pixels = pixels is not False
    check_rendering(config, pixels=pixels, videos=videos)
    import_simulator("mujoco")
    base = _base(config.name)
    camera = base.model.camera(CAMERA).id if config.camera is None else config.camera
    env = SeededReset(RenderWrapper(base, camera, fast=config.render == "fast"))
    return agent_view(SuccessTracker(env), config, env.render_frame if pixels else None)


def _base(name: str) -> Any:
    """MetaWorld's env of a task: the goal is observable, and drawn at each reset from `np_random`.

    It is built with a seed, which keeps MetaWorld from changing numpy's global generator.
    """
    key = f"{name.removeprefix(PREFIX)}{VERSION}-goal-observable"
    try:
        with without_known_noise():
            tasks: Any = importlib.import_module("metaworld.env_dict")
            base = tasks.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[key](seed=0)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ConfigError(
            f"env={name}: the package {package} is not installed here: {REMEDY}."
        ) from None
    except Exception as error:  # an unsupported MuJoCo makes it fail in various ways
        have = " and ".join(
            f"{package} {installed(package)}" for package in ("metaworld", "mujoco")
        )
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise ConfigError(
            f"env={name}: {have} do not work together ({reason}): {REMEDY}."
        ) from error
    base._freeze_rand_vec = False
    base.seeded_rand_vec = True
    base._np_random = base._np_random_seed = None  # unseeded until the first reset
    base.observation_space = base.sawyer_observation_space  # it was made for a hidden goal
    base.task_name = name
    return base
