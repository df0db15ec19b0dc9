"""`python -m rlearly.evaluate run=<run dir>`: play a trained agent, print returns, film it."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.evaluate")

import sys
import time
from pathlib import Path

from rlearly.api.play import EvaluateConfig
from rlearly.config.structured import from_overrides, refuse_folders
from rlearly.core.errors import ConfigError
from rlearly.core.exit_status import DONE, STATUS_HELP
from rlearly.system.command import as_command, importing

PROGRESS_SECONDS = 15.0
"""Seconds between the progress lines of a long evaluation."""


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
    """Play episodes, print one line for each, and return the returns; raises as `play` does."""
    with importing():
        import numpy as np

        from rlearly.api.play import play
        from rlearly.training.evaluation import LONG_EPISODE_STEPS

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
    last_line = time.monotonic()

    def on_step(episode: int, length: int) -> None:
        nonlocal last_line
        if time.monotonic() - last_line > PROGRESS_SECONDS:
            last_line = time.monotonic()
            progress = f"playing episode {episode + 1} of {config.episodes}, step {length}"
            print(progress, file=sys.stderr, flush=True)
        if length == LONG_EPISODE_STEPS:
            print(
                f"episode {episode + 1} has taken {length:,} steps and is still running; if the "
                "env never ends it, press Ctrl-C and add max_episode_steps=N",
                file=sys.stderr,
                flush=True,
            )

    played = play(config, message=print, on_step=on_step)
    result = played.evaluation
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
    if played.video:
        print(f"video: {played.video}")
    return returns
