"""A matplotlib figure that a notebook shows, without pyplot and its global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

from rlearly.experiments.report.plotting import AS_TYPED, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class InlineFigure:
    """A figure that a notebook shows as the last value of a cell; `save` writes it to a file."""

    def __init__(self, figure: Figure):
        self.figure = figure

    def save(self, path: str | Path) -> Path:
        """Write it as .png, .pdf or .svg, by the path's suffix."""
        with matplotlib.rc_context(AS_TYPED):
            save_figure(self.figure, Path(path))
        return Path(path)

    def _repr_png_(self) -> bytes:
        packed = io.BytesIO()
        with matplotlib.rc_context(AS_TYPED):
            self.figure.savefig(packed, format="png", dpi=110)
        return packed.getvalue()
