"""Counts the steps of all envs of a vector env, so that their snapshot phases end together."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class StepCounter:
    """The number of steps of all envs that share it, in one process or in several.

    Pass one counter to every `SnapshotRL` of a vector env:

    >>> import gymnasium
    >>> from rlearly import SnapshotRL, StepCounter
    >>> counter = StepCounter()
    >>> envs = gymnasium.make_vec(
    ...     "Hopper-v5", 4, wrappers=[lambda env: SnapshotRL(env, "teacher.h5", counter=counter)]
    ... )  # doctest: +SKIP

    The count lives in a temporary file, which pickled and forked copies share and which is deleted
    together with the first one. Worker processes count in the order in which they happen to run:
    in the vector step that ends the phase, which envs still start at a snapshot may differ from
    run to run.
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
        with self._locked():
            self.steps += 1

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if fcntl is None:
            from filelock import FileLock

            with FileLock(f"{self.path}.lock"):
                yield
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
        except OSError:  # no locks in the temporary folder: two steps at once may count as one
            yield
            return
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _remove_own(path: str, maker: int) -> None:
    """Delete a counter's file, unless this process is a fork of the one that made it."""
    if os.getpid() == maker:
        with contextlib.suppress(PermissionError):  # Windows deletes no file that is open
            Path(path).unlink(missing_ok=True)


class LocalStepCounter:
    """A `StepCounter` for one process: one env, or envs stepped in turn or in threads."""

    def __init__(self) -> None:
        self.steps = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.steps += 1

    def __getstate__(self) -> int:
        return self.steps

    def __setstate__(self, steps: int) -> None:
        self.__init__()
        self.steps = steps
