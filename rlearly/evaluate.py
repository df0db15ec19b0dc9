"""`python -m rlearly.evaluate run=<run dir>`: play a trained agent, print returns, film it."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.evaluate")

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlearly.config.fields import setting
from rlearly.config.structured import from_overrides, refuse_folders
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.exit_status import DONE, STATUS_HELP
from rlearly.system.command import as_command, importing

if TYPE_CHECKING:
    import gymnasium
    import torch

    from rlearly.config.schema import RunConfig

PROGRESS_SECONDS = 15.0
"""Seconds between the progress lines of a long evaluation."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Which agent to play, and how."""

    run: str = setting("", "run directory")
    checkpoint: int | None = setting(None, "checkpoint, by its number of frames; null: the newest")
    episodes: int = setting(10, "episodes to play with the mean action", at_least=1)
    seed: int = setting(0, "seed of the episodes", at_least=0)
    video_size: int = setting(
        256,
        "height and width of the first episode's video, in pixels; 0: none",
        at_least=0,
        at_most=480,
        multiple_of=8,
    )
    video: str | None = setting(None, "path of the mp4; null: <run>/videos/evaluate_<frames>.mp4")
    max_episode_steps: int | None = setting(
        None, "env steps after which an episode is truncated; null: as in the run", at_least=1
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = setting(
        None, "CPU threads; null: OMP_NUM_THREADS or all cores", at_least=1
    )


@as_command
def main(overrides: list[str]) -> int:
    """Evaluate with these settings; returns the exit status."""
    if "--help" in overrides or "-h" in overrides or not overrides:
        from rlearly.config.help import command_help

        usage = "python -m rlearly.evaluate run=RUN_DIR [key=value ...]"
        print(command_help(usage, EvaluateConfig), STATUS_HELP, sep="\n")
        return DONE
    refuse_folders(overrides, EvaluateConfig, "run")
    evaluate(from_overrides(EvaluateConfig(), overrides))
    return DONE


def evaluate(config: EvaluateConfig) -> list[float]:
    """Play episodes, print one line for each, and return the returns.

    Raises:
        ConfigError: the path is not a run, or the run has no undamaged checkpoint.
        RunFailed: the env failed, or the agent's action is NaN.
    """
    with importing():
        from rlearly.config import resolve
        from rlearly.system import machine
        from rlearly.training import builder, checkpoint, evaluation

    if config.video and not Path(config.video).parent.is_dir():
        raise ConfigError(
            f"video: expected a path in a folder that exists, received {config.video}; "
            f"make the folder {Path(config.video).parent} first, or name another path."
        )
    if config.video and Path(config.video).suffix != ".mp4":
        raise ConfigError(
            f"video: expected a path that ends in .mp4, received {config.video}; video_size=0 "
            "switches videos off."
        )
    run = Path(config.run)
    run_config = replace(resolve.load(run), device=config.device, threads=config.threads)
    run_config = resolve.with_time_limit(run_config, config.max_episode_steps)
    threads = machine.thread_count(run_config.threads)
    device = machine.choose_device(run_config.device)
    with machine.computing(threads, device, tf32=run_config.precision == "tf32"):
        frames, state = checkpoint.load_at(run / "checkpoints", config.checkpoint)
        env = builder.make_evaluation_env(
            run_config, videos=bool(config.video_size), kept=builder.kept_in(state), message=print
        )
        try:
            return play(config, run_config, env, device, frames, state)
        finally:
            evaluation.close_env(env)


def play(
    config: EvaluateConfig,
    run_config: RunConfig,
    env: gymnasium.Env,
    device: torch.device,
    frames: int,
    state: Mapping[str, Any],
) -> list[float]:
    """Play a run's checkpoint at `frames` in an env that was made for it; see `evaluate`."""
    from contextlib import ExitStack

    import numpy as np

    from rlearly import envs
    from rlearly.system.seeding import Seeds
    from rlearly.training import builder, evaluation, failure
    from rlearly.training.video import Video

    run = Path(config.run)
    agent = builder.make_agent(run_config, envs.env_spec(env, run_config.env), device)
    agent.load_state_dict(state["agent"])
    print(f"{run_config.agent_name} on {run_config.env.name} at {frames:,} frames")

    last_line = time.monotonic()

    def on_step(episode: int, length: int) -> None:
        nonlocal last_line
        if time.monotonic() - last_line > PROGRESS_SECONDS:
            last_line = time.monotonic()
            progress = f"playing episode {episode + 1} of {config.episodes}, step {length}"
            print(progress, file=sys.stderr, flush=True)
        if length == evaluation.LONG_EPISODE_STEPS:
            print(
                f"episode {episode + 1} has taken {length:,} steps and is still running; if the "
                "env never ends it, press Ctrl-C and add max_episode_steps=N",
                file=sys.stderr,
                flush=True,
            )

    failure.clear_beside(run / "evaluate")
    path = Path(config.video or run / "videos" / f"evaluate_{frames:012d}.mp4")
    render = envs.frame_renderer(env) if config.video_size else None
    with ExitStack() as stack:
        try:
            video = stack.enter_context(Video(path)) if render else None
        except OSError as error:
            raise ConfigError(
                f"video: {path} cannot be written ({error.strerror or error}); name another with "
                "video=, or add video_size=0."
            ) from None
        record_frame = (lambda: video.add(render(config.video_size))) if video and render else None
        try:
            result = evaluation.evaluate(
                agent,
                env,
                episodes=config.episodes,
                seeds=Seeds(config.seed).sequence("evaluation"),
                step=state["trainer"]["steps"],
                record_frame=record_frame,
                on_step=on_step,
            )
        except RunFailed as failed:
            details = failure.dump_beside(run / "evaluate", failed)
            raise RunFailed(f"{run}: {failed}. {details}.") from failed
    returns = result.returns
    for i, (total, length) in enumerate(zip(returns, result.lengths_steps, strict=True)):
        success = ""
        if result.successes is not None:
            success = ", success" if result.successes[i] else ", no success"
        print(f"episode {i}: return {total:.2f} in {length} steps{success}")
    rate = result.success_rate
    print(
        f"{len(returns)} episodes: mean {np.mean(returns):.2f}, median {np.median(returns):.2f}, "
        f"min {np.min(returns):.2f}, max {np.max(returns):.2f}"
        + ("" if rate is None else f"; success in {rate:.0%}")
    )
    if video:
        print(f"video: {path}")
    return returns
