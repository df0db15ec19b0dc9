"""What a few seeds allow to be said: interval estimates, never a bare mean (arXiv 2108.13264).

`Tasks` is a list with an array for each task (env): [runs, ...], its runs along the first axis.
Tasks may have different numbers of runs. Everything is vectorised over the trailing axes, so one
function serves scores [runs], curves [runs, T] and bootstrap samples of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Tasks = Sequence[np.ndarray]
Statistic = Callable[..., np.ndarray]
"""Of one or several `Tasks`, each with arrays [runs, ...], to an array [...]."""

RESAMPLES = 10_000
CURVE_RESAMPLES = 2_000
FEW = 3
"""Runs below which an interval is not worth its name: resampling two runs gives their range."""

_NUMBERS_AT_ONCE = 2_000_000


def tasks(matrix: np.ndarray) -> list[np.ndarray]:
    """A matrix [runs, tasks, ...] as an array [runs, ...] for each task."""
    return list(np.moveaxis(np.asarray(matrix), 1, 0))


def iqm(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half along axis 0, [n, ...] -> [...]: n // 4 are cut at each end."""
    ordered = np.sort(scores, axis=0)
    cut = len(ordered) // 4
    return ordered[cut : len(ordered) - cut].mean(axis=0)


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
    """How far all runs of all tasks stay below `target` in the mean, [runs, ...] each -> [...]."""
    return target - np.minimum(np.concatenate(list(scores)), target).mean(axis=0)


def profile(scores: Tasks, thresholds: np.ndarray) -> np.ndarray:
    """The share of all runs of all tasks above each threshold, [runs, ...] each -> [..., T]."""
    pooled = np.concatenate(list(scores))
    return (pooled[..., None] > thresholds).mean(axis=0)


def improvement(ours: Tasks, theirs: Tasks) -> np.ndarray:
    """P(X > Y) in the mean over tasks, for a run X of `ours` and Y of `theirs`; a tie is half.

    [runs, ...] each -> [...]; the Mann-Whitney statistic over the number of pairs.
    """
    chances = []
    for x, y in zip(ours, theirs, strict=True):
        pairs = x[:, None], y[None]
        chances.append(((pairs[0] > pairs[1]) + 0.5 * (pairs[0] == pairs[1])).mean(axis=(0, 1)))
    return np.mean(chances, axis=0)


def resample(scores: Tasks, count: int, random: np.random.Generator) -> list[np.ndarray]:
    """`count` stratified bootstrap samples: [runs, ...] -> [runs, count, ...] for each task.

    Runs are drawn with replacement within each task, independently of the other tasks.
    """
    return [one[random.integers(len(one), size=(len(one), count))] for one in scores]


def interval(
    statistic: Statistic,
    *groups: Tasks,
    random: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap interval of a statistic of one or several groups of runs.

    Groups are resampled independently of each other. Returns the lower and the upper ends, each of
    the statistic's own shape.
    """
    runs = sum(len(one) for group in groups for one in group)
    at_once = max(1, _NUMBERS_AT_ONCE // (runs * np.size(statistic(*groups))))
    parts = []
    for begin in range(0, resamples, at_once):
        count = min(at_once, resamples - begin)
        parts.append(statistic(*(resample(group, count, random) for group in groups)))
    samples = np.concatenate(parts)  # [resamples, ...]
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return low, high


def first_reaching(frames: np.ndarray, returns: np.ndarray, threshold: float) -> int | None:
    """The frames [T] of the first of the returns [T] at or above the threshold; None: not
    reached."""
    reached = np.flatnonzero(returns >= threshold)
    return int(frames[reached[0]]) if len(reached) else None


def median_reaching(reached: Sequence[int | None]) -> float | None:
    """The median run's frames, where not reached is later than any number; None: not reached.

    The middle of an even number of runs is known only if both runs beside it reached.
    """
    ordered = np.sort([np.inf if frames is None else frames for frames in reached])
    if not len(ordered):
        return None
    middle = float(np.mean(ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]))
    return middle if np.isfinite(middle) else None


def broken(scores: np.ndarray, best: float, worst: float, share: float = 0.1) -> np.ndarray:
    """Which final scores [runs] say that a run did not learn: [runs] of bool.

    A finished run is broken if its final score lies in the lowest `share` of the way from `worst`,
    the lowest return that was seen on its env, to `best`, the best arm's IQM there. Measured from
    `worst`, not from 0, since returns may be negative. If none is better than `worst`, none is.
    """
    return np.asarray(scores) < worst + share * (best - worst)


def on_common_frames(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Curves of frames and values [T] each, as frames [T] that all of them cover and values [n, T].

    Between evaluations a curve is linear; where all evaluated at the same frames nothing changes.
    """
    begin = max(frames[0] for frames, _ in curves)
    end = min(frames[-1] for frames, _ in curves)
    every = np.unique(np.concatenate([frames for frames, _ in curves]))
    common = every[(every >= begin) & (every <= end)]
    return common, np.array([np.interp(common, *curve) for curve in curves]).reshape(
        len(curves), len(common)
    )
