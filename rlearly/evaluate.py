"""`python -m rlearly.evaluate run=<run dir>`: play a trained agent, print returns, film it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlearly.config.fields import setting
from rlearly.config.structured import from_overrides
from rlearly.core.errors import ConfigError

TELL_SECONDS = 15.0
"""Between two lines of a long evaluation."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to play."""

    run: str = setting("", "run directory")
    checkpoint: int | None = setting(None, "checkpoint, by its number of frames; null: the newest")
    episodes: int = setting(10, "episodes to play with the mean action", at_least=1)
    workers: int = setting(1, "of them played side by side, in threads", at_least=1)
    seed: int = setting(0, "seed of the episodes", at_least=0)
    video_size: int = setting(
        256,
        "height and width of the first episode's video, in pixels; 0: none",
        at_least=0,
        at_most=480,
        multiple_of=8,
    )
    video: str | None = setting(None, "path of the mp4; null: <run>/videos/evaluate_<frames>.mp4")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = setting(
        None, "CPU threads; null: OMP_NUM_THREADS or all cores", at_least=1
    )


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if "--help" in words or "-h" in words or not words:
        from rlearly.config.help import command_help

        print(
            command_help("python -m rlearly.evaluate run=RUN_DIR [key=value ...]", EvaluateConfig)
        )
        return 0
    try:
        for word in words:
            if "=" not in word and Path(word).is_dir():
                raise ConfigError(
                    f"Expected key=value, received {word!r}; did you mean run={word}?"
                )
        evaluate(from_overrides(EvaluateConfig(), words))
    except ConfigError as error:
        print(f"rlearly: {error}", file=sys.stderr)
        return 2
    return 0


def evaluate(config: EvaluateConfig) -> list[float]:
    """Play, print a line an episode, and return the returns.

    Raises:
        ConfigError: the path is no run, or it has no whole checkpoint.
    """
    import numpy as np

    from rlearly import envs
    from rlearly.config import resolve
    from rlearly.core.errors import RunFailed
    from rlearly.system import machine
    from rlearly.system.seeding import Seeds
    from rlearly.training import builder, checkpoint, executors, trainer
    from rlearly.training.video import Video

    if config.video and not Path(config.video).parent.is_dir():
        raise ConfigError(
            f"video: expected a path in a folder that exists, received {config.video}; "
            f"make the folder {Path(config.video).parent} first, or name another path."
        )
    if config.video and Path(config.video).suffix != ".mp4":
        raise ConfigError(
            f"video: expected a path that ends in .mp4, received {config.video}; video_size=0 has "
            "nothing filmed."
        )
    run = Path(config.run)
    run_config = replace(resolve.load(run), device=config.device, threads=config.threads)
    machine.set_threads(run_config.threads)
    device = machine.choose_device(run_config.device)
    machine.let_products_round(run_config.precision)
    frames, state = load_checkpoint(run / "checkpoints", config.checkpoint, checkpoint)
    count = min(config.workers, config.episodes)
    homes = [
        executors.ThreadExecutor() if count > 1 else executors.InlineExecutor()
        for _ in range(count)
    ]
    videos = bool(config.video_size)
    worlds = [home.run(builder.make_env, run_config, videos=videos) for home in homes]
    spec = envs.env_spec(worlds[0], run_config.env)
    agent = builder.make_agent(run_config, spec, device)
    agent.load_state_dict(state["agent"])
    print(f"{run_config.agent_name} on {run_config.env.name} at {frames:,} frames")

    told = time.monotonic()

    def tell(episode: int, length: int) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            said = f"playing episode {episode + 1} of {config.episodes}, step {length}"
            print(said, file=sys.stderr, flush=True)

    def play(film: Any) -> trainer.Evaluation:
        try:
            return trainer.evaluate(
                agent,
                *worlds,
                executors=homes,
                episodes=config.episodes,
                seeds=Seeds(config.seed).sequence("evaluation"),
                step=state["trainer"]["steps"],
                film=film,
                on_step=tell,
            )
        except RunFailed as failed:
            raise ConfigError(f"{run}: {failed}.") from failed

    if config.video_size:
        path = Path(config.video or run / "videos" / f"evaluate_{frames:012d}.mp4")
        picture = envs.frame_renderer(worlds[0])
        with Video(path) as video:
            result = play(lambda: video.add(picture(config.video_size)))
    else:
        path, result = None, play(None)
    for home, world in zip(homes, worlds, strict=True):
        home.run(world.close)
        home.close()
    ends = [""] * len(result.returns)
    if result.successes is not None:
        ends = [", success" if success else ", no success" for success in result.successes]
    for i, (total, length, end) in enumerate(
        zip(result.returns, result.lengths_steps, ends, strict=True)
    ):
        print(f"episode {i}: return {total:.2f} in {length} steps{end}")
    print(
        f"{len(result.returns)} episodes: mean {np.mean(result.returns):.2f}, "
        f"median {np.median(result.returns):.2f}, "
        f"min {np.min(result.returns):.2f}, max {np.max(result.returns):.2f}"
        + ("" if result.success_rate is None else f"; success in {result.success_rate:.0%}")
    )
    if path:
        print(f"video: {path}")
    return result.returns


def load_checkpoint(
    folder: Path, frames: int | None, checkpoint: Any
) -> tuple[int, dict[str, Any]]:
    if frames is None:
        return checkpoint.load_newest(folder, tapes=False)
    path = folder / f"{frames:012d}"
    if not path.is_dir():
        kept = ", ".join(str(int(p.name)) for p in checkpoint.found(folder)) or "none"
        raise ConfigError(
            f"checkpoint: there is none at {frames} frames in {folder}; kept: {kept}."
        )
    try:
        return frames, checkpoint.load(path, tapes=False)
    except checkpoint.DamagedCheckpoint as error:
        raise ConfigError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
