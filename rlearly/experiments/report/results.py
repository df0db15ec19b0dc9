"""The results of a sweep: final scores, what follows from them, and a conclusion per env."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from rlearly.experiments.plan import Run
from rlearly.experiments.report import statistics
from rlearly.experiments.report.curves import Curve, group_curves
from rlearly.experiments.report.metrics_file import SUCCESS
from rlearly.experiments.report.statistics import MIN_RUNS, Estimate, pooled_iqm
from rlearly.experiments.status import Status

THRESHOLD_SHARE = 0.8
"""The default threshold, as a share of the range from the lowest return to the best arm's IQM."""
BROKEN_SHARE = 0.1


@dataclass(frozen=True)
class SweepResults:
    """The curves of a sweep and of its comparisons, and the numbers computed from them."""

    title: str
    curves: list[Curve]
    runs: list[tuple[Run, Status]] = field(default_factory=list)
    sweep: Path | None = None
    metrics: list[str] = field(default_factory=list)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    """Published final scores by env and arm."""
    bounded: frozenset[str] = frozenset()
    """Envs of dm_control, with returns between 0 and 1000."""
    reference: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Scores of random play and of a human by env; empty if scores are not human-normalised."""
    unscored: list[str] = field(default_factory=list)
    """Envs whose scores were to be human-normalised, but have no human score."""
    threshold: float | None = None
    seed: int = 0
    """Of the bootstrap."""

    @cached_property
    def envs(self) -> list[str]:
        return sorted({c.env for c in self.curves} | {run.env for run, _ in self.runs})

    @cached_property
    def arms(self) -> list[str]:
        """The sweep's own arms, then those it is compared with."""
        planned = [run.arm for run, _ in self.runs]
        return list(dict.fromkeys([*planned, *(curve.arm for curve in self.curves)]))

    @cached_property
    def members(self) -> dict[tuple[str, str], list[Curve]]:
        """Curves by (env, arm)."""
        return group_curves(self.curves)

    @cached_property
    def finished(self) -> dict[tuple[str, str], list[Curve]]:
        """Curves of finished runs by (env, arm): those with a final score."""
        return group_curves(c for c in self.curves if c.finished and c.seed is not None)

    @cached_property
    def successes(self) -> dict[tuple[str, str], list[Curve]]:
        """Curves with success rates by (env, arm)."""
        return group_curves(c for c in self.curves if SUCCESS in c.metrics)

    def final_scores(self, env: str) -> dict[str, np.ndarray]:
        """The final score of each finished run [runs], by arm."""
        return {
            arm: np.array([c.final for c in self.finished[env, arm]])
            for arm in self.arms
            if (env, arm) in self.finished
        }

    def estimate(
        self, statistic: statistics.Statistic, *groups: statistics.Tasks, runs: int | None = None
    ) -> Estimate:
        """A statistic with its interval; the same seed gives the same interval."""
        return statistics.estimate(statistic, *groups, seed=self.seed, runs=runs)

    def score_range(self, env: str) -> tuple[float, float]:
        """The returns that normalisation maps to 0 and to 1."""
        if env in self.reference:
            return self.reference[env]
        if env in self.bounded:
            return 0.0, 1000.0
        returns = np.concatenate([c.returns for c in self.curves if c.env == env])
        return float(returns.min()), float(returns.max())

    def normalise(self, env: str, scores: np.ndarray) -> np.ndarray:
        low, high = self.score_range(env)
        return (scores - low) / (high - low) if high > low else np.zeros_like(scores)

    def best_iqm(self, env: str) -> float:
        """The highest final IQM of an arm on an env."""
        return max(float(statistics.iqm(scores)) for scores in self.final_scores(env).values())

    def threshold_on(self, env: str) -> float | None:
        """The threshold of the return on an env; None if none is set and no run has finished."""
        if self.threshold is not None or not self.final_scores(env):
            return self.threshold
        low = self.score_range(env)[0]
        return low + THRESHOLD_SHARE * (self.best_iqm(env) - low)

    def frames_to_threshold(self, env: str, arm: str) -> list[int | None]:
        """Frames until each finished run first reached the threshold, None if it never did."""
        threshold = self.threshold_on(env)
        if threshold is None:
            return []
        return [
            statistics.first_reaching(c.frames, c.returns, threshold)
            for c in self.finished.get((env, arm), [])
        ]

    def published_curve(self, env: str, arm: str) -> Curve | None:
        """The published curve of an arm, which has no seeds; None if the arm has runs instead."""
        members = self.members.get((env, arm), [])
        return members[0] if members and members[0].seed is None else None

    def broken(self, env: str, arm: str) -> list[Curve]:
        """Finished runs that did not learn."""
        members = self.finished.get((env, arm), [])
        if not members:
            return []
        scores = np.array([c.final for c in members])
        worst, best = self.score_range(env)[0], self.best_iqm(env)
        flags = statistics.broken(scores, best, worst, BROKEN_SHARE)
        return [c for c, flag in zip(members, flags, strict=True) if flag]

    @cached_property
    def normalised_envs(self) -> list[str]:
        """All envs, or those with reference scores if scores are human-normalised."""
        return [env for env in self.envs if env in self.reference or not self.reference]

    def normalised_scores(self) -> dict[str, list[np.ndarray]]:
        """Normalised final scores [runs] on each env, of arms with finished runs on all of these.

        The envs are `normalised_envs`.
        """
        scores = {env: self.final_scores(env) for env in self.normalised_envs}
        return {
            arm: [self.normalise(env, scores[env][arm]) for env in scores]
            for arm in self.arms
            if scores and all(arm in own for own in scores.values())
        }

    def improvements(self) -> dict[str, tuple[Estimate, int]]:
        """Arm -> (P(better than the first arm), number of envs that it is averaged over).

        Envs where one of the two arms has too few finished runs are left out.
        """
        found = {}
        for arm in self.arms[1:]:
            pair = (arm, self.arms[0])
            every = [self.final_scores(env) for env in self.envs]
            shared = [s for s in every if all(len(s.get(a, ())) >= MIN_RUNS for a in pair)]
            if shared:
                groups = ([scores[a] for scores in shared] for a in pair)
                found[arm] = self.estimate(statistics.improvement, *groups), len(shared)
        return found

    def conclusion(self, env: str) -> str:
        """What the final scores on an env show, claiming no more than their intervals do."""
        scores = self.final_scores(env)
        if not scores:
            return f"{env}: no run has finished with an evaluation yet."
        iqms = {arm: self.estimate(pooled_iqm, [own]) for arm, own in scores.items()}
        judged = [arm for arm in iqms if iqms[arm].low is not None]
        few = [arm for arm in iqms if arm not in judged]
        best = max(judged or few, key=lambda arm: float(iqms[arm].value))
        below = [arm for arm in judged if iqms[arm].high < iqms[best].low]
        level = [arm for arm in judged if arm not in (*below, best)]
        score = iqms[best].text()
        rest = f" Too few seeds (under {MIN_RUNS}) to judge {listed(few)}." if few else ""
        if few == [best] == list(iqms):
            count = len(scores[best])
            seeds = "one seed" if count == 1 else f"mean of {count} seeds"
            text = f"{best} reaches {score} ({seeds})"
            rest = f"; an interval needs at least {MIN_RUNS} finished seeds."
        elif not judged:
            text = "no clear difference can be shown."
        elif judged == [best]:
            text = f"{best} reaches {score}; there is no other arm to compare it with."
        elif not below:
            text = (
                f"no clear difference. {best} has the highest final IQM, {score}, but its interval "
                f"overlaps with that of {listed(level)}."
            )
        else:
            others = "every other arm" if len(below) > 1 and not level else listed(below)
            unclear = f"; no clear difference from {listed(level)}" if level else ""
            text = f"{best} scores highest, {score}, clearly above {others}{unclear}."
        return f"{env}: {text}{rest}"


def listed(names: Sequence[str]) -> str:
    """`A`, `A and B` or `A, B and C`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
