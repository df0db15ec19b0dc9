"""TODO."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError
from rlearly.experiments.job import DONE, SAVED, Job, JobRunner, last_lines
from rlearly.experiments.launchers.base import Say
from rlearly.experiments.launchers.ray import _import
from rlearly.training.run_directory import write


@dataclass(frozen=True)
class SlurmConfig:
    """`launcher=slurm`: what is asked of it for each run."""

    partition: str | None = setting(None, "null: the cluster's default")
    qos: str | None = setting(None, "quality of service")
    account: str | None = setting(None, "who is billed")
    time_min: int = setting(1440, "minutes of one try; a run takes as many as it needs", at_least=1)
    mem_gb: float | None = setting(None, "memory of a run; null: the cluster's default", above=0)
    cpus: int = setting(1, "of a run", at_least=1)
    gpus: int = setting(0, "of a run", at_least=0)
    max_at_once: int = setting(256, "runs of an array at once", at_least=1)
    signal_seconds: int = setting(
        120, "from the warning to the end, in which a checkpoint is written", at_least=10
    )
    more: dict[str, Any] = setting({}, "further flags of sbatch: {constraint: a100}")


# --- SLURM ---

QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING", "SUSPENDED")
LARGEST_ARRAY = 1000
"""SLURM's own limit, unless its MaxArraySize says otherwise, is 1001."""
RUNNING = ("RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT")


class Slurm:
    """One job array for each thing that is waited for; returns when SLURM has them."""

    def __init__(self, config: SlurmConfig):
        missing = [name for name in ("sbatch", "srun", "squeue") if not shutil.which(name)]
        if missing:
            raise ConfigError(
                f"launcher=slurm: {', '.join(missing)} not found; run this on a machine that "
                "submits to SLURM, or take launcher=local."
            )
        _import("submitit", "slurm")
        if config.time_min * 60 <= config.signal_seconds:
            raise ConfigError(
                f"slurm.signal_seconds: expected less than the {config.time_min * 60} s of "
                f"slurm.time_min, received {config.signal_seconds}."
            )
        self.config = config

    def launch(self, sweep: Path, jobs: Sequence[Job], say: Say) -> None:
        with_slurm = queue_of(sweep)
        new = [job for job in jobs if job.name not in with_slurm]
        if len(new) < len(jobs):
            say(f"{len(jobs) - len(new)} jobs are with SLURM already")
        known = {name: number for number, name in submitted(sweep).items() if name in with_slurm}
        for needs in dict.fromkeys(job.needs for job in new):
            every = [job for job in new if job.needs == needs]
            after = known.get(needs) if needs else None
            for at in range(0, len(every), LARGEST_ARRAY):
                members = every[at : at + LARGEST_ARRAY]
                numbers = self._submit(sweep, members, after)
                known |= {job.name: number for job, number in zip(members, numbers, strict=True)}
                _remember(sweep, dict(zip(numbers, (job.name for job in members), strict=True)))
                where = numbers[0].split("_")[0]
                say(
                    f"submitted {len(members)} jobs as {where}"
                    + (f", after {after}" if after else "")
                )

    def stop(self) -> None:
        """SLURM has the jobs; they are not this process's to stop."""

    def _submit(self, sweep: Path, jobs: Sequence[Job], after: str | None) -> list[str]:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        config = self.config
        more = {"requeue": True, **config.more}
        if after:
            more |= {"dependency": f"afterok:{after}", "kill_on_invalid_dep": "yes"}
        executor = submitit.SlurmExecutor(sweep / "slurm", max_num_timeout=100_000)
        wanted = {
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
        executor.update_parameters(**{k: v for k, v in wanted.items() if v is not None})
        try:
            with executor.batch():
                tries = [executor.submit(SlurmTry(str(sweep), job.name)) for job in jobs]
        except (FailedJobError, FailedSubmissionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ConfigError(
                f"SLURM refused the jobs ({reason}); look at slurm.* of this command, and at sinfo."
            ) from None
        return [job.job_id for job in tries]


class SlurmTry:
    """What submitit pickles and runs on a node: one try of a job."""

    def __init__(self, sweep: str, name: str):
        self.sweep = sweep
        self.name = name
        self.attempt: JobRunner | None = None

    def __call__(self) -> int:
        self.attempt = JobRunner(Path(self.sweep), self.name, "slurm")
        status = self.attempt.run()
        if status == SAVED:
            # Ended by SIGTERM: SLURM is cancelling or preempting this job. To return would make it
            # a completed one, which is never requeued.
            while True:
                time.sleep(60)
        if status != DONE:
            raise RuntimeError("\n".join(last_lines(Path(self.sweep), self.name, 5)))
        return status

    def checkpoint(self) -> Any:
        """The warning signal: save, then let submitit requeue the same try."""
        import submitit

        if self.attempt:
            self.attempt.interrupt(signal.SIGUSR2)
        return submitit.helpers.DelayedSubmission(SlurmTry(self.sweep, self.name))


def submitted(sweep: Path) -> dict[str, str]:
    """SLURM's numbers of a sweep's jobs -> their names, in order of submission."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((sweep / "slurm" / "jobs.json").read_text())
    return {}


def _remember(sweep: Path, numbers: Mapping[str, str]) -> None:
    write(sweep / "slurm" / "jobs.json", json.dumps({**submitted(sweep), **numbers}, indent=1))


def queue_of(sweep: Path) -> dict[str, str]:
    """What SLURM has of a sweep: job -> queued or running; nothing where there is no SLURM.

    Raises:
        ConfigError: it does not answer.
    """
    return {name: state for _, name, state in _live(sweep)}


def _live(sweep: Path) -> list[tuple[str, str, str]]:
    """SLURM's number, name and state of each job of a sweep that it has."""
    numbers = submitted(sweep)
    if not numbers or not shutil.which("squeue"):
        return []
    arrays = ",".join(dict.fromkeys(number.split("_")[0] for number in numbers))
    words = ["--noheader", "--array", "--jobs", arrays, "--states=all", "--format=%i %T"]
    try:
        answer = subprocess.run(["squeue", *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"squeue does not answer ({error}); try again later.") from None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise ConfigError(f"squeue failed ({answer.stderr.strip()}); try again later.")
    found = []
    for line in answer.stdout.splitlines():
        number, _, state = line.strip().partition(" ")
        if number in numbers and state in QUEUED + RUNNING:
            found.append((number, numbers[number], "queued" if state in QUEUED else "running"))
    return found


def cancel_slurm(sweep: Path) -> int:
    """Cancel what SLURM has of a sweep; how many jobs those were. Runs save before they end."""
    numbers = [number for number, _, _ in _live(sweep)]
    if numbers:
        subprocess.run(["scancel", *numbers], capture_output=True, timeout=60)
    return len(numbers)
