"""Many runs as one statement: interquartile means with bootstrap intervals, every seed kept.

Statistics as in arXiv 2108.13264: the interquartile mean (IQM) over seeds, and 95 % percentile
bootstrap intervals that resample seeds.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlearly.config import ConfigError
from rlearly.experiments.run_rows import points, read_rows

RESAMPLES = 10_000


@dataclass(frozen=True)
class Curve:
    """Evaluations of one finished run: frames [T] and mean undiscounted returns [T]."""

    arm: str
    env: str
    seed: int
    frames: np.ndarray
    returns: np.ndarray

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


def read_run(folder: Path, run: Any) -> Curve | None:
    """The evaluations of a run directory; None if it is not finished."""
    if not (folder / "done.json").exists():
        return None
    frames, returns = points(read_rows(folder), "eval/episode_return")
    if not frames:
        return None
    return Curve(run.arm, run.env, run.seed, np.array(frames), np.array(returns))


def read_csv(path: Path) -> list[Curve]:
    """What `write` wrote.

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
    return [
        Curve(*key, np.array([f for f, _ in rows]), np.array([r for _, r in rows]))
        for key, rows in points.items()
    ]


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
    """curves.csv (every evaluation of every run), table.csv and curves.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "curves.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["arm", "env", "seed", "frames", "eval_episode_return"])
        for members in groups(curves).values():
            for curve in members:
                for frames, value in zip(curve.frames, curve.returns, strict=True):
                    writer.writerow([curve.arm, curve.env, curve.seed, frames, f"{value:.2f}"])
    rows = summary(curves)
    with (folder / "table.csv").open("w", newline="") as stream:
        table_writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        table_writer.writeheader()
        for row in rows:
            table_writer.writerow(
                {k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()}
            )
    plot(curves, folder / "curves.png", title)


def plot(curves: Sequence[Curve], path: Path, title: str) -> None:
    """A panel an env: thick IQM with its interval, a thin line for every seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    envs = list(dict.fromkeys(c.env for c in curves))
    colours = {arm: f"C{i}" for i, arm in enumerate(dict.fromkeys(c.arm for c in curves))}
    figure, panels = pyplot.subplots(
        1, len(envs), figsize=(5.5 * len(envs), 4), layout="constrained", squeeze=False
    )
    for panel, env in zip(panels[0], envs, strict=True):
        for (where, arm), members in groups(curves).items():
            if where != env:
                continue
            shortest = min(len(c.frames) for c in members)
            frames = members[0].frames[:shortest]
            returns = np.stack([c.returns[:shortest] for c in members])
            low, high = interval(returns)
            label = f"{arm} ({len(members)} seeds)"
            panel.plot(frames, iqm(returns), color=colours[arm], linewidth=2, label=label)
            panel.fill_between(frames, low, high, color=colours[arm], alpha=0.15, linewidth=0)
            for one in returns:
                panel.plot(frames, one, color=colours[arm], linewidth=0.5, alpha=0.5)
        panel.set_title(env)
        panel.set_xlabel("simulator frames")
        panel.legend(fontsize=8, frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(left=0)
    panels[0][0].set_ylabel("evaluation return")
    figure.suptitle(f"{title}: IQM, 95 % bootstrap interval, every seed", fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
