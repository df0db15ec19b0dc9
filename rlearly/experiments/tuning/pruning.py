"""Successive halving: end trials early that score too low beside the others (arXiv 1810.05934).

At a few frame counts, the rungs, a trial is compared with all trials that got there before. One in
`factor`, the best, continue. No trial waits for others: it is compared with those that have reached
the rung by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlearly.config.fields import setting


@dataclass(frozen=True)
class PruneConfig:
    """Which trials are ended early."""

    enabled: bool = setting(True, "false: every trial runs to its end")
    factor: int = setting(3, "at each rung one trial in this many continues", at_least=2)
    first_frames: int | None = setting(
        None,
        "frames of the first rung, each later one has `factor` times as many; null: two rungs, at "
        "train_frames / factor**2 and / factor",
        at_least=1,
    )
    after_trials: int = setting(
        4, "other trials that must have reached a rung before one is pruned there", at_least=1
    )


def rungs_of(
    config: PruneConfig, train_frames: int, eval_every_frames: int, seed_frames: int
) -> list[int]:
    """The frames of the rungs, in order.

    A rung must lie before the end, and after the first evaluation of an agent that has learned;
    learning begins at `seed_frames`. Other rungs are left out.
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
