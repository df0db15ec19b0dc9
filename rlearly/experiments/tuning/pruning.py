"""Successive halving: end trials early that score too low beside the others (arXiv 1810.05934).

At a few numbers of frames, the rungs, a trial is compared with all trials that got there before.
The best of them go on, one in `factor`. Nothing waits: a trial is judged when it reaches a rung, by
the trials known then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlearly.config.fields import setting


@dataclass(frozen=True)
class PruneConfig:
    """Which trials are ended early."""

    enabled: bool = setting(True, "false: every trial runs to its end")
    factor: int = setting(3, "at each rung one trial in this many goes on", at_least=2)
    first_frames: int | None = setting(
        None,
        "frames of the first rung, each later one is `factor` times as far; null: two rungs, as in "
        "train_frames / 9 and / 3",
        at_least=1,
    )
    after_trials: int = setting(
        4, "trials that must have reached a rung before one is ended there", at_least=1
    )


def rungs_of(
    config: PruneConfig, train_frames: int, eval_every_frames: int, seed_frames: int
) -> list[int]:
    """The frames of the rungs, in order.

    A rung must lie before the end, and after the first evaluation of an agent that has learned,
    which begins to at `seed_frames`: earlier ones are left out.
    """
    if not config.enabled:
        return []
    if config.first_frames is None:
        frames = [train_frames // config.factor**2, train_frames // config.factor]
    else:
        frames = [config.first_frames]
        while frames[-1] < train_frames:
            frames.append(frames[-1] * config.factor)
    earliest = seed_frames + eval_every_frames
    return [one for one in frames if earliest <= one <= train_frames - eval_every_frames]


def goes_on(value: float, others: Sequence[float], config: PruneConfig) -> bool:
    """Whether a trial with this value at a rung goes on, beside the values of the others there.

    It does if fewer than `after_trials` of them are known, or if it is among the best n // factor
    (at least one) of all n, itself included. Equal values count as equally good.
    """
    if len(others) < config.after_trials:
        return True
    better = sum(other > value for other in others)
    return better < max(1, (len(others) + 1) // config.factor)
