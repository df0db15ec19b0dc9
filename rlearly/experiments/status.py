"""The state of a sweep's jobs, read from its directory alone."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from rlearly.experiments.job import Job, Record, after_kill, last_lines, tail
from rlearly.experiments.plan import train_frames_of
from rlearly.system.locks import in_use
from rlearly.training import checkpoint
from rlearly.training.display import duration
from rlearly.training.run_directory import early_end

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STATES = {
    "done": "green",
    "running": "cyan",
    "queued": "",
    "saved": "yellow",
    "failed": "bold red",
    "skipped": "red",
    "lost": "red",
    "waiting": "",
}
"""State -> colour. `queued`: the cluster has it. `saved`: stopped with a checkpoint. `skipped`: its
teacher failed. `lost`: its process ended without a record. `waiting`: not started yet."""

FIRST = ("failed", "lost", "running", "saved", "skipped", "queued", "waiting", "done")
"""The order of states in a table that is too long for the terminal."""

LOST_SECONDS = 3600
"""A run on another host that has written nothing for this long counts as lost."""

SILENT_SECONDS = 600


@dataclass(frozen=True)
class Status:
    """The state of one job."""

    job: Job
    state: str
    tries: int = 0
    frames: int = 0
    train_frames: int | None = None
    frames_per_second: float | None = None
    last_return: float | None = None
    seconds: float = 0.0
    """Duration of all its tries."""
    silent_seconds: float | None = None
    """Time since it wrote its last metrics, while it runs."""
    early_end: str | None = None
    """Why it ended before its train_frames, if it did."""
    log_lines: Sequence[str] = ()
    """The end of its log, if it failed."""

    @property
    def seconds_left(self) -> float | None:
        if self.state != "running" or not self.frames_per_second or not self.train_frames:
            return None
        return max(0, self.train_frames - self.frames) / self.frames_per_second


def status_of(sweep: Path, job: Job, queue: Mapping[str, str]) -> Status:
    """The state of one job. `queue`: job -> "queued" or "running", of those on a cluster."""
    record = Record.load(sweep, job.name)
    queued = queue.get(job.name)
    alive = bool(record and record.state == "running" and (queued or _alive(sweep, job, record)))
    if record and record.state == "running" and not alive:
        record = after_kill(sweep, job.name, record)
    if job.finished(sweep):
        state = "done"
    elif queued or not record:
        state = queued or "waiting"
    elif record.state == "running":
        state = "running" if alive else "lost"
    else:
        state = "saved" if record.state == "done" else record.state
    run = sweep / job.name
    row = _last_values(run / "metrics.jsonl")
    seconds = record.seconds if record else 0.0
    if record and state == "running":
        seconds += time.time() - record.began
    return Status(
        job=job,
        state=state,
        tries=record.tries if record else 0,
        frames=int(row.get("frames", 0)),
        train_frames=train_frames_of(run),
        frames_per_second=row.get("speed/frames_per_second"),
        last_return=row.get("eval/episode_return", row.get("train/episode_return")),
        seconds=seconds,
        silent_seconds=_silent_seconds(run) if state == "running" else None,
        early_end=early_end(run) if state == "done" else None,
        log_lines=last_lines(sweep, job.name, 5) if state == "failed" else (),
    )


def _alive(sweep: Path, job: Job, record: Record) -> bool:
    """Whether the try of a record may still run; on another host, if it wrote metrics recently."""
    if record.host == socket.gethostname():
        with contextlib.suppress(psutil.Error):
            if psutil.Process(record.pid).create_time() <= record.began + 1:
                return True
        return bool(in_use(sweep / job.name / "run.lock"))  # a run that saves outlives its launcher
    silent = _silent_seconds(sweep / job.name) or 0
    return min(silent, time.time() - record.began) < LOST_SECONDS


def _last_values(file: Path) -> dict[str, Any]:
    """The latest value of every metric near the end of a run's rows."""
    found: dict[str, Any] = {}
    for line in tail(file, 50_000):
        with contextlib.suppress(ValueError, TypeError):  # the first and last may be incomplete
            found |= json.loads(line)
    return found


def _silent_seconds(run: Path) -> float | None:
    with contextlib.suppress(OSError):
        return max(0.0, time.time() - (run / "metrics.jsonl").stat().st_mtime)
    return None


def failed_at_once(sweep: Path, jobs: Iterable[Job], queue: Mapping[str, str]) -> bool:
    """Whether all these jobs failed, and none has a checkpoint, a result or a place in a queue."""
    jobs = list(jobs)
    states = {status.state for status in statuses(sweep, jobs, queue)}
    return states <= {"failed", "skipped"} and not any(
        checkpoint.list_checkpoints(sweep / job.name / "checkpoints") for job in jobs
    )


def statuses(
    sweep: Path, jobs: Iterable[Job], queue: Mapping[str, str] | None = None
) -> list[Status]:
    """The state of every job."""
    found = [status_of(sweep, job, queue or {}) for job in jobs]
    failed = {status.job.name for status in found if status.state == "failed"}
    return [
        replace(status, state="skipped")
        if status.job.needs in failed and status.state == "waiting"
        else status
        for status in found
    ]


def totals(found: Sequence[Status], scope: str = "") -> str:
    """One line: the number of jobs in each state, their speed, and the time left."""
    counts = Counter(status.state for status in found)
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    speed = sum(s.frames_per_second or 0 for s in found if s.state == "running")
    known = [s.train_frames for s in found if s.train_frames]
    if speed:
        parts.append(f"{speed:,.0f} frames/s")
    if speed and known:
        usual = sum(known) / len(known)  # for jobs that have no config yet
        frames = [(s.train_frames or usual) - s.frames for s in found if s.state != "done"]
        parts.append(f"about {duration(sum(max(0.0, n) for n in frames) / speed)} left")
    spent = sum(s.seconds for s in found)
    if spent:
        parts.append(f"{duration(spent)} of run time so far")
    return f"{len(found)} jobs{scope}: {', '.join(parts)}"


def overview(found: Sequence[Status], console: Console) -> RenderableType:
    """A table with a row for each job, as many as the terminal holds, and the totals below.

    If there are more, those that failed or run come first.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = list(found)
    if console.is_terminal and len(shown) > console.height - 6:
        shown.sort(key=lambda status: FIRST.index(status.state))
        shown = shown[: max(5, console.height - 6)]
    table = Table(box=None, pad_edge=False)
    for title in ("job", "state", "tries", "frames", "", "frames/s", "return", "left"):
        table.add_column(title, justify="left" if title in ("job", "state") else "right")
    for status in shown:
        share = status.frames / status.train_frames if status.train_frames else None
        left, silent = status.seconds_left, status.silent_seconds or 0
        note = f", silent {duration(silent)}" if silent > SILENT_SECONDS else ""
        note += " early" if status.early_end else ""
        table.add_row(
            Text(status.job.title),
            Text(status.state + note, style=STATES[status.state]),
            str(status.tries or ""),
            f"{status.frames:,}" if status.frames else "",
            f"{min(1.0, share):.0%}" if share else "",
            f"{status.frames_per_second:.0f}" if status.frames_per_second else "",
            "" if status.last_return is None else f"{status.last_return:.1f}",
            duration(left) if left is not None else "",
        )
    if len(shown) < len(found):
        table.caption = f"and {len(found) - len(shown)} more"
    return Group(table, Text(totals(found)))


def failures(found: Sequence[Status]) -> list[str]:
    """The end of the log of each failed job."""
    lines = []
    for status in found:
        if status.state == "failed":
            lines.append(f"{status.job.title} failed, try {status.tries}:")
            lines += [f"    {line}" for line in status.log_lines]
    return lines
