"""Choose the OpenGL backend that renders MuJoCo, and import MuJoCo with it, or without GL.

mujoco and dm_control choose their backend when they are imported, from MUJOCO_GL. A run that
renders nothing imports them with GL switched off, so that neither a driver nor a variable can make
it fail. A run that renders uses a backend that was tried before, in a process of its own and with
the run's environment variables.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError

LINUX = sys.platform == "linux"
BACKENDS = ("egl", "osmesa") if LINUX else ("glfw",)
"""What is tried if MUJOCO_GL is not set. On Linux these need no screen."""

SCREEN = ("glfw", "on", "enable", "enabled", "true", "1")
SCREEN += ({"win32": "wgl", "darwin": "cgl"}.get(sys.platform, "glx"),)
DISABLED = ("disable", "disabled", "off", "false", "0")
PROBE = Path(__file__).with_name("gl_probe.py")
PROBE_SECONDS = 60
INSTALL = (
    "sudo apt-get install libegl1 libopengl0 libgl1-mesa-dri (EGL), "
    "or sudo apt-get install libosmesa6 (OSMesa)"
    if LINUX
    else "install a driver for OpenGL"
)
FAST_NEEDS_MUJOCO_IMAGES = (
    "env.render=fast: applies only to image observations that MuJoCo renders, and env={} is {}; "
    "leave it out."
)
WITHOUT_PIXELS = "train from states without videos: obs=state video_size=0"
WITHOUT_VIDEOS = "do without videos: video_size=0"
IMPORTED_WITH = {
    "mujoco.rendering.classic.gl_context": "_MUJOCO_GL",
    "mujoco.gl_context": "_MUJOCO_GL",  # where earlier versions have it
    "dm_control._render": "BACKEND",
}
"""Module that chooses its backend when it is imported -> its attribute that names the choice."""

log = logging.getLogger(__name__)
_chosen: str | None = None
_refusal = ""
"""Why GL was switched off although MUJOCO_GL named a backend."""


# --- choosing ---


def choose_backend() -> str | None:
    """Set MUJOCO_GL to a backend that works here and return it, or return None if none does.

    A MUJOCO_GL set by the user is kept. Packages that were imported with another backend use this
    one from now on.

    Raises:
        ConfigError: MUJOCO_GL or MUJOCO_EGL_DEVICE_ID is wrong, or what MUJOCO_GL names does not
            work here.
    """
    named = os.environ.get("MUJOCO_GL", "").strip()
    requested = _canonical(named)
    if requested == "disable":
        os.environ["MUJOCO_GL"] = requested
        return None
    tried = [requested] if requested else _candidates()
    errors = {}
    for backend in tried:
        errors[backend] = error = backend_error(backend)
        if error is None:
            _use(backend)
            return backend
        if error.startswith("MUJOCO_EGL_DEVICE_ID"):
            raise ConfigError(f"{error}: name a device that exists here, or unset it.")
    if requested:
        raise ConfigError(
            f"MUJOCO_GL={named} is set, but it does not work here ({errors[requested]}): "
            f"{_remedy()}."
        )
    _use("disable")
    return None


def _canonical(named: str) -> str | None:
    """A backend under the name that mujoco, dm_control and gymnasium all know; None: empty.

    Raises:
        ConfigError: there is no such backend on this system.
    """
    name = named.lower()
    for known, canonical in ((SCREEN, "glfw"), (DISABLED, "disable")):
        if name in known:
            return canonical
    if name and name not in BACKENDS:
        valid = dict.fromkeys((*BACKENDS, "glfw", "disable"))
        raise ConfigError(
            f"MUJOCO_GL: expected one of {', '.join(valid)}, received {named!r}: {_remedy()}."
        )
    return name or None


def _candidates() -> list[str]:
    """The backends to try, the one that PYOPENGL_PLATFORM names first."""
    return sorted(BACKENDS, key=lambda name: name != os.environ.get("PYOPENGL_PLATFORM"))


def _remedy() -> str:
    working = next((name for name in _candidates() if not backend_error(name)), None)
    if working:
        return f"set MUJOCO_GL={working}, which works here, or unset it"
    return f"unset it, or {INSTALL}"


def backend_error(backend: str) -> str | None:
    """Why a backend does not render here, or None if it does."""
    return _probed(backend, os.environ.get("MUJOCO_EGL_DEVICE_ID"))


@cache
def _probed(backend: str, device: str | None) -> str | None:
    """As `backend_error`, with `device` as MUJOCO_EGL_DEVICE_ID."""
    environment = {**os.environ, "MUJOCO_GL": backend}
    environment.pop("PYOPENGL_PLATFORM", None)
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", str(PROBE), backend],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"its driver did not answer in {PROBE_SECONDS} s"
    if probe.returncode == 0:
        return None
    if probe.returncode < 0:
        with contextlib.suppress(ValueError):
            return f"its driver crashed with {signal.Signals(-probe.returncode).name}"
    return (probe.stdout.strip().splitlines() or [f"its driver ended with {probe.returncode}"])[-1]


def _use(backend: str) -> None:
    """Make MuJoCo and dm_control, imported or not, and PyOpenGL use a backend."""
    global _chosen
    os.environ["MUJOCO_GL"] = _chosen = backend
    if backend in ("egl", "osmesa"):
        os.environ["PYOPENGL_PLATFORM"] = backend
    for name, attribute in IMPORTED_WITH.items():
        module = sys.modules.get(name)
        loaded = getattr(module, attribute, backend)
        if loaded == backend or (loaded in DISABLED and backend == "disable"):
            continue
        try:
            importlib.reload(sys.modules[name])
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"MUJOCO_GL={backend}: {name} can no longer switch to it, as this process has "
                f"already imported OpenGL ({reason}): set MUJOCO_GL={backend} before starting it."
            ) from error


# --- importing MuJoCo ---


def import_simulator(*packages: str) -> None:
    """Import packages, such as those in `IMPORTED_WITH`, with the chosen backend, or with GL off.

    If a backend is chosen later, they use it from then on.
    """
    before = os.environ.get("MUJOCO_GL")
    if before is None or before != _chosen:
        os.environ["MUJOCO_GL"] = "disable"
    try:
        for package in packages:
            importlib.import_module(package)
    finally:
        os.environ.pop("MUJOCO_GL", None)
        if before is not None:
            os.environ["MUJOCO_GL"] = before


@contextlib.contextmanager
def chosen_on_import(*, warn: bool = True) -> Iterator[None]:
    """When code in this context imports mujoco or dm_control, a backend is chosen first.

    It is for envs of other packages, which may render by themselves. If no backend works, GL is
    switched off, with a warning unless `warn` is false.
    """
    finder = _BeforeMujoco(warn)
    if {"mujoco", "dm_control"} & set(sys.modules):
        _choose_or_warn(warn)
    else:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


class _BeforeMujoco:
    """A module finder that finds nothing, but chooses a backend before mujoco is imported."""

    def __init__(self, warn: bool):
        self.warn = warn

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in ("mujoco", "dm_control"):
            sys.meta_path.remove(self)
            _choose_or_warn(self.warn)


def _choose_or_warn(warn: bool) -> None:
    try:
        choose_backend()
    except ConfigError as error:
        global _refusal
        _refusal = str(error)
        if warn:
            log.warning("MuJoCo renders nothing in this process: %s", error)
        _use("disable")


# --- requiring ---


def is_rendered_by_mujoco(config: EnvConfig) -> bool:
    """Whether MuJoCo renders an env. Of other packages' envs this is known only once it is made."""
    if config.family != "gymnasium":
        return config.family not in ("atari", "vector")
    import gymnasium

    spec = gymnasium.registry.get(config.name)
    return spec is not None and str(spec.entry_point).startswith("gymnasium.envs.mujoco")


def check_rendering(config: EnvConfig, *, pixels: bool | None, videos: bool) -> None:
    """Check that an env's images, observed or for videos, can be rendered here, and choose how.

    Envs of other packages are checked when they are made.

    Raises:
        ConfigError: no backend works here, or env.render=fast without image observations.
    """
    if not is_rendered_by_mujoco(config):
        return
    pixels = (config.family != "gymnasium") if pixels is None else pixels
    if config.render == "fast" and not pixels:
        raise ConfigError(FAST_NEEDS_MUJOCO_IMAGES.format(config.name, "observed as states here"))
    if pixels or videos:
        require_backend(WITHOUT_PIXELS if pixels else WITHOUT_VIDEOS)


def require_backend(alternative: str) -> str:
    """The working backend. `alternative` tells the user how to run without one.

    Raises:
        ConfigError: there is none. The message says how to get one.
    """
    try:
        backend = choose_backend()
    except ConfigError as error:
        raise ConfigError(f"{str(error).rstrip('.')}; or {alternative}.") from error.__cause__
    if backend is None and _chosen == "disable" and _refusal:
        raise ConfigError(f"{_refusal.rstrip('.')}; or {alternative}.")
    if backend is None:
        why = why_no_backend()
        raise ConfigError(f"Pixels and videos cannot be rendered here: {why}; or {alternative}.")
    return backend


def why_no_backend() -> str:
    """Why no backend was chosen and how to get one: change MUJOCO_GL, or install a library."""
    errors = {name: backend_error(name) for name in BACKENDS}
    working = [name for name, error in errors.items() if error is None]
    if working:  # then MUJOCO_GL must have disabled rendering
        forbids = os.environ.get("MUJOCO_GL", "")
        return f"MUJOCO_GL={forbids} forbids it, while {working[0]} works; unset MUJOCO_GL"
    listed = "; ".join(f"{name}: {error}" for name, error in errors.items())
    return f"no OpenGL library renders without a screen ({listed}); {INSTALL}"
