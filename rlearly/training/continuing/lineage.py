"""The runs that a run began from, and those that they began from, as provenance.json names them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlearly.config.schema import StartFromConfig
from rlearly.core.errors import ConfigError
from rlearly.training import checkpoint
from rlearly.training.run_directory import PROVENANCE, identity_of


def ancestor_entry(folder: Path, settings: StartFromConfig) -> dict[str, Any] | None:
    """What provenance.json of the run in `folder` says of its ancestor; None: it has none.

    Taken from an earlier start of the run if there was one, as the ancestor may be gone by now.
    """
    if settings.run is None:
        return None
    known = ancestor_of(folder)
    if known is not None:
        return known
    run, chosen = Path(settings.run), str(settings.checkpoint)
    best = chosen == checkpoint.BEST
    identity = identity_of(run) or {}
    return {
        "path": str(run),
        "id": identity.get("id"),
        "frames": checkpoint.best_frames(run / "checkpoints") if best else int(chosen),
        "checkpoint": chosen,
        "sha256": settings.sha256,
        "parts": list(settings.parts or ()),
        "ancestor": ancestor_of(run),
    }


def ancestor_of(run: Path) -> dict[str, Any] | None:
    """What a run's provenance.json says of its ancestor; None: it has none, or cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        entries = json.loads((run / PROVENANCE).read_text(encoding="utf-8"))
        return next(filter(None, (entry.get("ancestor") for entry in reversed(entries))), None)
    return None


@dataclass(frozen=True)
class Segment:
    """A run's part in the curve of its last descendant.

    first: frames that its ancestors were trained for. end: its own frames at which the next run
    started; None for the last one.
    """

    run: Path
    first: int
    end: int | None


def lineage(run: Path) -> list[Segment]:
    """The run and its ancestors, oldest first.

    Raises:
        ConfigError: an ancestor is no longer where it was.
    """
    chain: list[tuple[Path, int | None]] = [(run, None)]
    entry = ancestor_of(run)
    while entry is not None:
        path = Path(entry["path"])
        moved = (identity_of(path) or {}).get("id") != entry["id"]
        if not path.is_dir() or moved:
            raise ConfigError(
                f"ancestors: {chain[-1][0]} began from {path}, which is no longer there: put it "
                "back, or leave ancestors out."
            )
        chain.append((path, int(entry["frames"])))
        entry = entry.get("ancestor")
    segments, first = [], 0
    for path, end in reversed(chain):
        segments.append(Segment(path, first, end))
        first += end or 0
    return segments
