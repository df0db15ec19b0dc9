"""The objective of a trial: one number from the evaluations of its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlearly.experiments.report.curves import mean_of_last
from rlearly.experiments.report.statistics import estimate, iqm, pooled_iqm

OBJECTIVES = ("iqm", "lower_bound", "mean")

WORST = -math.inf
"""The score of a run that failed: below every return, so that it counts as the worst seed."""


def value_at(
    frames: np.ndarray, returns: np.ndarray, rung_frames: int, last_evaluations: int
) -> float | None:
    """The score of a run [T] at its first evaluation at or after `rung_frames`.

    The mean of that evaluation and those before it, `last_evaluations` in all; None if the run has
    not reached it.
    """
    reached = np.flatnonzero(frames >= rung_frames)
    if not len(reached):
        return None
    return mean_of_last(returns[: reached[0] + 1], last_evaluations)


def objective_of(scores: Sequence[float], kind: str) -> float:
    """The objective of a trial from the scores [seeds] of its runs.

    "iqm": the mean of the middle half, which drops len(scores) // 4 at each end. "mean": of all.
    "lower_bound": the lower end of the IQM's 95 % bootstrap interval.
    """
    array = np.asarray(scores, dtype=float)
    if kind == "mean":
        return float(array.mean())
    if kind == "iqm":
        return float(iqm(array))
    with np.errstate(invalid="ignore"):  # between two failed runs
        low = float(estimate(pooled_iqm, [array], seed=0).low)
    return WORST if math.isnan(low) else low


def is_lost(failed: Sequence[bool], kind: str) -> bool:
    """Whether a trial's objective is -infinity whatever its other runs reach. `failed`: [seeds]."""
    return objective_of([WORST if one else 0.0 for one in failed], kind) == WORST
