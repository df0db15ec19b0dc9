"""Counts environment steps across the envs of a vector env, to end the snapshot phase."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import threading
import weakref
from pathlib import Path


class StepCounter:
    """Steps of all the envs that hold it, in one process or in a vector env's workers.

    Envs in worker processes count in the order in which they happen to run: within the vector step
    in which the phase ends, which of them still starts at a snapshot may differ from run to run.
    """

    def __init__(self) -> None:
        handle, path = tempfile.mkstemp(prefix="rlearly_steps_")
        os.write(handle, bytes(8))
        os.close(handle)
        self._open(path)
        weakref.finalize(self, _remove_own, path, os.getpid())

    def _open(self, path: str) -> None:
        self.path = path
        self._file = open(path, "r+b", buffering=0)  # noqa: PTH123, SIM115
        self._shared = mmap.mmap(self._file.fileno(), 8)

    def __getstate__(self) -> str:
        """Copies in other processes share the count; it is gone when the first one is."""
        return self.path

    def __setstate__(self, path: str) -> None:
        self._open(path)

    @property
    def steps(self) -> int:
        return int.from_bytes(self._shared[:], "little")

    @steps.setter
    def steps(self, steps: int) -> None:
        self._shared[:] = steps.to_bytes(8, "little")

    def add(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        self.steps += 1
        fcntl.lockf(self._file, fcntl.LOCK_UN)


def _remove_own(path: str, maker: int) -> None:
    """Delete a counter's file, unless this process is a fork of the one that made it."""
    if os.getpid() == maker:
        Path(path).unlink(missing_ok=True)


class LocalStepCounter:
    """The same within one process: for one env, or for copies stepped in turn or in threads."""

    def __init__(self) -> None:
        self.steps = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.steps += 1
