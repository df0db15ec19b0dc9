"""The evaluation curves of many runs, one per seed: read from run directories and CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.experiments.plan import Run, finished
from rlearly.experiments.report.metrics_file import RETURN, SUCCESS, metric_series, read_rows
from rlearly.experiments.report.statistics import estimate, pooled_iqm, rounded
from rlearly.system.atomic import replacing

Series = tuple[np.ndarray, np.ndarray]
"""Frames [T] and values [T]."""

PUBLISHED = Path(__file__).parents[1] / "published"
"""The folder of the published results that ship with rlearly."""

FINAL_EVALUATIONS = 3
"""Averaged by default: one evaluation of ten episodes is noisy."""

_Key = tuple[str, str, int | None]
"""Arm, env and seed."""


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run: frames [T] and mean undiscounted returns [T].

    `metrics` holds other metrics of the run by name. `seed` is None for a published curve, which is
    already a mean over seeds. `folder` is the run's directory if it is known. The final score is
    the mean of the last `final_evaluations`.
    """

    arm: str
    env: str
    seed: int | None
    frames: np.ndarray
    returns: np.ndarray
    metrics: dict[str, Series] = field(default_factory=dict)
    finished: bool = True
    folder: Path | None = None
    final_evaluations: int = FINAL_EVALUATIONS

    @property
    def final(self) -> float:
        """Mean of the last evaluations."""
        return mean_of_last(self.returns, self.final_evaluations)

    @property
    def area(self) -> float:
        """Area under the curve divided by its length in frames: the mean return while learning."""
        width = self.frames[-1] - self.frames[0]
        if width == 0:
            return float(self.returns[-1])
        return float(np.trapezoid(self.returns, self.frames) / width)

    def series(self, metric: str) -> Series | None:
        """Frames and values of the return or of another metric; None if the run has none."""
        return (self.frames, self.returns) if metric == RETURN else self.metrics.get(metric)


def mean_of_last(values: np.ndarray, count: int = FINAL_EVALUATIONS) -> float:
    """Mean of the last `count` values."""
    return float(values[-count:].mean())


def read_run(folder: Path, run: Run, metrics: Sequence[str] = ()) -> Curve | None:
    """The evaluations so far of a run directory, with its success rates and these metrics.

    None if there is no evaluation yet.
    """
    if not (folder / "metrics.jsonl").is_file():
        return None
    rows = read_rows(folder)
    returns = _as_series(zip(*metric_series(rows, RETURN), strict=True))
    if not len(returns[0]):
        return None
    logged = {name: metric_series(rows, name) for name in [*metrics, SUCCESS]}
    found = {name: _as_series(zip(*own, strict=True)) for name, own in logged.items() if own[0]}
    done = finished(folder, run.train_frames)
    return Curve(run.arm, run.env, run.seed, *returns, found, done, folder)


def _as_series(points: Iterable[tuple[int, float]]) -> Series:
    """Points in order of frames; of several at the same frames the last one."""
    last = dict(sorted(points, key=lambda point: point[0]))
    return np.array(list(last)), np.array(list(last.values()), dtype=float)


def published_file(path: Path) -> Path:
    """The shipped file of published results with this name; the path itself if there is none."""
    shipped = PUBLISHED / f"{path}.csv"
    return shipped if shipped.is_file() and not path.exists() else path


def read_curves(path: Path) -> list[Curve]:
    """Read a curves.csv from `write_curves`, with the metrics.csv beside it if there is one.

    Published curves have neither seeds nor metrics: the columns are arm, env, frames, return.

    Raises:
        ConfigError: there is no such file, or it does not hold curves.
    """
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in PUBLISHED.glob("*.csv")))
        raise ConfigError(
            f"There is no file {path}; name a CSV file of curves or a sweep, or published results "
            f"that ship with rlearly: {names}."
        )
    columns = "arm, env, seed, frames, eval_episode_return"
    columns += ", or for published curves arm, env, frames, return"
    found = _read_csv(path, "curves", columns, ("eval_episode_return", "return"))
    metrics = {}
    beside = path.with_name("metrics.csv")
    if beside.is_file() and all(seed is not None for _, _, seed in found):
        metrics = _read_csv(beside, "metrics", "arm, env, seed, metric, frames, value", ("value",))
    return [Curve(*run, *own[RETURN], metrics.get(run, {})) for run, own in found.items()]


def _read_csv(
    path: Path, content: str, expected: str, values: Sequence[str]
) -> dict[_Key, dict[str, Series]]:
    """Series by run and metric, from the first of the columns `values` that the file has."""
    found: dict[_Key, dict[str, list[tuple[int, float]]]] = {}
    columns: Sequence[str] = ()
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or ()
            column = next((name for name in values if name in columns), values[0])
            for row in reader:
                run = row["arm"], row["env"], None if column == "return" else int(row["seed"])
                metric = row["metric"] if column == "value" else RETURN
                point = int(float(row["frames"])), float(row[column])
                found.setdefault(run, {}).setdefault(metric, []).append(point)
        if not found:
            raise ValueError("it has no rows")
    except (OSError, KeyError, ValueError, TypeError) as error:
        known = isinstance(error, OSError | ValueError)
        reason = str(error) if known else f"it has {', '.join(columns)}"
        raise ConfigError(
            f"{path} does not load as a study's {content} ({reason}); expected the columns "
            f"{expected}."
        ) from None
    return {run: {m: _as_series(p) for m, p in own.items()} for run, own in found.items()}


def group_curves(curves: Iterable[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Curves by (env, arm): envs by name, arms in order of appearance, seeds in order."""
    curves = list(curves)
    first = {arm: i for i, arm in enumerate(dict.fromkeys(curve.arm for curve in curves))}
    found: dict[tuple[str, str], list[Curve]] = {}
    for curve in sorted(curves, key=lambda c: (c.env, first[c.arm], c.seed or 0)):
        found.setdefault((curve.env, curve.arm), []).append(curve)
    return found


def summary(curves: Iterable[Curve], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each env and arm: interquartile mean (IQM) of the final return and of the area.

    With 95 % bootstrap intervals, which are None for fewer than three seeds. The curves must be of
    finished runs.
    """
    rows = []
    for (env, arm), members in group_curves(curves).items():
        row: dict[str, Any] = {"env": env, "arm": arm, "seeds": len(members)}
        scores = {"final": [c.final for c in members], "area": [c.area for c in members]}
        for name in dict.fromkeys(name for c in members for name in c.metrics):
            scores[name] = [mean_of_last(c.metrics[name][1]) for c in members if name in c.metrics]
        for name, values in scores.items():
            iqm = estimate(pooled_iqm, [np.array(values)], seed=seed)
            columns = (f"{name}_iqm", f"{name}_low", f"{name}_high")
            row |= {c: v if v is None else float(v) for c, v in zip(columns, iqm, strict=True)}
        row["final_each_seed"] = " ".join(rounded(c.final) for c in members)
        rows.append(row)
    return rows


def write_curves(curves: Iterable[Curve], folder: Path, seed: int = 0) -> None:
    """Write curves.csv (all evaluations), metrics.csv (other metrics) and table.csv (the summary).

    The summary is of finished runs. metrics.csv is left out if there are no other metrics, and
    published curves are left out of all three.
    """
    curves = [curve for curve in curves if curve.seed is not None]
    ordered = [curve for members in group_curves(curves).values() for curve in members]
    write_csv(
        folder / "curves.csv",
        ["arm", "env", "seed", "frames", "eval_episode_return"],
        (
            [curve.arm, curve.env, curve.seed, frames, f"{value:.2f}"]
            for curve in ordered
            for frames, value in zip(curve.frames, curve.returns, strict=True)
        ),
    )
    (folder / "metrics.csv").unlink(missing_ok=True)  # an earlier report's
    if any(curve.metrics for curve in curves):
        write_csv(
            folder / "metrics.csv",
            ["arm", "env", "seed", "metric", "frames", "value"],
            (
                [curve.arm, curve.env, curve.seed, name, frames, f"{value:.6g}"]
                for curve in ordered
                for name, series in curve.metrics.items()
                for frames, value in zip(*series, strict=True)
            ),
        )
    rows = summary((curve for curve in curves if curve.finished), seed)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    digits = {name: 4 if "/" in name else 2 for name in columns}
    for row in rows:
        row |= {k: f"{v:.{digits[k]}f}" for k, v in row.items() if isinstance(v, float)}
    write_csv(folder / "table.csv", columns, ([row.get(c) for c in columns] for row in rows))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with (
        replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
