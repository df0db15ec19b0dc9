"""How a replay keeps its frames: as they are, in memory or on a disk, compressed, or on a GPU.

Every store holds a ring of frames, is written at consecutive places, and gives back what was
written to the bit.
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

STEP_BYTES = 16_000_000
"""What a file, or the memory of compressed frames, grows by."""

BIG_BYTES = 1_000_000
"""Batches of at least this size are gathered into memory that is used again."""


class FrameStore(Protocol):
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
    def chunk_rows(self) -> int:
        """So many frames are read at once without taking much memory."""
        ...


# --- memory ---


def reserve(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Zeros that take memory only when written, and give it back when freed."""
    count = math.prod(shape)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    memory = mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1), flags=flags)
    return np.frombuffer(memory, dtype=dtype, count=count).reshape(shape)


class DiskMemory:
    """Bytes in a file without a name, which is gone when the process ends, however it ends."""

    def __init__(self, folder: Path, count: int):
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.file.truncate(max(count, 1))
        self.bytes = np.frombuffer(mmap.mmap(self.file.fileno(), max(count, 1)), dtype=np.uint8)
        self._has = 0

    def take(self, stop: int) -> None:
        """Make sure of room up to `stop`: a mapped file that finds none kills the process.

        Raises:
            OSError: the disk is full.
        """
        while self._has < min(stop, len(self.bytes)):
            step = min(STEP_BYTES, len(self.bytes) - self._has)
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(self.file.fileno(), self._has, step)
            self._has += step


class BatchMemory:
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


class RawFrameStore:
    """Frames as they are, in memory or, with `folder`, in a file there."""

    def __init__(
        self, capacity: int, shape: tuple[int, ...], dtype: str, *, folder: Path | None = None
    ):
        self._disk: DiskMemory | None = None
        if folder is None:
            self.array = reserve((capacity, *shape), dtype)
        else:
            self._disk = DiskMemory(folder, capacity * math.prod(shape) * np.dtype(dtype).itemsize)
            self.array = self._disk.bytes.view(dtype).reshape(capacity, *shape)
        self._frame_bytes = self.array.nbytes // capacity
        self._tensor = torch.from_numpy(self.array)
        self.chunk_rows = capacity

    def write(self, at: int, frames: np.ndarray) -> None:
        if self._disk:
            self._disk.take((at + len(frames)) * self._frame_bytes)
        self.array[at : at + len(frames)] = frames

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]

    def gather(self, places: np.ndarray, out: torch.Tensor) -> None:
        torch.index_select(self._tensor, 0, torch.from_numpy(places), out=out)


class DeviceFrameStore:
    """Frames as they are, on a device of torch's: batches are gathered where the learner is."""

    def __init__(self, capacity: int, shape: tuple[int, ...], dtype: str, *, device: torch.device):
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        self.tensor = torch.empty((capacity, *shape), dtype=kind, device=device)
        frame_bytes = self.tensor[0].numel() * self.tensor.element_size()
        self.chunk_rows = max(1, 200_000_000 // frame_bytes)

    def write(self, at: int, frames: np.ndarray) -> None:
        self.tensor[at : at + len(frames)] = torch.from_numpy(np.array(frames))

    def empty(self, rows: int) -> torch.Tensor:
        """A tensor of arbitrary content for `rows` frames, on the device."""
        return self.tensor.new_empty((rows, *self.tensor.shape[1:]))

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tensor[start:stop].cpu().numpy()

    def gather(self, places: np.ndarray, out: torch.Tensor) -> None:
        index = torch.from_numpy(places).to(self.tensor.device)
        torch.index_select(self.tensor, 0, index, out=out)


class CompressedFrameStore:
    """Images [C, H, W] of uint8, each compressed by itself, losslessly.

    A pixel is predicted by its left neighbour, red and blue also by green, and what is left is
    coded by zstd with the colours of a pixel beside each other, where repeated pixels are one
    repetition and not three. On dog_run that takes 31 % of the bytes; prediction from the frame
    before, or several frames at once, gained less than it cost in decoding.

    Bytes lie in blocks of memory (or, with `folder`, of files), filled one after the other; a
    block is used anew when the last of its frames has been overwritten.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        *,
        folder: Path | None = None,
        level: int = 3,
        block_bytes: int = STEP_BYTES,
        check_room: Callable[[], None] = lambda: None,
    ):
        """`check_room`: called before a block is added; raises OSError if there is no room."""
        import zstandard

        self.shape = shape
        self.capacity = capacity
        self.folder = folder
        self.block_bytes = block_bytes
        self.check_room = check_room
        self.chunk_rows = max(1, 200_000_000 // math.prod(shape))
        self._new_coder = lambda: zstandard.ZstdCompressor(level=level)
        self._new_decoder = zstandard.ZstdDecompressor
        self._of_thread = threading.local()  # zstd's objects serve one thread each
        self._starts = reserve((capacity,), "int64")  # block * block_bytes + where in it
        self._sizes = reserve((capacity,), "int32")  # 0: nothing is here
        self._blocks: dict[int, np.ndarray] = {}  # by its number since the beginning
        self._in_block: dict[int, int] = {}  # frames that are still wanted
        self._spare: list[np.ndarray] = []
        self._number = -1  # of the block that is being filled
        self._end = 0  # of what is in it
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    @property
    def allocated_bytes(self) -> int:
        """Memory for the frames that are here, the places in which they are noted included."""
        blocks = len(self._blocks) + len(self._spare)
        return blocks * self.block_bytes + self._starts.nbytes + self._sizes.nbytes

    @property
    def compressed_bytes(self) -> int:
        """Of the frames that are here."""
        return int(self._sizes.sum())

    def write(self, at: int, frames: np.ndarray) -> None:
        if self._pool is None or len(frames) == 1:
            coded = map(self._code, frames)
        else:
            coded = self._pool.map(self._code, frames)
        for place, data in enumerate(coded, start=at):
            self._put(place, data)

    def read(self, start: int, stop: int) -> np.ndarray:
        frames = np.empty((stop - start, *self.shape), np.uint8)
        self._decode(np.arange(start, stop), frames)
        return frames

    def gather(self, places: np.ndarray, out: torch.Tensor) -> None:
        once, which = np.unique(places, return_inverse=True)
        if len(once) == len(places):
            self._decode(places, out.numpy())
            return
        frames = np.empty((len(once), *self.shape), np.uint8)
        self._decode(once, frames)
        torch.index_select(torch.from_numpy(frames), 0, torch.from_numpy(which), out=out)

    def _put(self, at: int, data: bytes) -> None:
        if self._end + len(data) > self.block_bytes or not self._blocks:
            block = self._new_block()
            self._number += 1
            self._blocks[self._number] = block
            self._in_block[self._number] = self._end = 0
            self._free_if_empty(self._number - 1)
        self._forget(at)
        start, self._end = self._end, self._end + len(data)
        self._blocks[self._number][start : self._end] = np.frombuffer(data, np.uint8)
        self._starts[at] = self._number * self.block_bytes + start
        self._sizes[at] = len(data)
        self._in_block[self._number] += 1

    def _new_block(self) -> np.ndarray:
        if self._spare:
            return self._spare.pop()
        if self.folder is None:
            self.check_room()
            return reserve((self.block_bytes,), "uint8")
        disk = DiskMemory(self.folder, self.block_bytes)
        disk.take(self.block_bytes)
        return disk.bytes

    def _forget(self, at: int) -> None:
        if not self._sizes[at]:
            return
        number = int(self._starts[at]) // self.block_bytes
        self._in_block[number] -= 1
        self._free_if_empty(number)

    def _free_if_empty(self, number: int) -> None:
        if number != self._number and self._in_block.get(number) == 0:
            del self._in_block[number]
            self._spare.append(self._blocks.pop(number))

    def _code(self, frame: np.ndarray) -> bytes:
        coder = getattr(self._of_thread, "coder", None)
        if coder is None:
            coder = self._of_thread.coder = self._new_coder()
        return coder.compress(_differences(frame))

    def _decode(self, places: np.ndarray, out: np.ndarray) -> None:
        """Put the frames at `places` into out [N, C, H, W], in parts that fit a cache."""
        few = max(1, 400_000 // math.prod(self.shape))
        parts = [(places[at : at + few], out[at : at + few]) for at in range(0, len(places), few)]
        if self._pool is None or len(parts) < 2:
            for part in parts:
                self._decode_few(*part)
        else:
            list(self._pool.map(lambda part: self._decode_few(*part), parts))

    def _decode_few(self, places: np.ndarray, out: np.ndarray) -> None:
        decoder = getattr(self._of_thread, "decoder", None)
        if decoder is None:
            decoder = self._of_thread.decoder = self._new_decoder()
        channels, height, width = self.shape
        data = b"".join(map(decoder.decompress, self._coded(places)))
        coded = np.frombuffer(data, np.uint8).reshape(len(places) * height, width, channels)
        pixels = np.add.accumulate(coded, axis=1, dtype=np.uint8)
        pixels = pixels.reshape(len(places), height, width, channels)
        for channel in range(channels):
            out[:, channel] = pixels[..., channel]
        if channels == 3:
            out[:, 0] += out[:, 1]
            out[:, 2] += out[:, 1]

    def _coded(self, places: np.ndarray) -> Iterator[memoryview]:
        numbers, offsets = np.divmod(self._starts[places], self.block_bytes)
        ends = offsets + self._sizes[places]
        for number, start, stop in zip(
            numbers.tolist(), offsets.tolist(), ends.tolist(), strict=True
        ):
            yield self._blocks[number][start:stop].data


def _differences(frame: np.ndarray) -> bytes:
    """A frame [C, H, W] as the differences [H, W, C] of neighbours in a row."""
    pixels = np.array(np.moveaxis(frame, 0, -1), order="C")
    if len(frame) == 3:
        pixels[..., 0] -= pixels[..., 1]
        pixels[..., 2] -= pixels[..., 1]
    differences = pixels.copy()
    differences[:, 1:] -= pixels[:, :-1]
    return differences.tobytes()
