"""Run jobs as SLURM job arrays, through submitit."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import DONE, SAVED
from rlearly.experiments.job import Job, last_lines
from rlearly.experiments.job_runner import JobRunner
from rlearly.experiments.launchers.base import Report, import_package
from rlearly.system.atomic import write
from rlearly.training.run_directory import original_of

QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING", "SUSPENDED")
RUNNING = ("RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT")
LARGEST_ARRAY = 1000
"""SLURM's own limit is 1001, unless its MaxArraySize says otherwise."""


@dataclass(frozen=True)
class SlurmConfig:
    """`launcher=slurm`: what each run requests."""

    partition: str | None = setting(None, "partition; null: the cluster's default")
    qos: str | None = setting(None, "quality of service")
    account: str | None = setting(None, "the account to charge")
    time_min: int = setting(
        1440, "time limit in minutes; a run is requeued until it is done", at_least=1
    )
    mem_gb: float | None = setting(None, "memory per run; null: the cluster's default", above=0)
    cpus: int = setting(1, "CPUs per run", at_least=1)
    gpus: int = setting(0, "GPUs per run", at_least=0)
    max_at_once: int = setting(256, "runs of one job array at once", at_least=1)
    signal_seconds: int = setting(
        120, "seconds from SLURM's signal to the time limit, to write a checkpoint", at_least=10
    )
    more: dict[str, Any] = setting({}, "more flags of sbatch, as in {constraint: a100}")


class Slurm:
    """Submits the jobs as arrays and returns; runs that need the same teacher share an array."""

    def __init__(self, config: SlurmConfig):
        missing = [name for name in ("sbatch", "srun", "squeue") if not shutil.which(name)]
        if missing:
            raise ConfigError(
                f"launcher=slurm: {', '.join(missing)} not found; run this on a machine that "
                "submits to SLURM, or use launcher=local."
            )
        import_package("submitit", "slurm")
        if config.time_min * 60 <= config.signal_seconds:
            raise ConfigError(
                f"slurm.signal_seconds: expected less than the {config.time_min * 60} s of "
                f"slurm.time_min, received {config.signal_seconds}."
            )
        self.config = config

    def launch(self, sweep: Path, jobs: Sequence[Job], report: Report) -> None:
        live = queue_of(sweep)
        new = [job for job in jobs if job.name not in live]
        if len(new) < len(jobs):
            report(f"{len(jobs) - len(new)} jobs are already in SLURM's queue")
        numbers = {name: number for number, name in submitted(sweep).items() if name in live}
        for needs in dict.fromkeys(job.needs for job in new):
            group = [job for job in new if job.needs == needs]
            after = numbers.get(needs) if needs else None
            for at in range(0, len(group), LARGEST_ARRAY):
                members = group[at : at + LARGEST_ARRAY]
                own = self._submit(sweep, members, after)
                numbers |= {job.name: number for job, number in zip(members, own, strict=True)}
                names = dict(zip(own, (job.name for job in members), strict=True))
                write(sweep / "slurm" / "jobs.json", json.dumps(submitted(sweep) | names))
                suffix = f", after {after}" if after else ""
                report(f"submitted {len(members)} jobs as {own[0].split('_')[0]}{suffix}")

    def stop(self) -> None:
        """Has no effect: the jobs belong to SLURM, not to this process."""

    def _submit(self, sweep: Path, jobs: Sequence[Job], after: str | None) -> list[str]:
        """SLURM's numbers of the jobs, which start once `after` is done."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        config = self.config
        more = {"requeue": True, **config.more}
        if after:
            more |= {"dependency": f"afterok:{after}", "kill_on_invalid_dep": "yes"}
        executor = submitit.SlurmExecutor(sweep / "slurm", max_num_timeout=100_000)
        parameters = {
            "job_name": f"rlearly-{sweep.name}"[:60],
            "partition": config.partition,
            "qos": config.qos,
            "account": config.account,
            "time": config.time_min,
            "mem": None if config.mem_gb is None else f"{round(config.mem_gb * 1024)}MB",
            "cpus_per_task": config.cpus,
            "gpus_per_node": config.gpus or None,
            "array_parallelism": config.max_at_once,
            "signal_delay_s": config.signal_seconds,
            "stderr_to_stdout": True,
            "additional_parameters": more,
        }
        executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
        try:
            with executor.batch():
                submissions = [executor.submit(SlurmJob(str(sweep), job.name)) for job in jobs]
        except (FailedJobError, FailedSubmissionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ConfigError(
                f"SLURM refused the jobs ({reason}); check slurm.* in this command, and sinfo."
            ) from None
        return [submission.job_id for submission in submissions]


class SlurmJob:
    """One try of a job, as submitit pickles it and calls it on a node."""

    def __init__(self, sweep: str, name: str):
        self.sweep = sweep
        self.name = name
        self.runner: JobRunner | None = None

    def __call__(self) -> int:
        self.runner = JobRunner(Path(self.sweep), self.name, "slurm")
        status = self.runner.run()
        if status == SAVED:
            # Ended by SIGTERM: SLURM is cancelling or preempting this job. If it returned, SLURM
            # would count it as completed and never requeue it.
            while True:
                time.sleep(60)
        if status != DONE:
            raise RuntimeError("\n".join(last_lines(Path(self.sweep), self.name, 5)))
        return status

    def checkpoint(self) -> Any:
        """On SLURM's warning signal, save and let submitit requeue the job."""
        import submitit

        if self.runner:
            self.runner.interrupt(signal.SIGUSR2)
        return submitit.helpers.DelayedSubmission(SlurmJob(self.sweep, self.name))


def submitted(sweep: Path) -> dict[str, str]:
    """SLURM's number -> name of each job of a sweep, in order of submission.

    The file in a copy of a sweep's directory lists the jobs of the original.
    """
    if original_of(sweep):
        return {}
    with contextlib.suppress(OSError, ValueError):
        return json.loads((sweep / "slurm" / "jobs.json").read_text(encoding="utf-8"))
    return {}


def queue_of(sweep: Path) -> dict[str, str]:
    """Name -> "queued" or "running", for each job of a sweep that is in SLURM's queue.

    Raises:
        ConfigError: SLURM does not answer.
    """
    names = submitted(sweep)
    return {names[number]: state for number, state in _queue(sweep).items()}


def _queue(sweep: Path) -> dict[str, str]:
    """SLURM's number -> queued or running."""
    names = submitted(sweep)
    if not names or not shutil.which("squeue"):
        return {}
    arrays = ",".join(dict.fromkeys(number.split("_")[0] for number in names))
    flags = ["--noheader", "--array", "--jobs", arrays, "--states=all", "--format=%i %T"]
    try:
        answer = subprocess.run(
            ["squeue", *flags], capture_output=True, encoding="utf-8", errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"squeue does not answer ({error}); try again later.") from None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise ConfigError(f"squeue failed ({answer.stderr.strip()}); try again later.")
    states = (line.strip().partition(" ")[::2] for line in answer.stdout.splitlines())
    return {
        number: "queued" if state in QUEUED else "running"
        for number, state in states
        if number in names and state in QUEUED + RUNNING
    }


def cancel_slurm(sweep: Path) -> int:
    """Cancel the jobs of a sweep, which save before they end; returns how many there were."""
    numbers = list(_queue(sweep))
    if numbers:
        subprocess.run(["scancel", *numbers], capture_output=True, timeout=60)
    return len(numbers)
