"""One run, read at a glance: return, activity, dormancy and replay ratio over frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly.core.errors import ConfigError
from rlearly.experiments.report.metrics_file import SUCCESS, Row, alone, points, read_rows

EVENTS = {
    "event/replay_ratio": ("replay ratio changes", "black", "-"),
    "event/perturbation_alpha": ("perturbation", "0.5", ":"),
    "event/reset": ("reset", "C5", "--"),
    "event/injection": ("injection", "C6", "--"),
    "event/freeze_encoder": ("encoder frozen", "C9", "--"),
    "event/augmentation": ("augmentation switched", "C8", "--"),
}
"""Metric -> what it marks, and how. ReDo, each 1000 steps, would mark everything."""

AWAKENING = ("awakening", "C4", "-.")
ORDER = ("encoder", "actor", "critic", "value")


@dataclass(frozen=True)
class Mark:
    """Something that happened once, or now and then."""

    frames: int
    label: str
    colour: str
    line: str


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
        return RunReport(_title(run), rows)

    def marks(self) -> list[Mark]:
        """In order of frames."""
        found = [
            Mark(row["frames"], *look)
            for row in self.rows
            for name, look in EVENTS.items()
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
        returns = self._last_and_best("return", "eval/episode_return", ".1f")
        lines += returns or ["  return      no evaluation yet"]
        lines += self._last_and_best("success", SUCCESS, ".0%")
        lines += self._first_and_last("FAU", "fau")
        lines += self._first_and_last("dormant", "dormant_ratio")
        marks = self.marks()
        for label in dict.fromkeys(mark.label for mark in marks):
            at = [f"{mark.frames:,}" for mark in marks if mark.label == label]
            shown = ", ".join(at[:6]) + (f" and {len(at) - 6} more" if len(at) > 6 else "")
            lines.append(f"  {label}: at {shown} frames")
        return lines + self._checks() + self._recycled()

    def _checks(self) -> list[str]:
        """What the adaptive ratio decided by."""
        checks = [row for row in self.rows if "event/fau_critic_before" in row]
        if not checks:
            return []
        last = checks[-1]
        moved = abs(last["event/fau_critic"] - last["event/fau_critic_before"])
        return [
            f"  {len(checks)} checks of the critic's FAU, which moved by {moved:.4f} at the last"
        ]

    def _recycled(self) -> list[str]:
        """What ReDo did."""
        counts = points(self.rows, "event/recycled_units")[1]
        if not counts:
            return []
        return [f"  {sum(counts):,.0f} units recycled, {len(counts)} times of asking"]

    def _last_and_best(self, title: str, metric: str, shown: str) -> list[str]:
        """A line of what evaluations found; none if there was none."""
        frames, values = points(self.rows, metric)
        if not values:
            return []
        best = max(range(len(values)), key=values.__getitem__)
        last, most = (f"{values[at]:{shown}}" for at in (-1, best))
        return [
            f"  {title:11} {last} at the last evaluation, best {most} at {frames[best]:,} frames"
        ]

    def _first_and_last(self, title: str, metric: str) -> list[str]:
        parts = [
            f"{name} {values[0]:.3f}" + (f" -> {values[-1]:.3f}" if len(values) > 1 else "")
            for name, (_, values) in self.by_network(metric).items()
        ]
        return [f"  {title:11} {', '.join(parts)}"] if parts else []


def _title(run: Path) -> str:
    """The directory, and what was run in it as far as its config tells."""
    file = run / "config.yaml"
    if not file.is_file():
        return str(run)
    try:
        config: Any = OmegaConf.load(file)
        parts = [f"{config.agent_name} on {config.env.name}, seed {config.seed}"]
        parts += [f"replay ratio {config.replay_ratio}", *(config.get("intervention") or ())]
    except (OSError, OmegaConfBaseException, YAMLError):
        return str(run)
    return f"{run}\n{', '.join(parts)}"


def draw(report: RunReport, path: Path) -> None:
    """Write the figure, with a panel for each thing that was written down; its kind is the file
    name's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = [(_draw_returns, 2.0)]
    if points(report.rows, SUCCESS)[0]:
        wanted.append((_draw_success, 0.9))
    if report.by_network("fau"):
        wanted.append((_draw_activity, 1.2))
    if points(report.rows, "plasticity/dormant_ratio")[0]:
        wanted.append((_draw_dormancy, 1.2))
    if points(report.rows, "train/replay_ratio")[0]:
        wanted.append((_draw_ratio, 0.8))
    heights = [height for _, height in wanted]
    figure, grid = pyplot.subplots(
        len(wanted),
        1,
        sharex=True,
        figsize=(8, 1 + 1.6 * sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    panels = list(grid[:, 0])
    for panel, (draw_panel, _) in zip(panels, wanted, strict=True):
        draw_panel(panel, report)
    _mark(panels, report.marks())
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(left=0)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    panels[-1].set_xlabel("simulator frames")
    figure.suptitle(report.title, fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_returns(panel: Any, report: RunReport) -> None:
    frames, values = points(report.rows, "train/episode_return")
    if frames:
        panel.plot(frames, values, ".", color="0.7", markersize=3, label="training episodes")
    frames, values = points(report.rows, "eval/episode_return")
    if frames:
        panel.plot(frames, values, color="0.1", marker="o", markersize=3, label="evaluation")
    panel.set_ylabel("return")


def _draw_success(panel: Any, report: RunReport) -> None:
    frames, rates = points(report.rows, SUCCESS)
    panel.plot(frames, rates, color="0.1", marker="o", markersize=3)
    panel.set_ylabel("success rate")
    panel.set_ylim(-0.03, 1.03)


def _draw_activity(panel: Any, report: RunReport) -> None:
    _lines(panel, report.by_network("fau"))
    frames, values = points(report.rows, "event/fau_critic")
    if frames:
        panel.plot(frames, values, "kx", markersize=5, label="checks, of the critic")
    panel.set_ylabel("active units (FAU)")


def _draw_dormancy(panel: Any, report: RunReport) -> None:
    shares = report.by_network("dormant_ratio")
    each_update = points(report.rows, "plasticity/dormant_ratio")
    if each_update != shares.get("actor"):
        look = {"color": "0.1", "linewidth": 1, "marker": alone(each_update[0])}
        panel.plot(*each_update, label="of the actor, as in DrM", **look)
    _lines(panel, shares)
    panel.set_ylabel("dormant ratio")
    panel.set_ylim(bottom=0)


def _draw_ratio(panel: Any, report: RunReport) -> None:
    frames, ratios = points(report.rows, "train/replay_ratio")
    panel.plot(frames, ratios, color="0.1", drawstyle="steps-pre", marker=alone(frames))
    panel.set_ylabel("updates a step")
    panel.set_ylim(bottom=0)


def _lines(panel: Any, curves: dict[str, tuple[list[int], list[float]]]) -> None:
    for name, pair in curves.items():
        colour = f"C{ORDER.index(name)}"
        panel.plot(*pair, color=colour, linewidth=1.2, label=name, marker=alone(pair[0]))


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
                mark.frames, color=mark.colour, linestyle=mark.line, linewidth=0.9, label=label
            )
