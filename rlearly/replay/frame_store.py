"""Stores for the frames of a replay buffer: raw or compressed, in memory, on a disk or on a GPU.

A store has a fixed number of slots. Frames come back exactly as they were written, to the bit.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""mmap's MAP_NORESERVE, which Python 3.11 does not name."""

BLOCK_BYTES = 16_000_000
"""Size of a block of compressed frames."""

CHUNK_BYTES = 200_000_000
"""Size of the chunks in which frames are read from stores that copy them."""

BIG_BYTES = 1_000_000
"""Batches of at least this size reuse memory."""


class FrameStore(Protocol):
    """Frames [*shape] in slots 0 .. capacity - 1."""

    chunk_rows: int
    """How many frames can be read at once without taking much memory."""

    def write(self, start: int, frames: np.ndarray) -> None:
        """Put frames [k, *shape] into the slots from `start` on.

        Raises:
            OSError: there is no space left for them.
        """
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """The frames of these slots, on the host; a view where that is possible."""
        ...

    def gather(self, slots: np.ndarray, out: torch.Tensor) -> None:
        """Copy the frames at `slots` [N] into out [N, *shape], on the store's device."""
        ...

    def close(self) -> None:
        """End its threads."""
        ...


# --- memory ---


def reserve(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Zeros that take memory only when written, and return it when freed."""
    count = math.prod(shape)
    size = max(count * np.dtype(dtype).itemsize, 1)
    if sys.platform == "win32":
        memory = mmap.mmap(-1, size)
    else:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    return np.frombuffer(memory, dtype=dtype, count=count).reshape(shape)


class MemoryArray:
    """An array in memory, written through `write` as a `DiskArray` is."""

    def __init__(self, shape: tuple[int, ...], dtype: str):
        self.array = reserve(shape, dtype)

    def write(self, start: int, rows: np.ndarray) -> None:
        self.array[start : start + len(rows)] = rows


class DiskArray:
    """An array in an unnamed file, which is deleted when the process ends, however it ends.

    It is read as a memory map but written through the file: on a full disk that raises OSError,
    whereas writing to mapped memory would kill the process. The file uses disk space only as it
    fills.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, folder: Path):
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self.file.truncate(max(math.prod(shape) * np.dtype(dtype).itemsize, 1))
        self.array = np.asarray(np.memmap(self.file, dtype, "r+", shape=shape))

    def write(self, start: int, rows: np.ndarray) -> None:
        """Put rows [k, ...] at index `start`.

        Raises:
            OSError: the disk is full.
        """
        data = np.ascontiguousarray(rows, self.array.dtype).data.cast("B")
        offset = start * self.array.strides[0]
        while data:
            if hasattr(os, "pwrite"):
                written = os.pwrite(self.file.fileno(), data, offset)
            else:  # Windows
                self.file.seek(offset)
                written = self.file.write(data)
            data, offset = data[written:], offset + written


class BatchMemory:
    """Memory for batches, reused once nothing refers to the tensor that used it.

    While a batch, or a view of it, is kept, so is its memory, and later batches use other memory.
    Memory that the process has touched before is several times faster to write than new memory.
    """

    def __init__(self, limit: int = 8):
        self.limit = limit
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
        """An uninitialised tensor."""
        count = math.prod(shape) * np.dtype(dtype).itemsize
        if count < BIG_BYTES:
            return torch.from_numpy(np.empty(shape, dtype))
        with self._lock:
            array = self._arrays[self._free_index(count)]
            return torch.from_numpy(array.view(dtype).reshape(shape))

    def _free_index(self, count: int) -> int:
        free = [at for at in range(len(self._arrays)) if self._references(at) == self._unused]
        for at in free:
            if self._arrays[at].nbytes == count:
                return at
        if len(self._arrays) >= self.limit:
            del self._arrays[free[0] if free else 0]
        self._arrays.append(np.empty(count, np.uint8))
        self._unused = self._references(-1)
        return len(self._arrays) - 1

    def _references(self, at: int) -> int:
        return sys.getrefcount(self._arrays[at])


# --- stores ---


class RawFrameStore:
    """Uncompressed frames in memory or, with `folder`, in a file there."""

    def __init__(
        self, capacity: int, shape: tuple[int, ...], dtype: str, *, folder: Path | None = None
    ):
        whole = (capacity, *shape)
        self.memory = DiskArray(whole, dtype, folder) if folder else MemoryArray(whole, dtype)
        self.array = self.memory.array
        self._tensor = torch.from_numpy(self.array)
        self.chunk_rows = capacity

    def write(self, start: int, frames: np.ndarray) -> None:
        self.memory.write(start, frames)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]

    def gather(self, slots: np.ndarray, out: torch.Tensor) -> None:
        torch.index_select(self._tensor, 0, torch.from_numpy(slots), out=out)

    def close(self) -> None:
        """Does nothing: it has no threads."""


class DeviceFrameStore:
    """Uncompressed frames on a torch device: batches are gathered where the learner is."""

    def __init__(self, capacity: int, shape: tuple[int, ...], dtype: str, *, device: torch.device):
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        self.tensor = torch.empty((capacity, *shape), dtype=kind, device=device)
        frame_bytes = self.tensor[0].numel() * self.tensor.element_size()
        self.chunk_rows = max(1, CHUNK_BYTES // frame_bytes)

    def empty(self, rows: int) -> torch.Tensor:
        """An uninitialised tensor for `rows` frames, on the device."""
        return self.tensor.new_empty((rows, *self.tensor.shape[1:]))

    def write(self, start: int, frames: np.ndarray) -> None:
        self.tensor[start : start + len(frames)] = torch.from_numpy(np.array(frames))

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tensor[start:stop].cpu().numpy()

    def gather(self, slots: np.ndarray, out: torch.Tensor) -> None:
        index = torch.from_numpy(slots).to(self.tensor.device)
        torch.index_select(self.tensor, 0, index, out=out)

    def close(self) -> None:
        """Does nothing: it has no threads."""


class _Zstd(threading.local):
    """zstd for any thread; its objects serve one thread each, so every thread runs `__init__`."""

    def __init__(self, level: int):
        import zstandard

        self.compress = zstandard.ZstdCompressor(level=level).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


class CompressedFrameStore:
    """Images uint8 [C, H, W], each compressed losslessly by itself.

    A pixel is predicted by its left neighbour, red and blue also by green. zstd codes the
    prediction errors with the colours of a pixel next to each other, so that equal pixels are one
    repetition and not three. On dog_run that takes 31 % of the bytes; prediction from the previous
    frame, or several frames at once, gained less than it cost in decoding.

    Bytes lie in blocks of memory (or, with `folder`, in files), filled one after the other; a block
    is reused when the last of its frames has been overwritten.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        *,
        folder: Path | None = None,
        level: int = 3,
        block_bytes: int = BLOCK_BYTES,
        check_space: Callable[[], None] = lambda: None,
    ):
        """`check_space`: called before a block is allocated; raises OSError if memory is short."""
        self.shape = shape
        self.folder = folder
        self.block_bytes = block_bytes
        self.check_space = check_space
        self.chunk_rows = max(1, CHUNK_BYTES // math.prod(shape))
        self._zstd = _Zstd(level)
        self._starts = reserve((capacity,), "int64")  # block number * block_bytes + offset in it
        self._sizes = reserve((capacity,), "int32")  # 0: the slot is empty
        self._blocks: dict[int, MemoryArray | DiskArray] = {}  # by number, counted from the start
        self._frames_left: dict[int, int] = {}  # frames of a block that are not overwritten
        self._spare: list[MemoryArray | DiskArray] = []
        self._number = -1  # of the block that is being filled
        self._end = 0  # bytes in that block
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    @property
    def allocated_bytes(self) -> int:
        """Memory, or disk, of all blocks and of the index."""
        blocks = len(self._blocks) + len(self._spare)
        return blocks * self.block_bytes + self._starts.nbytes + self._sizes.nbytes

    @property
    def compressed_bytes(self) -> int:
        """Size of the frames in all slots."""
        return int(self._sizes.sum())

    def write(self, start: int, frames: np.ndarray) -> None:
        if self._pool is None or len(frames) == 1:
            compressed = map(self._compress, frames)
        else:
            compressed = self._pool.map(self._compress, frames)
        for slot, data in enumerate(compressed, start):
            self._put(slot, data)

    def read(self, start: int, stop: int) -> np.ndarray:
        frames = np.empty((stop - start, *self.shape), np.uint8)
        self._decompress(np.arange(start, stop), frames)
        return frames

    def gather(self, slots: np.ndarray, out: torch.Tensor) -> None:
        unique, inverse = np.unique(slots, return_inverse=True)
        if len(unique) == len(slots):
            self._decompress(slots, out.numpy())
            return
        frames = np.empty((len(unique), *self.shape), np.uint8)
        self._decompress(unique, frames)
        torch.index_select(torch.from_numpy(frames), 0, torch.from_numpy(inverse), out=out)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _put(self, slot: int, data: bytes) -> None:
        if self._end + len(data) > self.block_bytes or not self._blocks:
            block = self._new_block()
            self._number += 1
            self._blocks[self._number] = block
            self._frames_left[self._number] = self._end = 0
            self._free_if_empty(self._number - 1)
        self._blocks[self._number].write(self._end, np.frombuffer(data, np.uint8))
        if self._sizes[slot]:
            overwritten = int(self._starts[slot]) // self.block_bytes
            self._frames_left[overwritten] -= 1
            self._free_if_empty(overwritten)
        self._starts[slot] = self._number * self.block_bytes + self._end
        self._sizes[slot] = len(data)
        self._frames_left[self._number] += 1
        self._end += len(data)

    def _new_block(self) -> MemoryArray | DiskArray:
        if self._spare:
            return self._spare.pop()
        if self.folder is not None:
            return DiskArray((self.block_bytes,), "uint8", self.folder)
        self.check_space()
        return MemoryArray((self.block_bytes,), "uint8")

    def _free_if_empty(self, number: int) -> None:
        if number != self._number and self._frames_left.get(number) == 0:
            del self._frames_left[number]
            self._spare.append(self._blocks.pop(number))

    def _compress(self, frame: np.ndarray) -> bytes:
        return self._zstd.compress(_prediction_errors(frame))

    def _decompress(self, slots: np.ndarray, out: np.ndarray) -> None:
        """Put the frames at `slots` into out [N, C, H, W], in parts that fit a cache."""
        step = max(1, 400_000 // math.prod(self.shape))
        parts = [(slots[at : at + step], out[at : at + step]) for at in range(0, len(slots), step)]
        if self._pool is None or len(parts) < 2:
            for part in parts:
                self._decompress_part(*part)
        else:
            list(self._pool.map(lambda part: self._decompress_part(*part), parts))

    def _decompress_part(self, slots: np.ndarray, out: np.ndarray) -> None:
        channels, height, width = self.shape
        data = b"".join(map(self._zstd.decompress, self._compressed(slots)))
        errors = np.frombuffer(data, np.uint8).reshape(len(slots) * height, width, channels)
        pixels = np.add.accumulate(errors, axis=1, dtype=np.uint8)
        pixels = pixels.reshape(len(slots), height, width, channels)
        for channel in range(channels):
            out[:, channel] = pixels[..., channel]
        if channels == 3:
            out[:, 0] += out[:, 1]
            out[:, 2] += out[:, 1]

    def _compressed(self, slots: np.ndarray) -> Iterator[memoryview]:
        numbers, starts = np.divmod(self._starts[slots], self.block_bytes)
        stops = starts + self._sizes[slots]
        for number, start, stop in zip(
            numbers.tolist(), starts.tolist(), stops.tolist(), strict=True
        ):
            yield self._blocks[number].array[start:stop].data


def _prediction_errors(frame: np.ndarray) -> bytes:
    """The errors [H, W, C] of predicting a frame [C, H, W] from left neighbours and green."""
    pixels = np.array(np.moveaxis(frame, 0, -1), order="C")
    if len(frame) == 3:
        pixels[..., 0] -= pixels[..., 1]
        pixels[..., 2] -= pixels[..., 1]
    errors = pixels.copy()
    errors[:, 1:] -= pixels[:, :-1]
    return errors.tobytes()
