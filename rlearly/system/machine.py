"""The machine: its device, threads and memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from rlearly.core.errors import ConfigError
from rlearly.system.process import Restored

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
GLIBC_MMAP_MAX, GLIBC_LARGEST_MMAP_THRESHOLD = 65536, 32 * 2**20
"""glibc's initial number of mapped blocks, and the size up to which it adjusts what it maps."""

WORKING_BYTES = 2_000_000_000
"""Left free for networks, batches, the simulator and the system, in addition to the replay."""


# --- device ---


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU if there is one, else the CPU.

    Raises:
        ConfigError: the name is not a device, or that device is not available.
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


def set_tf32(allowed: bool) -> None:
    """Whether a GPU may round the factors of float32 products to 10 bits (TF32)."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def use_deterministic_kernels(device: torch.device) -> None:
    """On a GPU, use deterministic kernels, and warn where torch has none."""
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 products in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))


# --- settings of the process ---


@contextlib.contextmanager
def computing(threads: int, device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Apply the torch settings of a run inside this context, then restore the earlier ones.

    Restored are torch's CPU threads, deterministic algorithms and cuDNN's and TF32's settings. The
    allocator's settings cannot be read; it gets those that glibc itself arrives at, and returns
    freed memory to the system.

    These settings belong to the process. Runs in several threads share them, if they ask for the
    same.

    Raises:
        ConfigError: another run in this process uses other settings.
    """
    wanted = {
        "threads": threads,
        "device": device.type,
        "precision": "tf32" if tf32 else "not tf32",
    }
    with _starting:
        other = next((other for other in _computing if other != wanted), None)
        if other:
            name = next(name for name in wanted if wanted[name] != other[name])
            raise ConfigError(
                f"{name}: expected {other[name]}, as in another run in this process, received "
                f"{wanted[name]}: torch has one such setting for the whole process. Use the same "
                "for both, or start one in a separate process."
            )
        _computing.append(wanted)
    try:
        with _restored_settings:
            set_threads(threads)
            use_deterministic_kernels(device)
            set_tf32(tf32)
            yield
    finally:
        _computing.remove(wanted)


_starting = threading.Lock()
_computing: list[dict[str, Any]] = []
"""What each run that now computes in this process asked for."""


def _settings() -> Callable[[], None]:
    """Read the settings that `computing` changes; returns a function that puts them back."""
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    deterministic: Any = torch.utils.deterministic
    threads = torch.get_num_threads()
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = deterministic.fill_uninitialized_memory
    flags = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, cuda.matmul.allow_tf32

    def put_back() -> None:
        torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != algorithms:  # it imports for seconds
            torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = fill
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, cuda.matmul.allow_tf32 = flags
        libc = _glibc()
        if libc:
            libc.mallopt(M_MMAP_MAX, GLIBC_MMAP_MAX)
            libc.mallopt(M_MMAP_THRESHOLD, GLIBC_LARGEST_MMAP_THRESHOLD)
            libc.mallopt(M_TRIM_THRESHOLD, 2 * GLIBC_LARGEST_MMAP_THRESHOLD)
            libc.malloc_trim(0)

    return put_back


_restored_settings = Restored(_settings)


# --- threads ---


def thread_count(threads: int | None, most: int | None = None) -> int:
    """`threads`, else OMP_NUM_THREADS, else all usable cores but at most `most`, the threads that
    help the agent (None: no limit). It does not depend on what else is running."""
    cores = usable_cores()
    return threads or _omp_num_threads() or min(most or cores, cores)


def set_threads(threads: int | None, most: int | None = None) -> int:
    """Set torch's CPU threads, deterministic cuDNN and the allocator; returns `thread_count`.

    Freed memory stays in the process: returning big tensors to the system at each update costs
    more than computing with them. Call this before the first tensor is made.
    """
    count = thread_count(threads, most)
    torch.set_num_threads(count)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True  # a resumed run must repeat the same kernels
    torch.backends.cudnn.benchmark = False
    libc = _glibc()
    if libc:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    return count


def _glibc() -> ctypes.CDLL | None:
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL("libc.so.6") if glibc else None


def describe_threads(count: int | None) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def fitting_threads(threads: int | None) -> int | None:
    """The threads that a run began with; None if this machine has fewer cores."""
    return None if threads is None or threads > usable_cores() else threads


def _omp_num_threads() -> int:
    """OMP_NUM_THREADS, which schedulers set; 0 if it is not a plain number."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


# --- signals ---


def can_ask_to_save() -> bool:
    """Whether a signal asks another process to save and stop; on Windows it would end at once."""
    return sys.platform != "win32"


# --- memory ---


def check_memory(needed_bytes: int, transition_bytes: int) -> str:
    """A line that says how much memory the replay will take.

    Raises:
        ConfigError: it does not fit; the message gives both sizes and a capacity that fits.
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


def gpu_free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def available_bytes(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this process may still use: the system's, or less if control groups limit it."""
    left = [psutil.virtual_memory().available]
    for group in _control_groups(root):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            try:
                room = int((group / limit).read_text(encoding="utf-8")) - int(
                    (group / used).read_text(encoding="utf-8")
                )
            except (OSError, ValueError):  # files of the other version, or "max": no limit
                continue
            left.append(room + _file_cache(group))
    return max(min(left), 0)


def _control_groups(root: Path) -> Iterator[Path]:
    """The process's memory control groups, each with all its ancestors (versions 1 and 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in [*lines, "0::/"]:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "memory" if controllers else root
        group = mount / name.strip("/")
        yield from (g for g in (group, *group.parents) if g.is_relative_to(mount))


def _file_cache(group: Path) -> int:
    """Bytes charged to a group for cached files, which the system frees when needed."""
    try:
        pairs = [
            line.split()
            for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines()
        ]
    except OSError:
        return 0
    return sum(int(n) for name, n in pairs if name in ("inactive_file", "active_file"))
