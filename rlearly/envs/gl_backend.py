"""Which OpenGL backend draws MuJoCo without a screen; decided before mujoco is imported."""

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
NONE = ("disable", "disabled", "off", "false", "0")
PROBE = Path(__file__).with_name("gl_probe.py")
INSTALL = (
    "sudo apt-get install libegl1 libopengl0 libgl1-mesa-dri (EGL), "
    "or sudo apt-get install libosmesa6 (OSMesa)"
)

NOT_DRAWN = (
    "env.render=fast: is about images that MuJoCo draws to be observed, and env={} is {}; "
    "leave it out."
)
WITHOUT_PIXELS = "train from states without videos: obs=state video_size=0"
WITHOUT_VIDEOS = "do without videos: video_size=0"


@cache
def choose_backend() -> str | None:
    """Set MUJOCO_GL to a backend that works here and return it, or return None if none does.

    A MUJOCO_GL that the user has set is kept. Each candidate is tried in a process of its own,
    because a broken driver may abort the process that asks it.

    Raises:
        ConfigError: MUJOCO_GL names a backend that does not work here, or none that exists.
    """
    named = os.environ.get("MUJOCO_GL", "").lower()
    chosen = named or next((name for name in BACKENDS if backend_error(name) is None), None)
    if named in BACKENDS:
        reason = backend_error(named)
        if reason:
            raise ConfigError(
                f"MUJOCO_GL={named} is set, but it does not work here ({reason}): unset it, "
                f"or {INSTALL}."
            )
    elif named and named not in (*SCREEN, *NONE):
        raise ConfigError(
            f"MUJOCO_GL: expected one of {', '.join((*BACKENDS, 'glfw', 'disable'))}, "
            f"received {named!r}."
        )
    os.environ["MUJOCO_GL"] = chosen or "disable"
    if chosen in BACKENDS:
        os.environ["PYOPENGL_PLATFORM"] = chosen
    return None if chosen is None or chosen in NONE else chosen


def require_rendering(config: EnvConfig, *, pixels: bool, videos: bool) -> None:
    """Have a backend if a task is observed by images, or is to be filmed (`videos`).

    Raises:
        ConfigError: none works here, or fast drawing is asked for where no image is observed.
    """
    if config.render == "fast" and not pixels:
        raise ConfigError(NOT_DRAWN.format(config.name, "observed by states here"))
    if pixels or videos:
        require_backend(WITHOUT_PIXELS if pixels else WITHOUT_VIDEOS)


def require_backend(otherwise: str) -> str:
    """The working backend. `otherwise` says how to do without one.

    Raises:
        ConfigError: there is none; the sentence names the remedy.
    """
    backend = choose_backend()
    if backend is None:
        raise ConfigError(
            f"Pixels and videos cannot be drawn here: {why_no_backend()}; or {otherwise}."
        )
    return backend


def why_no_backend() -> str:
    """Why no backend was chosen, and what to do: let MUJOCO_GL allow one, or install one."""
    reasons = {name: backend_error(name) for name in BACKENDS}
    working = [name for name, reason in reasons.items() if reason is None]
    if working:  # only a MUJOCO_GL that forbids drawing passes a working one by
        forbids = os.environ.get("MUJOCO_GL", "")
        return f"MUJOCO_GL={forbids} forbids it, while {working[0]} works; unset MUJOCO_GL"
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"no OpenGL library draws without a screen ({told}); {INSTALL}"


def backend_error(backend: str) -> str | None:
    """Why a backend cannot be used here, or None if it can."""
    finished = subprocess.run(
        [sys.executable, "-I", "-S", str(PROBE), backend],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if finished.returncode == 0:
        return None
    lines = finished.stdout.strip().splitlines() or [f"its driver ended with {finished.returncode}"]
    return lines[-1]
