"""The curves of many runs, every seed kept: read from run directories and CSV files, and written.

A row of a summary holds interquartile means over seeds (IQM) with 95 % bootstrap intervals; under
three seeds have none.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.experiments.plan import Run, finished
from rlearly.experiments.report.metrics_file import SUCCESS, points, read_rows
from rlearly.experiments.report.statistics import FEW, interval, pooled_iqm

Points = tuple[np.ndarray, np.ndarray]
"""Frames [T] and values [T]."""


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run: frames [T] and mean undiscounted returns [T].

    `metrics`: others of its metrics by name. `seed` is None for a published curve, which is already
    a mean over seeds. `folder` is the run's directory if it is known.
    """

    arm: str
    env: str
    seed: int | None
    frames: np.ndarray
    returns: np.ndarray
    metrics: dict[str, Points] = field(default_factory=dict)
    finished: bool = True
    folder: Path | None = None

    @property
    def final(self) -> float:
        """Mean of the last three evaluations: one evaluation of ten episodes is a noisy end."""
        return at_last(self.returns)

    @property
    def area(self) -> float:
        """Area under the curve over its length in frames: the mean return while learning."""
        width = self.frames[-1] - self.frames[0]
        if width == 0:
            return float(self.returns[-1])
        return float(np.trapezoid(self.returns, self.frames) / width)


def at_last(values: np.ndarray) -> float:
    """The mean of a run's last three evaluations, or of what it measured at them."""
    return float(values[-3:].mean())


def read_run(folder: Path, run: Run, names: Sequence[str] = ()) -> Curve | None:
    """The evaluations so far, success rates among them, and metrics by name, of a run directory;
    None if it has none."""
    if not (folder / "metrics.jsonl").is_file():
        return None
    rows = read_rows(folder)
    returns = _columns(zip(*points(rows, "eval/episode_return"), strict=True))
    if not len(returns[0]):
        return None
    found = {name: points(rows, name) for name in dict.fromkeys([*names, SUCCESS])}
    metrics = {name: _columns(zip(*own, strict=True)) for name, own in found.items() if own[0]}
    whole = finished(folder, run.train_frames)
    return Curve(run.arm, run.env, run.seed, *returns, metrics, whole, folder)


def read_csv(path: Path) -> list[Curve]:
    """What `write` wrote: a curves.csv, with the metrics.csv beside it if there is one.

    Published curves have neither seeds nor metrics: the columns arm, env, frames, return.

    Raises:
        ConfigError: there is no such file, or it is another kind of file.
    """
    found: dict[tuple[str, str, int | None], list[tuple[int, float]]] = {}
    columns = ""
    try:
        with path.open(newline="") as stream:
            reader = csv.DictReader(stream)
            published = "return" in (reader.fieldnames or ())
            columns = ", ".join(reader.fieldnames or ())
            for row in reader:
                key = (row["arm"], row["env"], None if published else int(row["seed"]))
                value = row["return" if published else "eval_episode_return"]
                found.setdefault(key, []).append((int(float(row["frames"])), float(value)))
        if not found:
            raise ValueError("it has no rows")
    except (OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and not path.exists():
            raise ConfigError(
                f"There is no file {path}; name a CSV file of curves, or a sweep's directory."
            ) from None
        reason = str(error) if isinstance(error, ValueError) else f"it has {columns or 'none'}"
        reason = error.strerror if isinstance(error, OSError) else reason
        raise ConfigError(
            f"{path} does not load as a study's curves ({reason}); expected the columns arm, env, "
            "seed, frames, eval_episode_return, or of published curves arm, env, frames, return."
        ) from None
    metrics = {} if published else _read_metrics(path.with_name("metrics.csv"))
    return [
        Curve(*key, *_columns(rows), {n: _columns(own) for n, own in metrics.get(key, {}).items()})
        for key, rows in found.items()
    ]


def _columns(pairs: Any) -> Points:
    """Pairs of frames and a value in order of frames; of two at the same frames the later one."""
    last = dict(sorted(pairs, key=lambda pair: pair[0]))
    return np.array(list(last)), np.array(list(last.values()), dtype=float)


def _read_metrics(path: Path) -> dict[Any, dict[str, list[tuple[int, float]]]]:
    """Points by run and metric; none if there is no such file."""
    found: dict[Any, dict[str, list[tuple[int, float]]]] = {}
    if not path.is_file():
        return found
    try:
        with path.open(newline="") as stream:
            for row in csv.DictReader(stream):
                run = found.setdefault((row["arm"], row["env"], int(row["seed"])), {})
                point = (int(row["frames"]), float(row["value"]))
                run.setdefault(row["metric"], []).append(point)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} does not load as a study's metrics ({error}); expected the columns arm, env, "
            "seed, metric, frames, value."
        ) from None
    return found


def groups(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """By (env, arm), envs by name and arms in the order of appearance; seeds in order."""
    first = {arm: i for i, arm in enumerate(dict.fromkeys(curve.arm for curve in curves))}
    found: dict[tuple[str, str], list[Curve]] = {}
    for curve in sorted(curves, key=lambda c: (c.env, first[c.arm], c.seed or 0)):
        found.setdefault((curve.env, curve.arm), []).append(curve)
    return found


def summary(curves: Sequence[Curve], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each env and arm: IQM and interval of the final return and of the area.

    Args:
        curves: of finished runs.
        seed: of the bootstrap.
    """
    rows = []
    for (env, arm), members in groups(curves).items():
        row: dict[str, Any] = {"env": env, "arm": arm, "seeds": len(members)}
        of_each = {"final": [c.final for c in members], "area": [c.area for c in members]}
        for name in dict.fromkeys(name for c in members for name in c.metrics):
            own = [c.metrics[name][1] for c in members if name in c.metrics]
            of_each[name] = [at_last(values) for values in own]
        for name, values in of_each.items():
            scores = [np.array(values)]
            row |= {f"{name}_iqm": float(pooled_iqm(scores))}
            row |= {f"{name}_low": None, f"{name}_high": None}
            if len(values) >= FEW:
                low, high = interval(pooled_iqm, scores, random=np.random.default_rng(seed))
                row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        row["final_each_seed"] = " ".join(f"{c.final:.4g}" for c in members)
        rows.append(row)
    return rows


def write(curves: Sequence[Curve], folder: Path, seed: int = 0) -> None:
    """curves.csv has every evaluation of every run, metrics.csv all points of other metrics if
    there are any, and table.csv the summary of finished runs. Published curves are left out."""
    curves = [curve for curve in curves if curve.seed is not None]
    with (folder / "curves.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["arm", "env", "seed", "frames", "eval_episode_return"])
        for members in groups(curves).values():
            for curve in members:
                for frames, value in zip(curve.frames, curve.returns, strict=True):
                    writer.writerow([curve.arm, curve.env, curve.seed, frames, f"{value:.2f}"])
    _write_metrics(curves, folder / "metrics.csv")
    rows = summary([curve for curve in curves if curve.finished], seed)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "table.csv").open("w", newline="") as stream:
        table_writer = csv.DictWriter(stream, columns, lineterminator="\n")
        table_writer.writeheader()
        for row in rows:
            shown = {name: 4 if "/" in name else 2 for name in row}
            table_writer.writerow(
                {k: f"{v:.{shown[k]}f}" if isinstance(v, float) else v for k, v in row.items()}
            )


def _write_metrics(curves: Sequence[Curve], path: Path) -> None:
    if not any(curve.metrics for curve in curves):
        path.unlink(missing_ok=True)  # an earlier report's
        return
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["arm", "env", "seed", "metric", "frames", "value"])
        for members in groups(curves).values():
            for curve in members:
                for name, (frames, values) in curve.metrics.items():
                    for at, value in zip(frames, values, strict=True):
                        writer.writerow(
                            [curve.arm, curve.env, curve.seed, name, at, f"{value:.6g}"]
                        )
