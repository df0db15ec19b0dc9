"""What file systems can do: how long names are, and what can be synced."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

LOSSES = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
"""Error numbers that say that data is lost. Others (EINVAL, ENOTSUP, EACCES, ...) come from file
systems that cannot sync files or folders: some FUSE and network file systems, and Windows."""

MOST_NAME_BYTES = 200
"""Bytes of a name that leave room for suffixes: file systems allow 255."""


def short_name(name: str) -> str:
    """The name of a file or folder, its end replaced by a hash if it is too long."""
    encoded = os.fsencode(name)
    if len(encoded) <= MOST_NAME_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    kept = encoded[: MOST_NAME_BYTES - 9].decode("utf-8", "ignore")
    return f"{kept}-{digest}"


def sync(handle: int) -> None:
    """Wait until an open file is on the disk; no effect if the file system cannot sync.

    Raises:
        OSError: it cannot be written to the disk.
    """
    with _unsupported_ignored():
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, as `sync` does for a file."""
    with _unsupported_ignored():
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _unsupported_ignored() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in LOSSES:
            raise
