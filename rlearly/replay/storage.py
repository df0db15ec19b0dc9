"""Where a run's replay is kept, by its config: chosen, checked, and put into words."""

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
"""What compressed frames are taken to need before there are any: the most of thirteen envs tried
(cheetah_run's); dog_run's need 0.31, fish_swim's 0.17."""

INDEX_BYTES = 12
"""Of a compressed frame: where it is, and its size."""

MIN_FREE_BYTES = 500_000_000
"""Compressed frames stop growing when less is left."""

GPU_WORKING_BYTES = 6_000_000_000
"""Left free on a GPU for networks, activations and batches."""


def check(replay: ReplayConfig) -> None:
    """Raises:
    ConfigError: its settings contradict each other, or a package is missing.
    """
    if replay.folder is not None and replay.storage != "disk":
        raise ConfigError("replay.folder: says nothing without replay.storage=disk; add it.")
    for key in ("compression", "storage"):
        value = getattr(replay, key)
        if replay.device == "cuda" and value not in ("none", "memory"):
            raise ConfigError(
                f"replay.device=cuda: frames lie on the GPU as they are; leave out "
                f"replay.{key}={value}."
            )
    if replay.compression == "zstd" and find_spec("zstandard") is None:
        raise ConfigError(
            "replay.compression=zstd: the package zstandard is not installed here: "
            "pip install zstandard"
        )


def transition_bytes(replay: ReplayConfig, layout: TransitionLayout) -> int:
    """Memory for one more transition; where frames are compressed, an estimate."""
    rest = layout.transition_bytes - layout.frame_bytes
    if replay.compression != "none":
        rest += INDEX_BYTES
    return rest + (0 if replay.storage == "disk" else _frame_bytes(replay, layout))


def _frame_bytes(replay: ReplayConfig, layout: TransitionLayout) -> int:
    share = 1.0 if replay.compression == "none" else COMPRESSED_FRACTION
    return int(layout.frame_bytes * share)


class ReplayStorage:
    """Where the frames of a run's rings are to lie: decided, and there is room for them."""

    def __init__(
        self,
        replay: ReplayConfig,
        layout: TransitionLayout,
        *,
        slots: int,
        device: torch.device,
        folder: Path,
    ):
        """`slots`: what the run will fill, of all copies; `folder`: the run's.

        Raises:
            ConfigError: they do not fit, or cannot be kept as was asked.
        """
        check(replay)
        image = len(layout.frame_shape) == 3 and layout.frame_dtype == "uint8"
        if replay.compression != "none" and not image:
            raise ConfigError(
                f"replay.compression={replay.compression}: compresses images, and this env is "
                "observed by states; leave it out."
            )
        self.replay = replay
        self.layout = layout
        self.folder = Path(replay.folder).expanduser() if replay.folder else folder
        self.device = self._device(device)
        self.summary = self._fits(slots)

    def make_store(self, capacity: int) -> FrameStore:
        """A store for a ring of `capacity` slots."""
        from rlearly.replay.frame_store import CompressedFrameStore, DeviceFrameStore, RawFrameStore

        shape, dtype = self.layout.frame_shape, self.layout.frame_dtype
        folder = self.folder if self.replay.storage == "disk" else None
        if self.device is not None:
            return DeviceFrameStore(capacity, shape, dtype, device=self.device)
        if self.replay.compression == "zstd":
            return CompressedFrameStore(
                capacity, shape, folder=folder, check_room=check_free_memory
            )
        return RawFrameStore(capacity, shape, dtype, folder=folder)

    def _device(self, device: torch.device) -> torch.device | None:
        """The GPU that frames are to lie on, if any."""
        from rlearly.system import machine

        whole = self.replay.capacity * self.layout.frame_bytes
        if self.replay.device == "cuda":
            if device.type != "cuda":
                raise ConfigError(
                    f"replay.device=cuda: the learner is on {device}; leave it out, or add "
                    "device=cuda."
                )
            free = machine.gpu_free_bytes(device)
            if whole + GPU_WORKING_BYTES > free:
                raise ConfigError(
                    f"replay.device=cuda: the frames take {machine.gigabytes(whole)} and learning "
                    f"about {machine.gigabytes(GPU_WORKING_BYTES)}, but only "
                    f"{machine.gigabytes(free)} are free on {device}: leave it out, or lower "
                    "replay.capacity."
                )
            return device
        plain = self.replay.compression == "none" and self.replay.storage == "memory"
        if self.replay.device == "auto" and plain and device.type == "cuda":
            fits = whole + GPU_WORKING_BYTES <= machine.gpu_free_bytes(device)
            return device if fits else None
        return None

    def _fits(self, slots: int) -> str:
        """A line on what one transition takes, and what the run will fill."""
        from rlearly.system.machine import check_memory

        replay, layout = self.replay, self.layout
        each = transition_bytes(replay, layout)
        size = f"{layout.transition_bytes:,} bytes"
        if self.device is not None:
            each -= layout.frame_bytes
            size += f", frames on {self.device}"
        elif replay.compression != "none":
            about = layout.transition_bytes - layout.frame_bytes + INDEX_BYTES
            size = f"about {about + _frame_bytes(replay, layout):,} bytes (an estimate)"
        line = check_memory(slots * each, each)
        if replay.storage == "disk":
            line += f" and {self._fits_disk(slots)}"
        return f"replay: {replay.capacity:,} transitions of {size}; this run fills {line}"

    def _fits_disk(self, slots: int) -> str:
        from rlearly.system.machine import gigabytes

        frame_bytes = _frame_bytes(self.replay, self.layout)
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
                "replay.folder= on a disk with more room."
            )
        return f"{gigabytes(slots * frame_bytes)} of {gigabytes(free)} free in {self.folder}"


def check_free_memory() -> None:
    """Raises:
    OSError: there is too little memory left for more compressed frames.
    """
    from rlearly.system import machine

    left = machine.available_bytes()
    if left < MIN_FREE_BYTES:
        raise OSError(
            errno.ENOMEM,
            f"only {machine.gigabytes(left)} of memory are left for the replay, whose frames "
            "compress less than was estimated; replay.storage=disk needs less",
        )
