"""What a run has written down so far, also while it is being written."""

from __future__ import annotations

import json
from collections.abc import Sized
from pathlib import Path
from typing import Any

from rlearly.core.errors import ConfigError

Row = dict[str, Any]

SUCCESS = "eval/success_rate"
"""What evaluations of tasks with a goal write beside the return."""


def read_rows(run: Path) -> list[Row]:
    """The rows of a run directory's metrics.jsonl, in order; a last, half-written one is left out.

    Raises:
        ConfigError: it has no metrics.jsonl, or one that cannot be read.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise ConfigError(f"{run} is not a run directory (it has no metrics.jsonl).")
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}).") from None
    rows: list[Row] = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a run that is being written
            continue
    return rows


def alone(points: Sized) -> str | None:
    """The marker of a line that is a single point, which would not be seen without one."""
    return "o" if len(points) == 1 else None


def points(rows: list[Row], name: str) -> tuple[list[int], list[float]]:
    """Frames and values of one metric, where it was written."""
    found = [(row["frames"], row[name]) for row in rows if name in row]
    return [frames for frames, _ in found], [value for _, value in found]
