"""`python -m rlearly.train agent=drm env=dog_run`: train one agent on one env with one seed."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlearly.config import ConfigError, RunConfig, as_yaml

DONE, SAVED, BAD_REQUEST = 0, 75, 2
"""Exit statuses: finished; stopped with a checkpoint, run me again; the request cannot be met."""


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        if "--help" in words or "-h" in words or not words:
            from rlearly.help import train_help

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
    from rlearly.compose import compose

    at = words.index("--cfg")
    if words[at + 1 : at + 2] != ["job"]:
        raise ConfigError("--cfg: expected `--cfg job`, which prints the config and exits.")
    print(as_yaml(compose(words[:at] + words[at + 2 :])), end="")
    return DONE


class StopRequests:
    """Ctrl-C and schedulers' signals ask the run to save and stop; a second Ctrl-C insists."""

    def __init__(self) -> None:
        self.received: str | None = None
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
            signal.signal(getattr(signal, name), self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        print(f"\n{self.received}: saving at the next step and stopping ...", flush=True)

    def __call__(self) -> bool:
        return self.received is not None


def train(words: list[str]) -> int:
    """Start or resume a run.

    Raises:
        ConfigError: the request cannot be met.
    """
    from rlearly import compose, machine, run_dir

    stop = StopRequests()
    resumed = next((w.partition("=")[2] for w in words if w.startswith("resume=")), None)
    if resumed is not None:
        folder = Path(resumed)
        rest = [w for w in words if not w.startswith("resume=")]
        config = compose.load(folder, rest)
        if (folder / "done.json").exists() and not any(w.startswith("train_frames=") for w in rest):
            print(f"{folder} is finished; add train_frames= to train on.")
            return DONE
    else:
        config = compose.compose(words)
        folder = None
    threads = machine.settle(config.threads)
    device = machine.choose_device(config.device)
    if folder is None:
        folder = run_dir.create(config)
    try:
        with run_dir.locked(folder):
            return run(config, folder, device, threads, stop, resume=resumed is not None)
    except ConfigError:
        if resumed is None:
            run_dir.discard(folder)
        raise


def run(
    config: RunConfig, folder: Path, device: Any, threads: int, stop: StopRequests, *, resume: bool
) -> int:
    from rlearly import checkpoint, compose, run_dir
    from rlearly.display import Display, duration

    run_dir.record_provenance(folder, run_dir.provenance(threads, device))
    display = Display(config.train_frames)
    display.say(
        f"{config.agent_name} on {config.env.name}, seed {config.seed}, "
        f"{device} with {threads} threads -> {folder}"
    )
    state = checkpoint.load_newest(folder / "checkpoints") if resume else None
    sinks = make_sinks(config, folder, resumed_at=state[0] if state else None)
    loop = compose.build(
        config, folder, sinks=sinks, watcher=display, device=device, stop_requested=stop
    )
    if state:
        loop.load_state_dict(state[1])
        display.say(f"resumed at {state[0]:,} frames")
    elif device.type == "cpu" and config.preset == "paper":
        expected = compose.forecast_seconds(config, device)
        display.say(
            f"no GPU: {config.train_frames:,} frames at the paper's size take about "
            f"{duration(expected)} here; add preset=cpu for a small setting, or train_frames="
        )
    try:
        with display:
            finished = loop.run()
    finally:
        loop.close()
    if finished:
        summary = {"frames": loop.at.frames, "updates": loop.updates, "time": time.time()}
        run_dir.write(folder / "done.json", json.dumps(summary))
        display.say(f"done: {loop.at.frames:,} frames, {loop.updates:,} updates -> {folder}")
        return DONE
    display.say(
        f"saved at {loop.at.frames:,} frames; continue with: "
        f"python -m rlearly.train resume={folder}"
    )
    return SAVED


def make_sinks(config: RunConfig, folder: Path, resumed_at: int | None) -> Any:
    from omegaconf import OmegaConf

    from rlearly.sinks import JsonLines, Sinks, TensorBoard, Wandb

    events = TensorBoard(folder / "events")
    if resumed_at is not None:
        events.resume_from(resumed_at)
    others: list[Any] = [events]
    if config.wandb.mode != "disabled":
        plain: Any = OmegaConf.to_container(OmegaConf.structured(config))
        others.append(Wandb(config.wandb, folder, plain))
    return Sinks(JsonLines(folder / "metrics.jsonl"), others)


if __name__ == "__main__":
    sys.exit(main())
