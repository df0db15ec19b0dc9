"""What commands change for the whole process, and put back when they return."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

ENVIRONMENT = (
    "CRC32C_SW_MODE", "CUBLAS_WORKSPACE_CONFIG", "MUJOCO_EGL_DEVICE_ID", "MUJOCO_GL",
    "PYGAME_HIDE_SUPPORT_PROMPT", "PYOPENGL_PLATFORM", "SDL_VIDEODRIVER",
)  # fmt: skip
"""Variables that rlearly or the packages that it imports set. Those that an env's own module sets
when it is imported stay, as it is not imported again."""


class Restored:
    """A context that several threads may be in at once: the last one out puts back what the first
    one found.

    `read` is called by the first one, and returns a function that puts back what it found.
    """

    def __init__(self, read: Callable[[], Callable[[], Any]]):
        self._read = read
        self._lock = threading.Lock()
        self._inside = 0
        self._put_back: Callable[[], Any] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._put_back = self._read()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._put_back:
                self._put_back()


def _process_state() -> Callable[[], None]:
    environment = {name: os.environ.get(name) for name in ENVIRONMENT}
    handlers, level = list(logging.root.handlers), logging.root.level
    generator, hook = random.getstate(), sys.excepthook
    # loaded later, they still have the states that they start with: their own, or the system's
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    numpy_generator = numpy.random.get_state() if numpy else None
    torch_generator = torch.get_rng_state() if torch else None
    filters = warnings.catch_warnings()
    filters.__enter__()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)

    def put_back() -> None:
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        random.setstate(generator)
        sys.excepthook = hook  # wandb sets its own
        if numpy:
            numpy.random.set_state(numpy_generator)
        if torch:
            torch.set_rng_state(torch_generator)
        filters.__exit__(None, None, None)

    return put_back


restored_process = Restored(_process_state)
"""The context of a command. It puts back environment variables (`ENVIRONMENT`), the handlers and
level of the root logger, warnings' filters, `sys.excepthook`, and the states of Python's, numpy's
and torch's global random generators. Signal handlers are put back by `signals.handled`, torch's
settings by `machine.computing`.

Modules that were imported stay imported: what they keep, such as the OpenGL backend that MuJoCo was
imported with or the threads of wandb's telemetry, cannot be put back.
"""
