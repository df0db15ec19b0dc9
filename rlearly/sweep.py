"""`python -m rlearly.sweep agent=drm,drqv2 env=dog_run seeds=10`: many runs with one command."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.sweep")

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.live import Live

from rlearly.api.launch import WATCH_SECONDS, SweepConfig, checked_plan, joined, show, split, start
from rlearly.config.help import key_lines
from rlearly.config.overrides import python_command
from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import BAD_REQUEST, DONE, FAILED, STATUS_HELP
from rlearly.experiments.job import Job, commands, jobs_of
from rlearly.experiments.launchers.local import local_workers
from rlearly.experiments.launchers.lock import owner_of
from rlearly.experiments.launchers.slurm import cancel_slurm, queue_of
from rlearly.experiments.plan import Plan
from rlearly.experiments.status import failures, overview, statuses
from rlearly.experiments.study import STUDIES, Study, shipped
from rlearly.system.command import as_command, call_instead
from rlearly.system.machine import can_ask_to_save, gigabytes
from rlearly.training.builder import known_replay_bytes
from rlearly.training.display import PipeConsole

call_instead(__name__, "rlearly.api.sweep:sweep")
USAGE = """Usage: python -m rlearly.sweep agent=A,B env=X,Y seeds=N [key=value ...]
       python -m rlearly.sweep study=NAME [key=value ...]
       python -m rlearly.sweep status=SWEEP_DIR [watch=true]
       python -m rlearly.sweep cancel=SWEEP_DIR
       python -m rlearly.sweep sync=SWEEP_DIR

Values separated by commas make a grid; quote a value that contains a comma, as in
"env.normalize='obs,reward'". Keys that are not listed here are those of `rlearly.train` and apply
to all runs. Repeat a command to continue its sweep: finished runs are skipped, stopped and failed
ones are started again.
"""


@as_command
def main(arguments: list[str]) -> int:
    """Run a sweep, or show, cancel or sync one; returns the exit status."""
    if "--help" in arguments or "-h" in arguments or not arguments:
        print(help_text())
        return DONE if arguments else BAD_REQUEST
    config, overrides = split(arguments)
    for verb in (status, cancel, sync):
        folder = getattr(config, verb.__name__)
        if folder is not None:
            if overrides:
                raise ConfigError(
                    f"{verb.__name__}: cannot be combined with {overrides[0]!r}; leave it out."
                )
            return verb(Path(folder).absolute(), config)
    plan, folder = checked_plan(config, overrides, show)
    if config.dry_run:
        return dry_run(*joined(plan, folder), folder, config)
    return start(config, plan, folder)


def help_text() -> str:
    lines = [USAGE, "Keys (type, default)", *key_lines(SweepConfig, ""), ""]
    lines += ["Keys of a study file, which is YAML", *key_lines(Study, ""), ""]
    lines += [f"Shipped studies: {', '.join(shipped())}. To write one, copy one of {STUDIES}."]
    lines += [STATUS_HELP]
    return "\n".join(lines)


def dry_run(plan: Plan, jobs: Sequence[Job], folder: Path, config: SweepConfig) -> int:
    """Print every command that is still to be run, their number, and the memory of the replays."""
    left = [job for job in jobs if not job.finished(folder)]
    for job in left:
        for command in commands(plan, folder, job.name):
            print(python_command(*command))
    print(f"{len(left)} of {len(jobs)} jobs are to be run, in {folder}.")
    configs = plan.configs() if left else {}
    sizes = [known_replay_bytes(configs[job.name]) for job in left]
    at_once = local_workers(config.workers) if config.launcher == "local" else len(left)
    largest = sorted(size for size in sizes if size is not None)[-at_once:]
    unknown = sizes.count(None)
    if largest:
        rest = f", not counting {unknown} runs without pixels" if unknown else ""
        print(
            f"With {min(at_once, len(left))} at once, the replays grow to about "
            f"{gigabytes(sum(largest))}{rest}."
        )
    elif unknown:
        print("The memory of the replays depends on the envs' observations; it is not counted.")
    return DONE


def status(folder: Path, config: SweepConfig) -> int:
    """Show the state of a sweep's runs; exit status 1 if some failed."""
    jobs = jobs_of(Plan.load(folder))
    found = statuses(folder, jobs, queue_of(folder))
    console = PipeConsole()
    if config.watch:
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(overview(found, console), console=console, auto_refresh=False) as live,
        ):
            while owner_of(folder) or any(s.state in ("running", "queued") for s in found):
                time.sleep(WATCH_SECONDS)
                with contextlib.suppress(ConfigError):  # SLURM sometimes does not answer
                    found = statuses(folder, jobs, queue_of(folder))
                live.update(overview(found, console), refresh=True)
    else:
        console.print(overview(found, console))
    for line in failures(found):
        print(line)
    return FAILED if any(s.state in ("failed", "skipped") for s in found) else DONE


def cancel(folder: Path, config: SweepConfig) -> int:
    """Ask the runs of a sweep to save a checkpoint and stop."""
    Plan.load(folder)
    asked = [f"{count} SLURM jobs" for count in [cancel_slurm(folder)] if count]
    owner = owner_of(folder)
    if owner:
        if owner["host"] != socket.gethostname():
            raise ConfigError(
                f"{folder} was launched on {owner['host']} by process {owner['pid']}: cancel it "
                "there."
            )
        if not can_ask_to_save():
            raise ConfigError(
                "cancel: this system has no signal that asks a process to save: press Ctrl-C in "
                f"the terminal of process {owner['pid']}."
            )
        os.kill(owner["pid"], signal.SIGTERM)
        asked.append(f"the {owner['launcher']} launcher, process {owner['pid']}")
    print(f"asked to save and stop: {', '.join(asked)}" if asked else "nothing is running.")
    return DONE


def sync(folder: Path, config: SweepConfig) -> int:
    """Upload the wandb runs that a sweep recorded offline."""
    Plan.load(folder)
    found = sorted(folder.glob("runs/*/*/*/wandb/offline-run-*"))
    if not found:
        raise ConfigError(f"{folder} has no offline wandb runs; wandb.mode=offline makes them.")
    done = subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, found)])
    return DONE if done.returncode == 0 else FAILED
