"""The jobs of a sweep: their commands, records and logs, all kept in the sweep's directory.

A job is a run, or a teacher that is trained and then recorded. Its commands, directory and result
are the same with every launcher.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rlearly.config.overrides import format_override
from rlearly.core.exit_status import SAVED
from rlearly.experiments.plan import Plan, changed_overrides, finished, with_snapshots
from rlearly.system.atomic import write
from rlearly.training import checkpoint


@dataclass(frozen=True)
class Job:
    """A run of a plan, or the teacher of an env. `name`: its directory, relative to the sweep's."""

    name: str
    title: str
    needs: str | None = None
    """The job that must be done before this one."""
    train_frames: int | None = None
    """Frames requested of a run; None: the env's default."""

    def finished(self, sweep: Path) -> bool:
        if self.name.startswith("teachers/"):
            return (sweep / f"{self.name}.h5").exists()
        return finished(sweep / self.name, self.train_frames)


def jobs_of(plan: Plan) -> list[Job]:
    """Every job of a plan, teachers first."""
    teachers = {
        env: Job(plan.teacher_name(env), f"teacher on {env}") for env in plan.teacher_envs()
    }
    jobs = list(teachers.values())
    for run in plan.runs:
        needs = teachers[run.env].name if run.needs_teacher and teachers else None
        jobs.append(Job(run.name, run.title, needs, run.train_frames))
    return jobs


@dataclass(frozen=True)
class Record:
    """What is known about a job in addition to the contents of its directory."""

    state: str
    """running, done, saved or failed."""
    engine: str
    """The launcher's name."""
    host: str
    pid: int
    tries: int
    began: float
    """Start of the latest try, in seconds since 1970."""
    seconds: float = 0.0
    """Duration of all tries, without one that is still running."""
    exit: int | None = None

    @staticmethod
    def load(sweep: Path, name: str) -> Record | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Record(**json.loads(job_file(sweep, name, ".json").read_text(encoding="utf-8")))
        return None

    def save(self, sweep: Path, name: str) -> None:
        file = job_file(sweep, name, ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, json.dumps(asdict(self)))


def after_kill(sweep: Path, name: str, record: Record) -> Record:
    """The record of a try that was killed together with its launcher.

    It is `saved` if the run wrote a checkpoint or reported that it saved, else unchanged.
    """
    times = []
    for path in checkpoint.list_checkpoints(sweep / name / "checkpoints"):
        with contextlib.suppress(OSError):  # a run on another host may have deleted it since
            times.append(path.stat().st_mtime)
    if (last_lines(sweep, name) or [""])[0].startswith("saved at"):
        times.append(log_of(sweep, name).stat().st_mtime)
    last = max(times, default=0.0)
    if record.state != "running" or last <= record.began:
        return record
    seconds = record.seconds + last - record.began
    return replace(record, state="saved", seconds=seconds, exit=SAVED)


def job_file(sweep: Path, name: str, suffix: str) -> Path:
    """A file about a job: its record (.json), log (.log) or lock (.lock)."""
    return sweep / "jobs" / f"{name}{suffix}"


def log_of(sweep: Path, name: str) -> Path:
    """The output of a job, all its tries together."""
    return job_file(sweep, name, ".log")


def last_lines(sweep: Path, name: str, count: int = 1) -> list[str]:
    """The end of a job's log."""
    return [line for line in tail(log_of(sweep, name), 20_000) if line.strip()][-count:]


def tail(file: Path, size: int) -> list[str]:
    """The lines in the last `size` bytes of a file, the first of which may be incomplete."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - size))
        return stream.read().decode(errors="replace").splitlines()
    return []


def commands(plan: Plan, sweep: Path, name: str) -> Iterator[list[str]]:
    """The commands of a job that are not done yet: modules with their overrides."""
    folder = sweep / name
    run = next((run for run in plan.runs if run.name == name), None)
    if run:
        yield _training(with_snapshots(run.overrides, plan.snapshots(sweep, run.env)), folder)
        return
    env = next(env for env in plan.teacher_envs() if plan.teacher_name(env) == name)
    if not (folder / "done.json").exists():
        yield _training(plan.teacher_overrides(env), folder)
    files = (format_override("run", folder), format_override("out", plan.snapshots(sweep, env)))
    yield ["rlearly.teacher", *files, *plan.teacher_snapshots]


def _training(overrides: list[str], folder: Path) -> list[str]:
    """The command that trains in a folder, or resumes there with the overrides that changed."""
    if checkpoint.list_checkpoints(folder / "checkpoints"):
        changed = changed_overrides(folder, overrides)
        return ["rlearly.train", format_override("resume", folder), *changed]
    return ["rlearly.train", *overrides, format_override("run_dir", folder)]
