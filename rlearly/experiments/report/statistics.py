"""Interval estimates for a few seeds, never a bare mean (arXiv 2108.13264).

`Tasks` is a list with one array per task (env): [runs, ...], runs along the first axis. Tasks may
have different numbers of runs. Everything is vectorised over the trailing axes, so one function
serves scores [runs], curves [runs, T] and bootstrap samples of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Tasks = Sequence[np.ndarray]
Statistic = Callable[..., np.ndarray]
"""Maps one or several `Tasks` of arrays [runs, ...] to an array [...]."""

RESAMPLES = 10_000
CURVE_RESAMPLES = 2_000
MIN_RUNS = 3
"""Fewer runs get no interval: resampling two runs only gives their range."""

_NUMBERS_AT_ONCE = 2_000_000


def rounded(value: float, digits: int = 4) -> str:
    """A number with so many significant digits; a larger one as a whole number."""
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text


class Estimate(NamedTuple):
    """A statistic with its interval; `low` and `high` are None if there are too few runs."""

    value: Any
    low: Any = None
    high: Any = None

    def text(self, digits: int = 4) -> str:
        """The number with its interval, as in `473 [454.3, 501.8]`."""
        value = rounded(self.value, digits)
        if self.low is None:
            return value
        return f"{value} [{rounded(self.low, digits)}, {rounded(self.high, digits)}]"


def iqm(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half along axis 0, [n, ...] -> [...]: drops n // 4 at each end."""
    ordered = np.sort(scores, axis=0)
    dropped = len(ordered) // 4
    return ordered[dropped : len(ordered) - dropped].mean(axis=0)


def pooled_iqm(scores: Tasks) -> np.ndarray:
    """The IQM of all runs of all tasks together, [runs, ...] each -> [...]."""
    return iqm(np.concatenate(list(scores)))


def mean(scores: Tasks) -> np.ndarray:
    """Mean over tasks of the mean over runs, [runs, ...] each -> [...]."""
    return np.mean([one.mean(axis=0) for one in scores], axis=0)


def median(scores: Tasks) -> np.ndarray:
    """Median over tasks of the mean over runs, [runs, ...] each -> [...]."""
    return np.median([one.mean(axis=0) for one in scores], axis=0)


def optimality_gap(scores: Tasks, target: float = 1.0) -> np.ndarray:
    """Mean shortfall from `target` over all runs of all tasks, [runs, ...] each -> [...]."""
    return target - np.minimum(np.concatenate(list(scores)), target).mean(axis=0)


def profile(scores: Tasks, thresholds: np.ndarray) -> np.ndarray:
    """The share of all runs of all tasks above each threshold, [runs, ...] each -> [..., T]."""
    pooled = np.concatenate(list(scores))
    return (pooled[..., None] > thresholds).mean(axis=0)


def improvement(ours: Tasks, theirs: Tasks) -> np.ndarray:
    """P(X > Y) for a run X of `ours` and a run Y of `theirs`, averaged over tasks.

    [runs, ...] each -> [...]: the Mann-Whitney statistic over the number of pairs; a tie counts
    as half.
    """
    chances = []
    for x, y in zip(ours, theirs, strict=True):
        x, y = x[:, None], y[None]
        chances.append(((x > y) + 0.5 * (x == y)).mean(axis=(0, 1)))
    return np.mean(chances, axis=0)


def resample(
    scores: Tasks, count: int, random: np.random.Generator, runs: int | None = None
) -> list[np.ndarray]:
    """`count` stratified bootstrap samples: [runs, ...] -> [runs, count, ...] for each task.

    Runs are drawn with replacement within each task, independently of the other tasks: as many as
    the task has, or `runs`.
    """
    return [one[random.integers(len(one), size=(runs or len(one), count))] for one in scores]


def interval(
    statistic: Statistic,
    *groups: Tasks,
    random: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    runs: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap interval of a statistic of one or several groups of runs.

    Groups are resampled independently of each other. With `runs`, it is the interval of experiments
    with so many runs per task, of which the given ones are the population. Returns the lower and
    the upper end, each in the shape of the statistic.
    """
    total = sum(runs or len(one) for group in groups for one in group)
    at_once = max(1, _NUMBERS_AT_ONCE // (total * np.size(statistic(*groups))))
    parts = []
    for begin in range(0, resamples, at_once):
        count = min(at_once, resamples - begin)
        parts.append(statistic(*(resample(group, count, random, runs) for group in groups)))
    samples = np.concatenate(parts)  # [resamples, ...]
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return low, high


def estimate(
    statistic: Statistic,
    *groups: Tasks,
    seed: int,
    resamples: int = RESAMPLES,
    runs: int | None = None,
) -> Estimate:
    """A statistic with its interval, or without one if a task has fewer than `MIN_RUNS` runs.

    `runs`: as for `interval`.
    """
    value = statistic(*groups)
    if any(len(scores) < MIN_RUNS for group in groups for scores in group):
        return Estimate(value)
    random = np.random.default_rng(seed)
    return Estimate(
        value, *interval(statistic, *groups, random=random, resamples=resamples, runs=runs)
    )


def first_reaching(frames: np.ndarray, returns: np.ndarray, threshold: float) -> int | None:
    """Frames at the first of the returns [T] at or above the threshold; None if not reached."""
    reached = np.flatnonzero(returns >= threshold)
    return int(frames[reached[0]]) if len(reached) else None


def median_reaching(reached: Sequence[int | None]) -> float | None:
    """Median frames over runs; a run that did not reach the threshold counts as infinitely late.

    None if that median is infinite. With an even number of runs, both middle runs must have
    reached the threshold.
    """
    ordered = np.sort([np.inf if frames is None else frames for frames in reached])
    if not len(ordered):
        return None
    middle = float(np.mean(ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]))
    return middle if np.isfinite(middle) else None


def broken(scores: np.ndarray, best: float, worst: float, share: float = 0.1) -> np.ndarray:
    """Which final scores [runs] belong to runs that did not learn: [runs] of bool.

    A finished run is broken if its final score lies in the lowest `share` of the range from
    `worst`, the lowest return seen on its env, to `best`, the best arm's IQM there. The range
    starts at `worst`, not at 0, because returns may be negative. If no run is better than `worst`,
    none is broken.
    """
    return np.asarray(scores) < worst + share * (best - worst)


def on_common_frames(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate n curves of frames and values [T] at the frames that all cover: [T] and [n, T].

    Interpolation is linear. Curves that were evaluated at the same frames stay as they are.
    """
    begin = max(frames[0] for frames, _ in curves)
    end = min(frames[-1] for frames, _ in curves)
    every = np.unique(np.concatenate([frames for frames, _ in curves]))
    common = every[(every >= begin) & (every <= end)]
    return common, np.array([np.interp(common, *curve) for curve in curves]).reshape(
        len(curves), len(common)
    )
