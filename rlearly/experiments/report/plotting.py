"""Drawing shared by the figures of single runs and of sweeps."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any

from rlearly.system.atomic import replacing
from rlearly.system.output import as_unicode

FRAMES = "simulator frames"
AS_TYPED: dict[Any, Any] = {"text.parse_math": False}
"""Matplotlib's setting for texts that are drawn as they are, `$` included."""


def as_label(text: str) -> str:
    """A text that matplotlib, with AS_TYPED, draws as it is.

    Bytes of a path that do not decode are replaced, and a leading underscore does not hide the
    text in a legend.
    """
    return as_unicode(f"\u200b{text}" if text.startswith("_") else text)


def single_point_marker(points: Sized) -> str | None:
    """The marker for a line of one point, which is invisible without one; otherwise None."""
    return "o" if len(points) == 1 else None


def plot_line(axes: Any, frames: Sized, values: Sized, **style: Any) -> None:
    """Plot values over frames; a single point gets a marker."""
    axes.plot(frames, values, **{"marker": single_point_marker(frames)} | style)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure atomically, in the format that the path's suffix names; without one as PNG."""
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix(".") or "png", dpi=130)
