"""Start or resume a run in this process, and train it to its end or until it is asked to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlearly.config.overrides import parse_value, split_overrides
from rlearly.config.schema import RunConfig
from rlearly.config.structured import refuse_folders
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.exit_status import DONE, FAILED, SAVED
from rlearly.system.command import importing, is_out_of_memory, out_of_memory
from rlearly.training.stop_requests import StopRequests

if TYPE_CHECKING:
    import torch

    from rlearly.training.display import Display
    from rlearly.training.trainer import Trainer


@dataclass(frozen=True)
class Ended:
    """How training ended.

    status: DONE, SAVED (asked to stop; it can be resumed) or FAILED.
    failure: one sentence on what happened and what can be done, if it failed.
    """

    folder: Path
    status: int
    failure: str = ""


def train(
    overrides: Sequence[str], *, quiet: bool = False, parts: Mapping[str, Any] | None = None
) -> Ended:
    """Start a run, or resume one with `resume=`, and train.

    Args:
        overrides: `key=value`, as on the command line.
        quiet: print nothing.
        parts: further arguments of `rlearly.training.builder.build`: objects that no override can
            name.

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
        if finished := run_directory.why_finished(folder, given):
            if not quiet:
                print(finished)
            return Ended(folder, DONE)
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
        session = Session(
            config,
            folder,
            device,
            stop,
            overrides,
            resume=resumed is not None,
            quiet=quiet,
            parts=parts or {},
        )
        with run_directory.locked(folder):
            try:
                return session.run()
            except BaseException:
                if resumed is None and not run_directory.has_started(folder):
                    run_directory.discard(folder)
                raise


@dataclass
class Session:
    """One start or resume of a run in its locked directory."""

    config: RunConfig
    folder: Path
    device: torch.device
    stop: StopRequests
    overrides: Sequence[str]
    resume: bool = field(kw_only=True)
    quiet: bool = field(kw_only=True)
    parts: Mapping[str, Any] = field(kw_only=True)

    def __post_init__(self) -> None:
        self.display = self._display()
        self.starting_over = False

    def _display(self) -> Display:
        from rlearly.training.display import Display, PipeConsole

        def reader_gone() -> None:
            if not self.stop.saves:
                raise BrokenPipeError
            self.stop.stop("the program that reads the output exited")

        console = PipeConsole(reader_gone, highlight=False, soft_wrap=True, quiet=self.quiet)
        return Display(self.config.train_frames, console)

    def run(self) -> Ended:
        """Train; the folder is locked by this process."""
        from rlearly import envs
        from rlearly.config import plugins
        from rlearly.system.provenance import provenance
        from rlearly.training import checkpoint, run_directory
        from rlearly.training.continuing import lineage

        folder, display = self.folder, self.display
        if self.resume and not checkpoint.list_checkpoints(folder / "checkpoints"):
            self.starting_over = True
            run_directory.refuse_to_start_over(folder, self.config)
        original = run_directory.original_of(folder)
        identity = run_directory.identify(folder)
        if original:
            display.message(
                f"{folder} is a copy of {original}: it continues as a separate run, with its own "
                "identity and wandb id"
            )
        try:
            trainer = self._prepare()
        except RunFailed as failed:
            return self._failed(failed, None)
        try:
            if not self.stop.possible:
                display.message(
                    "this run is not in the main thread, the only one in which Python handles "
                    "signals, so Ctrl-C and a scheduler's signals do not save it"
                )
            origin = provenance(
                self.overrides,
                self.config.threads,
                self.device,
                envs.code_of(self.config.env),
                plugins.modules_of(self.config),
            )
            origin["identity"] = identity
            if ancestor := lineage.ancestor_entry(folder, self.config.start_from):
                origin["ancestor"] = ancestor
            return self._learn(trainer, origin)
        finally:
            with contextlib.suppress(OSError):
                trainer.close()

    def _prepare(self) -> Trainer:
        """Build the run, try its evaluation env, and load its newest checkpoint when resuming.

        Raises:
            ConfigError: something that the run will need is missing; nothing was trained yet.
        """
        from rlearly.training import builder
        from rlearly.training.sinks import TensorBoard, make_sinks

        events = TensorBoard(self.folder / "events")
        trainer = builder.build(
            self.config,
            self.folder,
            make_sinks=lambda: make_sinks(self.config, self.folder, events),
            display=self.display,
            device=self.device,
            stop_requested=self.stop,
            **self.parts,
        )
        try:
            trainer.try_evaluation()
            if self.resume:
                frames = trainer.resume()
                events.purge_from = frames + 1 if frames else 0
            trainer.begin()
        except BaseException:
            trainer.close()
            raise
        return trainer

    def _learn(self, trainer: Trainer, origin: dict[str, Any]) -> Ended:
        """Record the start, and train to the end or until asked to stop.

        Args:
            origin: the entry of this start in provenance.json.
        """
        from rlearly.system import machine
        from rlearly.training import run_directory

        config, folder, display = self.config, self.folder, self.display
        display.message(
            f"{config.agent_name} on {config.env.name}, seed {config.seed}, "
            f"{self.device} with {machine.describe_threads(config.threads)} -> {folder}"
        )
        if self.starting_over:
            display.message("the run ended before its first checkpoint and starts over")
        elif self.resume:
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
            self.stop.saves = True
            with display:
                finished = trainer.run()
        except RunFailed as error:
            failed = error
        except KeyboardInterrupt:
            if self.resume or run_directory.has_started(folder):  # else the directory is removed
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
            with contextlib.suppress(OSError):  # rows are on disk, or the error above says why not
                trainer.close()
        if failed:  # reported last, after what closing may say
            return self._failed(failed, trainer)
        frames, updates = trainer.at.frames, trainer.updates
        if not finished:
            display.message(
                f"saved at {frames:,} frames; continue with: {run_directory.resume_command(folder)}"
            )
            return Ended(folder, SAVED)
        run_directory.record_end(folder, frames, updates, trainer.stop_reason)
        display.message(f"done: {frames:,} frames, {updates:,} updates -> {folder}")
        return Ended(folder, DONE)

    def _failed(self, failed: RunFailed, trainer: Trainer | None) -> Ended:
        """Write failure.json, and say what happened and what can be done.

        Args:
            trainer: None if the run failed before it had one.
        """
        from rlearly.training import checkpoint, failure, run_directory

        folder = self.folder
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
        sentence = (
            f"stopped at {frames:,} frames: {failed}. {details}; {remedy} from "
            f"{start} with: {run_directory.resume_command(folder)}"
        )
        return Ended(folder, FAILED, sentence)
