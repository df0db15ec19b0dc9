"""Plan and start sweeps, for `python -m rlearly.sweep` and `rlearly.sweep`."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from rlearly.config.fields import group, setting
from rlearly.config.overrides import format_override, python_command, split_overrides
from rlearly.config.schema import RunConfig
from rlearly.config.structured import describe_fields, did_you_mean, from_overrides
from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import DONE, FAILED, SAVED
from rlearly.experiments.job import Job, jobs_of
from rlearly.experiments.launchers.base import STOP_SIGNALS, Launcher, Report
from rlearly.experiments.launchers.local import LocalLauncher, local_workers, usable_gpus
from rlearly.experiments.launchers.lock import only_launcher, sweep_command
from rlearly.experiments.launchers.ray import Ray, RayConfig
from rlearly.experiments.launchers.slurm import (
    Slurm,
    SlurmConfig,
    queue_of,
)
from rlearly.experiments.plan import PLAN, Plan, Run, folder_name
from rlearly.experiments.status import failed_at_once, failures, overview, statuses, totals
from rlearly.experiments.study import Study, grid, seeds_of
from rlearly.system.machine import can_ask_to_save
from rlearly.system.signals import handled
from rlearly.training import run_directory
from rlearly.training.builder import check_rendering
from rlearly.training.display import PipeConsole

WATCH_SECONDS = 2.0
VERBS = ("status", "cancel", "sync")


@dataclass(frozen=True)
class SweepConfig:
    """What to run, where, and how to look at it."""

    seeds: str | None = setting(None, "10: seeds 0 to 9; 3,5,8: these; null: those of the study")
    study: str | None = setting(None, "a study file, or the name of a shipped study")
    sweep_dir: str | None = setting(
        None, "directory; null: sweeps/ and a name made from the command"
    )
    launcher: str = setting("local", "where the runs go", choices=("local", "slurm", "ray"))
    workers: int | None = setting(
        None, "launcher=local: runs at once; null: one per GPU, or else per core", at_least=1
    )
    teachers: str | None = setting(
        None, "folder of ENV.h5 files for a study's teachers; null: train them first"
    )
    dry_run: bool = setting(False, "print the commands and the memory they need, and exit")
    status: str | None = setting(None, "directory of a sweep: show the state of its runs")
    watch: bool = setting(False, "with status=: keep showing it")
    cancel: str | None = setting(None, "directory of a sweep: save and stop its runs")
    sync: str | None = setting(None, "directory of a sweep: upload its offline wandb runs")
    slurm: SlurmConfig = group(SlurmConfig, "launcher=slurm")
    ray: RayConfig = group(RayConfig, "launcher=ray")


def split(arguments: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """The sweep's own config, and the overrides of its runs.

    Raises:
        ConfigError: an argument is not key=value, or is a wrong setting of the sweep.
    """
    own, overrides = [], []
    own_keys = {name for name, *_ in describe_fields(SweepConfig)}
    all_keys = own_keys | {name for name, *_ in describe_fields(RunConfig)} | {"resume"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in VERBS and not value:
            raise ConfigError(f"{key}: expected the directory of a sweep, as in {key}=sweeps/NAME.")
        if not equals or argument.startswith("-"):
            raise ConfigError(f"Expected key=value, received {argument!r} (--help lists the keys).")
        if key not in all_keys and difflib.get_close_matches(key, own_keys, 1, 0.75):
            raise ConfigError(
                f"There is no key {key!r}; {did_you_mean(key, all_keys)} (--help lists the keys "
                "of sweeps, python -m rlearly.train --help those of runs.)"
            )
        (own if key.split(".")[0] in own_keys else overrides).append(argument)
    config = from_overrides(SweepConfig(), own)
    if config.watch and not config.status:
        raise ConfigError("watch: has no effect without status=SWEEP_DIR; add it.")
    return config, overrides


def plan_of(config: SweepConfig, overrides: Sequence[str]) -> tuple[Plan, Path]:
    """The runs that a command requests, and the directory of the sweep.

    Raises:
        ConfigError: it requests neither a study nor a grid, or it cannot be read.
    """
    seeds = None if config.seeds is None else seeds_of(config.seeds)
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:6]
    if config.study:
        for override in overrides:
            if override.split("=")[0] in ("env", "seed", "agent", "resume", "run_dir"):
                raise ConfigError(
                    f"{override}: a study sets this itself; write your own study file, or a grid "
                    "without study=."
                )
        teachers = str(Path(config.teachers).absolute()) if config.teachers else None
        study = Study.load(Path(config.study))
        plan = study.plan(seeds=seeds, overrides=overrides, teachers=teachers)
        name = Path(config.study).stem + (f"-{digest}" if overrides else "")
    else:
        if seeds is None:
            raise ConfigError("seeds: expected the number of runs of each, as in seeds=5.")
        if config.teachers:
            raise ConfigError("teachers: only a study has them; a grid takes snapshot=FILE.")
        plan = grid(overrides, seeds)
        arms, envs = (
            "+".join(dict.fromkeys(getattr(run, key) for run in plan.runs))
            for key in ("arm", "env")
        )
        label = re.sub(r"[^\w.+=-]", "-", f"{arms}_{envs}")
        name = f"{label[:60]}-{digest}"
    folder = Path(config.sweep_dir or Path("sweeps") / name).absolute()
    known = None if run_directory.original_of(folder) else run_directory.identity_of(folder)
    group = known["name"] if known else folder.name
    return replace(plan, runs=[_grouped(run, group) for run in plan.runs]), folder


def _grouped(run: Run, sweep: str) -> Run:
    """The run with the sweep's original name as its wandb group, if it uses wandb and sets none."""
    keys = dict(split_overrides(run.overrides))
    if keys.get("wandb.mode", "disabled") == "disabled" or "wandb.group" in keys:
        return run
    return replace(run, overrides=[*run.overrides, format_override("wandb.group", sweep)])


def checked_plan(config: SweepConfig, overrides: Sequence[str], say: Report) -> tuple[Plan, Path]:
    """As `plan_of`, and all runs compose. `say`: called with lines for the user.

    Raises:
        ConfigError: a run does not compose; or as `plan_of`.
    """
    plan, folder = plan_of(config, overrides)
    plan.check()
    for arm in dict.fromkeys(run.arm for run in plan.runs):
        if folder_name(arm) != arm:
            say(f"{arm} is stored in runs/{folder_name(arm)}: its name is not valid for a folder.")
    return plan, folder


def show(line: str) -> None:
    """Print a line; one write, as threads share the output."""
    print(f"{line}\n", end="", flush=True)


def start(config: SweepConfig, plan: Plan, folder: Path, say: Report = show) -> int:
    """Run all runs of a checked plan that have not finished; returns the exit status.

    Args:
        say: called with lines for the user. If it is `show`, a terminal also gets a live table.

    Raises:
        ConfigError: the request cannot be met; nothing was started.
    """
    if config.launcher == "local":
        configs = plan.configs()
        for job in jobs_of(plan):
            if not job.finished(folder):
                check_rendering(configs[job.name])
    launcher = make_launcher(config)
    try:
        with only_launcher(folder, config.launcher):
            plan, jobs = joined(plan, folder)
            queued = queue_of(folder) if config.launcher != "slurm" else {}
            if any(job.name in queued for job in jobs):
                raise ConfigError(
                    f"{folder} has jobs in SLURM's queue: end them first with: "
                    f"{sweep_command('cancel', folder)}; or look at them with: "
                    f"{sweep_command('status', folder)}"
                )
            identify(plan, folder, say).save(folder)
            return launch(folder, jobs, jobs_of(plan), launcher, config, say)
    except OSError as error:
        raise ConfigError(
            f"sweep_dir: {folder} cannot be written ({error.strerror}); give another."
        ) from None


def identify(plan: Plan, folder: Path, say: Report = show) -> Plan:
    """Give a sweep's directory its identity, and a copy also its own wandb group.

    Returns the plan, with that group instead of the original's.
    """
    original = run_directory.original_of(folder)
    identity = run_directory.identify(folder)
    if not original:
        return plan
    (folder / "slurm" / "jobs.json").unlink(missing_ok=True)
    say(
        f"{folder} is a copy of {original}: it continues as a separate sweep, and its runs get "
        "their own wandb ids"
    )
    before, now = (
        format_override("wandb.group", name)
        for name in (identity["copied_from"]["name"], identity["name"])
    )
    return replace(
        plan,
        runs=[
            replace(run, overrides=[now if word == before else word for word in run.overrides])
            for run in plan.runs
        ],
    )


def joined(plan: Plan, folder: Path) -> tuple[Plan, list[Job]]:
    """The plan with the other runs of the folder's own plan, and the jobs of this command.

    A plan whose jobs all failed before their first checkpoint is not kept.

    Raises:
        ConfigError: the two plans contradict each other.
    """
    names = {run.name for run in plan.runs}
    if (folder / PLAN).exists():
        earlier = Plan.load(folder)
        if not failed_at_once(folder, jobs_of(earlier), queue_of(folder)):
            plan = plan.joined(earlier, folder)
    jobs = jobs_of(plan)
    names |= {job.needs for job in jobs if job.name in names}
    return plan, [job for job in jobs if job.name in names]


def make_launcher(config: SweepConfig) -> Launcher:
    """The launcher of a config.

    Raises:
        ConfigError: what it needs is not installed here.
    """
    if config.launcher == "slurm":
        return Slurm(config.slurm)
    if config.launcher == "ray":
        return Ray(config.ray)
    return LocalLauncher(local_workers(config.workers), usable_gpus())


def launch(
    folder: Path,
    jobs: Sequence[Job],
    every: Sequence[Job],
    launcher: Launcher,
    config: SweepConfig,
    say: Report = show,
) -> int:
    """Start the jobs that are not done, and wait for them unless SLURM has them.

    `every`: all jobs of the sweep; `jobs` are those of this command. `say`: see `start`.
    """
    left = [job for job in jobs if not job.finished(folder)]
    scope = "" if len(jobs) == len(every) else " of this command"
    say(f"{len(jobs) - len(left)} of {len(jobs)} jobs{scope} are done already; {folder}")
    if left and not can_ask_to_save():
        say(
            "This system has no signal that asks runs to save: runs that are stopped continue "
            "from their last checkpoint."
        )
    stopped = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        launcher.stop()

    with handled(STOP_SIGNALS, stop):
        if left:
            live = config.launcher != "slurm" and say is show
            with progress(folder, jobs, say, live=live) as report:
                launcher.launch(folder, left, report)
    if config.launcher == "slurm" and left:
        say(f"SLURM has the jobs now; look at them with: {sweep_command('status', folder)}")
        return DONE
    found = statuses(folder, jobs)
    say("\n".join([*failures(found), totals(found, scope)]))
    if scope:
        say(totals(statuses(folder, every), " of the sweep"))
    if stopped:
        say("stopped; repeat the command to continue.")
        return SAVED
    read = python_command("rlearly.report", format_override("sweep", folder))
    say(f"make a report with: {read}")
    return DONE if all(status.state == "done" for status in found) else FAILED


@contextlib.contextmanager
def progress(folder: Path, jobs: Sequence[Job], say: Report, *, live: bool) -> Iterator[Report]:
    """Shows what a launcher reports: on a terminal above a table that is kept up to date."""
    console = PipeConsole()
    if not (live and console.is_terminal):
        yield say
        return
    with Live(
        console=console,
        get_renderable=lambda: overview(statuses(folder, jobs), console),
        refresh_per_second=1 / WATCH_SECONDS,
    ):
        yield lambda text: console.print(Text(text), soft_wrap=True)
