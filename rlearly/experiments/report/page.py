"""A sweep's report as one HTML file that needs no network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlearly import __version__
from rlearly.experiments.report import results as rules
from rlearly.experiments.report import statistics
from rlearly.experiments.report.figures import SweepFigure
from rlearly.experiments.report.results import SweepResults, listed
from rlearly.experiments.report.statistics import rounded
from rlearly.experiments.report.tables import Table


def render_page(
    results: SweepResults,
    tables: Sequence[Table],
    figures: Sequence[SweepFigure],
    state: Sequence[str],
    command: str,
    out: Path,
) -> str:
    """The page as HTML. Its links are relative to the folder `out`."""
    environment = Environment(
        loader=PackageLoader("rlearly.experiments.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        results=results,
        conclusions=[results.conclusion(env) for env in results.envs],
        tables=tables,
        figures=figures,
        state=state,
        runs=_run_rows(results, out),
        command=command,
        version=__version__,
        listed=listed,
        statistics=statistics,
        rules=rules,
    )


def _run_rows(results: SweepResults, out: Path) -> list[list[str | list[tuple[str, str]]]]:
    """A row for each run, by env: its state, its numbers and links to its files."""
    curves = {curve.folder: curve for curve in results.curves}
    broken = [curve for env, arm in results.finished for curve in results.broken(env, arm)]
    rows = []
    for run, status in sorted(results.runs, key=lambda pair: pair[0].env):
        folder = results.sweep / run.name if results.sweep else None
        curve = curves.get(folder) if folder else None
        state = status.state + (", broken" if any(curve is c for c in broken) else "")
        last = rounded(curve.returns[-1]) if curve else "none"
        final = rounded(curve.final) if curve and curve.finished else ""
        cells = [run.env, run.arm, str(run.seed), state, f"{status.frames:,}", last, final]
        rows.append([*cells, _links(folder, out) if folder else []])
    return rows


def _links(folder: Path, out: Path) -> list[tuple[str, str]]:
    """Text and link of a run's directory, its config and its newest video, if they exist."""
    videos = sorted((folder / "videos").glob("[!.]*.mp4"), key=lambda file: file.stat().st_mtime)
    files = [("directory", folder), ("config", folder / "config.yaml")]
    files += [("video", video) for video in videos[-1:]]
    return [
        (text, quote(os.fsencode(os.path.relpath(file, out))))
        for text, file in files
        if file.exists()
    ]
