"""What the runs of a sweep say: numbers, tables of them, and a sentence an env."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from rlearly.experiments.plan import Run
from rlearly.experiments.report import statistics
from rlearly.experiments.report.curves import Curve, at_last, groups
from rlearly.experiments.report.metrics_file import SUCCESS
from rlearly.experiments.status import Status
from rlearly.training.display import duration

SHARE_OF_BEST = 0.8
"""Of the way from the lowest return to the best arm's IQM: the threshold if none is named."""
BROKEN_SHARE = 0.1
FEW_NOTE = f"Under {statistics.FEW} finished seeds have no interval."


@dataclass(frozen=True)
class Table:
    """A table as its cells' texts."""

    name: str
    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]

    def write(self, folder: Path) -> None:
        """NAME.csv and NAME.tex."""
        with (folder / f"{self.name}.csv").open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([self.columns, *self.rows])
        (folder / f"{self.name}.tex").write_text(self.latex())

    def latex(self) -> str:
        """A booktabs tabular."""
        lines = [f"% {self.title}; \\usepackage{{booktabs}}"]
        lines += [f"\\begin{{tabular}}{{{'l' * len(self.columns)}}}", "\\toprule"]
        for at, row in enumerate([self.columns, *self.rows]):
            lines.append(" & ".join(map(_latex, row)) + " \\\\")
            if at == 0:
                lines.append("\\midrule")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])

    def text(self) -> str:
        """Aligned columns."""
        every = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in every) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in every
        )


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)


@dataclass(frozen=True)
class SweepResults:
    """The curves of a sweep and of what it is compared with, and what follows from them."""

    title: str
    curves: list[Curve]
    runs: list[tuple[Run, Status]] = field(default_factory=list)
    sweep: Path | None = None
    metrics: list[str] = field(default_factory=list)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    bounded: frozenset[str] = frozenset()
    """Envs of dm_control, whose returns lie between 0 and 1000."""
    threshold: float | None = None
    seed: int = 0

    @property
    def folders(self) -> list[tuple[Path, Run, Status]]:
        """The sweep's runs with their directories."""
        return [(self.sweep / run.name, run, s) for run, s in self.runs] if self.sweep else []

    @cached_property
    def envs(self) -> list[str]:
        return sorted({c.env for c in self.curves} | {run.env for run, _ in self.runs})

    @cached_property
    def arms(self) -> list[str]:
        """The sweep's own, then the others."""
        planned = [run.arm for run, _ in self.runs]
        return list(dict.fromkeys([*planned, *(curve.arm for curve in self.curves)]))

    @cached_property
    def members(self) -> dict[tuple[str, str], list[Curve]]:
        """By (env, arm)."""
        return groups(self.curves)

    @cached_property
    def finished(self) -> dict[tuple[str, str], list[Curve]]:
        """By (env, arm), those whose final numbers count."""
        return groups([c for c in self.curves if c.finished and c.seed is not None])

    def finals(self, env: str) -> dict[str, np.ndarray]:
        """The final score of each finished run [runs], by arm."""
        return {
            arm: np.array([c.final for c in self.finished[env, arm]])
            for arm in self.arms
            if (env, arm) in self.finished
        }

    def estimate(
        self, statistic: statistics.Statistic, *groups: statistics.Tasks
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A statistic with the ends of its interval; the same seed gives the same ends."""
        random = np.random.default_rng(self.seed)
        return statistic(*groups), *statistics.interval(statistic, *groups, random=random)

    def range(self, env: str) -> tuple[float, float]:
        """What counts as 0 and 1 of an env once its scores are normalised."""
        if env in self.bounded:
            return 0.0, 1000.0
        seen = [c.returns for c in self.curves if c.env == env]
        return (float(np.min([s.min() for s in seen])), float(np.max([s.max() for s in seen])))

    def normalised(self, env: str, scores: np.ndarray) -> np.ndarray:
        low, high = self.range(env)
        return (scores - low) / (high - low) if high > low else np.zeros_like(scores)

    def best(self, env: str) -> float:
        """The highest IQM of an arm's finished runs."""
        return max(float(statistics.iqm(scores)) for scores in self.finals(env).values())

    def goal(self, env: str) -> float | None:
        """The return that counts as reached; None if nothing says."""
        if self.threshold is not None or not self.finals(env):
            return self.threshold
        low = self.range(env)[0]
        return low + SHARE_OF_BEST * (self.best(env) - low)

    def published_curve(self, env: str, arm: str) -> Curve | None:
        """The one line of an arm that has no seeds."""
        members = self.members.get((env, arm), [])
        return members[0] if members and members[0].seed is None else None

    def reached(self, env: str, arm: str) -> list[int | None]:
        """The frames at which each finished run was first at the goal."""
        goal = self.goal(env)
        members = self.finished.get((env, arm), [])
        if goal is None:
            return []
        return [statistics.first_reaching(c.frames, c.returns, goal) for c in members]

    def broken(self, env: str, arm: str) -> list[Curve]:
        """Finished runs that did not learn."""
        members = self.finished.get((env, arm), [])
        scores = np.array([c.final for c in members])
        if not members:
            return []
        flags = statistics.broken(scores, self.best(env), self.range(env)[0], BROKEN_SHARE)
        return [c for c, flag in zip(members, flags, strict=True) if flag]

    def pooled(self) -> dict[str, list[np.ndarray]]:
        """Normalised final scores [runs] of each env, of the arms that have finished runs on
        all."""
        finals = {env: self.finals(env) for env in self.envs}
        return {
            arm: [self.normalised(env, finals[env][arm]) for env in self.envs]
            for arm in self.arms
            if self.envs and all(arm in finals[env] for env in self.envs)
        }

    def improvements(self) -> dict[str, tuple[float, float, float, int]]:
        """P(better than the first arm) with its interval and the number of envs, by arm.

        Envs where one of the two has few finished runs say nothing and are left out.
        """
        found = {}
        for arm in self.arms[1:]:
            pairs = [
                (finals[arm], finals[self.arms[0]])
                for finals in map(self.finals, self.envs)
                if all(len(finals.get(a, ())) >= statistics.FEW for a in (arm, self.arms[0]))
            ]
            if pairs:
                ours, theirs = ([pair[i] for pair in pairs] for i in (0, 1))
                ends = self.estimate(statistics.improvement, ours, theirs)
                found[arm] = (*map(float, ends), len(pairs))
        return found

    def sentence(self, env: str) -> str:
        """What may be said of the final scores on an env, and no more."""
        finals = self.finals(env)
        if not finals:
            return f"{env}: no run has finished with an evaluation, so nothing can be said yet."
        told = {
            arm: self.estimate(statistics.pooled_iqm, [scores])
            for arm, scores in finals.items()
            if len(scores) >= statistics.FEW
        }
        few = [arm for arm in finals if arm not in told]
        rest = ""
        if few:
            rest = f" Too few finished seeds (under {statistics.FEW}) to judge {_listed(few)}."
        if not told and len(finals) == 1:
            ((arm, scores),) = finals.items()
            seeds = "one seed" if len(scores) == 1 else f"mean of {len(scores)} seeds"
            return (
                f"{env}: {arm} ends at {float(statistics.iqm(scores)):.4g} ({seeds}); under "
                f"{statistics.FEW} finished seeds have no interval."
            )
        if not told:
            return f"{env}: no clear difference can be told.{rest}"
        best = max(told, key=lambda arm: float(told[arm][0]))
        said = _with_interval(*told[best])
        if len(told) == 1:
            return f"{env}: {best} ends at {said}; there is nothing to compare it with.{rest}"
        below = [arm for arm in told if float(told[arm][2]) < float(told[best][1])]
        level = [arm for arm in told if arm not in below and arm != best]
        if not below:
            who = f"the interval of {level[0]}" if len(level) == 1 else "every other arm's interval"
            return (
                f"{env}: no clear difference. {best} has the highest final IQM, {said}, but {who} "
                f"overlaps with its.{rest}"
            )
        others = "every other arm" if len(below) > 1 and not level else _listed(below)
        text = f"{env}: {best} ends highest, at {said}, clearly above {others}"
        text += f"; no clear difference from {_listed(level)}." if level else "."
        return text + rest

    def tables(self) -> list[Table]:
        """Unnormalised ones first, then those over all envs."""
        found = [self._finals(), self._efficiency()]
        if self.successes:
            found.insert(1, self._success())
        if len(self.envs) > 1 and self.pooled():
            found.append(self._pooled())
        if self.improvements():
            found.append(self._improvement())
        if any(status.seconds for _, status in self.runs):
            found.append(self._cost())
        return found

    def _finals(self) -> Table:
        rows = []
        paper = any(self.published.get(env) for env in self.envs)
        for env in self.envs:
            finals = self.finals(env)
            printed = self.published.get(env, {})
            planned = {run.arm for run, _ in self.runs if run.env == env}
            seen = {arm for where, arm in self.members if where == env}
            for arm in dict.fromkeys([*self.arms, *printed]):
                if arm not in planned | seen | set(printed):
                    continue
                number = f"{printed[arm]:g}" if arm in printed else ""
                row = [env, arm, *self._of_arm(env, arm, finals.get(arm))]
                rows.append([*row, number] if paper else row)
        columns = ["env", "arm", "finished", "final IQM [95 %]", "mean while learning [95 %]"]
        others = any(self.published_curve(env, arm) for env in self.envs for arm in self.arms)
        columns += ["worst", "best", "broken", *(["published"] if paper else [])]
        note = (
            "Returns as the env gives them. Final is the mean of a run's last three evaluations, "
            "of finished runs only; the mean while learning is the area under a run's curve over "
            f"its length. Broken: a finished run whose final score lies in the lowest "
            f"{BROKEN_SHARE:.0%} of the way from the lowest return seen on that env (0 for "
            f"dm_control) to the best arm's IQM. {FEW_NOTE}"
        )
        if others:
            note += (
                " Of a published curve its last value stands here, at the frames where it ends, be "
                "that before the runs do: it is a mean over seeds already."
            )
        return Table("final", "Final scores in numbers", note, columns, rows)

    @cached_property
    def successes(self) -> dict[tuple[str, str], list[Curve]]:
        """By (env, arm), the curves whose evaluations tell of success."""
        return groups([c for c in self.curves if SUCCESS in c.metrics])

    def _success(self) -> Table:
        rows = []
        for (env, arm), members in self.successes.items():
            done = [c.metrics[SUCCESS][1] for c in members if c.finished]
            finals = np.array([at_last(rates) for rates in done])
            best = max(float(c.metrics[SUCCESS][1].max()) for c in members)
            final = self._iqm(finals) if len(finals) else ""
            each = " ".join(f"{rate:.2g}" for rate in finals)
            count = f"{len(finals)} of {len(members)}"
            rows.append([env, arm, count, final, each, f"{best:.2g}"])
        note = (
            "The share of evaluation episodes that reached the task's goal. Final is the mean of a "
            "run's last three evaluations, of finished runs only; the best is that of any "
            f"evaluation. {FEW_NOTE}"
        )
        columns = ["env", "arm", "finished", "final IQM [95 %]", "each seed", "best evaluation"]
        return Table("success", "Success rates in numbers", note, columns, rows)

    def _of_arm(self, env: str, arm: str, scores: np.ndarray | None) -> list[str]:
        curve = self.published_curve(env, arm)
        if curve is not None:
            return ["a curve", f"{curve.returns[-1]:.4g} at {curve.frames[-1]:,} frames", *[""] * 4]
        members = [c for c in self.members.get((env, arm), []) if c.seed is not None]
        planned = sum((run.env, run.arm) == (env, arm) for run, _ in self.runs)
        done = 0 if scores is None else len(scores)
        count = f"{done} of {planned or len(members)}" if planned or members else ""
        if scores is None:
            return [count, *([""] * 5)]
        areas = np.array([c.area for c in self.finished[env, arm]])
        both = [self._iqm(values) for values in (scores, areas)]
        ends = [f"{scores.min():.4g}", f"{scores.max():.4g}"]
        return [count, *both, *ends, str(len(self.broken(env, arm)))]

    def _iqm(self, scores: np.ndarray) -> str:
        if len(scores) == 1:
            return f"{scores[0]:.4g} [one seed]"
        if len(scores) < statistics.FEW:
            span = f"{scores.min():.4g} to {scores.max():.4g}"
            return f"{statistics.iqm(scores):.4g} [{len(scores)} seeds: {span}]"
        return _with_interval(*self.estimate(statistics.pooled_iqm, [scores]))

    def _efficiency(self) -> Table:
        rows = []
        for env in self.envs:
            goal = self.goal(env)
            for arm in self.arms:
                reached = self.reached(env, arm)
                curve = self.published_curve(env, arm)
                if goal is not None and curve is not None:
                    at = statistics.first_reaching(curve.frames, curve.returns, goal)
                    shown = f"not reached in {curve.frames[-1]:,}" if at is None else f"{at:,}"
                    rows.append([env, arm, f"{goal:.4g}", "a curve", shown])
                if goal is None or not reached:
                    continue
                middle = statistics.median_reaching(reached)
                count = sum(frames is not None for frames in reached)
                shown = "not reached" if middle is None else f"{middle:,.0f}"
                rows.append([env, arm, f"{goal:.4g}", f"{count} of {len(reached)}", shown])
        how = self.threshold_rule()
        note = (
            f"Simulator frames to the first evaluation at the threshold, {how}; the median over "
            "finished runs, in which a run that never was there counts as later than all others."
        )
        columns = ["env", "arm", "threshold", "reached it", "median frames"]
        return Table("efficiency", "Sample efficiency", note, columns, rows)

    def threshold_rule(self) -> str:
        """Where the return that counts as reached comes from."""
        if self.threshold is not None:
            return "as asked for"
        return (
            f"{SHARE_OF_BEST:.0%} of the way from the lowest return of any evaluation on that env "
            "(0 for dm_control) to the final IQM of its best arm"
        )

    def enough(self, scores: statistics.Tasks) -> bool:
        """Whether an interval of these runs is worth its name."""
        return all(len(of_env) >= statistics.FEW for of_env in scores)

    def _pooled(self) -> Table:
        rows = []
        for arm, scores in self.pooled().items():
            measures = (
                statistics.pooled_iqm,
                statistics.mean,
                statistics.median,
                statistics.optimality_gap,
            )
            cells = [
                _with_interval(*self.estimate(m, scores), digits=3)
                if self.enough(scores)
                else f"{m(scores):.3g} [under {statistics.FEW} seeds]"
                for m in measures
            ]
            rows.append([arm, str(sum(map(len, scores))), *cells])
        left_out = [arm for arm in self.arms if arm not in self.pooled()]
        note = f"Final scores of finished runs, all envs together. {self.scaling()} "
        note += "The IQM pools all runs, the median is of the envs' means, the optimality gap is "
        note += "what is missing to 1."
        if left_out:
            note += f" Not in it, since without a finished run on some env: {_listed(left_out)}."
        columns = ["arm", "runs", "IQM [95 %]", "mean [95 %]", "median [95 %]", "gap [95 %]"]
        return Table("pooled", "All envs together", note, columns, rows)

    def scaling(self) -> str:
        """How the scores of different envs were made comparable."""
        parts = []
        bounded = [env for env in self.envs if env in self.bounded]
        other = [env for env in self.envs if env not in self.bounded]
        if bounded:
            parts.append(f"return / 1000 on {_listed(bounded)}")
        if other:
            parts.append(
                "from the lowest return of any evaluation (0) to the highest (1) on "
                + _listed(other)
            )
        return f"Normalised env by env: {'; '.join(parts)}."

    def _improvement(self) -> Table:
        rows = [
            [arm, _with_interval(*ends, digits=2), str(envs)]
            for arm, (*ends, envs) in self.improvements().items()
        ]
        note = (
            f"The chance that a run of the arm ends above a run of {self.arms[0]} on the same env, "
            "a tie counted as half, in the mean over the envs where both have at least "
            f"{statistics.FEW} finished runs. 0.5 is no difference."
        )
        columns = ["arm", f"P(above {self.arms[0]}) [95 %]", "envs"]
        return Table("improvement", "Probability of improvement in numbers", note, columns, rows)

    def _cost(self) -> Table:
        rows = []
        for arm in self.arms:
            spent = [s.seconds for run, s in self.runs if run.arm == arm and s.seconds]
            done = [s.seconds for run, s in self.runs if run.arm == arm and s.state == "done"]
            if spent:
                middle = duration(float(np.median(done))) if any(done) else ""
                rows.append([arm, str(len(spent)), middle, duration(sum(spent))])
        note = "Wall-clock time of all tries of a run, beside whatever else its machine was doing."
        columns = ["arm", "runs begun", "a finished run, median", "all runs together"]
        return Table("cost", "Run time in numbers", note, columns, rows)


def _with_interval(
    middle: np.ndarray | float, low: np.ndarray | float, high: np.ndarray | float, digits: int = 4
) -> str:
    return f"{middle:.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
