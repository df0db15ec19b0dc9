"""Many runs as one statement: interquartile means with bootstrap intervals, every seed kept.

Statistics as in arXiv 2108.13264: the interquartile mean (IQM) over seeds, and 95 % percentile
bootstrap intervals that resample seeds.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlearly.config import ConfigError
from rlearly.experiments.run_rows import points, read_rows

RESAMPLES = 10_000


@dataclass(frozen=True)
class Curve:
    """Evaluations of one finished run: frames [T] and mean undiscounted returns [T].

    `metrics`: others of its metrics by name, each as its own frames and values.
    """

    arm: str
    env: str
    seed: int
    frames: np.ndarray
    returns: np.ndarray
    metrics: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def final(self) -> float:
        """Mean of the last three evaluations: one evaluation of ten episodes is a noisy end."""
        return float(self.returns[-3:].mean())

    @property
    def area(self) -> float:
        """Area under the curve over its length in frames: the mean return while learning."""
        width = self.frames[-1] - self.frames[0]
        if width == 0:
            return float(self.returns[-1])
        return float(np.trapezoid(self.returns, self.frames) / width)


def iqm(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half along axis 0: of n sorted scores, n // 4 are cut at each end."""
    ordered = np.sort(scores, axis=0)
    cut = len(ordered) // 4
    return ordered[cut : len(ordered) - cut].mean(axis=0)


def interval(scores: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the IQM along axis 0, resampling the seeds with replacement."""
    random = np.random.default_rng(seed)
    count = len(scores)
    picked = random.integers(count, size=(count, RESAMPLES))
    means = iqm(scores[picked])  # [RESAMPLES, ...]
    return np.quantile(means, 0.025, axis=0), np.quantile(means, 0.975, axis=0)


def read_run(folder: Path, run: Any, names: Sequence[str] = ()) -> Curve | None:
    """The evaluations, and metrics by name, of a run directory; None if it is not finished."""
    if not (folder / "done.json").exists():
        return None
    rows = read_rows(folder)
    frames, returns = points(rows, "eval/episode_return")
    if not frames:
        return None
    found = {name: points(rows, name) for name in names}
    metrics = {name: (np.array(at), np.array(values)) for name, (at, values) in found.items() if at}
    return Curve(run.arm, run.env, run.seed, np.array(frames), np.array(returns), metrics)


def read_csv(path: Path) -> list[Curve]:
    """What `write` wrote: a curves.csv, with the metrics.csv beside it if there is one.

    Raises:
        ConfigError: there is no such file, or it is another kind of file.
    """
    points: dict[tuple[str, str, int], list[tuple[int, float]]] = {}
    try:
        with path.open(newline="") as stream:
            for row in csv.DictReader(stream):
                key = (row["arm"], row["env"], int(row["seed"]))
                point = (int(row["frames"]), float(row["eval_episode_return"]))
                points.setdefault(key, []).append(point)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} does not load as a study's curves ({error}); expected the columns arm, env, "
            "seed, frames, eval_episode_return."
        ) from None
    metrics = _read_metrics(path.with_name("metrics.csv"))
    return [
        Curve(*key, *_columns(rows), {n: _columns(own) for n, own in metrics.get(key, {}).items()})
        for key, rows in points.items()
    ]


def _columns(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([frames for frames, _ in points]), np.array([value for _, value in points])


def _read_metrics(path: Path) -> dict[tuple[str, str, int], dict[str, list[tuple[int, float]]]]:
    """Points by run and metric; none if there is no such file."""
    found: dict[tuple[str, str, int], dict[str, list[tuple[int, float]]]] = {}
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
    """By (env, arm), in the order of appearance; seeds in order."""
    found: dict[tuple[str, str], list[Curve]] = {}
    for curve in sorted(curves, key=lambda c: c.seed):
        found.setdefault((curve.env, curve.arm), []).append(curve)
    first = {key: i for i, key in enumerate(dict.fromkeys((c.env, c.arm) for c in curves))}
    return dict(sorted(found.items(), key=lambda item: (item[0][0], first[item[0]])))


def summary(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A row for each env and arm: IQM and interval of the final return and of the area."""
    rows = []
    for (env, arm), members in groups(curves).items():
        row: dict[str, Any] = {"env": env, "arm": arm, "seeds": len(members)}
        for name in ("final", "area"):
            scores = np.array([getattr(c, name) for c in members])
            low, high = interval(scores)
            row |= {f"{name}_iqm": float(iqm(scores)), f"{name}_low": float(low)}
            row |= {f"{name}_high": float(high)}
        for name in dict.fromkeys(name for c in members for name in c.metrics):
            last = np.array([c.metrics[name][1][-3:].mean() for c in members if name in c.metrics])
            low, high = interval(last)
            row |= {f"{name}_iqm": float(iqm(last)), f"{name}_low": float(low)}
            row |= {f"{name}_high": float(high)}
        row["final_each_seed"] = " ".join(f"{c.final:.4g}" for c in members)
        rows.append(row)
    return rows


def table(curves: Sequence[Curve]) -> str:
    """The summary for reading."""
    lines = ["env          arm                    seeds  final IQM [95 %]       mean while learning"]
    for row in summary(curves):
        final, area = (
            f"{row[f'{name}_iqm']:.4g} "
            + (
                f"[{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}]"
                if row["seeds"] > 1
                else "[one seed]"
            )
            for name in ("final", "area")
        )
        lines.append(
            f"{row['env']:12} {row['arm']:22} {row['seeds']:5}  {final:22} {area}"
            f"   each: {row['final_each_seed']}"
        )
    return "\n".join(lines)


def write(curves: Sequence[Curve], folder: Path, title: str) -> None:
    """curves.csv (every evaluation of every run), table.csv and curves.png; with other metrics,
    metrics.csv (all of their points) and metrics.png as well."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "curves.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["arm", "env", "seed", "frames", "eval_episode_return"])
        for members in groups(curves).values():
            for curve in members:
                for frames, value in zip(curve.frames, curve.returns, strict=True):
                    writer.writerow([curve.arm, curve.env, curve.seed, frames, f"{value:.2f}"])
    _write_metrics(curves, folder, title)
    rows = summary(curves)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "table.csv").open("w", newline="") as stream:
        table_writer = csv.DictWriter(stream, columns, lineterminator="\n")
        table_writer.writeheader()
        for row in rows:
            shown = {name: 4 if "/" in name else 2 for name in row}
            table_writer.writerow(
                {k: f"{v:.{shown[k]}f}" if isinstance(v, float) else v for k, v in row.items()}
            )
    panels = [(env, "evaluation return", curves_of(curves, env)) for env in envs_of(curves)]
    plot([panels], folder / "curves.png", title)


def _write_metrics(curves: Sequence[Curve], folder: Path, title: str) -> None:
    names = list(dict.fromkeys(name for curve in curves for name in curve.metrics))
    if not names:
        return
    with (folder / "metrics.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["arm", "env", "seed", "metric", "frames", "value"])
        for members in groups(curves).values():
            for curve in members:
                for name, (frames, values) in curve.metrics.items():
                    for at, value in zip(frames, values, strict=True):
                        writer.writerow(
                            [curve.arm, curve.env, curve.seed, name, at, f"{value:.6g}"]
                        )
    grid = [
        [(env, name, curves_of(curves, env, name)) for env in envs_of(curves)] for name in names
    ]
    plot(grid, folder / "metrics.png", title)


def envs_of(curves: Sequence[Curve]) -> list[str]:
    """In the order of appearance."""
    return list(dict.fromkeys(curve.env for curve in curves))


Lines = dict[str, list[tuple[np.ndarray, np.ndarray]]]
"""Arm -> frames and values of each seed."""


def curves_of(curves: Sequence[Curve], env: str, metric: str | None = None) -> Lines:
    """What is to be drawn of one env: returns, or a metric where it was written."""
    found: Lines = {}
    for (where, arm), members in groups(curves).items():
        if where == env:
            own = [(c.frames, c.returns) if metric is None else c.metrics.get(metric) for c in members]
            found[arm] = [one for one in own if one is not None]
    return found


def plot(grid: Sequence[Sequence[tuple[str, str, Lines]]], path: Path, title: str) -> None:
    """Panels of (env, what, lines), each: thick IQM with its interval, a thin line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = dict.fromkeys(arm for row in grid for _, _, lines in row for arm in lines)
    colours = {arm: f"C{i}" for i, arm in enumerate(arms)}
    figure, panels = pyplot.subplots(
        len(grid),
        len(grid[0]),
        figsize=(5.5 * len(grid[0]), 4 if len(grid) == 1 else 3 * len(grid)),
        layout="constrained",
        squeeze=False,
        sharex="col",
    )
    for at, (panel_row, row) in enumerate(zip(panels, grid, strict=True)):
        for panel, (env, what, lines) in zip(panel_row, row, strict=True):
            for arm, seeds in lines.items():
                _draw(panel, seeds, colours[arm], f"{arm} ({len(seeds)} seeds)")
            panel.set_ylabel(what)
            if at == 0:
                panel.set_title(env)
                panel.legend(fontsize=8, frameon=False)
            if at == len(grid) - 1:
                panel.set_xlabel("simulator frames")
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_xlim(left=0)
    figure.suptitle(f"{title}: IQM, 95 % bootstrap interval, every seed", fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw(
    panel: Any, seeds: Sequence[tuple[np.ndarray, np.ndarray]], colour: str, label: str
) -> None:
    if not seeds:
        return
    shortest = min(len(frames) for frames, _ in seeds)
    frames = seeds[0][0][:shortest]
    values = np.stack([own[:shortest] for _, own in seeds])
    low, high = interval(values)
    panel.plot(frames, iqm(values), color=colour, linewidth=2, label=label)
    panel.fill_between(frames, low, high, color=colour, alpha=0.15, linewidth=0)
    for one in values:
        panel.plot(frames, one, color=colour, linewidth=0.5, alpha=0.5)
