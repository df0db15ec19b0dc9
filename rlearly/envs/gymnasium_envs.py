"""Any registered gymnasium env with a Box action space, from states or from pixels."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, flatdim

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError
from rlearly.core.spaces import PIXELS, VECTOR
from rlearly.envs.gl_backend import (
    FAST_NEEDS_MUJOCO_IMAGES,
    WITHOUT_PIXELS,
    WITHOUT_VIDEOS,
    choose_backend,
    require_backend,
)
from rlearly.envs.mujoco_rendering import MujocoRenderer
from rlearly.envs.wrappers import agent_view, resized

log = logging.getLogger(__name__)

NOT_OFFERED = ("CartPole", "MountainCar", "Acrobot", "LunarLander")  # their actions are discrete
NOT_OFFERED += ("GymV21Environment", "GymV26Environment")


def names() -> list[str]:
    """Every registered id that may have a Box action space, each in its newest version."""
    newest: dict[str, tuple[int, str]] = {}
    for spec in gymnasium.registry.values():
        discrete = any(f".{name}." in str(spec.entry_point) for name in ("toy_text", "tabular"))
        if discrete or spec.name in NOT_OFFERED:
            continue
        base = f"{spec.namespace}/{spec.name}" if spec.namespace else spec.name
        newest[base] = max(newest.get(base, (-1, "")), (spec.version or 0, spec.id))
    return [env_id for _, env_id in newest.values()]


def config_for(name: str) -> EnvConfig | None:
    """The config of a registered id or of `module:Id`, or None if there is no such env.

    Raises:
        ConfigError: it is Atari, which a separate package registers.
    """
    module, _, env_id = name.rpartition(":")
    if module in ("", "__main__") and env_id not in gymnasium.registry:
        if name.startswith("ALE/"):
            raise ConfigError(
                f"env={name}: this family comes with a package of its own: pip install ale-py, "
                f"then env=ale_py:{name} env.kwargs.continuous=true (without that its actions are "
                "discrete)."
            )
        return None
    return EnvConfig(name=name, family="gymnasium", action_repeat=1)


class RenderWrapper(gymnasium.Wrapper):
    """Renders a gymnasium env at any size, by `render_frame`.

    MuJoCo envs are rendered directly (gymnasium's renderer is slower and fixes its look-at point
    at the first frame). `camera` is the camera's number, -1 for the free one. With None the view is
    `default_camera(model)`, a number or an MjvCamera; or else camera 0; or, if the model has no
    camera, the env's own default view. For an env that observes an image, the frame is that image.
    All other envs render themselves.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        camera: int | None,
        *,
        fast: bool = False,
        default_camera: Callable[[Any], Any] | None = None,
    ):
        super().__init__(env)
        self.vector_size = vector_size(env.observation_space)
        self.observes_image = is_picture(env.observation_space) or self.vector_size > 0
        self.camera = camera
        self.default_camera = default_camera
        self._obs: Any = None
        self._renderer = MujocoRenderer(fast=fast)
        if _is_mujoco(env):
            self._camera_number()  # refuses a wrong one now

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._obs, info = self.env.reset(**kwargs)
        return self._obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._obs, reward, terminated, truncated, info = self.env.step(action)
        return self._obs, reward, terminated, truncated, info

    def render_frame(self, size: int) -> np.ndarray:
        """uint8 [size, size, 3]."""
        if self.observes_image:
            return resized(self._obs[PIXELS] if self.vector_size else self._obs, size)
        if _is_mujoco(self.env):
            base: Any = self.env.unwrapped
            return self._renderer.render(base.model, base.data, self._view(base), size)
        image: Any = self.env.render()
        if image is None:
            raise ConfigError(f"env={self.env}: it cannot render itself; add env.pixels=false.")
        return resized(np.asarray(image, dtype=np.uint8), size)

    def vector(self) -> np.ndarray:
        """[D]: what the env observes in addition to its image."""
        return np.ravel(self._obs[VECTOR])

    def _view(self, base: Any) -> Any:
        mujoco: Any = importlib.import_module("mujoco")
        if self.camera is None and self.default_camera is not None:
            return self.default_camera(base.model)
        number = self._camera_number()
        if number >= 0:
            return number
        view = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(base.model, view)
        for name, value in (base.mujoco_renderer.default_cam_config or {}).items():
            if isinstance(value, np.ndarray):
                getattr(view, name)[:] = value
            else:
                setattr(view, name, value)
        if view.trackbodyid >= 0:
            view.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        return view

    def _camera_number(self) -> int:
        base: Any = self.env.unwrapped
        number = self.camera if self.camera is not None else (0 if base.model.ncam else -1)
        if not -1 <= number < base.model.ncam:
            raise ConfigError(
                f"env.camera: expected a number from -1 (free camera) to {base.model.ncam - 1}, "
                f"received {number}."
            )
        return number

    def close(self) -> None:
        self._renderer.close()
        super().close()


def is_picture(space: Any) -> bool:
    """True for uint8 [H, W, 3] observations."""
    return isinstance(space, Box) and space.dtype == np.uint8 and space.shape[2:] == (3,)


def vector_size(space: Any) -> int:
    """D of {"pixels": uint8 [H, W, 3], "vector": D numbers}; 0 for any other space."""
    if not isinstance(space, Dict) or set(space.spaces) != {PIXELS, VECTOR}:
        return 0
    return flatdim(space[VECTOR]) if is_picture(space[PIXELS]) else 0


def _is_mujoco(env: gymnasium.Env) -> bool:
    base: Any = env.unwrapped
    return all(hasattr(base, name) for name in ("model", "data", "mujoco_renderer"))


@contextlib.contextmanager
def without_known_noise() -> Iterator[None]:
    """Silence known warnings of MuJoCo and SDL that a user can do nothing about.

    MuJoCo 3.11 deprecates an attribute that gymnasium's HalfCheetah uses, and would also write a
    MUJOCO_LOG.TXT into the current folder. Its other warnings are logged. SDL complains about a
    missing XDG_RUNTIME_DIR when it looks for a screen that `rgb_array` does not need.
    """
    mujoco: Any = importlib.import_module("mujoco")

    def forward(text: str) -> None:
        if "'settotalmass' is deprecated" not in text:
            log.warning("MuJoCo: %s", text)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(forward)
    if not {"XDG_RUNTIME_DIR", "DISPLAY"} & set(os.environ):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _offers_rgb_array(name: str) -> bool:
    """False if the env's class declares no "rgb_array" render mode; True also if unknown."""
    try:
        module, _, env_id = name.rpartition(":")
        if module:
            importlib.import_module(module)
        registration: Any = importlib.import_module("gymnasium.envs.registration")
        creator: Any = gymnasium.spec(env_id).entry_point
        if isinstance(creator, str):
            creator = registration.load_env_creator(creator)
        return "rgb_array" in creator.metadata["render_modes"]
    except Exception:  # third-party code may raise anything; `make_registered` will report it
        return True


def make_registered(config: EnvConfig, render_mode: str | None = None) -> gymnasium.Env:
    """gymnasium.make for a config.

    Raises:
        ConfigError: gymnasium cannot make it. The message gives the reason.
    """
    kwargs = {"render_mode": render_mode} if render_mode else {}
    try:
        with without_known_noise():
            return gymnasium.make(config.name, disable_env_checker=True, **kwargs, **config.kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        box2d = "box2d" in str(error).lower()
        remedy = "pip install 'rlearly[box2d]'" if box2d else str(error)
        raise ConfigError(
            f"env={config.name}: a package that it needs is not installed: {remedy}."
        ) from None
    except ConfigError:
        raise
    except Exception as error:  # gymnasium's refusals, or whatever third-party code raises
        reason = (str(error).strip() or "no reason given").splitlines()[0].rstrip(".")
        if not isinstance(error, gymnasium.error.Error | ImportError | TypeError):
            reason = f"{type(error).__name__}: {reason}"
        raise ConfigError(f"env={config.name}: gymnasium cannot make it: {reason}.") from error


def make(
    config: EnvConfig, *, pixels: bool | None, model_seed: int = 0, videos: bool = False
) -> gymnasium.Env:
    """A gymnasium env, from images or from a flat state; see `rlearly.envs.make`.

    Raises:
        ConfigError: the env cannot be made or rendered, its actions are not a Box, or
            env.render=fast although MuJoCo renders no observation.
    """
    choose_backend()
    spec = gymnasium.spec(config.name) if ":" not in config.name else None
    mujoco = spec is not None and "mujoco" in str(spec.entry_point)
    renders_itself = (pixels or videos) and not mujoco and _offers_rgb_array(config.name)
    base = make_registered(config, "rgb_array" if renders_itself else None)
    fast = config.render == "fast"
    env = RenderWrapper(base, config.camera, fast=fast)
    if pixels is None:
        pixels = env.observes_image
    if fast and not (pixels and not env.observes_image and _is_mujoco(base)):
        base.close()
        what = "rendered by itself" if pixels else "observed as states here"
        raise ConfigError(FAST_NEEDS_MUJOCO_IMAGES.format(config.name, what))
    if (pixels or videos) and _is_mujoco(base):
        require_backend(WITHOUT_PIXELS if pixels else WITHOUT_VIDEOS)
    vector = env.vector if env.vector_size else None
    return agent_view(env, config, env.render_frame if pixels else None, vector, env.vector_size)
