"""Means of update metrics between two rows of the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlearly.core.types import Metrics

Names = tuple[str, ...]


class MetricMeans:
    """The mean of each metric over the updates that reported it, summed on the metrics' device.

    Nothing waits for the device until `take`. Metrics of one dtype and device that are reported
    together are added as one tensor, because on a GPU every addition costs a kernel launch.
    """

    def __init__(self) -> None:
        self.sums: dict[Names, Tensor] = {}  # [metrics] in double precision
        self.counts: dict[Names, int] = {}

    def add(self, metrics: Metrics) -> None:
        kinds: dict[Any, dict[str, Any]] = {}
        for name, value in metrics.items():
            kind = (value.dtype, value.device) if isinstance(value, Tensor) else None
            kinds.setdefault(kind, {})[name] = value
        for kind, together in kinds.items():
            names, values = tuple(together), list(together.values())
            row = torch.stack(values) if kind else torch.tensor(values, dtype=torch.float64)
            if names in self.sums:
                self.sums[names] = self.sums[names].to(row.device) + row
            else:
                self.sums[names] = row.double()
            self.counts[names] = self.counts.get(names, 0) + 1

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, row in self.sums.items():
            for name, value in zip(names, row.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + self.counts[names]
        self.sums, self.counts = {}, {}
        return {name: total / counts[name] for name, total in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": [
                {"names": list(names), "sum": row, "count": self.counts[names]}
                for names, row in self.sums.items()
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = {tuple(part["names"]): part["sum"] for part in state["sums"]}
        self.counts = {tuple(part["names"]): part["count"] for part in state["sums"]}
