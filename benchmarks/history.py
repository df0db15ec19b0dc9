"""Plot rlearly's speed relative to each baseline, commit by commit.

`python benchmarks/history.py` reads the files SCRIPT-COMMIT.json that `all.py` writes into
`folder=`, and writes `picture=`. Each case has a panel and each baseline a line, over the commits
in order of time; above 1, rlearly is faster. Only ratios are drawn: both sides of a ratio are from
the same run, so commits measured on different machines can be compared. A commit that was measured
with uncommitted changes has a hollow mark.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import turns

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError

FOLDER = Path(__file__).parent / "results" / "history"
COLUMNS = 4


@dataclass(frozen=True)
class HistoryConfig:
    """Settings of the plot."""

    folder: str = setting(str(FOLDER), "folder of the JSON files")
    picture: str | None = setting(None, "PNG file to write; null: history.png in the folder")


@dataclass(frozen=True)
class Point:
    """One ratio of one commit."""

    commit: str
    ratio: float
    changed: bool


History = dict[str, dict[str, list[Point]]]
"""Panel -> baseline -> points."""


def read(folder: Path) -> tuple[list[str], History]:
    """The commits in order of time, and all ratios.

    Raises:
        ConfigError: the folder has no numbers.
    """
    times: dict[str, int] = {}
    panels: History = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(kept, dict) or "about" not in kept:
            continue
        about = kept["about"]
        times[about["commit"]] = about["commit_time"]
        script = path.stem.removesuffix(f"-{about['commit']}")
        for row in kept["rows"]:
            if row["ratio"] is not None:
                threads = f", {row['threads']} threads" if row["threads"] > 1 else ""
                point = Point(about["commit"], row["ratio"], about["changed_since"])
                panels[f"{script}: {row['case']}{threads}"][row["side"]].append(point)
    if not panels:
        raise ConfigError(
            f"folder: there are no numbers in {folder}; python benchmarks/all.py writes some."
        )
    return sorted(times, key=lambda commit: times[commit]), panels


def draw(commits: Sequence[str], panels: History, picture: Path) -> None:
    """Write the plot to `picture`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    sides = sorted({side for lines in panels.values() for side in lines})
    colours = {side: f"C{number % 10}" for number, side in enumerate(sides)}
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    legend = 0.2 * math.ceil(len(sides) / 4) + 0.3  # inches
    height = 2.6 * lines + legend
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(3.6 * columns, height), squeeze=False, sharex=True
    )
    places = range(len(commits))
    for number, (axis, title) in enumerate(zip(axes.flat, sorted(panels), strict=False)):
        for side, points in panels[title].items():
            _draw_line(axis, commits, points, colours[side])
        axis.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
        axis.set_ylim(bottom=0.0)
        axis.set_title(title, fontsize=8)
        lowest = number + columns >= len(panels)
        axis.tick_params(labelsize=7, labelbottom=lowest)
        axis.set_xticks(places, commits, rotation=60, ha="right")
        axis.set_xlim(-0.5, len(commits) - 0.5)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    marks = [Line2D([], [], color=colours[side], marker="o", label=side) for side in sides]
    figure.supylabel("times that rlearly is faster (memory: smaller)", fontsize=9)
    figure.legend(handles=marks, loc="upper center", ncols=min(4, len(marks)), fontsize=8)
    figure.tight_layout(rect=(0.01, 0, 1, 1 - legend / height))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def _draw_line(axis: Any, commits: Sequence[str], points: Sequence[Point], colour: str) -> None:
    ordered = sorted(points, key=lambda point: commits.index(point.commit))
    x = [commits.index(point.commit) for point in ordered]
    axis.plot(x, [point.ratio for point in ordered], color=colour, linewidth=1.2)
    for at, point in zip(x, ordered, strict=True):
        inside = "white" if point.changed else colour
        axis.plot(at, point.ratio, "o", color=colour, markerfacecolor=inside, markersize=4)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        config = turns.parse_config(HistoryConfig(), __doc__, arguments)
        folder = Path(config.folder)
        commits, panels = read(folder)
    except ConfigError as error:
        print(f"benchmarks/history.py: {error}", file=sys.stderr)
        return 2
    picture = Path(config.picture) if config.picture else folder / "history.png"
    draw(commits, panels, picture)
    print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
