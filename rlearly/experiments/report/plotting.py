"""Drawing shared by the figures of single runs and of sweeps."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

FRAMES = "simulator frames"
AS_TYPED: dict[Any, Any] = {"text.parse_math": False}
"""Matplotlib's setting for texts that are drawn as they are, `$` included."""


def single_point_marker(points: Sized) -> str | None:
    """The marker for a line of one point, which is invisible without one; otherwise None."""
    return "o" if len(points) == 1 else None


def legend_label(text: str) -> str:
    """A label that the legend shows; matplotlib hides those that begin with an underscore."""
    return f"\u200b{text}" if text.startswith("_") else text


def plot_line(axes: Any, frames: Sized, values: Sized, **style: Any) -> None:
    """Plot values over frames; a single point gets a marker."""
    axes.plot(frames, values, **{"marker": single_point_marker(frames)} | style)
