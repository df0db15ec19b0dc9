"""The figures of a sweep's report."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from rlearly.experiments.report import statistics
from rlearly.experiments.report.curves import Curve, Points
from rlearly.experiments.report.metrics_file import SUCCESS, alone
from rlearly.experiments.report.results import SweepResults

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8A8A3C"]
"""Okabe and Ito's, without the yellow and the black that one of two backgrounds swallows."""
LINES = ("-", "--", ":", "-.")
INK = "#1a1b1c"
"""Of all that is not an arm's; the page puts its own text colour in its place."""
COLUMNS = 3
FRAMES = "simulator frames"
REPLAY_RATIO = "train/replay_ratio"


@dataclass(frozen=True)
class Figure:
    """A drawn figure as it stands in the page."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Look:
    """How an arm is drawn."""

    colour: str
    line: Any
    """A matplotlib line style."""


Panel = Callable[[Any], None]


def draw(found: SweepResults, folder: Path) -> list[Figure]:
    """All figures there are points for, each also as NAME.png and NAME.pdf in the folder."""
    import matplotlib

    matplotlib.use("Agg")
    looks = {
        arm: Look(COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)])
        for i, arm in enumerate(found.arms)
    }
    wanted = [_curves, _successes, _finals, _profiles, _improvements, _metrics, _cost]
    names = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(names, INK)
    style |= {"axes.edgecolor": INK, "font.size": 9, "svg.hashsalt": "rlearly"}
    with matplotlib.rc_context(style):
        return [
            figure for one in wanted for figure in [one(found, looks, folder)] if figure is not None
        ]


def _curves(found: SweepResults, looks: dict[str, Look], folder: Path) -> Figure | None:
    envs = [env for env in found.envs if any(c.env == env for c in found.curves)]
    panels = {}
    for env in envs:
        arms = {arm: found.members[env, arm] for arm in found.arms if (env, arm) in found.members}
        panels[env] = partial(_draw_curves, found, looks, arms, None)
    caption = (
        "Evaluation returns. Thick: the IQM over seeds; band: its 95 % bootstrap interval (none "
        f"under {statistics.FEW} seeds); thin: every seed, as far as it is. "
        "Thick line and band are of the finished runs; where none has finished, of all that have "
        "begun, as far as all of them are. "
        "An open circle ends a run that is not finished. Lines without thin ones are published."
    )
    labels = (FRAMES, "evaluation return")
    drawn = {curve.arm for curve in found.curves}
    return _grid("curves", "Learning curves", caption, panels, labels, looks, folder, drawn)


def _successes(found: SweepResults, looks: dict[str, Look], folder: Path) -> Figure | None:
    def one(arms: dict[str, list[Curve]], panel: Any) -> None:
        _draw_curves(found, looks, arms, SUCCESS, panel)
        panel.set_ylim(-0.03, 1.03)

    panels = {}
    for env in dict.fromkeys(env for env, _ in found.successes):
        panels[env] = partial(one, {a: c for (e, a), c in found.successes.items() if e == env})
    caption = (
        "The share of evaluation episodes that reached the task's goal: IQM, 95 % interval and "
        "every seed, as above."
    )
    labels = (FRAMES, "success rate")
    drawn = {arm for _, arm in found.successes}
    return _grid("success", "Success rates", caption, panels, labels, looks, folder, drawn)


def _draw_curves(
    found: SweepResults,
    looks: dict[str, Look],
    arms: dict[str, list[Curve]],
    metric: str | None,
    panel: Any,
) -> None:
    for arm, members in arms.items():
        of_each = [(c, _points(c, metric)) for c in members]
        there = [(c, points) for c, points in of_each if points is not None]
        if not there:
            continue
        for curve, points in there:
            if curve.seed is not None:
                thin = {"color": looks[arm].colour, "alpha": 0.45}
                panel.plot(*points, linewidth=0.5, marker=alone(points[0]), markersize=4, **thin)
                if not curve.finished:
                    panel.plot(*(p[-1] for p in points), "o", markersize=4, mfc="none", **thin)
        whole = [points for c, points in there if c.finished] or [points for _, points in there]
        frames, values = statistics.on_common_frames(whole)
        if not len(frames):
            continue
        middle = statistics.iqm(values)
        panel.plot(frames, middle, color=looks[arm].colour, linestyle=looks[arm].line, linewidth=2)
        if len(values) >= statistics.FEW:
            random = np.random.default_rng(found.seed)
            low, high = statistics.interval(
                statistics.pooled_iqm,
                [values],
                random=random,
                resamples=statistics.CURVE_RESAMPLES,
            )
            panel.fill_between(frames, low, high, color=looks[arm].colour, alpha=0.16, linewidth=0)
    panel.set_xlim(left=0)


def _points(curve: Curve, metric: str | None) -> Points | None:
    return (curve.frames, curve.returns) if metric is None else curve.metrics.get(metric)


def _metrics(found: SweepResults, looks: dict[str, Look], folder: Path) -> Figure | None:
    names = [n for n in found.metrics if any(n in c.metrics for c in found.curves)]
    panels = {}
    for name in names:
        for env in found.envs:
            arms = {
                arm: found.members[env, arm]
                for arm in found.arms
                if any(name in c.metrics for c in found.members.get((env, arm), []))
            }
            if arms:
                panels[f"{env}\n{name}"] = partial(_draw_curves, found, looks, arms, name)
    caption = "What else the runs wrote down: IQM, 95 % interval and every seed, as above."
    if REPLAY_RATIO in names:
        caption += f" {REPLAY_RATIO} is 0 while actions are still random and nothing is learnt."
    labels = (FRAMES, "")
    drawn = {curve.arm for curve in found.curves if set(names) & set(curve.metrics)}
    return _grid("metrics", "Plasticity and replay", caption, panels, labels, looks, folder, drawn)


def _finals(found: SweepResults, looks: dict[str, Look], folder: Path) -> Figure | None:
    def one(env: str, panel: Any) -> None:
        for arm, scores in found.finals(env).items():
            at = arms.index(arm)
            colour = looks[arm].colour
            panel.plot(scores, np.full(len(scores), at), "o", color=colour, markersize=4, alpha=0.5)
            if len(scores) > 1:
                middle = statistics.iqm(scores)
                panel.plot(middle, at, "|", color=colour, markersize=16, markeredgewidth=2.5)
            if len(scores) >= statistics.FEW:
                _, low, high = found.estimate(statistics.pooled_iqm, [scores])
                panel.plot([low, high], [at, at], color=colour, linewidth=6, alpha=0.3)
        if env in found.published:
            for at, arm in enumerate(arms):
                if arm in found.published[env]:
                    panel.plot(found.published[env][arm], at, "x", color=INK, markersize=6)
        _rows(panel, arms)

    arms = [arm for arm in found.arms if any(arm in found.finals(env) for env in found.envs)]
    panels = {env: partial(one, env) for env in found.envs if found.finals(env)}
    caption = (
        "Final scores of finished runs: a dot a seed, the stroke is the IQM, the bar its 95 % "
        f"bootstrap interval (none under {statistics.FEW} seeds), a cross the "
        "published number where there is one."
    )
    labels = ("final return", "")
    return _grid("final", "Final scores", caption, panels, labels, looks, folder)


def _rows(panel: Any, names: Sequence[str]) -> None:
    panel.set_yticks(range(len(names)), [_short(name) for name in names])
    panel.set_ylim(len(names) - 0.4, -0.6)


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _profiles(found: SweepResults, looks: dict[str, Look], folder: Path) -> Figure | None:
    pooled = found.pooled()
    thresholds = np.linspace(0, 1, 101)

    def one(panel: Any) -> None:
        for arm, scores in pooled.items():
            random = np.random.default_rng(found.seed)
            shares = partial(statistics.profile, thresholds=thresholds)
            look = looks[arm]
            panel.plot(thresholds, shares(scores), look.line, color=look.colour, linewidth=2)
            if not found.enough(scores):
                continue
            low, high = statistics.interval(
                shares, scores, random=random, resamples=statistics.CURVE_RESAMPLES
            )
            panel.fill_between(thresholds, low, high, color=look.colour, alpha=0.14, linewidth=0)
        panel.set_ylim(0, 1.02)
        panel.set_xlim(0, 1)

    caption = (
        "Performance profiles: the share of finished runs, of all envs together, whose normalised "
        "final score is above each threshold; band: 95 % bootstrap interval (none where an env has "
        f"under {statistics.FEW} seeds). {found.scaling()}"
    )
    panels = {"all envs": one} if pooled else {}
    labels = ("normalised final score", "share of runs above it")
    return _grid(
        "profiles", "Performance profiles", caption, panels, labels, looks, folder, set(pooled)
    )


def _improvements(found: SweepResults, looks: dict[str, Look], folder: Path) -> Figure | None:
    chances = found.improvements()

    def one(panel: Any) -> None:
        panel.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
        for at, (arm, (middle, low, high, _)) in enumerate(chances.items()):
            colour = looks[arm].colour
            panel.plot([low, high], [at, at], color=colour, linewidth=6, alpha=0.3)
            panel.plot(middle, at, "|", color=colour, markersize=16, markeredgewidth=2.5)
        _rows(panel, list(chances))
        panel.set_xlim(-0.03, 1.03)

    first = found.arms[0] if found.arms else ""
    caption = (
        f"The chance that a run ends above a run of {first} on the same env, in the mean over "
        "envs; bar: 95 % bootstrap interval. At 0.5 (dotted) neither is better."
    )
    panels = {f"against {first}": one} if chances else {}
    labels = (f"P(above {_short(first)})", "")
    title = "Probability of improvement"
    return _grid("improvement", title, caption, panels, labels, looks, folder)


def _cost(found: SweepResults, looks: dict[str, Look], folder: Path) -> Figure | None:
    longest = max((status.seconds for _, status in found.runs), default=0.0)
    unit, seconds = ("hours", 3600) if longest > 2 * 3600 else ("minutes", 60)

    def one(env: str, panel: Any) -> None:
        here = [(run, s) for run, s in found.runs if run.env == env and s.seconds]
        for run, status in here:
            fill = None if status.state == "done" else "none"
            panel.plot(
                status.seconds / seconds,
                arms.index(run.arm),
                "o",
                color=looks[run.arm].colour,
                markersize=5,
                alpha=0.7,
                mfc=fill,
            )
        _rows(panel, arms)
        panel.set_xlim(left=0)

    envs = dict.fromkeys(run.env for run, status in found.runs if status.seconds)
    arms = list(dict.fromkeys(run.arm for run, status in found.runs if status.seconds))
    panels = {env: partial(one, env) for env in sorted(envs)}
    caption = "Run time: a dot a run, open while it is not finished; all its tries together."
    labels = (unit, "")
    return _grid("cost", "Run time", caption, panels, labels, looks, folder)


def _grid(
    name: str,
    title: str,
    caption: str,
    panels: dict[str, Panel],
    labels: tuple[str, str],
    looks: dict[str, Look],
    folder: Path,
    legend: Collection[str] = (),
) -> Figure | None:
    """Draw and write panels by their titles; None, and an earlier report's files gone, if none.

    `legend`: the arms that have a line in a panel; none where rows name them.
    """
    if not panels:
        for suffix in (".png", ".pdf"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
        return None
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    height = 2.6 if legend else 0.9 + 0.22 * len(looks)
    width = 6.4 if columns == 1 else 11.0
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(width, rows * height + 0.5),
        layout="constrained",
        squeeze=False,
        sharey=not legend,
    )
    figure.get_layout_engine().set(hspace=0.06)  # pyright: ignore
    cells = list(grid.flat)
    for at, (cell, (head, one)) in enumerate(zip(cells, panels.items(), strict=False)):
        one(cell)
        cell.set_title(head, fontsize=9)
        cell.spines[["top", "right"]].set_visible(False)
        cell.grid(color=INK, alpha=0.1, linewidth=0.6)
        cell.set_axisbelow(True)
        if cell.get_lines():
            cell.locator_params(axis="x", nbins=4)
        if labels[0] == FRAMES:
            cell.xaxis.set_major_formatter(EngFormatter(sep=""))
        cell.set_xlabel(labels[0])
        if at % columns == 0:
            cell.set_ylabel(labels[1])
    for cell in cells[len(panels) :]:
        cell.set_visible(False)
    if legend:
        handles = [
            Line2D([], [], color=look.colour, linestyle=look.line, linewidth=2, label=_short(arm))
            for arm, look in looks.items()
            if arm in legend
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(4 if columns > 1 else 2, len(handles)),
            frameon=False,
        )
    stream = StringIO()
    try:
        figure.savefig(folder / f"{name}.png", dpi=130)
        figure.savefig(folder / f"{name}.pdf")
        nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    finally:
        pyplot.close(figure)
    return Figure(name, title, caption, _inline(stream.getvalue(), name, width))


def _inline(svg: str, name: str, inches: float) -> str:
    """An SVG file's text as an element of a page: its ids its own, its ink the page's colour."""
    body = svg[svg.index("<svg") :]
    opening, rest = body.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening)
    rest = re.sub(r"<style.*?</style>", "", rest, flags=re.S)
    rest = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", rest)
    rest = rest.replace("xlink:href", "href").replace(INK, "currentColor")
    size = f'{view[0] if view else ""} style="max-width: {inches * 96:.0f}px"'
    return f'<svg {size} role="img" aria-labelledby="{name}-title {name}-caption">{rest.strip()}'
