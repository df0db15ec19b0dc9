"""`python -m rlearly.sweep agent=drm,drqv2 env=dog_run seeds=10`: many runs by one command."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlearly.config.fields import group, setting
from rlearly.config.overrides import format_command, format_override
from rlearly.config.schema import RunConfig
from rlearly.config.structured import describe_fields, did_you_mean, from_overrides
from rlearly.core.errors import ConfigError
from rlearly.experiments.launchers.ray import RayConfig
from rlearly.experiments.launchers.slurm import SlurmConfig

if TYPE_CHECKING:
    from rlearly.experiments.job import Job
    from rlearly.experiments.launchers.base import Launcher
    from rlearly.experiments.plan import Plan

DONE, FAILED, BAD_REQUEST, STOPPED = 0, 1, 2, 75
LAUNCHERS = ("local", "slurm", "ray")
WATCH_SECONDS = 2.0
LOCK = "launcher.lock"
VERBS = ("status", "cancel", "sync")
AS_TYPED = ("seeds", "study", "sweep_dir", "teachers", *VERBS)
"""Keys whose values are taken as they stand: a sweep's directory may have = and commas in it."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
USAGE = """Usage: python -m rlearly.sweep agent=A,B env=X,Y seeds=N [key=value ...]
       python -m rlearly.sweep study=NAME [key=value ...]
       python -m rlearly.sweep status=SWEEP_DIR [watch=true]
       python -m rlearly.sweep cancel=SWEEP_DIR
       python -m rlearly.sweep sync=SWEEP_DIR

Commas make a grid; every other word is one of `rlearly.train` and goes to all runs. The same
command again goes on: what is done is skipped, what was stopped or failed is run again.
"""


@dataclass(frozen=True)
class SweepConfig:
    """What is run, where, and how it is looked at."""

    seeds: str | None = setting(None, "10 is 0 to 9; 3,5,8 are those; null: the study's own number")
    study: str | None = setting(None, "a study file, or the name of a shipped one")
    sweep_dir: str | None = setting(None, "null: sweeps/<what is run>")
    launcher: str = setting("local", "local, slurm or ray", choices=LAUNCHERS)
    workers: int | None = setting(
        None, "local: runs at once; null: one a core, or one a GPU", at_least=1
    )
    teachers: str | None = setting(
        None, "folder of ENV.h5 files for a study's teachers; null: they are trained first"
    )
    dry_run: bool = setting(False, "print the commands and the memory they need, and exit")
    status: str | None = setting(None, "a sweep's directory: say where its runs stand")
    watch: bool = setting(False, "with status=: keep saying")
    cancel: str | None = setting(None, "a sweep's directory: save and stop its runs")
    sync: str | None = setting(None, "a sweep's directory: send its offline wandb runs")
    slurm: SlurmConfig = group(SlurmConfig, "launcher=slurm")
    ray: RayConfig = group(RayConfig, "launcher=ray")


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words or not words:
        print(help_text())
        return DONE if words else BAD_REQUEST
    try:
        config, rest = split(words)
        for verb in (status, cancel, sync):
            folder = getattr(config, verb.__name__)
            if folder is not None:
                if rest:
                    raise ConfigError(f"{verb.__name__}: takes no {rest[0]!r} beside it.")
                return verb(Path(folder), config)
        return sweep(config, rest)
    except ConfigError as error:
        print(f"rlearly: {error}", file=sys.stderr)
        return BAD_REQUEST


def help_text() -> str:
    from rlearly.config.help import key_lines
    from rlearly.experiments.study import HELP, shipped

    lines = [USAGE, "Keys (type, default)", *key_lines(SweepConfig, ""), "", HELP]
    lines += [f"Shipped studies: {', '.join(shipped())}"]
    return "\n".join(lines)


def split(words: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """The sweep's own words as a config, and the runs' words.

    Raises:
        ConfigError: one of its own does not parse or has a wrong value.
    """
    own, rest = [], []
    mine = {name for name, *_ in describe_fields(SweepConfig)}
    theirs = {name for name, *_ in describe_fields(RunConfig)} | {"resume"}
    for word in words:
        key, equals, value = word.partition("=")
        if key in VERBS and not value:
            raise ConfigError(f"{key}: expected a sweep's directory, as in {key}=sweeps/NAME.")
        if not equals or word.startswith("-"):
            raise ConfigError(f"Expected key=value, received {word!r} (--help lists the keys).")
        near = difflib.get_close_matches(key, mine, 1, 0.75)
        if near and key not in mine | theirs:
            raise ConfigError(
                f"There is no key {key!r}; {did_you_mean(key, mine | theirs)} (--help lists the "
                "sweep's keys, python -m rlearly.train --help those of its runs.)"
            )
        if key in AS_TYPED and value != "null" and value[:1] not in ("'", '"'):
            word = format_override(key, value)
        (own if key.split(".")[0] in mine else rest).append(word)
    config = from_overrides(SweepConfig(), own)
    if config.watch and not config.status:
        raise ConfigError("watch: says nothing without status=SWEEP_DIR; add it.")
    return config, rest


def seeds_of(text: str) -> list[int]:
    """`10` as 0 to 9, `3,5,8` and `[3,5]` as those.

    Raises:
        ConfigError: it is neither, or empty, or a seed is there twice.
    """
    numbers = text.strip("[]").split(",") if text.startswith("[") or "," in text else None
    parts = [text] if numbers is None else [part.strip() for part in numbers if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"seeds: expected a number or a list like 3,5,8, received {text!r}.")
    found = list(range(int(text))) if numbers is None else [int(part) for part in parts]
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"seeds: expected at least one, each once, received {text!r}.")
    return found


def plan_of(config: SweepConfig, words: Sequence[str]) -> tuple[Plan, Path]:
    """What is to be run, and the directory of it.

    Raises:
        ConfigError: neither a study nor a grid is named, or it cannot be read.
    """
    from rlearly.experiments.study import Study, grid

    seeds = None if config.seeds is None else seeds_of(config.seeds)
    if config.study:
        for word in words:
            if word.split("=")[0] in ("env", "seed", "agent", "resume", "run_dir"):
                raise ConfigError(
                    f"{word}: a study has its own; write a study file of yours, or a grid without "
                    "study=."
                )
        teachers = str(Path(config.teachers).absolute()) if config.teachers else None
        plan = Study.load(Path(config.study)).plan(seeds=seeds, words=words, teachers=teachers)
        label = Path(config.study).stem
        folder = Path("sweeps") / (f"{label}-{_hash(words)}" if words else label)
    else:
        if seeds is None:
            raise ConfigError("seeds: expected how many runs of each, as in seeds=5.")
        if config.teachers:
            raise ConfigError("teachers: only a study has them; a grid takes snapshot=FILE.")
        plan = grid(words, seeds)
        arms, envs = (
            "+".join(dict.fromkeys(getattr(run, name) for run in plan.runs))
            for name in ("arm", "env")
        )
        label = re.sub(r"[^\w.+=-]", "-", f"{arms}_{envs}")[:60]
        folder = Path("sweeps") / f"{label}-{_hash(words)}"
    return plan, Path(config.sweep_dir or folder).absolute()


def _hash(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:6]


def sweep(config: SweepConfig, words: Sequence[str]) -> int:
    """Run what is missing of a plan.

    Raises:
        ConfigError: the request cannot be met; nothing was started.
    """
    from rlearly.experiments.job import jobs_of
    from rlearly.experiments.launchers.slurm import queue_of
    from rlearly.experiments.plan import plain

    plan, folder = plan_of(config, words)
    plan = _grouped(plan, folder)
    plan.check()
    for arm in dict.fromkeys(run.arm for run in plan.runs):
        if plain(arm) != arm:
            print(f"{arm} is kept in runs/{plain(arm)}: a folder has no such name.")
    if config.dry_run:
        return dry_run(*joined(plan, folder), folder, config)
    engine = make_engine(config)
    try:
        with alone_in(folder, config.launcher):
            plan, jobs = joined(plan, folder)
            with_slurm = queue_of(folder) if config.launcher != "slurm" else {}
            if any(job.name in with_slurm for job in jobs):
                raise ConfigError(
                    f"{folder} is with SLURM: look at it with status={folder}, or end it with "
                    f"cancel={folder} first."
                )
            plan.save(folder)
            return launch(folder, jobs, engine, config, jobs_of(plan, folder))
    except OSError as error:
        raise ConfigError(
            f"sweep_dir: {folder} cannot be written ({error.strerror}); name another."
        ) from None


def joined(plan: Plan, folder: Path) -> tuple[Plan, list[Job]]:
    """The plan with what the folder's own has beside it, and the jobs that were asked for.

    Raises:
        ConfigError: the two contradict each other.
    """
    from rlearly.experiments.job import jobs_of
    from rlearly.experiments.plan import PLAN, Plan

    asked = {run.name for run in plan.runs}
    if (folder / PLAN).exists():
        plan = plan.joined(Plan.load(folder), folder)
    jobs = jobs_of(plan, folder)
    needed = {job.needs for job in jobs if job.name in asked}
    return plan, [job for job in jobs if job.name in asked or job.name in needed]


def _grouped(plan: Plan, folder: Path) -> Plan:
    """With the sweep's name as the wandb group of its runs, if they are tracked there."""
    runs = []
    for run in plan.runs:
        keys = dict(word.split("=", 1) for word in run.words)
        tracked = keys.get("wandb.mode", "disabled") != "disabled"
        add = (
            [format_override("wandb.group", folder.name)]
            if tracked and "wandb.group" not in keys
            else []
        )
        runs.append(replace(run, words=[*run.words, *add]))
    return replace(plan, runs=runs)


def make_engine(config: SweepConfig) -> Launcher:
    """Raises:
    ConfigError: what it needs is not installed here.
    """
    from rlearly.experiments.launchers import local, ray, slurm

    if config.launcher == "slurm":
        return slurm.Slurm(config.slurm)
    if config.launcher == "ray":
        return ray.Ray(config.ray)
    gpus = local.usable_gpus()
    return local.LocalLauncher(local_workers(config, gpus), gpus)


def local_workers(config: SweepConfig, gpus: Sequence[str]) -> int:
    """Runs at once on this machine: one a GPU, or else one a core."""
    from rlearly.system.machine import usable_cores

    return config.workers or len(gpus) or usable_cores()


def dry_run(plan: Plan, jobs: Sequence[Job], folder: Path, config: SweepConfig) -> int:
    """Print every command that is still to be run, their number, and the memory of the replays."""
    from rlearly.experiments.job import commands
    from rlearly.experiments.launchers.local import usable_gpus

    left = [job for job in jobs if not job.finished(folder)]
    for job in left:
        for command in commands(plan, folder, job.name):
            print(format_command(["python", "-m", *command]))
    print(f"{len(left)} of {len(jobs)} jobs are to be run, in {folder}.")
    if left:
        at_once = len(left)
        if config.launcher == "local":
            at_once = min(local_workers(config, usable_gpus()), len(left))
        configs = plan.job_configs(folder, [job.name for job in left])
        print(replay_memory(list(configs.values()), at_once))
    return DONE


def replay_memory(configs: Sequence[RunConfig], at_once: int) -> str:
    """How much memory the replays of runs need when the largest `at_once` run together."""
    from rlearly.system.machine import gigabytes
    from rlearly.training.builder import known_replay_bytes

    sizes = [known_replay_bytes(config) for config in configs]
    largest = sorted(size for size in sizes if size is not None)[-at_once:]
    if not largest:
        return "The memory of the replays depends on the envs' observations; it is not counted."
    text = f"With {at_once} at once, the replays grow to {gigabytes(sum(largest))}"
    unknown = sizes.count(None)
    return f"{text}, without {unknown} runs that observe states." if unknown else f"{text}."


@contextlib.contextmanager
def alone_in(folder: Path, launcher: str) -> Iterator[None]:
    """Makes a sweep's directory, with this process as its only launcher. If the sweep is refused
    before a job was started, what was made goes, and the plan is what it was.

    Raises:
        ConfigError: another process launches it.
    """
    from rlearly.experiments.launchers.slurm import submitted
    from rlearly.experiments.plan import PLAN
    from rlearly.training.run_directory import write

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    new_lock = not (folder / LOCK).exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with only_launcher(folder, launcher):
            before, with_slurm = set(folder.iterdir()), submitted(folder)
            plan = (folder / PLAN).read_text() if folder / PLAN in before else None
            try:
                yield
            except ConfigError:
                if submitted(folder) == with_slurm:
                    for path in set(folder.iterdir()) - before:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                    if plan is not None:
                        write(folder / PLAN, plan)
                    if new_lock:
                        (folder / LOCK).unlink()
                raise
    except ConfigError:
        with contextlib.suppress(OSError):  # not empty
            for path in made:
                path.rmdir()
        raise


@contextlib.contextmanager
def only_launcher(folder: Path, launcher: str) -> Iterator[None]:
    """One process at a time launches a sweep; who it is stands in launcher.json.

    Raises:
        ConfigError: another one does.
    """
    with (folder / LOCK).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{folder} is being launched by another process; look at it with status={folder}, "
                f"or end it with cancel={folder}."
            ) from None
        file = folder / "launcher.json"
        file.write_text(
            json.dumps({"launcher": launcher, "pid": os.getpid(), "host": socket.gethostname()})
        )
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def launch(
    folder: Path, jobs: Sequence[Job], engine: Launcher, config: SweepConfig, every: Sequence[Job]
) -> int:
    """Start what is not done of `jobs`, and look after it as far as the engine wants that.

    `every`: the sweep's jobs, of which these may be a part.
    """
    from rlearly.experiments.status import failures, statuses, totals

    left = [job for job in jobs if not job.finished(folder)]
    whose = "" if len(jobs) == len(every) else " of this command"
    print(f"{len(jobs) - len(left)} of {len(jobs)} jobs{whose} are done already; {folder}")
    stopped = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        engine.stop()

    before = {name: signal.signal(name, stop) for name in STOPS}
    try:
        if left:
            with screen(folder, jobs, live=config.launcher != "slurm") as say:
                engine.launch(folder, left, say)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    if config.launcher == "slurm" and left:
        look_with = format_command([f"status={folder}"])
        print(f"SLURM has them now; look with: python -m rlearly.sweep {look_with}")
        return DONE
    found = statuses(folder, jobs)
    for line in failures(found):
        print(line)
    print(totals(found, whose))
    if whose:
        print(totals(statuses(folder, every), " of the sweep"))
    if stopped:
        print("stopped; the same command goes on.")
        return STOPPED
    print(f"read it with: python -m rlearly.report {format_command([f'sweep={folder}'])}")
    return DONE if all(status.state == "done" for status in found) else FAILED


@contextlib.contextmanager
def screen(folder: Path, jobs: Sequence[Job], *, live: bool) -> Iterator[Any]:
    """Where an engine's lines go: above a table that is kept up to date, on a terminal."""
    from rich.console import Console
    from rich.live import Live

    from rlearly.experiments.status import statuses

    console = Console()
    if not (live and console.is_terminal):
        yield lambda text: print(f"{text}\n", end="", flush=True)  # one write: threads share it
        return

    one_at_a_time, over = threading.Lock(), threading.Event()

    def say(text: str) -> None:
        with one_at_a_time:
            console.print(text, markup=False)

    def draw() -> None:
        with one_at_a_time:
            shown.update(look(statuses(folder, jobs), console), refresh=True)

    def keep_drawing() -> None:
        while not over.wait(WATCH_SECONDS):
            draw()

    drawer = threading.Thread(target=keep_drawing, daemon=True)
    with Live(console=console, auto_refresh=False) as shown:
        draw()
        drawer.start()
        try:
            yield say
        finally:
            over.set()
            drawer.join()
            draw()


def look(found: Sequence[Any], console: Any) -> Any:
    """The table that fits the terminal, with the totals below."""
    from rich.console import Group
    from rich.text import Text

    from rlearly.experiments.status import table, totals

    most = max(5, console.height - 6) if console.is_terminal else None
    return Group(table(found, most), Text(totals(found)))


def status(folder: Path, config: SweepConfig) -> int:
    """Say where a sweep's runs stand; exit status 1 if some failed."""
    from rich.console import Console
    from rich.live import Live

    from rlearly.experiments.job import in_use, jobs_of
    from rlearly.experiments.launchers.slurm import queue_of
    from rlearly.experiments.plan import Plan
    from rlearly.experiments.status import failures, statuses

    folder = folder.absolute()
    jobs = jobs_of(Plan.load(folder), folder)
    lock = folder / LOCK
    console = Console()

    def read() -> list[Any]:
        return statuses(folder, jobs, queue_of(folder))

    found = read()
    if config.watch:
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(look(found, console), console=console, auto_refresh=False) as live,
        ):
            while any(s.state in ("running", "queued") for s in found) or in_use(lock):
                time.sleep(WATCH_SECONDS)
                with contextlib.suppress(ConfigError):  # SLURM's, now and then, is passing
                    found = read()
                live.update(look(found, console), refresh=True)
    else:
        console.print(look(found, console))
    for line in failures(found):
        console.print(line, markup=False, highlight=False)
    return FAILED if any(s.state in ("failed", "skipped") for s in found) else DONE


def cancel(folder: Path, config: SweepConfig) -> int:
    """Ask the engine of a sweep to end its runs; each saves a checkpoint."""
    from rlearly.experiments.job import in_use
    from rlearly.experiments.launchers.slurm import cancel_slurm
    from rlearly.experiments.plan import Plan

    folder = folder.absolute()
    Plan.load(folder)
    ended = [f"{count} SLURM jobs" for count in [cancel_slurm(folder)] if count]
    with contextlib.suppress(OSError, ValueError, KeyError):
        who = json.loads((folder / "launcher.json").read_text())
        if in_use(folder / LOCK):  # else it is gone, and its number may be another's
            if who["host"] != socket.gethostname():
                raise ConfigError(
                    f"{folder} was launched on {who['host']} by process {who['pid']}: cancel it "
                    "there."
                )
            os.kill(who["pid"], signal.SIGTERM)
            ended.append(f"the {who['launcher']} launcher, process {who['pid']}")
    print(f"asked to save and stop: {', '.join(ended)}" if ended else "nothing is running.")
    return DONE


def sync(folder: Path, config: SweepConfig) -> int:
    """Send what runs have written for wandb without a network."""
    from rlearly.experiments.plan import Plan

    Plan.load(folder.absolute())
    found = sorted(folder.glob("runs/*/*/*/wandb/offline-run-*"))
    if not found:
        raise ConfigError(f"{folder} has no offline wandb runs: wandb.mode=offline makes them.")
    done = subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, found)])
    return DONE if done.returncode == 0 else FAILED


if __name__ == "__main__":
    sys.exit(main())
