"""The report of a sweep, finished or not: read its directory, write a folder with a page."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly.config.structured import read_yaml
from rlearly.core.errors import ConfigError
from rlearly.experiments.job import Job
from rlearly.experiments.plan import Plan, Run
from rlearly.experiments.report.curves import (
    Curve,
    published_file,
    read_curves,
    read_run,
    write_curves,
)
from rlearly.experiments.report.figures import draw_figures
from rlearly.experiments.report.human_scores import reference_scores
from rlearly.experiments.report.page import render_page
from rlearly.experiments.report.results import SweepResults, listed
from rlearly.experiments.report.tables import tables
from rlearly.experiments.status import Status, status_of
from rlearly.system import atomic
from rlearly.system.output import as_unicode


def load(
    sweep: Path,
    compare: Sequence[Path] = (),
    threshold: float | None = None,
    bootstrap_seed: int = 0,
    normalise: str | None = None,
) -> SweepResults:
    """Read a sweep, and the curves to compare it with, each labelled by where it comes from.

    With human-normalised scores, the final score is the last evaluation, as in Atari-100k.

    Raises:
        ConfigError: it is not a sweep's directory, a comparison cannot be read, or no env has the
            scores that `normalise` needs.
    """
    plan, curves, bounded = _read_sweep(sweep)
    envs = {run.env for run in plan.runs}
    labels = {""}
    for other in map(published_file, compare):
        label = _label(other, labels)
        labels.add(label)
        if other.is_dir():
            _, found, others = _read_sweep(other)
            bounded |= others & envs
        else:
            found = read_curves(other)
        shared = [replace(c, arm=f"{c.arm} ({label})") for c in found if c.env in envs]
        if not shared:
            raise ConfigError(
                f"compare: expected curves on {', '.join(sorted(envs))}, received {other} with "
                f"{', '.join(sorted({c.env for c in found})) or 'no evaluations'}; leave it out."
            )
        curves += shared
    reference, unscored = reference_scores(envs, normalise)
    if reference:
        curves = [replace(curve, final_evaluations=1) for curve in curves]
    return SweepResults(
        title=plan.title,
        curves=curves,
        runs=[
            (run, status_of(sweep, Job(run.name, run.title, None, run.train_frames), {}))
            for run in plan.runs
        ],
        sweep=sweep,
        metrics=plan.metrics,
        published=plan.published,
        bounded=frozenset(bounded),
        reference=reference,
        unscored=unscored,
        threshold=threshold,
        seed=bootstrap_seed,
    )


def _read_sweep(sweep: Path) -> tuple[Plan, list[Curve], set[str]]:
    """A sweep's plan, its curves, and the envs of dm_control according to the runs' configs."""
    plan = Plan.load(sweep)
    curves = [read_run(sweep / run.name, run, plan.metrics) for run in plan.runs]
    bounded: set[str] = set()
    for run in plan.runs:
        if run.env not in bounded:
            with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException, AttributeError):
                config = read_yaml(sweep / run.name / "config.yaml")
                if config.env.family in ("dm_control", "control"):
                    bounded.add(run.env)
    return plan, [curve for curve in curves if curve is not None], bounded


def _label(path: Path, taken: set[str]) -> str:
    """A short unique name: the folder's or the file's; the whole path if that is taken."""
    path = path.absolute()
    generic = path.name in ("curves.csv", "table.csv")
    short = path.name if path.is_dir() else path.parent.name if generic else path.stem
    return str(path) if short in taken else short


def progress(runs: Sequence[tuple[Run, Status]], most: int = 12) -> list[str]:
    """How many runs have finished, and a line naming the others in each state."""
    done = sum(status.state == "done" for _, status in runs)
    if done == len(runs):
        return [f"All {done} runs have finished."]
    lines = [f"{done} of {len(runs)} runs have finished; this report is not final."]
    for state in dict.fromkeys(status.state for _, status in runs if status.state != "done"):
        names = [run.title + _details(status) for run, status in runs if status.state == state]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        lines.append(f"{len(names)} {state}: {'; '.join(names[:most])}{more}")
    return lines


def _details(status: Status) -> str:
    parts = [f"{status.frames:,} frames"] if status.frames else []
    parts += [f"last log line: {status.log_lines[-1]}"] if status.log_lines else []
    return f" ({'; '.join(parts)})" if parts else ""


def write(results: SweepResults, out: Path, command: str) -> list[str]:
    """Write the report's folder. Returns the lines that a terminal shows.

    Raises:
        ConfigError: the folder cannot be written.
    """
    state = progress(results.runs)
    if not results.curves:
        state.append(
            "No run has an evaluation yet, so there are no returns to report: either none was "
            "reached, or eval_every_frames is 0."
        )
    if results.unscored:
        instead = "left out of the human-normalised scores"
        if not results.reference:
            instead = "scores are normalised by the range of returns"
        state.append(f"No human score is known for {listed(results.unscored)}: {instead}.")
    all_tables = tables(results)
    try:
        for folder in ("figures", "tables"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        figures = draw_figures(results, out / "figures")
        for table in all_tables:
            table.write(out / "tables")
        write_curves(results.curves, out, results.seed)
        page = render_page(results, all_tables, figures, state, command, out)
        atomic.write(out / "index.html", as_unicode(page))
    except OSError as error:
        raise ConfigError(
            f"out: {out} cannot be written ({error.strerror}); name a writable folder."
        ) from None
    conclusions = [results.conclusion(env) for env in results.envs] if results.curves else []
    page_path = str(out / "index.html")
    shown = [table for table in all_tables if table.name == "final"]
    if results.reference:
        shown += [table for table in all_tables if table.name == "pooled"]
    texts = [line for table in shown for line in (table.text(), "")]
    return [results.title, *state, "", *texts, *conclusions, page_path]
