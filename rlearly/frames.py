"""How a replay keeps its frames.

Every store holds a ring of frames, is written at consecutive places, and gives back what was
written to the bit.
"""

from __future__ import annotations

import math
import mmap
import sys
import threading
from typing import Any, Protocol

import numpy as np
import torch

NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""mmap's MAP_NORESERVE, which Python 3.11 does not name."""

BIG_BYTES = 1_000_000
"""Batches of at least this size are gathered into memory that is used again."""


class Frames(Protocol):
    """Frames [*shape] at places 0 .. capacity - 1."""

    def write(self, at: int, frames: np.ndarray) -> None:
        """Put frames [k, *shape] at the places from `at` on, in the order of the ring.

        Raises:
            OSError: there is no room for them.
        """
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """The frames at these places, on the host; a view where that is possible."""
        ...

    def gather(self, places: np.ndarray, out: torch.Tensor) -> None:
        """Put the frames at `places` [N] into out [N, *shape], on the store's device."""
        ...

    @property
    def piece(self) -> int:
        """So many frames are read at once without taking much memory."""
        ...


# --- memory ---


def reserve(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Zeros that take memory only when written, and give it back when freed."""
    count = math.prod(shape)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    memory = mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1), flags=flags)
    return np.frombuffer(memory, dtype=dtype, count=count).reshape(shape)


class Buffers:
    """Memory for batches, used again once nothing refers to the tensor that was made of it.

    Whoever keeps a batch, or any part of it, keeps its memory: it then comes from elsewhere. Memory
    that the process has touched before is several times faster to write than new.
    """

    def __init__(self, most: int = 8):
        self.most = most
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
        """A tensor of arbitrary content."""
        count = math.prod(shape) * np.dtype(dtype).itemsize
        if count < BIG_BYTES:
            return torch.from_numpy(np.empty(shape, dtype))
        with self._lock:
            at = self._free(count)
            return torch.from_numpy(self._arrays[at].view(dtype).reshape(shape))

    def _free(self, count: int) -> int:
        free = [at for at in range(len(self._arrays)) if self._references(at) == self._unused]
        for at in free:
            if self._arrays[at].nbytes == count:
                return at
        if len(self._arrays) >= self.most:
            del self._arrays[free[0] if free else 0]
        self._arrays.append(np.empty(count, np.uint8))
        self._unused = self._references(-1)
        return len(self._arrays) - 1

    def _references(self, at: int) -> int:
        return sys.getrefcount(self._arrays[at])


# --- stores ---


class PlainFrames:
    """Frames as they are, in memory."""

    def __init__(self, capacity: int, shape: tuple[int, ...], dtype: str):
        self.array = reserve((capacity, *shape), dtype)
        self._tensor = torch.from_numpy(self.array)
        self.piece = capacity

    def write(self, at: int, frames: np.ndarray) -> None:
        self.array[at : at + len(frames)] = frames

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]

    def gather(self, places: np.ndarray, out: torch.Tensor) -> None:
        torch.index_select(self._tensor, 0, torch.from_numpy(places), out=out)
