"""The state of a search in words, for its command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rlearly.experiments.job import Record
from rlearly.experiments.plan import Run, finished
from rlearly.experiments.report.statistics import rounded
from rlearly.experiments.report.tables import Table
from rlearly.experiments.tuning.request import Request
from rlearly.experiments.tuning.trials import COMPLETE, PRUNED, RUNNING, Trial, Trials
from rlearly.training.display import duration


def outlook(request: Request, folder: Path, trials: Trials, workers: int) -> str:
    """One line: the trials in each state, the best so far, and the time left."""
    counts = Counter(trial.state for trial in trials)
    parts = [f"{counts[state]} {state}" for state in (COMPLETE, PRUNED, RUNNING) if counts[state]]
    total = max(request.config.trials, len(trials))
    text = f"{len(trials) - counts[RUNNING]} of {total} trials have ended ({', '.join(parts)})"
    best = trials.best()
    if best:
        text += f"; best: {best.name}, {rounded(best.value or 0.0)}"
    left = seconds_left(request, folder, trials, workers)
    return text + (f"; about {duration(left)} left" if left else "")


def seconds_left(request: Request, folder: Path, trials: Trials, workers: int) -> float | None:
    """Time left, estimated from the trials so far; None if there are none.

    Held-out runs take as long as the runs of complete trials.
    """
    spent: dict[str, list[float]] = {COMPLETE: [], PRUNED: [], RUNNING: []}
    for trial in trials:
        spent[trial.state].append(run_seconds(folder, request.runs_of(trial)))
    ended = [*spent[COMPLETE], *spent[PRUNED]]
    if not sum(ended):
        return None
    left = max(0, request.config.trials - len(ended)) * float(np.mean(ended)) - sum(spent[RUNNING])
    longest = float(np.mean(spent[COMPLETE] or ended)) / len(request.seeds)
    best = trials.best()
    held_out = [*request.default_runs(), *(request.held_out_runs(best) if best else [])]
    waiting = sum(not finished(folder / run.name, run.train_frames) for run in held_out)
    return (max(0.0, left) + waiting * longest) / max(1, workers)


def run_seconds(folder: Path, runs: Iterable[Run]) -> float:
    """The total duration of some runs, over all their attempts that have ended."""
    records = [Record.load(folder, run.name) for run in runs]
    return sum(record.seconds for record in records if record)


def score(trial: Trial) -> str:
    """A trial's objective; if it is not complete, the value at its last rung."""
    if trial.state == COMPLETE:
        return "failed" if trial.failed else rounded(trial.value or 0.0)
    if not trial.rungs:
        return ""
    rung, value = max(trial.rungs.items())
    return f"{rounded(value)} at {rung:,}"


def trials_table(request: Request, folder: Path, trials: Trials) -> Table:
    """A row for each trial, with its settings."""
    rows = []
    best = trials.best()
    for trial in trials:
        runs = request.runs_of(trial)
        failed = sum(run.name in trials.failures for run in runs)
        state = f"{trial.state}, {failed} of {len(runs)} runs failed" if failed else trial.state
        seconds = run_seconds(folder, runs)
        notes = [*["best"] * (trial is best), *["defaults"] * trial.defaults]
        rows.append(
            [
                str(trial.number),
                state,
                score(trial),
                *(word.partition("=")[2] for word in trial.overrides),
                duration(seconds) if seconds else "",
                ", ".join(notes),
            ]
        )
    columns = ["trial", "state", request.config.objective, *request.space, "run time", ""]
    return Table("trials", "All trials", columns, rows)
