"""Any registered gymnasium env with Box or Discrete actions, from states or from pixels."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError, UserCodeFailed, raised
from rlearly.envs.entry_points import GIVEN, given_is_missing, gymnasium_id
from rlearly.envs.gl_backend import (
    FAST_NEEDS_MUJOCO_IMAGES,
    WITHOUT_PIXELS,
    WITHOUT_VIDEOS,
    check_rendering,
    chosen_on_import,
    import_simulator,
    is_rendered_by_mujoco,
    require_backend,
)
from rlearly.envs.guard import guarded
from rlearly.envs.mujoco_rendering import MujocoRenderer
from rlearly.envs.observations import (
    ImageObservation,
    find_image,
    refuse_unflattenable,
    state_note,
    without_mission,
)
from rlearly.envs.wrappers import MaskedObservation, agent_view, resized, supported_actions

log = logging.getLogger(__name__)

REGISTERED_BY = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
"""Beginning of ids -> the module of another package that registers them when it is imported."""

NOT_OFFERED = ("GymV21Environment", "GymV26Environment")


def names() -> list[str]:
    """Every registered id, each in its newest version."""
    newest: dict[str, tuple[int, str]] = {}
    for spec in gymnasium.registry.values():
        if spec.name in NOT_OFFERED or ".tabular." in str(spec.entry_point):
            continue
        base = f"{spec.namespace}/{spec.name}" if spec.namespace else spec.name
        newest[base] = max(newest.get(base, (-1, "")), (spec.version or 0, spec.id))
    return [env_id for _, env_id in newest.values()]


def config_for(name: str) -> EnvConfig | None:
    """The config of a registered id, `module:Id` or `module:NAME`; None if there is no such env.

    Raises:
        ConfigError: another package registers it, which the message names, or it was given as an
            object in another process.
    """
    module, _, env_id = name.rpartition(":")
    if name.startswith(GIVEN) and name not in gymnasium.registry:
        raise given_is_missing(name)
    if module in ("", "__main__") and env_id not in gymnasium.registry:
        registers = next((p for start, p in REGISTERED_BY.items() if name.startswith(start)), None)
        if registers:
            text = f"env={name}: is registered by a package, so name that too: env={registers}:"
            text += f"{name} (pip install {registers.replace('_', '-')})"
            if registers == "ale_py":
                text += "; env=atari/Pong, ... are the games by the rules of Atari-100k"
            raise ConfigError(f"{text}.")
        return None
    return EnvConfig(name=name, family="gymnasium", action_repeat=1)


class RenderWrapper(gymnasium.Wrapper):
    """Renders a gymnasium env at any size, by `render_frame`.

    MuJoCo envs are rendered directly (gymnasium's renderer is slower and fixes its look-at point
    at the first frame). `camera` is the camera's number, -1 for the free one. With None the view is
    `default_camera(model)`, a number or an MjvCamera; or else camera 0; or, if the model has no
    camera, the env's own default view. With `image`, the frame is the image that the env observes.
    All other envs render themselves.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        camera: int | None,
        *,
        fast: bool = False,
        default_camera: Callable[[Any], Any] | None = None,
        image: ImageObservation | None = None,
    ):
        super().__init__(env)
        self.image = image
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
        if self.image is not None:
            return self.image.format.picture(self.observed_frame(size))
        if _is_mujoco(self.env):
            base: Any = self.env.unwrapped
            return self._renderer.render(base.model, base.data, self._view(base), size)
        return resized(self._own_image(), size)

    def _own_image(self) -> np.ndarray:
        spec = self.env.spec
        call = f"env={spec.id if spec else self.env}: render() returned"
        without = (
            "it cannot render itself; do without images of it: env.pixels=false, video_size=0."
        )
        try:
            image: Any = self.env.render()
        except UserCodeFailed as failed:
            if not isinstance(failed.__cause__, NotImplementedError):  # gymnasium.Env.render
                raise
            raise ConfigError(f"{failed}: {without}") from failed
        if image is None:
            raise ConfigError(f"{call} None: {without}")
        image = np.asarray(image)
        if image.dtype.kind not in "iu" or image.ndim != 3 or image.shape[2] != 3:
            raise UserCodeFailed(
                f"{call} {image.dtype} {list(image.shape)}",
                remedy="expected an RGB image, uint8 [H, W, 3]",
            )
        return image.astype(np.uint8, copy=False)

    def observed_frame(self, size: int) -> np.ndarray:
        """uint8 [size, size, P]: the observed image, or else the rendered one."""
        if self.image is None:
            return self.render_frame(size)
        return resized(self.image.frame(self._obs), size)

    def vector(self) -> np.ndarray:
        """[D]: what the env observes in addition to its image."""
        assert self.image is not None
        return self.image.vector(self._obs)

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
    mujoco: Any = sys.modules.get("mujoco")

    def forward(text: str) -> None:
        if "'settotalmass' is deprecated" not in text:
            log.warning("MuJoCo: %s", text)

    before = mujoco and mujoco.get_mju_user_warning()
    if mujoco:
        mujoco.set_mju_user_warning(forward)
    if not {"XDG_RUNTIME_DIR", "DISPLAY"} & set(os.environ):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        yield
    finally:
        if mujoco:
            mujoco.set_mju_user_warning(before)


def _gl_settled(config: EnvConfig, *, warn: bool = True) -> contextlib.AbstractContextManager[None]:
    """A context in which MuJoCo is imported with the GL backend that suits an env, if at all."""
    if is_rendered_by_mujoco(config):
        import_simulator("mujoco")
        return contextlib.nullcontext()
    spec = gymnasium.registry.get(config.name)
    own = spec is not None and str(spec.entry_point).startswith("gymnasium.envs.")
    if own:  # rendered by SDL, off screen
        os.environ["SDL_VIDEODRIVER"] = "dummy"
    return contextlib.nullcontext() if own else chosen_on_import(warn=warn)


def _offers_rgb_array(name: str) -> bool:
    """Whether the env can be made with render_mode="rgb_array"; True also if unknown.

    False if what makes it takes no `render_mode`, or is a class that declares no such mode.
    """
    try:
        registration: Any = importlib.import_module("gymnasium.envs.registration")
        creator: Any = gymnasium.spec(gymnasium_id(name)).entry_point
        if isinstance(creator, str):
            creator = registration.load_env_creator(creator)
        parameters = inspect.signature(creator).parameters
        takes_any = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
        if "render_mode" not in parameters and not takes_any:
            return False
        return "rgb_array" in creator.metadata["render_modes"]
    except (Exception, SystemExit):  # third-party code; `make_registered` will report it
        return True


def make_registered(config: EnvConfig, render_mode: str | None = None) -> gymnasium.Env:
    """gymnasium.make for a config, with a guard around the unwrapped env.

    Raises:
        ConfigError: gymnasium cannot make it, or it has no spaces. The message gives the reason.
    """
    kwargs: dict[str, Any] = {"render_mode": render_mode} if render_mode else {}
    if config.max_episode_steps is not None:
        kwargs["max_episode_steps"] = config.max_episode_steps
    try:
        with _gl_settled(config), without_known_noise():
            name = gymnasium_id(config.name)
            env = gymnasium.make(name, disable_env_checker=True, **kwargs, **config.kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        box2d = "box2d" in str(error).lower()
        remedy = "pip install 'rlearly[box2d]'" if box2d else str(error)
        raise ConfigError(
            f"env={config.name}: a package that it needs is not installed: {remedy}."
        ) from None
    except ConfigError:
        raise
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # gymnasium's refusals, or whatever third-party code raises
        raise ConfigError(
            f"env={config.name}: gymnasium cannot make it: {_reason(error)}"
        ) from error
    return guarded(env, config.name)


def _reason(error: BaseException) -> str:
    """Why gymnasium.make failed, as the end of a sentence."""
    no_env = re.search(r"must inherit from the gymnasium.Env class.*<class '(.*)'>", str(error))
    if no_env:
        kind = "None" if no_env[1] == "NoneType" else f"an object of the class {no_env[1]}"
        return f"its entry point returned {kind}; expected a gymnasium.Env."
    reason = raised(error).removeprefix("raised ")
    if isinstance(error, gymnasium.error.Error | ImportError | TypeError):
        reason = reason.partition(": ")[2] or reason  # their text says enough
    return reason if reason.endswith((".", "?")) else f"{reason}."


def make(
    config: EnvConfig, *, pixels: bool | None, model_seed: int = 0, videos: bool = False
) -> gymnasium.Env:
    """A gymnasium env, from images or from a flat state; see `rlearly.envs.make`.

    Raises:
        ConfigError: the env cannot be made or rendered, its actions or observations do not fit
            agents, or env.render=fast although MuJoCo renders no observation.
    """
    check_rendering(config, pixels=pixels, videos=videos)
    mujoco = is_rendered_by_mujoco(config)
    with _gl_settled(config, warn=not (pixels or videos)):
        can_render = mujoco or _offers_rgb_array(config.name)
    renders_itself = (pixels or videos) and not mujoco and can_render
    base = make_registered(config, "rgb_array" if renders_itself else None)
    base, left_out = without_mission(base)
    try:
        supported_actions(base)
        image = observed_image(base, config.name, pixels)
        pixels = image is not None if pixels is None else pixels
        if not pixels:
            refuse_unflattenable(base.observation_space, config.name)
    except ConfigError:
        base.close()
        raise
    fast = config.render == "fast"
    env = RenderWrapper(base, config.camera, fast=fast, image=image)
    if fast and not (pixels and image is None and _is_mujoco(base)):
        base.close()
        what = "rendered by itself" if pixels else "observed as states here"
        raise ConfigError(FAST_NEEDS_MUJOCO_IMAGES.format(config.name, what))
    if (pixels or videos) and _is_mujoco(base):
        try:
            require_backend(WITHOUT_PIXELS if pixels else WITHOUT_VIDEOS)
        except ConfigError:
            base.close()
            raise
    if not pixels:
        note = state_note(base.observation_space, can_render) + left_out
        view = agent_view(env, config, None, note=note)
        return MaskedObservation(view) if reports_masks(config, base.action_space) else view
    if image is None:
        return agent_view(env, config, env.render_frame)
    return agent_view(
        env,
        config,
        env.observed_frame,
        env.vector if image.vector_size else None,
        image.vector_size,
        planes=image.format.planes,
        note=image.note(config.frame_stack, config.image_size),
    )


def reports_masks(config: EnvConfig, actions: Any) -> bool:
    """Whether an env with discrete actions says in `info["action_mask"]` which ones are allowed.

    Another env is made and reset to find out: the first reset of the run's own is the run's.
    """
    if not isinstance(actions, Discrete):
        return False
    other = make_registered(config)
    try:
        return "action_mask" in other.reset(seed=0)[1]
    except UserCodeFailed:  # the run's own reset reports it
        return False
    finally:
        other.close()


def observed_image(env: gymnasium.Env, name: str, pixels: bool | None) -> ImageObservation | None:
    """The image that an env observes, or None if it observes states.

    Args:
        pixels: env.pixels; with False nothing is refused, and with True small images count too.

    Raises:
        ConfigError: it is unclear which of them it does (see `find_image`).
    """
    try:
        return find_image(env.observation_space, name, small=pixels is True)
    except ConfigError:
        if pixels is False:
            return None
        raise
