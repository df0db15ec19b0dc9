"""Render MuJoCo with an off-screen buffer no larger than the images, exactly or fast.

The pixels equal those rendered in a larger buffer; clearing, resolving and reading it take less
time. `fast` leaves out shadows, reflections and multisampling, which take most of the time of
rendering on a CPU, and so gives different pixels.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from rlearly.envs.gl_backend import WITHOUT_VIDEOS, require_backend

FAST_FLAGS = {"shadow": False, "reflection": False}
"""Scene flags of `fast`. Multisampling and the shadow map are settings of the GL context."""


def _disable_context_extras(visual: Any) -> None:
    """GL contexts made for this model from now on have no multisampling and no shadow map."""
    visual.quality.offsamples = 0
    visual.quality.shadowsize = 0


class DMControlRenderer:
    """Renders a dm_control physics from one camera.

    `keep_cameras`: the physics object never changes, so one camera per image size can be reused.
    """

    def __init__(self, camera: int | str, *, fast: bool, keep_cameras: bool):
        self.camera = camera
        self.flags = FAST_FLAGS if fast else None
        self.keep_cameras = keep_cameras
        self.side = 0  # of the buffer: the largest image so far
        self.cameras: dict[int, Any] = {}

    def render(self, physics: Any, size: int) -> np.ndarray:
        """uint8 [size, size, 3], valid until the next image of that size is rendered."""
        self._resize_buffer(physics, size)
        if not self.keep_cameras:
            return physics.render(
                size, size, camera_id=self.camera, render_flag_overrides=self.flags
            )
        if size not in self.cameras:
            from dm_control.mujoco import engine

            self.cameras[size] = engine.Camera(physics, size, size, self.camera)
        return self.cameras[size].render(render_flag_overrides=self.flags)

    def _resize_buffer(self, physics: Any, size: int) -> None:
        """Set the buffer's size: now if it exists, otherwise for when it is made."""
        self.side = max(self.side, size)
        visual = physics.model.vis
        has_context = bool(physics._contexts)  # `contexts` would make one
        if not has_context:
            require_backend(WITHOUT_VIDEOS)
        if self.flags and not has_context:
            _disable_context_extras(visual)
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
    """Renders a MuJoCo model and its data, with one mujoco.Renderer per image size."""

    def __init__(self, *, fast: bool):
        self.fast = fast
        self.renderers: dict[int, Any] = {}

    def render(self, model: Any, data: Any, camera: Any, size: int) -> np.ndarray:
        """uint8 [size, size, 3], seen by a camera given by its number or as an MjvCamera."""
        if size not in self.renderers:
            self.renderers[size] = self._make_renderer(model, size)
        renderer = self.renderers[size]
        renderer.update_scene(data, camera=camera)
        return renderer.render()

    def _make_renderer(self, model: Any, size: int) -> Any:
        require_backend(WITHOUT_VIDEOS)
        mujoco: Any = importlib.import_module("mujoco")
        buffer, quality = model.vis.global_, model.vis.quality
        before = buffer.offwidth, buffer.offheight, quality.offsamples, quality.shadowsize
        try:
            buffer.offwidth = buffer.offheight = size
            if self.fast:
                _disable_context_extras(model.vis)
            renderer = mujoco.Renderer(model, size, size)
        finally:  # the env may also render by itself
            buffer.offwidth, buffer.offheight, quality.offsamples, quality.shadowsize = before
        if self.fast:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = False
        return renderer

    def close(self) -> None:
        for renderer in self.renderers.values():
            renderer.close()
        self.renderers = {}
