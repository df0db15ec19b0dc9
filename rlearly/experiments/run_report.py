"""One run, read at a glance: return, activity, dormancy and replay ratio over frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlearly.config import ConfigError
from rlearly.experiments.run_rows import Row, points, read_rows

EVENTS = {
    "event/replay_ratio": ("replay ratio rises", "C3"),
    "event/perturbation_alpha": ("perturbation", "C7"),
    "event/reset": ("reset", "C7"),
    "event/injection": ("injection", "C4"),
    "event/freeze_encoder": ("encoder frozen", "C5"),
    "event/augmentation": ("augmentation switched", "C6"),
}
"""Metric -> what it marks, and its colour. ReDo, each 1000 steps, would mark everything."""

AWAKENING = ("awakening", "C2")
ORDER = ("encoder", "actor", "critic", "value")


@dataclass(frozen=True)
class Mark:
    """Something that happened once, or now and then."""

    frames: int
    label: str
    colour: str


@dataclass(frozen=True)
class RunReport:
    """What a run's rows say."""

    title: str
    rows: list[Row]

    @staticmethod
    def load(run: Path) -> RunReport:
        """Of a run directory, finished or not.

        Raises:
            ConfigError: it is none, or nothing is written in it yet.
        """
        rows = read_rows(run)
        if not rows:
            raise ConfigError(f"{run} has no rows yet: wait for its first log_every_frames.")
        return RunReport(str(run), rows)

    def marks(self) -> list[Mark]:
        """In order of frames."""
        found = [
            Mark(row["frames"], label, colour)
            for row in self.rows
            for name, (label, colour) in EVENTS.items()
            if name in row
        ]
        awake = [row for row in self.rows if row.get("exploration/awaken_step", -1) > 0]
        if awake:
            last = awake[-1]  # earlier ones are means over updates on both sides of it
            frames_per_step = last["frames"] / last["steps"]
            found.append(Mark(round(last["exploration/awaken_step"] * frames_per_step), *AWAKENING))
        return sorted(found, key=lambda mark: mark.frames)

    def by_network(self, metric: str) -> dict[str, tuple[list[int], list[float]]]:
        """The points of `plasticity/METRIC_NETWORK` by network, as far as there are any."""
        found = {name: points(self.rows, f"plasticity/{metric}_{name}") for name in ORDER}
        return {name: pair for name, pair in found.items() if pair[0]}

    def summary(self) -> list[str]:
        """A line for each thing worth reading."""
        lines = [self.title, f"  frames      {self.rows[-1]['frames']:,}"]
        frames, returns = points(self.rows, "eval/episode_return")
        if returns:
            best = max(range(len(returns)), key=returns.__getitem__)
            lines.append(
                f"  return      {returns[-1]:.1f} at the last evaluation, best "
                f"{returns[best]:.1f} at {frames[best]:,} frames"
            )
        lines += self._first_and_last("FAU", "fau")
        lines += self._first_and_last("dormant", "dormant_ratio")
        marks = self.marks()
        for label in dict.fromkeys(mark.label for mark in marks):
            at = [f"{mark.frames:,}" for mark in marks if mark.label == label]
            shown = ", ".join(at[:6]) + (f" and {len(at) - 6} more" if len(at) > 6 else "")
            lines.append(f"  {label}: at {shown} frames")
        return lines

    def _first_and_last(self, title: str, metric: str) -> list[str]:
        parts = [
            f"{name} {values[0]:.3f} -> {values[-1]:.3f}"
            for name, (_, values) in self.by_network(metric).items()
        ]
        return [f"  {title:11} {', '.join(parts)}"] if parts else []


def draw(report: RunReport, path: Path) -> None:
    """Write the figure; its kind is the file name's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        4, 1, sharex=True, figsize=(8, 9), height_ratios=(2, 1.2, 1.2, 0.8), layout="constrained"
    )
    returns, activity, dormancy, ratio = panels
    frames, values = points(report.rows, "train/episode_return")
    returns.plot(frames, values, ".", color="0.75", markersize=3, label="training episodes")
    frames, values = points(report.rows, "eval/episode_return")
    returns.plot(frames, values, color="C0", marker="o", markersize=3, label="evaluation")
    returns.set_ylabel("return")
    _lines(activity, report.by_network("fau"))
    activity.set_ylabel("active units (FAU)")
    shares = report.by_network("dormant_ratio")
    each_update = points(report.rows, "plasticity/dormant_ratio")
    if each_update[0] and each_update != shares.get("actor"):
        dormancy.plot(*each_update, color="0.3", linewidth=1, label="DrM's, of the actor")
    _lines(dormancy, shares)
    dormancy.set_ylabel("dormant ratio")
    ratio.plot(*points(report.rows, "train/replay_ratio"), color="C0")
    ratio.set_ylabel("updates a step")
    ratio.set_xlabel("simulator frames")
    _mark(panels, report.marks())
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(left=0)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for panel in (dormancy, ratio):
        panel.set_ylim(bottom=0)
    figure.suptitle(report.title, fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _lines(panel: Any, curves: dict[str, tuple[list[int], list[float]]]) -> None:
    for name, pair in curves.items():
        panel.plot(*pair, color=f"C{ORDER.index(name)}", linewidth=1.2, label=name)


def _mark(panels: Sequence[Any], marks: Sequence[Mark]) -> None:
    """A vertical line through all panels for each mark, explained once."""
    explained: set[str] = set()
    for mark in marks:
        for panel in panels:
            label = None
            if panel is panels[0] and mark.label not in explained:
                explained.add(mark.label)
                label = mark.label
            panel.axvline(
                mark.frames, color=mark.colour, linestyle="--", linewidth=0.9, label=label
            )
