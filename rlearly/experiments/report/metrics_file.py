"""Read the metrics.jsonl of a run directory, also while the run is still writing it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from rlearly.core.errors import ConfigError
from rlearly.training.continuing.lineage import lineage

Row = dict[str, Any]

RETURN = "eval/episode_return"
AWAKEN_STEP = "exploration/awaken_step"
SUCCESS = "eval/success_rate"
"""Logged in addition to the return by envs that report success."""


def read_rows(run: Path) -> list[Row]:
    """The rows of a run directory's metrics.jsonl, in order, without a half-written last one.

    Raises:
        ConfigError: there is no metrics.jsonl, or it cannot be read.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        from rlearly.config.resolve import no_run  # imports all agents' settings

        raise no_run(run, file.name)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}).") from None
    rows: list[Row] = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # the last line of a run that is being written
            rows.append(json.loads(line))
    return rows


def read_lineage(run: Path) -> tuple[list[Row], list[int]]:
    """(rows, joints) of a run after those of the runs that it began from, as one long run.

    An ancestor's rows end where the next run began; `joints` are the frames of these beginnings,
    and later frames and steps count on from there.

    Raises:
        ConfigError: a run cannot be read, or is not there any more.
    """
    rows: list[Row] = []
    segments = lineage(run)
    for segment in segments:
        for row in read_rows(segment.run):
            if segment.end is None or row["frames"] <= segment.end:
                rows.append(_shifted(row, segment.first))
    return rows, [segment.first for segment in segments[1:]]


def _shifted(row: Row, frames: int) -> Row:
    """A row as if its run had begun at `frames`."""
    if not frames or not row["frames"]:
        return {**row, "frames": row["frames"] + frames}
    steps = round(frames * row["steps"] / row["frames"])
    shifted = {**row, "frames": row["frames"] + frames, "steps": row["steps"] + steps}
    if row.get(AWAKEN_STEP, -1) > 0:
        shifted[AWAKEN_STEP] = row[AWAKEN_STEP] + steps
    return shifted


def metric_series(rows: list[Row], metric: str) -> tuple[list[int], list[float]]:
    """Frames and values of the rows that hold this metric."""
    logged = [(row["frames"], row[metric]) for row in rows if metric in row]
    return [frames for frames, _ in logged], [value for _, value in logged]
