"""Choose the OpenGL backend that renders MuJoCo without a screen, before mujoco is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from rlearly.config.schema import EnvConfig
from rlearly.core.errors import ConfigError

BACKENDS = ("egl", "osmesa")
SCREEN = ("glfw", "glx", "on", "enable", "enabled", "true", "1")
DISABLED = ("disable", "disabled", "off", "false", "0")
PROBE = Path(__file__).with_name("gl_probe.py")
INSTALL = (
    "sudo apt-get install libegl1 libopengl0 libgl1-mesa-dri (EGL), "
    "or sudo apt-get install libosmesa6 (OSMesa)"
)
FAST_NEEDS_MUJOCO_IMAGES = (
    "env.render=fast: applies only to image observations that MuJoCo renders, and env={} is {}; "
    "leave it out."
)
WITHOUT_PIXELS = "train from states without videos: obs=state video_size=0"
WITHOUT_VIDEOS = "do without videos: video_size=0"


@cache
def choose_backend() -> str | None:
    """Set MUJOCO_GL to a backend that works here and return it, or return None if none does.

    A MUJOCO_GL set by the user is kept. Each candidate is tried in its own process, because a
    broken driver can abort the process that probes it.

    Raises:
        ConfigError: MUJOCO_GL names an unknown backend, or one that does not work here.
    """
    requested = os.environ.get("MUJOCO_GL", "").lower()
    chosen = requested or next((name for name in BACKENDS if backend_error(name) is None), None)
    if requested in BACKENDS:
        error = backend_error(requested)
        if error:
            raise ConfigError(
                f"MUJOCO_GL={requested} is set, but it does not work here ({error}): unset it, "
                f"or {INSTALL}."
            )
    elif requested and requested not in (*SCREEN, *DISABLED):
        raise ConfigError(
            f"MUJOCO_GL: expected one of {', '.join((*BACKENDS, 'glfw', 'disable'))}, "
            f"received {requested!r}."
        )
    os.environ["MUJOCO_GL"] = chosen or "disable"
    if chosen in BACKENDS:
        os.environ["PYOPENGL_PLATFORM"] = chosen
    return None if chosen is None or chosen in DISABLED else chosen


def require_rendering(config: EnvConfig, *, pixels: bool, videos: bool) -> None:
    """Choose a backend, and check that it can render what is needed: observations or videos.

    Raises:
        ConfigError: no backend works here, or env.render=fast without image observations.
    """
    if config.render == "fast" and not pixels:
        raise ConfigError(FAST_NEEDS_MUJOCO_IMAGES.format(config.name, "observed as states here"))
    choose_backend()
    if pixels or videos:
        require_backend(WITHOUT_PIXELS if pixels else WITHOUT_VIDEOS)


def require_backend(alternative: str) -> str:
    """The working backend. `alternative` tells the user how to run without one.

    Raises:
        ConfigError: there is none. The message says how to get one.
    """
    backend = choose_backend()
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


def backend_error(backend: str) -> str | None:
    """Why a backend does not work here, or None if it does."""
    command = [sys.executable, "-I", "-S", str(PROBE), backend]
    probe = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=60
    )
    if probe.returncode == 0:
        return None
    return (probe.stdout.strip().splitlines() or [f"its driver ended with {probe.returncode}"])[-1]
