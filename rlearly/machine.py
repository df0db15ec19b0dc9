"""The computer underneath: device, threads, memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

import psutil
import torch

from rlearly.config import ConfigError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU.

    Raises:
        ConfigError: the name is no device, or that device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, received {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name} is not here ({torch.cuda.device_count()} GPUs are visible); "
            "add device=cpu or device=auto."
        )
    return device


def settle(threads: int | None) -> int:
    """Pin torch's threads and keep freed memory in the process; returns the thread count.

    Big tensors are otherwise handed back to the system and fetched anew at each update, which
    costs more than computing with them. Call it before the first tensor.
    """
    count = threads or len(os.sched_getaffinity(0)) if sys.platform == "linux" else threads or 1
    torch.set_num_threads(count)
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    return count


def available_bytes() -> int:
    """Memory this process may still take: the system's, or its control group's if that is less."""
    available = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            left = int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such control group, or no limit in it ("max")
            continue
        available = min(available, left)
    return max(available, 0)


WORKING_BYTES = 1_500_000_000
"""Left free for networks, batches, the simulator and the system beside the replay."""


def check_memory(needed_bytes: int, transition_bytes: int) -> str:
    """One line that says what the replay will take.

    Raises:
        ConfigError: it does not fit; the sentence gives both numbers and a capacity that does.
    """
    available = available_bytes()
    if needed_bytes + WORKING_BYTES > available:
        fits = max(0, available - WORKING_BYTES) // transition_bytes
        fits = int(fits * 0.95) // 1000 * 1000
        remedy = (
            f"add replay.capacity={fits} or use a machine with more memory"
            if fits >= 1000
            else "use a machine with more memory"
        )
        raise ConfigError(
            f"The replay will grow to {gigabytes(needed_bytes)} and training itself needs about "
            f"{gigabytes(WORKING_BYTES)}, but only {gigabytes(available)} of memory are "
            f"available here: {remedy}."
        )
    return f"{gigabytes(needed_bytes)} of {gigabytes(available)} available"


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
