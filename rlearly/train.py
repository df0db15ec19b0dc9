"""`python -m rlearly.train agent=drm env=dog_run`: train one agent on one env with one seed."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.train")

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlearly.config.overrides import parse_value, split_overrides
from rlearly.config.schema import RunConfig
from rlearly.config.structured import as_yaml, refuse_folders
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.exit_status import DONE, FAILED, SAVED, STATUS_HELP
from rlearly.system.command import as_command, importing, is_out_of_memory, out_of_memory
from rlearly.training.stop_requests import StopRequests

if TYPE_CHECKING:
    from rlearly.training.display import Display
    from rlearly.training.trainer import Callback, Trainer


@as_command
def main(overrides: list[str]) -> int:
    """Train with these overrides; returns the exit status.

    The process is left as it was found, except for what `system.process.restored_process` and
    `system.machine.computing` name.
    """
    if "--help" in overrides or "-h" in overrides or not overrides:
        from rlearly.config.help import train_help

        text = train_help([word for word in overrides if not word.startswith("-")])
        print(text, STATUS_HELP, sep="\n")
        return DONE
    if "--cfg" in overrides:
        return show_config(overrides)
    unknown = [word for word in overrides if word.startswith("-")]
    if unknown:
        raise ConfigError(f"There is no option {unknown[0]}; there are --help and --cfg job.")
    return train(overrides)


def show_config(overrides: list[str]) -> int:
    from rlearly.config.resolve import compose

    at = overrides.index("--cfg")
    if overrides[at + 1 : at + 2] != ["job"]:
        raise ConfigError("--cfg: expected `--cfg job`, which prints the config and exits.")
    print(as_yaml(compose(overrides[:at] + overrides[at + 2 :])), end="")
    return DONE


def train(overrides: list[str]) -> int:
    """Start or resume a run; returns the exit status.

    Raises:
        ConfigError: the request cannot be met.
    """
    with importing():
        from rlearly.agents import agent_spec
        from rlearly.config import resolve
        from rlearly.system import machine
        from rlearly.training import builder, run_directory

    refuse_folders(overrides, RunConfig, "resume")
    given = dict(split_overrides(overrides))
    resumed = parse_value("resume", given.get("resume", "null"), "str | None")
    if resumed is None:
        folder, config = None, resolve.compose(overrides)
    else:
        folder = Path(resumed)
        changed = [word for word in overrides if not word.startswith("resume=")]
        config = resolve.load(folder, changed)
        if run_directory.is_done(folder) and "train_frames" not in given:
            print(f"{folder} is finished; add train_frames= to train on.")
            return DONE
        run_directory.refuse_to_shrink(folder, config)
        if "threads" not in given:
            config = replace(config, threads=machine.fitting_threads(config.threads))
    builder.check_rendering(config)
    most = agent_spec(config.agent_name).max_threads
    threads = machine.thread_count(config.threads, most)
    config = replace(config, threads=threads)
    device = machine.choose_device(config.device)
    tf32 = config.precision == "tf32"
    with StopRequests() as stop, machine.computing(threads, device, tf32=tf32):
        if folder is None:
            folder = run_directory.create(config)
        with run_directory.locked(folder):
            try:
                return run(config, folder, device, stop, overrides, resume=resumed is not None)
            except BaseException:
                if resumed is None and not run_directory.has_started(folder):
                    run_directory.discard(folder)
                raise


def run(
    config: RunConfig,
    folder: Path,
    device: Any,
    stop: StopRequests,
    overrides: Sequence[str],
    *,
    resume: bool,
) -> int:
    """Train in a locked run directory; returns the exit status."""
    from rlearly import envs
    from rlearly.system.provenance import provenance
    from rlearly.training import checkpoint, run_directory
    from rlearly.training.display import Display, PipeConsole

    def reader_gone() -> None:
        if not stop.saves:
            raise BrokenPipeError
        stop.stop("the program that reads the output exited")

    display = Display(
        config.train_frames, PipeConsole(reader_gone, highlight=False, soft_wrap=True)
    )
    starting_over = resume and not checkpoint.list_checkpoints(folder / "checkpoints")
    if starting_over:
        run_directory.refuse_to_start_over(folder, config)
    original = run_directory.original_of(folder)
    identity = run_directory.identify(folder)
    if original:
        display.message(
            f"{folder} is a copy of {original}: it continues as a separate run, with its own "
            "identity and wandb id"
        )
    try:
        trainer = prepare(config, folder, device, display, stop, resume=resume)
    except RunFailed as failed:
        return report_failure(failed, folder, None)
    try:
        if not stop.possible:
            display.message(
                "this run is not in the main thread, the only one where Python handles signals: "
                "Ctrl-C and a scheduler's signals do not save it"
            )
        origin = provenance(overrides, config.threads, device, envs.code_of(config.env))
        origin["identity"] = identity
        return learn(
            config,
            folder,
            device,
            stop,
            trainer,
            display,
            origin,
            resume=resume,
            starting_over=starting_over,
        )
    finally:
        with contextlib.suppress(OSError):
            trainer.close()


def learn(
    config: RunConfig,
    folder: Path,
    device: Any,
    stop: StopRequests,
    trainer: Trainer,
    display: Display,
    origin: dict[str, Any],
    *,
    resume: bool,
    starting_over: bool,
) -> int:
    """Record the start, and train to the end or until asked to stop; returns the exit status.

    `origin`: what provenance.json says of this start.
    """
    from rlearly.system import atomic, machine
    from rlearly.training import run_directory

    display.message(
        f"{config.agent_name} on {config.env.name}, seed {config.seed}, "
        f"{device} with {machine.describe_threads(config.threads)} -> {folder}"
    )
    if starting_over:
        display.message("the run ended before its first checkpoint and starts over")
    elif resume:
        display.message(f"resumed at {trainer.at.frames:,} frames")
        changes = run_directory.changes_since_last_start(folder, origin)
        if changes:
            display.message(
                f"changed since the last start: {', '.join(changes)}; "
                "bit-for-bit equality is no longer guaranteed"
            )
    finished, failed = False, None
    try:
        run_directory.record_start(folder, config, origin)
        stop.saves = True
        with display:
            finished = trainer.run()
    except RunFailed as error:
        failed = error
    except KeyboardInterrupt:
        if resume or run_directory.has_started(folder):  # else the directory is removed
            display.message(
                "ended without saving; continue from the last checkpoint with: "
                f"{run_directory.resume_command(folder)}"
            )
        raise
    except OSError as error:
        raise ConfigError(
            f"{folder}: writing failed ({error}); free space or fix it, then continue with: "
            f"{run_directory.resume_command(folder)}"
        ) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = RunFailed(out_of_memory(error))
        failed.__cause__ = error
    finally:
        with contextlib.suppress(OSError):  # rows are on the disk, or the error above says why not
            trainer.close()
    if failed:  # reported last, after what closing may say
        return report_failure(failed, folder, trainer)
    frames, updates = trainer.at.frames, trainer.updates
    if not finished:
        display.message(
            f"saved at {frames:,} frames; continue with: {run_directory.resume_command(folder)}"
        )
        return SAVED
    summary = {"frames": frames, "updates": updates, "time": time.time()}
    atomic.write(folder / run_directory.DONE, json.dumps(summary))
    display.message(f"done: {frames:,} frames, {updates:,} updates -> {folder}")
    return DONE


def prepare(
    config: RunConfig,
    folder: Path,
    device: Any,
    callback: Callback,
    stop: StopRequests,
    *,
    resume: bool,
) -> Trainer:
    """Build a run, try its evaluation env, and load its newest checkpoint when resuming.

    Raises:
        ConfigError: something that the run will need is missing; nothing was trained yet.
    """
    from rlearly.training import builder
    from rlearly.training.sinks import TensorBoard, make_sinks

    events = TensorBoard(folder / "events")
    trainer = builder.build(
        config,
        folder,
        make_sinks=lambda: make_sinks(config, folder, events),
        callback=callback,
        device=device,
        stop_requested=stop,
    )
    try:
        trainer.try_evaluation()
        if resume:
            frames = trainer.resume()
            events.purge_from = frames + 1 if frames else 0
    except BaseException:
        trainer.close()
        raise
    return trainer


def report_failure(failed: RunFailed, folder: Path, trainer: Trainer | None) -> int:
    """Write failure.json, and print what happened and what can be done.

    `trainer`: None if the run failed before it had one.
    """
    from rlearly.training import checkpoint, failure, run_directory

    kept = [int(path.name) for path in checkpoint.list_checkpoints(folder / "checkpoints")]
    frames = trainer.at.frames if trainer else max(kept, default=0)
    try:
        if trainer:
            trainer.dump_failure(failed)
        else:
            failure.dump(folder, failed, {"frames": frames}, {})
        details = f"{folder / run_directory.REPORT} has the details"
    except OSError as error:
        details = f"The details could not be written ({error})"
    start = f"the checkpoint of {kept[-1]:,} frames" if kept else "the beginning"
    remedy = (
        "start another run with other settings, as these cannot change; or continue"
        if failed.diverged
        else "fix the cause, then continue"
    )
    print(
        f"rlearly: stopped at {frames:,} frames: {failed}. {details}; {remedy} from "
        f"{start} with: {run_directory.resume_command(folder)}",
        file=sys.stderr,
    )
    return FAILED
