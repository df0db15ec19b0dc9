"""Write files atomically: a reader finds the old content or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

PREFIX, PARTIAL = ".rlearly-", ".partial"
ABANDONED_SECONDS = 24 * 3600
"""A partial file that has not changed for this long was left by a process that was killed."""


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Give `path` the content that the body writes to the temporary path that it receives.

    Each temporary path is unique, so processes that write the same file do not disturb each other:
    the last one to finish wins. It is a hidden file in the same folder, has the same suffix, and
    is deleted if the body raises. A link is kept: the file that it leads to is replaced.

    Args:
        overwrite: False: an existing file is kept, even if it appeared during the body.

    Raises:
        FileExistsError: the file exists, without `overwrite`; what the body wrote is deleted.
    """
    target = Path(os.path.realpath(path))
    _delete_abandoned(target.parent)
    partial = target.with_name(f"{PREFIX}{uuid.uuid4().hex}{PARTIAL}{target.suffix}")
    try:
        yield partial
        if overwrite:
            partial.replace(target)
        else:
            _rename_to_new(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write(path: Path, text: str) -> None:
    """Write a small text file atomically, as UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _rename_to_new(partial: Path, target: Path) -> None:
    """Rename a file unless the new name exists."""
    try:
        os.link(partial, target)  # unlike a rename, it fails if the name exists
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        if target.exists():
            raise FileExistsError(f"{target} exists") from None
        partial.replace(target)
    else:
        partial.unlink()


def _delete_abandoned(folder: Path) -> None:
    """Delete the partial files in a folder that killed processes left."""
    with contextlib.suppress(OSError):
        for file in folder.glob(f"{PREFIX}*{PARTIAL}*"):
            with contextlib.suppress(OSError):  # another process deletes it too
                if time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                    file.unlink()
