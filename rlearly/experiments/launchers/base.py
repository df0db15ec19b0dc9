"""The interface of launchers, which start the jobs of a sweep. They run `JobRunner` and know
nothing about training.

- `LocalLauncher`: a bounded pool of processes on this machine.
- `Slurm`: job arrays through submitit; jobs save and requeue themselves before their time limit.
- `Ray`: tasks on a cluster or on this machine, retried when a node is lost.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import DONE, SAVED
from rlearly.experiments.job import Job, last_lines
from rlearly.training.checkpoint import list_checkpoints

Report = Callable[[str], None]

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals on which what launches runs has them save and end."""


class Launcher(Protocol):
    """Starts jobs. Their results are in the sweep's directory."""

    def launch(self, sweep: Path, jobs: Sequence[Job], report: Report) -> None:
        """Start the jobs, each after the one that it needs.

        Waits for them, unless they outlive this process. `report` is called with lines to show.
        """
        ...

    def stop(self) -> None:
        """Ask the jobs of this process to save and end. May be called from a signal handler."""
        ...


def ending(sweep: Path, job: Job, status: int) -> str:
    """How a try ended, in one line."""
    if status == SAVED and not list_checkpoints(sweep / job.name / "checkpoints"):
        return f"stopped {job.title} before its first checkpoint"
    word = {DONE: "done", SAVED: "saved"}.get(status, "FAILED")
    return f"{word} {job.title}: {(last_lines(sweep, job.name) or [''])[-1]}"


def import_package(name: str, launcher: str) -> Any:
    """Import the package that a launcher needs.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"launcher={launcher} needs the package {name}: pip install 'rlearly[{launcher}]'."
        ) from None
