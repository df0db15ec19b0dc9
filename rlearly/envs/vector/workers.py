"""The worker processes of an AsyncVectorEnv."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from gymnasium.vector import AsyncVectorEnv


def keep_interrupts_from_workers(base: Any) -> None:
    """Let Ctrl-C reach only this process, which then saves the run, and not the workers.

    A terminal interrupts its whole process group, so the workers of an AsyncVectorEnv get groups of
    their own. That is possible where they were forked, as by default on Linux. They still end with
    this process, as their pipes close.
    """
    if isinstance(base, AsyncVectorEnv) and hasattr(os, "setpgid"):
        for process in base.processes:
            with contextlib.suppress(OSError):  # it was spawned, or has ended
                if process.pid is not None:
                    os.setpgid(process.pid, process.pid)


def failed_worker(base: Any) -> int | None:
    """The index of a worker that has ended, if one has; None for other vector envs."""
    if not isinstance(base, AsyncVectorEnv):
        return None
    workers = enumerate(zip(base.parent_pipes, base.processes, strict=True))
    gone = (i for i, (pipe, process) in workers if pipe is None or not process.is_alive())
    return next(gone, None)
