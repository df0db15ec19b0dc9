"""Why a run cannot go on, and what is written down of it."""

from __future__ import annotations

import io
import json
import math
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlearly.core.errors import RunFailed
from rlearly.training.run_directory import REPORT, WEIGHTS, write


def not_finite(tree: Any, name: str = "") -> dict[str, int]:
    """How many numbers of each tensor or array in a state are infinite or no number; only of those
    that have some."""
    if isinstance(tree, Mapping):
        parts = tree.items()
    elif isinstance(tree, list | tuple):
        parts = enumerate(tree)
    else:
        count = _count(tree)
        return {name: count} if count else {}
    found: dict[str, int] = {}
    for key, value in parts:
        found |= not_finite(value, f"{name}.{key}" if name else str(key))
    return found


def _count(leaf: Any) -> int:
    if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
        return 0 if bool(torch.isfinite(leaf).all()) else int((~torch.isfinite(leaf)).sum())
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f":
        return int((~np.isfinite(leaf)).sum())
    return int(isinstance(leaf, float) and not math.isfinite(leaf))


def dump(
    folder: Path, failure: RunFailed, progress: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Write failure.json (what, where, with which numbers) and, if the agent's weights are to
    blame, failure.pt (its whole state).

    Raises:
        OSError: they cannot be written.
    """
    bad = not_finite(state)
    cause = failure.__cause__
    report = {
        "what": str(failure),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **progress,
        **failure.facts,
        "not_finite": bad,
        "traceback": traceback.format_exception(cause) if cause else None,
    }
    write(folder / REPORT, json.dumps(report, indent=1, default=_plain))
    if bad:
        packed = io.BytesIO()  # a disk that is full is no OSError to torch
        torch.save(dict(state), packed)
        (folder / WEIGHTS).write_bytes(packed.getbuffer())


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
