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
from rlearly.system.atomic import replacing, write
from rlearly.training.run_directory import REPORT, WEIGHTS


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
    write(folder / REPORT, _report(failed, {**progress, "not_finite": bad}))
    if bad:
        packed = io.BytesIO()  # torch.save does not raise OSError on a full disk
        torch.save(dict(state), packed)
        with replacing(folder / WEIGHTS) as partial:
            partial.write_bytes(packed.getbuffer())


def dump_beside(file: Path, failed: RunFailed) -> str:
    """Write the report of a command other than training to FILE.failure.json.

    Returns a sentence for the user that says where it is, without its full stop.
    """
    path = _beside(file)
    try:
        write(path, _report(failed, {}))
    except OSError as error:
        return f"The details could not be written ({error})"
    return f"{path} has the details"


def clear_beside(file: Path) -> None:
    """Remove what `dump_beside` wrote when the command failed before."""
    _beside(file).unlink(missing_ok=True)


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.failure.json")


def _report(failed: RunFailed, facts: Mapping[str, Any]) -> str:
    cause = failed.__cause__
    report = {
        "what": str(failed),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **facts,
        **failed.facts,
        "traceback": traceback.format_exception(cause) if cause else None,
    }
    return json.dumps(report, indent=1, default=_as_json)


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
