"""The search itself: propose trials, run their seeds, judge them at rungs and at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlearly.config.overrides import python_command
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.exit_status import BAD_REQUEST, DONE, FAILED, SAVED
from rlearly.experiments.job import last_lines, log_of
from rlearly.experiments.launchers.base import STOP_SIGNALS
from rlearly.experiments.launchers.local import local_workers, usable_gpus
from rlearly.experiments.launchers.lock import only_launcher
from rlearly.experiments.plan import PLAN, Plan, Run, finished
from rlearly.experiments.report.curves import Curve, mean_of_last, read_run
from rlearly.experiments.report.statistics import rounded
from rlearly.experiments.tuning.held_out import HeldOut, held_out_results
from rlearly.experiments.tuning.objective import WORST, is_lost, objective_of, value_at
from rlearly.experiments.tuning.pool import LocalPool, Pool, RayPool
from rlearly.experiments.tuning.pruning import goes_on
from rlearly.experiments.tuning.request import Request, TuneConfig
from rlearly.experiments.tuning.sampling import import_optuna, propose
from rlearly.experiments.tuning.summary import outlook
from rlearly.experiments.tuning.trials import (
    COMPLETE,
    PRUNED,
    RUNNING,
    TRIALS,
    Trial,
    Trials,
    differences,
    load_trials,
)
from rlearly.system.locks import in_use
from rlearly.system.signals import handled
from rlearly.training import checkpoint
from rlearly.training.builder import check_rendering

WAIT_SECONDS = 1.0
"""How often the evaluations of running trials are read."""

MOST_DEATHS = 3
"""A run that was killed this often in a row, without a new checkpoint, has failed."""

HOPELESS_TRIALS = 3
"""If this many trials have ended and none has a score, the search gives up."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class TuneResult:
    """What a search found."""

    folder: Path
    trials: list[Trial]
    best: Trial | None
    """The complete trial with the highest objective; None if there is none."""
    command: str | None
    """A command for the shell that trains with the settings of the best trial."""
    held_out: HeldOut | None
    """None if it is not done."""
    finished: bool
    """False: the search was interrupted; the same request continues it."""


def tune(request: Request, report: Report = print) -> TuneResult:
    """Begin or continue a search, and wait until it ends or is asked to stop.

    Raises:
        ConfigError: the request cannot be met; nothing was started.
        RunFailed: none of the first trials has a score, or files can no longer be written.
    """
    import_optuna()
    config, folder = request.config, request.folder
    if config.launcher == "slurm":
        raise ConfigError(
            "launcher=slurm: a search starts trials one by one as others end, which it can do on "
            "this machine and on Ray only; run the command with launcher=local inside one job with "
            "several cores or GPUs, which may be requeued."
        )
    if config.launcher == "local":
        check_rendering(request.run_config)
    try:
        with only_launcher(folder, config.launcher):
            trials = continued_trials(request, folder)
            pool = make_pool(config, folder)
            try:
                Tuner(request, folder, trials, pool, report).run()
            except ConfigError as error:  # only_launcher would delete the directory
                raise RunFailed(str(error)) from error
            finally:
                pool.close()
    except OSError as error:
        if not (folder / TRIALS).exists():
            raise ConfigError(
                f"tune_dir: {folder} cannot be written ({error.strerror}); give another."
            ) from None
        raise RunFailed(
            f"{folder}: writing failed ({error}); free space or fix it, then repeat the command"
        ) from error
    return result_of(request, folder, trials, finished=not pool.stopping)


def make_pool(config: TuneConfig, folder: Path) -> Pool:
    """Where a search's runs go.

    Raises:
        ConfigError: what it needs is not installed or does not answer.
    """
    if config.launcher == "ray":
        return RayPool(folder, config.ray, config.workers)
    return LocalPool(folder, local_workers(config.workers), usable_gpus())


def result_of(request: Request, folder: Path, trials: Trials, *, finished: bool) -> TuneResult:
    """What a search's directory holds."""
    best = trials.best()
    command = best_command(request, best) if best else None
    held_out = held_out_results(request, folder, trials)
    return TuneResult(folder, trials.trials, best, command, held_out, finished)


def best_command(request: Request, trial: Trial) -> str:
    """A command for the shell that trains with a trial's settings."""
    return python_command("rlearly.train", *request.fixed, *trial.overrides)


def continued_trials(request: Request, folder: Path) -> Trials:
    """The trials in a directory, or none if it is new.

    If no trial has a score, all are tried again: the cause may have been fixed.

    Raises:
        ConfigError: it holds another search, or a sweep.
    """
    if not (folder / TRIALS).exists():
        if (folder / PLAN).exists():
            raise ConfigError(f"tune_dir: {folder} holds a sweep; give another.")
        return Trials(request.search, request.asked)
    trials = load_trials(folder)
    if differing := differences(trials.search, request.search):
        raise ConfigError(
            f"tune_dir: {folder} holds a search with {differing}; repeat its command, or give "
            "another tune_dir=."
        )
    trials.asked = request.asked
    if trials.only_failures():
        trials.failures.clear()
        for trial in trials:
            trial.state, trial.value, trial.scores = RUNNING, None, []
    return trials


class Tuner:
    """Runs a search in one process. Each decision is written to the directory at once."""

    def __init__(self, request: Request, folder: Path, trials: Trials, pool: Pool, report: Report):
        self.request = request
        self.folder = folder
        self.trials = trials
        self.pool = pool
        self.report = report
        self._runs: dict[str, Run] = {}
        self._curves: dict[str, tuple[tuple[int, int], Curve | None]] = {}
        self._deaths: Counter[str] = Counter()
        self._newest: dict[str, int] = {}
        self._fatal: str | None = None

    def run(self) -> None:
        """Run the search to its end, or until a signal asks to stop.

        Raises:
            RunFailed: none of the first trials has a score.
        """
        self.trials.save(self.folder)
        if len(self.trials):
            states = Counter(trial.state for trial in self.trials)
            known = ", ".join(f"{count} {state}" for state, count in states.items())
            self.report(f"continuing with {len(self.trials)} trials ({known})")
        self._add_runs([run for trial in self.trials for run in self.request.runs_of(trial)])
        with handled(STOP_SIGNALS, lambda *_: self.pool.stop()):
            try:
                self._lead(self._search_step)
                best = self.trials.best()
                if best and not self.pool.stopping:
                    self._hold_out(best)
            except BaseException:
                self.pool.stop()
                raise
            finally:
                while self.pool.running:
                    self.pool.ended(WAIT_SECONDS)
        if self._fatal:
            raise RunFailed(self._fatal)

    def _lead(self, step: Callable[[], None]) -> None:
        """Repeat a step that starts runs, and note those that ended, until none is left."""
        while True:
            step()
            if not self.pool.running:
                return
            for name, status in self.pool.ended(WAIT_SECONDS).items():
                self._on_end(name, status)

    # --- trials ---

    def _search_step(self) -> None:
        for trial in self.trials.in_state(RUNNING):
            self._judge(trial)
        if self.pool.stopping:
            return
        while self.pool.free:
            waiting = self._waiting()
            if not waiting and not self._propose():
                return
            if waiting:
                self.pool.start(waiting[0].name)
        self._make_room()

    def _waiting(self) -> list[Run]:
        """Runs that can be started: those of the first trial, least progress first."""
        runs = [
            (trial.number, self._rungs_passed(run), run.seed, run)
            for trial in self.trials.in_state(RUNNING)
            for run in self.request.runs_of(trial)
            if run.name not in self.pool.running and not self._has_ended(run)
        ]
        return [run for *_, run in sorted(runs, key=lambda row: row[:3])]

    def _propose(self) -> bool:
        """Add a trial; returns False if no other one may run now."""
        config, running = self.request.config, self.trials.in_state(RUNNING)
        if len(self.trials) >= config.trials or self._fatal:
            return False
        if config.trials_at_once and len(running) >= config.trials_at_once:
            return False
        trial = propose(self.request.space, self.trials.trials, config.seed, self.request.defaults)
        runs = self.request.runs_of(trial)
        self.trials.trials.append(trial)
        try:
            self.request.plan(runs[:1]).check()
        except ConfigError as error:  # a contradiction of several settings
            self.trials.failures |= {run.name: str(error) for run in runs}
        self.trials.save(self.folder)
        self._add_runs(runs)
        what = " (the defaults)" if trial.defaults else ""
        self.report(f"{trial.name} begins{what}: {' '.join(trial.overrides)}")
        if runs[0].name in self.trials.failures:
            self._judge(trial)
        return True

    def _make_room(self) -> None:
        """Ask a run that has passed a rung to save, if another seed of its trial waits before it.

        So all seeds of a trial reach a rung before one of them gets far beyond it.
        """
        for waiting in self._waiting():
            for trial in self.trials.in_state(RUNNING):
                runs = self.request.runs_of(trial)
                if waiting not in runs:
                    continue
                ahead = [
                    run
                    for run in runs
                    if run.name in self.pool.running
                    and not self._has_ended(run)
                    and self._rungs_passed(run) > self._rungs_passed(waiting)
                ]
                if ahead:
                    self.pool.save(ahead[0].name)
                    return

    def _judge(self, trial: Trial) -> None:
        """End a trial if its evaluations say so, and record its value at the rungs it reached."""
        kind = self.request.config.objective
        runs = self.request.runs_of(trial)
        for rung in self.request.rungs:
            if rung in trial.rungs:
                continue
            values = [self._value(run, rung) for run in runs]
            known = [value for value in values if value is not None]
            if len(known) < len(runs):
                break
            value = objective_of(known, kind)
            if value == WORST:
                break
            others = [other.rungs[rung] for other in self.trials if rung in other.rungs]
            trial.rungs[rung] = value
            if not goes_on(value, others, self.request.config.prune):
                self._end(trial, PRUNED, None)
                return
            self.trials.save(self.folder)
        failed = [run.name in self.trials.failures for run in runs]
        if is_lost(failed, kind):
            self._end(trial, COMPLETE, WORST)
        elif all(map(self._has_ended, runs)):
            trial.scores = [self._score(run) for run in runs]
            self._end(trial, COMPLETE, objective_of(trial.scores, kind))

    def _value(self, run: Run, rung: int) -> float | None:
        """A run's score at a rung; None if it has not reached it yet."""
        curve, count = self._curve(run), self.request.config.last_evaluations
        value = value_at(curve.frames, curve.returns, rung, count) if curve else None
        return WORST if value is None and run.name in self.trials.failures else value

    def _score(self, run: Run) -> float:
        """The final score of a run that has ended."""
        curve = self._curve(run)
        if curve is None or run.name in self.trials.failures:
            return WORST
        return mean_of_last(curve.returns, self.request.config.last_evaluations)

    def _end(self, trial: Trial, state: str, value: float | None) -> None:
        trial.state, trial.value = state, value
        self.trials.save(self.folder)
        runs = self.request.runs_of(trial)
        for run in runs:
            if run.name in self.pool.running and not self._has_ended(run):
                self.pool.save(run.name)
        self.report(self._ending(trial))
        self.report(outlook(self.request, self.folder, self.trials, self.pool_size))
        ended = len(self.trials) - len(self.trials.in_state(RUNNING))
        if ended >= HOPELESS_TRIALS and self.trials.only_failures():
            name = next(iter(self.trials.failures))
            self._stop_for(
                f"none of the first {ended} trials has a score; {log_of(self.folder, name)} ends "
                f"with: {self.trials.failures[name]}"
            )

    def _ending(self, trial: Trial) -> str:
        """How a trial ended, in one line."""
        if trial.state == PRUNED:
            rung, value = max(trial.rungs.items())
            return f"{trial.name} is pruned at {rung:,} frames, with {rounded(value)}"
        if trial.failed:
            runs = self.request.runs_of(trial)
            reasons = [self.trials.failures[r.name] for r in runs if r.name in self.trials.failures]
            return f"{trial.name} FAILED: {reasons[0]}"
        return f"{trial.name} is complete: {rounded(trial.value or 0.0)}"

    # --- held-out seeds ---

    def _hold_out(self, best: Trial) -> None:
        """Run the best trial and the defaults on the held-out seeds, unless that is done."""
        defaults = self.request.default_runs()
        tuned = [] if best.defaults else self.request.held_out_runs(best)
        runs = sorted([*tuned, *defaults], key=lambda run: run.seed)
        left = [run for run in runs if not self._has_ended(run)]
        if not left:
            return
        who = "the defaults" if best.defaults else f"{best.name} and the defaults"
        seeds = ", ".join(map(str, self.request.held_out_seeds))
        self.report(f"{who} run on held-out seeds: {seeds}")
        self._add_runs(runs)

        def step() -> None:
            for run in runs:
                waits = run.name not in self.pool.running and not self._has_ended(run)
                if waits and self.pool.free and not self.pool.stopping:
                    self.pool.start(run.name)

        self._lead(step)

    # --- runs ---

    @property
    def pool_size(self) -> int:
        return self.pool.free + len(self.pool.running)

    def _add_runs(self, runs: Sequence[Run]) -> None:
        """Put runs into the plan, where their jobs find them."""
        if not self._runs and (self.folder / PLAN).exists():
            self._runs = {run.name: run for run in Plan.load(self.folder).runs}
        self._runs |= {run.name: run for run in runs}
        if self._runs:
            self.request.plan(list(self._runs.values())).save(self.folder)

    def _has_ended(self, run: Run) -> bool:
        return run.name in self.trials.failures or finished(
            self.folder / run.name, run.train_frames
        )

    def _curve(self, run: Run) -> Curve | None:
        """The evaluations of a run so far."""
        file = self.folder / run.name / "metrics.jsonl"
        try:
            stat = file.stat()
        except OSError:
            return None
        stamp = (stat.st_mtime_ns, stat.st_size)
        if run.name not in self._curves or self._curves[run.name][0] != stamp:
            self._curves[run.name] = stamp, read_run(self.folder / run.name, run)
        return self._curves[run.name][1]

    def _rungs_passed(self, run: Run) -> int:
        curve = self._curve(run)
        return sum(rung <= curve.frames[-1] for rung in self.request.rungs) if curve else 0

    def _on_end(self, name: str, status: int) -> None:
        """Note a run that failed; one that was killed is started again from its checkpoint."""
        if status in (DONE, SAVED) or self._is_over(name):
            return
        last = (last_lines(self.folder, name) or ["it printed nothing"])[-1]
        kept = checkpoint.list_checkpoints(self.folder / name / "checkpoints")
        if status < 0 or in_use(self.folder / name / "run.lock"):
            newest = max((int(path.name) for path in kept), default=0)
            self._deaths[name] = 1 + (self._deaths[name] if self._newest.get(name) == newest else 0)
            self._newest[name] = newest
            if self._deaths[name] < MOST_DEATHS:
                self.report(f"{name} was killed and is started again from {newest:,} frames")
                return
        elif status == BAD_REQUEST and kept:
            self._stop_for(f"{name} cannot go on: {last}")
            return
        elif status != FAILED and status != BAD_REQUEST:
            last = f"exit status {status}: {last}"
        self.trials.failures[name] = last
        self.trials.save(self.folder)
        self.report(f"{name} FAILED: {last}")

    def _is_over(self, name: str) -> bool:
        """Whether a run belongs to a trial that has ended, so that its own end does not matter."""
        return any(
            trial.state != RUNNING and run.name == name
            for trial in self.trials
            for run in self.request.runs_of(trial)
        )

    def _stop_for(self, reason: str) -> None:
        """Save all runs and end the search with an error."""
        self._fatal = (
            f"{reason}; fix the cause, then repeat the command to continue the search in "
            f"{self.folder}"
        )
        self.pool.stop()
