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
    NOT_DRAWN,
    WITHOUT_PIXELS,
    WITHOUT_VIDEOS,
    choose_backend,
    require_backend,
)
from rlearly.envs.mujoco_rendering import MujocoRenderer
from rlearly.envs.wrappers import (
    ActionRepeat,
    FlatObservation,
    PixelObservation,
    PixelVectorObservation,
    ScaledActions,
    resized,
)

log = logging.getLogger(__name__)

EXTRAS = {"box2d": "box2d", "Box2D": "box2d"}
ELSEWHERE = {
    "ALE": (
        "pip install ale-py, then env=ale_py:{name} env.kwargs.continuous=true "
        "(without that its actions are discrete)"
    ),
}
"""Namespace of ids that a package of its own registers -> what to do."""

DISCRETE_FAMILIES = ("toy_text", "tabular")
DISCRETE = ("CartPole", "MountainCar", "Acrobot", "LunarLander")
PLACEHOLDERS = ("GymV21Environment", "GymV26Environment")


def names() -> list[str]:
    """Every registered id that may have a Box action space, the newest version of each."""
    newest: dict[str, tuple[int, str]] = {}
    for spec in gymnasium.registry.values():
        discrete = any(f".{family}." in str(spec.entry_point) for family in DISCRETE_FAMILIES)
        if discrete or spec.name in (*DISCRETE, *PLACEHOLDERS):
            continue
        base = f"{spec.namespace}/{spec.name}" if spec.namespace else spec.name
        newest[base] = max(newest.get(base, (-1, "")), (spec.version or 0, spec.id))
    return [env_id for _, env_id in newest.values()]


def config_for(name: str) -> EnvConfig | None:
    """The config of a registered id or of `module:Id`, or None if there is no such env.

    Raises:
        ConfigError: a package of its own registers this family of ids.
    """
    if ":" not in name and name not in gymnasium.registry:
        remedy = ELSEWHERE.get(name.partition("/")[0])
        if remedy:
            raise ConfigError(
                f"env={name}: this family comes with a package of its own: "
                f"{remedy.format(name=name)}."
            )
        return None
    return EnvConfig(name=name, family="gymnasium", action_repeat=1)


class RenderWrapper(gymnasium.Wrapper):
    """Takes pictures of a gymnasium env, of any size.

    MuJoCo envs are drawn directly: by the camera of that number; None: by `usual(model)`, a number
    or an MjvCamera, or else by camera 0 if the model has one, or the env's own default view
    (gymnasium's renderer is slower and fixes its look-at point at the first picture). An env
    whose observation is an image, or has one, is pictured by it. All others are asked to render.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        camera: int | None,
        *,
        fast: bool = False,
        usual: Callable[[Any], Any] | None = None,
    ):
        super().__init__(env)
        self.beside = vector_beside(env.observation_space)
        self.by_observation = is_picture(env.observation_space) or self.beside > 0
        self.camera = camera
        self.usual = usual
        self._obs: Any = None
        self._renderers = MujocoRenderer(fast=fast)
        if _is_mujoco(env):
            self._number()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._obs, info = self.env.reset(seed=seed, options=options)
        return self._obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._obs, reward, terminated, truncated, info = self.env.step(action)
        return self._obs, reward, terminated, truncated, info

    def render_frame(self, size: int) -> np.ndarray:
        """uint8 [size, size, 3]."""
        if self.by_observation:
            return resized(self._obs[PIXELS] if self.beside else self._obs, size)
        if _is_mujoco(self.env):
            return self._draw(size)
        image: Any = self.env.render()
        if image is None:
            raise ConfigError(f"env={self.env}: it cannot draw itself; add env.pixels=false.")
        return resized(np.asarray(image, dtype=np.uint8), size)

    def vector(self) -> np.ndarray:
        """[D], what the env observes beside its picture."""
        return np.ravel(self._obs[VECTOR])

    def _draw(self, size: int) -> np.ndarray:
        base: Any = self.env.unwrapped
        return self._renderers.take(base.model, base.data, self._view(base), size)

    def _view(self, base: Any) -> Any:
        mujoco: Any = importlib.import_module("mujoco")
        if self.camera is None and self.usual is not None:
            return self.usual(base.model)
        number = self._number()
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

    def _number(self) -> int:
        """The camera's; -1: the free one."""
        base: Any = self.env.unwrapped
        number = self.camera if self.camera is not None else (0 if base.model.ncam else -1)
        if not -1 <= number < base.model.ncam:
            raise ConfigError(
                f"env.camera: expected a number from -1 (free camera) to {base.model.ncam - 1}, "
                f"received {number}."
            )
        return number

    def close(self) -> None:
        self._renderers.close()
        super().close()


def is_picture(space: Any) -> bool:
    """True for uint8 [H, W, 3] observations."""
    return (
        isinstance(space, Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[-1] == 3
    )


def _is_mujoco(env: gymnasium.Env) -> bool:
    base: Any = env.unwrapped
    return all(hasattr(base, name) for name in ("model", "data", "mujoco_renderer"))


def vector_beside(space: Any) -> int:
    """Numbers beside the image of {"pixels": uint8 [H, W, 3], "vector": ...}; 0: another space."""
    if not isinstance(space, Dict) or set(space.spaces) != {PIXELS, VECTOR}:
        return 0
    return flatdim(space[VECTOR]) if is_picture(space[PIXELS]) else 0


@contextlib.contextmanager
def without_known_noise() -> Iterator[None]:
    """Keep what gymnasium's own models and pygame say of themselves off the screen.

    MuJoCo 3.11 deprecates an attribute that gymnasium's HalfCheetah uses, and would also leave a
    MUJOCO_LOG.TXT in the current folder; its other warnings are passed on. SDL, asked to
    find a screen that an `rgb_array` does not need, complains of a missing XDG_RUNTIME_DIR.
    """
    mujoco: Any = importlib.import_module("mujoco")

    def heed(text: str) -> None:
        if "'settotalmass' is deprecated" not in text:
            log.warning("MuJoCo: %s", text)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(heed)
    if not {"XDG_RUNTIME_DIR", "DISPLAY"} & set(os.environ):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _draws_itself(name: str) -> bool:
    """False if the env's class says that it has no rgb_array to give; True if that is not known."""
    try:
        module, _, env_id = name.rpartition(":")
        if module:
            importlib.import_module(module)
        registration: Any = importlib.import_module("gymnasium.envs.registration")
        creator: Any = gymnasium.spec(env_id).entry_point
        if isinstance(creator, str):
            creator = registration.load_env_creator(creator)
        return "rgb_array" in creator.metadata["render_modes"]
    except Exception:  # whatever a module of anybody's raises, `registered` says it
        return True


def registered(config: EnvConfig, render_mode: str | None = None) -> gymnasium.Env:
    """The env as gymnasium makes it.

    Raises:
        ConfigError: it cannot; the reason is given.
    """
    try:
        mode = {"render_mode": render_mode} if render_mode else {}
        with without_known_noise():
            return gymnasium.make(config.name, disable_env_checker=True, **mode, **config.kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        extra = next((pip for word, pip in EXTRAS.items() if word in str(error)), None)
        remedy = f"pip install 'rlearly[{extra}]'" if extra else str(error)
        raise ConfigError(
            f"env={config.name}: a package that it needs is not installed: {remedy}."
        ) from None
    except ConfigError:
        raise
    except Exception as error:  # gymnasium's refusals, and whatever a module of anybody's raises
        reason = (str(error).strip() or "without a word").splitlines()[0].rstrip(".")
        if not isinstance(error, gymnasium.error.Error | ImportError | TypeError):
            reason = f"{type(error).__name__}: {reason}"
        raise ConfigError(f"env={config.name}: gymnasium cannot make it: {reason}.") from error


def make(config: EnvConfig, *, pixels: bool | None, videos: bool) -> gymnasium.Env:
    """A gymnasium env as agents see it: [A] actions in [-1, 1], pixels or a flat state.

    `videos`: it will be asked for pictures (videos) even if it is not observed by them.

    Raises:
        ConfigError: it cannot be made, its actions are not a Box, nothing here can draw, or fast
            drawing is asked for where MuJoCo does not draw what is observed.
    """
    choose_backend()
    spec = gymnasium.spec(config.name) if ":" not in config.name else None
    mujoco = spec is not None and "mujoco" in str(spec.entry_point)
    asks = (pixels or videos) and not mujoco and _draws_itself(config.name)
    render_mode = "rgb_array" if asks else None
    base = registered(config, render_mode)
    fast = config.render == "fast"
    photographed = RenderWrapper(base, config.camera, fast=fast)
    if pixels is None:
        pixels = photographed.by_observation
    drawn = pixels and not photographed.by_observation and _is_mujoco(base)
    if fast and not drawn:
        base.close()
        what = "drawn by itself" if pixels else "observed by states here"
        raise ConfigError(NOT_DRAWN.format(config.name, what))
    if (pixels or videos) and _is_mujoco(base):
        require_backend(WITHOUT_PIXELS if pixels else WITHOUT_VIDEOS)
    env = ActionRepeat(ScaledActions(photographed), config.action_repeat)
    if not pixels:
        return FlatObservation(env)
    size = config.image_size
    env = PixelObservation(env, lambda: photographed.render_frame(size), config.frame_stack, size)
    if not photographed.beside:
        return env
    return PixelVectorObservation(env, photographed.vector, photographed.beside)
