"""Choose and check where the frames of a run's replay are kept."""

from __future__ import annotations

import errno
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rlearly.config.schema import ReplayConfig
from rlearly.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from rlearly.replay.buffer import TransitionLayout
    from rlearly.replay.frame_store import FrameStore

COMPRESSED_FRACTION = 0.36
"""Assumed size of a compressed frame relative to a raw one: the largest of thirteen envs
(cheetah_run's); dog_run's is 0.31, fish_swim's 0.17."""

INDEX_BYTES = 12
"""Index entry of a compressed frame: its start and size."""

MIN_FREE_BYTES = 500_000_000
"""Compressed frames stop growing when less memory is left."""

GPU_WORKING_BYTES = 6_000_000_000
"""Left free on a GPU for networks, activations and batches."""


def check(replay: ReplayConfig) -> None:
    """Check the replay settings, as far as that is possible without the env.

    Raises:
        ConfigError: its settings contradict each other, or a package is missing.
    """
    if replay.folder is not None and replay.storage != "disk":
        raise ConfigError("replay.folder: has no effect without replay.storage=disk; add it.")
    for key in ("compression", "storage"):
        value = getattr(replay, key)
        if replay.device == "cuda" and value not in ("none", "memory"):
            raise ConfigError(
                f"replay.device=cuda: frames are kept raw on the GPU; leave out "
                f"replay.{key}={value}."
            )
    if replay.compression == "zstd" and find_spec("zstandard") is None:
        raise ConfigError(
            "replay.compression=zstd: the package zstandard is not installed here: "
            "pip install zstandard"
        )


def transition_bytes(replay: ReplayConfig, layout: TransitionLayout) -> int:
    """Memory per transition; an estimate where frames are compressed."""
    memory = layout.transition_bytes - layout.frame_bytes
    if replay.compression != "none":
        memory += INDEX_BYTES
    return memory + (0 if replay.storage == "disk" else _stored_frame_bytes(replay, layout))


def _stored_frame_bytes(replay: ReplayConfig, layout: TransitionLayout) -> int:
    fraction = 1.0 if replay.compression == "none" else COMPRESSED_FRACTION
    return int(layout.frame_bytes * fraction)


class ReplayStorage:
    """Decides where a run keeps the frames of its replay, and checks that they fit there.

    Args:
        slots: how many the run will fill, over all envs.
        device: the learner's.
        folder: the run directory.

    Raises:
        ConfigError: the frames do not fit, or cannot be kept as requested.
    """

    def __init__(
        self,
        replay: ReplayConfig,
        layout: TransitionLayout,
        *,
        slots: int,
        device: torch.device,
        folder: Path,
    ):
        check(replay)
        image = len(layout.frame_shape) == 3 and layout.frame_dtype == "uint8"
        if replay.compression != "none" and not image:
            raise ConfigError(
                f"replay.compression={replay.compression}: compresses images, but this env's "
                "observations are states; leave it out."
            )
        self.replay = replay
        self.layout = layout
        self.folder = Path(replay.folder) if replay.folder else folder
        self.device = self._gpu(device)
        self.summary = self._check_space(slots)

    def make_store(self, capacity: int) -> FrameStore:
        """A store for a buffer of `capacity` slots."""
        from rlearly.replay.frame_store import CompressedFrameStore, DeviceFrameStore, RawFrameStore

        shape, dtype = self.layout.frame_shape, self.layout.frame_dtype
        folder = self.folder if self.replay.storage == "disk" else None
        if self.device is not None:
            return DeviceFrameStore(capacity, shape, dtype, device=self.device)
        if self.replay.compression == "zstd":
            return CompressedFrameStore(
                capacity, shape, folder=folder, check_space=check_free_memory
            )
        return RawFrameStore(capacity, shape, dtype, folder=folder)

    def _gpu(self, device: torch.device) -> torch.device | None:
        """The GPU that keeps the frames, if any."""
        from rlearly.system.machine import gigabytes, gpu_free_bytes

        on_host = self.replay.compression != "none" or self.replay.storage != "memory"
        required = self.replay.device == "cuda"
        if required and device.type != "cuda":
            raise ConfigError(
                f"replay.device=cuda: the learner is on {device}; leave it out, or add device=cuda."
            )
        if device.type != "cuda" or self.replay.device == "cpu" or on_host:
            return None
        frames = self.replay.capacity * self.layout.frame_bytes
        free = gpu_free_bytes(device)
        if frames + GPU_WORKING_BYTES <= free:
            return device
        if required:
            raise ConfigError(
                f"replay.device=cuda: the frames take {gigabytes(frames)} and learning "
                f"about {gigabytes(GPU_WORKING_BYTES)}, but only {gigabytes(free)} are free on "
                f"{device}: leave it out, or lower replay.capacity."
            )
        return None

    def _check_space(self, slots: int) -> str:
        """One line on the size of a transition and on what the run will fill."""
        from rlearly.system.machine import check_memory

        replay, layout = self.replay, self.layout
        each = transition_bytes(replay, layout)
        size = f"{layout.transition_bytes:,} bytes"
        if self.device is not None:
            each -= layout.frame_bytes
            size += f", frames on {self.device}"
        elif replay.compression != "none":
            about = layout.transition_bytes - layout.frame_bytes + INDEX_BYTES
            size = f"about {about + _stored_frame_bytes(replay, layout):,} bytes (an estimate)"
        line = check_memory(slots * each, each)
        if replay.storage == "disk":
            line += f" and {self._check_disk(slots)}"
        return f"replay: {replay.capacity:,} transitions of {size}; this run fills {line}"

    def _check_disk(self, slots: int) -> str:
        from rlearly.system.machine import gigabytes

        frame_bytes = _stored_frame_bytes(self.replay, self.layout)
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise ConfigError(f"replay.folder: {self.folder} cannot be used ({error}).") from None
        if slots * frame_bytes > free:
            fits = int(free * 0.95) // frame_bytes // 1000 * 1000
            fewer = f"replay.capacity={fits}, or " if fits else ""
            raise ConfigError(
                f"The replay's frames will grow to {gigabytes(slots * frame_bytes)}, but "
                f"only {gigabytes(free)} are free in {self.folder}: add {fewer}"
                "replay.folder= on a disk with more space."
            )
        return f"{gigabytes(slots * frame_bytes)} of {gigabytes(free)} free in {self.folder}"


def check_free_memory() -> None:
    """Check that there is memory left for more compressed frames.

    Raises:
        OSError: there is too little.
    """
    from rlearly.system import machine

    left = machine.available_bytes()
    if left < MIN_FREE_BYTES:
        raise OSError(
            errno.ENOMEM,
            f"only {machine.gigabytes(left)} of memory are left for the replay, and its frames "
            "compress less than was estimated; replay.storage=disk needs less",
        )
