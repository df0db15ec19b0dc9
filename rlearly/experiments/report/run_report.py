"""Figures of single runs: all that one run logged, or the returns of several runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly.config.structured import read_yaml
from rlearly.core.errors import ConfigError
from rlearly.experiments.report.curves import write_csv
from rlearly.experiments.report.metrics_file import (
    AWAKEN_STEP,
    RETURN,
    SUCCESS,
    Row,
    metric_series,
    read_lineage,
    read_rows,
)
from rlearly.experiments.report.plotting import AS_TYPED, FRAMES, as_label, plot_line, save_figure
from rlearly.training.run_directory import early_end

EVENTS = {
    "event/replay_ratio": ("replay ratio changes", "black", "-"),
    "event/perturbation_alpha": ("perturbation", "0.5", ":"),
    "event/reset": ("reset", "C5", "--"),
    "event/injection": ("injection", "C6", "--"),
    "event/freeze_encoder": ("encoder frozen", "C9", "--"),
    "event/augmentation": ("augmentation switched", "C8", "--"),
}
"""Metric -> label, colour and line style. Without ReDo: every 1000 steps is too often to mark."""

DORMANT_RATIO = "plasticity/dormant_ratio"
AWAKENING = ("awakening", "C4", "-.")
JOINT = ("begins", "0.3", (0, (1, 3)))
"""Where a run began from the one before it."""

NETWORKS = ("encoder", "actor", "critic", "value")

Limits = tuple[float | None, float | None]
Line = tuple[str, str | None, dict[str, Any]]
"""Metric, label and matplotlib style."""


@dataclass(frozen=True)
class EventMarker:
    """An event to mark in the figure, with its label and line style."""

    frames: int
    label: str
    colour: str
    line: Any


@dataclass(frozen=True)
class RunReport:
    """The rows of a run's metrics.jsonl, and what they show."""

    title: str
    rows: list[Row]
    early_end: str | None = None
    """Why the run ended before its train_frames, if it did."""
    joints: Sequence[int] = ()
    """The frames at which runs began from another one, if its rows are shown too."""

    @staticmethod
    def load(run: Path, *, ancestors: bool = False) -> RunReport:
        """Read a run directory, finished or not.

        Args:
            ancestors: put the runs that it began from in front of it.

        Raises:
            ConfigError: it is not a run directory, or it has no rows yet.
        """
        rows, joints = read_lineage(run) if ancestors else (read_rows(run), [])
        if not rows:
            raise ConfigError(f"{run} has no rows yet: wait for its first log_every_frames.")
        return RunReport(_title(run), rows, early_end(run), joints)

    def series(self, metric: str) -> tuple[list[int], list[float]]:
        """Frames and values of a metric."""
        return metric_series(self.rows, metric)

    def by_network(self, metric: str) -> dict[str, tuple[list[int], list[float]]]:
        """Frames and values of `plasticity/METRIC_NETWORK` for each network that logged it."""
        found = {name: self.series(f"plasticity/{metric}_{name}") for name in NETWORKS}
        return {name: series for name, series in found.items() if series[0]}

    def event_markers(self) -> list[EventMarker]:
        """All events in order of frames."""
        found = [
            EventMarker(row["frames"], *style)
            for row in self.rows
            for name, style in EVENTS.items()
            if name in row
        ]
        found += [EventMarker(frames, *JOINT) for frames in self.joints]
        awake = [row for row in self.rows if row.get(AWAKEN_STEP, -1) > 0]
        if awake:
            last = awake[-1]  # earlier rows average over updates before and after awakening
            frames = last[AWAKEN_STEP] * (last["frames"] / last["steps"])
            found.append(EventMarker(round(frames), *AWAKENING))
        return sorted(found, key=lambda marker: marker.frames)

    def summary(self) -> list[str]:
        """The lines that a terminal shows."""
        lines = [self.title, f"  frames      {self.rows[-1]['frames']:,}"]
        if self.early_end:
            lines.append(f"  ended early {self.early_end}")
        lines += self._last_and_best("return", RETURN, ".1f") or ["  return      no evaluation yet"]
        lines += self._last_and_best("success", SUCCESS, ".0%")
        lines += self._first_and_last("FAU", "fau")
        lines += self._first_and_last("dormant", "dormant_ratio")
        events: dict[str, list[str]] = {}
        for marker in self.event_markers():
            events.setdefault(marker.label, []).append(f"{marker.frames:,}")
        for label, at in events.items():
            more = f" and {len(at) - 6} more" if len(at) > 6 else ""
            lines.append(f"  {label}: at {', '.join(at[:6])}{more} frames")
        checks = [row for row in self.rows if "event/fau_critic_before" in row]
        if checks:
            change = abs(checks[-1]["event/fau_critic"] - checks[-1]["event/fau_critic_before"])
            lines.append(
                f"  {len(checks)} checks of the critic's FAU, which moved by {change:.4f} at the "
                "last one"
            )
        recycled = self.series("event/recycled_units")[1]
        if recycled:
            lines.append(f"  {sum(recycled):,.0f} units recycled in {len(recycled)} ReDo steps")
        return lines

    def _last_and_best(self, title: str, metric: str, spec: str) -> list[str]:
        """A line on the evaluations; none if there are none."""
        frames, values = self.series(metric)
        if not values:
            return []
        last, best = values[-1], max(values)
        at = f"{frames[values.index(best)]:,} frames"
        return [f"  {title:11} {last:{spec}} at the last evaluation, best {best:{spec}} at {at}"]

    def _first_and_last(self, title: str, metric: str) -> list[str]:
        """A line on a metric of each network; none if there are none."""
        parts = [
            f"{name} {values[0]:.3f}" + (f" -> {values[-1]:.3f}" if len(values) > 1 else "")
            for name, (_, values) in self.by_network(metric).items()
        ]
        return [f"  {title:11} {', '.join(parts)}"] if parts else []


def _title(run: Path) -> str:
    """The directory, and agent, env and settings if its config is readable."""
    try:
        config = read_yaml(run / "config.yaml")
        parts = [f"{config.agent_name} on {config.env.name}, seed {config.seed}"]
        parts += [f"replay ratio {config.replay_ratio}", *(config.get("intervention") or ())]
    except (OSError, OmegaConfBaseException, YAMLError):
        return str(run)
    return f"{run}\n{', '.join(parts)}"


def _panels() -> Iterator[tuple[str, float, Limits, Sequence[Line]]]:
    """Label, relative height, y limits and lines of each panel of a run's figure."""
    evaluation = {"color": "0.1", "marker": "o", "markersize": 3}
    episodes = {"color": "0.7", "marker": ".", "markersize": 3, "linestyle": ""}
    checks = {"color": "black", "marker": "x", "markersize": 5, "linestyle": ""}
    fau, dormant = (
        [
            (f"plasticity/{kind}_{name}", name, {"color": f"C{i}", "linewidth": 1.2})
            for i, name in enumerate(NETWORKS)
        ]
        for kind in ("fau", "dormant_ratio")
    )
    fau.append(("event/fau_critic", "checks of the critic", checks))
    dormant.append((DORMANT_RATIO, "actor, as in DrM", {"color": "0.1", "linewidth": 1}))
    training: Line = ("train/episode_return", "training episodes", episodes)
    ratio: Line = ("train/replay_ratio", None, {"color": "0.1", "drawstyle": "steps-pre"})
    yield "return", 2.0, (None, None), [training, (RETURN, "evaluation", evaluation)]
    yield "success rate", 0.9, (-0.03, 1.03), [(SUCCESS, None, evaluation)]
    yield "active units (FAU)", 1.2, (None, None), fau
    yield "dormant ratio", 1.2, (0, None), dormant
    yield "updates per step", 0.8, (0, None), [ratio]


def draw_run(report: RunReport) -> Figure:
    """A figure with a panel for each kind of metric that the run logged."""
    panels = [
        panel
        for panel in _panels()
        if panel[0] == "return" or any(report.series(metric)[0] for metric, _, _ in panel[-1])
    ]
    heights = [height for _, height, _, _ in panels]
    figure, grid = _stack(report.title, heights, (8, 1 + 1.6 * sum(heights)))
    for axes, (title, _, limits, lines) in zip(grid, panels, strict=True):
        drawn: list[Any] = [([], [])]
        for metric, label, style in lines:
            series = report.series(metric)
            if series not in drawn:  # DrM's dormant ratio may be the actor's
                plot_line(axes, *series, label=label, **style)
                drawn.append(series)
        axes.set_ylabel(title)
        axes.set_ylim(*limits)
    explained: set[str] = set()
    for marker in report.event_markers():
        for axes in grid:
            axes.axvline(marker.frames, color=marker.colour, linestyle=marker.line, linewidth=0.9)
        if marker.label not in explained:
            grid[0].get_lines()[-1].set_label(marker.label)
            explained.add(marker.label)
    for axes in grid:
        axes.set_xlim(left=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def read_runs(
    runs: Sequence[str], *, ancestors: bool = False
) -> tuple[dict[str, list[Row]], dict[str, list[int]]]:
    """(rows, frames at which it began from another run) of each run, by its path.

    Args:
        ancestors: put the runs that it began from in front of it.
    """
    read = {
        run: read_lineage(Path(run)) if ancestors else (read_rows(Path(run)), []) for run in runs
    }
    return {run: own for run, (own, _) in read.items()}, {run: at for run, (_, at) in read.items()}


def draw_runs(
    runs: Mapping[str, list[Row]], title: str, joints: Mapping[str, Sequence[int]] | None = None
) -> Figure:
    """The evaluation returns of several runs (rows by label), and their actors' dormant ratios.

    `joints`: of each run, where it began from another one whose rows are shown too.

    Each run has its own line: a mean over a few seeds would hide a broken run.
    """
    figure, (above, below) = _stack(title, (2, 1), (7, 5))
    for label, rows in runs.items():
        series = metric_series(rows, RETURN)
        (line,) = above.plot(*series, marker="o", markersize=3, label=as_label(label))
        for frames in (joints or {}).get(label, ()):
            above.axvline(frames, color=line.get_color(), linestyle=JOINT[2], linewidth=1)
        plot_line(below, *metric_series(rows, DORMANT_RATIO), linewidth=1)
    above.set(ylabel="evaluation return")
    above.legend(fontsize=8, frameon=False)
    below.set(ylabel="actor's dormant ratio", xlim=(0, None), ylim=(0, None))
    return figure


def write_run_report(run: Path, out: Path, *, ancestors: bool = False) -> tuple[list[str], Figure]:
    """Draw all that a run logged; returns its summary with the figure's path, and the figure.

    Raises:
        ConfigError: the run cannot be read, or the figure cannot be written.
    """
    report = RunReport.load(run, ancestors=ancestors)
    with _writing(out):
        figure = draw_run(report)
        save_figure(figure, out)
    return [*report.summary(), str(out)], figure


def write_runs_report(
    runs: Sequence[str], out: Path, title: str, *, ancestors: bool = False
) -> tuple[list[str], Figure]:
    """Draw the evaluation returns of runs, and list them in a CSV file; returns a line with both
    paths, and the figure.

    Raises:
        ConfigError: a run cannot be read, or a file cannot be written.
    """
    rows, joints = read_runs(runs, ancestors=ancestors)
    returns = {run: metric_series(own, RETURN) for run, own in rows.items()}
    for run, (frames, _) in returns.items():
        if not frames:
            reason = "none was reached, or eval_every_frames is 0"
            print(f"{run} has no evaluations ({reason}): not drawn.", file=sys.stderr)
    table = out.with_suffix(".csv")
    with _writing(out):
        figure = draw_runs(rows, title, joints)
        save_figure(figure, out)
        evaluations = (
            [run, frames, f"{value:.2f}"]
            for run, series in returns.items()
            for frames, value in zip(*series, strict=True)
        )
        write_csv(table, ["run", "frames", "eval_episode_return"], evaluations)
    return [f"{out.resolve()} and {table.resolve()}"], figure


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Draw texts as they are, and turn a failure to write into an error that names the output."""
    try:
        with matplotlib.rc_context(AS_TYPED):
            yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None  # without a partial's name
        raise ConfigError(
            f"out: {out} cannot be written ({reason or error}); name a .png, .pdf or .svg in an "
            "existing folder."
        ) from None


def _stack(
    title: str, heights: Sequence[float], size: tuple[float, float]
) -> tuple[Figure, list[Any]]:
    """A figure with panels of these relative heights on top of each other, over frames."""
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    panels = list(grid[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(FRAMES)
    figure.suptitle(as_label(title), fontsize=10)
    return figure, panels
