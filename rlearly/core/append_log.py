"""Rows that are added at one end and forgotten at the other, as a checkpoint sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

LogChunk = tuple[int, dict[str, np.ndarray]]
"""The number of its first row, and the fields of its rows: arrays [rows, ...]."""


@dataclass(frozen=True)
class AppendLog:
    """Rows `first` to `end`, numbered from the first one ever added; a row never changes.

    In a state dict it stands for arrays that are too big to be written anew each time: a checkpoint
    writes the rows that the one before it has not.
    """

    first: int
    end: int
    read: Callable[[int, int], Iterator[LogChunk]]
    """Rows from one number to another, in order, as pieces: views, that may change later."""

    def rows(self) -> dict[str, np.ndarray]:
        """All of them, field by field, in memory; nothing if there are none."""
        chunks = [fields for _, fields in self.chunks()]
        names = chunks[0] if chunks else ()
        return {name: np.concatenate([fields[name] for fields in chunks]) for name in names}

    def chunks(self) -> Iterator[LogChunk]:
        return self.read(self.first, self.end)
