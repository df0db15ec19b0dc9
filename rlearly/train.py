"""`python -m rlearly.train agent=drm env=dog_run`: train one agent on one env with one seed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlearly.config.overrides import parse_overrides
from rlearly.config.schema import RunConfig
from rlearly.config.structured import as_yaml
from rlearly.core.errors import ConfigError

if TYPE_CHECKING:
    from rlearly.core.errors import RunFailed
    from rlearly.system.cores import Share
    from rlearly.training.display import Display
    from rlearly.training.sinks import Sinks, TensorBoard
    from rlearly.training.trainer import Trainer

DONE, SAVED, FAILED, BAD_REQUEST = 0, 75, 1, 2
"""Exit statuses: finished; stopped with a checkpoint, run me again; the env or learning failed; the
request cannot be met."""

LONG_SECONDS = 120
"""A run that is forecast to take less is not forecast aloud."""


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        if "--help" in words or "-h" in words or not words:
            from rlearly.config.help import train_help

            print(train_help([w for w in words if not w.startswith("-")]))
            return DONE
        if "--cfg" in words:
            return show_config(words)
        unknown = [w for w in words if w.startswith("-")]
        if unknown:
            raise ConfigError(f"There is no option {unknown[0]}; there are --help and --cfg job.")
        return train(words)
    except ConfigError as error:
        print(f"rlearly: {error}", file=sys.stderr)
        return BAD_REQUEST


def show_config(words: list[str]) -> int:
    from rlearly.config.resolve import compose

    at = words.index("--cfg")
    if words[at + 1 : at + 2] != ["job"]:
        raise ConfigError("--cfg: expected `--cfg job`, which prints the config and exits.")
    print(as_yaml(compose(words[:at] + words[at + 2 :])), end="")
    return DONE


class StopRequests:
    """Ctrl-C and schedulers' signals ask the run to save and stop; a second Ctrl-C insists."""

    def __init__(self) -> None:
        self.received: str | None = None
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            signal.signal(getattr(signal, name), self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        text = f"\n{self.received}: saving at the next step and stopping ...\n"
        os.write(1, text.encode())  # print may not be called from a signal handler

    def __call__(self) -> bool:
        return self.received is not None


def train(words: list[str]) -> int:
    """Start or resume a run.

    Raises:
        ConfigError: the request cannot be met.
    """
    from rlearly.agents import agent_spec
    from rlearly.config import resolve
    from rlearly.system import cores, machine
    from rlearly.training import run_directory

    stop = StopRequests()
    resumed = dict(parse_overrides(words)).get("resume")
    if resumed is not None:
        folder = Path(str(resumed))
        rest = [w for w in words if not w.startswith("resume=")]
        config = resolve.load(folder, rest)
        if (folder / "done.json").exists() and not any(w.startswith("train_frames=") for w in rest):
            print(f"{folder} is finished; add train_frames= to train on.")
            return DONE
        refuse_to_shrink(folder, config)
        if not any(w.startswith("threads=") for w in rest):
            config = replace(config, threads=fitting(config.threads))
    else:
        config = resolve.compose(words)
        folder = None
    asked = config.threads or machine.asked_threads() or None
    with cores.shared(asked, agent_spec(config.agent_name).most_threads) as share:
        config = replace(config, threads=machine.set_threads(share.threads))
        device = machine.choose_device(config.device)
        machine.ask_for_repeatable_kernels(device)
        machine.let_products_round(config.precision)
        if folder is None:
            folder = run_directory.create(config)
        with run_directory.locked(folder):
            return run(config, folder, device, share, stop, resume=resumed is not None)


def fitting(threads: int | None) -> int | None:
    """The threads that a run began with, unless this machine has fewer cores."""
    from rlearly.system.machine import usable_cores

    return None if threads is None or threads > usable_cores() else threads


def refuse_to_shrink(folder: Path, config: RunConfig) -> None:
    """A run cannot be resumed to an end that it has passed.

    Its last round of agent steps may have overshot `train_frames`, by less than the round's frames.

    Raises:
        ConfigError: the newest checkpoint is beyond `train_frames`.
    """
    from rlearly.training import checkpoint

    frames = max((int(p.name) for p in checkpoint.found(folder / "checkpoints")), default=0)
    if frames - config.train_frames >= config.env.action_repeat * config.num_envs:
        raise ConfigError(
            f"train_frames: expected at least the {frames} frames that {folder} has done, "
            f"received {config.train_frames}; name a larger number to train on."
        )


def run(
    config: RunConfig, folder: Path, device: Any, share: Share, stop: StopRequests, *, resume: bool
) -> int:
    from rlearly.core.errors import RunFailed
    from rlearly.training import checkpoint, run_directory
    from rlearly.training.display import Display

    display = Display(config.train_frames)
    anew = resume and not checkpoint.found(folder / "checkpoints")
    if anew:
        run_directory.refuse_to_begin_anew(folder, config)
    try:
        trainer = prepare(config, folder, device, display, stop, resume=resume)
    except (ConfigError, RunFailed) as error:
        if not resume:
            run_directory.discard(folder)
        if isinstance(error, RunFailed):
            raise ConfigError(f"env={config.env.name}: {error}.") from error
        raise
    others = f" (other runs have {share.taken} here)" if share.taken else ""
    display.message(
        f"{config.agent_name} on {config.env.name}, seed {config.seed}, "
        f"{device} with {share.threads} threads{others} -> {folder}"
    )
    provenance = run_directory.provenance(share.threads, device)
    if anew:
        display.message("it was ended before its first checkpoint and begins anew")
    elif resume:
        display.message(f"resumed at {trainer.at.frames:,} frames")
        say_if_other_ground(folder, provenance, display)
    else:
        say_if_long(config, device, display)
    try:
        run_directory.record_start(folder, config, provenance)
        with display:
            finished = trainer.run()
    except RunFailed as failed:
        return say_failure(failed, trainer, folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: writing failed ({error}); make room or mend it, then continue with "
            f"resume={folder}."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # rows are on the disk, or the error above says why not
            trainer.close()
    if finished:
        summary = {"frames": trainer.at.frames, "updates": trainer.updates, "time": time.time()}
        run_directory.write(folder / "done.json", json.dumps(summary))
        display.message(
            f"done: {trainer.at.frames:,} frames, {trainer.updates:,} updates -> {folder}"
        )
        return DONE
    display.message(
        f"saved at {trainer.at.frames:,} frames; continue with: {command_of(f'resume={folder}')}"
    )
    return SAVED


def command_of(*words: str) -> str:
    """The training command with these words, for the environment that this one runs in."""
    found, own = shutil.which("python"), Path(sys.executable)
    python = "python" if found and Path(found).absolute().parent == own.parent else str(own)
    return shlex.join([python, "-m", "rlearly.train", *words])


def say_failure(failed: RunFailed, trainer: Trainer, folder: Path) -> int:
    """Write down why a run could not go on, and say it and what can be done."""
    from rlearly.training import checkpoint, failure

    progress = {
        "frames": trainer.at.frames,
        "steps": trainer.steps,
        "updates": trainer.updates,
        "episode_steps": trainer.episode_steps,
        "latest": {name: str(value) for name, value in trainer.latest.items()},
    }
    try:
        failure.dump(folder, failed, progress, trainer.agent.state_dict())
        details = f"{folder / failure.REPORT} has the details"
    except OSError as error:
        details = f"Its details could not be written ({error})"
    kept = [int(path.name) for path in checkpoint.found(folder / "checkpoints")]
    start = f"the checkpoint of {kept[-1]:,} frames" if kept else "the beginning"
    remedy = (
        "start another run with other settings, as these cannot change; or go on"
        if failed.diverged
        else "mend the cause, then go on"
    )
    print(
        f"rlearly: stopped at {trainer.at.frames:,} frames: {failed}. {details}; {remedy} from "
        f"{start} with: {command_of(f'resume={folder}')}",
        file=sys.stderr,
    )
    return FAILED


def say_if_other_ground(folder: Path, provenance: dict[str, Any], display: Display) -> None:
    """Say what has changed since the run's last start of all that its repetition rests on."""
    from rlearly.system import determinism
    from rlearly.training import run_directory

    for last in run_directory.starts(folder)[-1:]:
        changes = determinism.changes(last.get("determinism", {}), provenance["determinism"])
        if changes:
            display.message(
                f"changed since the last start: {', '.join(changes)}; "
                "equality to the bit is no longer promised"
            )


def say_if_long(config: RunConfig, device: Any, display: Display) -> None:
    """Say how long the run will take if that is long, and a GPU would make it shorter."""
    from rlearly.training import forecast
    from rlearly.training.display import duration

    learns = config.train_frames > (config.seed_frames or 0)
    if device.type != "cpu" or config.preset != "paper" or not learns:
        return
    expected = forecast.forecast_seconds(config, device)
    if expected >= LONG_SECONDS:
        display.message(
            f"no GPU: these {config.train_frames:,} frames with their evaluations take about "
            f"{duration(expected)} here; preset=cpu is a small setting, train_frames= a shorter run"
        )


def prepare(
    config: RunConfig,
    folder: Path,
    device: Any,
    display: Display,
    stop: StopRequests,
    *,
    resume: bool,
) -> Trainer:
    """The trainer, ready to run: built, its evaluation tried out, its checkpoint loaded.

    Raises:
        ConfigError: something that the run will need is missing; nothing was trained yet.
    """
    from rlearly.training import builder
    from rlearly.training.sinks import TensorBoard

    events = TensorBoard(folder / "events")
    trainer = builder.build(
        config,
        folder,
        make_sinks=lambda: make_sinks(config, folder, events),
        callback=display,
        device=device,
        stop_requested=stop,
    )
    try:
        trainer.try_evaluation()
        if resume:
            frames = trainer.resume()
            events.purge_from = frames + 1 if frames else 0
    except ConfigError:
        trainer.close()
        raise
    return trainer


def make_sinks(config: RunConfig, folder: Path, events: TensorBoard) -> Sinks:
    """The run's record, and whoever else gets its metrics."""
    from omegaconf import OmegaConf

    from rlearly.training.sinks import JsonLines, Sinks, Wandb

    others: list[Any] = [events]
    if config.wandb.mode != "disabled":
        plain: Any = OmegaConf.to_container(OmegaConf.structured(config))
        others.append(Wandb(config.wandb, folder, plain))
    return Sinks(JsonLines(folder / "metrics.jsonl"), others)


if __name__ == "__main__":
    sys.exit(main())
