"""`python -m rlearly.experiments.curves RUN_DIR ... out=curve.png`: returns over frames.

Every run is drawn by itself: a mean over a few seeds hides the broken one.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlearly.config import ConfigError


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
        ConfigError: it has no metrics.jsonl.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise ConfigError(f"{run} is not a run directory (it has no metrics.jsonl).")
    rows: list[dict[str, Any]] = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a run that is being written
            continue
    evals = [r for r in rows if "eval/episode_return" in r]
    dormant = [r for r in rows if "plasticity/dormant_ratio" in r]
    return Curve(
        label=str(run),
        frames=[r["frames"] for r in evals],
        returns=[r["eval/episode_return"] for r in evals],
        dormant_frames=[r["frames"] for r in dormant],
        dormant_ratios=[r["plasticity/dormant_ratio"] for r in dormant],
    )


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
    runs = [w for w in words if "=" not in w and not w.startswith("-")]
    named = dict(w.split("=", 1) for w in words if "=" in w)
    if not runs or "--help" in words:
        print("Usage: python -m rlearly.experiments.curves RUN_DIR ... [out=curve.png] [title=...]")
        return 0 if "--help" in words else 2
    unknown = sorted(set(named) - {"out", "title"})
    out = Path(named.get("out") or "curve.png")
    try:
        if unknown:
            raise ConfigError(f"There is no key {unknown[0]!r}; valid names: out, title.")
        curves = [read(Path(run)) for run in runs]
        plot(curves, out, named.get("title", "evaluation returns"))
        write_csv(curves, out.with_suffix(".csv"))
    except (OSError, ValueError) as error:
        print(f"rlearly: out: {out} cannot be written ({error}); name a .png.", file=sys.stderr)
        return 2
    except ConfigError as error:
        print(f"rlearly: {error}", file=sys.stderr)
        return 2
    print(f"{out} and {out.with_suffix('.csv')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
