"""One try of a sweep's job, in a process of its own; what came of it stands in the sweep's
directory.

A job is a run, or a teacher that is trained and then recorded. Its exit status is the contract: 0
is done, 75 is saved and to be run again, anything else failed. Whichever engine starts it, the
job's command, directory and result are the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from rlearly.config.overrides import format_override
from rlearly.experiments.plan import Plan, changed_words, finished
from rlearly.training import checkpoint
from rlearly.training.run_directory import write

DONE, SAVED = 0, 75
BUSY_SECONDS = 120
"""How long a job waits for a process of an earlier try to save and leave its directory."""

EARLY = tuple(
    -getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
)
TEACHERS = "teachers/"


@dataclass(frozen=True)
class Job:
    """A run of a plan by its name, or the teacher of an env, and the job it has to wait for."""

    name: str
    title: str
    needs: str | None = None
    train_frames: int | None = None
    """How many a run is to have; None: as many as its env's."""

    def finished(self, sweep: Path) -> bool:
        if self.name.startswith(TEACHERS):
            return (sweep / f"{self.name}.h5").exists()
        return finished(sweep / self.name, self.train_frames)


def jobs_of(plan: Plan, sweep: Path) -> list[Job]:
    """Every job of a plan, teachers first."""
    teachers = {env: _teacher(plan, sweep, env) for env in plan.taught()}
    runs = [
        Job(
            run.name,
            run.title,
            teachers[run.env].name if run.needs_teacher and teachers else None,
            run.train_frames,
        )
        for run in plan.runs
    ]
    return [*teachers.values(), *runs]


def _teacher(plan: Plan, sweep: Path, env: str) -> Job:
    name = plan.snapshots(sweep, env).relative_to(sweep).with_suffix("")
    return Job(str(name), f"teacher on {env}")


@dataclass(frozen=True)
class Record:
    """What is known of a job beside what its directory holds."""

    state: str
    """running, done, saved or failed."""
    engine: str
    host: str
    pid: int
    tries: int
    began: float
    """Of this try; seconds since 1970."""
    seconds: float = 0.0
    """That all its tries took; of a try that is running, without it."""
    exit: int | None = None

    @staticmethod
    def load(sweep: Path, name: str) -> Record | None:
        file = _beside(sweep, name, ".json")
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Record(**json.loads(file.read_text()))
        return None

    def save(self, sweep: Path, name: str) -> None:
        file = _beside(sweep, name, ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, json.dumps(asdict(self)))


def after_death(sweep: Path, name: str, record: Record) -> Record:
    """The record of a try that nobody ended, since whoever kept it is gone: `saved`, with its time
    counted, if the run wrote a checkpoint or said that it saved; else as it is."""
    kept = [path.stat().st_mtime for path in checkpoint.found(sweep / name / "checkpoints")]
    if (last_lines(sweep, name) or [""])[0].startswith("saved at"):
        kept.append(log_of(sweep, name).stat().st_mtime)
    last = max(kept, default=0.0)
    if record.state != "running" or last <= record.began:
        return record
    seconds = record.seconds + last - record.began
    return replace(record, state="saved", seconds=seconds, exit=SAVED)


def _beside(sweep: Path, name: str, suffix: str) -> Path:
    file = sweep / "jobs" / name
    return file.with_name(file.name + suffix)


def log_of(sweep: Path, name: str) -> Path:
    """What a job has printed, all its tries together."""
    return _beside(sweep, name, ".log")


def last_lines(sweep: Path, name: str, count: int = 1) -> list[str]:
    """The end of a job's log."""
    try:
        with log_of(sweep, name).open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 20_000))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.strip().splitlines() if line.strip()][-count:]


def commands(plan: Plan, sweep: Path, name: str) -> Iterator[list[str]]:
    """What is left to be run of a job: modules and their words."""
    folder = sweep / name
    if not name.startswith(TEACHERS):
        run = plan.run(name)
        yield _training(run.resolved(plan.snapshots(sweep, run.env)), folder)
        return
    env = next(env for env in plan.taught() if plan.snapshots(sweep, env).stem == folder.name)
    if not (folder / "done.json").exists():
        yield _training(plan.teacher_words(env), folder)
    out = plan.snapshots(sweep, env)
    where = [format_override("run", folder), format_override("out", out)]
    yield ["rlearly.teacher", *where, *plan.teacher_snapshots]


def _training(words: list[str], folder: Path) -> list[str]:
    """The command that trains in `folder`, or goes on there, with what was changed since."""
    if checkpoint.found(folder / "checkpoints"):
        return ["rlearly.train", format_override("resume", folder), *changed_words(folder, words)]
    return ["rlearly.train", *words, format_override("run_dir", folder)]


class JobRunner:
    """One try of a job; `run` blocks until it ends, `stop` asks it from another thread or a signal
    handler to save and end."""

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
        self._clock = 0.0  # when the try began; record.began is of a clock that may be set

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.stopping = True
        process = self._process
        if process and process.poll() is None:
            process.send_signal(number)

    def interrupt(self, number: int) -> None:
        """Have the run save and end, and note that it did; for a signal handler of the thread that
        is in `run`, to which it may not return."""
        self.stop(number)
        if self._process:
            # not wait(): the interrupted one holds its lock
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        if self._record:
            self._end(self._record, SAVED)

    def run(self) -> int:
        """The job's exit status; a process that a signal ended has saved what it could."""
        with self._alone() as alone:
            if not alone:
                return SAVED if self.stopping else 1
            plan = Plan.load(self.sweep)
            before = Record.load(self.sweep, self.name)
            if before:
                before = after_death(self.sweep, self.name, before)
            record = Record(
                state="running",
                engine=self.engine,
                host=socket.gethostname(),
                pid=os.getpid(),
                tries=1 + (before.tries if before else 0),
                began=time.time(),
                seconds=before.seconds if before else 0.0,
            )
            self._record = record
            self._clock = time.monotonic()
            record.save(self.sweep, self.name)
            status = self._run(plan)
            self._end(record, status)
            return status

    def _run(self, plan: Plan) -> int:
        job = next(job for job in jobs_of(plan, self.sweep) if job.name == self.name)
        if job.finished(self.sweep):
            return DONE
        self._clear()
        status = DONE
        for command in commands(plan, self.sweep, self.name):
            status = self._command(command)
            if status != DONE:
                break
        if status in EARLY:
            status = SAVED  # a signal came before the run listened to any
        return status

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Waits until no other try of the job is under way, and no process of an earlier one is
        left; False if that takes too long, or a stop is asked for."""
        lock = _beside(self.sweep, self.name, ".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + BUSY_SECONDS
        with lock.open("a") as handle:
            while not (_locked(handle) and not in_use(self.sweep / self.name / "run.lock")):
                if self.stopping or time.monotonic() > deadline:
                    if not self.stopping:
                        self._say(f"{self.sweep / self.name} is in use by another process.")
                    yield False
                    return
                time.sleep(0.2)
            yield not self.stopping

    def _end(self, record: Record, status: int) -> None:
        ended = replace(
            record,
            state={DONE: "done", SAVED: "saved"}.get(status, "failed"),
            seconds=record.seconds + time.monotonic() - self._clock,
            exit=status,
        )
        ended.save(self.sweep, self.name)

    def _clear(self) -> None:
        """A run that ended before its first checkpoint begins anew."""
        folder = self.sweep / self.name
        kept = checkpoint.found(folder / "checkpoints") or (folder / "done.json").exists()
        if folder.is_dir() and not kept:
            shutil.rmtree(folder)

    def _command(self, words: list[str]) -> int:
        log = log_of(self.sweep, self.name)
        environment = {**os.environ, **self.environment, "RLEARLY_PARENT": str(os.getpid())}
        if self.stopping:
            return SAVED
        with log.open("a") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlearly.experiments.tethered", *words],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
            )
        if self.stopping:  # since the question above
            self._process.send_signal(signal.SIGTERM)
        # not one long wait: an exception that is set from outside would have to wait too
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout=1)

    def _say(self, text: str) -> None:
        with log_of(self.sweep, self.name).open("a") as stream:
            stream.write(f"rlearly: {text}\n")


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def in_use(lock: Path) -> bool:
    """Whether a process on this file system holds a run directory's lock."""
    try:
        with lock.open("a") as handle:
            return not _locked(handle)
    except OSError:  # there is none, or none can be: the run itself will say so
        return False
