"""Allow one process at a time to launch a sweep."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from rlearly.config.overrides import format_override, python_command
from rlearly.core.errors import ConfigError
from rlearly.experiments.launchers.slurm import submitted
from rlearly.experiments.plan import PLAN
from rlearly.system.atomic import write
from rlearly.system.locks import PROBE_SECONDS, FileLock, in_use

LOCK, OWNER = "launcher.lock", "launcher.json"


@contextlib.contextmanager
def only_launcher(folder: Path, launcher: str) -> Iterator[None]:
    """Create a sweep's directory and lock it, so that only this process launches the sweep.

    If a ConfigError is raised before any job was submitted, all that was written is removed again.

    Raises:
        ConfigError: another process launches the sweep.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    lock = FileLock(folder / LOCK)
    if not lock.acquire(PROBE_SECONDS) or (lock.missing and _launched_here(folder)):
        raise ConfigError(
            f"{folder} is being launched by another process; end it with: "
            f"{sweep_command('cancel', folder)}; or look at it with: "
            f"{sweep_command('status', folder)}"
        )
    plan = (folder / PLAN).read_text(encoding="utf-8") if (folder / PLAN).exists() else None
    numbers = submitted(folder)
    owner = {"launcher": launcher, "pid": os.getpid(), "host": socket.gethostname()}
    try:
        write(folder / OWNER, json.dumps(owner))
        yield
    except ConfigError:
        if submitted(folder) == numbers:
            for path in set(folder.iterdir()) - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if plan is not None:
                write(folder / PLAN, plan)
            with contextlib.suppress(OSError):  # not empty
                for path in created:
                    path.rmdir()
        raise
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def sweep_command(verb: str, folder: Path) -> str:
    """A shell command that shows a sweep (`status`) or ends it (`cancel`)."""
    return python_command("rlearly.sweep", format_override(verb, folder))


def owner_of(folder: Path) -> dict[str, Any] | None:
    """The launcher, pid and host of the process that launches a sweep; None if there is none."""
    held = in_use(folder / LOCK)
    if held is False:  # it is gone, and its pid may be another process's
        return None
    owner = _owner(folder)
    here = owner is not None and owner["host"] == socket.gethostname()
    return owner if held or not here or _launched_here(folder) else None


def _launched_here(folder: Path) -> bool:
    """Whether the owner of a sweep is a process of this machine that is older than its file."""
    owner = _owner(folder)
    if owner and owner["host"] == socket.gethostname():
        with contextlib.suppress(OSError, psutil.Error):
            written = (folder / OWNER).stat().st_mtime
            return psutil.Process(owner["pid"]).create_time() <= written + 1
    return False


def _owner(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / OWNER).read_text(encoding="utf-8"))
    return None
