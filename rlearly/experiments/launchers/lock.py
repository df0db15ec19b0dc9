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

from filelock import FileLock, Timeout

from rlearly.config.overrides import format_override, python_command
from rlearly.core.errors import ConfigError
from rlearly.experiments.job import in_use
from rlearly.experiments.launchers.slurm import submitted
from rlearly.experiments.plan import PLAN
from rlearly.training.run_directory import write

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
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(
            f"{folder} is being launched by another process; end it with: "
            f"{sweep_command('cancel', folder)}; or look at it with: "
            f"{sweep_command('status', folder)}"
        ) from None
    plan = (folder / PLAN).read_text() if (folder / PLAN).exists() else None
    numbers = submitted(folder)
    owner = {"launcher": launcher, "pid": os.getpid(), "host": socket.gethostname()}
    try:
        (folder / OWNER).write_text(json.dumps(owner))
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
    """A command for the shell that looks at a sweep (`status`) or ends it (`cancel`)."""
    return python_command("rlearly.sweep", format_override(verb, folder))


def owner_of(folder: Path) -> dict[str, Any] | None:
    """The launcher, pid and host of the process that launches a sweep; None if there is none."""
    with contextlib.suppress(OSError, ValueError):
        if in_use(folder / LOCK):  # otherwise it is gone, and its pid may be another process's
            return json.loads((folder / OWNER).read_text())
    return None
