"""Run jobs as Ray tasks, on a cluster or on this machine."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import DONE, FAILED, SAVED
from rlearly.experiments.job import Job
from rlearly.experiments.job_runner import JobRunner
from rlearly.experiments.launchers.base import Report, ending, import_package


@dataclass(frozen=True)
class RayConfig:
    """`launcher=ray`: which cluster, and what each run requests."""

    address: str | None = setting(None, "HOST:PORT or auto; null: start Ray on this machine")
    cpus: float = setting(1.0, "CPUs per run", above=0)
    gpus: float = setting(0.0, "GPUs per run; 0.25: four runs share one", at_least=0)
    memory_gb: float | None = setting(None, "memory per run; null: not reserved", above=0)


class Ray:
    """Starts a task for each job and waits for them, since tasks end with their driver process."""

    def __init__(self, config: RayConfig):
        for name in ("cpus", "gpus"):
            value = getattr(config, name)
            if value > 1 and value != int(value):
                raise ConfigError(f"ray.{name}: above 1, expected whole numbers, received {value}.")
        self.ray = import_package("ray", "ray")
        self.config = config
        self.stopping = False
        self._tasks: list[Any] = []

    def launch(self, sweep: Path, jobs: Sequence[Job], report: Report) -> None:
        ray = self.ray
        self.connect()
        task = self.job_task()
        tasks: dict[str, Any] = {}
        for job in jobs:
            needed = tasks.get(job.needs) if job.needs else None
            tasks[job.name] = task.remote(str(sweep), job.name, needed)
        waiting = {task: job for job, task in zip(jobs, tasks.values(), strict=True)}
        self._tasks = list(waiting)
        if self.stopping:
            self.stop()
        report(f"submitted {len(jobs)} jobs to Ray at {ray.get_runtime_context().gcs_address}")
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=1.0)
            for task in ready:
                report(self._ending(sweep, waiting.pop(task), task))
        ray.shutdown()

    def stop(self) -> None:
        self.stopping = True
        for task in self._tasks:
            self.ray.cancel(task)

    def job_task(self) -> Any:
        """The remote function that runs a job: `.remote(sweep, name, needed)`."""
        memory = self.config.memory_gb
        return self.ray.remote(
            num_cpus=self.config.cpus,
            num_gpus=self.config.gpus,
            max_retries=-1,
            **({} if memory is None else {"memory": int(memory * 1e9)}),
        )(_run_job)

    def capacity(self) -> int:
        """The number of jobs that the cluster can run at once, at least 1; after `connect`."""
        config, count = self.config, 0
        for node in self.ray.nodes():
            if node["Alive"]:
                resources = node["Resources"]
                fit = resources.get("CPU", 0) / config.cpus
                if config.gpus:
                    fit = min(fit, resources.get("GPU", 0) / config.gpus)
                count += int(fit)
        return max(1, count)

    def status_of(self, task: Any) -> int:
        """The exit status of a task that has ended.

        Raises:
            RayError: it was lost.
        """
        errors = self.ray.exceptions
        try:
            return self.ray.get(task)
        except errors.TaskCancelledError:
            return SAVED
        except errors.RayError as error:
            if isinstance(getattr(error, "cause", None), KeyboardInterrupt):
                return SAVED
            raise

    def _ending(self, sweep: Path, job: Job, task: Any) -> str:
        try:
            return ending(sweep, job, self.status_of(task))
        except self.ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            return f"FAILED {job.title}: {reason}"

    def connect(self) -> None:
        """Connect to the cluster, or start Ray on this machine.

        Raises:
            ConfigError: Ray does not answer, or no node has the resources that a run requests.
        """
        address = self.config.address
        if address and ":" in address.removeprefix("ray://"):
            _check_reachable(address)  # Ray itself retries for five minutes
        package = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        handler = signal.getsignal(signal.SIGTERM)
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
                signal.signal(signal.SIGTERM, handler)  # ray.init installs its own
        self._check_resources()

    def _check_resources(self) -> None:
        """Check that a node has the resources of a run, which would otherwise wait forever."""
        request = {"CPU": self.config.cpus, "GPU": self.config.gpus}
        request["memory"] = (self.config.memory_gb or 0) * 1e9
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if any(all(n.get(k, 0) >= v for k, v in request.items()) for n in nodes):
            return
        have = "; ".join(
            f"{n.get('CPU', 0):g} cpus, {n.get('GPU', 0):g} gpus, {n.get('memory', 0) / 1e9:.1f} GB"
            for n in nodes
        )
        raise ConfigError(
            f"ray.cpus, ray.gpus and ray.memory_gb: expected what one node has ({have}), "
            f"received {self.config.cpus:g}, {self.config.gpus:g} and {self.config.memory_gb}."
        )


def _check_reachable(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_ray(address, str(error)) from None


def _no_ray(address: str | None, reason: str) -> ConfigError:
    return ConfigError(
        f"ray.address: no Ray answers at {address} ({reason}); start one with "
        "`ray start --head`, or leave ray.address out to start Ray on this machine."
    )


def _run_job(sweep: str, name: str, needed: int | None) -> int:
    """Run a job on a node, unless the job that it needs failed.

    Ray cancels a task by a KeyboardInterrupt. If the worker dies, its run ends with it.
    """
    if needed not in (None, DONE):
        return FAILED
    runner = JobRunner(Path(sweep), name, "ray")
    try:
        return runner.run()
    except KeyboardInterrupt:
        runner.interrupt(signal.SIGTERM)
        return SAVED
