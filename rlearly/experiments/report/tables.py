"""The tables of a sweep's report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlearly.experiments.report import statistics
from rlearly.experiments.report.curves import Curve, mean_of_last, write_csv
from rlearly.experiments.report.metrics_file import SUCCESS
from rlearly.experiments.report.results import SweepResults
from rlearly.experiments.report.score_rows import STATISTICS, pooled_rows, score_rows
from rlearly.experiments.report.statistics import MIN_RUNS, Estimate, pooled_iqm, rounded
from rlearly.system.atomic import write
from rlearly.system.output import as_unicode
from rlearly.training.display import duration


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]

    def write(self, folder: Path) -> None:
        """Write NAME.csv and NAME.tex."""
        write_csv(folder / f"{self.name}.csv", self.columns, self.rows)
        write(folder / f"{self.name}.tex", as_unicode(self.latex()))

    def latex(self) -> str:
        """The table as a booktabs tabular."""
        head, *body = (" & ".join(map(_latex, row)) + " \\\\" for row in [self.columns, *self.rows])
        lines = [
            f"% {self.title}; \\usepackage{{booktabs}}",
            f"\\begin{{tabular}}{{{'l' * len(self.columns)}}}",
            *("\\toprule", head, "\\midrule", *body, "\\bottomrule"),
        ]
        return "\n".join([*lines, "\\end{tabular}", ""])

    def text(self) -> str:
        """The table as aligned columns."""
        every = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*every, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in every
        )


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)


def tables(results: SweepResults) -> list[Table]:
    """The table of final scores, and all others that have rows."""
    first, *others = (
        make(results) for make in (final, games, success, efficiency, pooled, improvement, cost)
    )
    return [first, *(table for table in others if table.rows)]


def final(results: SweepResults) -> Table:
    """Final scores, areas and broken runs of each arm on each env."""
    rows = []
    paper = any(results.published.get(env) for env in results.envs)
    for env in results.envs:
        printed = results.published.get(env, {})
        planned = {run.arm for run, _ in results.runs if run.env == env}
        seen = {arm for where, arm in results.members if where == env}
        for arm in dict.fromkeys([*results.arms, *printed]):
            if arm in planned | seen | set(printed):
                number = [f"{printed[arm]:g}" if arm in printed else ""] if paper else []
                rows.append([env, arm, *_scores_of(results, env, arm), *number])
    columns = ["env", "arm", "finished", "final IQM [95 %]", "mean while learning [95 %]"]
    columns += ["worst", "best", "broken", *(["published"] if paper else [])]
    return Table("final", "Final scores in numbers", columns, rows)


def _scores_of(results: SweepResults, env: str, arm: str) -> list[str]:
    """The cells from `finished` to `broken`."""
    curve = results.published_curve(env, arm)
    if curve is not None:
        return [
            _kind(curve),
            f"{rounded(curve.returns[-1])} at {curve.frames[-1]:,} frames",
            *[""] * 4,
        ]
    begun = len(results.members.get((env, arm), []))
    total = sum((run.env, run.arm) == (env, arm) for run, _ in results.runs) or begun
    done = results.finished.get((env, arm), [])
    count = f"{len(done)} of {total}" if total else ""
    if not done:
        return [count, *[""] * 5]
    scores, areas = np.array([(c.final, c.area) for c in done]).T
    learning = any(len(curve.frames) > 1 for curve in done)
    means = [_iqm(results, scores), _iqm(results, areas) if learning else ""]
    ends = [rounded(scores.min()), rounded(scores.max())]
    return [count, *means, *ends, str(len(results.broken(env, arm)))]


def _kind(published: Curve) -> str:
    return "a curve" if len(published.frames) > 1 else "a mean"


def _iqm(results: SweepResults, scores: np.ndarray) -> str:
    """The IQM with its interval, or, for too few seeds, with their number and range."""
    text = results.estimate(pooled_iqm, [scores]).text()
    if len(scores) >= MIN_RUNS:
        return text
    if len(scores) == 1:
        return f"{text} [one seed]"
    return f"{text} [{len(scores)} seeds: {rounded(scores.min())} to {rounded(scores.max())}]"


def games(results: SweepResults) -> Table:
    """Mean scores of each arm on each game, as the game gives them and human-normalised."""
    rows = []
    for env in results.normalised_envs if results.reference else []:
        low, high = results.score_range(env)
        for row in score_rows(results, [env], {"mean": statistics.mean}):
            normalised = row.estimates["mean"]
            raw = Estimate(*(v if v is None else low + v * (high - low) for v in normalised))
            rows.append([env, row.label, row.runs, raw.text(), normalised.text(3)])
    columns = ["game", "arm", "runs", "mean score [95 %]", "human-normalised [95 %]"]
    return Table("games", "Mean scores per game", columns, rows)


def success(results: SweepResults) -> Table:
    """Success rates of each arm on each env that reports them."""
    rows = []
    for (env, arm), members in results.successes.items():
        rates = [c.metrics[SUCCESS][1] for c in members]
        ends = np.array([mean_of_last(c.metrics[SUCCESS][1]) for c in members if c.finished])
        iqm = _iqm(results, ends) if len(ends) else ""
        each = " ".join(f"{rate:.2g}" for rate in ends)
        best = f"{max(float(own.max()) for own in rates):.2g}"
        rows.append([env, arm, f"{len(ends)} of {len(members)}", iqm, each, best])
    columns = ["env", "arm", "finished", "final IQM [95 %]", "each seed", "best evaluation"]
    return Table("success", "Success rates in numbers", columns, rows)


def efficiency(results: SweepResults) -> Table:
    """Frames until each arm reached the threshold on each env."""
    rows = []
    for env in results.envs:
        threshold = results.threshold_on(env)
        if threshold is None:
            continue
        for arm in results.arms:
            curve = results.published_curve(env, arm)
            reached = results.frames_to_threshold(env, arm)
            if curve is not None:
                at = statistics.first_reaching(curve.frames, curve.returns, threshold)
                frames = f"not reached in {curve.frames[-1]:,}" if at is None else f"{at:,}"
                rows.append([env, arm, rounded(threshold), _kind(curve), frames])
            elif reached:
                middle = statistics.median_reaching(reached)
                frames = "not reached" if middle is None else f"{middle:,.0f}"
                count = f"{sum(at is not None for at in reached)} of {len(reached)}"
                rows.append([env, arm, rounded(threshold), count, frames])
    columns = ["env", "arm", "threshold", "reached it", "median frames"]
    return Table("efficiency", "Sample efficiency", columns, rows)


def pooled(results: SweepResults) -> Table:
    """Normalised final scores over all envs."""
    rows = []
    for row in pooled_rows(results):
        texts = {name: estimate.text(3) for name, estimate in row.estimates.items()}
        if row.runs != "means" and row.estimates["IQM"].low is None:
            texts = {name: f"{text} [under {MIN_RUNS} seeds]" for name, text in texts.items()}
        rows.append([row.label, row.runs, *(texts.get(name, "") for name in STATISTICS)])
    columns = ["arm", "runs", *(f"{name} [95 %]" for name in STATISTICS)]
    title = "Human-normalised scores" if results.reference else "All envs together"
    return Table("pooled", title, columns, rows)


def improvement(results: SweepResults) -> Table:
    """P(better than the first arm)."""
    rows = [
        [arm, chance.text(2), str(envs)] for arm, (chance, envs) in results.improvements().items()
    ]
    columns = ["arm", f"P(above {''.join(results.arms[:1])}) [95 %]", "envs"]
    return Table("improvement", "Probability of improvement in numbers", columns, rows)


def cost(results: SweepResults) -> Table:
    """Run times of each arm."""
    rows = []
    for arm in results.arms:
        runs = [status for run, status in results.runs if run.arm == arm and status.seconds]
        done = [status.seconds for status in runs if status.state == "done"]
        if runs:
            median = duration(float(np.median(done))) if done else ""
            rows.append([arm, str(len(runs)), median, duration(sum(s.seconds for s in runs))])
    columns = ["arm", "runs begun", "a finished run, median", "all runs together"]
    return Table("cost", "Run time in numbers", columns, rows)
