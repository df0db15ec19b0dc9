"""The figures of a sweep's report."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from rlearly.experiments.report import statistics
from rlearly.experiments.report.curves import Curve, group_curves
from rlearly.experiments.report.metrics_file import RETURN, SUCCESS
from rlearly.experiments.report.plotting import AS_TYPED, FRAMES, as_label, plot_line, save_figure
from rlearly.experiments.report.results import SweepResults
from rlearly.experiments.report.score_rows import STATISTICS, pooled_rows
from rlearly.experiments.report.statistics import CURVE_RESAMPLES, Estimate, pooled_iqm

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8A8A3C"]
"""Okabe and Ito's, without yellow and black, which vanish on a light or a dark background."""
LINES = ("-", "--", ":", "-.")
INK = "#1a1b1c"
"""The colour of everything that is not an arm's; the page replaces it by its text colour."""
COLUMNS = 3

Panel = Callable[[Any], None]
"""Draws into axes."""


@dataclass(frozen=True)
class PlotStyle:
    """The colour and the matplotlib line style of an arm."""

    colour: str
    line: Any


Styles = dict[str, PlotStyle]


@dataclass(frozen=True)
class SweepFigure:
    """A figure with a panel for each title. `svg`: the drawn figure, empty before.

    `legend` holds the arms that have a line in a panel; it is empty if row labels name the arms.
    `rows` is the number of these labels if it is not that of all arms.
    """

    name: str
    title: str
    panels: dict[str, Panel]
    x_label: str = FRAMES
    y_label: str = ""
    legend: Collection[str] = ()
    rows: int = 0
    columns: int = COLUMNS
    svg: str = ""


def draw_figures(results: SweepResults, folder: Path) -> list[SweepFigure]:
    """Draw all figures that have data, each also as NAME.png and NAME.pdf in the folder."""
    styles = {
        arm: PlotStyle(COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)])
        for i, arm in enumerate(results.arms)
    }
    figures = [
        _curves(results, styles, "curves", "Learning curves", [RETURN], "evaluation return"),
        _curves(results, styles, "success", "Success rates", [SUCCESS], "success rate"),
        _curves(results, styles, "metrics", "Plasticity and replay", results.metrics),
        *(make(results, styles) for make in (_finals, _pooled, _profiles, _improvements, _cost)),
    ]
    return drawn(figures, styles, folder)


def drawn(figures: Sequence[SweepFigure], styles: Styles, folder: Path) -> list[SweepFigure]:
    """Draw the figures that have panels, each also as NAME.png and NAME.pdf in the folder."""
    for figure in figures:
        if not figure.panels:  # an earlier report may have drawn it
            (folder / f"{figure.name}.png").unlink(missing_ok=True)
            (folder / f"{figure.name}.pdf").unlink(missing_ok=True)
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = dict.fromkeys([*inked, "grid.color"], INK)
    settings |= {"font.size": 9, "axes.titlesize": 9, "svg.hashsalt": "rlearly"}
    settings |= {"axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.1}
    settings |= {"grid.linewidth": 0.6, "legend.frameon": False}
    settings |= {"axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings | AS_TYPED):
        return [_draw(figure, styles, folder) for figure in figures if figure.panels]


def _curves(
    results: SweepResults,
    styles: Styles,
    name: str,
    title: str,
    metrics: Sequence[str],
    y_label: str = "",
) -> SweepFigure:
    """A panel for each metric and env with a curve of it: not if all runs end with one point."""
    panels: dict[str, Panel] = {}
    legend: set[str] = set()

    def draw(arms: dict[str, list[Curve]], metric: str, axes: Any) -> None:
        for arm, curves in arms.items():
            draw_arm(axes, curves, metric, styles[arm], results.seed)
        axes.set_xlim(left=0)
        if metric == SUCCESS:
            axes.set_ylim(-0.03, 1.03)

    for metric in metrics:
        for env in results.envs:
            found = [c for c in results.curves if c.env == env and c.series(metric)]
            arms = {arm: curves for (_, arm), curves in group_curves(found).items()}
            points = max((len(own[0]) for c in found if (own := c.series(metric))), default=0)
            if points > 1 or not all(c.finished for c in found):
                panels[env if y_label else f"{env}\n{metric}"] = partial(draw, arms, metric)
                legend |= arms.keys()
    return SweepFigure(name, title, panels, FRAMES, y_label, legend)


def draw_arm(axes: Any, curves: list[Curve], metric: str, style: PlotStyle, seed: int) -> None:
    """A thin line per seed, and the IQM with its interval over finished runs (or all runs)."""
    every = [(curve, series) for curve in curves if (series := curve.series(metric))]
    for curve, series in every:
        if curve.seed is not None:
            thin = {"color": style.colour, "alpha": 0.45, "markersize": 4}
            plot_line(axes, *series, linewidth=0.5, **thin)
            if not curve.finished:
                axes.plot(*(points[-1] for points in series), "o", mfc="none", **thin)
    done = [series for curve, series in every if curve.finished] or [series for _, series in every]
    frames, values = statistics.on_common_frames(done)
    if len(frames):
        iqm = statistics.estimate(pooled_iqm, [values], seed=seed, resamples=CURVE_RESAMPLES)
        _draw_band(axes, frames, iqm, style)


def _draw_band(axes: Any, x: np.ndarray, estimate: Estimate, style: PlotStyle) -> None:
    """A line, and a band of its interval if it has one."""
    middle, low, high = estimate
    plot_line(axes, x, middle, linestyle=style.line, color=style.colour, linewidth=2)
    if low is not None:
        axes.fill_between(x, low, high, color=style.colour, alpha=0.16, linewidth=0)


def draw_bar(axes: Any, row: int, estimate: Estimate, style: PlotStyle) -> None:
    """A stroke, and a bar of its interval if it has one."""
    middle, low, high = estimate
    if low is not None:
        axes.plot([low, high], [row, row], color=style.colour, linewidth=6, alpha=0.3)
    axes.plot(middle, row, "|", color=style.colour, markersize=16, markeredgewidth=2.5)


def _finals(results: SweepResults, styles: Styles) -> SweepFigure:
    scores = {env: results.final_scores(env) for env in results.envs}
    printed = {env: dict(results.published.get(env, {})) for env in results.envs}
    for env, arm in results.members:
        curve = results.published_curve(env, arm)
        if curve and len(curve.frames) == 1:
            printed[env][arm] = float(curve.returns[-1])
    known = [*scores.values(), *printed.values()]
    arms = [arm for arm in results.arms if any(arm in own for own in known)]

    def draw(env: str, axes: Any) -> None:
        for row, arm in enumerate(arms):
            own = scores[env].get(arm, np.empty(0))
            colour = styles[arm].colour
            axes.plot(own, np.full(len(own), row), "o", color=colour, markersize=4, alpha=0.5)
            if len(own) > 1:
                draw_bar(axes, row, results.estimate(pooled_iqm, [own]), styles[arm])
            if arm in printed[env]:
                axes.plot(printed[env][arm], row, "x", color=INK, markersize=6)
        name_rows(axes, arms)

    panels = {env: partial(draw, env) for env in results.envs if scores[env]}
    return SweepFigure("final", "Final scores", panels, "final return")


def name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def _short(name: str, most: int = 40) -> str:
    return as_label(name if len(name) <= most else f"{name[: most - 1]}…")


def _pooled(results: SweepResults, styles: Styles) -> SweepFigure:
    rows = pooled_rows(results)

    def draw(name: str, axes: Any) -> None:
        for at, row in enumerate(rows):
            estimate = row.estimates.get(name)
            if row.runs == "means" and estimate:
                axes.plot(estimate.value, at, "x", color=styles[row.arm].colour, markersize=6)
            elif estimate:
                draw_bar(axes, at, estimate, styles[row.arm])
        name_rows(axes, [row.label for row in rows])

    panels = {name: partial(draw, name) for name in STATISTICS} if rows else {}
    kind = "human-normalised" if results.reference else "normalised"
    title = "Scores over all envs"
    return SweepFigure("pooled", title, panels, f"{kind} score", rows=len(rows), columns=2)


def _profiles(results: SweepResults, styles: Styles) -> SweepFigure:
    normalised = results.normalised_scores()
    highest = max((scores.max() for own in normalised.values() for scores in own), default=0.0)
    thresholds = np.linspace(0, max(1.0, highest), 101)
    profile = partial(statistics.profile, thresholds=thresholds)

    def draw(axes: Any) -> None:
        for arm, scores in normalised.items():
            seed, resamples = results.seed, CURVE_RESAMPLES
            shares = statistics.estimate(profile, scores, seed=seed, resamples=resamples)
            _draw_band(axes, thresholds, shares, styles[arm])
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, thresholds[-1])

    labels = ("normalised final score", "share of runs above it")
    panels: dict[str, Panel] = {"all envs": draw} if normalised else {}
    return SweepFigure("profiles", "Performance profiles", panels, *labels, legend=set(normalised))


def _improvements(results: SweepResults, styles: Styles) -> SweepFigure:
    chances = results.improvements()
    first = results.arms[0] if results.arms else ""

    def draw(axes: Any) -> None:
        axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
        for row, (arm, (chance, _)) in enumerate(chances.items()):
            draw_bar(axes, row, chance, styles[arm])
        name_rows(axes, list(chances))
        axes.set_xlim(-0.03, 1.03)

    panels: dict[str, Panel] = {f"against {first}": draw} if chances else {}
    label = f"P(above {_short(first)})"
    return SweepFigure("improvement", "Probability of improvement", panels, label)


def _cost(results: SweepResults, styles: Styles) -> SweepFigure:
    runs = [(run, status) for run, status in results.runs if status.seconds]
    longest = max((status.seconds for _, status in runs), default=0.0)
    unit, seconds = ("hours", 3600) if longest > 2 * 3600 else ("minutes", 60)
    arms = list(dict.fromkeys(run.arm for run, _ in runs))

    def draw(env: str, axes: Any) -> None:
        for run, status in runs:
            if run.env == env:
                fill = None if status.state == "done" else "none"
                look = {"color": styles[run.arm].colour, "markersize": 5, "alpha": 0.7, "mfc": fill}
                axes.plot(status.seconds / seconds, arms.index(run.arm), "o", **look)
        name_rows(axes, arms)
        axes.set_xlim(left=0)

    panels = {env: partial(draw, env) for env in sorted({run.env for run, _ in runs})}
    return SweepFigure("cost", "Run time", panels, unit)


def _draw(content: SweepFigure, styles: Styles, folder: Path) -> SweepFigure:
    """Draw a figure's panels in a grid and write its files."""
    columns = min(content.columns, len(content.panels))
    rows = -(-len(content.panels) // columns)
    height = 2.6 if content.legend else 0.9 + 0.22 * (content.rows or len(styles))
    width = 6.4 if columns == 1 else 11.0
    figure = Figure(figsize=(width, rows * height + 0.5), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06)  # pyright: ignore
    grid = figure.subplots(rows, columns, squeeze=False, sharey=not content.legend)
    for at, (title, panel) in enumerate(content.panels.items()):
        axes = grid.flat[at]
        panel(axes)
        axes.set_title(as_label(title))
        if axes.get_lines():
            axes.locator_params(axis="x", nbins=4)
        if content.x_label == FRAMES:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel(content.x_label)
        if at % columns == 0:
            axes.set_ylabel(content.y_label)
    for axes in grid.flat[len(content.panels) :]:
        axes.set_visible(False)
    if content.legend:
        handles = [
            Line2D(
                [],
                [],
                color=style.colour,
                linestyle=style.line,
                linewidth=2,
                label=as_label(_short(arm)),
            )
            for arm, style in styles.items()
            if arm in content.legend
        ]
        most = 4 if columns > 1 else 2
        figure.legend(handles=handles, loc="outside lower center", ncols=min(most, len(handles)))
    for suffix in (".png", ".pdf"):
        save_figure(figure, folder / f"{content.name}{suffix}")
    stream = StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return replace(content, svg=_inline(stream.getvalue(), content.name, width))


def _inline(svg: str, name: str, inches: float) -> str:
    """An SVG file as an element of a page: with unique ids, and the page's text colour as ink."""
    opening, rest = svg[svg.index("<svg") :].split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening)
    rest = re.sub(r"<style.*?</style>", "", rest, flags=re.S)
    rest = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", rest)
    rest = rest.replace("xlink:href", "href").replace(INK, "currentColor")
    width = f"max-width: {inches * 96:.0f}px; min-width: {inches * 53:.0f}px"
    size = f'{view[0] if view else ""} style="{width}"'
    return f'<svg {size} role="img" aria-labelledby="{name}-title {name}-caption">{rest.strip()}'
