"""A run's directory: made, locked, and labelled with all that it takes to run it again."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from rlearly.config.schema import RunConfig
from rlearly.config.structured import as_yaml
from rlearly.core.errors import ConfigError
from rlearly.system import determinism, machine

log = logging.getLogger(__name__)
CONFIG = "config.yaml"
REPORT, WEIGHTS = "failure.json", "failure.pt"
"""Of a run that failed; see failure.py."""
PROVENANCE = "provenance.json"


def create(config: RunConfig) -> Path:
    """The directory of a new run.

    Raises:
        ConfigError: it holds a run already, or it cannot be written.
    """
    path = Path(config.run_dir) if config.run_dir else None
    if path and ((path / CONFIG).exists() or (path / "checkpoints").exists()):
        raise ConfigError(
            f"run_dir: {path} holds a run already; continue it with resume={path}, or name another."
        )
    try:
        if path:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path = _own_directory(config)
        write(path / CONFIG, as_yaml(config))
    except OSError as error:
        raise ConfigError(
            f"run_dir: {path or 'runs'} cannot be written ({error.strerror}); "
            "name another with run_dir=."
        ) from None
    return path


def _own_directory(config: RunConfig) -> Path:
    """runs/<agent>/<env>/<seed>-<time>, made here and by nobody else in the same second."""
    env = config.env.name.replace("/", "-").replace(":", "-")
    parent = Path("runs") / config.agent_name / env
    label = f"{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        path = parent / (label if number == 1 else f"{label}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("unreachable")


def discard(path: Path) -> None:
    """Take back the directory of a run that could not start; anything else in it stays."""
    for name in (CONFIG, PROVENANCE, "metrics.jsonl", "run.lock", "wandb_id"):
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: it was there before, and is the user's
        path.rmdir()
        if path.parts[0] == "runs":  # made for this run, unless others are in them
            for parent in path.parents[:3]:
                parent.rmdir()


def refuse_to_begin_anew(path: Path, config: RunConfig) -> None:
    """A run without checkpoints is one that was ended before its first, or one that lost them.

    Raises:
        ConfigError: it is done, or has rows from after its first checkpoint.
    """
    done = (path / "done.json").exists()
    first = config.checkpoint_every_frames + config.env.action_repeat * config.num_envs
    if done or (config.checkpoint_every_frames and _last_frames(path) > first):
        what = "is done" if done else f"has rows up to {_last_frames(path):,} frames"
        raise ConfigError(
            f"{path} {what}, but its checkpoints are gone: put them back, or start another run."
        )


def _last_frames(path: Path) -> int:
    """Of the newest row; 0 if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return max((int(json.loads(line)["frames"]) for line in lines), default=0)
    return 0


def write(path: Path, text: str) -> None:
    """Replace a small file as a whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time works in a run directory.

    Raises:
        ConfigError: another one does.
    """
    try:
        opened = (path / "run.lock").open("a")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}).") from None
    with opened as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{path} is in use: another process is training there.") from None
        yield


def provenance(threads: int, device: torch.device) -> dict[str, Any]:
    """Command, code, packages, hardware and what repeating rests on, as far as can be told."""
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


def record_start(path: Path, config: RunConfig, facts: dict[str, Any]) -> None:
    """Note that the run was started or resumed, and with what.

    provenance.json gains an entry, config.yaml holds what was changed on resuming, and a run that
    is trained on is neither done nor failed.
    """
    write(path / PROVENANCE, json.dumps([*starts(path), facts], indent=1))
    write(path / CONFIG, as_yaml(config))
    for name in ("done.json", REPORT, WEIGHTS):
        (path / name).unlink(missing_ok=True)


def starts(path: Path) -> list[dict[str, Any]]:
    """The run's provenance at each start and resume so far; a file that cannot be read is put
    aside."""
    file = path / PROVENANCE
    if not file.is_file():
        return []
    try:
        entries = json.loads(file.read_text())
        return [entry for entry in entries if isinstance(entry, dict)]
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
