"""Run jobs that are not known in advance, a few at a time, and report when each ends."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from rlearly.core.exit_status import FAILED
from rlearly.experiments.job_runner import JobRunner
from rlearly.experiments.launchers.ray import Ray, RayConfig


class Pool(Protocol):
    """Executes runs, whose results are in the search's directory."""

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        ...

    @property
    def running(self) -> set[str]:
        """The names of the jobs that were started and have not ended."""
        ...

    @property
    def free(self) -> int:
        """How many more can be started now."""
        ...

    def start(self, name: str) -> None: ...

    def save(self, name: str) -> None:
        """Ask a job to save and end."""
        ...

    def ended(self, wait_seconds: float) -> dict[str, int]:
        """The exit status of each job that has ended since; waits a while for one."""
        ...

    def stop(self) -> None:
        """Ask all jobs to save and end. May be called from a signal handler."""
        ...

    def close(self) -> None:
        """Release what the pool holds, once nothing is running."""
        ...


class LocalPool:
    """Processes on this machine; GPUs, if there are any, are dealt out in turn."""

    def __init__(self, folder: Path, workers: int, gpus: Sequence[str] = ()):
        self.folder = folder
        self.gpus = gpus
        self.stopping = False
        self._slots = list(range(workers))
        self._threads = ThreadPoolExecutor(workers)
        self._futures: dict[Future[int], tuple[str, int]] = {}
        self._runners: dict[str, JobRunner] = {}

    @property
    def running(self) -> set[str]:
        return set(self._runners)

    @property
    def free(self) -> int:
        return len(self._slots)

    def start(self, name: str) -> None:
        slot = self._slots.pop(0)
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        runner = JobRunner(self.folder, name, "local", gpu)
        self._runners[name] = runner
        if self.stopping:
            runner.stop()
        self._futures[self._threads.submit(runner.run)] = name, slot

    def save(self, name: str) -> None:
        self._runners[name].stop()

    def ended(self, wait_seconds: float) -> dict[str, int]:
        found = {}
        done, _ = wait(self._futures, timeout=wait_seconds, return_when=FIRST_COMPLETED)
        for future in done:
            name, slot = self._futures.pop(future)
            self._slots.append(slot)
            del self._runners[name]
            error = future.exception()
            if isinstance(error, OSError):  # its record or log cannot be written
                raise error
            found[name] = FAILED if error else future.result()
        self._slots.sort()
        return found

    def stop(self) -> None:
        self.stopping = True
        for runner in list(self._runners.values()):
            runner.stop()

    def close(self) -> None:
        self._threads.shutdown()


class RayPool:
    """Tasks on a Ray cluster, `workers` at once; None: as many as it has the resources for.

    Raises:
        ConfigError: Ray is not installed, does not answer, or has no node that can run a job.
    """

    def __init__(self, folder: Path, config: RayConfig, workers: int | None):
        self.folder = folder
        self.stopping = False
        self._launcher = Ray(config)
        self._launcher.connect()
        self._workers = workers or self._launcher.capacity()
        self._task = self._launcher.job_task()
        self._tasks: dict[Any, str] = {}

    @property
    def running(self) -> set[str]:
        return set(self._tasks.values())

    @property
    def free(self) -> int:
        return self._workers - len(self._tasks)

    def start(self, name: str) -> None:
        if not self.stopping:
            self._tasks[self._task.remote(str(self.folder), name, None)] = name

    def save(self, name: str) -> None:
        ray = self._launcher.ray
        for task, own in list(self._tasks.items()):
            if own == name:
                ray.cancel(task)

    def ended(self, wait_seconds: float) -> dict[str, int]:
        ray, found = self._launcher.ray, {}
        ready, _ = ray.wait(list(self._tasks), timeout=wait_seconds) if self._tasks else ([], [])
        for task in ready:
            try:
                status = self._launcher.status_of(task)
            except ray.exceptions.RayError:  # its worker or node is gone
                status = -signal.SIGKILL
            found[self._tasks.pop(task)] = status
        return found

    def stop(self) -> None:
        self.stopping = True
        for task in list(self._tasks):
            self._launcher.ray.cancel(task)

    def close(self) -> None:
        self._launcher.ray.shutdown()
