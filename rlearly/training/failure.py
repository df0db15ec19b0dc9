"""Describe a failed run in failure.json, and keep its numbers in failure.pt."""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
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

    If the same command, run at the same time, has failed too, its report is kept, and this one is
    FILE.failure-2.json, and so on. Returns a sentence for the user that says where it is, without
    its full stop.
    """
    report = _report(failed, {})
    for number in itertools.count(1):
        path = file.with_name(f"{file.name}.failure{f'-{number}' if number > 1 else ''}.json")
        try:
            with replacing(path, overwrite=False) as partial:
                partial.write_text(report, encoding="utf-8")
        except FileExistsError:
            continue
        except OSError as error:
            return f"The details could not be written ({error})"
        return f"{path} has the details"
    raise AssertionError


def clear_beside(file: Path) -> None:
    """Remove what `dump_beside` wrote when the command failed before; call it at the start."""
    for path in file.parent.glob(f"{glob.escape(file.name)}.failure*.json"):
        with contextlib.suppress(OSError):  # gone already, or another user's
            path.unlink()


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
