"""Run jobs in processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from rlearly.core.exit_status import DONE, FAILED
from rlearly.experiments.job import Job
from rlearly.experiments.job_runner import JobRunner
from rlearly.experiments.launchers.base import Report, ending
from rlearly.system.machine import usable_cores


class LocalLauncher:
    """Runs up to `workers` jobs at once; GPUs, if there are any, are dealt out in turn."""

    def __init__(self, workers: int, gpus: Sequence[str] = ()):
        self.workers = workers
        self.gpus = gpus
        self.stopping = False
        self._runners: set[JobRunner] = set()

    def launch(self, sweep: Path, jobs: Sequence[Job], report: Report) -> None:
        waiting = list(jobs)
        unfinished = {job.name for job in jobs}
        free = list(range(self.workers))
        running: dict[Future[int], tuple[Job, int]] = {}
        with ThreadPoolExecutor(self.workers) as pool:
            while True:
                ready = [job for job in waiting if job.needs not in unfinished]
                for job in ready[: 0 if self.stopping else len(free)]:
                    waiting.remove(job)
                    worker = free.pop(0)
                    future = pool.submit(self._run, sweep, job, worker, report)
                    running[future] = job, worker
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, worker = running.pop(future)
                    free.append(worker)
                    unfinished.discard(job.name)
                    if future.result() == DONE or self.stopping:
                        continue
                    for other in [other for other in waiting if other.needs == job.name]:
                        waiting.remove(other)
                        report(f"skipped {other.title}: its teacher did not finish")

    def stop(self) -> None:
        self.stopping = True
        for runner in list(self._runners):
            runner.stop()

    def _run(self, sweep: Path, job: Job, worker: int, report: Report) -> int:
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[worker % len(self.gpus)]} if self.gpus else {}
        runner = JobRunner(sweep, job.name, "local", gpu)
        self._runners.add(runner)
        if self.stopping:  # since the job was submitted
            runner.stop()
        report(f"start {job.title}")
        try:
            status = runner.run()
            report(ending(sweep, job, status))
        except Exception as error:  # other jobs go on
            status = FAILED
            report(f"FAILED {job.title}: {error}")
        self._runners.discard(runner)
        return status


def local_workers(workers: int | None) -> int:
    """The number of runs at once on this machine: `workers`, else one per GPU, else per core."""
    return workers or len(usable_gpus()) or usable_cores()


def usable_gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, or else every GPU of this machine."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [part for part in named.split(",") if part not in ("", "-1")]
