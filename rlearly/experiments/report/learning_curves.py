"""`python -m rlearly.experiments.curves RUN_DIR ... out=curve.png`: returns over frames.

Every run is drawn by itself: a mean over a few seeds hides the broken one.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlearly.config.overrides import parse_overrides
from rlearly.core.errors import ConfigError
from rlearly.experiments.report.metrics_file import points, read_rows


@dataclass(frozen=True)
class Curve:
    """Points of one run: frames and undiscounted returns of the evaluations."""

    label: str
    frames: list[int]
    returns: list[float]
    dormant_frames: list[int]
    dormant_ratios: list[float]


def read(run: Path) -> Curve:
    """The evaluation curve of a run directory, also of one that is still running.

    Raises:
        ConfigError: it has no metrics.jsonl, or one that cannot be read.
    """
    rows = read_rows(run)
    frames, returns = points(rows, "eval/episode_return")
    dormant_frames, dormant_ratios = points(rows, "plasticity/dormant_ratio")
    return Curve(str(run), frames, returns, dormant_frames, dormant_ratios)


def write_csv(curves: Sequence[Curve], path: Path) -> None:
    """One row an evaluation: run, frames, return."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["run", "frames", "eval_episode_return"])
        for curve in curves:
            for frames, value in zip(curve.frames, curve.returns, strict=True):
                writer.writerow([curve.label, frames, f"{value:.2f}"])


def plot(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Returns above, dormant ratios below, a line a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(7, 5), height_ratios=(2, 1), layout="constrained"
    )
    for curve in curves:
        above.plot(curve.frames, curve.returns, marker="o", markersize=3, label=curve.label)
        below.plot(curve.dormant_frames, curve.dormant_ratios, linewidth=1)
    above.set_title(title)
    above.set_ylabel("evaluation return")
    above.legend(fontsize=8, frameon=False)
    below.set_ylabel("actor's dormant ratio")
    below.set_xlabel("simulator frames")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(left=0)
    below.set_ylim(bottom=0)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or "--help" in words or "-h" in words:
        print("Usage: python -m rlearly.experiments.curves RUN_DIR ... [out=curve.png] [title=...]")
        return 0 if words else 2
    try:
        draw(words)
    except ConfigError as error:
        print(f"rlearly: {error}", file=sys.stderr)
        return 2
    return 0


def draw(words: Sequence[str]) -> None:
    """Write the picture and the CSV that command-line words ask for, and say where they are.

    Raises:
        ConfigError: a word is not known, a run cannot be read, or the output cannot be written.
    """
    runs = [Path(w) for w in words if "=" not in w and not w.startswith("-")]
    named = {"out": "curve.png", "title": "evaluation returns"}
    for key, value in parse_overrides([w for w in words if "=" in w or w.startswith("-")]):
        if key not in named:
            raise ConfigError(f"There is no key {key!r}; valid names: {', '.join(named)}.")
        if value in (None, ""):
            raise ConfigError(f"{key}: expected text, received nothing.")
        named[key] = str(value)
    if not runs:
        raise ConfigError("Expected the run directories to draw, received none.")
    out = Path(named["out"])
    curves = [read(run) for run in runs]
    for curve in curves:
        if not curve.frames:
            print(
                f"{curve.label} has no evaluations (none is done yet, or its eval_every_frames "
                "is 0), so no return of it is drawn.",
                file=sys.stderr,
            )
    try:
        plot(curves, out, named["title"])
        write_csv(curves, out.with_suffix(".csv"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"out: {out} cannot be written ({error}); name a .png.") from None
    print(f"{out.resolve()} and {out.with_suffix('.csv').resolve()}")


if __name__ == "__main__":
    sys.exit(main())
