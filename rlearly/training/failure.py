"""Describe a failed run in failure.json, and keep its numbers in failure.pt."""

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
from rlearly.core.tree import leaves
from rlearly.training.run_directory import REPORT, WEIGHTS, write


def not_finite(tree: Any) -> dict[str, int]:
    """The leaves with NaN or infinite numbers: dotted name -> how many there are."""
    counts = {".".join(map(str, path)): _count(leaf) for path, leaf in leaves(tree)}
    return {name: count for name, count in counts.items() if count}


def _count(leaf: Any) -> int:
    if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
        finite = torch.isfinite(leaf)
        return 0 if bool(finite.all()) else int((~finite).sum())
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f":
        return int((~np.isfinite(leaf)).sum())
    return int(isinstance(leaf, float) and not math.isfinite(leaf))


def dump(
    folder: Path, failed: RunFailed, progress: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Write failure.json (what happened, where, with which numbers).

    If numbers in the agent's state are not finite, write the whole state to failure.pt too.

    Raises:
        OSError: they cannot be written.
    """
    bad = not_finite(state)
    cause = failed.__cause__
    report = {
        "what": str(failed),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **progress,
        **failed.facts,
        "not_finite": bad,
        "traceback": traceback.format_exception(cause) if cause else None,
    }
    write(folder / REPORT, json.dumps(report, indent=1, default=_as_json))
    if bad:
        packed = io.BytesIO()  # torch.save does not raise OSError on a full disk
        torch.save(dict(state), packed)
        (folder / WEIGHTS).write_bytes(packed.getbuffer())


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
