"""Run a job of a sweep once, in a subprocess, and record how it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from rlearly.core.exit_status import DONE, FAILED, INTERRUPTED, SAVED
from rlearly.experiments.job import (
    Record,
    after_kill,
    commands,
    job_file,
    jobs_of,
    log_of,
)
from rlearly.experiments.plan import Plan
from rlearly.system.locks import FileLock, in_use
from rlearly.system.machine import can_ask_to_save
from rlearly.training import checkpoint
from rlearly.training.run_directory import IDENTITY, WANDB_ID
from rlearly.training.stop_requests import STOP_SIGNALS

BUSY_SECONDS = 120
"""How long a job waits for a process of an earlier try to save and leave its directory."""

STOPPED = (INTERRUPTED, *(-number for number in signal.Signals if number.name in STOP_SIGNALS))
"""Exit statuses of a process that a signal ended before the run could save, or instead of it."""


class JobRunner:
    """One try of a job.

    `run` blocks until it ends. `stop` asks it to save and end, from another thread or a signal
    handler.
    """

    def __init__(
        self, sweep: Path, name: str, engine: str, environment: Mapping[str, str] | None = None
    ):
        self.sweep = sweep
        self.name = name
        self.engine = engine
        self.environment = environment or {}
        self.stopping = False
        self._process: subprocess.Popen[bytes] | None = None
        self._record: Record | None = None
        self._clock = 0.0  # start of this try, on a monotonic clock, unlike record.began

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.stopping = True
        process = self._process
        if process and process.poll() is None:
            process.send_signal(number)

    def interrupt(self, number: int) -> None:
        """Have the run save and end, and record that it did.

        For a signal handler that interrupts `run` and may not return to it.
        """
        self.stop(number)
        if self._process:
            # not wait(): the interrupted one holds its lock
            with contextlib.suppress(ChildProcessError, AttributeError):  # no waitid on macOS
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        if self._record:
            self._end(self._record, SAVED)

    def run(self) -> int:
        """Run the job; returns its exit status, DONE, SAVED or another one if it failed."""
        with self._alone() as alone:
            if not alone:
                return SAVED if self.stopping else FAILED
            plan = Plan.load(self.sweep)
            before = Record.load(self.sweep, self.name)
            if before:
                before = after_kill(self.sweep, self.name, before)
            self._record = Record(
                state="running",
                engine=self.engine,
                host=socket.gethostname(),
                pid=os.getpid(),
                tries=1 + (before.tries if before else 0),
                began=time.time(),
                seconds=before.seconds if before else 0.0,
            )
            self._clock = time.monotonic()
            self._record.save(self.sweep, self.name)
            status = self._run(plan)
            self._end(self._record, status)
            return status

    def _run(self, plan: Plan) -> int:
        job = next(job for job in jobs_of(plan) if job.name == self.name)
        if job.finished(self.sweep):
            return DONE
        self._clear()
        for command in commands(plan, self.sweep, self.name):
            status = self._command(command)
            if status != DONE:
                killed = self.stopping and not can_ask_to_save()
                return SAVED if status in STOPPED or killed else status
        return DONE

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the job's lock, once no other try runs and all processes of earlier ones have ended.

        Yields False if that takes too long, or if the job is asked to stop.
        """
        file = job_file(self.sweep, self.name, ".lock")
        file.parent.mkdir(parents=True, exist_ok=True)
        lock, deadline = FileLock(file, warn=False), time.monotonic() + BUSY_SECONDS
        try:
            while not lock.acquire() or in_use(self.sweep / self.name / "run.lock"):
                if self.stopping:
                    break
                if time.monotonic() > deadline:
                    with log_of(self.sweep, self.name).open(
                        "a", encoding="utf-8", errors="backslashreplace"
                    ) as log:
                        folder = self.sweep / self.name
                        log.write(f"rlearly: {folder} is in use by another process.\n")
                    yield False
                    return
                time.sleep(0.2)
            yield not self.stopping
        finally:
            lock.release()

    def _end(self, record: Record, status: int) -> None:
        replace(
            record,
            state={DONE: "done", SAVED: "saved"}.get(status, "failed"),
            seconds=record.seconds + time.monotonic() - self._clock,
            exit=status,
        ).save(self.sweep, self.name)

    def _clear(self) -> None:
        """Empty the directory of a run that ended before its first checkpoint.

        It starts over as the same run, also in wandb.
        """
        folder = self.sweep / self.name
        kept = (
            checkpoint.list_checkpoints(folder / "checkpoints") or (folder / "done.json").exists()
        )
        if folder.is_dir() and not kept:
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name not in (IDENTITY, WANDB_ID):
                    path.unlink()

    def _command(self, command: list[str]) -> int:
        if self.stopping:
            return SAVED
        with log_of(self.sweep, self.name).open(
            "a", encoding="utf-8", errors="backslashreplace"
        ) as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlearly.experiments.tethered", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
            )
        if self.stopping:  # since the process was started
            self._process.send_signal(signal.SIGTERM)
        # not one long wait: an exception that another thread raises here would have to wait too
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout=1)

    def _environment(self) -> dict[str, str]:
        """The environment of a command. Each run of a sweep has its own wandb id."""
        shared = {name: value for name, value in os.environ.items() if name != "WANDB_RUN_ID"}
        log = {"PYTHONIOENCODING": "utf-8"}  # whatever the locale
        return {**shared, **log, **self.environment, "RLEARLY_PARENT": str(os.getpid())}
