"""TODO."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from threading import Condition, Thread

from rlearly.experiments.job import DONE, Job, JobRunner
from rlearly.experiments.launchers.base import Say, ending

# --- on this machine ---


class LocalLauncher:
    """`workers` processes at once; GPUs, if there are any, are dealt out in turn."""

    def __init__(self, workers: int, gpus: Sequence[str] = ()):
        self.workers = workers
        self.gpus = gpus
        self.stopping = False
        self._running: set[JobRunner] = set()

    def launch(self, sweep: Path, jobs: Sequence[Job], say: Say) -> None:
        queue = _Queue(jobs)
        threads = [
            Thread(target=self._work, args=(sweep, queue, slot, say), daemon=True)
            for slot in range(min(self.workers, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        self.stopping = True
        for attempt in list(self._running):
            attempt.stop()

    def _work(self, sweep: Path, queue: _Queue, slot: int, say: Say) -> None:
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        while (job := queue.take()) and not self.stopping:
            attempt = JobRunner(sweep, job.name, "local", gpu)
            self._running.add(attempt)
            say(f"start {job.title}")
            try:
                status = attempt.run()
                said = ending(sweep, job, status)
            except Exception as error:  # one job's trouble is not the others'
                status, said = 1, f"FAILED {job.title}: {error}"
            self._running.discard(attempt)
            say(said)
            for skipped in queue.end(job, status):
                if not self.stopping:
                    say(f"skipped {skipped.title}: its teacher did not finish")


class _Queue:
    """Jobs in order, each held back until the one that it needs is done."""

    def __init__(self, jobs: Sequence[Job]):
        self.left = list(jobs)
        self.open = {job.name for job in jobs}
        self._changed = Condition()

    def take(self) -> Job | None:
        """The next one that can be started; waits for it; None if there will be none."""
        with self._changed:
            while self.left:
                for job in self.left:
                    if job.needs not in self.open:
                        self.left.remove(job)
                        return job
                self._changed.wait()
            return None

    def end(self, job: Job, status: int) -> list[Job]:
        """One is over; the ones that can now never be started."""
        with self._changed:
            self.open.discard(job.name)
            skipped = []
            if status != DONE:
                skipped = [other for other in self.left if other.needs == job.name]
                self.left = [other for other in self.left if other.needs != job.name]
                self.open -= {other.name for other in skipped}
            self._changed.notify_all()
            return skipped


def usable_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or else every GPU of this machine."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part for part in named.split(",") if part not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return answer.stdout.split()
    return []
