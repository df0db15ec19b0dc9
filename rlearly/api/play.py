"""Play whole episodes with a run's checkpoint, as its evaluations do, and record a video."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlearly.config.fields import setting
from rlearly.config.schema import RunConfig
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.system.command import importing

if TYPE_CHECKING:
    import gymnasium
    import torch

    from rlearly.training.evaluation import Evaluation


@dataclass(frozen=True)
class EvaluateConfig:
    """Which agent to play, and how."""

    run: str = setting("", "run directory")
    checkpoint: Any = setting(
        None, "checkpoint, by its number of frames, or best (see keep_best); null: the newest"
    )
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


@dataclass(frozen=True)
class Played:
    """The result, and the checkpoint's frames and the path of the video, if any."""

    evaluation: Evaluation
    frames: int
    video: Path | None


def play(
    config: EvaluateConfig,
    *,
    message: Callable[[str], None],
    on_step: Callable[[int, int], None] = lambda episode, step: None,
) -> Played:
    """Play a checkpoint with the mean action.

    Args:
        message: called with lines for the user.
        on_step: called with the episode's index and its length so far, after each step.

    Raises:
        ConfigError: the path is not a run, or the run has no undamaged checkpoint.
        RunFailed: the env failed, or the agent's action is NaN.
    """
    with importing():
        from rlearly.config import resolve
        from rlearly.system import machine
        from rlearly.training import builder, checkpoint, evaluation

    run = Path(config.run)
    run_config = replace(resolve.load(run), device=config.device, threads=config.threads)
    run_config = resolve.with_time_limit(run_config, config.max_episode_steps)
    threads = machine.thread_count(run_config.threads)
    device = machine.choose_device(run_config.device)
    with machine.computing(threads, device, tf32=run_config.precision == "tf32"):
        frames, state = checkpoint.load_at(run / "checkpoints", config.checkpoint)
        env = builder.make_evaluation_env(
            run_config,
            videos=bool(config.video_size),
            kept=builder.kept_in(state),
            attributes=builder.attributes_in(state),
            message=message,
        )
        message(f"{run_config.agent_name} on {run_config.env.name} at {frames:,} frames")
        try:
            return _played(config, run_config, env, device, frames, state, on_step)
        finally:
            evaluation.close_env(env)


def _played(
    config: EvaluateConfig,
    run_config: RunConfig,
    env: gymnasium.Env,
    device: torch.device,
    frames: int,
    state: Mapping[str, Any],
    on_step: Callable[[int, int], None],
) -> Played:
    from rlearly import envs
    from rlearly.system.seeding import Seeds
    from rlearly.training import builder, evaluation, failure
    from rlearly.training.video import Video

    run = Path(config.run)
    spec = envs.env_spec(env, run_config.env)
    agent = builder.trained_agent(run_config, spec, device, state)
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
    return Played(result, frames, path if video else None)
