"""How MuJoCo draws: into a buffer no larger than the pictures, exactly or fast.

The pixels are those of a larger buffer; only its clearing, resolving and reading take less time.
`fast` leaves out shadows, reflections and multisampling, which is most of what drawing takes on a
processor, and gives other pixels.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

PLAIN = {"shadow": False, "reflection": False}
"""What `fast` switches off in a scene. Multisampling and the shadows' map are of the context."""


def _without_extras(visual: Any) -> None:
    """Contexts made for a model from now on have neither multisampling nor a map of shadows."""
    visual.quality.offsamples = 0
    visual.quality.shadowsize = 0


class DMControlRenderer:
    """Pictures of a dm_control physics by one of its cameras.

    `keep_cameras`: the physics is the same one for good, so that a camera is made once a size.
    """

    def __init__(self, camera: int | str, *, fast: bool, keep_cameras: bool):
        self.camera = camera
        self.flags = PLAIN if fast else None
        self.keep_cameras = keep_cameras
        self.side = 0  # of the buffer: the largest picture's so far
        self.cameras: dict[int, Any] = {}

    def take(self, physics: Any, size: int) -> np.ndarray:
        """uint8 [size, size, 3], valid until the next one of that size."""
        self._fit(physics, size)
        if not self.keep_cameras:
            return physics.render(
                size, size, camera_id=self.camera, render_flag_overrides=self.flags
            )
        if size not in self.cameras:
            from dm_control.mujoco import engine

            self.cameras[size] = engine.Camera(physics, size, size, self.camera)
        return self.cameras[size].render(render_flag_overrides=self.flags)

    def _fit(self, physics: Any, size: int) -> None:
        """Give the buffer its size, at once if it is there and else when it is made."""
        self.side = max(self.side, size)
        visual = physics.model.vis
        has_context = bool(physics._contexts)  # `contexts` would make one
        if self.flags and not has_context:
            _without_extras(visual)
        buffer = visual.global_
        if (buffer.offwidth, buffer.offheight) == (self.side, self.side):
            return
        buffer.offwidth = buffer.offheight = self.side
        if has_context:
            mujoco: Any = importlib.import_module("mujoco")
            contexts = physics.contexts
            with contexts.gl.make_current() as gl:
                gl.call(mujoco.mjr_resizeOffscreen, self.side, self.side, contexts.mujoco.ptr)


class MujocoRenderer:
    """Pictures of a MuJoCo model and its data, by a renderer of each size."""

    def __init__(self, *, fast: bool):
        self.fast = fast
        self.renderers: dict[int, Any] = {}

    def take(self, model: Any, data: Any, view: Any, size: int) -> np.ndarray:
        """uint8 [size, size, 3] from a camera's number or an MjvCamera."""
        if size not in self.renderers:
            self.renderers[size] = self._renderer(model, size)
        renderer = self.renderers[size]
        renderer.update_scene(data, camera=view)
        return renderer.render()

    def _renderer(self, model: Any, size: int) -> Any:
        mujoco: Any = importlib.import_module("mujoco")
        with _as_it_was(model.vis):  # the env may draw by itself too
            model.vis.global_.offwidth = model.vis.global_.offheight = size
            if self.fast:
                _without_extras(model.vis)
            renderer = mujoco.Renderer(model, size, size)
        if self.fast:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = False
        return renderer

    def close(self) -> None:
        for renderer in self.renderers.values():
            renderer.close()
        self.renderers = {}


@contextlib.contextmanager
def _as_it_was(visual: Any) -> Iterator[None]:
    buffer, quality = visual.global_, visual.quality
    before = buffer.offwidth, buffer.offheight, quality.offsamples, quality.shadowsize
    try:
        yield
    finally:
        buffer.offwidth, buffer.offheight, quality.offsamples, quality.shadowsize = before
