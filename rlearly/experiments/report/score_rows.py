"""Normalised scores of each arm, on one env or over several, with published runs and means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlearly.experiments.report import statistics
from rlearly.experiments.report.results import SweepResults
from rlearly.experiments.report.statistics import MIN_RUNS, Estimate, Statistic, pooled_iqm

STATISTICS: dict[str, Statistic] = {
    "IQM": pooled_iqm,
    "mean": statistics.mean,
    "median": statistics.median,
    "gap": statistics.optimality_gap,
}
OF_MEANS = ("mean", "median")
"""Statistics that per-env means determine."""


@dataclass(frozen=True)
class ScoreRow:
    """Estimates of an arm's normalised scores by the name of the statistic.

    `label` is the arm's name, and which runs it covers, if not all. `runs` is the number of runs;
    "means" stands for published means.
    """

    arm: str
    label: str
    runs: str
    estimates: dict[str, Estimate]


def score_rows(
    results: SweepResults, envs: Sequence[str], measures: Mapping[str, Statistic]
) -> list[ScoreRow]:
    """The rows of all arms with scores on all of these envs, in the order of the arms.

    An arm from elsewhere with more runs than the sweep's own arms has a second row, resampled to as
    many runs as those. A published mean has neither an interval nor the statistics of single runs.
    """
    scores = {env: results.final_scores(env) for env in envs}
    own = {run.arm for run, _ in results.runs}
    seeds = max((len(of[arm]) for of in scores.values() for arm in own & of.keys()), default=0)
    rows: list[ScoreRow] = []
    for arm in results.arms:
        if all(arm in of for of in scores.values()):
            runs = [results.normalise(env, scores[env][arm]) for env in envs]
            every = {name: results.estimate(measure, runs) for name, measure in measures.items()}
            rows.append(ScoreRow(arm, arm, str(sum(map(len, runs))), every))
            if arm not in own and MIN_RUNS <= seeds < min(map(len, runs)):
                few = {
                    name: results.estimate(measure, runs, runs=seeds)
                    for name, measure in measures.items()
                }
                label = f"any {seeds} of {arm}"
                rows.append(ScoreRow(arm, label, str(seeds * len(envs)), few))
        for label, means in _published_means(results, arm, envs).items():
            tasks = [results.normalise(env, np.array([means[env]])) for env in envs]
            single = {
                name: Estimate(measure(tasks))
                for name, measure in measures.items()
                if name in OF_MEANS
            }
            rows.append(ScoreRow(arm, label, "means", single))
    return rows


def pooled_rows(results: SweepResults) -> list[ScoreRow]:
    """The rows over all envs with normalised scores; none for a single env."""
    envs = results.normalised_envs
    return score_rows(results, envs, STATISTICS) if len(envs) > 1 else []


def _published_means(
    results: SweepResults, arm: str, envs: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The published means of an arm by label and env, if there is one for each env.

    They come from the study, or are the last values of published curves. Only human-normalised
    scores have them: elsewhere, a curve may end long before the runs do.
    """
    if not results.reference:
        return {}
    curves = {env: results.published_curve(env, arm) for env in envs}
    ends = {env: float(curve.returns[-1]) for env, curve in curves.items() if curve}
    numbers = {env: results.published.get(env, {}) for env in envs}
    printed = {env: own[arm] for env, own in numbers.items() if arm in own}
    found = {arm: ends, f"{arm} (published)": printed}
    return {label: means for label, means in found.items() if len(means) == len(envs)}
