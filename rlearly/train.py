"""`python -m rlearly.train agent=drm env=dog_run`: train one agent on one env with one seed."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlearly.config.overrides import parse_overrides
from rlearly.config.schema import RunConfig
from rlearly.config.structured import as_yaml
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.system.command import exit_with
from rlearly.training.stop_requests import StopRequests

if TYPE_CHECKING:
    from rlearly.training.trainer import Callback, Trainer

DONE, SAVED, FAILED, BAD_REQUEST = 0, 75, 1, 2
"""Exit statuses: finished; stopped with a checkpoint, to be resumed; the env or learning failed;
the request cannot be met."""


def main(arguments: Sequence[str] | None = None) -> int:
    overrides = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        if "--help" in overrides or "-h" in overrides or not overrides:
            from rlearly.config.help import train_help

            print(train_help([word for word in overrides if not word.startswith("-")]))
            return DONE
        if "--cfg" in overrides:
            return show_config(overrides)
        unknown = [word for word in overrides if word.startswith("-")]
        if unknown:
            raise ConfigError(f"There is no option {unknown[0]}; there are --help and --cfg job.")
        return train(overrides)
    except ConfigError as error:
        print(f"rlearly: {error}", file=sys.stderr)
        return BAD_REQUEST


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
    from rlearly.agents import agent_spec
    from rlearly.config import resolve
    from rlearly.system import machine
    from rlearly.training import builder, run_directory

    stop = StopRequests()
    resumed = dict(parse_overrides(overrides)).get("resume")
    if resumed is None:
        folder, config = None, resolve.compose(overrides)
    else:
        folder = Path(str(resumed))
        changed = [word for word in overrides if not word.startswith("resume=")]
        config = resolve.load(folder, changed)
        if run_directory.is_done(folder) and "train_frames" not in dict(parse_overrides(changed)):
            print(f"{folder} is finished; add train_frames= to train on.")
            return DONE
        run_directory.refuse_to_shrink(folder, config)
        if "threads" not in dict(parse_overrides(changed)):
            config = replace(config, threads=machine.fitting_threads(config.threads))
    builder.check_rendering(config)
    most = agent_spec(config.agent_name).max_threads
    config = replace(config, threads=machine.set_threads(config.threads, most))
    device = machine.choose_device(config.device)
    machine.use_deterministic_kernels(device)
    machine.set_tf32(config.precision == "tf32")
    if folder is None:
        folder = run_directory.create(config)
    with run_directory.locked(folder):
        return run(config, folder, device, stop, resume=resumed is not None)


def run(config: RunConfig, folder: Path, device: Any, stop: StopRequests, *, resume: bool) -> int:
    """Train in a locked run directory; returns the exit status."""
    from rlearly.system import machine
    from rlearly.training import checkpoint, run_directory
    from rlearly.training.display import Display

    display = Display(config.train_frames)
    starting_over = resume and not checkpoint.list_checkpoints(folder / "checkpoints")
    if starting_over:
        run_directory.refuse_to_start_over(folder, config)
    try:
        trainer = prepare(config, folder, device, display, stop, resume=resume)
    except RunFailed as failed:
        return report_failure(failed, folder, None)
    except BaseException:
        if not resume:
            run_directory.discard(folder)
        raise
    provenance = run_directory.provenance(config.threads, device)
    display.message(
        f"{config.agent_name} on {config.env.name}, seed {config.seed}, "
        f"{device} with {machine.describe_threads(config.threads)} -> {folder}"
    )
    if starting_over:
        display.message("the run ended before its first checkpoint and starts over")
    elif resume:
        display.message(f"resumed at {trainer.at.frames:,} frames")
        changes = run_directory.changes_since_last_start(folder, provenance)
        if changes:
            display.message(
                f"changed since the last start: {', '.join(changes)}; "
                "bit-for-bit equality is no longer guaranteed"
            )
    finished, failed = False, None
    try:
        run_directory.record_start(folder, config, provenance)
        with display:
            finished = trainer.run()
    except RunFailed as error:
        failed = error
    except OSError as error:
        raise ConfigError(
            f"{folder}: writing failed ({error}); free space or fix it, then continue with "
            f"resume={folder}."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # rows are on the disk, or the error above says why not
            trainer.close()
    if failed:  # reported last, after what closing may say
        return report_failure(failed, folder, trainer)
    frames, updates = trainer.at.frames, trainer.updates
    if not finished:
        command = run_directory.train_command(f"resume={folder}")
        display.message(f"saved at {frames:,} frames; continue with: {command}")
        return SAVED
    summary = {"frames": frames, "updates": updates, "time": time.time()}
    run_directory.write(folder / run_directory.DONE, json.dumps(summary))
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
    except (ConfigError, RunFailed):
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
        f"{start} with: {run_directory.train_command(f'resume={folder}')}",
        file=sys.stderr,
    )
    return FAILED


if __name__ == "__main__":
    exit_with(main)
