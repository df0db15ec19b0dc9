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
        self._lock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)

    def acquire(self) -> bool:
        """Take the lock, or return False if another process holds it.

        Raises:
            OSError: the lock file cannot be made or opened.
        """
        if self._lock.is_locked or self.missing:
            return True
        try:
            self._lock.acquire()
        except filelock.Timeout:
            error = _permission_denied(self.path)
            if error is None:
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


def _permission_denied(path: Path) -> OSError | None:
    """The error of a file system that answers EACCES, which filelock takes for a lock in use."""
    if fcntl is not None:
        with path.open("rb+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            except OSError as error:
                return error
    return None


def in_use(path: Path) -> bool | None:
    """Whether a process holds a lock file; None: it cannot be told, as there are no locks here."""
    lock = FileLock(path, warn=False)
    try:
        held = path.exists() and not lock.acquire()
        return None if lock.missing else held
    except OSError:  # unreadable: whoever uses the directory will report it
        return False
    finally:
        lock.release()
