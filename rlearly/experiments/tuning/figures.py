"""The figures of a search's page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from rlearly.experiments.report.figures import (
    COLOURS,
    INK,
    Panel,
    PlotStyle,
    Styles,
    SweepFigure,
    draw_arm,
    draw_bar,
    drawn,
    name_rows,
)
from rlearly.experiments.report.metrics_file import RETURN
from rlearly.experiments.report.plotting import FRAMES, as_label
from rlearly.experiments.report.statistics import rounded
from rlearly.experiments.tuning.held_out import HeldOut
from rlearly.experiments.tuning.request import DEFAULTS, Request
from rlearly.experiments.tuning.sampling import importances
from rlearly.experiments.tuning.space import Choices, Numbers, Range, Value
from rlearly.experiments.tuning.trials import COMPLETE, PRUNED, Trial, Trials

NAMES = {"iqm": "IQM", "lower_bound": "lower bound of the IQM", "mean": "mean"}
SHADES = 0.12, 0.88
"""The part of the colour map that is visible on a light and on a dark background."""


def draw_figures(
    request: Request, trials: Trials, held_out: HeldOut | None, folder: Path
) -> list[SweepFigure]:
    """Draw all figures that have data, each also as NAME.png and NAME.pdf in the folder."""
    styles = {DEFAULTS: PlotStyle(COLOURS[1], "--")}
    if held_out and held_out.best:
        styles = {held_out.best.name: PlotStyle(COLOURS[0], "-")} | styles
    figures = [
        _history(request, trials),
        _importance(request, trials),
        _parallel(request, trials),
        _slices(request, trials),
        _held_out_curves(request, held_out, styles),
        _held_out_scores(held_out, styles),
    ]
    return drawn(figures, styles, folder)


def shown_value(trial: Trial) -> float | None:
    """The height at which a trial is drawn; None: it has no finite value yet."""
    value = trial.value if trial.state == COMPLETE else None
    if trial.state == PRUNED:
        value = trial.rungs[max(trial.rungs)]
    return value if value is not None and math.isfinite(value) else None


def _objective(request: Request) -> str:
    return f"{NAMES[request.config.objective]} of final scores"


def _history(request: Request, trials: Trials) -> SweepFigure:
    values = {trial.number: shown_value(trial) for trial in trials}
    finite = [value for value in values.values() if value is not None]

    def draw(axes: Any) -> None:
        low = min(finite)
        best: list[tuple[int, float]] = []
        for trial in trials:
            value = values[trial.number]
            if trial.failed:
                axes.scatter(trial.number, low, marker="x", color=COLOURS[1], s=28)
            elif value is not None and trial.state == PRUNED:
                axes.scatter(
                    trial.number,
                    value,
                    marker="v",
                    edgecolor=INK,
                    facecolor="none",
                    s=22,
                    alpha=0.6,
                )
            elif value is not None:
                look = {"marker": "D", "s": 42} if trial.defaults else {"s": 26}
                axes.scatter(trial.number, value, color=COLOURS[0], zorder=3, **look)
                best.append((trial.number, max([value, *(one for _, one in best[-1:])])))
        if best:
            best.append((len(trials) - 1, best[-1][1]))
            axes.step(*zip(*best, strict=True), where="post", color=COLOURS[0], linewidth=1.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    panels: dict[str, Panel] = {"": draw} if finite else {}
    return SweepFigure(
        "history", "History of the search", panels, "trial", _objective(request), rows=12
    )


def _importance(request: Request, trials: Trials) -> SweepFigure:
    found = importances(request.space, trials, request.config.seed)

    def draw(axes: Any) -> None:
        for row, share in enumerate(found.values()):
            axes.barh(row, share, height=0.6, color=COLOURS[0], alpha=0.8)
        name_rows(axes, list(found))
        axes.set_xlim(0, 1)

    panels: dict[str, Panel] = {"": draw} if found else {}
    title = "Importance of the settings"
    return SweepFigure("importance", title, panels, "share of the variance", rows=len(found) + 1)


def position(found: Range, value: Value) -> float:
    """Where a value lies in its range, from 0 to 1."""
    if isinstance(found, Choices):
        return found.texts.index(str(value)) / (len(found.texts) - 1)
    low, high, at = found.low, found.high, float(value)
    if found.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def _shades(values: Sequence[float]) -> list[Any]:
    """A colour for each value, the darker the higher."""
    low, high = min(values), max(values)
    width = (high - low) or 1.0
    first, last = SHADES
    return [
        colormaps["viridis_r"](first + (last - first) * (value - low) / width) for value in values
    ]


def _parallel(request: Request, trials: Trials) -> SweepFigure:
    complete = [t for t in trials if t.state == COMPLETE and not t.failed]
    other = [t for t in trials if t.state == PRUNED or t.failed]
    complete.sort(key=lambda trial: trial.value or 0.0)  # the best is drawn last
    names = [*request.space, NAMES[request.config.objective]]

    def places(trial: Trial) -> list[float]:
        return [position(found, trial.params[key]) for key, found in request.space.items()]

    def draw(axes: Any) -> None:
        values = [trial.value or 0.0 for trial in complete]
        low, high = min(values), max(values)
        lines = [[*enumerate(places(trial))] for trial in other]
        axes.add_collection(LineCollection(lines, colors=INK, linewidths=0.6, alpha=0.15))
        heights = [(value - low) / ((high - low) or 1.0) for value in values]
        lines = [
            [*enumerate([*places(trial), height])]
            for trial, height in zip(complete, heights, strict=True)
        ]
        widths = [1.0] * (len(lines) - 1) + [2.4]
        axes.add_collection(
            LineCollection(lines, colors=_shades(values), linewidths=widths, alpha=0.9)
        )
        for at, found in enumerate([*request.space.values(), Numbers(low, high)]):
            axes.axvspan(at - 0.004, at + 0.004, color=INK, alpha=0.5, linewidth=0)
            for height, text in _marks(found):
                axes.text(at + 0.03, height, as_label(text), fontsize=7, va="center", color=INK)
        axes.set_xlim(-0.3, len(names) - 0.6)
        axes.set_ylim(-0.06, 1.06)
        axes.set_yticks([])
        axes.set_xticks(range(len(names)), [as_label(_short(name)) for name in names])
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(length=0)

    panels: dict[str, Panel] = {"": draw} if complete else {}
    return SweepFigure(
        "parallel", "Parallel coordinates", panels, "", rows=12, columns=1 if len(names) < 4 else 2
    )


def _short(key: str) -> str:
    """A key as the label of an axis: without the group of the agent's settings."""
    return key.removeprefix("agent.").replace(".", ".\n")


def _marks(found: Range) -> list[tuple[float, str]]:
    """The heights and texts of the values that are written at an axis."""
    if isinstance(found, Choices):
        return [(position(found, text), text) for text in found.texts]
    middle = math.sqrt(found.low * found.high) if found.log else (found.low + found.high) / 2
    values = [found.low, middle, found.high]
    if found.whole:
        values[1] = round(middle)
    if found.low == found.high:
        return [(0.0, rounded(found.low))]
    return [(position(found, value), rounded(value, 3)) for value in values]


def _slices(request: Request, trials: Trials) -> SweepFigure:
    complete = [t for t in trials if t.state == COMPLETE and not t.failed]

    def draw(key: str, axes: Any) -> None:
        found = request.space[key]
        x = [_number(found, trial.params[key]) for trial in complete]
        y = [trial.value or 0.0 for trial in complete]
        axes.scatter(x, y, s=18, color=COLOURS[0], alpha=0.75)
        if isinstance(found, Choices):
            labels = [as_label(text) for text in found.texts]
            axes.set_xticks(range(len(labels)), labels)
            axes.set_xlim(-0.5, len(labels) - 0.5)
        else:
            _scale(axes.xaxis, found)
            margin = 0.05 * (found.high - found.low)
            ends = (found.low - margin, found.high + margin)
            axes.set_xlim((found.low / 1.2, found.high * 1.2) if found.log else ends)

    panels = {key: partial(draw, key) for key in request.space} if len(complete) > 1 else {}
    return SweepFigure("slices", "One setting at a time", panels, "", _objective(request), rows=10)


def _scale(axis: Any, found: Numbers) -> None:
    """Give an axis the scale of a range, and numbers as they are typed."""
    if found.log:
        axis.axes.set_xscale("log")
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_major_locator(MaxNLocator(4, integer=found.whole))


def _number(found: Range, value: Value) -> float:
    return found.texts.index(str(value)) if isinstance(found, Choices) else float(value)


def _held_out_curves(request: Request, held_out: HeldOut | None, styles: Styles) -> SweepFigure:
    samples = held_out.samples if held_out else []

    def draw(axes: Any) -> None:
        for sample in samples:
            if sample.curves:
                draw_arm(axes, sample.curves, RETURN, styles[sample.name], 0)
        axes.set_xlim(left=0)

    panels: dict[str, Panel] = {request.env: draw} if samples else {}
    return SweepFigure(
        "held_out_curves",
        "Learning curves on held-out seeds",
        panels,
        FRAMES,
        "evaluation return",
        legend={sample.name for sample in samples},
    )


def _held_out_scores(held_out: HeldOut | None, styles: Styles) -> SweepFigure:
    samples = held_out.samples if held_out else []

    def draw(axes: Any) -> None:
        for row, sample in enumerate(samples):
            style = styles[sample.name]
            rows = np.full(len(sample.scores), row)
            axes.plot(sample.scores, rows, "o", color=style.colour, markersize=4, alpha=0.5)
            if len(sample.scores) > 1:
                draw_bar(axes, row, sample.iqm, style)
        name_rows(axes, [sample.name for sample in samples])

    panels: dict[str, Panel] = {"": draw} if samples else {}
    title = "Final scores on held-out seeds"
    return SweepFigure("held_out", title, panels, "final return", rows=4)
