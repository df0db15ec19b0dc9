"""Engines: what starts the jobs of a sweep. Each knows how to start, wait and stop, and nothing of
training; `attempt.JobRunner` is what all of them run.

- `LocalLauncher`: a bounded pool of processes on this machine.
- `Slurm`: job arrays through submitit, which requeue themselves after a checkpoint.
- `Ray`: tasks on an existing cluster or a local one, retried when a node is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rlearly.experiments.job import DONE, SAVED, Job, last_lines

Say = Callable[[str], None]


class Launcher(Protocol):
    """Starts jobs; what came of them stands in the sweep's directory."""

    def launch(self, sweep: Path, jobs: Sequence[Job], say: Say) -> None:
        """Start the jobs, those that need another one after it, and wait for them if the engine has
        nobody else to look after them."""
        ...

    def stop(self) -> None:
        """Ask what this process has started to save and end; from a signal handler."""
        ...


def ending(sweep: Path, job: Job, status: int) -> str:
    """How a try ended, in one line."""
    word = {DONE: "done", SAVED: "saved"}.get(status, "FAILED")
    return f"{word} {job.title}: {(last_lines(sweep, job.name) or [''])[-1]}"
