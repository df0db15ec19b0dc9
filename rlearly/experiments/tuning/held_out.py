"""Compare the best trial with the defaults, on seeds that no trial used.

The best of many trials was partly lucky: its score on the seeds of the search is too high. Its
score on other seeds is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlearly.experiments.plan import Run
from rlearly.experiments.report import statistics
from rlearly.experiments.report.curves import Curve, mean_of_last, read_run
from rlearly.experiments.report.statistics import MIN_RUNS, Estimate, Tasks, estimate, pooled_iqm
from rlearly.experiments.tuning.request import Request
from rlearly.experiments.tuning.trials import Trials

FEW_SEEDS = 5
"""With fewer, bootstrap intervals are too narrow."""


@dataclass(frozen=True)
class Sample:
    """The runs of some settings on the held-out seeds.

    scores: [runs], final scores; a failed run has the lowest return of any evaluation of all these
        runs, of both samples.
    failed: how many of them failed.
    """

    name: str
    scores: np.ndarray
    curves: list[Curve]
    failed: int = 0

    @property
    def iqm(self) -> Estimate:
        return estimate(pooled_iqm, [self.scores], seed=0)


@dataclass(frozen=True)
class HeldOut:
    """The held-out runs of the best trial, None if that is the defaults, and of the defaults."""

    best: Sample | None
    defaults: Sample

    @property
    def samples(self) -> list[Sample]:
        return [sample for sample in (self.best, self.defaults) if sample]

    @property
    def difference(self) -> Estimate | None:
        """By how much the IQM of the best trial is above that of the defaults."""
        if not self.best:
            return None
        return estimate(_iqm_difference, [self.best.scores], [self.defaults.scores], seed=0)

    @property
    def improvement(self) -> Estimate | None:
        """The probability that a run of the best trial scores higher than one of the defaults."""
        if not self.best:
            return None
        pair = [self.best.scores], [self.defaults.scores]
        return estimate(statistics.improvement, *pair, seed=0)

    def conclusion(self) -> str:
        """What the runs show, claiming no more than their interval does."""
        count = len(self.defaults.scores)
        seeds = f"on {count} held-out seeds" if count > 1 else "on one held-out seed"
        if not self.best or not self.difference:
            return (
                "No trial scored higher than the defaults, which reach "
                f"{self.defaults.iqm.text()} {seeds}."
            )
        name, gap = self.best.name, self.difference
        reached = f"{name} reaches {self.best.iqm.text()}, the defaults {self.defaults.iqm.text()}"
        if gap.low is None:
            return (
                f"Not enough held-out seeds to conclude anything: {reached} {seeds}; an interval "
                f"needs at least {MIN_RUNS}."
            )
        if gap.low > 0:
            text = f"{name} scores higher than the defaults {seeds}, by {gap.text()}: {reached}."
        elif gap.high < 0:
            text = f"{name} scores lower than the defaults {seeds}, by {gap.text()}: {reached}."
        else:
            text = (
                f"No clear difference between {name} and the defaults {seeds}: {reached}, and the "
                f"interval of the difference, {gap.text()}, contains 0."
            )
        few = f" With fewer than {FEW_SEEDS} seeds, intervals are too narrow."
        return text + (few if count < FEW_SEEDS else "")


def _iqm_difference(ours: Tasks, theirs: Tasks) -> np.ndarray:
    """IQM of ours minus IQM of theirs, [runs, ...] each -> [...]."""
    return pooled_iqm(ours) - pooled_iqm(theirs)


def held_out_results(request: Request, folder: Path, trials: Trials) -> HeldOut | None:
    """The held-out runs in a search's directory; None if some have not ended, or there are none."""
    best = trials.best()
    if best is None or not request.held_out_seeds:
        return None
    groups = {"defaults": request.default_runs()}
    if not best.defaults:
        groups = {best.name: request.held_out_runs(best)} | groups
    curves = {
        run.name: read_run(folder / run.name, run) for runs in groups.values() for run in runs
    }
    known = [curve for curve in curves.values() if curve]
    for name, curve in curves.items():
        if name not in trials.failures and not (curve and curve.finished):
            return None
    lowest = min((float(curve.returns.min()) for curve in known), default=0.0)
    samples = [
        _sample(request, name, runs, trials, lowest, curves) for name, runs in groups.items()
    ]
    return HeldOut(None if best.defaults else samples[0], samples[-1])


def _sample(
    request: Request,
    name: str,
    runs: Sequence[Run],
    trials: Trials,
    lowest: float,
    curves: dict[str, Curve | None],
) -> Sample:
    scores, count = [], request.config.last_evaluations
    for run in runs:
        curve = curves[run.name]
        if curve is None or run.name in trials.failures:
            scores.append(lowest)
        else:
            scores.append(mean_of_last(curve.returns, count))
    known = [curve for run in runs if (curve := curves[run.name])]
    failed = sum(run.name in trials.failures for run in runs)
    return Sample(name, np.array(scores), known, failed)
