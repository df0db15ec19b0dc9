"""An append-only log: how a state dict holds rows that are too big to be written every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

LogChunk = tuple[int, dict[str, np.ndarray]]
"""(number of the first row, {field: array [rows, ...]})."""


@dataclass(frozen=True)
class AppendLog:
    """Rows `first` to `end` of a log, numbered from the first row ever added; rows never change.

    A checkpoint writes only the rows that the previous checkpoint does not have.
    """

    first: int
    end: int
    read: Callable[[int, int], Iterator[LogChunk]]
    """read(first, end) yields these rows in order, in chunks of views that may change later."""

    def chunks(self) -> Iterator[LogChunk]:
        return self.read(self.first, self.end)

    def rows(self) -> dict[str, np.ndarray]:
        """All rows in memory, by field; an empty dict if there are none."""
        chunks = [fields for _, fields in self.chunks()]
        names = chunks[0] if chunks else ()
        return {name: np.concatenate([fields[name] for fields in chunks]) for name in names}
