"""Evaluation videos."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rlearly.system.atomic import replacing


class Video:
    """An H.264 mp4 of frames, uint8 [H, W, 3] with even H and W, encoded as they are added.

    The file appears under its name only once it is complete.
    """

    def __init__(self, path: Path, frames_per_second: int = 30):
        self.path = path
        self.frames_per_second = frames_per_second

    def __enter__(self) -> Video:
        import imageio.v3 as imageio

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            partial = stack.enter_context(replacing(self.path)).absolute()
            partial.touch()  # raises what imageio would replace by an unknown error
            self._file: Any = stack.enter_context(imageio.imopen(partial, "w", plugin="pyav"))
            self._file.init_video_stream("libx264", fps=self.frames_per_second)
            self._open = stack.pop_all()
        return self

    def add(self, image: np.ndarray) -> None:
        self._file.write_frame(image)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
