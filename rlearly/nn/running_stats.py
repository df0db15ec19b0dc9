"""Normalisation by means and variances, running or of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


class RunningMeanStd:
    """Mean and variance of all samples so far, in float64.

    They start as mean 0 and variance 1 with the weight of 1e-4 samples, as gymnasium's do.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.mean = np.zeros(shape)
        self.variance = np.ones(shape)
        self.count = 1e-4

    def update(self, batch: np.ndarray) -> None:
        """Add samples [B, *shape] (Chan et al. 1979, the parallel form)."""
        size = len(batch)
        count = self.count + size
        if size == 1:  # Welford's form, half as many operations
            away = batch[0] - self.mean
            moved = away / count
            self.mean = self.mean + moved
            self.variance = (self.variance + away * moved) * (self.count / count)
        else:
            away = batch.mean(axis=0, dtype=np.float64) - self.mean
            squares = self.variance * self.count + batch.var(axis=0, dtype=np.float64) * size
            squares += away * away * (self.count * size / count)
            self.mean = self.mean + away * (size / count)
            self.variance = squares / count
        self.count = count

    def update_in_order(self, batches: np.ndarray) -> np.ndarray:
        """Add numbers [T, B] row by row; returns the variance [T] after each row."""
        counts = self.count + batches.shape[1] * np.arange(1, len(batches) + 1)
        away = batches - self.mean  # relative to the old mean, or large squares would cancel
        sums = np.cumsum(away.sum(axis=1))
        squares = self.variance * self.count + np.cumsum(np.square(away).sum(axis=1))
        variances = (squares - sums**2 / counts) / counts
        self.mean = self.mean + sums[-1] / counts[-1]
        self.variance = np.asarray(variances[-1])
        self.count = float(counts[-1])
        return variances

    def state_dict(self) -> dict[str, Any]:
        return {
            "mean": self.mean.tolist(),
            "variance": self.variance.tolist(),
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean = np.array(state["mean"])
        self.variance = np.array(state["variance"])
        self.count = state["count"]


def standardized(values: Tensor) -> Tensor:
    """Values [..., B] with mean 0 and standard deviation 1 along the last dimension."""
    return (values - values.mean(-1, keepdim=True)) / (values.std(-1, keepdim=True) + 1e-8)
