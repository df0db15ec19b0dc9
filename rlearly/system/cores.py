"""How many threads a run takes: as many as help its agent, and no core that another run has."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlearly.system import machine


@dataclass(frozen=True)
class Share:
    """A run's threads, and the cores that it found taken by other runs."""

    threads: int
    taken: int


@contextlib.contextmanager
def shared(asked: int | None, most: int | None, folder: Path | None = None) -> Iterator[Share]:
    """A share of this machine's cores, which counts as taken while in here.

    It is what was `asked` for, or else `most` (None: all cores), or else what runs that were
    started before have left: one thread at least. Threads that wait for each other's cores make
    all runs several times slower. Only runs that may use the same cores count, and only running
    ones: those that were killed are forgotten. `folder`: where runs write their share down.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"rlearly-{os.getuid()}" / "cores"
    own = psutil.Process()
    entry = folder / f"{own.pid}-{own.create_time()}.json"
    cores = machine.usable_cores()
    share = Share(asked or min(most or cores, cores), 0)
    try:
        with _locked(folder):
            taken = sum(_taken(folder))
            if asked is None:
                share = Share(max(1, min(share.threads, cores - taken)), taken)
            entry.write_text(json.dumps({"threads": share.threads, "cores": _allowed()}))
    except OSError:  # nowhere to write, so nobody can be seen
        yield share
        return
    try:
        yield share
    finally:
        entry.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _taken(folder: Path) -> Iterator[int]:
    """The threads of each other run that may use some of this one's cores."""
    mine = set(_allowed())
    for entry in folder.glob("*.json"):
        if not _is_running(entry):
            entry.unlink(missing_ok=True)
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(entry.read_text())
            if mine & set(told["cores"]):
                yield int(told["threads"])


def _is_running(entry: Path) -> bool:
    """Whether the process that made an entry still is the one of its number."""
    number, _, started = entry.stem.partition("-")
    try:
        return str(psutil.Process(int(number)).create_time()) == started
    except (ValueError, psutil.NoSuchProcess):
        return False


def _allowed() -> list[int]:
    """The numbers of the cores that this process may use."""
    return psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else [0]
