"""Lock files, which show other processes that a directory is in use."""

from __future__ import annotations

import logging
from pathlib import Path

import filelock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

PROBE_SECONDS = 1.0
"""How long to wait for a lock that a command may hold for a moment, to see whether it is in use."""


class FileLock:
    """A lock that one process at a time holds. It ends with its process, even if that is killed.

    Some file systems have no locks (network file systems mounted without them, FUSE). There it can
    always be acquired, and a warning says so.

    Args:
        path: the lock file; its folder exists.
        warn: whether to say that the file system has no locks.
    """

    def __init__(self, path: Path, *, warn: bool = True):
        self.path = path
        self.warn = warn
        self.missing = False
        """Whether the file system turned out to have no locks."""
        # a lock that is only the existence of a file would outlive a process that is killed
        self._lock = filelock.FileLock(path, timeout=0, fallback_to_soft=False)

    def acquire(self, wait_seconds: float = 0.0) -> bool:
        """Take the lock, or return False if another process holds it for all of `wait_seconds`.

        Raises:
            OSError: the lock file cannot be made or opened.
        """
        if self._lock.is_locked or self.missing:
            return True
        try:
            self._lock.acquire(timeout=wait_seconds)
        except filelock.Timeout:
            error = _locking_error(self.path)  # filelock takes EACCES for a lock in use
            if error is None or isinstance(error, BlockingIOError):
                return False
            self._found_missing(error)
        except OSError as error:
            if error.filename is not None:  # of opening the file, not of locking it
                raise
            self._found_missing(error)
        return True

    def release(self) -> None:
        self._lock.release()

    def _found_missing(self, error: OSError) -> None:
        self.missing = True
        if self.warn:
            log.warning(
                "%s cannot be locked on this file system (%s): another process that uses it at the "
                "same time would not be noticed, so make sure that there is none.",
                self.path.parent,
                error.strerror or error,
            )


def in_use(path: Path) -> bool | None:
    """Whether a process holds a lock file; None: unknown, as this file system has no locks.

    Any number of processes may ask at once. Asking holds the lock for a moment, so a process that
    wants it waits for up to `PROBE_SECONDS`.
    """
    if fcntl is None:
        lock = FileLock(path, warn=False)
        try:
            return path.exists() and not lock.acquire()
        except OSError:
            return False
        finally:
            lock.release()
    try:
        error = _locking_error(path)
    except OSError:  # there is none, or it is unreadable: whoever uses the directory reports it
        return False
    held = isinstance(error, BlockingIOError)
    return held if held or error is None else None


def _locking_error(path: Path) -> OSError | None:
    """The error of a shared lock, which does not disturb others who ask; None: it was granted."""
    if fcntl is None:
        return None
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error
    return None
