"""The run directory: created, locked, and holding everything needed to repeat the run."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import psutil
import torch

from rlearly.config.schema import RunConfig
from rlearly.config.structured import as_yaml
from rlearly.core.errors import ConfigError
from rlearly.system import determinism, machine
from rlearly.training import checkpoint

log = logging.getLogger(__name__)
CONFIG, PROVENANCE, DONE = "config.yaml", "provenance.json", "done.json"
REPORT, WEIGHTS = "failure.json", "failure.pt"
"""Of a failed run; see failure.py."""

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EPERM, errno.EOPNOTSUPP)
"""Error numbers of locking a file on file systems without locks."""


# --- creating ---


def create(config: RunConfig) -> Path:
    """Make the directory of a new run and write its config.

    A run that failed before its first step, in the env's own code, is replaced.

    Raises:
        ConfigError: it already holds a run, or cannot be written.
    """
    path = Path(config.run_dir) if config.run_dir else None
    if path and _failed_at_once(path):
        discard(path)
    if path and ((path / CONFIG).exists() or (path / "checkpoints").exists()):
        raise ConfigError(
            f"run_dir: {path} holds a run already; continue it with resume={path}, or name another."
        )
    try:
        if path:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path = _new_directory(config)
        write(path / CONFIG, as_yaml(config))
    except OSError as error:
        raise ConfigError(
            f"run_dir: {path or 'runs'} cannot be written ({error.strerror}); "
            "name another with run_dir=."
        ) from None
    return path


def _new_directory(config: RunConfig) -> Path:
    """runs/<agent>/<env>/<seed>-<time>, with a number appended if it already exists."""
    env = config.env.name.replace("/", "-").replace(":", "-")
    parent = Path("runs") / config.agent_name / env
    label = f"{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = parent / label, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = parent / f"{label}-{number}"


def _failed_at_once(path: Path) -> bool:
    """Whether a directory holds a run that failed before its first step."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        failed = json.loads((path / REPORT).read_text())["frames"] == 0
        return failed and not checkpoint.list_checkpoints(path / "checkpoints")
    return False


def discard(path: Path) -> None:
    """Remove the directory of a run that could not start; files of the user's are kept."""
    for name in (CONFIG, PROVENANCE, REPORT, WEIGHTS, "metrics.jsonl", "run.lock", "wandb_id"):
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: it existed before
        path.rmdir()
        if path.parts[0] == "runs":  # parents that were made for this run
            for parent in path.parents[:3]:
                parent.rmdir()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let only one process at a time use a run directory; a lock ends with its process.

    Raises:
        ConfigError: another process uses it, or the directory cannot be written.
    """
    lock = filelock.FileLock(path / "run.lock", blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ConfigError(f"{path} is in use: another process is training there.") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise ConfigError(f"{path} cannot be written ({error.strerror}).") from None
        log.warning(
            "%s cannot be locked on this file system (%s): make sure that no other process "
            "trains there.",
            path,
            error.strerror,
        )
    try:
        yield
    finally:
        lock.release()


def write(path: Path, text: str) -> None:
    """Write a small file atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


# --- resuming ---


def is_done(path: Path) -> bool:
    return (path / DONE).exists()


def has_started(path: Path) -> bool:
    """Whether a run got as far as its first step there."""
    return (path / PROVENANCE).exists()


def refuse_to_start_over(path: Path, config: RunConfig) -> None:
    """Refuse to start over a run whose checkpoints were deleted.

    A run that has not reached its first checkpoint may start over.

    Raises:
        ConfigError: the run is done, or has rows from after its first checkpoint.
    """
    first = config.checkpoint_every_frames + config.env.action_repeat * config.num_envs
    if is_done(path) or (config.checkpoint_every_frames and _last_frames(path) > first):
        what = "is done" if is_done(path) else f"has rows up to {_last_frames(path):,} frames"
        raise ConfigError(
            f"{path} {what}, but its checkpoints are gone: put them back, or start another run."
        )


def refuse_to_shrink(path: Path, config: RunConfig) -> None:
    """Refuse a `train_frames` that the run has already passed.

    The last round of env steps may overshoot `train_frames` by less than the frames of a round.

    Raises:
        ConfigError: the newest checkpoint is beyond `train_frames`.
    """
    frames = max(
        (int(p.name) for p in checkpoint.list_checkpoints(path / "checkpoints")), default=0
    )
    if frames - config.train_frames >= config.env.action_repeat * config.num_envs:
        raise ConfigError(
            f"train_frames: expected at least the {frames} frames that {path} has done, "
            f"received {config.train_frames}; name a larger number to train on."
        )


def train_command(*overrides: str) -> str:
    """A training command for the shell, with the Python that this process runs on."""
    found, own = shutil.which("python"), Path(sys.executable)
    python = "python" if found and Path(found).absolute().parent == own.parent else str(own)
    return shlex.join([python, "-m", "rlearly.train", *overrides])


def _last_frames(path: Path) -> int:
    """The frames of the newest row; 0 if no row can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return max((int(json.loads(line)["frames"]) for line in lines), default=0)
    return 0


# --- provenance ---


def provenance(threads: int | None, device: torch.device) -> dict[str, Any]:
    """Command, code, packages, hardware, and all that a repetition to the bit depends on."""
    package = Path(__file__).parents[1]
    diff = _git(package, "diff", "HEAD")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "argv": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": {
            "commit": _git(package, "rev-parse", "HEAD"),
            "dirty": bool(diff),
            "diff": diff[:1_000_000] if diff else None,
        },
        "python": sys.version,
        "packages": {
            d.metadata["Name"]: d.version
            for d in sorted(importlib.metadata.distributions(), key=lambda d: str(d.name).lower())
        },
        "hardware": {
            "platform": platform.platform(),
            "processor": machine.processor(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "gpu": gpu,
        },
        "threads": threads,
        "determinism": determinism.facts(device),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("SLURM_JOB", "SLURM_ARRAY", "CUDA_", "MUJOCO_", "OMP_", "MKL_"))
        },
    }


def record_start(path: Path, config: RunConfig, entry: dict[str, Any]) -> None:
    """Append an entry to provenance.json, write the config, and delete done.json and failures."""
    write(path / PROVENANCE, json.dumps([*_starts(path), entry], indent=1))
    write(path / CONFIG, as_yaml(config))
    for name in (DONE, REPORT, WEIGHTS):
        (path / name).unlink(missing_ok=True)


def changes_since_last_start(path: Path, entry: dict[str, Any]) -> list[str]:
    """The changes that prevent a repetition to the bit, as `threads 1 -> 2`."""
    starts = _starts(path)
    before = starts[-1].get("determinism", {}) if starts else {}
    return determinism.changes(before, entry["determinism"])


def _starts(path: Path) -> list[dict[str, Any]]:
    """The provenance of each start and resume so far; an unreadable file is renamed."""
    file = path / PROVENANCE
    if not file.is_file():
        return []
    try:
        return [entry for entry in json.loads(file.read_text()) if isinstance(entry, dict)]
    except (ValueError, TypeError) as error:
        aside = file.with_name(f"{PROVENANCE}.damaged")
        log.warning("%s cannot be read (%s); it is now %s.", file, error, aside.name)
        file.replace(aside)
        return []


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
