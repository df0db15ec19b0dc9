"""Where the jobs of a sweep stand, read off its directory alone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly.experiments.job import Job, Record, after_death, in_use, last_lines
from rlearly.training.display import duration

if TYPE_CHECKING:
    from rich.table import Table

STATES = ("done", "running", "queued", "saved", "failed", "skipped", "lost", "waiting")
"""`saved`: stopped with a checkpoint, or to be trained on. `lost`: its process is
gone without a word. `skipped`: its teacher failed. `queued`: the engine has it. `waiting`: nobody
has started it yet."""


LOST_SECONDS = 3600
"""A run on another host that has written nothing for so long counts as lost."""


@dataclass(frozen=True)
class Status:
    """Where one job stands."""

    job: Job
    state: str
    tries: int = 0
    frames: int = 0
    train_frames: int | None = None
    frames_per_second: float | None = None
    last_return: float | None = None
    seconds: float = 0.0
    """That its tries have taken."""
    silent_seconds: float | None = None
    """Since it wrote anything, while it runs."""
    said: Sequence[str] = ()
    """The last lines of its log, if it failed."""

    @property
    def seconds_left(self) -> float | None:
        if self.state != "running" or not self.frames_per_second or not self.train_frames:
            return None
        return max(0, self.train_frames - self.frames) / self.frames_per_second


def status_of(sweep: Path, job: Job, queue: Mapping[str, str]) -> Status:
    """Of one job; `queue` is what an engine says of those that it has: `queued` or `running`."""
    record = Record.load(sweep, job.name)
    running = record is not None and record.state == "running"
    if record and running and not (queue.get(job.name) or _alive(sweep, job, record)):
        record = after_death(sweep, job.name, record)
    state = _state(sweep, job, record, queue.get(job.name))
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
        train_frames=_train_frames(run),
        frames_per_second=row.get("speed/frames_per_second"),
        last_return=row.get("eval/episode_return", row.get("train/episode_return")),
        seconds=seconds,
        silent_seconds=_silent_seconds(run) if state == "running" else None,
        said=last_lines(sweep, job.name, 5) if state == "failed" else (),
    )


def _state(sweep: Path, job: Job, record: Record | None, queued: str | None) -> str:
    if job.finished(sweep):
        return "done"
    if record is None:
        return queued or "waiting"
    if record.state != "running":
        return queued or ("saved" if record.state == "done" else record.state)
    if queued:
        return queued
    return "running" if _alive(sweep, job, record) else "lost"


def _alive(sweep: Path, job: Job, record: Record) -> bool:
    """Whether the try that made a record may still run. On another host nobody can tell but by
    what the run writes."""
    if record.host == socket.gethostname():
        lock = sweep / job.name / "run.lock"
        if lock.exists() and in_use(lock):  # a run that is saving outlives its launcher
            return True
        with contextlib.suppress(psutil.Error):
            return psutil.Process(record.pid).create_time() <= record.began + 1
        return False
    silent = _silent_seconds(sweep / job.name)
    return time.time() - record.began < LOST_SECONDS or (silent or 0) < LOST_SECONDS


def _last_values(file: Path) -> dict[str, Any]:
    """The latest value of every metric in the last part of a run's rows."""
    found: dict[str, Any] = {}
    try:
        with file.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 50_000))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):  # the first and last may be cut
            found |= json.loads(line)
    return found


def _train_frames(run: Path) -> int | None:
    with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException, AttributeError):
        config: Any = OmegaConf.load(run / "config.yaml")
        return config.train_frames
    return None


def _silent_seconds(run: Path) -> float | None:
    with contextlib.suppress(OSError):
        return max(0.0, time.time() - (run / "metrics.jsonl").stat().st_mtime)
    return None


def statuses(
    sweep: Path, jobs: Iterable[Job], queue: Mapping[str, str] | None = None
) -> list[Status]:
    """Of all jobs; those whose teacher failed are skipped."""
    found = [status_of(sweep, job, queue or {}) for job in jobs]
    failed = {status.job.name for status in found if status.state == "failed"}
    return [
        replace(status, state="skipped")
        if status.job.needs in failed and status.state == "waiting"
        else status
        for status in found
    ]


def totals(found: Sequence[Status], whose: str = "") -> str:
    """One line: how many are in which state, how fast they go, and when they will be done."""
    counts = Counter(status.state for status in found)
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    speeds = [s.frames_per_second for s in found if s.state == "running" and s.frames_per_second]
    if speeds:
        parts.append(f"{sum(speeds):,.0f} frames/s")
    left = frames_left(found)
    if speeds and left is not None:
        parts.append(f"about {duration(left / sum(speeds))} left")
    spent = sum(s.seconds for s in found)
    if spent:
        parts.append(f"{duration(spent)} of run time so far")
    return f"{len(found)} jobs{whose}: {', '.join(parts)}"


def frames_left(found: Sequence[Status]) -> float | None:
    """Of all jobs that are not done; those that have no config yet count as an average one."""
    known = [s.train_frames for s in found if s.train_frames]
    if not known:
        return None
    usual = sum(known) / len(known)
    return sum(
        max(0.0, (s.train_frames or usual) - s.frames) for s in found if s.state not in ("done",)
    )


COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "bold red",
    "lost": "red",
    "skipped": "red",
    "saved": "yellow",
}


def table(found: Sequence[Status], most: int | None = None) -> Table:
    """A row for each job; of more than `most`, those that are running or went wrong come first."""
    from rich.table import Table
    from rich.text import Text

    shown = list(found)
    if most is not None and len(shown) > most:
        order = ("failed", "lost", "running", "saved", "skipped", "queued", "waiting", "done")
        shown = sorted(shown, key=lambda s: order.index(s.state))[:most]
    view = Table(box=None, pad_edge=False)
    for title in ("job", "state", "tries", "frames", "", "frames/s", "return", "left"):
        view.add_column(title, justify="left" if title in ("job", "state") else "right")
    for status in shown:
        share = status.frames / status.train_frames if status.train_frames else None
        left = status.seconds_left
        note = ""
        if status.silent_seconds and status.silent_seconds > 600:
            note = f", silent {duration(status.silent_seconds)}"
        view.add_row(
            Text(status.job.title),
            Text(status.state + note, style=COLOURS.get(status.state, "")),
            str(status.tries or ""),
            f"{status.frames:,}" if status.frames else "",
            f"{min(1.0, share):.0%}" if share and status.frames else "",
            f"{status.frames_per_second:.0f}" if status.frames_per_second else "",
            "" if status.last_return is None else f"{status.last_return:.1f}",
            duration(left) if left is not None else "",
        )
    if len(shown) < len(found):
        view.caption = f"and {len(found) - len(shown)} more"
    return view


def failures(found: Sequence[Status]) -> list[str]:
    """The last lines of each failed job."""
    lines = []
    for status in found:
        if status.state == "failed":
            lines.append(f"{status.job.title} failed, try {status.tries}:")
            lines += [f"    {line}" for line in status.said]
    return lines
