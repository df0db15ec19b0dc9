"""A sweep's directory, finished or not, read and written down as a folder with a page in it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly.core.errors import ConfigError
from rlearly.experiments.job import Job
from rlearly.experiments.plan import Plan
from rlearly.experiments.report import curves, figures
from rlearly.experiments.report.curves import Curve, read_csv, read_run
from rlearly.experiments.report.page import page, state_of
from rlearly.experiments.report.results import SweepResults
from rlearly.experiments.status import status_of

NO_EVALUATION = (
    "No run has an evaluation yet, so no return can be reported: none was reached, or "
    "eval_every_frames is 0."
)


def load(
    sweep: Path,
    compare: Sequence[Path] = (),
    threshold: float | None = None,
    bootstrap_seed: int = 0,
) -> SweepResults:
    """What is known of a sweep, beside the curves of others under their own labels.

    Raises:
        ConfigError: it is not a sweep's directory, or what it is compared with cannot be read.
    """
    plan = Plan.load(sweep)
    curves = _curves(plan, sweep)
    envs = {run.env for run in plan.runs}
    taken = {""}
    bounded = _bounded(plan, sweep)
    for other in compare:
        label = _label(other, taken)
        taken.add(label)
        if other.is_dir():
            theirs = Plan.load(other)
            read = _curves(theirs, other)
            bounded |= _bounded(theirs, other) & envs
        else:
            read = read_csv(other)
        shared = [replace(c, arm=f"{c.arm} ({label})") for c in read if c.env in envs]
        if not shared:
            raise ConfigError(
                f"compare: expected curves on {', '.join(sorted(envs))}, received {other} with "
                f"{', '.join(sorted({c.env for c in read})) or 'no evaluations'}; leave it out."
            )
        curves += shared
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
        threshold=threshold,
        seed=bootstrap_seed,
    )


def _curves(plan: Plan, sweep: Path) -> list[Curve]:
    found = [read_run(sweep / run.name, run, plan.metrics) for run in plan.runs]
    return [curve for curve in found if curve is not None]


def _label(path: Path, taken: set[str]) -> str:
    """A short name that no other has: a folder's, or a file's, unless that says nothing."""
    path = path.absolute()
    short = path.parent.name if path.name in ("curves.csv", "table.csv") else path.stem
    if path.is_dir():
        short = path.name
    return str(path) if short in taken else short


def _bounded(plan: Plan, sweep: Path) -> set[str]:
    """The envs whose runs say that they are dm_control's."""
    found: set[str] = set()
    for run in plan.runs:
        if run.env not in found:
            with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException, AttributeError):
                config: Any = OmegaConf.load(sweep / run.name / "config.yaml")
                if config.env.family in ("dm_control", "control"):
                    found.add(run.env)
    return found


def write(found: SweepResults, out: Path, command: str) -> list[str]:
    """Write the report's folder, and return what a terminal should show of it.

    Raises:
        ConfigError: the folder cannot be written.
    """
    state = state_of(found.runs)
    if not found.curves:
        state.append(NO_EVALUATION)
    tables = found.tables()
    try:
        for folder in ("figures", "tables"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        drawn = figures.draw(found, out / "figures")
        for table in tables:
            table.write(out / "tables")
        curves.write(found.curves, out, found.seed)
        text = page(found, tables, drawn, state, command, out)
        (out / "index.html").write_text(text)
    except OSError as error:
        raise ConfigError(
            f"out: {out} cannot be written ({error.strerror}); name a folder that can."
        ) from None
    sentences = [found.sentence(env) for env in found.envs] if found.curves else []
    return [found.title, *state, "", tables[0].text(), "", *sentences]
