"""Evaluation videos."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np


class Video:
    """An H.264 mp4 of frames, uint8 [H, W, 3] with even H and W, encoded as they are added.

    The file appears under its name only once it is complete.
    """

    def __init__(self, path: Path, frames_per_second: int = 30):
        self.path = path
        self.partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self.frames_per_second = frames_per_second

    def __enter__(self) -> Video:
        import imageio.v3 as imageio

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: Any = imageio.imopen(self.partial.absolute(), "w", plugin="pyav")
        self._file.init_video_stream("libx264", fps=self.frames_per_second)
        return self

    def add(self, image: np.ndarray) -> None:
        self._file.write_frame(image)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None:
            self.partial.replace(self.path)
        else:
            self.partial.unlink(missing_ok=True)
