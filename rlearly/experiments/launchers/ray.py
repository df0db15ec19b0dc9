"""TODO."""

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
from rlearly.experiments.job import DONE, SAVED, Job, JobRunner
from rlearly.experiments.launchers.base import Say, ending


@dataclass(frozen=True)
class RayConfig:
    """`launcher=ray`: where, and what each run takes there."""

    address: str | None = setting(None, "HOST:PORT or auto; null: a Ray of its own, here")
    cpus: float = setting(1.0, "of a run", above=0)
    gpus: float = setting(0.0, "of a run; 0.25 puts four on one", at_least=0)
    memory_gb: float | None = setting(None, "of a run; null: not counted", above=0)


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
        here = str(Path(__file__).parents[3])
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
    attempt = JobRunner(Path(sweep), name, "ray")
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
