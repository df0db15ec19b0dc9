"""Which OpenGL backend draws MuJoCo without a screen; decided before mujoco is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rlearly.config import ConfigError

BACKENDS = ("egl", "osmesa")
PROBE = Path(__file__).with_name("gl_probe.py")
INSTALL = (
    "sudo apt-get install libegl1 libopengl0 libgl1-mesa-dri (EGL), "
    "or sudo apt-get install libosmesa6 (OSMesa)"
)


def choose_backend() -> str | None:
    """Set MUJOCO_GL to a backend that works here and return it, or return None if none does.

    A MUJOCO_GL that the user has set is kept as it is. Each candidate is tried in a process of
    its own, because a broken driver may abort the process that asks it.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if not chosen:
        chosen = next((name for name in BACKENDS if reason_against(name) is None), None)
        os.environ["MUJOCO_GL"] = chosen or "disable"
    if chosen in BACKENDS:
        os.environ["PYOPENGL_PLATFORM"] = chosen
    return None if chosen in (None, "disable", "disabled", "off", "0", "false") else chosen


def require_backend() -> str:
    """The working backend.

    Raises:
        ConfigError: there is none; the sentence names the packages to install.
    """
    backend = choose_backend()
    if backend is None:
        reasons = "; ".join(f"{name}: {reason_against(name) or 'works'}" for name in BACKENDS)
        raise ConfigError(
            "Observing pixels needs an OpenGL library that draws without a screen, and none works "
            f"here ({reasons}): {INSTALL}; or unset MUJOCO_GL if it says otherwise; "
            "or learn from states with env.pixels=false."
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
