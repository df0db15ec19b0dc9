"""Engines: what starts the jobs of a sweep. Each knows how to start, wait and stop, and nothing of
training; `attempt.Attempt` is what all of them run.

- `Local`: a bounded pool of processes on this machine.
- `Slurm`: job arrays through submitit, which requeue themselves after a checkpoint.
- `Ray`: tasks on an existing cluster or a local one, retried when a node is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Protocol

from rlearly.config import ConfigError, setting
from rlearly.experiments.attempt import DONE, SAVED, Attempt, Job, last_lines
from rlearly.run_dir import write

Say = Callable[[str], None]


class Engine(Protocol):
    """Starts jobs; what came of them stands in the sweep's directory."""

    def launch(self, sweep: Path, jobs: Sequence[Job], say: Say) -> None:
        """Start the jobs, those that need another one after it, and wait for them if the engine has
        nobody else to look after them."""
        ...

    def stop(self) -> None:
        """Ask what this process has started to save and end; from a signal handler."""
        ...


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


@dataclass(frozen=True)
class RayConfig:
    """`launcher=ray`: where, and what each run takes there."""

    address: str | None = setting(None, "HOST:PORT or auto; null: a Ray of its own, here")
    cpus: float = setting(1.0, "of a run", above=0)
    gpus: float = setting(0.0, "of a run; 0.25 puts four on one", at_least=0)
    memory_gb: float | None = setting(None, "of a run; null: not counted", above=0)


# --- on this machine ---


class Local:
    """`workers` processes at once; GPUs, if there are any, are dealt out in turn."""

    def __init__(self, workers: int, gpus: Sequence[str] = ()):
        self.workers = workers
        self.gpus = gpus
        self.stopping = False
        self._running: set[Attempt] = set()

    def launch(self, sweep: Path, jobs: Sequence[Job], say: Say) -> None:
        queue = _Queue(jobs)
        threads = [
            Thread(target=self._work, args=(sweep, queue, slot, say), daemon=True)
            for slot in range(min(self.workers, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        self.stopping = True
        for attempt in list(self._running):
            attempt.stop()

    def _work(self, sweep: Path, queue: _Queue, slot: int, say: Say) -> None:
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        while (job := queue.take()) and not self.stopping:
            attempt = Attempt(sweep, job.name, "local", gpu)
            self._running.add(attempt)
            say(f"start {job.title}")
            try:
                status = attempt.run()
                said = ending(sweep, job, status)
            except Exception as error:  # one job's trouble is not the others'
                status, said = 1, f"FAILED {job.title}: {error}"
            self._running.discard(attempt)
            say(said)
            for skipped in queue.end(job, status):
                if not self.stopping:
                    say(f"skipped {skipped.title}: its teacher did not finish")


def ending(sweep: Path, job: Job, status: int) -> str:
    """How a try ended, in one line."""
    word = {DONE: "done", SAVED: "saved"}.get(status, "FAILED")
    return f"{word} {job.title}: {(last_lines(sweep, job.name) or [''])[-1]}"


class _Queue:
    """Jobs in order, each held back until the one that it needs is done."""

    def __init__(self, jobs: Sequence[Job]):
        self.left = list(jobs)
        self.open = {job.name for job in jobs}
        self._changed = Condition()

    def take(self) -> Job | None:
        """The next one that can be started; waits for it; None if there will be none."""
        with self._changed:
            while self.left:
                for job in self.left:
                    if job.needs not in self.open:
                        self.left.remove(job)
                        return job
                self._changed.wait()
            return None

    def end(self, job: Job, status: int) -> list[Job]:
        """One is over; the ones that can now never be started."""
        with self._changed:
            self.open.discard(job.name)
            skipped = []
            if status != DONE:
                skipped = [other for other in self.left if other.needs == job.name]
                self.left = [other for other in self.left if other.needs != job.name]
                self.open -= {other.name for other in skipped}
            self._changed.notify_all()
            return skipped


def usable_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or else every GPU of this machine."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part for part in named.split(",") if part not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return answer.stdout.split()
    return []


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
        self.attempt: Attempt | None = None

    def __call__(self) -> int:
        self.attempt = Attempt(Path(self.sweep), self.name, "slurm")
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


# --- Ray ---


class Ray:
    """A task for each job; waits for them, since they end when their driver does."""

    def __init__(self, config: RayConfig):
        for name in ("cpus", "gpus"):
            value = getattr(config, name)
            if value > 1 and value != int(value):
                raise ConfigError(f"ray.{name}: above 1 Ray wants whole numbers, received {value}.")
        self.ray = _import("ray", "ray")
        self.config = config
        self.stopping = False
        self._tasks: list[Any] = []

    def launch(self, sweep: Path, jobs: Sequence[Job], say: Say) -> None:
        ray = self.ray
        self._connect()
        memory = self.config.memory_gb
        task = ray.remote(
            num_cpus=self.config.cpus,
            num_gpus=self.config.gpus,
            max_retries=-1,
            **({} if memory is None else {"memory": int(memory * 1e9)}),
        )(_ray_try)
        handles: dict[str, Any] = {}
        for job in jobs:
            needed = handles.get(job.needs) if job.needs else None
            handles[job.name] = task.remote(str(sweep), job.name, needed)
        waiting = {handle: job for job, handle in zip(jobs, handles.values(), strict=True)}
        self._tasks = list(waiting)
        if self.stopping:
            self.stop()
        say(f"{len(jobs)} jobs are with Ray at {ray.get_runtime_context().gcs_address}")
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=1.0)
            for handle in ready:
                job = waiting.pop(handle)
                say(self._ending(sweep, job, handle))
        ray.shutdown()

    def _ending(self, sweep: Path, job: Job, handle: Any) -> str:
        errors = self.ray.exceptions
        try:
            return ending(sweep, job, self.ray.get(handle))
        except errors.TaskCancelledError:
            return ending(sweep, job, SAVED)
        except errors.RayError as error:
            if isinstance(getattr(error, "cause", None), KeyboardInterrupt):
                return ending(sweep, job, SAVED)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            return f"FAILED {job.title}: {reason}"

    def _check_size(self) -> None:
        """Raises:
        ConfigError: no node is as large as a run, which would wait for ever.
        """
        wanted = {"CPU": self.config.cpus, "GPU": self.config.gpus}
        wanted["memory"] = (self.config.memory_gb or 0) * 1e9
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(n.get(k, 0) >= v for k, v in wanted.items()) for n in nodes):
            have = "; ".join(
                f"{n.get('CPU', 0):g} cpus, {n.get('GPU', 0):g} gpus, "
                f"{n.get('memory', 0) / 1e9:.1f} GB"
                for n in nodes
            )
            raise ConfigError(
                f"ray.cpus, ray.gpus and ray.memory_gb: expected what one node has ({have}), "
                f"received {self.config.cpus:g}, {self.config.gpus:g} and {self.config.memory_gb}."
            )

    def _connect(self) -> None:
        address = self.config.address
        if address and ":" in address.removeprefix("ray://"):
            _knock(address)  # Ray itself goes on trying for five minutes
        here = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        ours = signal.getsignal(signal.SIGTERM)
        try:
            self.ray.init(
                address=address or "local",
                namespace="rlearly",
                log_to_driver=False,
                logging_level="error",
                include_dashboard=None if address else False,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise _no_ray(address, reason) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, ours)  # Ray has put its own in its place
        self._check_size()

    def stop(self) -> None:
        self.stopping = True
        for handle in self._tasks:
            self.ray.cancel(handle)


def _knock(address: str) -> None:
    """Raises:
    ConfigError: nobody listens at HOST:PORT.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_ray(address, str(error)) from None


def _no_ray(address: str | None, reason: str) -> ConfigError:
    return ConfigError(
        f"ray.address: no Ray answers at {address} ({reason}); start one with "
        "`ray start --head`, or leave ray.address out for one of its own."
    )


def _ray_try(sweep: str, name: str, needed: int | None) -> int:
    """On a node: one try, unless what it needs has failed. A task that is cancelled gets a
    KeyboardInterrupt; one whose worker dies ends its run with it."""
    if needed not in (None, DONE):
        return 1
    attempt = Attempt(Path(sweep), name, "ray")
    try:
        return attempt.run()
    except KeyboardInterrupt:
        attempt.interrupt(signal.SIGTERM)
        return SAVED


def _import(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"launcher={extra} wants the package {name}: pip install 'rlearly[{extra}]'."
        ) from None
