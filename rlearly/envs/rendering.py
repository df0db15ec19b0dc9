"""Which OpenGL backend draws MuJoCo without a screen; decided before mujoco is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from rlearly.config import ConfigError

BACKENDS = ("egl", "osmesa")
SCREEN = ("glfw", "glx", "on", "enable", "enabled", "true", "1")
NONE = ("disable", "disabled", "off", "false", "0")
PROBE = Path(__file__).with_name("gl_probe.py")
INSTALL = (
    "sudo apt-get install libegl1 libopengl0 libgl1-mesa-dri (EGL), "
    "or sudo apt-get install libosmesa6 (OSMesa)"
)


@cache
def choose_backend() -> str | None:
    """Set MUJOCO_GL to a backend that works here and return it, or return None if none does.

    A MUJOCO_GL that the user has set is kept. Each candidate is tried in a process of its own,
    because a broken driver may abort the process that asks it.

    Raises:
        ConfigError: MUJOCO_GL names a backend that does not work here, or none that exists.
    """
    named = os.environ.get("MUJOCO_GL", "").lower()
    chosen = named or next((name for name in BACKENDS if reason_against(name) is None), None)
    if named in BACKENDS:
        reason = reason_against(named)
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


def require_backend() -> str:
    """The working backend.

    Raises:
        ConfigError: there is none; the sentence names the packages to install.
    """
    backend = choose_backend()
    if backend is None:
        reasons = "; ".join(f"{name}: {reason_against(name) or 'works'}" for name in BACKENDS)
        raise ConfigError(
            "Drawing pixels or videos needs an OpenGL library that draws without a screen, and none works "
            f"here ({reasons}): {INSTALL}; or unset MUJOCO_GL if it says otherwise; "
            "or learn from states without videos: env.pixels=false video_size=0."
        )
    return backend


def reason_against(backend: str) -> str | None:
    """Why a backend cannot be used here, or None if it can."""
    finished = subprocess.run(
        [sys.executable, "-I", "-S", str(PROBE), backend], capture_output=True, text=True, timeout=60
    )
    if finished.returncode == 0:
        return None
    lines = finished.stdout.strip().splitlines() or [f"its driver ended with {finished.returncode}"]
    return lines[-1]
